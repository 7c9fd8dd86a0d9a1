"""The views that discriminators compare: of the photo's camera and of cameras beside it, rendered with gradients.

```
canonical camera -> whole view at size_px, or a patch of full-resolution rays -> main:  fake   photo -> real
random camera    -> whole view at size_px ------------------------------------> novel: fake   photo -> real
```

Every random number is a function of (seed, purpose, sample index, pixel), so a patch holds the very values that the
whole view has there.

Legend: B images, H = W side of the photos, h = w side of a view, N rays, S samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli import seeding
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.losses.depth import LABEL_RELATIVE, align_canonical
from vq3dcli.model.build import build_frustum
from vq3dcli.rendering.cameras import Camera, Rays, canonical_camera, image_rays, pivot_camera, rays_at_pixels
from vq3dcli.rendering.ray_samples import stratified_samples
from vq3dcli.rendering.render import Field, Rendering, render_rays


class View(NamedTuple):
    """A view of each image: `rgb` `[B, 3, h, w]` in [-1, 1], `s` normalised disparity `[B, h, w]`, 1 near, 0 far."""

    rgb: Tensor
    s: Tensor


class Compared(NamedTuple):
    """What one discriminator is shown: of the photos and their aligned labels, and rendered."""

    real: View
    fake: View


@dataclass(frozen=True)
class AdversarialViews:
    """What both discriminators are shown for one batch of a rank."""

    main: Compared | None  # at the photo's camera, or None where that discriminator is off
    novel: Compared | None  # beside it, or None
    index: Tensor  # global sample indices, int64 `[B]`
    class_index: Tensor  # `[B]`, -1 for no class
    labelled: Tensor  # whether an image has a disparity label, bool `[B]`

    def detached(self) -> AdversarialViews:
        """The same without graphs, for the discriminators' own step."""

        def cut(pair: Compared | None) -> Compared | None:
            return None if pair is None else Compared(*(View(view.rgb.detach(), view.s.detach()) for view in pair))

        return replace(self, main=cut(self.main), novel=cut(self.novel))


def render_views(
    field: Field,
    photo: Tensor,
    real_s: Tensor,
    labelled: Tensor,
    index: Tensor,
    class_index: Tensor,
    recipe: Stage1Recipe,
) -> AdversarialViews:
    """Render what the discriminators of a recipe are shown, beside the photos as they would be seen by the same rays.

    Args:
        field: The differentiable scenes `[B]`.
        photo: `[B, 3, H, W]` in [-1, 1].
        real_s: Aligned disparity labels `[B, H, W]`, see `real_disparity`; `labelled` `[B]` says which images have one.
        index: Global sample indices `[B]`.
        class_index: `[B]`, -1 for no class.
    """
    adversarial, side = recipe.adversarial, recipe.model.image_size
    size = adversarial.size_px
    whole = View(sample_at_size(photo, size), sample_at_size(real_s[:, None], size)[:, 0])
    main = novel = None
    if adversarial.main > 0 and adversarial.main_patch:
        corner = patch_corners(index, seed=recipe.training.seed, image_px=side, patch_px=size)
        real = View(crop(photo, corner, size), crop(real_s, corner, size))
        main = Compared(real, render_view(field, front_view(index, side, recipe), index, recipe, "main", corner, size))
    elif adversarial.main > 0:
        main = Compared(whole, render_view(field, front_view(index, size, recipe), index, recipe, "main"))
    if adversarial.novel > 0:
        novel = Compared(whole, render_view(field, novel_cameras(index, recipe), index, recipe, "novel"))
    return AdversarialViews(main, novel, index, class_index, labelled)


class FrontView(NamedTuple):
    """What took the photos, at a size: one camera, and its rays through all pixels, `[1, size^2]`."""

    camera: Camera
    rays: Rays


def front_view(index: Tensor, size_px: int, recipe: Stage1Recipe) -> FrontView:
    """The same for all images, made once for the device of `index`."""
    make = _front_view if type(index) is Tensor else _front_view.__wrapped__  # a plan's tensors hold no numbers
    return make(recipe.camera.radius, recipe.camera.fov_deg, size_px, index.device)


@functools.cache
def _front_view(radius: float, fov_deg: float, size_px: int, device: torch.device) -> FrontView:
    camera = canonical_camera(1, height_px=size_px, width_px=size_px, radius=radius, fov_rad=math.radians(fov_deg)).to(
        device
    )
    return FrontView(camera, image_rays(camera))


def rays_through(view: Camera | FrontView, pixel: Tensor) -> Rays:
    """Rays through row-major pixels `[B, N]`: of a camera an image, or of the one that took the photos."""
    if isinstance(view, FrontView):
        return Rays(view.rays.origin[:, :1].expand(*pixel.shape, 3), view.rays.direction[0, pixel])
    return rays_at_pixels(view, torch.stack([pixel % view.width_px, pixel // view.width_px], -1) + 0.5)


def novel_cameras(index: Tensor, recipe: Stage1Recipe) -> Camera:
    """A camera for each of `index` `[B]`, yaw and pitch uniform within the recipe's ranges, around the pivot."""
    adversarial, size = recipe.adversarial, recipe.adversarial.size_px
    number = 2.0 * seeding.uniform(recipe.training.seed, "novel", index, 2) - 1.0
    yaw_rad = number[:, 0] * math.radians(adversarial.yaw_deg)
    pitch_rad = number[:, 1] * math.radians(adversarial.pitch_deg)
    radius, fov_rad = recipe.camera.radius, math.radians(recipe.camera.fov_deg)
    return pivot_camera(yaw_rad, pitch_rad, height_px=size, width_px=size, radius=radius, fov_rad=fov_rad)


def patch_corners(index: Tensor, *, seed: int, image_px: int, patch_px: int, purpose: str = "adversarial") -> Tensor:
    """The upper left pixel (x, y) of a random patch inside each image, int64 `[B, 2]`."""
    places = image_px - patch_px + 1
    return (seeding.uniform(seed, f"{purpose} patch", index, 2) * places).long()


def render_view(
    field: Field,
    view: Camera | FrontView,
    index: Tensor,
    recipe: Stage1Recipe,
    purpose: str,
    corner: Tensor | None = None,
    patch_px: int = 0,
) -> View:
    """Render the whole of each image's square view, or a patch of it, with gradients.

    `index` are global sample indices `[B]`, `corner` the upper left pixels (x, y) of patches, int64 `[B, 2]`.
    """
    whole_px = (view.camera if isinstance(view, FrontView) else view).width_px
    size, left, top = (whole_px, 0, 0) if corner is None else (patch_px, *corner.T[:, :, None, None])
    span = torch.arange(size, device=index.device)
    pixel = ((top + span[:, None]) * whole_px + left + span).reshape(-1, size * size).expand(len(index), -1)
    # One counter a pixel of an image: indices of the stream times pixels stay far below 2^63.
    counter = index[:, None] * whole_px**2 + pixel
    rays = rays_through(view, pixel)
    rendering = render_sampled(
        field, rays, recipe, lambda name, n: seeding.uniform(recipe.training.seed, f"{purpose} {name}", counter, n)
    )
    rgb = rendering.rgb.transpose(1, 2).reshape(-1, 3, size, size) * 2.0 - 1.0
    return View(rgb, rendering.s.reshape(-1, size, size))


def render_sampled(field: Field, rays: Rays, recipe: Stage1Recipe, uniform: Callable[[str, int], Tensor]) -> Rendering:
    """Render rays `[B, N]` at the recipe's stratified and importance samples.

    `uniform` gives random numbers `[B, N, n]` in [0, 1) for a name and n.
    """
    samples = stratified_samples(uniform("samples", recipe.rendering.samples))
    more = recipe.rendering.importance_samples
    importance = uniform("importance", more) if more else None
    return render_rays(field, rays, samples, build_frustum(recipe).depth_range, importance=importance)


def crop(images: Tensor, corner: Tensor, patch_px: int) -> Tensor:
    """A square patch of each of `[B, C, H, W]` or `[B, H, W]`, from an upper left pixel (x, y) on, int64 `[B, 2]`."""
    span = torch.arange(patch_px, device=images.device)
    batch = torch.arange(images.shape[0], device=images.device)[:, None, None]
    rows, columns = corner[:, 1, None, None] + span[:, None], corner[:, 0, None, None] + span
    if images.ndim == 3:
        return images[batch, rows, columns]
    return images.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2)


def sample_at_size(images: Tensor, size_px: int) -> Tensor:
    """Images `[B, C, H, W]` at the pixel centres of a camera with `size_px` pixels a side.

    Bilinear without a low-pass filter, as a rendered view has one ray a pixel: filtered photos would differ from any
    rendering by their lack of aliasing alone.
    """
    if images.shape[-1] == size_px:
        return images
    return functional.interpolate(images, size=(size_px, size_px), mode="bilinear", align_corners=False)


def real_disparity(label: Tensor, label_kind: Tensor, *, mean: float, std: float) -> Tensor:
    """Labels `[B, H, W]` as a discriminator is shown them: metric ones as they are, relative ones aligned canonically.

    `mean` and `std` are of s, for `align_canonical`.
    """
    relative = label_kind == LABEL_RELATIVE
    if not bool(relative.any()):
        return label
    return torch.where(relative[:, None, None], align_canonical(label, mean=mean, std=std), label)
