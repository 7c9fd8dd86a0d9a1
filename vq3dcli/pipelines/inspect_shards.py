"""What is in a shard folder: images or disparity labels, their figures, damage, and a contact sheet."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.data.images import encode_png, resize
from vq3dcli.data.shard_format import DISPARITY_FOLDER, REJECTS_NAME, Manifest
from vq3dcli.data.shard_reader import ShardFolder, label_folder
from vq3dcli.data.stream import evenly
from vq3dcli.data_tools.job import Progress
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import DataError, InputMissingError, UsageError, Vq3dError
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import make_folder, write_bytes
from vq3dcli.sealed import json_value

SHOWN = 8  # names of a long list
_SAMPLES = 512  # that are looked into; the rest is counted by the index
_SHEET_IMAGES = 48
_PREVIEW_PAIRS, _PREVIEW_COLUMNS = 32, 4
_CELL_PX = 128


def inspect_shards(path: Path, verify: bool, progress: Progress) -> tuple[dict[str, Any], list[str], list[str]]:
    """Facts: counts, classes, sizes and labels; with `verify` every file that is damaged, cut or missing; and notes."""
    facts: dict[str, Any] = {}
    problems: list[str] = []
    notes: list[str] = []
    if verify:
        checked = verify_folder(path, progress=progress)
        problems = [str(problem) for problem in checked.problems]
        notes = [f"labels are not finished, and not verified ({folder})" for folder in checked.unfinished]
    try:
        folder = ShardFolder(path)
        facts = _label_facts(folder) if folder.manifest.kind == "disparity" else _image_facts(folder)
    except Vq3dError:
        if not problems:  # else they say it better
            raise
    if verify:
        facts |= {"files": checked.files, "bytes_read": checked.size, "problems": len(problems)}
    return facts, problems, notes


def _common_facts(manifest: Manifest) -> dict[str, Any]:
    size = sum(shard.size for shard in manifest.shards)
    return {
        "holds": "images" if manifest.kind == "images" else "disparity labels",
        "preset": manifest.preset,
        "samples": manifest.num_samples,
        "shards": len(manifest.shards),
        "bytes": size,
        "bytes_per_sample": size / max(1, manifest.num_samples),
    }


def _image_facts(folder: ShardFolder) -> dict[str, Any]:
    manifest = folder.manifest
    names = manifest.class_titles or manifest.class_names
    counted = torch.bincount(folder.class_index[folder.class_index >= 0], minlength=len(names)).tolist()
    order = sorted(range(len(names)), key=lambda i: -counted[i])
    facts = _common_facts(manifest) | {
        "image_px": manifest.image_size,
        "stored_px": manifest.stored_size,
        "own_disparity": manifest.own_disparity,
        **({"views": manifest.views} if manifest.views else {}),
        "rejects": manifest.num_rejects,
        "rejected_because": _reasons(folder.path / REJECTS_NAME),
        "classes": {
            "count": len(names),
            "without_class": int((folder.class_index < 0).sum()),
            "most": max(counted, default=0),
            "median": statistics.median(counted) if counted else 0,
            "least": min(counted, default=0),
            "largest": {names[i]: counted[i] for i in order[:SHOWN]},
        },
    }
    infos = (json_value(folder.read(i, ["json"]).get("json", b"{}")) for i in evenly(folder.num_samples, _SAMPLES))
    originals = [info.get("original_size") if isinstance(info, dict) else None for info in infos]
    folder.close()
    sizes = sorted(min(map(int, size.values())) for size in originals if isinstance(size, dict) and size)
    if sizes:
        facts["original_short_side_px"] = {
            "least": sizes[0],
            "median": statistics.median(sizes),
            "most": sizes[-1],
            "smaller_than_stored": sum(size < manifest.stored_size for size in sizes) / len(sizes),
        }
    labels = folder.path / DISPARITY_FOLDER
    if labels.is_dir():
        facts["labels"] = {each.name: _label_state(each) for each in sorted(labels.iterdir()) if each.is_dir()}
    return facts


def _label_state(path: Path) -> str:
    try:
        return f"{ShardFolder(path).num_samples} samples"
    except InputMissingError:
        return "unfinished"
    except DataError:
        return "damaged"


def _label_facts(folder: ShardFolder) -> dict[str, Any]:
    labels = [folder.disparity(i) for i in evenly(folder.num_samples, _SAMPLES)]
    folder.close()
    options = {key: value for key, value in folder.manifest.options.items() if key != "images_manifest_sha256"}
    return _common_facts(folder.manifest) | {
        "made_with": options,
        "looked_into": len(labels),
        "kinds": dict(Counter(label.info.kind for label in labels)),
        "sizes": dict(Counter("x".join(map(str, label.levels.shape)) for label in labels)),
        "flagged": dict(Counter(flag for label in labels for flag in label.info.flags)),
    }


def _reasons(path: Path) -> dict[str, int]:
    """Rejects by reason: the words before a colon, which precede what is particular to a file."""
    counted: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                counted[str(json_value(line)["reason"]).split(":")[0]] += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"damaged file ({path}): {error}", remedy="vq3d inspect --verify") from error
    return dict(counted.most_common(SHOWN))


def _label_cell(folder: ShardFolder, i: int) -> tuple[Tensor, str]:
    """A label over its own range, near pale and far dark, and its key with what is wrong with it."""
    label = folder.disparity(i)
    return resize(colour_map(label.relief), _CELL_PX, _CELL_PX), " ".join([folder.entry(i).key, *label.info.flags])


def check_sheet(out: Path, option: str) -> None:
    """Raise `UsageError` where a sheet would replace a file of another kind, which may be one of the shards."""
    if out.is_file() and out.resolve().suffix.lower() != ".png":
        raise UsageError(f"the sheet would replace a file that is no PNG ({out})", remedy=f"another name with {option}")


def write_sheet(path: Path, out: Path) -> None:
    """Write a PNG with samples of a shard folder, evenly spread: images with their class, or labels.

    Raises `DataError`: there are no samples, or one is damaged.
    """
    folder = ShardFolder(path)
    names = folder.manifest.class_titles or folder.manifest.class_names
    cells, texts = [], []
    for i in evenly(folder.num_samples, _SHEET_IMAGES):
        if folder.manifest.kind == "images":
            number = folder.entry(i).class_index
            cell, text = resize(folder.image(i), _CELL_PX, _CELL_PX), "-" if number is None else names[number]
        else:
            cell, text = _label_cell(folder, i)
        cells.append(cell)
        texts.append(text)
    if not cells:
        raise DataError(f"no samples to show ({path})", remedy="shards with samples")
    _write_grid(out, cells, math.ceil(math.sqrt(1.6 * len(cells))), texts)


def _write_grid(out: Path, cells: list[Tensor], columns: int, texts: list[str]) -> None:
    make_folder(out.parent)
    write_bytes(out, encode_png(grid(cells, columns, labels=texts)))


def write_preview(shards: Path, name: str, out: Path) -> None:
    """Write a PNG of images, evenly spread over a finished shard folder, each beside its label `name`."""
    images, labels = ShardFolder(shards), ShardFolder(label_folder(shards, name))
    cells, texts = [], []
    for i in evenly(images.num_samples, _PREVIEW_PAIRS):
        position = labels.index.position(int(images.index.keys[i]))
        if position is not None:
            cell, text = _label_cell(labels, position)
            cells.append(torch.cat([resize(images.image(i), _CELL_PX, _CELL_PX), cell], dim=-1))
            texts.append(text)
    if cells:
        _write_grid(out, cells, _PREVIEW_COLUMNS, texts)
