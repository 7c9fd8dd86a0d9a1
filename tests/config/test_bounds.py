"""Every number of a recipe has a least and a most value: beyond them one line, between them a plan within seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.errors import RecipeError, UsageError
from vq3dcli.training.devices import named_processor
from vq3dcli.training.plan import codes_of, plan_prior, plan_run
from vq3dcli.training.plan_table import plan_table

SCHEMAS: tuple[tuple[str, type[Stage1Recipe | Stage2Recipe]], ...] = (
    ("toy-cpu", Stage1Recipe),
    ("toy-cpu-prior", Stage2Recipe),
)
# Of one block each: that there are more of them changes no limit.
_SHALLOW = {"toy-cpu": ("model.encoder_layers=1", "model.decoder_layers=1"), "toy-cpu-prior": ("model.layers=1",)}
# No number can be any of these; the largest and the smallest a file can hold, and what is none.
ABSURD = ("9223372036854775808", "-9223372036854775808", "1e308", "-1e308", "nan", "inf", "-inf", "-1", "9" * 400)


def _numbers(schema: type[BaseModel], section: str = "") -> Iterator[tuple[str, list[float]]]:
    """Key of each number and its two limits, the least first."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _numbers(field.annotation, f"{name}.")
        elif field.annotation in (int, float):
            ends = [
                getattr(limit, end)
                for end in ("ge", "gt", "le", "lt")
                for limit in field.metadata
                if hasattr(limit, end)
            ]
            yield f"{section}{name}", ends


KEYS = [(recipe, schema, key, ends) for recipe, schema in SCHEMAS for key, ends in _numbers(schema)]


def _plan(recipe: str, schema: type[Stage1Recipe | Stage2Recipe], overrides: list[str]) -> dict[str, object] | None:
    """The plan of a recipe with overrides; None where it is refused."""
    gpu = named_processor("h100", "auto")
    try:
        found = load_recipe(recipe, schema, overrides)
        if isinstance(found, Stage1Recipe):
            plan = plan_run(found, gpu)
        else:
            plan = plan_prior(found, gpu, codes_of(recipe, None, None))
        assert plan_table(plan)
    except (RecipeError, UsageError) as error:
        assert "\n" not in str(error)  # noqa: PT017 # either outcome is fine, any other exception is not
        return None
    return plan


def test_every_number_is_looked_at() -> None:
    assert len(KEYS) > 70
    assert {key for _, _, key, _ in KEYS} >= {
        "model.decoder_layers",
        "training.batch_size",
        "sampling.top_k",
        "loss.l1",
    }


@pytest.mark.parametrize(("recipe", "schema", "key", "ends"), KEYS)
def test_absurd_values_are_refused(
    recipe: str, schema: type[Stage1Recipe | Stage2Recipe], key: str, ends: list[float]
) -> None:
    assert len(ends) == 2, f"{key} needs a least and a most value"
    assert all(map(math.isfinite, ends))
    for value in ABSURD:
        with pytest.raises(RecipeError, match=rf"1 problem.*{key} \(override\)") as caught:
            load_recipe(recipe, schema, [f"{key}={value}"])
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("end", [0, 1], ids=["least", "most"])
@pytest.mark.parametrize(("recipe", "schema"), SCHEMAS)
def test_the_limits_themselves_are_planned_or_refused_in_seconds(
    recipe: str, schema: type[Stage1Recipe | Stage2Recipe], end: int
) -> None:
    start = time.process_time()
    for keys in _groups(schema):
        plan = _plan(recipe, schema, [*_SHALLOW[recipe], *(f"{key}={ends[end]}" for key, ends in keys)])
        assert plan is None or math.isfinite(plan["days"])  # type: ignore[arg-type]
    assert time.process_time() - start < 60


def _groups(schema: type[Stage1Recipe | Stage2Recipe]) -> list[list[tuple[str, list[float]]]]:
    """Sizes of a step one at a time; other keys of a section together."""
    groups: dict[str, list[tuple[str, list[float]]]] = {}
    for _, of, key, ends in KEYS:
        if of is schema:
            size = key.startswith(("model.", "rendering.")) or key.endswith(("_size", "_px", "accumulate"))
            groups.setdefault(key if size else key.partition(".")[0], []).append((key, ends))
    return [*groups.values()]


@pytest.mark.parametrize(
    ("recipe", "schema", "overrides"),
    [
        ("toy-cpu", Stage1Recipe, "model.image_size=1024 model.patch=2 model.plane_scale=4 model.plane_channels=1024"),
        (
            "imagenet256",
            Stage1Recipe,
            "model.encoder_layers=256 model.decoder_layers=256 model.encoder_width=16384 model.decoder_width=16384 "
            "model.decoder_heads=256 training.batch_size=720720 adversarial.minibatch_group=1 "
            "training.optimizer=muon rendering.samples=4096 rendering.importance_samples=4096",
        ),
        (
            "imagenet256-prior",
            Stage2Recipe,
            "model.layers=256 model.width=16384 model.heads=256 training.batch_size=720720",
        ),
    ],
)
def test_the_largest_of_all_is_planned_in_seconds(
    recipe: str, schema: type[Stage1Recipe | Stage2Recipe], overrides: str
) -> None:
    start = time.process_time()
    plan = _plan(recipe, schema, overrides.split())
    assert plan is not None
    assert plan["memory"]["state"] == "does not fit"  # type: ignore[index]
    assert time.process_time() - start < 60
