"""The Stage 1 objective: a batch in, every loss and statistic out.

```
images -> autoencoder -> planes -> scattered rays  -> rgb, weights -> reconstruction and depth losses
                 |            |--> a square of rays -> perceptual loss
                 |            `--> main, novel views -> frozen discriminators -> adversarial losses
                 |-> auxiliary image -> auxiliary loss
                 `-> quantizer losses
```

A module, so that DistributedDataParallel can wrap the whole of it, rendering included.

Legend: B images, N rays, S samples, H = W image_size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vq3dcli import seeding
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, align_labels, depth_loss, order_loss
from vq3dcli.losses.perceptual import PerceptualDistance
from vq3dcli.losses.reconstruction import chroma_ratio, l1, l2
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import to_model_range
from vq3dcli.rendering.cameras import Rays, image_rays
from vq3dcli.rendering.render import Field, Rendering, render_rays, render_with_importance
from vq3dcli.rendering.sampling import stratified_s
from vq3dcli.training.adversarial import Adversary
from vq3dcli.training.views import (
    AdversarialViews,
    canonical,
    crop,
    patch_corners,
    plan_views,
    real_disparity,
    render_view,
    render_views,
)


class Objective(NamedTuple):
    """What a step needs to know.

    Attributes:
        loss: The total, to be differentiated.
        terms: Its unweighted terms and other figures by name, scalars, detached.
        relief: Spread of rendered over labelled disparity, summed over images with a label, and their number: `[2]`.
            Labels that are fitted to the rendering say nothing and do not count.
        codes: Code indices `[B, L]`.
        projected: Encoder outputs on the sphere `[B, L, D]`, detached.
        raw: Encoder outputs before normalisation `[B, L, D]`, detached.
        views: What the discriminators are shown next, detached; None before their start.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    relief: Tensor
    codes: Tensor
    projected: Tensor
    raw: Tensor
    views: AdversarialViews | None


class Stage1Objective(nn.Module):
    """All losses of the autoencoder.

    Args:
        autoencoder: The model that is trained.
        recipe: Loss weights and rendering settings.
        adversary: The discriminators; None for no adversarial losses, whatever the recipe says.
        perceptual: The frozen network of the perceptual loss; needed where the recipe gives it a weight.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        recipe: Stage1Recipe,
        adversary: Adversary | None = None,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        super().__init__()
        assert recipe.loss.perceptual == 0 or perceptual is not None, "a perceptual loss needs its network"
        self.autoencoder = autoencoder
        self.recipe = recipe
        self.adversary = adversary
        # In a tuple, which is no submodule: what DistributedDataParallel wraps should be what is trained.
        self._perceptual = (perceptual,)
        self._views = plan_views(recipe)

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        label_kind: Tensor,
        index: Tensor,
        labelled_share: Tensor,
        class_index: Tensor | None = None,
        images_seen: int = 0,
    ) -> Objective:
        """Compute the objective.

        Args:
            image: uint8 `[B, 3, H, W]`.
            label: Disparity labels as stored `[B, H, W]`.
            label_kind: `[B]`; see `losses.depth`.
            index: Global sample indices `[B]`, the only source of randomness.
            labelled_share: Labelled images of the global batch divided by its size, a scalar.
            class_index: `[B]`, -1 for no class; none by default.
            images_seen: Before this step; decides whether the discriminators have started.
        """
        loss = self.recipe.loss
        target_image = to_model_range(image)
        encoded = self.autoencoder(target_image)
        field = self.autoencoder.field(encoded.planes)

        # --- scattered rays of the photo's camera
        rendering, pixel = self._render(field, index)
        target = target_image.flatten(2).gather(2, pixel[:, None].expand(-1, 3, -1)).transpose(1, 2)
        rgb = rendering.rgb * 2.0 - 1.0
        terms = {"l2": l2(rgb, target), "l1": l1(rgb, target)}
        total = loss.l2 * terms["l2"] + loss.l1 * terms["l1"]

        canonical_label = real_disparity(label, label_kind, mean=loss.alignment_mean, std=loss.alignment_std)
        label_at_rays = align_labels(
            label.flatten(1).gather(1, pixel),
            label_kind,
            rendering.s,
            alignment=loss.alignment,
            canonical=canonical_label.flatten(1).gather(1, pixel),
        )
        labelled = label_kind != LABEL_NONE
        # The share comes from the global batch: the mean over ranks is then the mean over labelled images.
        weight_of_image = labelled.float() / labelled_share.clamp(min=1e-6)
        per_image = depth_loss(rendering.weights, rendering.samples_s, label_at_rays, loss.depth_kind)
        terms["depth"] = (per_image * weight_of_image).mean()
        total = total + loss.depth * terms["depth"]
        if loss.depth_order > 0:
            terms["depth_order"] = (order_loss(rendering.s, label_at_rays) * weight_of_image).mean()
            total = total + loss.depth_order * terms["depth_order"]

        # --- squares and whole views
        if loss.perceptual > 0:
            terms["perceptual"] = self._perceptual_distance(field, target_image, index)
            total = total + loss.perceptual * terms["perceptual"]
        views = None
        if self.adversary is not None and self.adversary.started(images_seen):
            classes = torch.full_like(index, -1) if class_index is None else class_index
            views = render_views(field, target_image, canonical_label, labelled, index, classes, self._views)
            adversarial, scores = self.adversary.generator_loss(views, images_seen)
            total = total + adversarial
            terms |= scores

        # --- the tokens' own losses
        if encoded.auxiliary is not None:
            terms["auxiliary"] = (encoded.auxiliary.float() - target_image).square().mean()
            total = total + loss.auxiliary * terms["auxiliary"]
        quantized = encoded.quantized
        terms["commitment"] = quantized.commitment
        total = total + loss.commitment * quantized.commitment + loss.codebook * quantized.codebook

        with torch.no_grad():
            terms["chroma_ratio"] = chroma_ratio(rgb, target)
            terms["weight_variance"] = rendering.weight_variance.mean()
            judged = (labelled if loss.alignment == "canonical" else label_kind == LABEL_METRIC).float()
            relief = rendering.s.std(1) / label_at_rays.std(1).clamp(min=1e-6)
            relief_and_count = torch.stack([(relief * judged).sum(), judged.sum()])
        return Objective(
            loss=total,
            terms={name: value.detach().float() for name, value in terms.items()},
            relief=relief_and_count,
            codes=quantized.codes,
            projected=quantized.projected,
            raw=quantized.raw,
            views=None if views is None else views.detached(),
        )

    def _perceptual_distance(self, field: Field, target_image: Tensor, index: Tensor) -> Tensor:
        """The mean distance of a rendered square of each image from its target."""
        (network,) = self._perceptual
        assert network is not None
        plan = replace(self._views, size_px=self.recipe.loss.perceptual_patch_px)
        corner = patch_corners(
            index, seed=plan.seed, image_px=plan.image_px, patch_px=plan.size_px, purpose="perceptual"
        )
        view = render_view(field, canonical(index, plan.image_px, plan), index, plan, "perceptual", corner)
        return network(view.rgb, crop(target_image, corner, plan.size_px)).mean()

    def _render(self, field: Field, index: Tensor) -> tuple[Rendering, Tensor]:
        """Render a stratified subset of the canonical camera's pixels; also their indices `[B, N]`."""
        rendering, size = self.recipe.rendering, self.recipe.model.image_size
        seed = self.recipe.training.seed
        batch, pixels = index.shape[0], size * size
        count = min(rendering.rays_per_image, pixels)
        jitter = seeding.uniform(seed, "pixels", index, count)
        stratum = torch.arange(count, device=index.device)
        pixel = ((stratum + jitter) * (pixels / count)).long().clamp(max=pixels - 1)

        rays = image_rays(build_canonical_camera(self.recipe, size))
        direction = rays.direction[0].to(index.device)[pixel]
        origin = rays.origin[0, :1].to(index.device).expand_as(direction)
        chosen = Rays(origin, direction)

        samples = rendering.samples
        coarse_jitter = seeding.uniform(seed, "samples", index, count * samples)
        samples_s = stratified_s(coarse_jitter.reshape(batch, count, samples))
        near, far = self.recipe.camera.near, self.recipe.camera.far
        if rendering.importance_samples == 0:
            return render_rays(field, chosen, samples_s, near=near, far=far), pixel
        fine = rendering.importance_samples
        fine_jitter = seeding.uniform(seed, "importance", index, count * fine).reshape(batch, count, fine)
        return render_with_importance(field, chosen, samples_s, fine_jitter, near=near, far=far), pixel
