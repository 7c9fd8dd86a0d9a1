"""The relief of a photo: normalised disparity of each of its pixels, with the photo's own edges.

```
NeRF ----> disparity ----+
                         +-> guided by the photo -> steps made steep -> s
teacher -> relative map -+
user ----> map -------------------------------------------------------> s
```

Legend: H height_px, W width_px of the photo, h and w of a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data.images import resize
from vq3dcli.data_tools.depth.models import EMBEDDED, DepthModel, find_model, open_model
from vq3dcli.editing.corrected import corrected_field
from vq3dcli.editing.cutout import FirstView
from vq3dcli.editing.filters import box_mean, guided_filter, median_filter, steepened
from vq3dcli.errors import UnavailableError
from vq3dcli.model.scene import SceneView
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.pipelines.user_depth import predict_disparity, user_s
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.rendering.render import Field
from vq3dcli.rendering.space import FrustumSpace
from vq3dcli.scene_file import SceneCamera
from vq3dcli.weights_file import embedded_path

Geometry = Literal["nerf", "teacher", "both"]

# Side of the NeRF's disparity: no planes hold more than this of a photo.
DISPARITY_PX = 128
SAMPLES = 64
# A photo of fewer pixels on a side has no detail to give.
SMALLEST_PHOTO_PX = 16
# The longer side of the relief that the photo guides: finer, it would take up texture; and of the map it is made from.
_RELIEF_PX = 256
_MAP_PX = 128
# Windows as parts of the longer side: of noise in the NeRF's disparity, of the guided filter, of a step's half width,
# of what a median leaves out, and of mixed colours beside a step.
_NOISE_WINDOW = 1 / 64
_GUIDE_WINDOW = 1 / 32
_STEP_WINDOW = 1 / 64
_SPECK_WINDOW = 1 / 128
_MIXED_WINDOW = 1 / 128
# Only contrasts of more than the square root of this are taken for edges of things.
_GUIDE_EPSILON = 6e-3
# A teacher's map is fitted with errors of this much of s counted as large, and keeps at least this part of the spread
# that relative labels have in training: a NeRF that saw next to nothing would flatten it.
_FIT_S = 0.02
_FIT_ROUNDS = 10
_LEAST_SPREAD = 0.5


@dataclass(frozen=True)
class Teacher:
    """A depth network that gives photos their geometry.

    Attributes:
        network: The embedded one.
        geometry: With `both` its map is brought to the NeRF's disparity, with `teacher` to the statistics of training.
    """

    network: DepthModel
    geometry: Literal["teacher", "both"]


def open_teacher(geometry: Geometry | None, device: torch.device) -> Teacher | None:
    """What a geometry needs beside the NeRF.

    Args:
        geometry: None is `both` where this installation has an embedded depth network, and `nerf` where not.
        device: Where the network computes.

    Raises:
        UnavailableError: There is no embedded depth network.
    """
    if geometry is None:
        geometry = "both" if embedded_path("depth").exists() else "nerf"
    if geometry == "nerf":
        return None
    try:
        network = open_model(find_model(EMBEDDED), device, flip=True)
    except UnavailableError as error:
        raise UnavailableError(error.message, remedy="--geometry nerf, or --depth-model") from error
    return Teacher(network, geometry)


@torch.no_grad()
def photo_relief(
    opened: OpenedScene, photo: Tensor, *, teacher: Teacher | None = None, given_s: Tensor | None = None
) -> Tensor:
    """Normalised disparity of each pixel of a photo.

    Args:
        opened: The scene of the photo.
        photo: uint8 `[3, H, W]`, from `detail.fitted_photo`.
        teacher: Where geometry comes from; None is the NeRF.
        given_s: Geometry of the user's instead, `[h, w]` in s; kept as sharp as it is.

    Returns:
        float32 `[H, W]` in [0, 1], on the scene's device.

    Raises:
        DataError: The network fails on this photo.
    """
    if given_s is not None:
        size = photo.shape[1:]
        full = functional.interpolate(
            given_s[None, None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
        )
        return full[0, 0].clamp(0.0, 1.0)
    if teacher is None:
        return refined_disparity(quiet(canonical_view(opened).s[0]), photo)
    assert opened.photo is not None
    device = opened.scene.planes.device
    disparity = predict_disparity(teacher.network, opened.photo, name=opened.stem).to(device)
    if teacher.geometry == "teacher":
        return refined_disparity(user_s(disparity, opened.camera, name=opened.stem), photo)
    return refined_disparity(fitted(disparity, canonical_view(opened).s[0], opened.camera), photo)


def with_relief(opened: OpenedScene, teacher: Teacher | None) -> OpenedScene:
    """A photo's scene with the teacher's relief, for what shall stand in it; as it is without a teacher or a photo."""
    if teacher is None or opened.photo is None or min(opened.photo.shape[1:]) < SMALLEST_PHOTO_PX:
        return opened
    factor = min(1.0, _RELIEF_PX / max(opened.photo.shape[1:]))
    photo = resize(opened.photo, *(max(1, round(side * factor)) for side in opened.photo.shape[1:]))
    return replace(opened, relief=photo_relief(opened, photo, teacher=teacher))


def canonical_view(opened: OpenedScene) -> SceneView:
    """The NeRF from the camera of the photo, squashed to a square."""
    side_px = min(DISPARITY_PX, opened.scene.planes.shape[2])
    facts = opened.camera
    camera = canonical_camera(
        1, height_px=side_px, width_px=side_px, radius=facts.radius, fov_rad=math.radians(facts.fov_deg)
    )
    return opened.scene.render(camera, samples=SAMPLES)


def first_view(opened: OpenedScene) -> tuple[FirstView, FrustumSpace]:
    """A scene as its first camera sees it, and that camera."""
    radius, fov_rad = opened.camera.radius, math.radians(opened.camera.fov_deg)
    # For masks and the ground under things: twice the texels of small models.
    side_px = min(DISPARITY_PX, 2 * opened.scene.planes.shape[2])
    camera = canonical_camera(1, height_px=side_px, width_px=side_px, radius=radius, fov_rad=fov_rad)
    view = opened.scene.render(camera, samples=SAMPLES)
    space = FrustumSpace(radius, fov_rad, opened.camera.near, opened.camera.far)
    s = view.s[0]
    if opened.relief is not None:
        size = (side_px, side_px)
        s = functional.interpolate(opened.relief[None, None].to(s), size=size, mode="bilinear", antialias=True)[0, 0]
    return FirstView(view.rgb[0].float() / 255.0, s), space


def field_of(opened: OpenedScene) -> Field:
    """The field of a scene, its surfaces at its relief if it has one."""
    field = opened.scene.model.frozen_field(opened.scene.planes)
    if opened.relief is None:
        return field
    facts = opened.camera
    return corrected_field(
        field,
        canonical_view(opened).s[0],
        opened.relief,
        radius=facts.radius,
        fov_rad=math.radians(facts.fov_deg),
        near=facts.near,
        far=facts.far,
    )


def quiet(nerf_s: Tensor) -> Tensor:
    """The NeRF's disparity without what is noise in it, `[h, w]`."""
    radius_px = max(1, round(_NOISE_WINDOW * max(nerf_s.shape)))
    return box_mean(box_mean(nerf_s[None], radius_px), radius_px)[0]


def fitted(disparity: Tensor, nerf_s: Tensor, facts: SceneCamera) -> Tensor:
    """A relative map at the scale and shift that agree best with the NeRF's disparity: least absolute errors.

    Args:
        disparity: `[h, w]`, larger is nearer, in any unit.
        nerf_s: `[h', w']` in s, of the same view.
        facts: Of the scene: the spread of a typical one bounds the scale.

    Returns:
        `[h, w]` in [0, 1].
    """
    x = disparity.float()
    low, high = torch.quantile(x.flatten(), torch.tensor([0.02, 0.98], device=x.device)).tolist()
    x = x.clamp(low, high)
    seen = functional.interpolate(x[None, None], size=nerf_s.shape, mode="bilinear", antialias=True)[0, 0]
    weight = torch.ones_like(nerf_s)
    scale, shift = 0.0, 0.0
    # Iteratively reweighted least squares.
    for _ in range(_FIT_ROUNDS):
        total = weight.sum()
        mean_x, mean_s = (weight * seen).sum() / total, (weight * nerf_s).sum() / total
        spread = (weight * (seen - mean_x).square()).sum().clamp(min=1e-12)
        scale = float((weight * (seen - mean_x) * (nerf_s - mean_s)).sum() / spread)
        shift = float(mean_s - scale * mean_x)
        weight = 1.0 / (_FIT_S + (scale * seen + shift - nerf_s).abs())
    deviation = max(float(seen.std()), 1e-6)
    bounded = min(max(scale, _LEAST_SPREAD * facts.std_s / deviation), facts.std_s / _LEAST_SPREAD / deviation)
    if bounded != scale:
        shift = float((nerf_s - bounded * seen).median())
    return (bounded * x + shift).clamp(0.0, 1.0)


def refined_disparity(coarse_s: Tensor, photo: Tensor) -> Tensor:
    """Give a map the edges of a photo.

    Args:
        coarse_s: Normalised disparity `[h, w]`, of any size; squashed or not.
        photo: uint8 `[3, H, W]`.

    Returns:
        float32 `[H, W]`, within the map's range.
    """
    size = photo.shape[1:]
    longer = max(size)
    guide_size, map_size = (
        [max(1, round(side * min(1.0, most_px / longer))) for side in size] for most_px in (_RELIEF_PX, _MAP_PX)
    )
    colours = photo[None].to(coarse_s) / 255.0
    guide = functional.interpolate(colours, size=guide_size, mode="bilinear", align_corners=False, antialias=True)[0]
    values = functional.interpolate(
        coarse_s[None, None], size=map_size, mode="bilinear", align_corners=False, antialias=True
    )[0, 0]
    side_px = max(guide_size)
    radius_px = max(1, round(_GUIDE_WINDOW * max(map_size)))
    s = guided_filter(guide, values, radius_px=radius_px, epsilon=_GUIDE_EPSILON)
    s = median_filter(s.clamp(float(coarse_s.min()), float(coarse_s.max())), round(_SPECK_WINDOW * side_px))
    s = steepened(s, max(1, round(_STEP_WINDOW * side_px)), grow_px=round(_MIXED_WINDOW * side_px))
    return functional.interpolate(s[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
