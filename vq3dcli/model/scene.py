"""A scene: tri-planes with the model that reads them, ready to be looked at from any camera.

Legend: B scenes (or frames of one scene), P plane side, C plane channels.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vq3dcli.errors import UsageError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.field import FieldModel
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.scene import SceneView, view_fields

_POINTS_AT_ONCE = 1 << 16


class Renderable(Protocol):
    """A scene, or what stands for one where it is measured."""

    def render(self, camera: Camera, *, samples: int) -> SceneView:
        """See `Scene.render`."""
        ...


@dataclass(frozen=True)
class Scene:
    """One NeRF or a batch of them."""

    model: Autoencoder | FieldModel  # what reads the planes: an autoencoder, or the field alone of a saved scene
    planes: Tensor  # `[B, 3, P, P, C]`
    # the code indices that the planes were decoded from, `[B, L]`; L is 0 for planes that have none, such as a mixture
    # of two scenes
    codes: Tensor

    def __repr__(self) -> str:
        """Without the weights and planes themselves."""
        return f"Scene({len(self)} of planes {list(self.planes.shape[1:])} on {self.planes.device})"

    def __len__(self) -> int:
        """Number of scenes B."""
        return self.planes.shape[0]

    def __getitem__(self, index: int) -> Scene:
        """Scene `index` alone, as a batch of one."""
        chosen = slice(index, index + 1) if index != -1 else slice(-1, None)
        return Scene(self.model, self.planes[chosen], self.codes[chosen])

    @functools.cached_property
    def fields(self) -> list[Field]:
        """The field of each scene, kept: where it is empty is found out once."""
        return [self.model.frozen_field(self[index].planes) for index in range(len(self))]

    def render(self, camera: Camera, *, samples: int = 96) -> SceneView:
        """Look at the scene, with samples on a ray at the middles of equal bins of s: a view a camera, or a scene.

        There is one camera a scene, one for all scenes, or any number of cameras for a single scene; `ValueError` for
        several scenes and another number of cameras.
        """
        if len(camera) == 1:
            poses, intrinsics = (part.expand(len(self), -1, -1) for part in (camera.cam_to_world, camera.intrinsics))
            camera = replace(camera, cam_to_world=poses, intrinsics=intrinsics)
        if len(self) not in (1, len(camera)):
            raise ValueError(
                f"{len(self)} scenes cannot be rendered from {len(camera)} cameras: one for all, one each, or scene by "
                "scene (scenes[0].render(...))"
            )

        def field_of(view: int) -> Field:
            return self.fields[view if len(self) > 1 else 0]

        return view_fields(field_of, camera.to(self.planes.device), samples, self.model.frustum.depth_range)

    @torch.no_grad()
    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colour and density at world points `[N, 3]` of a single scene.

        Raises `UsageError`: points of another shape.

        Returns:
            rgb `[N, 3]` in [0, 1] and density a metre `[N]`, at least 0. The field has no surface of its own behind
            far, nor is it empty outside the first camera's view: borders are replicated there.
        """
        if len(self) != 1:
            raise ValueError(f"points are looked up in one scene, not in {len(self)}")
        if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 3:
            shape = list(points.shape) if isinstance(points, Tensor) else f"a {type(points).__name__}"
            raise UsageError(f"points are a tensor [N, 3], not {shape}", remedy="torch.tensor([[0.0, 0.0, 0.0]])")
        field = self.fields[0]
        parts = [field(part[None]) for part in points.to(self.planes).split(_POINTS_AT_ONCE)]
        if not parts:
            return points.new_zeros(0, 3), points.new_zeros(0)
        return torch.cat([rgb[0] for _, rgb in parts]), torch.cat([density[0] for density, _ in parts])


def to_model_range(images: Tensor) -> Tensor:
    """uint8 images `[B, 3, H, W]` to floats in [-1, 1]."""
    if images.dtype != torch.uint8:  # floats in [0, 1] would give grey scenes without a word
        raise ValueError(f"images are uint8, not {images.dtype}: (images * 255).round().to(torch.uint8) of [0, 1]")
    return images.float() / 127.5 - 1.0


@torch.no_grad()
def reconstruct_scene(model: Autoencoder, images: Tensor) -> Scene:
    """Photos uint8 `[B, 3, S, S]`, at the model's image size, to NeRFs in one forward pass, through the codes.

    Raises `ValueError`: images of another type or shape.
    """
    size = math.isqrt(model.encoder.positions.shape[1]) * model.patch
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        made_by = f"to_square(image, {size}, fit='crop')[None]"
        raise ValueError(f"images of this model are [B, 3, {size}, {size}], not {list(images.shape)}: {made_by}")
    return scene_from_codes(model, model.codes(to_model_range(images)))


@torch.no_grad()
def scene_from_codes(model: Autoencoder, codes: Tensor) -> Scene:
    """Codes `[B, L]`, of photos or sampled, to NeRFs."""
    return Scene(model, model.planes_from_codes(codes), codes)
