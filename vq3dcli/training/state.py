"""The state of a run of any kind: all that a step depends on and a checkpoint holds.

Whatever else a step depends on is a function of (seed, purpose, sample index), so that a run continues to the bit.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vq3dcli.config.schema import Recipe, RunSection, ScheduleSection
from vq3dcli.errors import DataError, DivergedError
from vq3dcli.tensor_file import check_tensors
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.optim import build_optimizer, optimizer_tensors, restore_optimizer
from vq3dcli.training.run_folder import CALMER, Checkpoint
from vq3dcli.training.sharding import gathered, is_sharded, load, local, spread

# So many samples of a rank are named where a step cannot be taken.
_NAMED = 8
# Early in a run the half-life of the average is this fraction of the images seen: it forgets the random start.
_RAMP_UP = 0.05

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class RunState(Generic[Model]):
    """All that a step depends on, and a checkpoint holds."""

    model: Model  # what is trained
    average: Model  # its moving average, which is exported
    optimizer: Optimizer  # of the model
    adversary: Adversary | None = None  # the discriminators, with their optimizers; Stage 1 alone has them
    images_seen: int = 0  # images seen so far
    chroma: float = 0.0  # running mean of the reconstructions' share of their targets' colourfulness, in Stage 1
    skipped_steps: int = 0  # steps that were passed over because something was not finite
    skipped_in_a_row: int = 0  # since the last step that was taken
    init_sha256: str = ""  # hash of the weights that the run started from; empty for a random start
    init_ancestors: tuple[str, ...] = ()  # hashes of those that they started from, the nearest first
    # hashes of the weights whose codes mean the same in those that the run started from
    init_codes_of: tuple[str, ...] = ()
    hollow: Model | None = None  # the model without memory for its parameters, where ranks share them

    def parts(self, *, keep: bool = True) -> dict[str, Mapping[str, Tensor]]:
        """The tensors of a checkpoint; on all ranks, and those that do not `keep` them may get none."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "weights": gathered(self.model.state_dict(), keep=keep),
            "average": gathered(self.average.state_dict(), keep=keep),
            "optimizer": optimizer_tensors(self.optimizer, self.model, keep=keep),
        }
        if self.adversary is not None and self.adversary.discriminators:
            parts["adversarial"] = self.adversary.tensors()
        return parts

    def manifest(self, recipe: Recipe) -> dict[str, Any]:
        """The JSON values of a checkpoint."""
        return {
            **{name: getattr(self, name) for name in self._recorded()},
            "recipe": recipe.model_dump(mode="json"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue at a checkpoint, in place. Raises `DataError` where it is of another model, or misses something."""
        folder, parts, manifest = checkpoint
        misfit = f"the checkpoint does not fit this model ({folder})"
        for name, module in (("weights", self.model), ("average", self.average)):
            tensors = parts.get(name, {})
            check_tensors(misfit, module.state_dict(), tensors)
            load(module, tensors)
        try:
            restore_optimizer(self.optimizer, self.model, parts["optimizer"])
            if self.adversary is not None and self.adversary.discriminators:
                self.adversary.restore(parts["adversarial"])
            for name, kind in self._recorded().items():
                setattr(self, name, kind(manifest[name]))
        except (KeyError, ValueError, TypeError) as error:
            remedy = "the version of vq3d that wrote it, or another --out"
            raise DataError(f"{misfit}: {error}", remedy=remedy) from error

    def _recorded(self) -> dict[str, Callable[[Any], Any]]:
        """What a manifest says, by name, and its kinds; some of it of Stage 1 alone."""
        of_all = {"images_seen": int, "skipped_steps": int, "skipped_in_a_row": int, "init_sha256": str}
        of_stage1 = {"chroma": float, "init_ancestors": tuple, "init_codes_of": tuple}
        return {**of_all, **(of_stage1 if self.adversary is not None else {})}

    def whole_average(self, device: torch.device, *, keep: bool) -> Model:
        """The average, for one rank alone to use; on all ranks, and those that do not `keep` it may get a slice."""
        tensors = {} if self.hollow is None else gathered(self.average.state_dict(), keep=keep)
        if self.hollow is None or not keep:
            return self.average
        model = copy.deepcopy(self.hollow)
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def update_average(self, schedule: RunSection) -> None:
        """Move the average towards the model, its half-life in images (Karras et al., CVPR 2024); buffers are copied.

        Buffers are statistics already.
        """
        half_life = min(schedule.ema_half_life_images, self.images_seen * _RAMP_UP)
        keep = 0.5 ** (schedule.batch_size / max(half_life, 1e-8))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        # Those that are frozen are equal.
        moving = [(local(old.detach()), local(new.detach())) for old, new in pairs if new.requires_grad]
        torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], 1.0 - keep)
        torch._foreach_copy_(list(self.average.buffers()), list(self.model.buffers()))


def new_state(
    model: Model, schedule: ScheduleSection, ranks: Ranks, device: torch.device, **more: Any
) -> RunState[Model]:
    """The state of a new run of a model on the CPU, which goes to `device`; `more` is for `build_optimizer`."""
    hollow = None
    if is_sharded(schedule.shard, model, ranks.world_size):
        without: dict[int, object] = {
            id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in model.parameters()
        }
        hollow, average = copy.deepcopy(model, without), average_of(model)
        for each in (model, average):
            spread(each, ranks.world_size, device)
    else:
        average = average_of(model.to(device))
    return RunState(model, average, build_optimizer(model, schedule, **more), hollow=hollow)


def average_of(model: Model) -> Model:
    """A copy of a model that holds its moving average; never trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def require_finite(loss: Tensor, gradient_norm: Tensor, samples: Sequence[str], images_seen: int, ranks: Ranks) -> None:
    """Raise `DivergedError` on all ranks where the loss of one, or the gradient, is not finite.

    `samples` are the names of this rank's samples, `images_seen` is before the step.
    """
    finite = torch.isfinite(loss) & torch.isfinite(gradient_norm)
    if float(ranks.sum((~finite).float())) > 0:
        more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
        damaged = ranks.gather_texts("" if bool(finite) else ", ".join(samples[:_NAMED]) + more)
        names = "; ".join(text for text in damaged if text)
        raise DivergedError(
            f"the loss is {float(loss)} and the gradient norm {float(gradient_norm)} "
            f"at {images_seen} images (samples {names}); this step was not applied",
            remedy=CALMER,
        )
