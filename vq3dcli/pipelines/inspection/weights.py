"""What is in a weights file: its card, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vq3dcli.errors import DataError, UnavailableError, UsageError
from vq3dcli.pipelines.inspection.result import Inspection
from vq3dcli.tensor_file import read_tensors
from vq3dcli.weights_file import embedded_path, load_depth, load_prior, load_weights

_LOADERS: dict[str, Callable[[Path], object]] = {"stage1": load_weights, "stage2": load_prior, "depth": load_depth}


def inspect_embedded(verify: bool) -> Inspection:
    """The weights that come with this installation, by stage."""
    files = {"stage1": embedded_path("stage1"), "stage2": embedded_path("stage2"), "depth": embedded_path("depth")}
    facts: dict[str, Any] = {}
    problems: list[str] = []
    for stage, path in files.items():
        if path.is_file():
            facts[stage], found = weights_facts(path, verify)
            problems += found
    if not facts:
        raise UnavailableError(
            "this installation has no embedded weights", remedy="vq3d inspect with a weights file, or train-stage1"
        )
    return Inspection("weights", facts, problems)


def weights_facts(path: Path, verify: bool) -> tuple[dict[str, Any], list[str]]:
    """The card of a weights file, whose hash is compared, and what it is; with `verify` it must load, too."""
    header, tensors, sha256 = read_tensors(path, what="weights")
    stage = header.get("format")
    if stage not in _LOADERS:
        raise UsageError(f"safetensors, but no weights of vq3d ({path})", remedy="a file that train-stage1 wrote")
    tokens = header.get("tokens") or {}
    facts: dict[str, Any] = {
        "stage": stage,
        "format_version": header.get("format_version"),
        "recipe": (header.get("recipe") or {}).get("name"),
        "parameters": sum(value.numel() for value in tensors.values() if value.is_floating_point()),
        "bytes": path.stat().st_size,
        "sha256": sha256,
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
        try:
            _LOADERS[stage](path)
        except DataError as error:
            problems.append(error.message)
    return facts, problems
