"""New scenes: codes from the prior, decoded by Stage 1 into NeRFs, as pictures, videos and a file to make them again.

Sample j of a class has its own number, whatever else is asked for: the same seed gives the same `torus-0003.png` alone
and among a thousand others.

Legend: N samples, L codes of a sample, S side of a picture in pixels.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from vq3dcli.data.images import encode_png
from vq3dcli.errors import DataError, OutputError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.picture_archive import picture_archive
from vq3dcli.export.sheet import BACKGROUND, grid
from vq3dcli.files import (
    check_kind,
    make_folder,
    remove_leftovers,
    sync_folder,
    temporary_for,
    write_bytes,
    write_error,
)
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.draw_codes import Sharpening, sample_index, sample_tokens
from vq3dcli.model.scene import scene_from_codes
from vq3dcli.pipelines.film import Shot, film, shot_camera
from vq3dcli.pipelines.sampling.record import (
    SAMPLES_A_RAY,
    Drawn,
    file_names,
    read_record,
    record_entry,
    record_header,
    shown_name,
)
from vq3dcli.pipelines.targets import Target
from vq3dcli.sealed import write_sealed_json
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

RECORD_NAME = "samples.json"
SHEET_NAME = "sheet.png"
# Drawn, recorded and rendered before the next are drawn: an interruption loses no more.
SAMPLES_AT_ONCE = 256


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
    first: int = 0,
    last: int | None = None,
    on_token: Callable[[int], None] = lambda count: None,
) -> list[Drawn]:
    """Draw samples 0 to `count` - 1 of each class, class by class, or a part of them.

    Args:
        prior: What to draw from.
        classes: Indices, each once; -1 for no class.
        count: Samples a class.
        seed: Of all samples.
        sharpening: Temperature, top-k, top-p and guidance.
        first: Where in that order to begin.
        last: Where to end, without it; default: the end.
        on_token: Called with the number of new codes; N L in the end.
    """
    last = len(classes) * count if last is None else last
    pairs = [(classes[position // count], position % count) for position in range(first, last)]
    index = torch.tensor([sample_index(*pair) for pair in pairs], dtype=torch.int64)
    class_index = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64)
    codes = sample_tokens(prior.model, class_index, seed=seed, index=index, sharpening=sharpening, on_token=on_token)
    # Of all classes, so that a file's name does not depend on which others are asked for.
    shown = {-1: "", **dict(enumerate(map(shown_name, prior.tokens.class_names)))}
    names = file_names(shown)
    return [
        Drawn(f"{names[c]}-{number:04d}", shown[c], c, number, row)
        for (c, number), row in zip(pairs, codes, strict=True)
    ]


class SampleFolder:
    """Writes samples group by group: first the record of all so far, then the pictures of the new ones; last the sheet.

    So what is in the folder after an interruption is what the record says, only that pictures (and videos, the sheet,
    the npz file) may be missing. Where a group replaces files of an earlier call, these stay until its own are whole. A
    context manager: the npz file is open in it.

    Args:
        out: The folder.
        stage1: What decodes the codes.
        prior: What they were drawn from.
        classes: Of all samples, each once.
        count: Samples of each class.
        seed: Of the samples, for the record.
        sharpening: As they were drawn, for the record.
        shot: How to film a scene; None for pictures alone.
        filmed: Names of the samples that are filmed; all by default.
        disparity: Write a picture (and a video) of each sample's disparity, too.
        npz: Write all pictures as `samples_NxSxSx3.npz`, as ADM's evaluation reads them (Dhariwal and Nichol, 2021).

    Raises:
        DataError: The prior's codes are those of another Stage 1.
        UsageError: The folder holds what another command made.
        UnavailableError, OutputError, StorageError: What cannot be written, here and in all that follows.
    """

    def __init__(
        self,
        out: Path,
        stage1: LoadedWeights,
        prior: LoadedPrior,
        *,
        classes: Sequence[int],
        count: int,
        seed: int,
        sharpening: Sharpening,
        shot: Shot | None = None,
        filmed: Collection[str] | None = None,
        disparity: bool = False,
        npz: bool = False,
    ) -> None:
        prior.check_stage1(stage1)
        _check_folder(out)
        make_folder(out)
        self._out, self._stage1 = out, stage1
        self._shot, self._filmed, self._disparity = shot, filmed, disparity
        self._total, self._size = len(classes) * count, stage1.recipe.model.image_size
        shape = (self._total, self._size, self._size, 3)
        self._npz = out / f"samples_{'x'.join(map(str, shape))}.npz" if npz else None
        self._header = record_header(stage1, prior, classes, count, seed, sharpening)
        self._entries: list[dict[str, Any]] = []
        self._sheet = SampleSheet(classes, count)
        self._camera = build_canonical_camera(stage1.recipe, self._size)
        self._open = contextlib.ExitStack()
        self._archive: Callable[[Tensor, int], None] | None = None
        self._written: list[Path] = []

    def __enter__(self) -> Self:
        if self._npz is not None:
            self._archive = self._open.enter_context(picture_archive(self._npz, self._total, self._size))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def add(self, drawn: Sequence[Drawn], *, on_frames: Callable[[int], object] = lambda count: None) -> None:
        """Write a group of samples, one scene in memory at a time.

        Args:
            drawn: From `draw_samples`, after those of the last call.
            on_frames: Called with the number of pictures and frames just rendered.
        """
        finished = [self._out / RECORD_NAME, self._out / SHEET_NAME, *([] if self._npz is None else [self._npz])]
        files = [path for sample in drawn for path in self._files(sample, self._out)]
        old = [path for path in [*([] if self._entries else finished), *files] if path.is_file()]
        with _place_for(self._out, old) as place:
            self._entries += map(record_entry, drawn)
            write_sealed_json(place / RECORD_NAME, {**self._header, "samples": self._entries})
            for sample in drawn:
                self._write(sample, place, on_frames)
            if len(self._entries) == self._total:
                write_bytes(place / SHEET_NAME, encode_png(self._sheet.drawn()))
        self._written += files

    def finish(self) -> list[Path]:
        """Close the npz file, after all samples.

        Returns:
            Files that were written: the sheet, the record, the npz file, then what belongs to each sample.
        """
        self._open.close()
        first = [self._out / SHEET_NAME, self._out / RECORD_NAME]
        return [*first, *([self._npz] if self._npz is not None else []), *self._written]

    def _files(self, sample: Drawn, place: Path) -> list[Path]:
        pictures = [place / f"{sample.name}.png"]
        if self._disparity:
            pictures.append(place / f"{sample.name}_disparity.png")
        target = self._target(sample, place)
        return pictures if target is None else [*pictures, *target.paths]

    def _target(self, sample: Drawn, place: Path) -> Target | None:
        """Where a sample's film goes, if it is filmed."""
        if self._shot is None or (self._filmed is not None and sample.name not in self._filmed):
            return None
        stem = f"{sample.name}_{self._shot.path}"
        beside = place / f"{stem}_disparity.mp4" if self._disparity else None
        return Target(place / f"{stem}.mp4", beside, "mp4")

    def _write(self, sample: Drawn, place: Path, on_frames: Callable[[int], object]) -> None:
        device = next(self._stage1.model.parameters()).device
        scene = scene_from_codes(self._stage1.model, sample.codes[None].to(device))
        view = scene.render(self._camera, samples=SAMPLES_A_RAY)
        rgb, s = view.rgb[0].cpu(), view.s[0].cpu()
        coloured = colour_map(s, *display_range(s))
        write_bytes(place / f"{sample.name}.png", encode_png(rgb))
        if self._disparity:
            write_bytes(place / f"{sample.name}_disparity.png", encode_png(coloured))
        if self._archive is not None:
            self._archive(rgb, sample.class_index)
        self._sheet.add(sample.class_index, sample.class_name, rgb, coloured)
        on_frames(1)
        target = self._target(sample, place)
        if target is not None and self._shot is not None:
            camera = self._stage1.recipe.camera
            shown_from = shot_camera(self._shot, radius=camera.radius, fov_deg=camera.fov_deg)
            film(scene, shown_from, target, fps=self._shot.fps, samples=self._shot.samples, on_frames=on_frames)


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
    """Write samples that are all drawn; see `SampleFolder` and its methods.

    Args:
        drawn: From `draw_samples`, whole.
    """
    with SampleFolder(
        out,
        stage1,
        prior,
        classes=list(dict.fromkeys(sample.class_index for sample in drawn)),
        count=max(sample.number for sample in drawn) + 1,
        seed=seed,
        sharpening=sharpening,
        shot=shot,
        filmed=filmed,
        disparity=disparity,
        npz=npz,
    ) as folder:
        folder.add(drawn, on_frames=on_frames)
        return folder.finish()


def _check_folder(out: Path) -> None:
    """Raise `UsageError` or `OutputError` unless samples may be written to a folder: a new one, or one of samples."""
    check_kind(out, RECORD_NAME)
    record, sheet = out / RECORD_NAME, out / SHEET_NAME
    if record.exists():
        try:
            read_record(record)
        except DataError as error:
            raise _foreign(record) from error
    elif sheet.exists():
        raise _foreign(sheet)


def _foreign(path: Path) -> OutputError:
    return OutputError(f"vq3d did not make what it would replace ({path})", remedy="another folder with -o")


@contextlib.contextmanager
def _place_for(out: Path, old: Sequence[Path]) -> Iterator[Path]:
    """Where to write what belongs into `out`: there, or, if old files are there, in a folder whose files move up."""
    if not old:
        yield out
        return
    remove_leftovers(out)
    place = temporary_for(out / "samples")
    try:
        place.mkdir()
        yield place
        # No picture of before may lie beside the new record.
        for path in old:
            path.unlink(missing_ok=True)
        for path in sorted(place.iterdir(), key=lambda path: path.name != RECORD_NAME):
            path.replace(out / path.name)
        sync_folder(out)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


# More would make a sheet that no viewer opens.
_SAMPLES = 96
_COLUMNS = 4


class SampleSheet:
    """Gathers what a sheet shows: as many classes as it holds, and as many samples of each.

    Args:
        classes: Indices of the classes that are sampled, in the order of the sheet.
        count: Samples of each.
    """

    def __init__(self, classes: Iterable[int], count: int) -> None:
        chosen = list(dict.fromkeys(classes))
        self._each = min(count, max(_SAMPLES // len(chosen), 1))
        self._rows: dict[int, list[tuple[Tensor, Tensor, str]]] = {
            index: [] for index in chosen[: _SAMPLES // self._each]
        }

    def add(self, class_index: int, label: str, rgb: Tensor, disparity: Tensor) -> None:
        """Keep a sample's picture and its disparity in colour, uint8 `[3, S, S]`, if there is room for them."""
        row = self._rows.get(class_index)
        if row is not None and len(row) < self._each:
            row.append((rgb, disparity, label))

    def drawn(self) -> Tensor:
        """The sheet, uint8 `[3, H, W]`: pictures, each with its disparity on its right."""
        rows: list[Sequence[tuple[Tensor, Tensor, str]]] = [row for row in self._rows.values() if row]
        if self._each == 1:
            rows = [[sample for row in rows for sample in row]]
        columns = even_columns(max(map(len, rows)))
        blank = torch.full((3, 1, 1), BACKGROUND, dtype=torch.uint8)
        tiles: list[Tensor] = []
        labels: list[str] = []
        for position, row in enumerate(rows):
            for rgb, disparity, label in row:
                tiles += [rgb, disparity]
                labels += [label, ""]
            missing = 0 if position == len(rows) - 1 else 2 * (-len(row) % columns)
            tiles += [blank] * missing
            labels += [""] * missing
        return grid(tiles, columns=2 * columns, labels=labels if any(labels) else None)


def even_columns(count: int, most: int = _COLUMNS) -> int:
    """Columns for so many samples of a class: at most four, and its rows about equally long."""
    return math.ceil(count / math.ceil(count / most))
