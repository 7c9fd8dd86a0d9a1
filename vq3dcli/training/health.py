"""Health guards: figures of the metrics that leave their range, what that likely means and what helps.

`guards_of` is the table of a run's guards. A trainer observes its records as they come; a page, or a run that resumes,
does so again with `replay` and reaches the same state.

A guard speaks once, when its figure has been out of range in so many consecutive records, and again only after the
figure has been back for as many. Records that lack the figure, or in which it says nothing yet, do not count.

The ranges leave room around what healthy runs of `toy-cpu` logged: chroma ratio from 0.45, perplexity above 0.1 of the
codes, relief above 0.5 soon after the warm-up, commitment above 0.007, gradient norms within 4 of their running mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from vq3dcli.config.schema import DepthRecipe, Recipe, RunSection, Stage1Recipe, Stage2Recipe

Record = Mapping[str, Any]

# The share of each new record in a guard's own past, see `Guard.relative`.
_PAST_MOMENTUM = 0.05
# A render whose disparity has less than this part of the truth's spread is a wall.
_FLAT = 0.15
# Before so many images no figure of geometry or codes says much, in however short a run.
_LEAST_IMAGES = 1000
# Relief, and floaters, settle later than colour: in this part of a run, and not before twice as many images.
_SETTLED = 0.25
_R1_FLOOR = 1 / 3  # an R1 penalty below 10, a slope of 3 logits a unit of image distance, is no explosion

# Likely cause, and what to try.
_HINTS = {
    "codebook collapse": (
        "a codebook of which few codes are used",
        "a lower loss.commitment, a later training.quantize_from_images, a smaller model.codebook_size",
    ),
    "grey collapse": (
        "an encoder that gives every patch the same few codes, for it had not learnt colour when quantisation began",
        "a later training.quantize_from_images, a lower loss.commitment",
    ),
    "grey pictures": (
        "colour that is not learnt yet, or lost: quantisation waits for it",
        "a higher training.learning_rate, model.auxiliary_head=true, more training.images",
    ),
    "no quantisation": (
        "colour that was not learnt by then, so that the codes would be untrained at the end",
        "an earlier training.quantize_from_images, more training.images",
    ),
    "flat geometry": (
        "a flat wall with the picture painted on it",
        "a higher loss.depth, model.space=frustum, another training.seed, and a look at the labels",
    ),
    "relief out of range": (
        "depth that is squeezed or exaggerated",
        "a higher loss.depth; loss.alignment_std where labels are relative",
    ),
    "floaters": (
        "density spread along rays instead of at surfaces",
        "a pointwise loss.depth_kind with depth labels, a higher loss.depth, more rendering.samples",
    ),
    "no novel views": (
        "data of which few samples have views, so that their losses train next to nothing",
        "prepare-data --views 1, or a higher --share of the folders that have them",
    ),
    "gradient explosion": (
        "a learning rate that is too high, or a loss that was just switched on",
        "a lower training.learning_rate, a longer training.warmup_images",
    ),
    "discriminator too strong": (
        "a difference that the generator cannot mend, or photos known by heart",
        "a higher adversarial.r1, a lower adversarial.learning_rate, adversarial.augmentation=adaptive",
    ),
    "discriminator too weak": (
        "a discriminator that cannot tell real from fake, and so teaches nothing",
        "a lower adversarial.r1, a higher adversarial.learning_rate or adversarial.base_channels",
    ),
    "discriminator scores exploding": (
        "logits so large that nothing is left of the gradient",
        "a higher adversarial.r1, a lower adversarial.learning_rate",
    ),
    "discriminator penalty exploding": (
        "a discriminator that is about to diverge",
        "a lower adversarial.learning_rate or adversarial.r1_every_steps",
    ),
    "overfitting": (
        "a prior that learns its images by heart: held-out bits are far above those of training",
        "fewer training.images, a higher model.dropout, a smaller model.width, vq3d tokenize --views 2",
    ),
    "nothing learnt": (
        "a prior that predicts no better than the frequencies of codes do",
        "a higher training.learning_rate, more training.images, and a look at the tokens",
    ),
    "blind network": (
        "maps that do not follow the image: the loss is that of one map for all",
        "a higher training.learning_rate, fewer model.frozen_blocks, and a look at the labels",
    ),
}


@dataclass(frozen=True)
class Guard:
    """A figure, its range, and what to say when it leaves it."""

    name: str  # what is wrong, in a few words; unique among the guards of a run
    figure: str  # its key in the records; what a message calls it where `measure` is given
    cause: str  # the likely cause
    remedy: str  # what to try
    low: float = -math.inf  # least healthy value
    high: float = math.inf  # greatest healthy value
    records: int = 3  # consecutive records out of range before it speaks, and in range before it has recovered
    from_images: int = 0  # not evaluated before so many images
    relative: bool = False  # the range is of the ratio to the figure's own past, a geometric running mean
    # the figure of a record, None where the record says nothing; by default the number under its key
    measure: Callable[[Record], float | None] | None = None


class Finding(NamedTuple):
    """A guard's figure left its range, or came back (`recovered`); of a relative guard `value` is the ratio."""

    guard: Guard
    images_seen: int
    value: float
    recovered: bool = False

    def line(self) -> str:
        """For a log: what, since when, the likely cause and the remedy."""
        guard = self.guard
        what = f"{guard.figure} {self.value:.3g}" + (" times its running mean" if guard.relative else "")
        if self.recovered:
            return f"{guard.name}: over at {self.images_seen} images ({what})"
        side, bound = ("below", guard.low) if self.value < guard.low else ("above", guard.high)
        return (
            f"{guard.name}: {what}, {side} {bound:.3g}, in {guard.records} records up to {self.images_seen} images; "
            f"likely {guard.cause}; try: {guard.remedy}"
        )


@dataclass
class _Memory:
    streak: int = 0  # consecutive records in the other state
    alarmed: bool = False  # whether the guard has spoken
    log_past: float | None = None  # of a relative one


@dataclass
class Health:
    """What is known of the guards of a run between two records; a new run starts with their names alone."""

    guards: Sequence[Guard]
    memories: dict[str, _Memory] = field(default_factory=dict)  # by the guard's name

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the guards that have spoken and not recovered, sorted."""
        return tuple(sorted(name for name, memory in self.memories.items() if memory.alarmed))

    def observe(self, record: Record) -> list[Finding]:
        """What there is to say at one more record; one without `images_seen` changes nothing."""
        images_seen = number(record, "images_seen")
        findings: list[Finding] = []
        if images_seen is None or not math.isfinite(images_seen):
            return findings
        for guard in self.guards:
            value = number(record, guard.figure) if guard.measure is None else guard.measure(record)
            if value is None:
                continue
            memory = self.memories.setdefault(guard.name, _Memory())
            if guard.relative:
                value = _over_past(value, memory, guard)
            if images_seen >= guard.from_images:
                changes = (guard.low <= value <= guard.high) == memory.alarmed
                memory.streak = memory.streak + 1 if changes else 0
                if memory.streak >= guard.records:
                    memory.streak, memory.alarmed = 0, not memory.alarmed
                    findings.append(Finding(guard, int(images_seen), value, recovered=not memory.alarmed))
        return findings


def guards_of(recipe: Recipe) -> tuple[Guard, ...]:
    """What a run with this recipe is watched for; guards of losses that it turns off are left out."""
    if isinstance(recipe, Stage1Recipe):
        return _stage1_guards(recipe)
    return _prior_guards(recipe) if isinstance(recipe, Stage2Recipe) else _depth_network_guards(recipe)


def replay(records: Iterable[Record], guards: Sequence[Guard]) -> tuple[Health, list[Finding]]:
    """The state after all records of a run, and what there was to say."""
    health = Health(guards)
    return health, [finding for record in records for finding in health.observe(record)]


def number(record: Record, name: str) -> float | None:
    """A figure of a record as a float; None where there is none. Truth counts as 0 and 1."""
    value = record.get(name)
    if not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits in a damaged file
        return None


def _over_past(value: float, memory: _Memory, guard: Guard) -> float:
    """The figure over the running mean of those in range; one that is not finite and positive leaves no trace."""
    if not (math.isfinite(value) and value > 0):
        return 1.0 if value == 0 else math.inf
    log_value = math.log(value)
    past = log_value if memory.log_past is None else memory.log_past
    ratio = math.exp(min(log_value - past, 700.0))  # exp overflows at 710
    # A past that followed what is out of range would soon call it normal.
    memory.log_past = past + _PAST_MOMENTUM * (log_value - past) if guard.low <= ratio <= guard.high else past
    return ratio


def _at_least(name: str, floor: float) -> Callable[[Record], float | None]:
    return lambda record: None if (value := number(record, name)) is None else max(value, floor)


def _while_quantizing(name: str) -> Callable[[Record], float | None]:
    return lambda record: number(record, name) if record.get("quantizing") is True else None


def _guard(name: str, figure: str, **bounds: Any) -> Guard:
    return Guard(name, figure, *_HINTS[name.removeprefix("main ").removeprefix("novel ")], **bounds)


def _gradient_guard(schedule: RunSection) -> Guard:
    name, measure = "gradient_norm", _at_least("gradient_norm", schedule.gradient_clip)
    bounds = {"high": 8.0, "relative": True, "from_images": schedule.warmup_images, "measure": measure}
    return _guard("gradient explosion", name, **bounds)


def _stage1_guards(recipe: Stage1Recipe) -> tuple[Guard, ...]:
    loss, schedule, model, adversarial = recipe.loss, recipe.training, recipe.model, recipe.adversarial
    few = 0.05 * min(model.codebook_size, schedule.batch_size * (model.image_size // model.patch) ** 2)
    quantized, warm = schedule.quantize_from_images, max(schedule.warmup_images, _LEAST_IMAGES)
    settled = max(round(_SETTLED * schedule.images), 2 * _LEAST_IMAGES)
    perplexity, commitment = _while_quantizing("perplexity"), _while_quantizing("commitment")
    # Its very first record is of a step before quantisation, and exactly 0.
    moved = lambda record: commitment(record) or None  # noqa: E731
    late = max(schedule.images // 2, quantized + schedule.batch_size)
    start = quantized + _LEAST_IMAGES
    gradient = _gradient_guard(schedule)
    gradient = replace(gradient, remedy=f"{gradient.remedy} or adversarial.ramp_images")
    guards = [
        _guard("codebook collapse", "perplexity", low=few, records=5, from_images=start, measure=perplexity),
        _guard("grey collapse", "commitment", low=0.003, from_images=quantized, measure=moved),
        # Shapes come before colour; at about this point quantisation would begin.
        _guard("grey pictures", "chroma_ratio", low=0.3, records=5, from_images=max(quantized, warm)),
        _guard("no quantisation", "quantizing", low=0.5, records=1, from_images=late),
        # A standard deviation of a tenth of the depth range.
        _guard("floaters", "weight_variance", high=0.01, records=5, from_images=settled),
        gradient,
    ]
    if loss.depth_kind == "accumulated":
        cause = f"{guards[4].cause}, which depth_kind = accumulated does not punish"
        guards[4] = replace(guards[4], cause=cause)
    if (loss.depth > 0 and loss.depth_kind != "none") or loss.depth_order > 0:
        # Flat geometry has its own alarm.
        relief = lambda r: v if (v := number(r, "relief")) is not None and v >= _FLAT else None  # noqa: E731
        shape = {"low": 0.6, "high": 1.5, "records": 5, "from_images": settled, "measure": relief}
        guards += [
            _guard("flat geometry", "relief", low=_FLAT, records=4, from_images=warm),
            _guard("relief out of range", "relief", **shape),
        ]
    if loss.novel:  # not one in the step of a record
        guards.append(_guard("no novel views", "novel_views", low=1 / schedule.batch_size, records=20))
    for name, weight in (("main", adversarial.main), ("novel", adversarial.novel)):
        if weight > 0:
            guards += _discriminator_guards(name, adversarial.start_images + adversarial.ramp_images)
    return tuple(guards)


def _discriminator_guards(name: str, start: int) -> list[Guard]:
    prefix, whose = f"adversarial_{name}_", f"{name} discriminator"

    def largest_score(record: Record) -> float | None:
        real, fake = number(record, f"{prefix}real_score"), number(record, f"{prefix}fake_score")
        return None if real is None or fake is None else max(abs(real), abs(fake))

    def opinion(record: Record) -> float | None:
        accuracy, score = number(record, f"{prefix}accuracy"), largest_score(record)
        return None if accuracy is None or score is None else max(2 * abs(accuracy - 0.5), score)

    r1 = _at_least(f"{prefix}r1", _R1_FLOOR)
    of_opinion = f"{prefix}opinion (the larger of its scores and twice its accuracy over chance)"
    return [
        _guard(f"{whose} too strong", f"{prefix}accuracy", high=0.97, records=5, from_images=start),
        _guard(f"{whose} too weak", of_opinion, low=0.04, records=5, from_images=start, measure=opinion),
        _guard(f"{whose} scores exploding", f"{prefix}score", high=30.0, records=2, measure=largest_score),
        _guard(f"{whose} penalty exploding", f"{prefix}r1", high=30.0, records=2, relative=True, measure=r1),
    ]


def _prior_guards(recipe: Stage2Recipe) -> tuple[Guard, ...]:
    schedule = recipe.training

    def memorised(record: Record) -> float | None:
        held_out, bits = number(record, "held_out_bits"), number(record, "bits")
        return held_out / bits if held_out is not None and bits else None

    warm, late = schedule.warmup_images, max(schedule.images // 2, schedule.warmup_images)
    return (
        _gradient_guard(schedule),
        # Codes of new images that cost a quarter more: the prior knows its images, not their kind.
        _guard("overfitting", "held_out_bits", high=1.25, records=2, from_images=warm, measure=memorised),
        _guard("nothing learnt", "held_out_share", high=1.0, records=1, from_images=late),
    )


def _depth_network_guards(recipe: DepthRecipe) -> tuple[Guard, ...]:
    settled = max(recipe.training.images // 10, 10_000)
    # 1.4 is the loss of the vertical gradient on rendered scenes.
    blind = _guard("blind network", "loss", high=1.4, records=5, from_images=settled)
    return (_gradient_guard(recipe.training), blind)
