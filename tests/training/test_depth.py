"""Training of a depth network: one step by hand, resuming to the bit, augmentation as a function of the place."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli import cli
from vq3dcli.config.load import dump_recipe, load_recipe
from vq3dcli.config.schema import AugmentationSection, DepthRecipe
from vq3dcli.data.loader import LABEL_KIND, Batch
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, RecipeError, StoppedError
from vq3dcli.losses.depth import relative_depth_loss
from vq3dcli.model.build import build_depth_network
from vq3dcli.training import depth
from vq3dcli.training.depth_augmentation import augmented
from vq3dcli.training.state import RunState, average_of
from vq3dcli.weights_file import load_depth, load_weights, save_weights

_PLAIN = AugmentationSection(least_crop=1.0, aspect=0, colour=0, grey=0, blur=0, blur_sigma_px=0, noise=0)


def tiny(init: Path, *overrides: str) -> DepthRecipe:
    """The real network with a narrow decoder, from random weights: the encoder's package may be missing."""
    few = (
        "model.input_px=64",
        "model.widths=[4, 8, 8, 8, 16]",
        "training.images=32",
        "training.batch_size=4",
        "training.warmup_images=8",
        "training.log_every_images=8",
        "training.sheet_every_images=16",
        "training.checkpoint_every_images=16",
        f"training.init={init}",
    )
    return load_recipe("depth-lite0", DepthRecipe, [*few, *overrides])


class Scenes:
    """Squares of random grey whose brightness is their disparity."""

    class_names = ()
    bad: ClassVar[dict[str, str]] = {}

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            index = torch.arange(images_seen, images_seen + 4)
            s = torch.stack([torch.rand(8, 8, generator=torch.Generator().manual_seed(int(i))) for i in index])
            s = s.repeat_interleave(10, 1).repeat_interleave(10, 2)
            image = (255 * s[:, None]).byte().expand(-1, 3, -1, -1)
            kind = torch.full((4,), LABEL_KIND["metric"], dtype=torch.int8)
            yield Batch(image, s, kind, torch.full((4,), -1), index, [str(int(i)) for i in index])
            images_seen += 4


@pytest.fixture
def start(tmp_path: Path) -> Path:
    recipe = tiny(Path("unused"))
    save_weights(tmp_path / "start.safetensors", build_depth_network(recipe), recipe, {})
    return tmp_path / "start.safetensors"


def test_n_plus_n_steps_equal_2n_to_the_bit(start: Path, tmp_path: Path) -> None:
    recipe = tiny(start)
    whole = depth.train_depth(recipe, Scenes(), tmp_path / "whole")
    with pytest.raises(StoppedError, match="12 of 32"):
        depth.train_depth(recipe, Scenes(), tmp_path / "parts", stop_after_images=12)
    parts = depth.train_depth(recipe, Scenes(), tmp_path / "parts")
    assert whole.sha256 == parts.sha256
    for name in ("weights", "average", "optimizer"):
        one, other = (
            load_file(r / f"checkpoints/images-000000000032/{name}.safetensors")
            for r in (tmp_path / "whole", tmp_path / "parts")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert sorted(p.name for p in (tmp_path / "parts/sheets").iterdir()) == [
        "images-000000000016.png",
        "images-000000000032.png",
    ]


def test_the_command_plans_trains_and_goes_on_after_a_signal(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toys, out = tmp_path / "toys", tmp_path / "stopped"
    prepare_toyscenes(toys, count=9, size=32, seed=3)
    label_exact(toys)
    recipe = tiny(start, "training.sheet_every_images=32", "training.checkpoint_every_images=32")
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe.model_copy(update={"augmentation": _PLAIN})))
    words = ["train-depth", str(tmp_path / "recipe.toml"), "--init", str(start), "--device", "cpu", "--json", "--quiet"]

    def run(*more: str) -> tuple[int, dict[str, Any]]:
        code = cli.run([*words, *more])
        return code, json.loads(capsys.readouterr().out)

    code, planned = run("--dry-run")
    assert code == 0
    assert {"hours", "peak_memory_gb", "disk_bytes"} < planned["metrics"].keys()
    data = ("--data", str(toys), "--out")
    assert run(*data, str(toys))[0] == 2  # which holds shards
    assert run("--data", str(toys), "--labels", "none", "--out", str(out))[0] == 2
    assert not out.exists()

    code, whole = run(*data, str(tmp_path / "whole"))
    assert (code, whole["metrics"]["images_seen"]) == (0, 32)

    def stop() -> None:
        while not (out / "metrics.jsonl").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    code, stopped = run(*data, str(out))
    assert code == 75 and "the same command again" in stopped["error"]["remedy"]
    assert run(*data, str(out))[0] == 0
    made = ["weights.safetensors", "sheets/images-000000000032.png"]
    made += [f"checkpoints/images-000000000032/{part}.safetensors" for part in ("weights", "average", "optimizer")]
    assert [(out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in made] == [True] * 5


def test_weights_of_a_run_and_of_its_checkpoints_are_taken(start: Path, tmp_path: Path) -> None:
    recipe = tiny(start)
    with pytest.raises(StoppedError):
        depth.train_depth(recipe, Scenes(), tmp_path / "run", stop_after_images=16)
    half = load_depth(tmp_path / "run")
    assert half.card["images_seen"] == 16
    finished = depth.train_depth(recipe, Scenes(), tmp_path / "run")
    loaded = load_depth(tmp_path / "run")
    assert loaded.sha256 == finished.sha256 and loaded.card["images_seen"] == 32
    assert loaded.recipe.training.init == ""
    with pytest.raises(DataError, match="a depth network"):
        load_weights(tmp_path / "run")
    with pytest.raises(RecipeError, match="another shape"):
        depth.train_depth(tiny(start, "model.widths=[4, 8, 8, 8, 8]"), Scenes(), tmp_path / "other")


def test_one_step_by_hand(start: Path) -> None:
    recipe = tiny(start, "training.weight_decay=0.1", "training.ema_half_life_images=1000")
    recipe = recipe.model_copy(update={"augmentation": _PLAIN})
    model = build_depth_network(recipe)
    state = RunState(model, average_of(model), depth._optimizer(model, recipe), images_seen=16)
    batch = next(Scenes().batches(16))
    mixed = replace(batch, label_kind=torch.tensor([1, 0, 2, 1], dtype=torch.int8))

    hand = build_depth_network(recipe).train()
    images, label = augmented(
        batch.image, batch.s, batch.index, settings=_PLAIN, input_px=64, seed=recipe.training.seed
    )
    each = relative_depth_loss(hand(images), label, gradient=0.25, scales=4)
    ((each[0] + each[2] + each[3]) / 3).backward()
    trained = {n: p for n, p in hand.named_parameters() if p.requires_grad}
    norm = torch.stack([p.grad.norm() for p in trained.values()]).norm()  # type: ignore[union-attr]
    # Of 32 images 8 warm up, so that 16 is a third of the way down the cosine.
    rate = 2e-3 * (0.01 + 0.99 * 0.5 * (1.0 + 0.5))
    expected = {}
    for name, parameter in trained.items():
        lr = rate * (0.15 if name.startswith("encoder.") else 1.0)
        gradient = parameter.grad * min(1.0, 1.0 / (float(norm) + 1e-6))  # type: ignore[operator]
        decayed = parameter * (1.0 - lr * (0.1 if parameter.ndim > 1 else 0.0))
        expected[name] = decayed - lr * gradient / (gradient.abs() + 1e-8)  # Adam's first step

    before = {name: value.clone() for name, value in state.average.named_parameters()}
    figures = depth.take_step(recipe, state, mixed, torch.device("cpu"))
    assert figures["learning_rate"] == pytest.approx(rate)
    assert figures["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    for name, parameter in state.model.named_parameters():
        if name in expected:
            # Where a gradient is near zero Adam's first step is a sign, which rounding may turn.
            off = (parameter - expected[name]).abs() > 1e-5
            assert float(off.float().mean()) < 0.01, name
    keep = 0.5 ** (4 / (20 * 0.05))  # the half-life grows with the images seen
    moved = dict(state.model.named_parameters())
    for name, value in state.average.named_parameters():
        torch.testing.assert_close(value, keep * before[name] + (1 - keep) * moved[name])
    assert state.images_seen == 20


def test_augmentation_depends_on_the_place_alone_and_moves_image_and_label_together() -> None:
    recipe = tiny(Path("unused"))
    batch = next(Scenes().batches(0))
    settings = recipe.augmentation
    images, label = augmented(batch.image, batch.s, batch.index, settings=settings, input_px=64, seed=3)
    one, label_of_one = augmented(
        batch.image[2:3], batch.s[2:3], batch.index[2:3], settings=settings, input_px=64, seed=3
    )
    torch.testing.assert_close(one[0], images[2])
    assert torch.equal(label_of_one[0], label[2])
    assert images.shape == (4, 3, 64, 64) and label.shape == (4, 32, 32)
    assert float(images.min()) >= 0 and float(images.max()) <= 255

    geometry = _PLAIN.model_copy(update={"least_crop": 0.5, "aspect": 0.5})
    moved, moved_label = augmented(batch.image, batch.s, batch.index, settings=geometry, input_px=64, seed=3)
    shown = torch.nn.functional.avg_pool2d(moved[:, 0], 2) / 255
    inside = (moved_label - shown).abs() < 0.02  # all but borders of squares
    assert float(inside.float().mean()) > 0.7
    assert float((moved_label - batch.s[:, ::2, ::2][:, :32, :32]).abs().mean()) > 0.1
    assert set(moved_label.flatten().tolist()) <= set(batch.s.flatten().tolist())  # no mixtures


def test_the_plan_counts_what_is_trained(start: Path) -> None:
    plan = depth.plan_depth(tiny(start), torch.device("cpu"))
    model = build_depth_network(tiny(start))
    assert plan["parameters"] == sum(p.numel() for p in model.parameters())
    assert plan["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad) < plan["parameters"]
    assert plan["hours"] == pytest.approx(32 / plan["images_per_second"] / 3600)
