"""The Stage 1 objective: a batch in, every loss and statistic out.

```
images -> autoencoder -> planes -> canonical rays -> rgb, weights -> reconstruction and depth losses
                 |-> quantizer losses        `-> auxiliary image -> auxiliary loss
```

A module, so that DistributedDataParallel can wrap the whole of it, rendering included.

Legend: B images, N rays, S samples, H = W image_size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vq3dcli import seeding
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, LABEL_RELATIVE, align_canonical, align_labels, depth_loss
from vq3dcli.losses.reconstruction import chroma_ratio, l1, l2
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import to_model_range
from vq3dcli.rendering.cameras import Rays, image_rays
from vq3dcli.rendering.render import Rendering, render_rays, render_with_importance
from vq3dcli.rendering.sampling import stratified_s


class Objective(NamedTuple):
    """What a step needs to know.

    Attributes:
        loss: The total, to be differentiated.
        terms: Its unweighted terms and other figures by name, scalars, detached.
        codes: Code indices `[B, L]`.
        projected: Encoder outputs on the sphere `[B, L, D]`, detached.
        raw: Encoder outputs before normalisation `[B, L, D]`, detached.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    codes: Tensor
    projected: Tensor
    raw: Tensor


class Stage1Objective(nn.Module):
    """Losses of the main view and the codes.

    Args:
        autoencoder: The model that is trained.
        recipe: Loss weights and rendering settings.
    """

    def __init__(self, autoencoder: Autoencoder, recipe: Stage1Recipe) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.recipe = recipe

    def forward(
        self, image: Tensor, label: Tensor, label_kind: Tensor, index: Tensor, labelled_share: Tensor
    ) -> Objective:
        """Compute the objective.

        Args:
            image: uint8 `[B, 3, H, W]`.
            label: Disparity labels as stored `[B, H, W]`.
            label_kind: `[B]`; see `losses.depth`.
            index: Global sample indices `[B]`, the only source of randomness.
            labelled_share: Labelled images of the global batch divided by its size, a scalar.
        """
        loss = self.recipe.loss
        target_image = to_model_range(image)
        encoded = self.autoencoder(target_image)
        rendering, pixel = self._render(encoded.planes, index)
        target = target_image.flatten(2).gather(2, pixel[:, None].expand(-1, 3, -1)).transpose(1, 2)
        rgb = rendering.rgb * 2.0 - 1.0
        terms = {"l2": l2(rgb, target), "l1": l1(rgb, target)}
        total = loss.l2 * terms["l2"] + loss.l1 * terms["l1"]

        label_at_rays = self._aligned_label(label, label_kind, pixel, rendering.s)
        labelled = (label_kind != LABEL_NONE).float()
        per_image = depth_loss(rendering.weights, rendering.samples_s, label_at_rays, loss.depth_kind)
        # The share comes from the global batch: the mean over ranks is then the mean over labelled images.
        terms["depth"] = (per_image * labelled).mean() / labelled_share.clamp(min=1e-6)
        total = total + loss.depth * terms["depth"]

        if encoded.auxiliary is not None:
            terms["auxiliary"] = (encoded.auxiliary.float() - target_image).square().mean()
            total = total + loss.auxiliary * terms["auxiliary"]
        quantized = encoded.quantized
        terms["commitment"] = quantized.commitment
        total = total + loss.commitment * quantized.commitment + loss.codebook * quantized.codebook

        with torch.no_grad():
            terms["chroma_ratio"] = chroma_ratio(rgb, target)
            terms["weight_variance"] = rendering.weight_variance.mean()
            metric = label_kind == LABEL_METRIC
            spread = label_at_rays.std(1).clamp(min=1e-6)
            relief = rendering.s.std(1) / spread
            # -1 where no image of this rank has a metric label: figures are numbers, and JSON has no NaN.
            terms["relief"] = torch.where(metric, relief, torch.nan).nanmean().nan_to_num(nan=-1.0)
        detached = {name: value.detach().float() for name, value in terms.items()}
        return Objective(total, detached, quantized.codes, quantized.projected, quantized.raw)

    def _render(self, planes: Tensor, index: Tensor) -> tuple[Rendering, Tensor]:
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
        field = self.autoencoder.field(planes)
        near, far = self.recipe.camera.near, self.recipe.camera.far
        if rendering.importance_samples == 0:
            return render_rays(field, chosen, samples_s, near=near, far=far), pixel
        fine = rendering.importance_samples
        fine_jitter = seeding.uniform(seed, "importance", index, count * fine).reshape(batch, count, fine)
        return render_with_importance(field, chosen, samples_s, fine_jitter, near=near, far=far), pixel

    def _aligned_label(self, label: Tensor, label_kind: Tensor, pixel: Tensor, rendered_s: Tensor) -> Tensor:
        """Labels at the rays `[B, N]`, relative ones aligned."""
        at_rays = label.flatten(1).gather(1, pixel)
        if not bool((label_kind == LABEL_RELATIVE).any()):
            return at_rays
        loss = self.recipe.loss
        canonical = align_canonical(label, mean=loss.alignment_mean, std=loss.alignment_std)
        return align_labels(
            at_rays,
            label_kind,
            rendered_s,
            alignment=loss.alignment,
            canonical=canonical.flatten(1).gather(1, pixel),
        )
