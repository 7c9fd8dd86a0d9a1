"""What a file or folder of ours is, and what is in it: shards, tokens, weights, a run, a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vq3dcli.checkpoint import AVERAGE, read_checkpoint
from vq3dcli.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from vq3dcli.data.images import SUFFIXES
from vq3dcli.data.shard_format import MANIFEST_NAME, PLAN_NAME, REJECTS_NAME, SUMS_NAME
from vq3dcli.data.token_store import TOKENS_NAME, TokenStore, code_use
from vq3dcli.data_tools.job import Progress
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UsageError
from vq3dcli.pipelines.inspect_shards import SHOWN, inspect_shards
from vq3dcli.tensor_file import read_tensors
from vq3dcli.weights_file import EMBEDDED, embedded_path, load_depth, load_prior, load_weights

Kind = Literal["shards", "tokens", "weights", "run", "checkpoint"]

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
        if not facts:
            remedy = "vq3d inspect with a weights file, or train-stage1"
            raise UnavailableError("this installation has no embedded weights", remedy=remedy)
        return Inspection("weights", facts, problems)
    if not where.exists():
        raise InputMissingError(f"no such file or folder ({path})", remedy="check the path")
    kind = _kind_of(where)
    if kind == "shards":
        return Inspection(kind, *inspect_shards(where, verify, progress))
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
