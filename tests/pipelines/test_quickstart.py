"""A quickstart of a tiny model: interrupted, continued, and run once more."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.errors import StoppedError, UsageError
from vq3dcli.pipelines.studies.quickstart import Quickstart, Size, quickstart

TINY = Size(
    scenes=48,
    evaluated=2,
    frames=3,
    video_px=32,
    calibration_seconds=0.1,
    overrides=(
        *("model.image_size=16", "model.encoder_layers=1", "model.decoder_layers=1"),
        *("model.encoder_width=16", "model.encoder_heads=1", "model.decoder_width=16", "model.decoder_heads=1"),
        *("model.codebook_size=16", "model.field_hidden=8", "rendering.samples=4", "rendering.rays_per_image=16"),
        *("training.batch_size=8", "training.quantize_from_images=320"),
    ),
    samples_a_class=1,
    samples_filmed=2,
    prior_overrides=("model.width=16", "model.layers=1", "model.heads=1", "training.batch_size=8"),
)


def start(out: Path, *, minutes: float | None = 0.001, should_stop=lambda: False) -> tuple[Quickstart, list[str]]:
    parts: list[str] = []

    @contextmanager
    def counting(description: str, unit: str):
        parts.append(description)
        yield lambda done, total, status="": None

    made = quickstart(
        out,
        minutes=minutes,
        seed=0,
        device=torch.device("cpu"),
        counting=counting,
        should_stop=should_stop,
        size=TINY,
    )
    return made, parts


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart") / "out"


@pytest.fixture(scope="module")
def interrupted(out):
    """What lies in the folder after a call that was stopped in the middle of training."""
    metrics = out / "run" / "metrics.jsonl"
    with pytest.raises(StoppedError):
        start(out, should_stop=lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 5)
    return {"budget": (out / "budget.json").read_text(), "checkpoints": list((out / "run" / "checkpoints").iterdir())}


@pytest.fixture(scope="module")
def finished(out, interrupted):
    assert interrupted["checkpoints"]
    return start(out, minutes=None)


def test_an_interrupted_quickstart_continues_with_the_same_budget(out, interrupted, finished):
    made, parts = finished
    assert parts.count("calibrating") == 1  # the prior's
    assert {"training", "rendering", "measuring", "training the prior", "sampling"} <= set(parts)
    assert (out / "budget.json").read_text() == interrupted["budget"]
    assert json.loads((out / "run" / "metrics.jsonl").read_text().splitlines()[-1])["images_seen"] == made.budget.images
    assert not (out / "calibration").exists()


def test_the_report_holds_everything(finished):
    made, _ = finished
    page = made.report.read_text()
    assert len(made.videos) == 6
    assert page.count("<video") == 6 + 2 * TINY.samples_filmed
    assert "<svg" in page
    assert "template_spearman" in page
    assert "kind = &quot;stage1&quot;" in page
    assert "kind = &quot;stage2&quot;" in page
    assert all(path.stat().st_size > 0 for path in made.videos)


def test_a_finished_quickstart_does_nothing_again(out, finished):
    made, _ = finished
    before = {path: path.stat().st_mtime_ns for path in _lasting(out, made)}
    again, parts = start(out)
    done_once = {"calibrating", "training", "rendering", "measuring", "training the prior", "rendering samples"}
    assert not done_once & set(parts)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.metrics == made.metrics


def _lasting(out: Path, made: Quickstart) -> list[Path]:
    return [
        *made.videos,
        Path(made.weights.path),
        out / "geometry.json",
        Path(made.prior.path),
        made.sheet,
        *(path for row in made.filmed for path in row),
    ]


def test_new_scenes_are_of_every_class(out, finished):
    made, _ = finished
    record = json.loads((out / "samples" / "samples.json").read_text())
    assert {sample["class"] for sample in record["samples"]} == set(made.prior.tokens.class_names)
    assert record["stage1_sha256"] == made.weights.sha256
    assert len(made.filmed) == TINY.samples_filmed
    assert all(path.stat().st_size > 0 for row in made.filmed for path in row)


def test_other_options_are_refused(out, finished, capsys):
    with pytest.raises(UsageError, match="begun with"):
        start(out, minutes=1.0)
    assert run(["quickstart", "--out", str(out), "--seed", "1"]) == 2
    assert "begun with --minutes 0.001 --seed 0" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "x"])
def test_minutes_are_checked(minutes, tmp_path, capsys):
    assert run(["quickstart", "--minutes", minutes, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
