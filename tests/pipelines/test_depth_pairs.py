"""Pairs of photos and disparity on disk, the guesses beside the networks, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli import cli
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import DepthRecipe
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.model.build import build_depth_network
from vq3dcli.pipelines.evaluation.depth_pairs import MAP_PX, measure_pairs, open_pairs, sheet
from vq3dcli.weights_file import save_weights


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six 80 x 64 pictures; the disparity of the first set rises downwards, of the second to the right."""
    folder, lines = tmp_path / "pairs", []
    folder.mkdir()
    for number in range(6):
        rng = np.random.default_rng(number)
        y, x = np.mgrid[0:64, 0:80]
        levels = (800 * (y if number < 3 else x) + 1).astype(np.uint16)
        levels[:, :20] = 0 if number == 0 else levels[:, :20]
        Image.fromarray(levels).save(folder / f"p{number}.disparity.png")
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(folder / f"p{number}.jpg")
        kind = {"set": "down", "kind": "sensor", "lo": 0.2, "hi": 1.2} if number < 3 else {"set": "right"}
        lines.append(json.dumps({"name": f"p{number}", **kind}))
    (folder / "index.jsonl").write_text("\n".join(lines))
    return folder


def test_pairs_are_centre_squares_in_their_own_units(pairs: Path) -> None:
    first, second, *_ = open_pairs(pairs)
    assert first.image.shape == (3, 64, 64) and first.disparity.shape == (MAP_PX, MAP_PX)
    assert first.group == "down" and first.amounts
    assert bool((first.disparity[:, :12] == 0).all()) and bool((first.disparity[:, 12:] > 0).all())
    expected = 0.2 + (800 * torch.arange(64.0)) / 65534
    torch.testing.assert_close(second.disparity[:, 0], expected)


def test_guesses_stand_beside_the_networks(pairs: Path) -> None:
    found, seen = measure_pairs(open_pairs(pairs), {"right": lambda x: torch.arange(9.0).expand(1, 9, 9)})
    assert found["down"]["vertical gradient"]["spearman"] == pytest.approx(1.0)
    assert found["down"]["mean of the others"]["spearman"] == pytest.approx(1.0, abs=0.02)
    assert found["right"]["vertical gradient"]["spearman"] == pytest.approx(0.0, abs=1e-6)
    assert found["right"]["right"]["spearman"] == pytest.approx(1.0, abs=1e-3)
    assert found["down"]["right"]["poor"] == 1.0 and found["right"]["right"]["poor"] == 0.0
    assert "delta1" in found["down"]["right"] and "delta1" not in found["right"]["right"]
    assert [each.pair.name for each in seen] == [f"p{number}" for number in range(6)]
    assert [round(each.spearman["right"], 3) for each in seen] == pytest.approx([0, 0, 0, 1, 1, 1], abs=2e-3)
    assert sheet(seen).shape[0] == 3
    row = found["down"]["right"]
    assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"] and row["images"] == 3


def test_what_is_missing_or_damaged_is_named(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no pairs"):
        open_pairs(tmp_path)
    (pairs / "index.jsonl").write_text("{")
    with pytest.raises(DataError, match="damaged index"):
        open_pairs(pairs)
    (pairs / "index.jsonl").unlink()
    assert {pair.group for pair in open_pairs(pairs)} == {"all"}
    Image.fromarray(np.ones((8, 8), np.uint16)).save(pairs / "p1.disparity.png")
    with pytest.raises(DataError, match="another size"):
        open_pairs(pairs)


def test_the_command_measures_a_network_and_stage_1(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("depth-lite0", DepthRecipe, ["model.widths=[4, 8, 8, 8, 16]", "model.input_px=64"])
    teacher = tmp_path / "teacher.safetensors"
    save_weights(teacher, build_depth_network(recipe), recipe, {})
    words = ["evaluate", "depth", "--data", str(pairs), "--model", str(teacher), "--weights", "embedded"]
    assert cli.run([*words, "-o", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["metrics"]["down"].keys() == {"vertical gradient", "mean of the others", "teacher", "Stage 1 embedded"}
    assert json.loads((tmp_path / "out/depth.json").read_text())["count"] == 6
    page = (tmp_path / "out/depth.html").read_text()
    assert (tmp_path / "out/depth.png").is_file() and "<svg" in page and "<img" in page
    assert cli.run([*words, "--model", str(teacher)]) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/depth.html").write_text("mine")
    assert cli.run([*words, "-o", str(tmp_path / "mine")]) == 73
    assert (tmp_path / "mine/depth.html").read_text() == "mine"
