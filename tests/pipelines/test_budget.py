import pytest

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DataError, UsageError
from vq3dcli.pipelines.studies.toy_runs import budget_of, recorded_budget, with_budget
from vq3dcli.sealed import write_sealed_json


@pytest.fixture
def recipe() -> Stage1Recipe:
    return load_recipe("toy-cpu", Stage1Recipe)


def test_minutes_become_whole_steps():
    budget = budget_of(6.0, 60.0, batch_size=16, seed=0)
    assert budget.images % 16 == 0
    assert 0.9 * 21600 < budget.images < 21600
    assert budget_of(0.001, 1.0, batch_size=16, seed=0).images == 320


def test_a_record_is_kept_to(tmp_path):
    path = tmp_path / "budget.json"
    assert recorded_budget(path, minutes=6.0, seed=0) is None
    write_sealed_json(path, {"minutes": 2.0, "images_per_second": 50.0, "images": 5504, "seed": 1})
    assert recorded_budget(path, minutes=None, seed=1) == recorded_budget(path, minutes=2.0, seed=1)
    with pytest.raises(UsageError, match="--minutes 2"):
        recorded_budget(path, minutes=6.0, seed=1)
    with pytest.raises(UsageError, match="--seed 1"):
        recorded_budget(path, minutes=None, seed=0)


@pytest.mark.parametrize("text", ["", "[]", '{"minutes": 2}'])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "budget.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"budget\.json"):
        recorded_budget(path, minutes=None, seed=0)
    write_sealed_json(path, {"metrics": {}})  # a record of something else under its name
    with pytest.raises(DataError, match=r"budget\.json"):
        recorded_budget(path, minutes=None, seed=0)


def test_a_shorter_run_keeps_its_proportions(recipe):
    short = with_budget(recipe, recipe.training.images // 4, 50.0)
    assert short.training.images == recipe.training.images // 4
    assert short.training.quantize_from_images == recipe.training.quantize_from_images // 4
    assert short.training.warmup_images == recipe.training.warmup_images // 4
    assert short.training.checkpoint_every_images == 3000
    assert short.adversarial.start_images == recipe.adversarial.start_images // 4
    assert short.adversarial.ramp_images == recipe.adversarial.ramp_images // 4
    assert short.model == recipe.model


def test_a_longer_run_does_not_wait_longer(recipe):
    long = with_budget(recipe, recipe.training.images * 10, 50.0)
    assert long.training.quantize_from_images == recipe.training.quantize_from_images
    assert long.training.warmup_images == recipe.training.warmup_images
