"""New scenes: codes from the prior, decoded by Stage 1 into NeRFs, as pictures, videos and a file to make them again.

Sample j of a class has its own number, whatever else is asked for: the same seed gives the same `torus-0003.png` alone
and among a thousand others.

Legend: N samples, L codes of a sample, S side of a picture in pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vq3dcli import __version__
from vq3dcli.checkpoint import LoadedWeights
from vq3dcli.data.images import encode_png
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.sheet import grid
from vq3dcli.files import atomic_path, make_folder, write_bytes, write_json
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.sampling import Sharpening, sample_tokens
from vq3dcli.model.scene import Scene, scene_from_codes
from vq3dcli.pipelines.class_names import shown_name
from vq3dcli.pipelines.film import Shot, film, shot_camera
from vq3dcli.pipelines.targets import Target
from vq3dcli.prior_checkpoint import LoadedPrior

RECORD_NAME = "samples.json"
SHEET_NAME = "sheet.png"
FORMAT_VERSION = 1
# As figures are measured (`docs/measurements.md`): the pictures are what a metric sees.
SAMPLES_A_RAY = 96
# More would make a sheet that no viewer opens.
_SHEET_SAMPLES = 96
_SHEET_COLUMNS = 4
_NUMBERS_A_CLASS = 1 << 32


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


def sample_index(class_index: int, number: int) -> int:
    """The number of sample `number` of a class among all samples of a seed."""
    return (class_index + 1) * _NUMBERS_A_CLASS + number


def sharpening_of(prior: LoadedPrior) -> Sharpening:
    """How samples are drawn unless one asks for something else: as the prior's recipe says."""
    section = prior.recipe.sampling
    return Sharpening(section.temperature, section.top_k, section.top_p, section.guidance)


def draw_samples(
    prior: LoadedPrior,
    classes: Sequence[int],
    count: int,
    *,
    seed: int,
    sharpening: Sharpening,
    on_token: Callable[[int], None] = lambda count: None,
) -> list[Drawn]:
    """Draw samples 0 to `count` - 1 of each class, class by class.

    Args:
        prior: What to draw from.
        classes: Indices, each once; -1 for no class.
        count: Samples a class.
        seed: Of all samples.
        sharpening: Temperature, top-k, top-p and guidance.
        on_token: Called with the number of new codes; N L in the end.
    """
    pairs = [(class_index, number) for class_index in classes for number in range(count)]
    index = torch.tensor([sample_index(*pair) for pair in pairs], dtype=torch.int64)
    class_index = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64)
    codes = sample_tokens(prior.model, class_index, seed=seed, index=index, sharpening=sharpening, on_token=on_token)
    # Of all classes, so that a file's name does not depend on which others are asked for.
    shown = {-1: "", **dict(enumerate(map(shown_name, prior.tokens.class_names)))}
    names = _file_names(shown)
    return [
        Drawn(f"{names[c]}-{number:04d}", shown[c], c, number, row)
        for (c, number), row in zip(pairs, codes, strict=True)
    ]


def write_samples(
    out: Path,
    stage1: LoadedWeights,
    prior: LoadedPrior,
    drawn: Sequence[Drawn],
    *,
    seed: int,
    sharpening: Sharpening,
    shot: Shot | None = None,
    filmed: Collection[str] | None = None,
    disparity: bool = False,
    npz: bool = False,
    on_frames: Callable[[int], object] = lambda count: None,
) -> list[Path]:
    """Decode and render samples, one scene in memory at a time; `samples.json` is written last.

    Args:
        out: The folder.
        stage1: What decodes the codes.
        prior: What they were drawn from.
        drawn: From `draw_samples`.
        seed: Of the samples, for the record.
        sharpening: As they were drawn, for the record.
        shot: How to film a scene; None for pictures alone.
        filmed: Names of the samples that are filmed; all by default.
        disparity: Write a picture (and a video) of each sample's disparity, too.
        npz: Write all pictures as `samples_NxSxSx3.npz`, as ADM's evaluation reads them (Dhariwal and Nichol, 2021).
        on_frames: Called with the number of pictures and frames just rendered.

    Returns:
        Files that were written: the sheet, the record, the npz file, then what belongs to each sample.

    Raises:
        DataError: The prior's codes are those of another Stage 1.
        UnavailableError, OutputError, StorageError: What cannot be written.
    """
    prior.check_stage1(stage1.sha256, stage1.path)
    make_folder(out)
    recipe, device = stage1.recipe, next(stage1.model.parameters()).device
    size = recipe.model.image_size
    camera = build_canonical_camera(recipe, size)
    pictures = np.zeros((len(drawn), size, size, 3), np.uint8) if npz else None
    tiles: list[Tensor] = []
    labels: list[str] = []
    written: list[Path] = []
    for position, sample in enumerate(drawn):
        scene = scene_from_codes(stage1.model, sample.codes[None].to(device))
        view = scene.render(camera, samples=SAMPLES_A_RAY)
        rgb, s = view.rgb[0].cpu(), view.s[0].cpu()
        coloured = colour_map(s, *display_range(s))
        written.append(out / f"{sample.name}.png")
        write_bytes(written[-1], encode_png(rgb))
        if disparity:
            written.append(out / f"{sample.name}_disparity.png")
            write_bytes(written[-1], encode_png(coloured))
        if pictures is not None:
            pictures[position] = rgb.permute(1, 2, 0).numpy()
        if len(tiles) < 2 * _SHEET_SAMPLES:
            tiles += [rgb, coloured]
            labels += [sample.class_name, ""]
        on_frames(1)
        if shot is not None and (filmed is None or sample.name in filmed):
            written += _film(scene, stage1, out / sample.name, shot, disparity=disparity, on_frames=on_frames)
    first = [out / SHEET_NAME, out / RECORD_NAME]
    columns = 2 * min(_SHEET_COLUMNS, max(sample.number for sample in drawn) + 1)
    write_bytes(first[0], encode_png(grid(tiles, columns=columns, labels=labels if any(labels) else None)))
    if pictures is not None:
        first.append(out / f"samples_{'x'.join(map(str, pictures.shape))}.npz")
        labels_of = np.array([sample.class_index for sample in drawn], np.int64)
        with atomic_path(first[-1]) as temporary:
            np.savez(temporary, pictures, labels_of)
    write_json(first[1], _record(stage1, prior, drawn, seed, sharpening))
    return [*first, *written]


def _film(
    scene: Scene,
    stage1: LoadedWeights,
    stem: Path,
    shot: Shot,
    *,
    disparity: bool,
    on_frames: Callable[[int], object],
) -> list[Path]:
    target = _target(stem, shot.path, disparity)
    camera = shot_camera(shot, radius=stage1.recipe.camera.radius, fov_deg=stage1.recipe.camera.fov_deg)
    film(scene, camera, target, fps=shot.fps, samples=shot.samples, on_frames=on_frames)
    return target.paths


def _target(stem: Path, path: str, disparity: bool) -> Target:
    beside = stem.with_name(f"{stem.name}_{path}_disparity.mp4") if disparity else None
    return Target(stem.with_name(f"{stem.name}_{path}.mp4"), beside, "mp4")


def _file_names(shown: Mapping[int, str]) -> dict[int, str]:
    """A file name for each class: its own in plain letters, its index added where that is no name of its own."""
    plain = {c: re.sub(r"[^\w]+", "-", name.casefold(), flags=re.ASCII).strip("-")[:48] for c, name in shown.items()}
    times = Counter(plain.values())
    return {
        c: name if name and times[name] == 1 else f"{name or 'sample'}-{c}" if c >= 0 else "sample"
        for c, name in plain.items()
    }


def _record(
    stage1: LoadedWeights, prior: LoadedPrior, drawn: Sequence[Drawn], seed: int, sharpening: Sharpening
) -> dict[str, Any]:
    """Everything that makes the same samples again: weights by hash, options, numbers, and the codes themselves."""
    classes = list(dict.fromkeys(sample.class_index for sample in drawn))
    count = max(sample.number for sample in drawn) + 1
    options = {"-n": count, "--seed": seed, "--temperature": sharpening.temperature, "--top-k": sharpening.top_k}
    options |= {"--top-p": sharpening.top_p, "--guidance": sharpening.guidance}
    chosen = [] if classes == [-1] else ["--class", ",".join(map(str, classes))]
    return {
        "format_version": FORMAT_VERSION,
        "command": ["vq3d", "sample", *chosen, *(str(part) for option in options.items() for part in option)],
        "versions": {"vq3d": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "device": next(prior.model.parameters()).device.type,
        "stage1_sha256": stage1.sha256,
        "prior_sha256": prior.sha256,
        "seed": seed,
        "sharpening": asdict(sharpening),
        "samples_a_ray": SAMPLES_A_RAY,
        "samples": [
            {
                "file": f"{sample.name}.png",
                "class": sample.class_name or None,
                "class_index": sample.class_index,
                "number": sample.number,
                "index": sample_index(sample.class_index, sample.number),
                "codes": " ".join(map(str, sample.codes.tolist())),  # a list would take a line a code
            }
            for sample in drawn
        ],
    }
