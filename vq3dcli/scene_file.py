"""Saved scenes, `NAME.vq3d.safetensors`: a NeRF with all that it takes to look at it again.

One safetensors file holds the planes (fp16), the codes that they were decoded from, the field that reads them, the
photo if there was one, and a header of JSON: camera, space, what made it. It renders without the weights file.

Legend: P plane side, C plane channels, L codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vq3dcli.config.schema import CameraSection
from vq3dcli.data.images import decode_image, encode_png
from vq3dcli.errors import DataError, UsageError
from vq3dcli.model.field import FieldMLP, FieldModel
from vq3dcli.model.scene import Scene
from vq3dcli.rendering.cameras import DepthRange
from vq3dcli.rendering.space import ContractedSpace, Frustum
from vq3dcli.tensor_file import check_tensors, read_tensors, shapes_alone, write_tensors
from vq3dcli.weights_file import LoadedWeights, checked_header

FORMAT_VERSION = 1
SUFFIX = ".vq3d.safetensors"
_FIELD = "field_mlp."
_MAX_CODES = 65536


class SceneCamera(CameraSection):
    """The canonical camera of a scene and the range that its field covers; see docs/conventions.md."""

    # field of view, the same on both axes: a picture of another shape was squashed
    fov_deg: float = Field(ge=1, le=150)
    aspect: float = Field(default=1.0, ge=1e-5, le=1e5)  # width / height of what the camera saw
    # mean of normalised disparity in an average training image, which relative maps are brought to
    mean_s: float = Field(default=0.28, gt=0, lt=1)
    std_s: float = Field(default=0.145, gt=0, lt=1)  # its standard deviation

    @property
    def frustum(self) -> Frustum:
        """What it sees."""
        return Frustum(self.radius, math.radians(self.fov_deg), DepthRange(self.near, self.far), self.aspect)


def camera_of(weights: LoadedWeights, aspect: float = 1.0) -> SceneCamera:
    """The canonical camera of the scenes of a model."""
    camera, loss = weights.recipe.camera, weights.recipe.loss
    return SceneCamera(**camera.model_dump(), aspect=aspect, mean_s=loss.alignment_mean, std_s=loss.alignment_std)


class _FieldShape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(ge=1, le=4096)
    hidden: int = Field(ge=1, le=65536)
    layers: int = Field(ge=0, le=64)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["scene"]
    format_version: int
    space: Literal["frustum", "contracted"]
    field: _FieldShape
    camera: SceneCamera
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    provenance: dict[str, Any]


@dataclass(frozen=True)
class LoadedScene:
    """A saved scene, ready to be rendered."""

    scene: Scene  # a single one
    # what the canonical camera saw, uint8 `[3, H, W]` at the resolution it was saved with, or None
    photo: Tensor | None = field(repr=False)
    camera: SceneCamera  # the canonical camera
    weights_sha256: str  # hash of the weights that made it
    provenance: dict[str, Any] = field(repr=False)  # what the file says of its making
    path: str  # the file
    sha256: str  # its hash


def save_scene(
    path: Path | str,
    scene: Scene,
    camera: SceneCamera,
    weights_sha256: str,
    *,
    provenance: Mapping[str, Any],
    photo: Tensor | None,
) -> str:
    """Write a scene, atomically, to a file that ends in `SUFFIX`, its planes rounded to fp16; returns its SHA-256.

    `weights_sha256` is of what made it; `provenance` are JSON values to keep with it: the command, the input's name,
    ...; `photo` is what the canonical camera saw, uint8 `[3, H, W]` of any size. Raises `UsageError`: another suffix.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIX):
        raise UsageError(f"a saved scene is called NAME{SUFFIX} ({path})", remedy=f"{path.with_suffix('')}{SUFFIX}")
    if len(scene) != 1:
        raise ValueError(f"a file holds one scene, not {len(scene)}")
    model, mlp = scene.model, scene.model.field_mlp
    header = _Header(
        format="scene",
        format_version=FORMAT_VERSION,
        space="frustum" if isinstance(model.space, Frustum) else "contracted",
        field=_FieldShape(channels=scene.planes.shape[-1], hidden=mlp.out.in_features, layers=len(mlp.hidden)),
        camera=camera,
        weights_sha256=weights_sha256,
        provenance=dict(provenance),
    )
    tensors = {"codes": scene.codes[0].to(torch.int32), "planes": scene.planes[0].half()}
    tensors |= {_FIELD + name: value.float() for name, value in mlp.state_dict().items()}
    if photo is not None:
        # As PNG: lossless, and a third of the bytes.
        tensors["photo_png"] = torch.from_numpy(np.frombuffer(encode_png(photo), np.uint8).copy())
    return write_tensors(path, tensors, header.model_dump(mode="json"))


def load_scene(path: Path | str, device: str | torch.device = "cpu") -> LoadedScene:
    """Read a saved scene.

    Raises `DataError`: it is damaged, no saved scene, or of a newer format; else as `read_tensors`.
    """
    path = Path(path)
    values, tensors, sha256 = read_tensors(path, what="scene")
    header = checked_header(path, values, _Header, "scene", FORMAT_VERSION)
    codes = _taken(path, tensors, "codes", 1, torch.int32)[None].long()
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < _MAX_CODES:
        raise DataError(f"damaged scene ({path}): codes {_range(codes)}", remedy="another copy")
    photo = None
    if "photo_png" in tensors:
        data = _taken(path, tensors, "photo_png", 1, torch.uint8).numpy().tobytes()
        photo = decode_image(data, name=f"the photo in {path}")
    scene = _scene_of_planes(path, header, tensors, codes, device)
    return LoadedScene(scene, photo, header.camera, header.weights_sha256, header.provenance, str(path), sha256)


def _taken(path: Path, tensors: dict[str, Tensor], name: str, axes: int, dtype: torch.dtype) -> Tensor:
    """Take one tensor out of those of the file. Raises `DataError`."""
    value = tensors.pop(name, None)
    if value is None or value.ndim != axes or value.dtype != dtype:
        raise DataError(f"damaged scene ({path}): its {name} are missing or misshapen", remedy="another copy")
    return value


def _scene_of_planes(
    path: Path, header: _Header, tensors: dict[str, Tensor], codes: Tensor, device: str | torch.device
) -> Scene:
    frustum, shape = header.camera.frustum, header.field
    space = frustum if header.space == "frustum" else ContractedSpace()
    planes = _taken(path, tensors, "planes", 4, torch.float16)
    side = planes.shape[1]
    if not side or planes.shape != (3, side, side, shape.channels):
        raise DataError(f"damaged scene ({path}): planes of shape {list(planes.shape)}", remedy="another copy")
    with shapes_alone():
        mlp = FieldMLP(shape.channels, shape.hidden, shape.layers)
    check_tensors(f"damaged scene ({path})", {_FIELD + name: v for name, v in mlp.state_dict().items()}, tensors)
    mlp.load_state_dict({name.removeprefix(_FIELD): value.float() for name, value in tensors.items()}, assign=True)
    model = FieldModel(mlp, space, frustum)
    model.requires_grad_(False).eval().to(device)
    return Scene(model, planes[None].float().to(device), codes.to(device))


def check_codes(path: Path, codes: Tensor, weights: LoadedWeights) -> None:
    """Raise `DataError` unless `codes` `[1, L]` are as many as these weights take, and each one of theirs."""
    model = weights.recipe.model
    length = (model.image_size // model.patch) ** 2
    if codes.shape[1] != length or not 0 <= int(codes.min()) <= int(codes.max()) < model.codebook_size:
        raise DataError(
            f"codes that the weights do not know ({path}): {codes.shape[1]} of them, values {_range(codes)}",
            remedy=f"{length} codes below {model.codebook_size}",
        )


def _range(codes: Tensor) -> str:
    return f"{int(codes.min())} to {int(codes.max())}" if codes.numel() else "none"
