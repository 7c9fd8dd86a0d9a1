"""What `samples.json` says: everything that makes the same samples again, and the codes themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.errors import DataError
from vq3dcli.model.sampling import Sharpening, sample_index
from vq3dcli.pipelines.sampling.class_names import classes_argument
from vq3dcli.sealed import first_problem, read_sealed_json
from vq3dcli.weights_file import LoadedPrior, LoadedWeights, embedded_path

FORMAT_VERSION = 1
# As figures are measured (`docs/evaluation.md`): the pictures are what a metric sees.
SAMPLES_A_RAY = 96
_NOTE = "written before the pictures: the same command makes those that are missing"


class SampleEntry(BaseModel):
    """What a record says of a sample, as far as it is read again; codes are apart by spaces."""

    file: str
    class_name: str | None = Field(alias="class")
    codes: str


class SampleRecord(BaseModel):
    """What is read again of a `samples.json`."""

    stage1_sha256: str
    samples: list[SampleEntry]


@dataclass(frozen=True)
class Drawn:
    """One sample.

    Attributes:
        name: What its files are called, without suffix.
        class_name: As it is shown; empty for none.
        class_index: Below 0 for none.
        number: Its number j in its class.
        codes: int64 `[L]`.
    """

    name: str
    class_name: str
    class_index: int
    number: int
    codes: Tensor


def record_header(
    stage1: LoadedWeights,
    prior: LoadedPrior,
    classes: Sequence[int],
    count: int,
    seed: int,
    sharpening: Sharpening,
) -> dict[str, Any]:
    """The record without its samples: the command, weights by path and hash, options, versions."""
    device = next(prior.model.parameters()).device.type
    options: dict[str, object] = (
        {} if -1 in classes else {"--class": classes_argument(classes, prior.tokens.class_names)}
    )
    options |= {"-n": count, "--seed": seed, "--temperature": sharpening.temperature, "--top-k": sharpening.top_k}
    options |= {"--top-p": sharpening.top_p, "--guidance": sharpening.guidance, "--device": device}
    for option, path, embedded in (
        ("--weights", stage1.path, embedded_path("stage1")),
        ("--prior", prior.path, embedded_path("stage2")),
    ):
        if Path(path) != embedded:
            options[option] = path
    return {
        "format_version": FORMAT_VERSION,
        "note": _NOTE,
        "command": ["vq3d", "sample", *(str(part) for option in options.items() for part in option)],
        "versions": {"vq3d": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "device": device,
        "stage1_sha256": stage1.sha256,
        "prior_sha256": prior.sha256,
        "seed": seed,
        "sharpening": asdict(sharpening),
        "samples_a_ray": SAMPLES_A_RAY,
        "samples_asked_for": len(classes) * count,
    }


def record_entry(sample: Drawn) -> dict[str, Any]:
    """What the record says of a sample."""
    return {
        "file": f"{sample.name}.png",
        "class": sample.class_name or None,
        "class_index": sample.class_index,
        "number": sample.number,
        "index": sample_index(sample.class_index, sample.number),
        "codes": " ".join(map(str, sample.codes.tolist())),  # a list would take a line a code
    }


def read_record(path: Path) -> SampleRecord:
    """What a `samples.json` says of its samples. Raises `InputMissingError`, `DataError`."""
    remedy = "a samples.json of vq3d sample"
    values = read_sealed_json(path, what="record of samples", remedy=remedy)
    try:
        return SampleRecord.model_validate(values)
    except ValidationError as error:
        raise DataError(f"not a record of samples ({path}): {first_problem(error)}", remedy=remedy) from error


def file_names(shown: Mapping[int, str]) -> dict[int, str]:
    """A file name for each class, no two alike: its own in plain letters, and its index where others have that, too.

    Args:
        shown: Names by class index; below 0 for no class.
    """
    plain = {c: re.sub(r"[^\w]+", "-", name.casefold(), flags=re.ASCII).strip("-")[:48] for c, name in shown.items()}
    plain = {c: name or "sample" for c, name in plain.items()}
    times = Counter(plain.values())
    names = {c: name for c, name in plain.items() if times[name] == 1 or c < 0}
    taken = set(names.values())
    for c, name in plain.items():
        if c not in names:
            while (name := f"{name}-{c}") in taken:
                pass
            names[c] = name
            taken.add(name)
    return names
