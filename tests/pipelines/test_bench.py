"""What `vq3d bench` compares gives the same both ways; how it counts time and memory."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from vq3dcli.errors import UsageError
from vq3dcli.model.draw_codes import sample_tokens
from vq3dcli.model.prior import Prior
from vq3dcli.pipelines.bench import data, render, video
from vq3dcli.pipelines.bench.measure import Gate, Work, added_bytes, measure
from vq3dcli.pipelines.bench.run import run
from vq3dcli.pipelines.bench.sample import feed_again, grow_caches
from vq3dcli.rendering.trajectories import trajectory

CPU = torch.device("cpu")


def burn(steps: int) -> int:
    return sum(i * i for i in range(steps))


def test_a_ratio_is_of_the_work():
    found = measure(
        Work(
            "sums",
            lambda: burn(100_000),
            2,
            "sums",
            "twice",
            lambda: burn(400_000),
            lambda a, b: Gate("less", b - a, 0),
        ),
        5,
        CPU,
    )
    ratio = found["baseline"]["ratio"]
    assert found["baseline"]["agrees"] and 2.5 < ratio["median"] < 6.0
    assert ratio["least"] <= ratio["median"] <= ratio["most"]
    assert found["sums_a_second"] == 2 / found["seconds"]["median"]
    unlike = measure(Work("", lambda: burn(100_000), 2, "", "one", lambda: burn(100_000)), 1, CPU)
    assert not unlike["baseline"]["agrees"]  # NaN is no agreement


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts the peak anew")
def test_added_memory_is_the_peak_of_the_work():
    size = 64 << 20
    for _ in range(2):  # what the first call left is not used again unseen
        added = added_bytes(lambda: torch.ones(size // 4) + 1.0, CPU)
        assert added is not None and 1.9 * size < added < 2.3 * size


def test_plain_rendering_is_ours():
    rays = render.side_view(16, CPU)
    for subject in render.subjects(CPU):
        ours = render.looking(subject)(rays)
        assert render.same_colours(ours, render.plain_way(subject, rays)).passed
    grown = [render.gradients(subject, rays, ours=way) for way in (True, False)]
    assert render.signal_db(*grown) > 60.0
    dense = render.looking(subject._replace(samples=512))(rays)
    eg3d = render.psnr_db(render.eg3d_way(subject, rays), dense)
    assert 44.0 < eg3d < math.inf


def test_videos_are_of_the_same_frames(tmp_path: Path):
    subject, _ = render.subjects(CPU)
    camera = trajectory("orbit", 2, height_px=24, width_px=32)
    ours = video.our_video(subject, camera, tmp_path / "ours.mp4")
    theirs = video.their_video(subject, camera, tmp_path / "theirs.mp4")
    assert render.same_colours(ours, theirs).passed
    assert (tmp_path / "ours.mp4").stat().st_size > 0


def test_plain_loops_draw_our_codes():
    torch.manual_seed(0)
    prior = Prior(codebook_size=64, length=16, classes=10, width=32, layers=2, heads=2).eval()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    classes = torch.tensor([3, 1])
    expected = sample_tokens(prior, classes, seed=0, rows=2)
    assert len(expected.unique()) > 8
    assert torch.equal(feed_again(prior, classes), expected)
    assert torch.equal(grow_caches(prior, classes), expected)


def test_plain_readers_give_our_pixels(tmp_path: Path):
    photos = data.write_photos(tmp_path / "photos", 3)
    ours, theirs = data.squares(photos), data.pillow_squares(photos)
    assert data._agree(ours, theirs).passed
    shards = data.write_shards(tmp_path / "photos", tmp_path / "shards", 64)
    ours, theirs = data.batch_by_key(data.image_loader(shards, 3, 64)), data.webdataset_batch(shards)
    assert data._agree(ours, theirs).passed


def test_a_baseline_that_nothing_has():
    with pytest.raises(UsageError, match="nothing is compared with what"):
        run(["train"], ["what"], 1, CPU)


def test_one_subject_as_figures_and_as_a_table():
    found = run(["data"], ["Pillow"], 1, CPU)
    (work,) = found.metrics["data"]
    assert work["baseline"]["name"] == "Pillow" and work["baseline"]["ratio"]["median"] > 0.0
    assert found.metrics["host"]["copy_gb_a_second"] > 0.1
    assert len(found.table) == 3 and not found.missed
