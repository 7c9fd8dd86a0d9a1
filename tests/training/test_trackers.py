"""Trackers: what they are told can be read back, what is missing is named, what fails does not end a run."""

from __future__ import annotations

import builtins
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.data.images import encode_png
from vq3dcli.errors import OutputError, UnavailableError
from vq3dcli.training.trackers import Tracker, TrackerKind, open_tracker, scalars

RECORDS: list[dict[str, Any]] = [
    {"images_seen": 320 * (i + 1), "loss": 1.0 / (i + 1), "quantizing": i > 1, "note": "text", "gap": None}
    for i in range(4)
]


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "images-000000000320.png"
    pixels = torch.arange(3 * 6 * 8, dtype=torch.uint8).reshape(3, 6, 8)
    path.write_bytes(encode_png(pixels))
    return path


def tell(tracker: Tracker, records: list[dict[str, Any]], sheet: Path | None = None) -> None:
    for record in records:
        tracker.log(record)
    if sheet is not None:
        tracker.image(sheet, records[-1]["images_seen"])
    tracker.close()


def test_only_finite_numbers_are_drawn() -> None:
    record = {"images_seen": 5, "a": 1, "b": 0.5, "c": True, "d": "x", "e": None, "f": math.nan, "g": math.inf}
    assert scalars(record) == {"a": 1.0, "b": 0.5, "c": 1.0}


def test_no_tracker_writes_nothing(tmp_path: Path, sheet: Path) -> None:
    tell(open_tracker("none", tmp_path / "run"), RECORDS, sheet)
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_read_back(tmp_path: Path, sheet: Path, capfd: pytest.CaptureFixture[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell(open_tracker("tensorboard", tmp_path / "run", config={"kind": "stage1 <b>"}), RECORDS, sheet)
    assert capfd.readouterr().out == ""
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"]) == ["loss", "quantizing"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (record["images_seen"], pytest.approx(record["loss"])) for record in RECORDS
    ]
    [picture] = events.Images("sheet")
    assert picture.step == 1280
    copy = tmp_path / "copy.png"
    copy.write_bytes(picture.encoded_image_string)
    with Image.open(copy) as shown, Image.open(sheet) as told:
        assert np.array_equal(np.asarray(shown), np.asarray(told))
    assert any("recipe" in tag for tag in tags["tensors"])


def test_tensorboard_forgets_what_a_run_repeats(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tell(open_tracker("tensorboard", tmp_path), RECORDS)  # killed here, its last checkpoint at 640 images
    again = [{"images_seen": seen, "loss": 9.0} for seen in (960, 1280, 1600)]
    tell(open_tracker("tensorboard", tmp_path, images_seen=640), again)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (320, 1.0),
        (640, 0.5),
        (960, 9.0),
        (1280, 9.0),
        (1600, 9.0),
    ]


@pytest.mark.parametrize(("kind", "name"), [("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases")])
def test_a_missing_package_is_one_line(
    kind: TrackerKind, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.split(".")[0] == "wandb" or "tensorboard" in module:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnavailableError) as caught:
        open_tracker(kind, tmp_path / "run")
    assert str(caught.value) == (f'{name} is not installed; try: pip install "vq3d[{kind}]", or training.tracker=none')
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match="run"):
        open_tracker("tensorboard", tmp_path / "run")


def test_a_tracker_that_fails_is_reported_once_and_left(sheet: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[object] = []

    def fail(*given: object) -> None:
        calls.append(given)
        raise OSError("no space\nleft")

    with caplog.at_level(logging.WARNING):
        tell(Tracker("wandb", fail, fail, fail), RECORDS, sheet)
    assert len(calls) == 1
    [message] = caplog.messages
    assert message == "wandb stopped: no space left; the run goes on, and metrics.jsonl has everything"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    module = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'vq3d[wandb]'")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    yield module
    module.teardown()  # it reads its environment once a process


def test_wandb_keeps_an_offline_run(
    wandb: Any, tmp_path: Path, sheet: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "toys-3"
    tell(open_tracker("wandb", run, config={"kind": "stage1"}), RECORDS, sheet)
    tell(open_tracker("wandb", run, images_seen=640), RECORDS[2:])
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""
    identity = (run / "wandb-id").read_text().strip()
    kept = sorted((run / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert kept
    told = b"".join(path.read_bytes() for path in kept)
    assert all(word in told for word in (b"loss", b"images_seen", b"toys-3", b"stage1"))
    assert list((run / "wandb").glob("offline-run-*/files/media/images/sheet*.png"))


def test_wandb_can_be_disabled(wandb: Any, tmp_path: Path, sheet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tell(open_tracker("wandb", tmp_path / "run"), RECORDS, sheet)
    assert not (tmp_path / "run" / "wandb").exists()


def test_wandb_without_a_key_is_one_line(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="WANDB_MODE=offline") as caught:
        open_tracker("wandb", tmp_path / "run")
    assert "\n" not in str(caught.value)
