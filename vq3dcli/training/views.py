"""The views that discriminators compare: of the photo's camera and of cameras beside it, rendered with gradients.

```
canonical camera -> whole view at size_px, or a patch of full-resolution rays -> main:  fake   photo -> real
random camera    -> whole view at size_px ------------------------------------> novel: fake   photo -> real
```

Every random number is a function of (seed, purpose, sample index, pixel), so a patch holds the very values that the
whole view has there.

Legend: B images, H = W side of the photos, h = w side of a view, N = h w rays, S samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli import seeding
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.losses.depth import LABEL_RELATIVE, align_canonical
from vq3dcli.rendering.cameras import Camera, pivot_camera, pixel_centres, rays_at_pixels
from vq3dcli.rendering.ray_samples import stratified_s
from vq3dcli.rendering.render import Field, render_rays, render_with_importance


class View(NamedTuple):
    """A view of each image.

    Attributes:
        rgb: `[B, 3, h, w]` in [-1, 1].
        s: Normalised disparity `[B, h, w]` in [0, 1]: 1 near, 0 far.
    """

    rgb: Tensor
    s: Tensor


class Compared(NamedTuple):
    """What one discriminator is shown.

    Attributes:
        real: Of the photos and their aligned labels.
        fake: Rendered.
    """

    real: View
    fake: View


@dataclass(frozen=True)
class AdversarialViews:
    """What both discriminators are shown for one batch of a rank.

    Attributes:
        main: At the photo's camera, or None where that discriminator is off.
        novel: Beside it, or None.
        index: Global sample indices, int64 `[B]`.
        class_index: `[B]`, -1 for no class.
        labelled: Whether an image has a disparity label, bool `[B]`.
    """

    main: Compared | None
    novel: Compared | None
    index: Tensor
    class_index: Tensor
    labelled: Tensor

    def detached(self) -> AdversarialViews:
        """The same without graphs, for the discriminators' own step."""

        def cut(pair: Compared | None) -> Compared | None:
            return None if pair is None else Compared(*(View(view.rgb.detach(), view.s.detach()) for view in pair))

        return AdversarialViews(cut(self.main), cut(self.novel), self.index, self.class_index, self.labelled)


@dataclass(frozen=True)
class ViewPlan:
    """Which views are rendered, and how.

    Attributes:
        image_px: Side H of the photos and of the canonical camera's full image.
        size_px: Side h of the views, at most `image_px`.
        main: Render the canonical camera's view.
        novel: Render a view beside it.
        main_patch: The main view is a patch of full-resolution rays instead of the whole view at `size_px`.
        yaw_rad: Novel cameras lie within +- this, around the pivot.
        pitch_rad: As `yaw_rad`, up and down.
        radius: Distance of all cameras from the pivot.
        fov_rad: Field of view.
        near: z_depth of s = 1.
        far: z_depth of s = 0.
        samples: Stratified samples a ray.
        importance_samples: Further samples of a second pass; 0 for none.
        seed: Of cameras, patches and samples.
    """

    image_px: int
    size_px: int
    main: bool
    novel: bool
    main_patch: bool
    yaw_rad: float
    pitch_rad: float
    radius: float
    fov_rad: float
    near: float
    far: float
    samples: int
    importance_samples: int
    seed: int


def plan_views(recipe: Stage1Recipe) -> ViewPlan:
    """The views that a recipe's discriminators compare."""
    camera, rendering, adversarial = recipe.camera, recipe.rendering, recipe.adversarial
    return ViewPlan(
        image_px=recipe.model.image_size,
        size_px=adversarial.size_px,
        main=adversarial.main > 0,
        novel=adversarial.novel > 0,
        main_patch=adversarial.main_patch,
        yaw_rad=math.radians(adversarial.yaw_deg),
        pitch_rad=math.radians(adversarial.pitch_deg),
        radius=camera.radius,
        fov_rad=math.radians(camera.fov_deg),
        near=camera.near,
        far=camera.far,
        samples=rendering.samples,
        importance_samples=rendering.importance_samples,
        seed=recipe.training.seed,
    )


def render_views(
    field: Field, photo: Tensor, real_s: Tensor, labelled: Tensor, index: Tensor, class_index: Tensor, plan: ViewPlan
) -> AdversarialViews:
    """Render what the discriminators are shown, beside the photos as they would be seen by the same rays.

    Args:
        field: The differentiable scenes `[B]`.
        photo: `[B, 3, H, W]` in [-1, 1].
        real_s: Aligned disparity labels `[B, H, W]`, see `real_disparity`.
        labelled: Whether an image has one, `[B]`.
        index: Global sample indices `[B]`.
        class_index: `[B]`, -1 for no class.
        plan: Which views.
    """
    whole = View(sample_at_size(photo, plan.size_px), sample_at_size(real_s[:, None], plan.size_px)[:, 0])
    main = novel = None
    if plan.main and plan.main_patch:
        corner = patch_corners(index, seed=plan.seed, image_px=plan.image_px, patch_px=plan.size_px)
        real = View(*(crop(images, corner, plan.size_px) for images in (photo, real_s)))
        main = Compared(real, render_view(field, canonical(index, plan.image_px, plan), index, plan, "main", corner))
    elif plan.main:
        main = Compared(whole, render_view(field, canonical(index, plan.size_px, plan), index, plan, "main"))
    if plan.novel:
        novel = Compared(whole, render_view(field, novel_cameras(index, plan), index, plan, "novel"))
    return AdversarialViews(main, novel, index, class_index, labelled)


def canonical(index: Tensor, size_px: int, plan: ViewPlan) -> Camera:
    """The camera that took the photos, once for each of `index` `[B]`."""
    zero = torch.zeros(index.shape[0], device=index.device)
    return pivot_camera(zero, zero, height_px=size_px, width_px=size_px, radius=plan.radius, fov_rad=plan.fov_rad)


def novel_cameras(index: Tensor, plan: ViewPlan) -> Camera:
    """A camera for each sample, yaw and pitch uniform within the plan's ranges, at `size_px`.

    Args:
        index: Global sample indices `[B]`.
        plan: Ranges and seed.
    """
    number = 2.0 * seeding.uniform(plan.seed, "novel", index, 2) - 1.0
    size = plan.size_px
    yaw_rad, pitch_rad = number[:, 0] * plan.yaw_rad, number[:, 1] * plan.pitch_rad
    return pivot_camera(yaw_rad, pitch_rad, height_px=size, width_px=size, radius=plan.radius, fov_rad=plan.fov_rad)


def patch_corners(index: Tensor, *, seed: int, image_px: int, patch_px: int, purpose: str = "adversarial") -> Tensor:
    """The upper left pixel (x, y) of a random patch inside each image, int64 `[B, 2]`."""
    places = image_px - patch_px + 1
    return (seeding.uniform(seed, f"{purpose} patch", index, 2) * places).long()


def render_view(
    field: Field, camera: Camera, index: Tensor, plan: ViewPlan, purpose: str, corner: Tensor | None = None
) -> View:
    """Render the whole of each camera's image, or a patch of it, with gradients.

    Args:
        field: The scenes `[B]`.
        camera: One camera a scene `[B]`.
        index: Global sample indices `[B]`.
        plan: Samples, depth range and seed, and the patch's side `size_px`.
        purpose: Names the samples' random numbers.
        corner: Upper left pixel (x, y) of each patch, int64 `[B, 2]`; None for the whole image.
    """
    batch, device = index.shape[0], index.device
    height, width = (camera.height_px, camera.width_px) if corner is None else (plan.size_px, plan.size_px)
    pixels = pixel_centres(height, width, device).expand(batch, -1, 2)
    if corner is not None:
        pixels = pixels + corner[:, None]
    rays = rays_at_pixels(camera, pixels)
    column, row = pixels.long().unbind(-1)
    # One counter a pixel of an image: indices of the stream times pixels stay far below 2^63.
    counter = (index[:, None] * camera.height_px + row) * camera.width_px + column
    samples_s = stratified_s(seeding.uniform(plan.seed, f"{purpose} samples", counter, plan.samples))
    if plan.importance_samples:
        jitter = seeding.uniform(plan.seed, f"{purpose} importance", counter, plan.importance_samples)
        rendering = render_with_importance(field, rays, samples_s, jitter, near=plan.near, far=plan.far)
    else:
        rendering = render_rays(field, rays, samples_s, near=plan.near, far=plan.far)
    rgb = rendering.rgb.transpose(1, 2).reshape(batch, 3, height, width) * 2.0 - 1.0
    return View(rgb, rendering.s.reshape(batch, height, width))


def crop(images: Tensor, corner: Tensor, patch_px: int) -> Tensor:
    """A square patch of each image.

    Args:
        images: `[B, C, H, W]` or `[B, H, W]`.
        corner: Upper left pixels (x, y), int64 `[B, 2]`.
        patch_px: Side of the patches.
    """
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

    Args:
        label: As stored.
        label_kind: `[B]`, see `losses.depth`.
        mean: Of s, for `align_canonical`.
        std: Of s.
    """
    relative = label_kind == LABEL_RELATIVE
    if not bool(relative.any()):
        return label
    return torch.where(relative[:, None, None], align_canonical(label, mean=mean, std=std), label)
