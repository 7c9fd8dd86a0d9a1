"""A run's folder: nothing is left of a run that could not start, nothing is missing in one that was killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.data.token_store import TokenStore
from vq3dcli.errors import DataError, InputMissingError, RecipeError, StoppedError
from vq3dcli.sealed import write_sealed_json
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.training.stage1 import train
from vq3dcli.training.stage2 import train_prior
from vq3dcli.weights_file import load_weights

Make = Callable[..., Stage1Recipe]


class _Grey:
    """Grey images without labels; the stream is damaged from some image on."""

    class_names: tuple[str, ...] = ()
    metric_labels = False
    bad: ClassVar[dict[str, str]] = {}

    def __init__(self, damaged_from: int = 1 << 60, error: Exception | None = None) -> None:
        self.damaged_from = damaged_from
        self.error = error or DataError("damaged shard", remedy="prepare it again")

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            if images_seen >= self.damaged_from:
                raise self.error
            index = torch.arange(images_seen, images_seen + 8)
            yield Batch(
                image=torch.full((8, 3, 16, 16), 99, dtype=torch.uint8),
                s=torch.zeros(8, 16, 16),
                label_kind=torch.zeros(8, dtype=torch.int8),
                class_index=torch.full((8,), -1),
                index=index,
                keys=[str(i) for i in index.tolist()],
            )
            images_seen += 8


def test_a_run_that_cannot_start_leaves_nothing(
    tiny_recipe: Make,
    tiny_prior_recipe: Callable[..., Stage2Recipe],
    tiny_weights: Path,
    write_store: Callable[..., TokenStore],
    tmp_path: Path,
) -> None:
    init = f"training.init={tiny_weights}"
    with pytest.raises(RecipeError, match="do not fit"):
        train(tiny_recipe(init, "model.field_hidden=24"), _Grey(), tmp_path / "misfit")
    with pytest.raises(InputMissingError):
        train(tiny_recipe("training.init=/nowhere.safetensors"), _Grey(), tmp_path / "nowhere")
    with pytest.raises(DataError, match="damaged shard"):
        train(tiny_recipe(), _Grey(0), tmp_path / "damaged")
    with pytest.raises(DataError, match="not a prior"):
        train_prior(tiny_prior_recipe(init), write_store(tmp_path / "store"), tmp_path / "prior")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    # A folder of the user's, and what is in it, stays.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(DataError, match="damaged shard"):
        train(tiny_recipe(), _Grey(0), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_run_that_failed_before_its_first_checkpoint_says_how_it_goes_on(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tiny_recipe(), _Grey(16, ZeroDivisionError()), tmp_path / "run")
    assert "nothing is saved yet" in caplog.text
    assert "the same command starts from the first image" in caplog.text


def test_a_run_that_can_read_no_more_saves_first(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="damaged shard"):
        train(tiny_recipe(), _Grey(16), tmp_path / "run")
    assert "nothing is saved yet" not in caplog.text
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["images-000000000016"]
    assert train(tiny_recipe(), _Grey(), tmp_path / "run").images_seen == 64


def test_a_sheet_that_a_kill_cost_is_drawn_by_the_resume(tiny_recipe: Make, tmp_path: Path) -> None:
    train(tiny_recipe(), _Grey(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tiny_recipe(), _Grey(), tmp_path / "run", stop_after_images=32)
    due = tmp_path / "run/sheets/images-000000000032.png"
    due.unlink()  # as a kill between checkpoint and sheet leaves it
    train(tiny_recipe(), _Grey(), tmp_path / "run")
    sheets = [sorted((tmp_path / run / "sheets").iterdir()) for run in ("whole", "run")]
    assert [p.name for p in sheets[1]] == ["images-000000000032.png", "images-000000000064.png"]
    assert [p.read_bytes() for p in sheets[0]] == [p.read_bytes() for p in sheets[1]]
    # Also the last one, whose run has ended but for it.
    sheets[1][-1].unlink()
    (tmp_path / "run/weights.safetensors").unlink()
    train(tiny_recipe(), _Grey(), tmp_path / "run")
    assert sheets[1][-1].read_bytes() == sheets[0][-1].read_bytes()


def test_images_seen_that_were_edited_give_way_to_the_checkpoint_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, parts = RunFolder(tmp_path), {name: {"x": torch.ones(2)} for name in ("weights", "average")}
    folder.checkpoints.mkdir()
    for images_seen in (8, 16):
        folder.save(parts, {"images_seen": images_seen}, {}, keep=2)
    path = folder.checkpoints / "images-000000000016/manifest.json"
    manifest, whole = read_checkpoint(path.parent)[1], path.read_bytes()
    for edit in (
        lambda: path.write_bytes(whole.replace(b'"images_seen": 16', b'"images_seen": 61')),
        lambda: write_sealed_json(path, {**manifest, "images_seen": 61}),
    ):
        edit()
        assert path.read_bytes() != whole
        newest = folder.newest(Ranks())
        assert newest is not None and newest.manifest["images_seen"] == 8
        assert "taking an older" in caplog.text
        caplog.clear()


def test_a_run_goes_on_with_the_same_facts_alone(tiny_recipe: Make, tmp_path: Path) -> None:
    facts = {"data": "abc", "samples": 8, "shares": "0.500, 0.500"}
    with pytest.raises(StoppedError):
        train(tiny_recipe(), _Grey(), tmp_path, facts=facts, stop_after_images=8)
    for changed, message in (
        ({**facts, "data": "xyz"}, "data: abc -> xyz"),
        ({"data": "abc", "samples": 8}, r"shares: 0\.500, 0\.500 -> None"),
        ({**facts, "more": 1}, "more: None -> 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            train(tiny_recipe(), _Grey(), tmp_path, facts=changed)
    with pytest.raises(StoppedError):
        train(tiny_recipe(), _Grey(), tmp_path, facts=facts, stop_after_images=16)
    assert json.loads((tmp_path / "run.json").read_text()) == facts
    assert RunFolder(tmp_path).changes() == []


def test_a_finished_run_that_is_called_again_keeps_its_weights(
    tiny_recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(tiny_recipe(), _Grey(), tmp_path)
    before = first.weights.read_bytes()
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"perplexity": ', '"perplexity": 9'))
    with caplog.at_level("INFO"):
        again = train(tiny_recipe("training.log_every_images=16"), _Grey(), tmp_path)
    assert (again.sha256, again.images_seen, first.weights.read_bytes()) == (first.sha256, 64, before)
    assert "finished before" in caplog.text
    # What is damaged is written again.
    first.weights.write_bytes(before[:-1])
    assert train(tiny_recipe(), _Grey(), tmp_path).weights.read_bytes()[-1:] == before[-1:]


def test_a_run_becomes_longer_or_shorter(tiny_recipe: Make, tmp_path: Path) -> None:
    train(tiny_recipe(), _Grey(), tmp_path)
    longer = train(tiny_recipe("training.images=80"), _Grey(), tmp_path)
    assert longer.images_seen == 80
    with pytest.raises(StoppedError):
        train(tiny_recipe("training.images=800"), _Grey(), tmp_path, stop_after_images=96)
    # Shorter than it has become already: what there is is its end.
    ended = train(tiny_recipe("training.images=88"), _Grey(), tmp_path)
    assert ended.images_seen == 96
    changes = load_weights(tmp_path).card["changes"]
    assert [(change["images_seen"], change["before"], change["after"]) for change in changes] == [
        (64, 64, 80),
        (80, 80, 800),
        (96, 800, 88),
    ]
