"""What commands take as an input: a photo, `-` for stdin, a toy scene by class, a saved scene, or a sample.

`toyscene:CLASS` or `toyscene:CLASS:SEED` stands for the canonical view of a toy scene that training never sees; a
file of such a name is `./toyscene:...`. `NAME.vq3d.safetensors` is a saved scene (`vq3dcli.scene_file`), and
`samples.json#NAME` a sample of those that `vq3d sample` wrote.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vq3dcli.config.defaults import VIDEO_SAMPLES, VIDEO_SIZE_PX
from vq3dcli.data.images import centre_square, decode_image, read_file, resize, to_square
from vq3dcli.data.pillow import focal_length_mm, open_header
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.files import cut_name
from vq3dcli.model.field import FieldModel
from vq3dcli.model.scene import Scene, reconstruct_scene, scene_from_codes
from vq3dcli.pipelines.sampling.record import read_record
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import Frustum
from vq3dcli.scene_file import SUFFIX, SceneCamera, camera_of, check_codes, load_scene, save_scene
from vq3dcli.toyscenes import CLASS_NAMES, render_scenes, sample_scenes
from vq3dcli.weights_file import LoadedWeights

Fit = Literal["crop", "squash"]

STDIN = "-"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".heic", ".heif")
_TOYSCENE = "toyscene:"
_SAMPLE_MARK = ".json#"
_MAX_STDIN_BYTES = 1 << 29
_SCENES_AT_ONCE = 256
# A photo of fewer pixels on a side has no detail to give.
SMALLEST_PHOTO_PX = 16


@dataclass(frozen=True)
class Source:
    """Where a picture comes from."""

    text: str
    stem: str  # what outputs are named after
    path: Path | None = None  # the file that it is read from; None for stdin and toy scenes
    toy: tuple[int, int] | None = None  # set for a toy scene: its class, and the seed of which it is the first scene
    sample: str | None = None  # set for a sample: its name in the record

    @property
    def is_saved_scene(self) -> bool:
        """Whether it is a saved scene, which needs no weights."""
        return self.path is not None and self.path.name.endswith(SUFFIX)


@dataclass(frozen=True)
class Picture:
    """An input as a model takes it."""

    image: Tensor  # uint8 `[3, size, size]`
    aspect: float  # width / height of what `image` shows; 1 if it was cropped to a square
    photo: Tensor  # the same at the resolution it was read with, uint8 `[3, H, W]`
    whole_aspect: float  # width / height before it was cropped
    fov_deg: float | None = None  # horizontal field of view of `photo`, where its EXIF tells it


@dataclass(frozen=True)
class OpenedScene:
    """An input as a scene, whatever it was."""

    scene: Scene
    # what the canonical camera saw, uint8 `[3, H, W]` at the photo's own resolution; None for samples and for scenes
    # saved without it
    photo: Tensor | None
    stem: str  # what outputs are named after
    camera: SceneCamera  # the canonical camera: radius, field of view on both axes, near, far, aspect
    provenance: dict[str, Any]  # what it was made from and by, as JSON values
    whole_aspect: float | None = None  # width / height of the photo before it was cropped, where that is known
    # what to put the NeRF's surfaces at, s `[h, w]` of what the canonical camera sees; None leaves them
    relief: Tensor | None = None
    texture: Tensor | None = None  # `[C, h, w]`, what a network says of each place of the photo, to tell things apart
    fov_deg: float | None = None  # of the photo, where its EXIF tells it; the camera has the model's

    @property
    def frustum(self) -> Frustum:
        """What the canonical camera sees."""
        return self.camera.frustum

    @property
    def field(self) -> Field:
        """The NeRF."""
        return self.scene.fields[0]

    @property
    def device(self) -> torch.device:
        """Where the NeRF computes."""
        return self.scene.planes.device

    def save(self, path: Path | str) -> None:
        """Write it as a saved scene; raises what `scene_file.save_scene` does."""
        made_by, facts = str(self.provenance["weights_sha256"]), self.provenance
        # What a toy scene looks like is no photo: the saved scene shall be shown as this one is, by its NeRF.
        photo = None if str(facts.get("input")).startswith(_TOYSCENE) else self.photo
        save_scene(path, self.scene, self.camera, made_by, provenance=facts, photo=photo)

    @property
    def has_detail(self) -> bool:
        """Whether there is a photo, and not hardly one."""
        return self.photo is not None and min(self.photo.shape[1:]) >= SMALLEST_PHOTO_PX


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """Understand all inputs of a command, without opening any; equal stems get a number.

    Raises `UsageError`: no input, stdin twice, or a toy scene that does not exist.
    """
    if not texts:
        raise UsageError("no input", remedy="a photo, - for stdin, or toyscene:sphere")
    if list(texts).count(STDIN) > 1:
        raise UsageError("stdin (-) can be read only once", remedy="file names for the other inputs")
    sources: list[Source] = []
    taken: set[str] = set()
    for text in texts:
        source = _parse_source(text)
        made = cut_name(source.stem)
        stem, number = made, 2
        while stem in taken:
            stem, number = f"{made}_{number}", number + 1
        taken.add(stem)
        sources.append(replace(source, stem=stem))
    return sources


def with_photos_of_folders(texts: Sequence[str]) -> list[str]:
    """The inputs of a command, for each folder the pictures in it, by name. Raises `InputMissingError` for none."""
    names: list[str] = []
    for text in texts:
        if text in ("", STDIN) or not os.path.isdir(text):  # which a name that is too long is not
            names.append(text)
            continue
        inside = sorted(path for path in Path(text).iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
        photos = [str(path) for path in inside if not path.name.startswith(".")]
        if not photos:
            raise InputMissingError(f"no photos in this folder ({text})", remedy="JPEG, PNG, WebP, AVIF or HEIC files")
        names += photos
    return names


def read_picture(source: Source, size_px: int, *, fit: Fit) -> Picture:
    """Read an input, or stdin for `-`, and fit it to a square of `size_px`.

    `crop` takes the centre square, `squash` keeps all of the picture at a changed aspect ratio.

    Raises `InputMissingError`: no such file, or stdin is closed; `DataError`: not an image, damaged, or too large.
    """
    if source.toy is not None:
        image = _toy_image(*source.toy, size_px)
        return Picture(image, 1.0, image, 1.0)
    data = _read_stdin() if source.text == STDIN else read_file(Path(source.text))
    photo = decode_image(data, name="stdin" if source.text == STDIN else source.text)
    return fitted_picture(photo, size_px, fit=fit, focal_mm=focal_length_mm(open_header(data)))


def fitted_picture(photo: Tensor, size_px: int, *, fit: Fit, focal_mm: float | None = None) -> Picture:
    """A photo uint8 `[3, H, W]`, fitted as `read_picture` does; `focal_mm`: its focal length on film of 36 x 24 mm."""
    diagonal_px, whole_aspect = math.hypot(*photo.shape[1:]), photo.shape[2] / photo.shape[1]
    if fit == "crop":
        top, left, side = centre_square(photo.shape[1], photo.shape[2])
        photo = photo[:, top : top + side, left : left + side].contiguous()
    fov_deg = None
    if focal_mm is not None:  # what makes lenses comparable is the diagonal
        half_mm = 0.5 * math.hypot(36.0, 24.0) * photo.shape[2] / diagonal_px
        fov_deg = 2.0 * math.degrees(math.atan(half_mm / focal_mm))
    image = to_square(photo, size_px, fit="squash")
    return Picture(image, photo.shape[2] / photo.shape[1], photo, whole_aspect, fov_deg)


def fitted_photo(photo: Tensor, height_px: int, width_px: int) -> Tensor:
    """A photo uint8 `[3, H, W]`, made smaller where it has more pixels than are shown."""
    return resize(photo, min(photo.shape[1], height_px), min(photo.shape[2], width_px))


def open_scene(
    source: Source,
    weights: LoadedWeights | None,
    *,
    fit: Fit,
    device: str | torch.device | None = None,
    picture: Picture | None = None,
) -> OpenedScene:
    """Read an input of any kind and make a scene of it.

    `weights` may be None for saved scenes, which are as they were saved and go to
    `device`, by default where the model is. `picture` is the input's, where it is at hand.

    Raises:
        InputMissingError: No such file, or stdin is closed.
        DataError: Not an image or scene, damaged, too large, or made by other weights.
        UsageError: No such sample in the record.
    """
    if device is None:
        device = "cpu" if weights is None else weights.device
    if source.path is not None and source.is_saved_scene:
        loaded = load_scene(source.path, device)
        facts = {**loaded.provenance, "scene_sha256": loaded.sha256, "weights_sha256": loaded.weights_sha256}
        return OpenedScene(loaded.scene, loaded.photo, source.stem, loaded.camera, facts)
    if weights is None:
        raise ValueError(f"a scene of {source.text!r} needs weights")
    facts = {"input": source.text if source.path is None else source.path.name, "weights_sha256": weights.sha256}
    if source.sample is not None:
        return open_codes(_sampled_codes(source, weights), weights, {**facts, "sample": source.sample}, source.stem)
    if picture is None:
        picture = read_picture(source, weights.recipe.model.image_size, fit=fit)
    scene = reconstruct_scene(weights.model, picture.image[None].to(device))
    facts["fit"] = fit
    seen_by = camera_of(weights, picture.aspect)
    return OpenedScene(scene, picture.photo, source.stem, seen_by, facts, picture.whole_aspect, fov_deg=picture.fov_deg)


def open_codes(codes: Tensor, weights: LoadedWeights, facts: dict[str, Any], stem: str) -> OpenedScene:
    """A scene of codes `[1, L]` that were sampled; `facts` are its provenance."""
    scene = scene_from_codes(weights.model, codes.to(weights.device))
    return OpenedScene(scene, None, stem, camera_of(weights), facts)


def with_fov(opened: OpenedScene, fov_deg: float) -> OpenedScene:
    """A scene whose camera has a field of view: its frustum becomes wider or narrower, and its NeRF with it.

    Raises `UsageError`: the NeRF's space is no frustum.
    """
    model = opened.scene.model
    if not isinstance(model.space, Frustum):
        raise UsageError(f"this model's scenes keep their field of view ({opened.stem})", remedy="no --photo-fov")
    camera = opened.camera.model_copy(update={"fov_deg": fov_deg})
    stretched = FieldModel(model.field_mlp, camera.frustum, camera.frustum).eval()
    return replace(opened, scene=replace(opened.scene, model=stretched), camera=camera)


def with_first_view(opened: OpenedScene) -> OpenedScene:
    """A scene without a photo with what its canonical camera sees in its place."""
    camera = opened.frustum.camera(VIDEO_SIZE_PX, VIDEO_SIZE_PX)
    return replace(opened, photo=opened.scene.render(camera, samples=VIDEO_SAMPLES).rgb[0].cpu())


def _sampled_codes(source: Source, weights: LoadedWeights) -> Tensor:
    """Codes `[1, L]` of a sample. Raises `DataError`, `UsageError`."""
    path = source.path
    assert path is not None
    record = read_record(path)
    try:
        codes_by_name = {row.file.removesuffix(".png"): row.codes for row in record.samples}
        wanted = str(source.sample).removesuffix(".png")
        codes = torch.tensor([[int(code) for code in codes_by_name.get(wanted, "").split()]], dtype=torch.int64)
    except (ValueError, RuntimeError) as error:  # no numbers, or codes over 63 bits
        raise DataError(f"not a record of samples ({path}): {error}", remedy="a samples.json of vq3d sample") from error
    if wanted not in codes_by_name:
        nearest = difflib.get_close_matches(wanted, codes_by_name, n=1, cutoff=0.3) or list(codes_by_name)[:1]
        raise UsageError(f"no sample {wanted!r} ({path})", remedy=f"{path}#{nearest[0]}" if nearest else "another file")
    if record.stage1_sha256 != weights.sha256:
        raise DataError(
            f"samples of the weights {record.stage1_sha256[:12]} ({path}), not {weights.sha256[:12]} ({weights.path})",
            remedy="--weights with the file that they were sampled with",
        )
    check_codes(path, codes, weights)
    return codes


def _parse_source(text: str) -> Source:
    if text == STDIN:
        return Source(text, "stdin")
    if _SAMPLE_MARK in text and not Path(text).exists():
        sample = text.rpartition("#")[2]
        if not sample:
            raise UsageError(f"no name of a sample ({text})", remedy="samples.json#NAME")
        stem = Path(sample).name.removesuffix(".png") or "sample"
        return Source(text, stem, Path(text.removesuffix(f"#{sample}")), sample=sample)
    if text.endswith(".toml"):
        remedy = f"vq3d compose {text} films it, vq3d export {text} exports it"
        raise UsageError(f"a composition, where a photo or a scene is expected ({text})", remedy=remedy)
    if not text.startswith(_TOYSCENE) or text.endswith(SUFFIX):
        path = Path(text)
        stem = path.name.removesuffix(SUFFIX) if text.endswith(SUFFIX) else path.stem
        return Source(text, stem or "input", path)
    name, colon, seed = text.removeprefix(_TOYSCENE).partition(":")
    if name not in CLASS_NAMES:
        nearest = difflib.get_close_matches(name, CLASS_NAMES, n=1, cutoff=0.5)
        remedy = f"{_TOYSCENE}{nearest[0]}" if nearest else f"one of {', '.join(CLASS_NAMES)}"
        raise UsageError(f"no toy scene of that class ({text})", remedy=remedy)
    if colon and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise UsageError(f"the seed of a toy scene is a whole number ({text})", remedy=f"{_TOYSCENE}{name}:1")
    stem = f"toyscene-{name}-{int(seed)}" if colon else f"toyscene-{name}"
    return Source(text, stem, toy=(CLASS_NAMES.index(name), int(seed) if colon else 0))


def _toy_image(class_index: int, seed: int, size_px: int) -> Tensor:
    start = 0
    while True:  # a class is missing from 256 scenes once in ten million times
        index = torch.arange(start, start + _SCENES_AT_ONCE)
        scenes = sample_scenes(index, seed=seed, purpose="input")
        first = (scenes.class_index == class_index).nonzero()[:1, 0]
        if len(first):
            camera = canonical_camera(1, height_px=size_px, width_px=size_px)
            return render_scenes(scenes.select(first), camera).rgb[0]
        start += _SCENES_AT_ONCE


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputMissingError("stdin is closed", remedy="a file name instead of -")
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise DataError(f"more than {_MAX_STDIN_BYTES >> 20} MiB on stdin", remedy="a single image")
    return data
