"""What a run says of itself while it trains: held-out images, speed, waiting, memory, a profile."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import Batch, TrainingLoader
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.metrics.geometry import spearman, ssi_error
from vq3dcli.metrics.image import psnr
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.run_report.page import write_run_report
from vq3dcli.pipelines.train import full_speed, open_held_out, open_loader, peak_speed
from vq3dcli.training.devices import named_processor
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.plan import plan_run
from vq3dcli.training.stage1 import train
from vq3dcli.weights_file import load_weights

Make = Callable[..., Stage1Recipe]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    prepare_toyscenes(folder, count=12, size=16, seed=0, views=2)
    label_exact(folder)
    return folder


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_held_out_images_are_measured_with_each_sheet(tiny_recipe: Make, toys: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("training.log_every_images=64")
    held_out = open_held_out(recipe, toys)
    result = train(recipe, open_loader(recipe, [toys], "exact", Ranks()), tmp_path, held_out=held_out)
    lines = _lines(tmp_path)
    assert [line["images_seen"] for line in lines] == [32, 64]  # sheets are due more often than records
    # The same by hand, one image after the other, of the weights that were exported.
    model, figures = load_weights(tmp_path).model, {}
    for i in range(len(held_out.image)):
        scene, camera = reconstruct_scene(model, held_out.image[i : i + 1]), build_canonical_camera(recipe, 16, 1)
        view, s_true = scene.render(camera), held_out.s[i : i + 1]
        assert held_out.views is not None and held_out.views.row[i] == i
        novel = scene.render(replace(camera, cam_to_world=held_out.views.cam_to_world[i : i + 1]))
        for name, value in (
            ("psnr", psnr(view.rgb, held_out.image[i : i + 1])),
            ("spearman", spearman(view.s, s_true)),
            ("ssi_error", ssi_error(view.s, s_true)),
            ("novel_psnr", psnr(novel.rgb, held_out.views.image[i : i + 1])),
        ):
            figures[f"held_out_{name}"] = figures.get(f"held_out_{name}", 0.0) + float(value) / 12
    assert len(held_out.image) == 12
    assert {name: value for name, value in lines[-1].items() if "held_out" in name} == pytest.approx(figures, rel=0.02)
    assert load_weights(tmp_path).card["training"]["held_out_psnr"] == lines[-1]["held_out_psnr"]
    page = write_run_report(tmp_path).read_text()
    assert "Held-out images" in page and "PSNR, held out, dB" in page and result.sha256


def test_what_is_not_there_is_not_measured(tiny_recipe: Make, tmp_path: Path) -> None:
    prepare_toyscenes(tmp_path / "plain", count=5, size=16, seed=1)
    recipe = tiny_recipe("training.images=32")
    held_out = open_held_out(recipe, tmp_path / "plain")
    data = open_loader(recipe, [tmp_path / "plain"], None, Ranks())
    train(recipe, data, tmp_path / "run", held_out=held_out)
    assert [name for name in _lines(tmp_path / "run")[-1] if "held_out" in name] == ["held_out_psnr"]


class _Slow:
    """A loader that takes its time."""

    def __init__(self, data: TrainingLoader, seconds: float) -> None:
        self.data, self.seconds = data, seconds
        self.class_names, self.metric_labels, self.bad = data.class_names, data.metric_labels, data.bad

    def batches(self, images_seen: int) -> Iterator[Batch]:
        for batch in self.data.batches(images_seen):
            time.sleep(self.seconds)
            yield batch


def test_speed_waiting_and_memory_are_told_and_are_not_in_the_weights(
    tiny_recipe: Make, toys: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("training.images=32")
    loader = open_loader(recipe, [toys], "exact", Ranks())
    results = [
        train(recipe, data, tmp_path / name, full_speed=full)  # type: ignore[arg-type]
        for name, data, full in (("quick", loader, None), ("slow", _Slow(loader, 1.0), lambda seen: 1e3 * seen))
    ]
    assert results[0].sha256 == results[1].sha256
    quick, slow = (_lines(tmp_path / name)[-1] for name in ("quick", "slow"))
    assert quick["data_wait"] < slow["data_wait"] and 0.5 < slow["data_wait"] <= 1.0
    assert slow["images_per_second"] < 8.0 and 0.05 < slow["peak_memory_gb"] < 100
    assert "mfu" not in quick
    assert slow["mfu"] == pytest.approx(slow["images_per_second"] / 32e3, abs=1e-4)
    assert "share of the time without a batch" in write_run_report(tmp_path / "slow").read_text()


def test_a_profile_holds_the_steps_asked_for_and_changes_nothing(tiny_recipe: Make, toys: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    loader = open_loader(recipe, [toys], "exact", Ranks())
    whole = train(recipe, loader, tmp_path / "whole")
    assert train(recipe, loader, tmp_path / "run", profile_steps=2).sha256 == whole.sha256
    with gzip.open(tmp_path / "run/profile.json.gz") as trace:
        names = {str(event.get("name")) for event in json.load(trace)["traceEvents"]}
    assert sum(name.startswith("ProfilerStep#") for name in names) == 2
    assert "aten::addmm" in names


def test_the_speed_of_a_gpu_at_its_peak(write_store: Callable[..., Any], tmp_path: Path) -> None:
    recipe, h100 = load_recipe("toy-cpu", Stage1Recipe), named_processor("h100", "bfloat16")
    assert full_speed(recipe, torch.device("cpu"), 1, classes=3) is None
    gigaflops = plan_run(recipe, h100, gpus=2, classes=3)["speed"]["gigaflops_an_image"]
    # Half of the peak is what a plan counts on.
    assert peak_speed(recipe, h100, 2, classes=3)(0) == pytest.approx(2 * 989e12 / (gigaflops * 1e9), rel=1e-6)
    prior, store = load_recipe("toy-cpu-prior", Stage2Recipe), write_store(tmp_path / "store")
    tokens = prior.training.batch_size * store.length
    parameters = 12 * prior.model.layers * prior.model.width**2  # of a transformer's blocks: six operations a token
    speed = peak_speed(prior, h100, 1, classes=3, store=store)(0)
    assert 989e12 / speed * prior.training.batch_size == pytest.approx(6 * parameters * tokens, rel=0.3)
