"""Training: it learns, it resumes to the bit, it stops before damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.checkpoint import read_checkpoint, write_checkpoint
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.errors import DataError, RecipeError, StoppedError
from vq3dcli.export.colour import colour_map
from vq3dcli.losses.depth import LABEL_METRIC, LABEL_NONE, LABEL_RELATIVE
from vq3dcli.model.build import build_autoencoder
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.training.objective import Stage1Objective
from vq3dcli.training.optim import build_optimizer, learning_rate_at
from vq3dcli.training.sheets import show_label
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights

Make = Callable[..., Stage1Recipe]


class _ToyBatches:
    """Toy scenes as a stream, without shards."""

    class_names = ("toy",)
    metric_labels = True
    bad: ClassVar[dict[str, str]] = {}

    def __init__(self, batch_size: int, size: int = 16) -> None:
        self.batch_size, self.size = batch_size, size
        views = render_scenes(
            sample_scenes(torch.arange(24), seed=0), canonical_camera(24, height_px=size, width_px=size)
        )
        self.rgb, self.s = views.rgb, views.s

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            index = torch.arange(images_seen, images_seen + self.batch_size)
            rows = index % 24
            yield Batch(
                image=self.rgb[rows],
                s=self.s[rows],
                label_kind=torch.ones(self.batch_size, dtype=torch.int8),
                class_index=torch.zeros(self.batch_size, dtype=torch.int64),
                index=index,
                keys=[f"{row:08d}" for row in rows.tolist()],
            )
            images_seen += self.batch_size


def _bits(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    # Copies: what load_file gives is mapped, and would follow a test that damages the file.
    return {f"{p.stem}/{k}": v.clone() for p in newest.glob("*.safetensors") for k, v in load_file(p).items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_n_plus_n_steps_equal_2n_to_the_bit(tiny_recipe: Make, tmp_path: Path, optimizer: str) -> None:
    recipe, data = tiny_recipe(f"training.optimizer={optimizer}"), _ToyBatches(8)
    train(recipe, data, tmp_path / "whole")
    with pytest.raises(StoppedError, match="32 of 64"):
        train(recipe, data, tmp_path / "halves", stop_after_images=32)
    result = train(recipe, data, tmp_path / "halves")
    whole, halves = _bits(tmp_path / "whole"), _bits(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert result.sha256 == train(recipe, data, tmp_path / "whole").sha256
    seen = [json.loads(line)["images_seen"] for line in (tmp_path / "halves/metrics.jsonl").read_text().splitlines()]
    assert seen == list(range(8, 65, 8))


def test_a_run_writes_what_it_promises(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    reports = []
    train(recipe, _ToyBatches(8), tmp_path, report=reports.append)
    assert reports[-1].images_seen == 64
    assert (tmp_path / "recipe.toml").exists()
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == [
        "images-000000000032.png",
        "images-000000000064.png",
    ]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "l2", "l1", "depth", "perplexity", "relief", "weight_variance", "images_per_second"} <= last.keys()
    assert last["quantizing"] is True
    loaded = load_weights(tmp_path)
    assert loaded.recipe == recipe
    assert loaded.card["images_seen"] == 64


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_overfitting_one_batch(tiny_recipe: Make, kind: Literal["adamw", "muon"]) -> None:
    schedule = (f"training.optimizer={kind}", "training.learning_rate=3e-3", "training.weight_decay=0")
    recipe = tiny_recipe("loss.commitment=0.01", *schedule)
    model = build_autoencoder(recipe)
    objective = Stage1Objective(model, recipe)
    optimizer = build_optimizer(model, recipe.training)
    batch = next(_ToyBatches(4).batches(0))
    losses = []
    for step in range(120):
        result = objective(batch.image, batch.s, batch.label_kind, batch.index + 4 * step, torch.tensor(1.0))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.terms)
    assert losses[-1]["l2"] < 0.15 * losses[0]["l2"]
    assert losses[-1]["depth"] < 0.25 * losses[0]["depth"]


@pytest.mark.parametrize("term", ["depth", "depth_order"])
def test_an_unlabelled_sample_has_no_depth_loss(tiny_recipe: Make, term: str) -> None:
    recipe = tiny_recipe("loss.depth_order=1")
    objective = Stage1Objective(build_autoencoder(recipe), recipe)
    batch = next(_ToyBatches(4).batches(0))
    kind = torch.tensor([1, 0, 1, 0], dtype=torch.int8)
    share = torch.tensor(0.5)
    masked = objective(batch.image, batch.s, kind, batch.index, share).terms[term]
    assert masked > 0
    garbage = torch.where((kind == 0)[:, None, None], torch.rand_like(batch.s), batch.s)
    assert torch.equal(masked, objective(batch.image, garbage, kind, batch.index, share).terms[term])
    pair = objective(batch.image[::2], batch.s[::2], kind[::2], batch.index[::2], torch.tensor(1.0)).terms[term]
    torch.testing.assert_close(masked, pair, rtol=1e-4, atol=1e-6)


def test_the_order_loss_enters_the_total_by_its_weight(tiny_recipe: Make) -> None:
    batch = next(_ToyBatches(4).batches(0))
    found = []
    for weight in (0.0, 0.5, 2.0):
        recipe = tiny_recipe(f"loss.depth_order={weight}")
        objective = Stage1Objective(build_autoencoder(recipe), recipe)
        found.append(objective(batch.image, batch.s, batch.label_kind, batch.index, torch.tensor(1.0)))
    off, half, two = found
    assert "depth_order" not in off.terms
    torch.testing.assert_close(half.loss - off.loss, 0.5 * half.terms["depth_order"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two.loss - off.loss, 2.0 * two.terms["depth_order"], rtol=1e-4, atol=1e-5)


def test_a_changed_recipe_is_refused(tiny_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(tiny_recipe(), _ToyBatches(8), tmp_path, stop_after_images=8)
    with pytest.raises(RecipeError, match=r"loss\.depth: 3\.0 -> 2\.0"):
        train(tiny_recipe("loss.depth=2.0"), _ToyBatches(8), tmp_path)


def test_a_damaged_newest_checkpoint_falls_back(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, data = tiny_recipe(), _ToyBatches(8)
    train(recipe, data, tmp_path)
    expected = _bits(tmp_path)
    weights = tmp_path / "checkpoints/images-000000000064/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    train(recipe, data, tmp_path)
    assert "damaged checkpoint" in caplog.text
    again = _bits(tmp_path)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_the_schedule_warms_up_and_decays(tiny_recipe: Make) -> None:
    shape = ("training.learning_rate=1", "training.warmup_images=100", "training.images=1100")
    schedule = tiny_recipe(*shape, "training.final_learning_rate_factor=0.1").training

    def rate(seen: int) -> float:
        return learning_rate_at(schedule, seen)

    assert rate(0) < 0.02
    assert rate(100) == 1.0
    assert abs(rate(600) - 0.55) < 1e-6
    assert abs(rate(1100) - 0.1) < 1e-6


@pytest.mark.parametrize("content", [b'{"samples', b"[]", b"\xff\xfe"])
def test_a_damaged_run_json_is_told(tiny_recipe: Make, tmp_path: Path, content: bytes) -> None:
    data = _ToyBatches(8)
    with pytest.raises(StoppedError):
        train(tiny_recipe(), data, tmp_path, stop_after_images=8)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run\.json\): not a JSON object; try: delete it"):
        train(tiny_recipe(), data, tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(StoppedError, match="16 of 64"):
        train(tiny_recipe(), data, tmp_path, stop_after_images=16)


def test_a_checkpoint_of_another_model_is_told(tiny_recipe: Make, tmp_path: Path) -> None:
    data = _ToyBatches(8)
    for name, override in (("run", "model.decoder_width=32"), ("wider", "model.decoder_width=64")):
        with pytest.raises(StoppedError):
            train(tiny_recipe(override), data, tmp_path / name, stop_after_images=8)
    shutil.rmtree(tmp_path / "run/checkpoints")
    shutil.copytree(tmp_path / "wider/checkpoints", tmp_path / "run/checkpoints")
    with pytest.raises(DataError, match="does not fit this model"):
        train(tiny_recipe(), data, tmp_path / "run")


@pytest.mark.parametrize("damage", ["shape", "name", "chroma"])
def test_a_checkpoint_with_odd_optimizer_or_manifest_is_told(tiny_recipe: Make, tmp_path: Path, damage: str) -> None:
    data = _ToyBatches(8)
    with pytest.raises(StoppedError):
        train(tiny_recipe(), data, tmp_path, stop_after_images=8)
    [folder] = (tmp_path / "checkpoints").iterdir()
    found, manifest = read_checkpoint(folder)
    parts = dict(found)
    key = next(name for name, value in parts["optimizer"].items() if value.ndim)
    if damage == "shape":
        parts["optimizer"][key] = torch.zeros(3, 1, 2)
    elif damage == "name":
        parts["optimizer"]["nowhere/exp_avg"] = torch.zeros(1)
    else:
        del manifest["chroma"]
    write_checkpoint(folder, {name: {k: v.clone() for k, v in part.items()} for name, part in parts.items()}, manifest)
    with pytest.raises(DataError, match="does not fit this model"):
        train(tiny_recipe(), data, tmp_path)


def test_a_sheet_shows_a_relative_label_at_its_own_range() -> None:
    ramp = torch.linspace(0.0, 1.0, 64).expand(64, 64)
    shown = show_label(5.0 + 400.0 * ramp, LABEL_RELATIVE)
    assert torch.equal(shown, show_label(-2.0 + 1e-3 * ramp.double(), LABEL_RELATIVE))
    assert len(shown.flatten(1).unique(dim=1).T) > 32
    assert torch.equal(show_label(ramp, LABEL_METRIC), colour_map(ramp))
    assert show_label(torch.full((4, 4), 7.0), LABEL_RELATIVE).unique(dim=1).shape == (3, 1, 4)
    assert (show_label(ramp, LABEL_NONE) == 128).all()
