"""What a file or folder of ours is, and what is in it: shards, tokens, weights, runs, checkpoints."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data_tools.verify import verify_folder
from vq3dcli.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from vq3dcli.checkpoint import embedded_weights_path, load_weights, read_checkpoint, read_weights
from vq3dcli.data.images import decode_image, encode_png, resize
from vq3dcli.data.schema import (
    DISPARITY_EXTENSION,
    DISPARITY_FOLDER,
    DISPARITY_INFO_EXTENSION,
    MANIFEST_NAME,
    PLAN_NAME,
    REJECTS_NAME,
    Manifest,
)
from vq3dcli.data.shards import ShardFolder, decode_disparity
from vq3dcli.data.tokens import TOKENS_NAME, TokenStore, code_use
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UsageError, Vq3dError
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import make_folder, sha256_file, write_bytes
from vq3dcli.prior_checkpoint import embedded_prior_path, load_prior

EMBEDDED = "embedded"
Kind = Literal["shards", "tokens", "weights", "run", "checkpoint"]
Progress = Callable[[int, int], None]

_SAMPLES = 512  # that are looked into; the rest is counted by the index
_SHOWN = 8
_SHEET_IMAGES = 48
_CELL_PX = 128


@dataclass
class Inspection:
    """What was found.

    Attributes:
        kind: What it is.
        facts: Figures and names, as JSON values.
        problems: What is damaged, one line each; looked for only if asked to.
        notes: What is good to know, one line each.
    """

    kind: Kind
    facts: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    if path == EMBEDDED:
        return _embedded(verify)
    where = Path(path)
    if not where.exists():
        raise InputMissingError(f"no such file or folder ({path})", remedy="check the path")
    kind = kind_of(where)
    if kind == "shards":
        return _shards(where, verify, progress)
    if kind == "tokens":
        return _tokens(where, verify)
    if kind == "run":
        return _run(where, verify)
    if kind == "checkpoint":
        return _checkpoint(where)
    return Inspection("weights", *_weights(where, verify))


def kind_of(path: Path) -> Kind:
    """What a file or folder is, by the names in it. Raises `UsageError` or `InputMissingError`."""
    if path.is_file():
        if path.suffix in (".tar", ".json", ".jsonl", ".u16", ".i32") or path.name == "SHA256SUMS":
            raise UsageError(f"a file of a folder ({path})", remedy=f"vq3d inspect {path.parent}")
        return "weights"
    names = {entry.name for entry in path.iterdir()}
    if TOKENS_NAME in names:
        return "tokens"
    if any(name.startswith("shard-") for name in names) or {MANIFEST_NAME, REJECTS_NAME} <= names:
        if MANIFEST_NAME not in names:
            done = sum(name.endswith(".index.json") for name in names)
            raise InputMissingError(
                f"unfinished shards ({path}): {done} are there", remedy="the command that makes them, until it ends"
            )
        return "shards"
    if "checkpoints" in names or "weights.safetensors" in names:
        return "run"
    if CHECKPOINT_MANIFEST in names and any(name.endswith(".safetensors") for name in names):
        return "checkpoint"
    if PLAN_NAME in names:
        raise InputMissingError(f"nothing finished here ({path})", remedy="the command that made it, until it ends")
    raise UsageError(
        f"nothing of vq3d in this folder ({path})", remedy="shards, tokens, a run's folder or a weights file"
    )


def _shards(path: Path, verify: bool, progress: Progress) -> Inspection:
    problems: list[str] = []
    notes: list[str] = []
    if verify:
        found = verify_folder(path, progress=progress)
        problems = [str(problem) for problem in found.problems]
        notes = [f"no SHA256SUMS, made by an earlier version ({folder})" for folder in found.without_sums]
    try:
        folder = ShardFolder(path)
        facts = _label_facts(folder) if folder.manifest.kind == "disparity" else _image_facts(folder)
    except Vq3dError:
        if not problems:  # else they say it better
            raise
        facts = {}
    if verify:
        facts = {**facts, "files": found.files, "bytes_read": found.size, "problems": len(problems)}
    return Inspection("shards", facts, problems, notes)


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
        "rejects": manifest.num_rejects,
        "rejected_because": _reasons(folder.path / REJECTS_NAME),
        "classes": {
            "count": len(names),
            "without_class": int((folder.class_index < 0).sum()),
            "most": max(counted, default=0),
            "median": statistics.median(counted) if counted else 0,
            "least": min(counted, default=0),
            "largest": {names[i]: counted[i] for i in order[:_SHOWN]},
        },
    }
    sizes = _original_sizes(folder)
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
    flags: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    sides: Counter[str] = Counter()
    looked = 0
    for i in _spread(folder.num_samples, _SAMPLES):
        members = folder.read(i, [DISPARITY_EXTENSION, DISPARITY_INFO_EXTENSION])
        name = f"{folder.path}, key {folder.entry(i).key}"
        label = decode_disparity(members[DISPARITY_EXTENSION], members[DISPARITY_INFO_EXTENSION], name=name)
        flags.update(label.info.flags)
        kinds[label.info.kind] += 1
        sides["x".join(map(str, label.values.shape))] += 1
        looked += 1
    folder.close()
    options = {key: value for key, value in folder.manifest.options.items() if key != "images_manifest_sha256"}
    return _common_facts(folder.manifest) | {
        "made_with": options,
        "looked_into": looked,
        "kinds": dict(kinds),
        "sizes": dict(sides),
        "flagged": dict(flags),
    }


def _reasons(path: Path) -> dict[str, int]:
    """Rejects by reason: the words before a colon, which precede what is particular to a file."""
    counted: Counter[str] = Counter()
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                counted[str(json.loads(line)["reason"]).split(":")[0]] += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"damaged file ({path}): {error}", remedy="vq3d inspect --verify") from error
    return dict(counted.most_common(_SHOWN))


def _original_sizes(folder: ShardFolder) -> list[int]:
    """Shorter sides in pixels of some of the source images, sorted."""
    sizes = []
    for i in _spread(folder.num_samples, _SAMPLES):
        info = json.loads(folder.read(i, ["json"]).get("json", b"{}"))
        size = info.get("original_size") if isinstance(info, dict) else None
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            sizes.append(min(int(size["height"]), int(size["width"])))
    folder.close()
    return sorted(sizes)


def _tokens(path: Path, verify: bool) -> Inspection:
    problems: list[str] = []
    try:
        store = TokenStore(path, check_hashes=verify)
    except DataError as error:
        if not verify:
            raise
        return Inspection("tokens", {"problems": 1}, [error.message])
    manifest = store.manifest
    facts = {
        "images": manifest.images,
        "views": manifest.views,
        "view_names": manifest.view_names[:_SHOWN],
        "length": manifest.length,
        "codebook_size": manifest.codebook_size,
        "image_px": manifest.image_size,
        "classes": len(manifest.class_names),
        "bytes": store.tokens.nbytes,
        "stage1_sha256": manifest.stage1_sha256,
        "sources": {source.name: source.images for source in manifest.sources},
    }
    top = max((int(store.tokens[i : i + 4096].max()) for i in range(0, store.num_images, 4096)), default=0)
    if top >= manifest.codebook_size:
        problems.append(f"codes up to {top}, but a codebook of {manifest.codebook_size} ({path})")
    else:
        facts |= code_use(store)
    if not -1 <= int(store.class_index.min()) <= int(store.class_index.max()) < len(manifest.class_names):
        problems.append(f"classes that have no name ({path})")
    return Inspection("tokens", facts, problems)


def _embedded(verify: bool) -> Inspection:
    files = {"stage1": embedded_weights_path(), "stage2": embedded_prior_path()}
    facts: dict[str, Any] = {}
    problems: list[str] = []
    for stage, path in files.items():
        if path.is_file():
            facts[stage], found = _weights(path, verify)
            problems += found
    if not facts:
        raise UnavailableError(
            "this installation has no embedded weights", remedy="vq3d inspect with a weights file, or train-stage1"
        )
    return Inspection("weights", facts, problems)


def _weights(path: Path, verify: bool) -> tuple[dict[str, Any], list[str]]:
    """The card of a weights file and what it is; with `verify` it must load, and all numbers be finite."""
    metadata, tensors = read_weights(path)
    try:
        header = dict(json.loads(metadata.get("vq3d", "{}")))
    except (ValueError, TypeError) as error:
        raise DataError(f"damaged weights ({path}): their header is no JSON object", remedy="another copy") from error
    stage = header.get("format")
    if stage not in ("stage1", "stage2"):
        raise UsageError(f"safetensors, but no weights of vq3d ({path})", remedy="a file that train-stage1 wrote")
    tokens = header.get("tokens") or {}
    facts: dict[str, Any] = {
        "stage": stage,
        "format_version": header.get("format_version"),
        "recipe": (header.get("recipe") or {}).get("name"),
        "parameters": sum(value.numel() for value in tensors.values() if value.is_floating_point()),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "model": (header.get("recipe") or {}).get("model"),
    }
    if tokens:
        facts |= {
            "stage1_sha256": tokens.get("stage1_sha256"),
            "classes": len(tokens.get("class_names", ())),
            "length": tokens.get("length"),
            "codebook_size": tokens.get("codebook_size"),
        }
    facts["card"] = header.get("card") or {}
    problems = []
    if verify:
        problems = [f"{name} is not finite ({path})" for name, value in tensors.items() if not _finite(value)]
        try:
            if stage == "stage1":
                load_weights(path)
            else:
                load_prior(path)
        except DataError as error:
            problems.append(error.message)
    return facts, problems


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _run(path: Path, verify: bool) -> Inspection:
    facts: dict[str, Any] = {}
    problems: list[str] = []
    weights = path / "weights.safetensors"
    if weights.is_file():
        facts, problems = _weights(weights, verify)
    folders = sorted(p for p in (path / "checkpoints").glob("*") if (p / CHECKPOINT_MANIFEST).is_file())
    states: dict[str, str] = {}
    for folder in folders:
        states[folder.name] = "not verified"
        if verify:
            try:
                read_checkpoint(folder)
                states[folder.name] = "sound"
            except DataError as error:
                states[folder.name] = "damaged"
                problems.append(error.message)
    return Inspection("run", {**facts, "finished": weights.is_file(), "checkpoints": states}, problems)


def _checkpoint(path: Path) -> Inspection:
    parts, manifest = read_checkpoint(path)
    facts = {
        "parts": {name: sum(value.numel() for value in tensors.values()) for name, tensors in parts.items()},
        **{key: value for key, value in manifest.items() if isinstance(value, str | int | float)},
    }
    return Inspection("checkpoint", facts)


def write_sheet(path: Path, out: Path, *, count: int = _SHEET_IMAGES) -> int:
    """Write a PNG with samples of a shard folder, evenly spread: images with their class, or labels.

    Returns:
        How many there are.
    """
    folder = ShardFolder(path)
    manifest = folder.manifest
    names = manifest.class_titles or manifest.class_names
    cells, texts = [], []
    for i in _spread(folder.num_samples, count):
        entry = folder.entry(i)
        name = f"{path}, key {entry.key}"
        if manifest.kind == "images":
            extension = folder.image_extension(i)
            image = decode_image(folder.read(i, [extension])[extension], name=name, apply_orientation=False)
            texts.append("-" if entry.class_index is None else names[entry.class_index])
        else:
            members = folder.read(i)
            label = decode_disparity(members[DISPARITY_EXTENSION], members[DISPARITY_INFO_EXTENSION], name=name)
            extent = label.info.hi - label.info.lo
            image = colour_map((label.values - label.info.lo) / extent if extent > 0 else label.values * 0.0)
            texts.append(" ".join([entry.key, *label.info.flags]))
        cells.append(resize(image, _CELL_PX, _CELL_PX))
    if not cells:
        raise DataError(f"no samples to show ({path})", remedy="shards with samples")
    make_folder(out.parent)
    write_bytes(out, encode_png(grid(cells, math.ceil(math.sqrt(1.6 * len(cells))), labels=texts)))
    return len(cells)


def _spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    return sorted({k * total // count for k in range(count)}) if total else []
