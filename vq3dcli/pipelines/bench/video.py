"""Videos: frames of a scene beside EG3D's way of rendering them, one at a time; photo detail; the whole command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.defaults import VIDEO_FPS
from vq3dcli.data.images import encode_png
from vq3dcli.export.video import video_writer
from vq3dcli.pipelines.bench.measure import Work
from vq3dcli.pipelines.bench.render import PLAIN, SUBJECT, Subject, looking, plain_way, same_colours, subjects
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.inputs import open_scene, parse_sources
from vq3dcli.pipelines.render import Look, staged
from vq3dcli.rendering.cameras import Camera, canonical_camera, image_rays
from vq3dcli.rendering.scene import to_uint8
from vq3dcli.rendering.trajectories import trajectory
from vq3dcli.scene_file import SUFFIX, camera_of, save_scene
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.weights_file import load_weights

SIZE_PX, FRAMES, COMMAND_FRAMES, DETAIL_PX = 256, 2, 60, 512


def works(device: torch.device) -> Iterator[Work]:
    """Frames of the plain NeRF with their encoding, frames of a photo in detail, and `vq3d render` of a saved scene."""
    subject, _ = subjects(device)
    camera = trajectory("orbit", FRAMES, height_px=SIZE_PX, width_px=SIZE_PX).to(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        yield Work(
            f"video of {FRAMES} frames, {SIZE_PX} px x {subject.samples}, mp4",
            partial(our_video, subject, camera, folder / "ours.mp4"),
            FRAMES,
            "frames",
            PLAIN,
            partial(their_video, subject, camera, folder / "theirs.mp4"),
            same_colours,
        )
        look = photo_in_detail(folder, device)
        yield Work(f"photo detail, {DETAIL_PX} px", look, FRAMES, "frames")
        saved = f"a saved scene, {COMMAND_FRAMES} frames, {SIZE_PX} px, by the command"
        yield Work(saved, by_command(folder), COMMAND_FRAMES, "frames")


def our_video(subject: Subject, camera: Camera, path: Path) -> Tensor:
    """Frames `[F, N, 3]`, of a scene that is prepared in here, encoded as they come."""
    frames: list[Tensor] = []
    look = looking(subject)
    with video_writer(path, frames=len(camera), fps=VIDEO_FPS, video_format="mp4") as write:
        for i in range(len(camera)):
            frames.append(look(image_rays(camera[i])))
            write(picture(frames[-1], camera))
    return torch.stack(frames)


@torch.no_grad()
def their_video(subject: Subject, camera: Camera, path: Path) -> Tensor:
    """The same, each frame all at once, and all encoded in the end."""
    frames = [plain_way(subject, image_rays(camera[i])) for i in range(len(camera))]
    with video_writer(path, frames=len(camera), fps=VIDEO_FPS, video_format="mp4") as write:
        write(torch.cat([picture(frame, camera) for frame in frames]))
    return torch.stack(frames)


def picture(rgb: Tensor, camera: Camera) -> Tensor:
    """Colours `[N, 3]` of all pixels of a camera as a frame, uint8 `[1, 3, H, W]`."""
    return to_uint8(rgb.T.reshape(1, 3, camera.height_px, camera.width_px)).cpu()


def photo_in_detail(folder: Path, device: torch.device) -> Callable[[], object]:
    """What renders frames of a picture as a photo is shown; its relief is made here."""
    camera = canonical_camera(1, height_px=DETAIL_PX, width_px=DETAIL_PX)
    photo = folder / "photo.png"
    photo.write_bytes(encode_png(render_scenes(sample_scenes(torch.tensor([3]), seed=0), camera).rgb[0]))
    opened = open_scene(parse_sources([str(photo)])[0], load_weights(device=device), fit="squash")
    view_of, cameras = staged(opened, Shot(frames=FRAMES, size_px=DETAIL_PX), Look("photo"), detail="photo")
    return lambda: [view_of(cameras[i]) for i in range(FRAMES)]


def by_command(folder: Path) -> Callable[[], object]:
    """`vq3d render` of a saved scene, imports and ffmpeg included, on a CPU."""
    weights = load_weights()
    scene, saved = open_scene(parse_sources([SUBJECT])[0], weights, fit="crop").scene, folder / f"scene{SUFFIX}"
    save_scene(saved, scene, camera_of(weights), weights.sha256, provenance={}, photo=None)
    asked = ["--frames", COMMAND_FRAMES, "--size", SIZE_PX, "--detail", "none", "-o", folder / "out.mp4", "--quiet"]
    command = [sys.executable, "-m", "vq3dcli", "render", str(saved), *map(str, asked), "--device", "cpu"]
    return partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
