"""What a file or folder of ours is: shards, tokens, weights, a run, a checkpoint; each kind has its own module."""

from __future__ import annotations

from pathlib import Path

from vq3dcli.checkpoint import AVERAGE
from vq3dcli.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from vq3dcli.data.shard_format import MANIFEST_NAME, PLAN_NAME, REJECTS_NAME, SUMS_NAME
from vq3dcli.data.token_store import TOKENS_NAME
from vq3dcli.errors import InputMissingError, UsageError
from vq3dcli.pipelines.inspection.result import Inspection, Kind, Progress
from vq3dcli.pipelines.inspection.runs import inspect_checkpoint, inspect_run
from vq3dcli.pipelines.inspection.shards import inspect_shards
from vq3dcli.pipelines.inspection.tokens import inspect_tokens
from vq3dcli.pipelines.inspection.weights import inspect_embedded, weights_facts

EMBEDDED = "embedded"


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
        return inspect_embedded(verify)
    where = Path(path)
    if not where.exists():
        raise InputMissingError(f"no such file or folder ({path})", remedy="check the path")
    kind = kind_of(where)
    if kind == "shards":
        return inspect_shards(where, verify, progress)
    if kind == "tokens":
        return inspect_tokens(where, verify)
    if kind == "run":
        return inspect_run(where, verify)
    if kind == "checkpoint":
        return inspect_checkpoint(where)
    return Inspection("weights", *weights_facts(where, verify))


def kind_of(path: Path) -> Kind:
    """What a file or folder is, by the names in it. Raises `UsageError` or `InputMissingError`."""
    if path.is_file():
        in_checkpoint = path.name != AVERAGE and (path.parent / AVERAGE).is_file()
        of_folder = path.suffix in (".tar", ".json", ".jsonl", ".u16", ".i32") or path.name == "SHA256SUMS"
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
    if "checkpoints" in names or "weights.safetensors" in names:
        return "run"
    if CHECKPOINT_MANIFEST in names and any(name.endswith(".safetensors") for name in names):
        return "checkpoint"
    if PLAN_NAME in names:
        raise InputMissingError(f"nothing finished here ({path})", remedy="the command that made it, until it ends")
    raise UsageError(
        f"nothing of vq3d in this folder ({path})", remedy="shards, tokens, a run's folder or a weights file"
    )
