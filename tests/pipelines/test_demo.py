"""`vq3d demo` from end to end with a tiny model, and what it samples."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.export.ffmpeg import find_ffmpeg
from vq3dcli.model.build import build_prior
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.studies import demo
from vq3dcli.toyscenes import CLASS_NAMES
from vq3dcli.weights_file import TokenFacts, load_prior, load_weights, save_weights

PHOTOS = tuple(f"n{i:08d}" for i in range(20))


@pytest.mark.parametrize(("names", "shown"), [((), 1), (CLASS_NAMES, 16), (PHOTOS, 16)])
def test_at_most_sixteen_classes_are_sampled(
    names: tuple[str, ...], shown: int, tiny_prior_recipe: Callable[..., Stage2Recipe], tmp_path: Path
) -> None:
    recipe = tiny_prior_recipe()
    facts = TokenFacts(stage1_sha256="ab" * 32, codebook_size=32, length=16, class_names=names)
    model = build_prior(recipe, codebook_size=32, length=16, classes=len(names))
    save_weights(tmp_path / "prior.safetensors", model, recipe, {}, facts)
    assert len(demo.sampled_classes(load_prior(tmp_path / "prior.safetensors"))) == shown


def frames_of(video: Path, side_px: int) -> np.ndarray:
    command = [find_ffmpeg(), "-loglevel", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, side_px, side_px, 3)


def test_a_photo_toys_and_samples_are_filmed(
    tiny_prior_recipe: Callable[..., Stage2Recipe],
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "_VIDEO", Shot("orbit", frames=3, size_px=16))
    monkeypatch.setattr(demo, "_SHEET", Shot("orbit", frames=2, size_px=16))
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "cat.png")  # the photo, were it not there, is fetched
    recipe = tiny_prior_recipe()
    sha256 = load_weights(tiny_weights).sha256
    facts = TokenFacts(stage1_sha256=sha256, codebook_size=32, length=16, class_names=("arch", "torus"))
    save_weights(tmp_path / "prior.st", build_prior(recipe, codebook_size=32, length=16, classes=2), recipe, {}, facts)
    parts: dict[str, tuple[int, int]] = {}

    @contextmanager
    def counting(description: str, unit: str) -> Iterator[Callable[..., None]]:
        yield lambda done, total, status="": parts.update({f"{description}, {unit}": (done, total)})

    made = demo.demo(load_weights(tiny_weights), load_prior(tmp_path / "prior.st"), tmp_path, counting=counting)
    assert [done for done, _ in parts.values()] == [total for _, total in parts.values()] == [9, 6, 64, 10]
    names = [str(path.relative_to(tmp_path)) for path in made]
    for name in ("cat", "toyscene-mushroom", "toyscene-arch"):
        assert {f"{name}_orbit.mp4", f"{name}_orbit_disparity.mp4", f"{name}_orbit.png"} <= set(names)
    assert "samples/sheet.png" in names and sum(name.startswith("samples/") for name in names) == 5
    for path in made:
        if path.suffix == ".mp4":
            assert len(frames_of(path, 16)) == 3, path

    options = ["--weights", str(tiny_weights), "--device", "cpu", "--quiet", "--json"]
    assert run(["demo", "--out", str(tmp_path / "again"), *options]) == 0  # without a prior there are no samples
    said = json.loads(capsys.readouterr().out)
    assert said["count"] == len(said["outputs"]) >= 6
    assert all(Path(output).stat().st_size for output in said["outputs"])
