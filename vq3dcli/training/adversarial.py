"""The discriminators' side of Stage 1: one for main views, one for novel views, each with its own optimizer.

```
generator step:      views -> frozen discriminators -> loss, ramped up      (inside the autoencoder's objective)
discriminator step:  detached views -> losses, lazy R1 -> two optimizers    (before the autoencoder's update)
```

Nothing depends on rank or batch order but rounding: randomness by sample index, minibatch groups of neighbouring
indices, gradients averaged by DistributedDataParallel. `tensors` and `restore` continue a run to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DivergedError, RecipeError
from vq3dcli.losses.augmentation import update_probability
from vq3dcli.training.arithmetic import resolve_precision
from vq3dcli.training.discriminator import TrainedDiscriminator, below
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.optim import set_learning_rate
from vq3dcli.training.views import AdversarialViews

# Adaptive augmentation goes from 0 to 1 in 500,000 images (Karras et al., NeurIPS 2020), in short runs in this share
# of what the discriminators will see.
_IMAGES_TO_FULL = 500_000
_SHARE_TO_FULL = 0.1


class Adversary:
    """Both discriminators of a run, as far as their weights in the recipe are above 0.

    Args:
        recipe: Its section `adversarial`, batch size, precision and seed.
        classes: Classes of the data; used by a class-conditional game only.
        device: Where to compute; the CPU by default.
        ranks: This process among those of the run; alone by default.

    Raises:
        RecipeError: Minibatch groups that ranks would cut, or a class-conditional game without classes.
    """

    def __init__(
        self,
        recipe: Stage1Recipe,
        *,
        classes: int = 0,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        settings, schedule = recipe.adversarial, recipe.training
        ranks, device = ranks or Ranks(), device or torch.device("cpu")
        self.settings, self.images_per_step = settings, schedule.batch_size
        self._images_to_full = min(_IMAGES_TO_FULL, _SHARE_TO_FULL * max(schedule.images - settings.start_images, 1))
        self.discriminators: list[TrainedDiscriminator] = []
        if not settings.on:
            return
        _require_whole_groups(settings.minibatch_group, schedule.batch_size // schedule.accumulate // ranks.world_size)
        if settings.class_conditional and classes == 0:
            raise RecipeError(
                "adversarial.class_conditional needs classes, and the data have none",
                remedy="--set adversarial.class_conditional=false",
            )
        self.discriminators = [
            TrainedDiscriminator(
                name,
                weight,
                settings,
                sees_disparity=name == "novel" and settings.novel_sees_disparity,
                classes=classes if settings.class_conditional else 0,
                seed=schedule.seed,
                device=device,
                autocast=resolve_precision(schedule.precision, device) == torch.bfloat16,
                ranks=ranks,
            )
            for name, weight in (("main", settings.main), ("novel", settings.novel))
            if weight > 0
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
        """What the autoencoder's loss gains, weighted and ramped; its unweighted terms by name, detached scalars.

        Args:
            views: With graphs to the renderer.
            images_seen: Before the step.
        """
        total = torch.zeros((), device=views.index.device)
        terms: dict[str, Tensor] = {}
        for player in self.discriminators:
            term = player.generator_loss(views)
            terms[f"adversarial_{player.name}"] = term.detach()
            total = total + self.ramp(images_seen) * player.weight * term
        return total, terms

    def update(
        self, micro_batches: Sequence[AdversarialViews], images_seen: int, *, learning_rate_factor: float = 1.0
    ) -> dict[str, float]:
        """One step of both discriminators.

        Args:
            micro_batches: This rank's detached views of the step.
            images_seen: Before the step; decides whether R1 is due.
            learning_rate_factor: On `learning_rate`, for a schedule shared with the autoencoder.

        Returns:
            Figures over all ranks, `adversarial_{main,novel}_{figure}`: `discriminator_loss`, `real_score`,
            `fake_score`, `accuracy`, `sign` (r_t), `r1` (the last penalty), `probability` (of adaptive augmentation)
            and `gradient_norm`.

        Raises:
            DivergedError: A loss or gradient is not finite, on every rank; neither discriminator was changed.
        """
        with_r1 = self.settings.r1 > 0 and (images_seen // self.images_per_step) % self.settings.r1_every_steps == 0
        steps = [(player, player.compute_gradients(micro_batches, with_r1=with_r1)) for player in self.discriminators]
        for player, figures in steps:
            if not all(math.isfinite(value) for value in figures.values()):
                raise DivergedError(
                    f"the discriminator of {player.name} views has the loss {figures['discriminator_loss']} and the "
                    f"gradient norm {figures['gradient_norm']} at {images_seen} images; it was not changed",
                    remedy="the same command with --set of a lower adversarial.learning_rate or a larger "
                    "adversarial.r1",
                )
        record: dict[str, float] = {}
        for player, figures in steps:
            set_learning_rate(player.optimizer, self.settings.learning_rate * learning_rate_factor)
            player.optimizer.step()
            player.penalty = figures.setdefault("r1", player.penalty)
            if self.settings.augmentation == "adaptive":
                player.adaptive = update_probability(
                    player.adaptive,
                    figures["sign"],
                    target=self.settings.adaptive_target,
                    images=self.images_per_step,
                    images_to_full=self._images_to_full,
                )
            figures["probability"] = player.adaptive.probability
            record |= {f"adversarial_{player.name}_{name}": value for name, value in figures.items()}
        return record

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step depends on, as flat named tensors, for a checkpoint."""
        return {
            f"{player.name}/{name}": value.contiguous()
            for player in self.discriminators
            for name, value in player.tensors().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises `KeyError` or `ValueError` for tensors of other discriminators."""
        for player in self.discriminators:
            player.restore(below(f"{player.name}/", tensors))


def _require_whole_groups(group: int, micro_batch: int) -> None:
    if micro_batch % group:
        raise RecipeError(
            f"adversarial.minibatch_group ({group}) does not divide the {micro_batch} images of a rank's micro-batch",
            remedy=f"--set adversarial.minibatch_group={math.gcd(group, micro_batch)}",
        )
