"""Camera paths as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vq3dcli.errors import DataError
from vq3dcli.pipelines.camera_file import given_camera, read_cameras, write_cameras


def test_camera_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"yaw_deg": 5, "pitch_deg": -2, "fov_x_deg": 50}, {"distance": 2}]))
    options = {"height_px": 20, "width_px": 30, "radius": 3.0, "fov_rad": 0.7}
    camera = given_camera(read_cameras(path), **options)
    write_cameras(path, camera, fps=24.0)
    again = given_camera(read_cameras(path), **options)
    assert torch.allclose(camera.cam_to_world, again.cam_to_world, atol=1e-6)
    assert torch.allclose(camera.intrinsics, again.intrinsics, rtol=1e-5)
    assert float(camera.intrinsics[0, 0, 0]) == float(camera.intrinsics[0, 1, 1])
    assert [float(pose[:3, 3].norm()) for pose in camera.cam_to_world] == pytest.approx([3.0, 2.0])


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "3",
        "nonsense",
        '[{"yaw": 3}]',
        '[{"yaw_deg": 1e400}]',
        '[{"cam_to_world": [[1,0,0,0],[0,1,0,0],[0,0,2,0]]}]',
        '[{"cam_to_world": [[1,0,0,0],[0,1,0,0],[0,0,-1,0]]}]',
        '[{"cam_to_world": [[1,0,0],[0,1,0],[0,0,1]]}]',
        '[{"cam_to_world": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,2]]}]',
        '[{"cam_to_world": [[1,0,0,0],[0,1,0,0],[0,0,1,0]], "yaw_deg": 3}]',
        '[{"cam_to_world": [[1,0,0,1e308],[0,1,0,0],[0,0,1,0]]}]',
        '[{"cam_to_world": [[true,0,0,0],[0,1,0,0],[0,0,1,0]]}]',
        '[{"yaw_deg": true}]',
        '[{"distance": 1e308}]',
        '{"cameras": [{}], "more": ' + "[" * 900 + "]" * 900 + "}",
        '{"format_version": 2, "cameras": [{}]}',
        "[" * 100_000,
    ],
)
def test_files_that_are_no_cameras(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        read_cameras(path)
