"""What a Stage 1 run is watched for: the guards of `training.health`, with the ranges of a recipe.

The ranges leave room around what healthy runs of `toy-cpu` logged: chroma ratio from 0.45, perplexity above 0.1 of the
codes, relief above 0.5 soon after the warm-up, commitment above 0.007, gradient norms within 4 of their running mean.
"""

from __future__ import annotations

from vq3dcli.config.schema import RunSection, Stage1Recipe
from vq3dcli.training.health import Guard, Record, number

# A render whose disparity has less than this part of the truth's spread is a wall.
_FLAT = 0.15
# Before so many images no figure of geometry or codes says much, in however short a run.
_LEAST_IMAGES = 1000
# Relief, and floaters, settle later than colour: in this part of a run, and not before twice as many images.
_SETTLED = 0.25
_NORM_RATIO = 8.0
_R1_RATIO = 30.0
_R1_FLOOR = 1 / 3  # an R1 penalty below 10, a slope of 3 logits a unit of image distance, is no explosion


def stage1_guards(recipe: Stage1Recipe) -> tuple[Guard, ...]:
    """The guards of a run with this recipe; those of losses that it turns off are left out."""
    loss, schedule = recipe.loss, recipe.training
    with_depth = (loss.depth > 0 and loss.depth_kind != "none") or loss.depth_order > 0
    settled = max(round(_SETTLED * schedule.images), 2 * _LEAST_IMAGES)
    guards = _code_guards(recipe)
    if with_depth:
        guards += _depth_guards(max(schedule.warmup_images, _LEAST_IMAGES), settled)
    guards.append(
        Guard(
            "floaters",
            "weight_variance",
            cause="density spread along rays instead of at surfaces"
            + (", which depth_kind = accumulated does not punish" if loss.depth_kind == "accumulated" else ""),
            remedy="a pointwise loss.depth_kind with depth labels, a higher loss.depth, more rendering.samples",
            high=0.01,  # a standard deviation of a tenth of the depth range
            records=5,
            from_images=settled,
        )
    )
    if loss.novel:
        guards.append(
            Guard(
                "no novel views",
                "novel_views",
                cause="data of which few samples have views, so that their losses train next to nothing",
                remedy="prepare-data --views 1, or a higher --share of the folders that have them",
                low=1 / schedule.batch_size,  # not one in the step of a record
                records=20,
            )
        )
    guards.append(gradient_guard(schedule, "a longer training.warmup_images or adversarial.ramp_images"))
    adversarial = recipe.adversarial
    for name, weight in (("main", adversarial.main), ("novel", adversarial.novel)):
        if weight > 0:
            guards += _discriminator_guards(name, adversarial.start_images + adversarial.ramp_images)
    return tuple(guards)


def gradient_guard(schedule: RunSection, remedy: str) -> Guard:
    """The guard of the gradient's norm, for a run of either stage; `remedy` beside a lower learning rate."""
    return Guard(
        "gradient explosion",
        "gradient_norm",
        cause="a learning rate that is too high, or a loss that was just switched on",
        remedy=f"a lower training.learning_rate, {remedy}",
        high=_NORM_RATIO,
        from_images=schedule.warmup_images,
        relative=True,
        measure=lambda record: _at_least(number(record, "gradient_norm"), schedule.gradient_clip),
    )


def _code_guards(recipe: Stage1Recipe) -> list[Guard]:
    schedule, model = recipe.training, recipe.model
    quantized = schedule.quantize_from_images + _LEAST_IMAGES
    tokens = schedule.batch_size * (model.image_size // model.patch) ** 2
    return [
        Guard(
            "codebook collapse",
            "perplexity",
            cause="a codebook of which few codes are used",
            remedy="a lower loss.commitment, a later training.quantize_from_images, a smaller model.codebook_size",
            low=0.05 * min(model.codebook_size, tokens),
            records=5,
            from_images=quantized,
            measure=lambda record: number(record, "perplexity") if record.get("quantizing") is True else None,
        ),
        Guard(
            "grey collapse",
            "commitment",
            cause="an encoder that gives every patch the same few codes, for it had not learnt colour when "
            "quantisation began",
            remedy="a later training.quantize_from_images, a lower loss.commitment",
            low=0.003,
            from_images=schedule.quantize_from_images,
            # Its very first record is of a step before quantisation, and exactly 0.
            measure=lambda record: (number(record, "commitment") or None) if record.get("quantizing") is True else None,
        ),
        Guard(
            "grey pictures",
            "chroma_ratio",
            cause="colour that is not learnt yet, or lost: quantisation waits for it",
            remedy="a higher training.learning_rate, model.auxiliary_head=true, more training.images",
            low=0.3,
            records=5,
            # Shapes come before colour; at about this point quantisation would begin.
            from_images=max(schedule.quantize_from_images, schedule.warmup_images, _LEAST_IMAGES),
        ),
        Guard(
            "no quantisation",
            "quantizing",
            cause="colour that was not learnt by then, so that the codes would be untrained at the end",
            remedy="an earlier training.quantize_from_images, more training.images",
            low=0.5,
            records=1,
            from_images=max(schedule.images // 2, schedule.quantize_from_images + schedule.batch_size),
        ),
    ]


def _depth_guards(from_images: int, settled: int) -> list[Guard]:
    return [
        Guard(
            "flat geometry",
            "relief",
            cause="a flat wall with the picture painted on it",
            remedy="a higher loss.depth, model.space=frustum, another training.seed, and a look at the labels",
            low=_FLAT,
            records=4,
            from_images=from_images,
        ),
        Guard(
            "relief out of range",
            "relief",
            cause="depth that is squeezed or exaggerated",
            remedy="a higher loss.depth; loss.alignment_std where labels are relative",
            low=0.6,
            high=1.5,
            records=5,
            from_images=settled,
            # Flat geometry has its own alarm.
            measure=lambda record: (
                value if (value := number(record, "relief")) is not None and value >= _FLAT else None
            ),
        ),
    ]


def _discriminator_guards(name: str, from_images: int) -> list[Guard]:
    prefix, whose = f"adversarial_{name}_", f"{name} discriminator"

    def largest_score(record: Record) -> float | None:
        real, fake = number(record, f"{prefix}real_score"), number(record, f"{prefix}fake_score")
        return None if real is None or fake is None else max(abs(real), abs(fake))

    def opinion(record: Record) -> float | None:
        accuracy, score = number(record, f"{prefix}accuracy"), largest_score(record)
        return None if accuracy is None or score is None else max(2 * abs(accuracy - 0.5), score)

    return [
        Guard(
            f"{whose} too strong",
            f"{prefix}accuracy",
            cause="a difference that the generator cannot mend, or photos known by heart",
            remedy="a higher adversarial.r1, a lower adversarial.learning_rate, adversarial.augmentation=adaptive",
            high=0.97,
            records=5,
            from_images=from_images,
        ),
        Guard(
            f"{whose} too weak",
            f"{prefix}opinion (the larger of its scores and twice its accuracy over chance)",
            cause="a discriminator that cannot tell real from fake, and so teaches nothing",
            remedy="a lower adversarial.r1, a higher adversarial.learning_rate or adversarial.base_channels",
            low=0.04,
            records=5,
            from_images=from_images,
            measure=opinion,
        ),
        Guard(
            f"{whose} scores exploding",
            f"{prefix}score",
            cause="logits so large that nothing is left of the gradient",
            remedy="a higher adversarial.r1, a lower adversarial.learning_rate",
            high=30.0,
            records=2,
            measure=largest_score,
        ),
        Guard(
            f"{whose} penalty exploding",
            f"{prefix}r1",
            cause="a discriminator that is about to diverge",
            remedy="a lower adversarial.learning_rate or adversarial.r1_every_steps",
            high=_R1_RATIO,
            records=2,
            relative=True,
            measure=lambda record: _at_least(number(record, f"{prefix}r1"), _R1_FLOOR),
        ),
    ]


def _at_least(value: float | None, floor: float) -> float | None:
    return None if value is None else max(value, floor)
