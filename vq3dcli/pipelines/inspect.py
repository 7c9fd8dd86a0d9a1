"""What a file or folder of ours is, and what is in it: shards, tokens, weights, a run, a checkpoint."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vq3dcli.checkpoint import AVERAGE, read_checkpoint
from vq3dcli.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from vq3dcli.data.images import SUFFIXES, encode_png, resize
from vq3dcli.data.shard_format import DISPARITY_FOLDER, MANIFEST_NAME, PLAN_NAME, REJECTS_NAME, SUMS_NAME, Manifest
from vq3dcli.data.shard_reader import ShardFolder, label_folder
from vq3dcli.data.stream import evenly
from vq3dcli.data.token_store import TOKENS_NAME, TokenStore, code_use
from vq3dcli.data_tools.job import Progress
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UsageError, Vq3dError
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import make_folder, write_bytes
from vq3dcli.sealed import json_value
from vq3dcli.tensor_file import read_tensors
from vq3dcli.weights_file import EMBEDDED, embedded_path, load_depth, load_prior, load_weights

Kind = Literal["shards", "tokens", "weights", "run", "checkpoint"]

SHOWN = 8  # names of a long list
_SAMPLES = 512  # that are looked into; the rest is counted by the index
_SHEET_IMAGES = 48
_PREVIEW_PAIRS, _PREVIEW_COLUMNS = 32, 4
_CELL_PX = 128
_WEIGHTS = "weights.safetensors"
_TAKES = "shards, tokens, a run's folder or a weights file"
_LOADERS: dict[str, Callable[[Path], object]] = {"stage1": load_weights, "stage2": load_prior, "depth": load_depth}


@dataclass
class Inspection:
    """What was found."""

    kind: Kind  # what it is
    facts: dict[str, Any] = field(default_factory=dict)  # figures and names, as JSON values
    problems: list[str] = field(default_factory=list)  # what is damaged, one line each; looked for only if asked to
    notes: list[str] = field(default_factory=list)  # what is good to know, one line each


def inspect(path: str, *, verify: bool = False, progress: Progress = lambda done, total: None) -> Inspection:
    """Say what `path` is and what is in it.

    Args:
        path: A folder or file; `embedded` for the weights of this installation, a file of that name is `./embedded`.
        verify: Read every byte and name what is damaged.
        progress: Called with (bytes read, all bytes) where reading takes long.

    Raises:
        InputMissingError: There is nothing, or nothing finished.
        UsageError: It is nothing of ours.
        UnsafeFileError: It is a pickle.
        DataError: It is too damaged to be described, and `verify` was not asked for.
    """
    where, problems = Path(path), list[str]()
    if path == EMBEDDED:
        files = {stage: embedded_path(stage) for stage in _LOADERS if embedded_path(stage).is_file()}
        facts: dict[str, Any] = {stage: _weights_facts(file, verify, problems) for stage, file in files.items()}
        if {"stage1", "stage2"} <= facts.keys():
            stage1, stage2 = facts["stage1"], facts["stage2"]
            ours = (stage1["sha256"], *stage1["card"].get("codes_of", ()))
            stage2["fits_stage1"] = stage2["stage1_sha256"] in ours
        if not facts:
            remedy = "vq3d inspect with a weights file, or train-stage1"
            raise UnavailableError("this installation has no embedded weights", remedy=remedy)
        return Inspection("weights", facts, problems)
    if not where.exists():
        raise InputMissingError(f"no such file or folder ({path})", remedy="check the path")
    kind = _kind_of(where)
    if kind == "shards":
        return _inspect_shards(where, verify, progress)
    if kind == "tokens":
        return Inspection(kind, _token_facts(where, verify, problems), problems)
    if kind == "weights":
        return Inspection(kind, _weights_facts(where, verify, problems), problems)
    if kind == "checkpoint":
        parts, manifest = read_checkpoint(where)  # which checks the hashes
        facts = {name: value for name, value in manifest.items() if isinstance(value, str | int | float)}
        numbers = {name: sum(value.numel() for value in tensors.values()) for name, tensors in parts.items()}
        return Inspection(kind, {"parts": numbers, **facts})
    finished = (where / _WEIGHTS).is_file()
    checkpoints = sorted(p for p in (where / "checkpoints").glob("*") if (p / CHECKPOINT_MANIFEST).is_file())
    facts = _weights_facts(where / _WEIGHTS, verify, problems) if finished else {}
    states = dict.fromkeys((checkpoint.name for checkpoint in checkpoints), "not verified")
    for checkpoint in checkpoints if verify else ():
        states[checkpoint.name] = "sound" if _is_sound(partial(read_checkpoint, checkpoint), problems) else "damaged"
    return Inspection(kind, {**facts, "finished": finished, "checkpoints": states}, problems)


def _kind_of(path: Path) -> Kind:
    """What a file or folder is, by the names in it. Raises `UsageError` or `InputMissingError`."""
    if path.is_file():
        in_checkpoint = path.name != AVERAGE and (path.parent / AVERAGE).is_file()
        of_folder = path.suffix in (".tar", ".json", ".jsonl", ".u16", ".i32") or path.name == "SHA256SUMS"
        if path.suffix.lower() in SUFFIXES:
            raise UsageError(f"a picture, and nothing of vq3d ({path})", remedy=_TAKES)
        if of_folder or in_checkpoint:
            raise UsageError(f"a file of a folder ({path})", remedy=f"vq3d inspect {path.parent}")
        return "weights"
    names = {entry.name for entry in path.iterdir()}
    if TOKENS_NAME in names:
        return "tokens"
    if any(name.startswith("shard-") for name in names) or {MANIFEST_NAME, REJECTS_NAME} <= names:
        if not {MANIFEST_NAME, SUMS_NAME} & names:  # where only one is missing, it was there once
            done = sum(name.endswith(".index.json") for name in names)
            raise InputMissingError(
                f"unfinished shards ({path}): {done} are there", remedy="the command that makes them, until it ends"
            )
        return "shards"
    if "checkpoints" in names or _WEIGHTS in names:
        return "run"
    if CHECKPOINT_MANIFEST in names and any(name.endswith(".safetensors") for name in names):
        return "checkpoint"
    if PLAN_NAME in names:
        raise InputMissingError(f"nothing finished here ({path})", remedy="the command that made it, until it ends")
    raise UsageError(f"nothing of vq3d in this folder ({path})", remedy=_TAKES)


def _is_sound(read: Callable[[], object], problems: list[str]) -> bool:
    """Whether something can be read; what is wrong with it is among the problems otherwise."""
    try:
        read()
    except DataError as error:
        problems.append(error.message)
        return False
    return True


def _weights_facts(path: Path, verify: bool, problems: list[str]) -> dict[str, Any]:
    """The card of a weights file, whose hash is compared, and what it is; with `verify` it must load, too."""
    header, tensors, sha256 = read_tensors(path, what="weights")
    stage = header.get("format")
    if stage not in _LOADERS:
        raise UsageError(f"safetensors, but no weights of vq3d ({path})", remedy="a file that train-stage1 wrote")
    recipe, tokens = header.get("recipe") or {}, header.get("tokens") or {}
    facts: dict[str, Any] = {
        "stage": stage,
        "format_version": header.get("format_version"),
        "recipe": recipe.get("name"),
        "parameters": sum(value.numel() for value in tensors.values() if value.is_floating_point()),
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "model": recipe.get("model"),
    }
    if tokens:
        facts |= {
            "stage1_sha256": tokens.get("stage1_sha256"),
            "classes": len(tokens.get("class_names", ())),
            "length": tokens.get("length"),
            "codebook_size": tokens.get("codebook_size"),
        }
    if verify:
        _is_sound(partial(_LOADERS[stage], path), problems)
    return facts | {"card": header.get("card") or {}}


def _token_facts(path: Path, verify: bool, problems: list[str]) -> dict[str, Any]:
    """Counts and the use of codes; with `verify` every hash is checked."""
    try:
        store = TokenStore(path, check_hashes=verify)
    except DataError as error:
        if not verify:
            raise
        problems.append(error.message)
        return {"problems": 1}
    manifest = store.manifest
    facts = manifest.model_dump(include={"images", "views", "length", "codebook_size", "stage1_sha256"})
    facts |= {
        "view_names": manifest.view_names[:SHOWN],
        "image_px": manifest.image_size,
        "classes": len(manifest.class_names),
        "bytes": store.tokens.nbytes,
        "sources": {source.name: source.images for source in manifest.sources},
    }
    top = max((int(store.tokens[i : i + 4096].max()) for i in range(0, store.num_images, 4096)), default=0)
    if top >= manifest.codebook_size:
        problems.append(f"codes up to {top}, but a codebook of {manifest.codebook_size} ({path})")
    else:
        facts |= code_use(store)
    if not -1 <= int(store.class_index.min()) <= int(store.class_index.max()) < len(manifest.class_names):
        problems.append(f"classes that have no name ({path})")
    return facts


def _inspect_shards(path: Path, verify: bool, progress: Progress) -> Inspection:
    """Counts, classes, sizes and labels; with `verify` every file that is damaged, cut or missing."""
    inspection = Inspection("shards")
    if verify:
        checked = verify_folder(path, progress=progress)
        inspection.problems = [str(problem) for problem in checked.problems]
        inspection.notes = [f"labels are not finished, and not verified ({folder})" for folder in checked.unfinished]
    try:
        folder = ShardFolder(path)
        inspection.facts = _label_facts(folder) if folder.manifest.kind == "disparity" else _image_facts(folder)
    except Vq3dError:
        if not inspection.problems:  # else they say it better
            raise
    if verify:
        inspection.facts |= {"files": checked.files, "bytes_read": checked.size, "problems": len(inspection.problems)}
    return inspection


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
