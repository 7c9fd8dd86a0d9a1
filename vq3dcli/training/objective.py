"""The Stage 1 objective: a batch in, every loss and statistic out.

```
images -> autoencoder -> planes -> scattered rays  -> rgb, weights -> reconstruction and depth losses
                 |            |--> a square of rays -> perceptual loss
                 |            |--> both, of exact pictures from other cameras -> the same losses at novel views
                 |            `--> main, novel views -> frozen discriminators -> adversarial losses
                 |-> auxiliary image -> auxiliary loss
                 `-> quantizer losses
```

A module, so that DistributedDataParallel can wrap the whole of it, rendering included.

Legend: B images, M novel views, N rays, S samples, H = W image_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vq3dcli import seeding
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.views import Views
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, align_labels, depth_loss, order_loss
from vq3dcli.losses.perceptual import PerceptualDistance
from vq3dcli.losses.reconstruction import chroma_ratio, l1, l2
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.scene import to_model_range
from vq3dcli.rendering.cameras import Camera
from vq3dcli.rendering.render import Field, Rendering
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.views import (
    AdversarialViews,
    FrontView,
    crop,
    front_view,
    patch_corners,
    rays_through,
    real_disparity,
    render_sampled,
    render_view,
    render_views,
)


class NovelViews(NamedTuple):
    """Exact pictures from other cameras of some images, and their number over that of the global batch, a scalar."""

    views: Views
    share: Tensor

    def of_rows(self, start: int, stop: int) -> NovelViews:
        """Those of a micro-batch."""
        return NovelViews(self.views.of_rows(start, stop), self.share)


class Objective(NamedTuple):
    """What a step needs to know."""

    loss: Tensor  # the total, to be differentiated
    terms: dict[str, Tensor]  # its unweighted terms and other figures by name, scalars, detached
    # spread of rendered over labelled disparity, summed over images with a label, and their number: `[2]`. Labels that
    # are fitted to the rendering say nothing and do not count
    relief: Tensor
    codes: Tensor  # code indices `[B, L]`
    projected: Tensor  # encoder outputs on the sphere `[B, L, D]`, detached
    raw: Tensor  # encoder outputs before normalisation `[B, L, D]`, detached
    views: tuple[AdversarialViews, ...]  # what the discriminators are shown next, detached; empty before their start

    @classmethod
    def of(cls, parts: Sequence[Objective]) -> Objective:
        """Micro-batches as one: means of the loss and terms, the sum of relief, all codes and views."""
        return cls(
            loss=torch.stack([part.loss for part in parts]).mean(),
            terms={name: torch.stack([part.terms[name] for part in parts]).mean() for name in parts[0].terms},
            relief=torch.stack([part.relief for part in parts]).sum(0),
            codes=torch.cat([part.codes for part in parts]),
            projected=torch.cat([part.projected for part in parts]),
            raw=torch.cat([part.raw for part in parts]),
            views=tuple(views for part in parts for views in part.views),
        )


class Stage1Objective(nn.Module):
    """All losses of the autoencoder.

    Without an `adversary` there are no adversarial losses, whatever the recipe says; the frozen network of the
    perceptual loss is needed where the recipe gives it a weight.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        recipe: Stage1Recipe,
        adversary: Adversary | None = None,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        super().__init__()
        assert not recipe.loss.any_perceptual or perceptual is not None, "a perceptual loss needs its network"
        self.autoencoder = autoencoder
        self.recipe = recipe
        self.adversary = adversary
        # In a tuple, which is no submodule: what DistributedDataParallel wraps should be what is trained.
        self._perceptual = (perceptual,)

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        label_kind: Tensor,
        index: Tensor,
        labelled_share: Tensor,
        class_index: Tensor | None = None,
        images_seen: int = 0,
        novel: NovelViews | None = None,
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
            novel: Exact pictures from other cameras; needed where the recipe gives their losses a weight.
        """
        loss = self.recipe.loss
        size = self.recipe.model.image_size
        target_image = to_model_range(image)
        encoded = self.autoencoder(target_image)
        field = self.autoencoder.field(encoded.planes)

        # --- scattered rays of the photo's camera
        front = front_view(index, size, self.recipe)
        rendering, pixel = self._render(field, front, index)
        target = _at_pixels(target_image, pixel)
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
            terms["perceptual"] = self._perceptual_distance(field, front, target_image, index, "perceptual")
            total = total + loss.perceptual * terms["perceptual"]
        if loss.novel:
            assert novel is not None, "losses at novel views need views"
            of_views = self._novel_terms(encoded.planes, front.camera, novel, index)
            total = total + sum(getattr(loss, name) * value for name, value in of_views.items())
            terms |= of_views | {"novel_views": novel.share}
        views = None
        if self.adversary is not None and self.adversary.started(images_seen):
            classes = torch.full_like(index, -1) if class_index is None else class_index
            views = render_views(field, target_image, canonical_label, labelled, index, classes, self.recipe)
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
            counts = (labelled if loss.alignment == "canonical" else label_kind == LABEL_METRIC).float()
            relief = rendering.s.std(1) / label_at_rays.std(1).clamp(min=1e-6)
            relief_and_count = torch.stack([(relief * counts).sum(), counts.sum()])
        return Objective(
            loss=total,
            terms={name: value.detach().float() for name, value in terms.items()},
            relief=relief_and_count,
            codes=quantized.codes,
            projected=quantized.projected,
            raw=quantized.raw,
            views=() if views is None else (views.detached(),),
        )

    def _novel_terms(self, planes: Tensor, front: Camera, novel: NovelViews, index: Tensor) -> dict[str, Tensor]:
        """The losses at novel views, by their keys, each a mean over the views of the global batch."""
        loss, views = self.recipe.loss, novel.views
        count = len(views.row)
        names = ["novel_l2", "novel_l1", "novel_depth", *(["novel_perceptual"] if loss.novel_perceptual > 0 else [])]
        if count == 0:
            return {name: planes.new_zeros(()) for name in names}
        field = self.autoencoder.field(planes.index_select(0, views.row))
        camera = front.at(views.cam_to_world)
        image, index = to_model_range(views.image), index[views.row]
        rendering, pixel = self._render(field, camera, index, "view ")
        rgb, target = rendering.rgb * 2.0 - 1.0, _at_pixels(image, pixel)
        label = views.s.flatten(1).gather(1, pixel)
        means = [
            l2(rgb, target),
            l1(rgb, target),
            depth_loss(rendering.weights, rendering.samples_s, label, loss.depth_kind).mean(),
        ]
        if loss.novel_perceptual > 0:
            means.append(self._perceptual_distance(field, camera, image, index, "view perceptual"))
        # As of labels: the mean over micro-batches and ranks is then the mean over views.
        weight = count / (planes.shape[0] * novel.share.clamp(min=1e-6))
        return {name: mean * weight for name, mean in zip(names, means, strict=True)}

    def _perceptual_distance(
        self, field: Field, seen: Camera | FrontView, target_image: Tensor, index: Tensor, purpose: str
    ) -> Tensor:
        """The mean distance of a rendered square of each image from its target."""
        (network,) = self._perceptual
        assert network is not None
        size, seed = self.recipe.loss.perceptual_patch_px, self.recipe.training.seed
        side = self.recipe.model.image_size
        corner = patch_corners(index, seed=seed, image_px=side, patch_px=size, purpose=purpose)
        view = render_view(field, seen, index, self.recipe, purpose, corner, size)
        return network(view.rgb, crop(target_image, corner, size)).mean()

    def _render(
        self, field: Field, seen: Camera | FrontView, index: Tensor, purpose: str = ""
    ) -> tuple[Rendering, Tensor]:
        """Render a stratified subset of each view's pixels; also their indices `[B, N]`."""
        size, seed = self.recipe.model.image_size, self.recipe.training.seed
        count = min(self.recipe.rendering.rays_per_image, size * size)
        jitter = seeding.uniform(seed, f"{purpose}pixels", index, count)
        stratum = torch.arange(count, device=index.device)
        pixel = ((stratum + jitter) * (size * size / count)).long().clamp(max=size * size - 1)

        def uniform(name: str, n: int) -> Tensor:
            return seeding.uniform(seed, f"{purpose}{name}", index, count * n).reshape(len(index), count, n)

        return render_sampled(field, rays_through(seen, pixel), self.recipe, uniform), pixel


def _at_pixels(image: Tensor, pixel: Tensor) -> Tensor:
    """Colours `[B, N, 3]` of images `[B, 3, H, W]` at row-major pixels `[B, N]`."""
    return image.flatten(2).gather(2, pixel[:, None].expand(-1, 3, -1)).transpose(1, 2)
