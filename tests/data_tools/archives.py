"""Small copies of data sets in their layouts, made for a test."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vq3dcli.data.imagenet import imagenet_names
from vq3dcli.data.images import decode_image
from vq3dcli.data.shard_format import Manifest
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.files import temporary_for

WNIDS = ["n01440764", "n01443537", "n02085620", "n04152593"]


def photo(seed: int, width: int = 40, height: int = 30, mode: str = "RGB", image_format: str = "JPEG") -> bytes:
    """A smooth picture that differs with the seed."""
    y, x = np.mgrid[0:height, 0:width]
    bands = [(x * (5 + seed) + y * (i + 1) * 3 + 40 * i + 11 * seed) % 256 for i in range(4)]
    pixels = np.stack(bands, -1).astype(np.uint8)
    image = Image.fromarray(
        pixels[..., 0] if mode in ("L", "P") else pixels[..., : len(mode)], None if mode != "CMYK" else "CMYK"
    )
    buffer = io.BytesIO()
    (image.convert(mode) if image.mode != mode else image).save(buffer, image_format)
    return buffer.getvalue()


def train_files(a_class: int = 3) -> dict[str, bytes]:
    """Class folders of photos, in no order, by path."""
    return {f"{w}/{w}_{10 * i + 3}.JPEG": photo(7 * c + i) for i in range(a_class) for c, w in enumerate(WNIDS)}


def leave_half_a_shard(folder: Path) -> None:
    """A temporary file of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    name = temporary_for(folder / "shard-000001.tar").name
    (folder / name.replace(f"-{os.getpid()}-", f"-{process.pid}-")).write_bytes(b"half")


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(data), 1_300_000_000
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def nested_train_tar(files: Mapping[str, bytes]) -> bytes:
    """The official layout: a tar a class, in one tar, in no order."""
    inner = {wnid: {n.split("/")[1]: d for n, d in files.items() if n.startswith(wnid)} for wnid in reversed(WNIDS)}
    return tar_bytes({f"{wnid}.tar": tar_bytes(members) for wnid, members in inner.items()})


def write_tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def meta_mat(wnids: list[str]) -> bytes:
    """`meta.mat` of a devkit in which ids run against the order of the WordNet ids, and an inner node follows."""
    import scipy.io

    names = [*reversed(wnids), "n00001740"]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.zeros((len(names), 1), dtype=kind)
    for i, wnid in enumerate(names):
        words = ", ".join(imagenet_names().get(wnid, ("entity",)))
        synsets[i, 0] = (i + 1, wnid, words, 0 if i < len(wnids) else 2)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def devkit_files(labels: list[int]) -> dict[str, bytes]:
    """The devkit's two files; `labels` are positions in WNIDS, image by image."""
    truth = "".join(f"{len(WNIDS) - label}\n" for label in labels).encode()
    root = "ILSVRC2012_devkit_t12/data"
    return {f"{root}/meta.mat": meta_mat(WNIDS), f"{root}/ILSVRC2012_validation_ground_truth.txt": truth}


def devkit_tar_gz(labels: list[int]) -> bytes:
    import gzip

    return gzip.compress(tar_bytes(devkit_files(labels)))


def cells(texts: list[str]) -> np.ndarray:
    """A MATLAB cell array of texts; an empty text is an empty cell."""
    array = np.empty((len(texts), 1), dtype=object)
    for i, text in enumerate(texts):
        array[i, 0] = text if text else np.zeros((0, 0))
    return array


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a shard folder but locks."""
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.is_file() and not p.name.endswith(".lock")}


def infos(out: Path) -> list[dict[str, object]]:
    folder = ShardFolder(out)
    return [json.loads(folder.read(i)["json"]) for i in range(folder.num_samples)]


def rejects(out: Path) -> dict[str, str]:
    lines = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    return {line["path"]: line["reason"] for line in lines}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def imagenet(source: Path, out: Path, *, max_bad: float = 0.0, **options: object) -> Manifest:
    listed = open_source("imagenet", source, out, **options)  # type: ignore[arg-type]
    manifest = prepare(out, image_job("imagenet", listed, Options(16, shard_size=5), max_bad=max_bad))
    assert manifest is not None
    return manifest


def samples(out: Path) -> list[tuple[int | None, bytes]]:
    folder = ShardFolder(out)
    return [(folder.entry(i).class_index, folder.read(i)["jpg"]) for i in range(folder.num_samples)]


def onnx_file(path: Path, shape: list[int | str], *, mean: float = 0.0) -> Path:
    """A network whose disparity is the mean of the normalised colours plus `mean`."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1], keepdims=0),
        helper.make_node("Add", ["grey", "offset"], ["disparity"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("disparity", TensorProto.FLOAT, [shape[0], *shape[2:]])],
        [helper.make_tensor("offset", TensorProto.FLOAT, [], [mean])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def images_of(shards: Path) -> torch.Tensor:
    folder = ShardFolder(shards)
    return torch.stack([decode_image(folder.read(i)["png"], name="x") for i in range(folder.num_samples)])
