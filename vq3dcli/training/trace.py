"""What a training step takes, by running the very step on fake tensors: shapes and types without numbers.

Every operation is timed by a `Processor`: its multiplications, or else the bytes that it reads and writes. What lives
at a time is what storages are alive, as autograd keeps them; the real step allocates the same ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from vq3dcli.config.schema import ScheduleSection, Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.data.token_store import TokenBatch
from vq3dcli.data.views import Views, novel_poses
from vq3dcli.losses.depth import LABEL_METRIC
from vq3dcli.model.build import build_autoencoder, build_prior
from vq3dcli.model.vit import as_on_gpus
from vq3dcli.training import stage1, stage2
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.devices import Processor
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.finetune import freeze_codes
from vq3dcli.training.objective import Stage1Objective
from vq3dcli.training.optim import build_optimizer
from vq3dcli.training.state import RunState

_aten = torch.ops.aten
_CPU = torch.device("cpu")
# Operations and kept bytes a pixel of one pass of a perceptual trunk at 64 x 64, and parameters, as PyTorch counts them
# (a test compares): a plan needs none of the packages that have them. AlexNet, whose strides waste a border, takes a
# third less at 32 pixels and a quarter more at 128.
PERCEPTUAL = {
    "none": (0.0, 0.0, 0),
    "lpips-vgg": (611_712.0, 1940.0, 14_714_688),
    "lpips-alex": (19_298.0, 89.0, 2_469_696),
    "efficientnet-lite0": (11_785.0, 2200.0, 777_376),
}
_LITE0_LEAST_PX = 64  # it enlarges smaller images
# A kept number is written, read by the next operation and again in the backward pass, where its gradient is written and
# read; two more for the photo's pass, which keeps nothing.
_PERCEPTUAL_PASSES = 7
# The blocks of a transformer are alike: where there are more, those of a few are traced.
_MOST_LAYERS, _FEW_LAYERS = 12, 2
_MOST_IMAGES = 64  # of a prior; more cost in proportion
AnyRecipe = TypeVar("AnyRecipe", Stage1Recipe, Stage2Recipe)


class Work(NamedTuple):
    """Of one processor in one step of one micro-batch; sums and multiples of it are taken by part."""

    seconds: float = 0.0  # of the step, its update aside
    multiplying: float = 0.0  # of these, in matrix products and convolutions
    flops: float = 0.0  # their operations, two a multiply-add
    update: float = 0.0  # seconds of optimizer and moving average
    update_multiplying: float = 0.0  # of these, in matrix products
    kept: float = 0.0  # bytes that live when the backward pass begins
    extra: float = 0.0  # bytes beside these at the worst moment; gradients of weights count in neither
    # of the seconds, what operations take beyond their arithmetic and their bytes, being too small
    waiting: float = 0.0

    def plus(self, other: Work, factor: float = 1.0) -> Work:
        """Part by part, the other times a factor."""
        return Work(*(a + factor * b for a, b in zip(self, other, strict=True)))


class Tracer(TorchDispatchMode):
    """Counts what runs under it. Questions about numbers, which are not there, are answered with 0, False or `true`."""

    def __init__(self, processor: Processor, true: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.processor = processor
        self.seconds = self.multiplying = self.flops = self.waiting = 0.0
        self._forward_events = 0
        self._true = {_key(tensor) for tensor in true}
        self._events: list[tuple[int, int]] = []
        self._living: dict[int, tuple[int, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count one operation."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return _key(args[0]) in self._true if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0
        if func is _aten.bincount.default:  # its length depends on numbers, but for the least one
            return args[0].new_empty(args[2] if len(args) > 2 else kwargs["minlength"])
        out = func(*args, **kwargs)
        before = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        after = [value for value in tree_iter(out) if isinstance(value, Tensor)]
        old = {_key(tensor) for tensor in before}
        new = [tensor for tensor in after if _key(tensor) not in old]
        if new or any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            self._time(func, args, kwargs, out, before, after)
        for tensor in new:
            self._follow(tensor.untyped_storage())
        return out

    def _time(self, func: Any, args: Any, kwargs: Any, out: Any, before: list[Tensor], after: list[Tensor]) -> None:
        formula = _FLOPS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if formula is None:
            moved = sum(min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in (*before, *after))
            self._take(moved / self.processor.bytes_per_second)
            return
        flops = formula(*args, **kwargs, out_val=out)
        speed = self.processor.flops_per_second
        if before[0].dtype == torch.float32:
            speed = self.processor.flops_per_second_float32
        self.flops += flops
        self.multiplying += self._take(flops / speed)

    def _take(self, seconds: float) -> float:
        longer = max(seconds, self.processor.seconds_per_operation)
        self.seconds, self.waiting = self.seconds + longer, self.waiting + longer - seconds
        return longer

    def begin_backward(self) -> None:
        """From here on the backward pass runs."""
        self._forward_events = len(self._events)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, number = storage._cdata, len(self._events)
        if key in self._living:
            return
        size = storage.nbytes()

        def forget(_: object) -> None:
            del self._living[key]
            self._events.append((number, -size))

        self._events.append((number, size))
        self._living[key] = (number, weakref.ref(storage, forget))

    def most_bytes(self, aside: Iterable[Tensor]) -> tuple[int, int]:
        """Bytes that lived when the backward pass began, and the most at any time, without some that still live."""
        without = {self._living[_key(t)][0] for t in aside if _key(t) in self._living}
        now = kept = most = 0
        for position, (number, size) in enumerate(self._events):
            now += 0 if number in without else size
            most = max(most, now)
            kept = now if position < self._forward_events else kept
        return kept, most


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * query.numel() // query.shape[-1] * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward_flops(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> float:
    return 2.5 * _attention_flops(query, key, value)


def _convolution_backward_flops(grad: Tensor, _: Tensor, weight: Tensor, *more: Any, **__: Any) -> float:
    """PyTorch's own formula takes grouped ones for dense ones."""
    return 2.0 * grad.numel() * weight[0].numel() * sum(more[7][:2])


_FLOPS: dict[Any, Callable[..., float]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    _aten.convolution_backward: _convolution_backward_flops,
}


@contextmanager
def _faking(processor: Processor) -> Iterator[None]:
    """Where tensors are fake and on a CPU, since autograd knows no fake GPU without a driver."""
    with FakeTensorMode(), as_on_gpus(processor.kind != "cpu"):
        yield


def _traced(
    processor: Processor,
    state: RunState[Any],
    objective: nn.Module,
    step: Callable[[], object],
    schedule: ScheduleSection,
    true: Iterable[Tensor] = (),
) -> Work:
    """Run a step, then its updates alone: optimizers and moving average."""
    trained = {state.optimizer: state.model}
    if state.adversary is not None:
        trained |= {each.optimizer: each.discriminator for each in state.adversary.discriminators}
    with Tracer(processor, true) as whole:
        objective.register_forward_hook(lambda *_: whole.begin_backward())
        step()
    with Tracer(processor, true) as update:
        for optimizer in trained:
            optimizer.step()
        state.update_average(schedule)
    aside = [p.grad for module in trained.values() for p in module.parameters() if p.grad is not None]
    for optimizer in trained:
        aside += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    kept, most = whole.most_bytes(aside)
    return Work(
        whole.seconds - update.seconds,
        whole.multiplying - update.multiplying,
        whole.flops - update.flops,
        update.seconds,
        update.multiplying,
        kept,
        most - kept,
        whole.waiting - update.waiting,
    )


def _layered(recipe: AnyRecipe, trace: Callable[[AnyRecipe], Work]) -> Work:
    """Of a model of many layers by the difference that a layer makes."""

    def of(**layers: int) -> Work:
        return trace(recipe.model_copy(update={"model": recipe.model.model_copy(update=layers)}))

    names = ("encoder_layers", "decoder_layers", "layers")
    more = {name: getattr(recipe.model, name, 0) - _FEW_LAYERS for name in names}
    short = {name: _FEW_LAYERS for name in names if more[name] > _MOST_LAYERS - _FEW_LAYERS}
    few = work = of(**short)
    for name in short:
        work = work.plus(few.plus(of(**{**short, name: _FEW_LAYERS - 1}), -1.0), more[name])
    return work


def of_one_processor(recipe: AnyRecipe, processor: Processor, micro_batch: int) -> AnyRecipe:
    """The recipe of one processor that takes a step of one micro-batch."""
    precision = str(processor.dtype).removeprefix("torch.")
    changed = {"batch_size": micro_batch, "accumulate": 1, "precision": precision}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changed)})


class _AllViews(Views):
    """A view of each image, where no number says of which."""

    def of_rows(self, start: int, stop: int) -> Views:
        """All of them: there is one micro-batch."""
        return self

    def to(self, device: torch.device) -> Views:
        """They are there."""
        return self


class _NoPerceptual(nn.Module):
    """Stands where the perceptual network would; `_perceptual_work` has what that one takes."""

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Some distance `[B]`."""
        return (images - targets).mean((1, 2, 3))


def stage1_work(recipe: Stage1Recipe, processor: Processor, micro_batch: int, *, started: bool, classes: int) -> Work:
    """A step of Stage 1, before or after the discriminators' start, each image with a novel view where any counts.

    `micro_batch` images, of adversarial recipes a multiple of the minibatch group; `classes` are those of the data.
    """
    # R1's second derivative takes PyTorch a thousand operations: `plan` adds a share for it.
    off = {"r1": 0.0} if started else {"main": 0.0, "novel": 0.0}
    recipe = recipe.model_copy(update={"adversarial": recipe.adversarial.model_copy(update=off)})
    recipe = of_one_processor(recipe, processor, micro_batch)
    work = _layered(recipe, lambda short: _stage1_step(short, processor, max(classes, 1)))
    return work.plus(_perceptual_work(recipe, processor), micro_batch)


def _stage1_step(recipe: Stage1Recipe, processor: Processor, classes: int) -> Work:
    schedule, size_px, count = recipe.training, recipe.model.image_size, recipe.training.batch_size
    with _faking(processor):
        with Tracer(processor):
            model = build_autoencoder(recipe)
            adversary = Adversary(recipe, classes=classes)
            index = torch.arange(count)
            poses = novel_poses(0, "", index, 1)[:, 0]
        true = [model.quantizer.active, model.quantizer.statistics_seen]
        if schedule.freeze_codes:
            with Tracer(processor, true):
                freeze_codes(model)
        if schedule.checkpoint_activations:
            model.checkpoint_activations()
        # The average moves towards itself: a second model would cost as much, and take long to make.
        state = RunState(model, model, build_optimizer(model, schedule), adversary, recipe.adversarial.start_images)
        network = _NoPerceptual() if recipe.loss.any_perceptual else None
        objective = Stage1Objective(model, recipe, adversary, network)  # type: ignore[arg-type]
        image = torch.zeros(count, 3, size_px, size_px, dtype=torch.uint8)
        s = torch.zeros(count, size_px, size_px)
        kinds = torch.full((count,), LABEL_METRIC, dtype=torch.int8)
        views = _AllViews(image, s, poses, index) if recipe.loss.novel else None
        batch = Batch(image, s, kinds, index % classes, index, [], views)
        return _traced(
            processor,
            state,
            objective,
            lambda: stage1.take_step(recipe, state, objective, batch, device=_CPU, ranks=Ranks()),
            schedule,
            true,
        )


def _perceptual_work(recipe: Stage1Recipe, processor: Processor) -> Work:
    """The frozen network on squares of an image, in float32; gradients for the rendered one alone."""
    loss = recipe.loss
    flops, kept, _ = PERCEPTUAL[loss.perceptual_network]
    side = loss.perceptual_patch_px
    if loss.perceptual_network == "efficientnet-lite0":
        side = max(side, _LITE0_LEAST_PX)
    pixels = side**2 * ((loss.perceptual > 0) + (loss.novel_perceptual > 0))
    multiplying = 3.0 * flops * pixels / processor.flops_per_second_float32
    seconds = multiplying + _PERCEPTUAL_PASSES * kept * pixels / processor.bytes_per_second
    return Work(seconds, multiplying, 3.0 * flops * pixels, kept=kept * pixels)


def prior_work(
    recipe: Stage2Recipe, processor: Processor, micro_batch: int, *, length: int, codebook_size: int, classes: int
) -> Work:
    """A step of Stage 2 over `length` codes of `codebook_size` an image."""
    count = min(micro_batch, _MOST_IMAGES)

    def step_of(recipe: Stage2Recipe) -> Work:
        schedule = recipe.training
        with _faking(processor):
            with Tracer(processor):
                model = build_prior(recipe, codebook_size=codebook_size, length=length, classes=classes)
            model.checkpoint_activations = schedule.checkpoint_activations
            state = RunState(model, model, build_optimizer(model, schedule))
            objective = stage2.PriorObjective(model, class_dropout=schedule.class_dropout, seed=schedule.seed)
            index = torch.zeros(count, dtype=torch.int64)
            batch = TokenBatch(torch.zeros(count, length, dtype=torch.int64), index, index)
            return _traced(
                processor,
                state,
                objective,
                lambda: stage2.take_step(recipe, state, objective, batch, device=_CPU, ranks=Ranks()),
                schedule,
            )

    work, share = _layered(of_one_processor(recipe, processor, count), step_of), micro_batch / count
    return Work(*(share * part for part in work))._replace(
        update=work.update, update_multiplying=work.update_multiplying
    )
