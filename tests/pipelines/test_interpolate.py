"""Between scenes: exact at the stops, smooth between them, and one video in the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vq3dcli.cli import run
from vq3dcli.errors import UsageError
from vq3dcli.model.blend import between_on_sphere, mix_codes, mix_planes
from vq3dcli.model.scene import scene_from_codes
from vq3dcli.pipelines.inputs import OpenedScene, open_scene, parse_sources
from vq3dcli.pipelines.interpolate import leg, way_between
from vq3dcli.scene_file import camera_of, save_scene
from vq3dcli.weights_file import LoadedWeights, load_weights


@pytest.fixture(scope="module")
def weights(tiny_weights: Path) -> LoadedWeights:
    return load_weights(tiny_weights)


@pytest.fixture(scope="module")
def opened(weights: LoadedWeights) -> list[OpenedScene]:
    sources = parse_sources(["toyscene:sphere", "toyscene:box:1", "toyscene:torus:2"])
    return [open_scene(source, weights, fit="crop") for source in sources]


def test_points_on_the_arc() -> None:
    first, second = functional.normalize(torch.randn(2, 7, 5), dim=-1)
    for fraction in (0.0, 0.25, 0.5, 1.0):
        point = between_on_sphere(first, second, fraction)
        torch.testing.assert_close(point.norm(dim=-1), torch.ones(7))
        angle = torch.acos((first * second).sum(-1))
        torch.testing.assert_close((point * first).sum(-1), torch.cos(fraction * angle), atol=1e-5, rtol=0)
    torch.testing.assert_close(between_on_sphere(first, first, 0.3), first)
    assert torch.isfinite(between_on_sphere(first, -first, 0.5)).all()


@pytest.mark.parametrize(
    ("frame", "frames", "stops", "loop", "expected"),
    [
        (0, 5, 2, False, (0, 0.0)),
        (4, 5, 2, False, (0, 1.0)),
        (1, 5, 2, False, (0, 0.25)),
        (4, 9, 3, False, (1, 0.0)),
        (8, 9, 3, False, (1, 1.0)),
        (0, 1, 2, False, (0, 0.0)),
        (0, 6, 2, True, (0, 0.0)),
        (3, 6, 2, True, (1, 0.0)),
        (5, 6, 2, True, (1, 2 / 3)),
    ],
)
def test_where_a_frame_lies(frame: int, frames: int, stops: int, loop: bool, expected: tuple[int, float]) -> None:
    index, fraction = leg(frame, frames, stops, loop=loop)
    assert index == expected[0]
    assert fraction == pytest.approx(expected[1])


def test_the_stops_are_the_scenes_themselves(weights: LoadedWeights, opened: list[OpenedScene]) -> None:
    for mix in ("codes", "planes"):
        scene_at = way_between(opened, weights, mix=mix, requantize=False, loop=False)
        for frame, item in zip((0, 4, 8), opened, strict=True):
            assert torch.equal(scene_at(frame, 9).planes, item.scene.planes)
        between = scene_at(2, 9)
        assert not torch.equal(between.planes, opened[0].scene.planes)
        assert between.codes.shape == (1, 0)


def test_mixtures_move_evenly_from_one_scene_to_the_other(weights: LoadedWeights, opened: list[OpenedScene]) -> None:
    first, second = opened[0].scene, opened[1].scene
    for mixed in (
        [mix_planes(first, second, k / 8).planes for k in range(9)],
        [mix_codes(weights.model, first.codes, second.codes, k / 8).planes for k in range(9)],
    ):
        steps = torch.stack([(b - a).norm() for a, b in itertools.pairwise(mixed)])
        assert steps.max() < 0.5 * (mixed[-1] - mixed[0]).norm()


def test_a_requantized_mixture_is_made_of_codes(weights: LoadedWeights, opened: list[OpenedScene]) -> None:
    first, second = opened[0].scene, opened[1].scene
    mixed = mix_codes(weights.model, first.codes, second.codes, 0.5, requantize=True)
    assert mixed.codes.shape == first.codes.shape
    assert torch.equal(mixed.planes, scene_from_codes(weights.model, mixed.codes).planes)


def test_what_has_no_way_between(weights: LoadedWeights, opened: list[OpenedScene]) -> None:
    with pytest.raises(UsageError, match="leads nowhere"):
        way_between(opened[:1], weights, mix="codes", requantize=False, loop=False)
    with pytest.raises(UsageError, match="requantize"):
        way_between(opened, weights, mix="planes", requantize=True, loop=False)
    scene = mix_planes(opened[0].scene, opened[1].scene, 0.5)
    without = OpenedScene(scene, None, "mixture", opened[0].camera, opened[0].provenance)
    with pytest.raises(UsageError, match="without codes"):
        way_between([opened[0], without], weights, mix="codes", requantize=False, loop=False)
    assert way_between([opened[0], without], None, mix="planes", requantize=False, loop=True)(0, 2) is opened[0].scene
    other = OpenedScene(opened[1].scene, None, "other", opened[0].camera, {"weights_sha256": "0" * 64})
    with pytest.raises(UsageError, match="different weights"):
        way_between([opened[0], other], weights, mix="planes", requantize=False, loop=False)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def interpolate(tiny_weights: Path) -> Callable[..., int]:
    def call(*arguments: str) -> int:
        small = ["--frames", "3", "--size", "16", "--samples", "8", "--weights", str(tiny_weights), "--device", "cpu"]
        return run(["interpolate", *arguments, *small])

    return call


def test_photos_and_saved_scenes_mix_into_a_video(
    interpolate: Callable[..., int],
    weights: LoadedWeights,
    opened: list[OpenedScene],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "torus.vq3d.safetensors"
    save_scene(saved, opened[2].scene, camera_of(weights), weights.sha256, provenance={}, photo=None)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    for mix, camera in (("codes", "still"), ("planes", "orbit")):
        out = tmp_path / f"{mix}.gif"
        options = ["--mix", mix, "--camera", camera, "--disparity", "--json", "-o", str(out)]
        assert interpolate("toyscene:sphere", str(saved), str(tmp_path / "photo.png"), *options) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["count"] == 3
        assert result["outputs"] == [str(out), str(tmp_path / f"{mix}_disparity.gif")]
        with Image.open(out) as video:
            assert video.n_frames == 3  # type: ignore[attr-defined]
            assert video.size == (16, 16)


def test_frames_at_the_ends_are_what_render_shows(
    interpolate: Callable[..., int], opened: list[OpenedScene], tmp_path: Path
) -> None:
    assert interpolate("toyscene:sphere", "toyscene:box:1", "-o", f"{tmp_path}/frames/") == 0
    from vq3dcli.rendering.cameras import canonical_camera

    view = opened[1].scene.render(canonical_camera(1, height_px=16, width_px=16), samples=8)
    with Image.open(tmp_path / "frames" / "frame_00002.png") as frame:
        last = torch.from_numpy(np.asarray(frame).copy()).permute(2, 0, 1)
    assert (last.int() - view.rgb[0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["toyscene:sphere"], 2),
        (["toyscene:sphere", "toyscene:box", "-o", "-"], 2),
        (["toyscene:sphere", "toyscene:box", "--mix", "planes", "--requantize"], 2),
        (["toyscene:sphere", "missing.jpg"], 66),
    ],
)
def test_mistakes_end_in_one_line(
    interpolate: Callable[..., int], arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert interpolate(*arguments) == code
    assert not list(tmp_path.iterdir())


def test_no_input_is_overwritten(interpolate: Callable[..., int], tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(photo)
    before = photo.read_bytes()
    assert interpolate("toyscene:sphere", str(photo), "-o", str(photo)) == 2
    assert photo.read_bytes() == before
