"""What is in the folder of a training run, and in one of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vq3dcli.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.errors import DataError
from vq3dcli.pipelines.inspection.result import Inspection
from vq3dcli.pipelines.inspection.weights import weights_facts


def inspect_run(path: Path, verify: bool) -> Inspection:
    """Its weights, if it has ended, and its checkpoints; with `verify` they are read."""
    facts: dict[str, Any] = {}
    problems: list[str] = []
    weights = path / "weights.safetensors"
    if weights.is_file():
        facts, problems = weights_facts(weights, verify)
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


def inspect_checkpoint(path: Path) -> Inspection:
    """Numbers by part; reading checks its hashes."""
    parts, manifest = read_checkpoint(path)
    facts = {
        "parts": {name: sum(value.numel() for value in tensors.values()) for name, tensors in parts.items()},
        **{key: value for key, value in manifest.items() if isinstance(value, str | int | float)},
    }
    return Inspection("checkpoint", facts)
