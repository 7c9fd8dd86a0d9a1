"""The discriminators of Stage 1: one for main views, one for novel views, each with its own optimizer.

```
generator step:      views -> frozen discriminators -> loss, ramped up      (inside the autoencoder's objective)
discriminator step:  detached views -> losses, lazy R1 -> two optimizers    (before the autoencoder's update)
```

Nothing depends on rank or batch order but rounding: randomness by sample index, minibatch groups of neighbouring
indices, gradients averaged by DistributedDataParallel.

Legend: B images, C 3 for rgb or 4 with disparity, h = w size_px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vq3dcli import seeding
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DivergedError, RecipeError
from vq3dcli.losses.adversarial import discriminator_loss, generator_loss, r1_loss, r1_penalty, score_figures
from vq3dcli.losses.augmentation import AdaptiveState, augment, update_probability
from vq3dcli.model.discriminator import Discriminator
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.distributed import Ranks, shared, without_exchange
from vq3dcli.training.optim import optimizer_tensors, restore_optimizer, set_learning_rate
from vq3dcli.training.views import AdversarialViews, Compared, View

# No momentum, as in StyleGAN2: the generator moves too, and old gradients point to where it was.
_BETAS = (0.0, 0.99)
# Adaptive augmentation goes from 0 to 1 in 500,000 images (Karras et al., NeurIPS 2020), in short runs in this share
# of what the discriminators will see.
_IMAGES_TO_FULL = 500_000
_SHARE_TO_FULL = 0.1


class DiscriminatorObjective(nn.Module):
    """The loss of one discriminator; a module, so that DistributedDataParallel can wrap the whole of it."""

    def __init__(self, discriminator: Discriminator, *, r1: float, r1_every_steps: int, autocast: bool) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.r1, self.r1_every_steps, self.autocast = r1, r1_every_steps, autocast

    def forward(
        self, real: Tensor, fake: Tensor, index: Tensor, class_index: Tensor, with_r1: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of views `[B, C, h, w]`, and figures: detached scalars by name, `r1` where it was computed."""
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

    `name` is that of its views: "main" or "novel".
    """

    def __init__(self, name: str, recipe: Stage1Recipe, *, classes: int, device: torch.device, ranks: Ranks) -> None:
        settings = recipe.adversarial
        self.name, self.settings, self.seed, self.ranks = name, settings, recipe.training.seed, ranks
        self.weight: float = getattr(settings, name)
        self.sees_disparity = name == "novel" and settings.novel_sees_disparity
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.key(self.seed, f"{name} discriminator"))
            discriminator = Discriminator(
                size_px=settings.size_px,
                channels=4 if self.sees_disparity else 3,
                base_channels=settings.base_channels,
                max_channels=settings.max_channels,
                minibatch_group=settings.minibatch_group,
                classes=classes,
            )
        # Fake tensors, of which a plan is made on the CPU, cannot be moved.
        self.discriminator = discriminator if device.type == "cpu" else discriminator.to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=settings.learning_rate, betas=_BETAS, fused=True
        )
        objective = DiscriminatorObjective(
            self.discriminator,
            r1=settings.r1,
            r1_every_steps=settings.r1_every_steps,
            autocast=resolve_precision(recipe.training.precision, device) == torch.bfloat16,
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
        """Gradients of the mean loss over micro-batches of this rank; figures over micro-batches and ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for position, views in enumerate(micro_batches):
            pair = self._pair(views)
            with torch.no_grad():
                real, fake = self._shown(pair.real, views, "real"), self._shown(pair.fake, views, "fake")
            with without_exchange(self.forward, position < len(micro_batches) - 1):
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
        weights = {f"{self.name}/weights/{name}": value for name, value in self.discriminator.state_dict().items()}
        moments = optimizer_tensors(self.optimizer, self.discriminator).items()
        scalars = torch.tensor([*self.adaptive, self.penalty], dtype=torch.float64)
        return {
            **weights,
            **{f"{self.name}/optimizer/{name}": value for name, value in moments},
            f"{self.name}/scalars": scalars,
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises `KeyError` or `ValueError` for those of another discriminator."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        weights = under(f"{self.name}/weights/")
        shapes = {name: value.shape for name, value in self.discriminator.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise ValueError(f"the discriminator of {self.name} views has another shape")
        self.discriminator.load_state_dict(weights)
        restore_optimizer(self.optimizer, self.discriminator, under(f"{self.name}/optimizer/"))
        probability, sign, self.penalty = tensors[f"{self.name}/scalars"].tolist()
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


class Adversary:
    """Both discriminators of a run, as far as their weights in the recipe are above 0.

    Raises `RecipeError`: minibatch groups that ranks would cut, or class-conditional discriminators without `classes`.
    """

    def __init__(
        self, recipe: Stage1Recipe, *, classes: int = 0, device: torch.device | None = None, ranks: Ranks | None = None
    ) -> None:
        settings, schedule = recipe.adversarial, recipe.training
        ranks, device = ranks or Ranks(), device or torch.device("cpu")
        self.settings, self.images_per_step = settings, schedule.batch_size
        self._images_to_full = min(_IMAGES_TO_FULL, _SHARE_TO_FULL * max(schedule.images - settings.start_images, 1))
        self.discriminators: list[TrainedDiscriminator] = []
        if not settings.on:
            return
        group, micro_batch = settings.minibatch_group, schedule.batch_size // schedule.accumulate // ranks.world_size
        if micro_batch % group:
            raise RecipeError(
                f"adversarial.minibatch_group ({group}) does not divide the {micro_batch} images of a rank's "
                "micro-batch",
                remedy=f"--set adversarial.minibatch_group={math.gcd(group, micro_batch)}",
            )
        if settings.class_conditional and classes == 0:
            raise RecipeError(
                "adversarial.class_conditional needs classes, and the data have none",
                remedy="--set adversarial.class_conditional=false",
            )
        classes = classes if settings.class_conditional else 0
        self.discriminators = [
            TrainedDiscriminator(name, recipe, classes=classes, device=device, ranks=ranks)
            for name in ("main", "novel")
            if getattr(settings, name) > 0
        ]

    def started(self, images_seen: int) -> bool:
        """Whether the step at `images_seen` has adversarial views."""
        return bool(self.discriminators) and images_seen >= self.settings.start_images

    def ramp(self, images_seen: int) -> float:
        """The factor on the generator's losses, 0 to 1: discriminators learn a little before they are listened to."""
        since = images_seen - self.settings.start_images
        if since < 0:
            return 0.0
        return min(since / self.settings.ramp_images, 1.0) if self.settings.ramp_images else 1.0

    def generator_loss(self, views: AdversarialViews, images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What the autoencoder's loss gains by views with graphs, weighted and ramped.

        Also its unweighted terms by name, detached scalars.
        """
        total = torch.zeros((), device=views.index.device)
        terms: dict[str, Tensor] = {}
        for each in self.discriminators:
            term = each.generator_loss(views)
            terms[f"adversarial_{each.name}"] = term.detach()
            total = total + self.ramp(images_seen) * each.weight * term
        return total, terms

    def update(
        self, micro_batches: Sequence[AdversarialViews], images_seen: int, *, learning_rate_factor: float = 1.0
    ) -> dict[str, float]:
        """One step of both discriminators, by this rank's detached views of the step.

        `images_seen`, before the step, decides whether R1 is due; `learning_rate_factor` shares the autoencoder's
        schedule.

        Returns:
            Figures over all ranks, `adversarial_{main,novel}_{figure}`: `discriminator_loss`, `real_score`,
            `fake_score`, `accuracy`, `sign` (r_t), `r1` (the last penalty), `probability` (of adaptive augmentation)
            and `gradient_norm`.

        Raises `DivergedError`: a loss or gradient is not finite, on every rank; neither discriminator was changed.
        """
        with_r1 = self.settings.r1 > 0 and (images_seen // self.images_per_step) % self.settings.r1_every_steps == 0
        steps = [(each, each.compute_gradients(micro_batches, with_r1=with_r1)) for each in self.discriminators]
        for each, figures in steps:
            if not all(math.isfinite(value) for value in figures.values()):
                raise DivergedError(
                    f"the discriminator of {each.name} views has the loss {figures['discriminator_loss']} and the "
                    f"gradient norm {figures['gradient_norm']} at {images_seen} images; it was not changed",
                    remedy="the same command with --set of a lower adversarial.learning_rate or a larger "
                    "adversarial.r1",
                )
        record: dict[str, float] = {}
        for each, figures in steps:
            set_learning_rate(each.optimizer, self.settings.learning_rate * learning_rate_factor)
            each.optimizer.step()
            each.penalty = figures.setdefault("r1", each.penalty)
            if self.settings.augmentation == "adaptive":
                each.adaptive = update_probability(
                    each.adaptive,
                    figures["sign"],
                    target=self.settings.adaptive_target,
                    images=self.images_per_step,
                    images_to_full=self._images_to_full,
                )
            figures["probability"] = each.adaptive.probability
            record |= {f"adversarial_{each.name}_{name}": value for name, value in figures.items()}
        return record

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step depends on, as flat named tensors, for a checkpoint."""
        return {name: value for each in self.discriminators for name, value in each.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises `KeyError` or `ValueError` for tensors of other discriminators."""
        for each in self.discriminators:
            each.restore(tensors)
