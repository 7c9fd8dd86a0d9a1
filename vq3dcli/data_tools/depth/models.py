"""Monocular depth networks as teachers: images in, numbers out that mean disparity or depth; found, and opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vq3dcli.errors import InputMissingError, UnavailableError, UsageError
from vq3dcli.remote.fetch import refuse_offline
from vq3dcli.weights.third_party import import_package
from vq3dcli.weights_file import EMBEDDED, load_depth

Meaning = Literal["disparity", "depth"]

PACKAGES = "pip install 'vq3d[depth]', or an .onnx file and 'vq3d[onnx]'"
# A depth below this share of the map's median is taken for it: 1 / z of a pixel at zero would use up all levels of the
# label. A share, since the unit is not known: some networks predict depth from 0 to 1.
NEAREST = 0.02
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


@dataclass(frozen=True)
class DepthModel:
    """An opened network."""

    # its own numbers, float32 `[B, h, w]` on the CPU, for uint8 images `[B, 3, H, W]`
    predict: Callable[[Tensor], Tensor]
    # what they are: `disparity`, larger is nearer, known up to scale and shift; or `depth`, z in any unit
    meaning: Meaning
    facts: dict[str, Any]  # JSON values that its numbers depend on, the hash of its files among them
    # features of each place of the same images that tell things apart, float32 `[B, C, h', w']`, where it has any
    texture: Callable[[Tensor], Tensor] | None = None

    def disparity(self, images: Tensor) -> Tensor:
        """Disparity up to scale and shift, larger is nearer, as `predict`."""
        return to_disparity(self.predict(images), self.meaning)


def to_disparity(prediction: Tensor, meaning: Meaning) -> Tensor:
    """Disparity up to scale and shift, larger is nearer, from a network's numbers, float32 `[B, h, w]`."""
    if meaning == "disparity":
        return prediction
    nearest = NEAREST * prediction.flatten(1).nanmedian(dim=1).values[:, None, None]
    # A map that is nowhere above zero becomes constant, and its label is flagged.
    return 1.0 / prediction.maximum(nearest.clamp(min=torch.finfo(torch.float32).tiny))


@dataclass(frozen=True)
class ModelFiles:
    """Where a network lies."""

    # an `.onnx` file, a folder in the layout of transformers, or what `vq3d train-depth` made; None for the embedded
    # network
    path: Path | None
    name: str  # a short name, for the folder of the labels
    is_own: bool = False  # whether `vq3d train-depth` made it


def find_model(model: str, *, download: bool = False) -> ModelFiles:
    """Find a network by a path, or by its name on the Hugging Face Hub among what this machine has of it.

    `model` is `embedded`, what `vq3d train-depth` made, an `.onnx` file, a folder of transformers, or a name such as
    `depth-anything/Depth-Anything-V2-Small-hf`.

    Raises `InputMissingError`: there is no such file or folder; `UnavailableError`: it is not on this machine, and may
    not or cannot be fetched.
    """
    if model == EMBEDDED:
        return ModelFiles(None, EMBEDDED, is_own=True)
    path = Path(model).expanduser()
    if path.suffix == ".safetensors" or (path / "checkpoints").is_dir() or path.parent.name == "checkpoints":
        run = path.parent if path.name == "weights.safetensors" else path
        return ModelFiles(path, _label_name(run.resolve().stem), is_own=True)
    if path.is_dir() or (path.is_file() and path.suffix == ".onnx"):
        full = path.resolve()
        name = full.stem if full.suffix == ".onnx" else full.name
        if full.parent.name == "snapshots":  # the Hub's cache: models--OWNER--NAME/snapshots/HASH
            name = full.parent.parent.name.rpartition("--")[2]
        return ModelFiles(path, _label_name(name))
    if path.is_file():
        raise UsageError(f"not a depth model ({model})", remedy="an .onnx file, or a folder with config.json")
    if model.endswith(".onnx") or model.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(model):
        raise InputMissingError(f"no such depth model ({model})", remedy="check the path; vq3d depth-labels --help")
    return ModelFiles(_from_hub(model, download), _label_name(model.rpartition("/")[2]))


def open_model(
    files: ModelFiles,
    device: torch.device,
    *,
    meaning: Meaning | None = None,
    input_px: int | None = None,
    or_cpu: bool = False,
    flip: bool = False,
) -> DepthModel:
    """Open a network for inference.

    Args:
        meaning: What its numbers mean, where that is not known from its family.
        input_px: Side of the images that an ONNX file of free size is given.
        or_cpu: An ONNX file may be computed on the CPU if onnxruntime cannot use the device.
        flip: Average with the mirrored map of the mirrored image; for networks of `vq3d train-depth`.

    Raises `InputMissingError`: a file is missing; `UnavailableError`: a package or the embedded network is missing, or
    the device cannot be used; `UnsafeFileError`: the weights are a pickle, or a folder wants to run its own code;
    `DataError`: it is damaged, or no network from an image to a map; `UsageError`: nobody knows what the numbers mean,
    or an option is not for this kind of network.
    """
    if files.is_own:
        if meaning is not None or input_px is not None:
            raise UsageError(
                "this network says itself what it takes and means", remedy="no --predicts, no --input-size"
            )
        return _open_own(files.path, device, flip)
    assert files.path is not None, "only the embedded network has no path"
    if flip:
        raise UsageError("--flip is for networks of vq3d train-depth", remedy="no --flip")
    if files.path.suffix == ".onnx":
        from vq3dcli.data_tools.depth.onnx import open_onnx

        return open_onnx(files.path, device, meaning=meaning, input_px=input_px, or_cpu=or_cpu)
    from vq3dcli.data_tools.depth.transformers import open_transformers

    if input_px is not None:
        raise UsageError("the input size is for ONNX files only", remedy="no --input-size: the folder says it itself")
    return open_transformers(files.path, device, meaning=meaning)


def _open_own(path: Path | None, device: torch.device, flip: bool) -> DepthModel:
    loaded = load_depth(path, device)
    input_px = loaded.recipe.model.input_px
    facts = {"backend": "vq3d", "meaning": "disparity", "input_px": 2 * input_px, "flip": flip, "sha256": loaded.sha256}
    network = loaded.model
    return DepthModel(
        lambda images: network.predict_fine(images, flip=flip).cpu(),
        "disparity",
        facts,
        lambda images: network.texture(images).cpu(),
    )


def _label_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"


def _from_hub(name: str, download: bool) -> Path:
    hub = import_package("huggingface_hub", f"the depth model {name}", PACKAGES)
    if download:
        refuse_offline(f"hf://{name}")
    patterns = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=patterns, local_files_only=not download))
    except Exception as error:  # the client raises a dozen types: no network, no such name, not yet fetched, ...
        reason = f": {' '.join(str(error).split())[:120]}" if download else ""
        raise _absent(name, reason, download) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise _absent(name, ": only parts of it", download)
    return folder


def _absent(name: str, reason: str, download: bool) -> UnavailableError:
    place = f"models/{_label_name(name.rpartition('/')[2])}"
    fetch, where = f"hf download {name} --local-dir {place}", f"--model {place}"
    if download:
        return UnavailableError(
            f"cannot fetch depth model ({name}){reason}", remedy=f"on a machine with a network: {fetch}; here: {where}"
        )
    return UnavailableError(
        f"depth model is not on this machine ({name}){reason}",
        remedy=f"--download; or on a machine with a network: {fetch}, copy that folder, and {where}",
    )
