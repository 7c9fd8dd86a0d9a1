"""What is not finite: a step is passed over and told, several in a row end the run, nothing of it reaches a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.checkpoint import read_checkpoint, write_checkpoint
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import DivergedError, RecipeError, StoppedError
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.prior import Prior
from vq3dcli.training import stage1, stage2
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.run import MOST_IN_A_ROW, Progress, Run
from vq3dcli.training.stage1 import train
from vq3dcli.training.stage2 import token_facts, train_prior
from vq3dcli.weights_file import load_prior, load_weights, save_weights, weights_header

Make = Callable[..., Stage1Recipe]
MakePrior = Callable[..., Stage2Recipe]


class _Noise:
    """Random images and labels; those of steps that begin within `not_finite` are not finite."""

    class_names: tuple[str, ...] = ()
    metric_labels = True
    bad: ClassVar[dict[str, str]] = {}

    def __init__(self, not_finite: range = range(0)) -> None:
        self.not_finite = not_finite

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            drawn = torch.Generator().manual_seed(images_seen)
            s = torch.rand(8, 16, 16, generator=drawn)
            if images_seen in self.not_finite:
                s[2] = torch.nan
            index = torch.arange(images_seen, images_seen + 8)
            yield Batch(
                image=torch.randint(0, 256, (8, 3, 16, 16), generator=drawn).byte(),
                s=s,
                label_kind=torch.ones(8, dtype=torch.int8),
                class_index=torch.full((8,), -1),
                index=index,
                keys=[f"noise, key {i}" for i in index.tolist()],
            )
            images_seen += 8


def _bits(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {f"{p.stem}/{k}": v.clone() for p in checkpoint.glob("*.safetensors") for k, v in load_file(p).items()}


def _same(one: Path, other: Path) -> bool:
    a, b = _bits(one), _bits(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_bad_step_is_passed_over_and_told(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe("training.checkpoint_every_images=8", "training.keep_checkpoints=9")
    said: list[Progress] = []
    result = train(recipe, _Noise(range(40, 41)), tmp_path / "run", report=said.append)
    assert result.images_seen == 64
    [warning] = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "at 40 images (samples noise, key 40, noise, key 41" in warning
    checkpoints = tmp_path / "run/checkpoints"
    assert _same(checkpoints / "images-000000000048", checkpoints / "images-000000000040")
    assert not _same(checkpoints / "images-000000000056", checkpoints / "images-000000000048")
    assert math.isnan(said[5].loss)
    assert all(math.isfinite(step.loss) for step in [*said[:5], *said[6:]])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped_steps") for line in lines] == [None] * 5 + [1] * 3
    assert "loss" not in lines[5]
    assert load_weights(tmp_path / "run").card["training"]["skipped_steps"] == 1
    # Stopped between the bad step and the next, it goes on to the same bits.
    with pytest.raises(StoppedError):
        train(recipe, _Noise(range(40, 41)), tmp_path / "halves", stop_after_images=48)
    assert train(recipe, _Noise(range(40, 41)), tmp_path / "halves").sha256 == result.sha256


def test_several_bad_steps_in_a_row_end_the_run_which_goes_on_with_a_lower_rate(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ("training.images=96", "training.checkpoint_every_images=16")
    lasting = _Noise(range(40, 1000))
    with pytest.raises(DivergedError, match=r"5 steps in a row .* at 72 images \(samples .*--set of a lower") as caught:
        train(tiny_recipe(*overrides), lasting, tmp_path)
    assert caught.value.exit_code == 79
    assert not (tmp_path / "weights.safetensors").exists()
    # The count is in the checkpoint: a stop in between forgives nothing.
    newest = max((tmp_path / "checkpoints").iterdir())
    skipped = read_checkpoint(newest)[1]
    assert (newest.name, skipped["skipped_steps"], skipped["skipped_in_a_row"]) == ("images-000000000064", 3, 3)
    with pytest.raises(DivergedError, match=r"5 steps in a row .* at 72 images"):
        train(tiny_recipe(*overrides), lasting, tmp_path)
    # What may change is recorded, what may not is refused.
    calmer = (*overrides, "training.learning_rate=1e-5", "training.gradient_clip=0.5")
    with pytest.raises(RecipeError, match=r"loss\.depth"):
        train(tiny_recipe(*calmer, "loss.depth=1"), _Noise(), tmp_path)
    train(tiny_recipe(*calmer), _Noise(range(40, 80)), tmp_path)  # of two more bad steps: the row begins anew
    changes = load_weights(tmp_path).card["changes"]
    assert [(change["images_seen"], change["key"], change["after"]) for change in changes] == [
        (64, "training.learning_rate", 1e-5),
        (64, "training.gradient_clip", 0.5),
    ]
    assert json.loads((tmp_path / "run.json").read_text())["changes"] == changes
    assert "training.gradient_clip: 1.0 -> 0.5: the run continues, but not to the same bits" in caplog.text


@pytest.mark.parametrize("lasting", [False, True])
def test_stage_2_passes_over_bad_steps_too(
    tiny_prior_recipe: MakePrior,
    write_store: Callable[..., TokenStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lasting: bool,
) -> None:
    store, forward, steps = write_store(tmp_path / "store"), Prior.forward, [0]

    def poisoned(self: Prior, tokens: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        steps[0] += self.training
        bad = self.training and (steps[0] == 4 or (lasting and steps[0] > 4))
        return forward(self, tokens, class_index) * (math.nan if bad else 1.0)

    monkeypatch.setattr(Prior, "forward", poisoned)
    recipe = tiny_prior_recipe("training.checkpoint_every_images=8", "training.keep_checkpoints=9")
    checkpoints = tmp_path / "run/checkpoints"
    if lasting:
        with pytest.raises(DivergedError, match=rf"{MOST_IN_A_ROW} steps in a row .* at 56 images \(samples 56"):
            train_prior(recipe, store, tmp_path / "run")
        calmer = tiny_prior_recipe("training.checkpoint_every_images=8", "training.learning_rate=1e-5")
        monkeypatch.setattr(Prior, "forward", forward)
        train_prior(calmer, store, tmp_path / "run")
        assert [change["key"] for change in load_prior(tmp_path / "run").card["changes"]] == [
            "training.learning_rate",
        ]
        return
    train_prior(recipe, store, tmp_path / "run")
    assert "at 24 images (samples 24, 25" in caplog.text
    assert _same(checkpoints / "images-000000000024", checkpoints / "images-000000000032")
    assert load_prior(tmp_path / "run").card["training"]["skipped_steps"] == 1


@pytest.mark.parametrize("part", ["model", "average", "optimizer"])
def test_what_is_not_finite_is_not_saved(
    tiny_recipe: Make, tiny_prior_recipe: MakePrior, write_store: Callable[..., TokenStore], tmp_path: Path, part: str
) -> None:
    recipe, prior_recipe, store = tiny_recipe(), tiny_prior_recipe(), write_store(tmp_path / "store")
    with pytest.raises(StoppedError):
        train(recipe, _Noise(), tmp_path / "run", stop_after_images=8)
    with pytest.raises(StoppedError):
        train_prior(prior_recipe, store, tmp_path / "prior", stop_after_images=8)
    device, ranks, tokens = torch.device("cpu"), Ranks(), token_facts(store)
    for run, state in (
        (
            Run(recipe, tmp_path / "run", device=device, ranks=ranks),
            stage1.build_state(recipe, classes=0, device=device, ranks=ranks),
        ),
        (
            Run(prior_recipe, tmp_path / "prior", device=device, ranks=ranks, tokens=tokens),
            stage2.build_state(prior_recipe, tokens, device=device, ranks=ranks),
        ),
    ):
        run.start(state, run.folder.newest(ranks), None)
        parameter = next(state.model.parameters())
        wrong = {"model": parameter, "average": next(state.average.parameters())}
        value = wrong[part] if part in wrong else state.optimizer.state[parameter]["exp_avg"]
        value.detach().flatten()[0] = math.inf
        state.images_seen = 16
        with pytest.raises(DivergedError, match=r"is not finite at 16 images: no checkpoint was written") as caught:
            run.save()
        assert "training.learning_rate" in str(caught.value)
        assert [p.name for p in run.folder.checkpoints.iterdir()] == ["images-000000000008"]


def test_a_checkpoint_that_is_not_finite_gives_way_to_the_one_before(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe("training.checkpoint_every_images=16")
    result = train(recipe, _Noise(), tmp_path)
    newest = tmp_path / "checkpoints/images-000000000064"
    for part in ("average", "weights"):
        found, manifest = read_checkpoint(newest)
        parts = {name: {key: value.clone() for key, value in found[name].items()} for name in found}
        parts[part]["to_code.weight"][0, 0] = math.inf
        header = weights_header(recipe, {"images_seen": 64})
        write_checkpoint(newest, parts, manifest, header)  # its hashes are right
        caplog.clear()
        assert train(recipe, _Noise(), tmp_path).sha256 == result.sha256
        assert "taking an older checkpoint" in caplog.text


def test_weights_that_fp16_cannot_hold_are_not_exported(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_autoencoder(recipe)
    with torch.no_grad():
        model.to_code.weight[0, 0] = 1e5
    with pytest.raises(DivergedError, match="fp16 cannot hold, first to_code"):
        save_weights(tmp_path / "weights.safetensors", model, recipe, {})
    assert not list(tmp_path.iterdir())
