"""New scenes: codes from the prior, decoded by Stage 1 into NeRFs, as pictures, videos and a file to make them again.

Sample j of a class has its own number, whatever else is asked for: the same seed gives the same `torus-0003.png` alone
and among a thousand others.

Legend: N samples, L codes of a sample, S side of a picture in pixels.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.data.images import encode_png, read_image
from vq3dcli.data_tools.job import TURN_LOCK, own_turn
from vq3dcli.data_tools.part import WHOLE, Part
from vq3dcli.errors import DataError, InputMissingError, OutputError
from vq3dcli.export.colour import colour_map, display_range
from vq3dcli.export.maps import picture_archive
from vq3dcli.export.sheet import SampleSheet
from vq3dcli.files import check_kind, make_folder, staging, write_bytes
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.draw_codes import Sharpening, sample_index, sample_tokens
from vq3dcli.model.scene import Scene, scene_from_codes
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
from vq3dcli.pipelines.targets import Counting, Target, adding
from vq3dcli.scene_file import camera_of
from vq3dcli.sealed import read_sealed_json, write_sealed_json
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

RECORD_NAME = "samples.json"
SHEET_NAME = "sheet.png"
# Drawn, recorded and rendered before the next are drawn: an interruption loses no more.
SAMPLES_AT_ONCE = 256
_GROUP = re.compile(r"samples-\d{6}\.json")

Advance = Callable[[int], object]
"""Called with the number of new codes, or of pictures and frames just rendered."""


def _group_name(group: int) -> str:
    return f"samples-{group:06d}.json"


def sharpening_of(prior: LoadedPrior, **asked: float | None) -> Sharpening:
    """How samples are drawn: as is asked for, and for what is None as the prior's recipe says."""
    given = {name: value for name, value in asked.items() if value is not None}
    return Sharpening(**{**prior.recipe.sampling.model_dump(), **given})


def make_samples(
    out: Path, stage1: LoadedWeights, prior: LoadedPrior, wish: SampleWish, counting: Counting, part: Part = WHOLE
) -> list[Path] | None:
    """Draw and write samples, group by group, of which a `part` is this process's; see `SampleFolder`.

    All files are returned: the sheet, the record, the npz file, then what belongs to each sample; None while other
    parts have work left.
    """
    folder = SampleFolder(out, stage1, prior, wish, part)
    for group, rows in enumerate(folder.groups):
        if folder.finished or not part.has(group):
            continue
        of_all = f" {rows.start + 1} to {rows.stop} of {wish.total}" if len(folder.groups) > 1 else ""
        if (drawn := folder.known(group)) is None:
            with counting(f"sampling{of_all}", "codes") as count:
                on_token = adding(count, len(rows) * prior.tokens.length)
                drawn = draw_samples(prior, wish, rows.start, rows.stop, on_token=on_token)
        with counting(f"rendering{of_all}", "frames") as count:
            folder.add(group, drawn, on_frames=adding(count, sum(map(folder.frames_of, drawn))))
    return folder.finish()


def draw_samples(
    prior: LoadedPrior, wish: SampleWish, first: int = 0, last: int | None = None, *, on_token: Advance = lambda _: None
) -> list[Drawn]:
    """Draw samples 0 to `count` - 1 of each class, class by class, or those from `first` up to `last` in that order."""
    last = wish.total if last is None else last
    pairs = [(wish.classes[position // wish.count], position % wish.count) for position in range(first, last)]
    index = torch.tensor([sample_index(*pair) for pair in pairs], dtype=torch.int64)
    class_index = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64)
    codes = sample_tokens(
        prior.model, class_index, seed=wish.seed, index=index, sharpening=wish.sharpening, on_token=on_token
    )
    return _named(prior, wish, range(first, last), codes)


def _named(prior: LoadedPrior, wish: SampleWish, rows: range, codes: Tensor | None) -> list[Drawn]:
    """The samples at some places among all; without `codes`, their names alone are known."""
    # Of all classes, so that a file's name does not depend on which others are asked for.
    shown = {-1: "", **dict(enumerate(map(shown_name, prior.tokens.class_names)))}
    names = file_names(shown)
    pairs = [(wish.classes[position // wish.count], position % wish.count) for position in rows]
    return [
        Drawn(f"{names[c]}-{number:04d}", shown[c], c, number, torch.empty(0) if codes is None else codes[i])
        for i, (c, number) in enumerate(pairs)
    ]


def filmed_samples(prior: LoadedPrior, wish: SampleWish) -> list[str]:
    """Names of the samples that are filmed: all, or the first ones of classes evenly apart."""
    if wish.shot is None:
        return []
    names = [sample.name for sample in _named(prior, wish, range(wish.total), None)]
    if wish.filmed is None:
        return names
    step = max(len(wish.classes) // max(wish.filmed, 1), 1) * wish.count
    return names[::step][: wish.filmed]


class SampleFolder:
    """Writes samples group by group, whoever makes which: each first its record, then its pictures.

    Once all are there, the records become one, with the sheet and the npz file. Until then `samples.json` names no
    sample; the same call goes on with what is missing. Where a group replaces files of an earlier call, these stay
    until its own are whole. `groups` are the samples of each, by their places among all.

    Raises:
        DataError: The prior's codes are those of another Stage 1.
        UsageError: The folder holds what another command made.
        UnavailableError, OutputError, StorageError: What cannot be written, here and in all that follows.
    """

    def __init__(
        self, out: Path, stage1: LoadedWeights, prior: LoadedPrior, wish: SampleWish, part: Part = WHOLE
    ) -> None:
        prior.check_stage1(stage1)
        _check_folder(out)
        make_folder(out)
        self._out, self._stage1, self._prior, self._wish, self._part = out, stage1, prior, wish, part
        self._size = stage1.recipe.model.image_size
        shape = (wish.total, self._size, self._size, 3)
        self._npz = out / f"samples_{'x'.join(map(str, shape))}.npz" if wish.npz else None
        starts = range(0, wish.total, SAMPLES_AT_ONCE)
        self.groups = [range(first, min(first + SAMPLES_AT_ONCE, wish.total)) for first in starts]
        self._header = json.loads(json.dumps(record_header(stage1, prior, wish)))
        writes = (wish.shot, wish.filmed, wish.disparity, wish.npz, wish.geometry is not None)
        self._unfinished = {**self._header, "writes": repr(writes)}
        self._camera = build_canonical_camera(stage1.recipe, self._size)
        self._filmed = set(filmed_samples(prior, wish))
        self._shown: dict[str, tuple[Tensor, Tensor]] = {}
        self._sheet = SampleSheet(wish.classes, wish.count)
        # Another part, or the same one, may have ended what is asked for: nothing of it is made again.
        self.finished = part != WHOLE and self._is(RECORD_NAME, self._header)

    def known(self, group: int) -> list[Drawn] | None:
        """The samples of a group whose record a call that was interrupted left."""
        name = _group_name(group)
        if not self._is(RECORD_NAME, self._unfinished) or not self._is(name, self._unfinished):
            return None
        rows = self.groups[group]
        entries = read_record(self._out / name).samples
        codes = torch.tensor([[int(code) for code in entry.codes.split()] for entry in entries])
        return _named(self._prior, self._wish, rows, codes)

    def add(self, group: int, drawn: Sequence[Drawn], *, on_frames: Advance = lambda count: None) -> None:
        """Write a group of samples, one scene in memory at a time."""
        out, name = self._out, _group_name(group)
        files = [path for sample in drawn for path in self._files(sample, out)]
        begun = self._is(RECORD_NAME, self._unfinished)
        last = [out / RECORD_NAME, out / SHEET_NAME, *([] if self._npz is None else [self._npz])]
        kept = begun and self._is(name, self._unfinished)
        old = [path for path in [*([] if begun else last), *([] if kept else files)] if path.is_file()]
        with _place_for(out, old) as place:
            if not begun:
                write_sealed_json(place / RECORD_NAME, {**self._unfinished, "samples": []})
            if not kept:
                write_sealed_json(place / name, {**self._unfinished, "samples": [each.entry() for each in drawn]})
            for sample in drawn:
                if kept and all(path.is_file() for path in self._files(sample, out)):
                    on_frames(self.frames_of(sample))
                else:
                    self._write(sample, place, on_frames)
            if self._part == WHOLE and group == len(self.groups) - 1:
                self._join(place)

    def finish(self) -> list[Path] | None:
        """All files that were written; of a part, None while others have work left."""
        if self._part != WHOLE and not self.finished:
            with own_turn(self._out, self._part):
                self.finished = self._is(RECORD_NAME, self._header)
                if not self.finished and self._all_there():
                    self._join(self._out)
                    self.finished = True
            if not self.finished:
                return None
        samples = _named(self._prior, self._wish, range(self._wish.total), None)
        written = [path for sample in samples for path in self._files(sample, self._out)]
        npz = [] if self._npz is None else [self._npz]
        return [self._out / SHEET_NAME, self._out / RECORD_NAME, *npz, *written]

    def _is(self, name: str, header: Mapping[str, Any]) -> bool:
        """Whether a record is there, whole, and says this of its samples."""
        try:
            values = read_sealed_json(self._out / name, what="record of samples", remedy="")
        except (InputMissingError, DataError):
            return False
        return {key: value for key, value in values.items() if key != "samples"} == header

    def _all_there(self) -> bool:
        names = [_group_name(group) for group in range(len(self.groups))]
        if not all((self._out / name).is_file() and self._is(name, self._unfinished) for name in names):
            return False
        samples = _named(self._prior, self._wish, range(self._wish.total), None)
        return all(path.is_file() for sample in samples for path in self._files(sample, self._out))

    def _join(self, place: Path) -> None:
        """The records of all groups as one, the sheet, and the npz file; what groups of before left goes."""

        def at(name: str) -> Path:
            return place / name if (place / name).is_file() else self._out / name

        entries: list[dict[str, Any]] = []
        for group in range(len(self.groups)):
            record = read_sealed_json(at(_group_name(group)), what="record of samples", remedy="the same command")
            entries += record["samples"]
        with contextlib.ExitStack() as stack:
            add = None
            if self._npz is not None:
                archive = picture_archive(place / self._npz.name, self._wish.total, self._size)
                add = stack.enter_context(archive)
            for entry in entries:
                index, name = entry["class_index"], entry["file"]
                if add is not None:
                    add(read_image(at(name)), index)
                if self._sheet.shows(index, entry["number"]):
                    codes = [[int(code) for code in entry["codes"].split()]]
                    shown = self._shown.get(name) or self._rendered(torch.tensor(codes))[1:]
                    self._sheet.add(index, entry["class"] or "", *shown)
        write_bytes(place / SHEET_NAME, encode_png(self._sheet.drawn()))
        write_sealed_json(place / RECORD_NAME, {**self._header, "samples": entries})
        for folder in {place, self._out}:
            for path in folder.glob("samples-*.json"):
                if _GROUP.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        (self._out / TURN_LOCK).unlink(missing_ok=True)

    def _files(self, sample: Drawn, place: Path) -> list[Path]:
        pictures = [place / f"{sample.name}.png"]
        if self._wish.disparity:
            pictures.append(place / f"{sample.name}_disparity.png")
        target = self._target(sample, place)
        return pictures if target is None else [*pictures, *target.paths]

    def _target(self, sample: Drawn, place: Path) -> Target | None:
        """Where a sample's film goes, if it is filmed."""
        shot, disparity = self._wish.shot, self._wish.disparity
        if shot is None or sample.name not in self._filmed:
            return None
        stem = f"{sample.name}_{shot.path}"
        return Target(place / f"{stem}.mp4", place / f"{stem}_disparity.mp4" if disparity else None, "mp4")

    def frames_of(self, sample: Drawn) -> int:
        """Pictures that are rendered of a sample, those of its film among them."""
        shot = self._wish.shot
        return 1 + (shot.length if shot is not None and sample.name in self._filmed else 0)

    def _rendered(self, codes: Tensor) -> tuple[Scene, Tensor, Tensor]:
        """The scene of codes `[1, L]`, its picture, and its disparity in colour, uint8 `[3, S, S]`."""
        device = self._stage1.device
        scene = scene_from_codes(self._stage1.model, codes.to(device))
        view = scene.render(self._camera, samples=EVALUATION_SAMPLES)
        s = view.s[0].cpu()
        return scene, view.rgb[0].cpu(), colour_map(s, *display_range(s))

    def _write(self, sample: Drawn, place: Path, on_frames: Advance) -> None:
        scene, rgb, coloured = self._rendered(sample.codes[None])
        write_bytes(place / f"{sample.name}.png", encode_png(rgb))
        if self._wish.disparity:
            write_bytes(place / f"{sample.name}_disparity.png", encode_png(coloured))
        if self._sheet.shows(sample.class_index, sample.number):
            self._shown[f"{sample.name}.png"] = rgb, coloured
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
            read_record(out / RECORD_NAME, finished=False)
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
    with staging(out) as place:
        yield place
        # No picture of before may lie beside the new record.
        for path in old:
            path.unlink(missing_ok=True)
