"""One discriminator in training: its loss, its optimizer, and everything that a step changes.

Legend: B images, C 3 for rgb or 4 with disparity, h = w size_px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vq3dcli import seeding
from vq3dcli.config.schema import AdversarialSection
from vq3dcli.losses.adversarial import discriminator_loss, generator_loss, r1_loss, r1_penalty, score_figures
from vq3dcli.losses.augmentation import AdaptiveState, augment
from vq3dcli.model.discriminator import Discriminator
from vq3dcli.training.distributed import Ranks, shared, waiting
from vq3dcli.training.optim import optimizer_tensors, restore_optimizer
from vq3dcli.training.views import AdversarialViews, Compared, View

# No momentum, as in StyleGAN2: the other player moves too, and old gradients point to where it was.
_BETAS = (0.0, 0.99)


class DiscriminatorObjective(nn.Module):
    """The loss of one discriminator; a module, so that DistributedDataParallel can wrap the whole of it."""

    def __init__(self, discriminator: Discriminator, *, r1: float, r1_every_steps: int, autocast: bool) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.r1, self.r1_every_steps, self.autocast = r1, r1_every_steps, autocast

    def forward(
        self, real: Tensor, fake: Tensor, index: Tensor, class_index: Tensor, with_r1: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and figures: detached scalars by name, `r1` among them where it was computed.

        Args:
            real: `[B, C, h, w]`.
            fake: `[B, C, h, w]`, without a graph.
            index: Global sample indices `[B]`.
            class_index: `[B]`.
            with_r1: Whether this is a step with R1.
        """
        device = real.device.type
        real = real.detach().requires_grad_(with_r1)
        # Squares of gradients need float32: bfloat16 would round the graph that R1 differentiates twice.
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast and not with_r1):
            real_score = self.discriminator(real, index, class_index)
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            fake_score = self.discriminator(fake, index, class_index)
        loss = discriminator_loss(real_score, fake_score)
        figures = {"discriminator_loss": loss.detach(), **score_figures(real_score, fake_score)}
        if with_r1:
            penalty = r1_penalty(real_score, real)
            loss = loss + r1_loss(penalty, weight=self.r1, every_steps=self.r1_every_steps)
            figures["r1"] = penalty.detach()
        return loss, figures


class TrainedDiscriminator:
    """One discriminator with all that a step changes: weights, moments, augmentation, the last R1 penalty.

    Args:
        name: Of the views: "main" or "novel".
        weight: Of the generator's loss.
        settings: Sizes and rates, from the recipe.
        sees_disparity: Whether s is its fourth channel.
        classes: Number of classes; 0 for an unconditional one.
        seed: Of the weights and augmentations.
        device: Where to compute.
        autocast: bfloat16 in its own step, but for R1.
        ranks: This process among those of the run.
    """

    def __init__(
        self,
        name: str,
        weight: float,
        settings: AdversarialSection,
        *,
        sees_disparity: bool,
        classes: int,
        seed: int,
        device: torch.device,
        autocast: bool,
        ranks: Ranks,
    ) -> None:
        self.name, self.weight, self.settings, self.seed = name, weight, settings, seed
        self.sees_disparity, self.ranks = sees_disparity, ranks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.key(seed, f"{name} discriminator"))
            self.discriminator = Discriminator(
                size_px=settings.size_px,
                channels=4 if sees_disparity else 3,
                base_channels=settings.base_channels,
                max_channels=settings.max_channels,
                minibatch_group=settings.minibatch_group,
                classes=classes,
            ).to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=settings.learning_rate, betas=_BETAS, fused=True
        )
        objective = DiscriminatorObjective(
            self.discriminator, r1=settings.r1, r1_every_steps=settings.r1_every_steps, autocast=autocast
        )
        self.forward = shared(objective, ranks)
        self.adaptive = AdaptiveState()
        self.penalty = 0.0

    def generator_loss(self, views: AdversarialViews) -> Tensor:
        """What the renderer of `views` loses, unweighted; gradients go to the views alone."""
        # Detached parameters: no hook, gradient or flag of this discriminator's own training is touched.
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        images = self._shown(self._pair(views).fake, views, "fake")
        return generator_loss(functional_call(self.discriminator, frozen, (images, views.index, views.class_index)))

    def compute_gradients(self, micro_batches: Sequence[AdversarialViews], *, with_r1: bool) -> dict[str, float]:
        """Gradients of the mean loss over micro-batches; figures over micro-batches and ranks.

        Args:
            micro_batches: This rank's detached views.
            with_r1: Whether this is a step with R1.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for position, views in enumerate(micro_batches):
            pair = self._pair(views)
            with torch.no_grad():
                real, fake = self._shown(pair.real, views, "real"), self._shown(pair.fake, views, "fake")
            with waiting(self.forward, position < len(micro_batches) - 1):
                loss, figures = self.forward(real, fake, views.index, views.class_index, with_r1)
                (loss / len(micro_batches)).backward()
            parts.append(figures)
        mean = torch.stack([torch.stack([part[name] for part in parts]).mean() for name in parts[0]])
        # Infinity only measures. The gradient is the same on all ranks already, so its norm needs no sum.
        norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), math.inf)
        values = torch.cat([self.ranks.mean(mean), norm.reshape(1).to(mean)]).tolist()
        return dict(zip([*parts[0], "gradient_norm"], values, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step depends on, by flat names."""
        weights = {f"weights/{name}": value.detach() for name, value in self.discriminator.state_dict().items()}
        moments = optimizer_tensors(self.optimizer, self.discriminator)
        scalars = torch.tensor([*self.adaptive, self.penalty], dtype=torch.float64)
        return {**weights, **{f"optimizer/{name}": value for name, value in moments.items()}, "scalars": scalars}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises `KeyError` or `ValueError` for those of another discriminator."""
        weights = below("weights/", tensors)
        shapes = {name: value.shape for name, value in self.discriminator.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise ValueError(f"the discriminator of {self.name} views has another shape")
        self.discriminator.load_state_dict(weights)
        restore_optimizer(self.optimizer, self.discriminator, below("optimizer/", tensors))
        probability, sign, self.penalty = tensors["scalars"].tolist()
        self.adaptive = AdaptiveState(probability, sign)

    def _pair(self, views: AdversarialViews) -> Compared:
        pair = views.main if self.name == "main" else views.novel
        assert pair is not None, f"no {self.name} views were rendered for their discriminator"
        return pair

    def _shown(self, view: View, views: AdversarialViews, purpose: str) -> Tensor:
        """A view as this discriminator sees it, `[B, C, h, w]`, augmented."""
        images = view.rgb.float()
        if self.sees_disparity:
            # Without a label there is no real disparity to compare with: both sides then show the middle.
            s = torch.where(views.labelled[:, None, None], 2.0 * view.s.float() - 1.0, 0.0)
            images = torch.cat([images, s[:, None]], 1)
        kind = self.settings.augmentation
        probability = {"none": 0.0, "differentiable": 1.0, "adaptive": self.adaptive.probability}[kind]
        return augment(images, views.index, probability, seed=self.seed, purpose=f"{self.name} {purpose}")


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
