"""New scenes: codes from the prior, decoded by Stage 1 into NeRFs, as pictures, videos and a file to make them again.

Sample j of a class has its own number, whatever else is asked for: the same seed gives the same `torus-0003.png` alone
and among a thousand others.

Legend: N samples, L codes of a sample, S side of a picture in pixels.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.data.images import encode_png
from vq3dcli.errors import DataError, InputMissingError, OutputError
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
from vq3dcli.pipelines.film import film
from vq3dcli.pipelines.geometry import NERF
from vq3dcli.pipelines.inputs import OpenedScene, with_first_view
from vq3dcli.pipelines.render import Look, staged
from vq3dcli.pipelines.sampling.record import (
    Drawn,
    SampleWish,
    file_names,
    read_record,
    record_header,
    shown_name,
)
from vq3dcli.pipelines.targets import Target
from vq3dcli.scene_file import camera_of
from vq3dcli.sealed import write_sealed_json
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

RECORD_NAME = "samples.json"
SHEET_NAME = "sheet.png"
# Drawn, recorded and rendered before the next are drawn: an interruption loses no more.
SAMPLES_AT_ONCE = 256
# More would make a sheet that no viewer opens.
_SHEET_SAMPLES = 96
_SHEET_COLUMNS = 4

Advance = Callable[[int], object]
"""Called with the number of new codes, or of pictures and frames just rendered."""


def sharpening_of(prior: LoadedPrior) -> Sharpening:
    """How samples are drawn unless one asks for something else: as the prior's recipe says."""
    return Sharpening(**prior.recipe.sampling.model_dump())


def make_samples(
    out: Path,
    stage1: LoadedWeights,
    prior: LoadedPrior,
    wish: SampleWish,
    progress: Callable[[str, int, str], contextlib.AbstractContextManager[Any]],
) -> list[Path]:
    """Draw and write samples, group by group; see `SampleFolder`.

    Args:
        out: The folder.
        stage1: What decodes the codes.
        prior: What to draw from.
        wish: Which, and what is written of them.
        progress: Opens progress of (description, total, unit); what it yields has `advance`.

    Returns:
        Files that were written: the sheet, the record, the npz file, then what belongs to each sample.
    """
    with SampleFolder(out, stage1, prior, wish) as folder:
        for first in range(0, wish.total, SAMPLES_AT_ONCE):
            last = min(first + SAMPLES_AT_ONCE, wish.total)
            part = f" {first + 1} to {last} of {wish.total}" if wish.total > SAMPLES_AT_ONCE else ""
            with progress(f"sampling{part}", (last - first) * prior.tokens.length, "codes") as shown:
                drawn = draw_samples(prior, wish, first, last, on_token=shown.advance)
            frames = (last - first) * (1 + (0 if wish.shot is None else wish.shot.length))
            with progress(f"rendering{part}", frames, "frames") as shown:
                folder.add(drawn, on_frames=shown.advance)
        return folder.finish()


def draw_samples(
    prior: LoadedPrior,
    wish: SampleWish,
    first: int = 0,
    last: int | None = None,
    *,
    on_token: Advance = lambda count: None,
) -> list[Drawn]:
    """Draw samples 0 to `count` - 1 of each class, class by class, or those from `first` up to `last` in that order."""
    last = wish.total if last is None else last
    pairs = [(wish.classes[position // wish.count], position % wish.count) for position in range(first, last)]
    index = torch.tensor([sample_index(*pair) for pair in pairs], dtype=torch.int64)
    class_index = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64)
    codes = sample_tokens(
        prior.model, class_index, seed=wish.seed, index=index, sharpening=wish.sharpening, on_token=on_token
    )
    # Of all classes, so that a file's name does not depend on which others are asked for.
    shown = {-1: "", **dict(enumerate(map(shown_name, prior.tokens.class_names)))}
    names = file_names(shown)
    return [
        Drawn(f"{names[c]}-{number:04d}", shown[c], c, number, row)
        for (c, number), row in zip(pairs, codes, strict=True)
    ]


def write_samples(
    out: Path,
    stage1: LoadedWeights,
    prior: LoadedPrior,
    wish: SampleWish,
    drawn: Sequence[Drawn],
    *,
    on_frames: Advance = lambda count: None,
) -> list[Path]:
    """Write samples that are all drawn; see `make_samples`."""
    with SampleFolder(out, stage1, prior, wish) as folder:
        folder.add(drawn, on_frames=on_frames)
        return folder.finish()


class SampleFolder:
    """Writes samples group by group: first the record of all so far, then the pictures of the new ones; last the sheet.

    So what is in the folder after an interruption is what the record says, only that pictures (and videos, the sheet,
    the npz file) may be missing. Where a group replaces files of an earlier call, these stay until its own are whole. A
    context manager: the npz file is open in it.

    Raises:
        DataError: The prior's codes are those of another Stage 1.
        UsageError: The folder holds what another command made.
        UnavailableError, OutputError, StorageError: What cannot be written, here and in all that follows.
    """

    def __init__(self, out: Path, stage1: LoadedWeights, prior: LoadedPrior, wish: SampleWish) -> None:
        prior.check_stage1(stage1)
        _check_folder(out)
        make_folder(out)
        self._out, self._stage1, self._wish = out, stage1, wish
        self._size = stage1.recipe.model.image_size
        shape = (wish.total, self._size, self._size, 3)
        self._npz = out / f"samples_{'x'.join(map(str, shape))}.npz" if wish.npz else None
        self._header = record_header(stage1, prior, wish)
        self._entries: list[dict[str, Any]] = []
        self._sheet = SampleSheet(wish.classes, wish.count)
        self._camera = build_canonical_camera(stage1.recipe, self._size)
        self._open = contextlib.ExitStack()
        self._archive: Callable[[Tensor, int], None] | None = None
        self._written: list[Path] = []

    def __enter__(self) -> Self:
        if self._npz is not None:
            self._archive = self._open.enter_context(picture_archive(self._npz, self._wish.total, self._size))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def add(self, drawn: Sequence[Drawn], *, on_frames: Advance = lambda count: None) -> None:
        """Write a group of samples, those after the last call's, one scene in memory at a time."""
        last = [self._out / RECORD_NAME, self._out / SHEET_NAME, *([] if self._npz is None else [self._npz])]
        files = [path for sample in drawn for path in self._files(sample, self._out)]
        old = [path for path in [*([] if self._entries else last), *files] if path.is_file()]
        with _place_for(self._out, old) as place:
            self._entries += [sample.entry() for sample in drawn]
            write_sealed_json(place / RECORD_NAME, {**self._header, "samples": self._entries})
            for sample in drawn:
                self._write(sample, place, on_frames)
            if len(self._entries) == self._wish.total:
                write_bytes(place / SHEET_NAME, encode_png(self._sheet.drawn()))
        self._written += files

    def finish(self) -> list[Path]:
        """Close the npz file, after all samples; returns all that was written."""
        self._open.close()
        npz = [] if self._npz is None else [self._npz]
        return [self._out / SHEET_NAME, self._out / RECORD_NAME, *npz, *self._written]

    def _files(self, sample: Drawn, place: Path) -> list[Path]:
        pictures = [place / f"{sample.name}.png"]
        if self._wish.disparity:
            pictures.append(place / f"{sample.name}_disparity.png")
        target = self._target(sample, place)
        return pictures if target is None else [*pictures, *target.paths]

    def _target(self, sample: Drawn, place: Path) -> Target | None:
        """Where a sample's film goes, if it is filmed."""
        wish = self._wish
        if wish.shot is None or (wish.filmed is not None and sample.name not in wish.filmed):
            return None
        stem = f"{sample.name}_{wish.shot.path}"
        return Target(place / f"{stem}.mp4", place / f"{stem}_disparity.mp4" if wish.disparity else None, "mp4")

    def _write(self, sample: Drawn, place: Path, on_frames: Advance) -> None:
        device = next(self._stage1.model.parameters()).device
        scene = scene_from_codes(self._stage1.model, sample.codes[None].to(device))
        view = scene.render(self._camera, samples=EVALUATION_SAMPLES)
        rgb, s = view.rgb[0].cpu(), view.s[0].cpu()
        coloured = colour_map(s, *display_range(s))
        write_bytes(place / f"{sample.name}.png", encode_png(rgb))
        if self._wish.disparity:
            write_bytes(place / f"{sample.name}_disparity.png", encode_png(coloured))
        if self._archive is not None:
            self._archive(rgb, sample.class_index)
        self._sheet.add(sample.class_index, sample.class_name, rgb, coloured)
        on_frames(1)
        target, shot = self._target(sample, place), self._wish.shot
        if target is not None and shot is not None:
            opened, geometry = OpenedScene(scene, None, sample.name, camera_of(self._stage1), {}), self._wish.geometry
            if geometry is not None:
                opened = with_first_view(opened)
            look = Look(geometry=geometry or NERF)
            view_of, cameras = staged(opened, shot, look, detail="none" if geometry is None else "photo")
            film(lambda _: view_of, cameras, target, shot, on_frames=on_frames)


def _check_folder(out: Path) -> None:
    """Raise `UsageError` or `OutputError` unless samples may be written to a folder: a new one, or one of samples."""
    check_kind(out, RECORD_NAME)
    made = out / RECORD_NAME if (out / RECORD_NAME).exists() else out / SHEET_NAME
    try:
        if made.exists():
            read_record(out / RECORD_NAME)
    except (DataError, InputMissingError) as error:
        raise OutputError(
            f"vq3d did not make what it would replace ({made})", remedy="another folder with -o"
        ) from error


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


class SampleSheet:
    """The contact sheet: each class begins a row of its own; classes of one sample stand side by side.

    It shows as many classes, in their order, as it holds, and as many of the `count` samples of each.
    """

    def __init__(self, classes: Iterable[int], count: int) -> None:
        chosen = list(dict.fromkeys(classes))
        self._each = min(count, max(_SHEET_SAMPLES // len(chosen), 1))
        self._rows: dict[int, list[tuple[Tensor, Tensor, str]]] = {
            index: [] for index in chosen[: _SHEET_SAMPLES // self._each]
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
        tiles: list[Tensor] = []
        labels: list[str] = []
        for position, row in enumerate(rows):
            for rgb, disparity, label in row:
                tiles += [rgb, disparity]
                labels += [label, ""]
            missing = 0 if position == len(rows) - 1 else 2 * (-len(row) % columns)
            tiles += [torch.full((3, 1, 1), BACKGROUND, dtype=torch.uint8)] * missing
            labels += [""] * missing
        return grid(tiles, columns=2 * columns, labels=labels if any(labels) else None)


def even_columns(count: int) -> int:
    """Columns for so many samples of a class: at most four, and its rows about equally long."""
    return math.ceil(count / math.ceil(count / _SHEET_COLUMNS))
