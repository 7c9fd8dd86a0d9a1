"""`vq3d sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import DeviceOption, Output, SeedOption, pick_device
from vq3dcli.config.defaults import VIDEO_FPS
from vq3dcli.errors import UsageError

SHOWN_CLASSES = 16
_OF_VIDEOS = ("--amplitude", "--frames", "--seconds", "--size", "--fps", "--quality", "--detail")
CAMERA = "Also film each scene: orbit, swing, spiral, dolly, dolly-zoom, still, or a JSON file of cameras."
DETAIL = (
    "Of videos. photo carries the pixels of the first view to novel views, on the geometry of the embedded depth "
    "network; none is the plain NeRF."
)
CLASS = (
    "Classes by name or number, a comma between them; of ImageNet also WordNet ids; all for all. "
    f"Default: all, or {SHOWN_CLASSES} of more."
)


def command(
    context: typer.Context,
    said: Output,
    sharpened: options.Sharpened,
    classes: Annotated[str | None, typer.Option("--class", metavar="NAMES", help=CLASS)] = None,
    count: Annotated[int, typer.Option("-n", "--each", min=1, max=1_000_000, help="Samples a class.")] = 4,
    seed: SeedOption = 0,
    weights: options.Weights = None,
    prior: options.Prior = None,
    camera: Annotated[str | None, typer.Option(metavar="NAME|FILE", help=CAMERA)] = None,
    orbit: Annotated[bool, typer.Option("--orbit", help="The same as --camera orbit.")] = False,
    amplitude: options.Amplitude = None,
    frames: options.Frames = None,
    seconds: options.Seconds = None,
    fps: options.Fps = VIDEO_FPS,
    size: options.PlainSize = None,
    quality: options.Quality = "good",
    detail: Annotated[Literal["photo", "none"], typer.Option(help=DETAIL)] = "none",
    disparity: options.Disparity = False,
    npz: Annotated[bool, typer.Option("--npz", help="Also write all pictures as one file in ADM's format.")] = False,
    open_it: options.Open = False,
    exact: options.Exact = False,
    part: options.Part = "auto",
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to.")] = Path("samples"),
) -> None:
    """Sample new 3D scenes: pictures, a contact sheet with disparity, videos.

    FOLDER also gets samples.json, which says all that it takes to make the same samples again. Interrupted, the same
    command goes on. Samples of an earlier call stay until those that replace them are whole. Several GPUs or machines
    share the work with --part, into one folder.

    Example:
      vq3d sample --class "torus,3" -n 8 --seed 0 -o new/
      vq3d sample --camera swing --amplitude 10 --detail photo --disparity
      torchrun --nproc-per-node 8 -m vq3dcli sample --class all -n 50 -o new/
      vq3d sample --class "golden retriever" --weights stage1/ --prior stage2/ --guidance 1.75 --top-k 2000
    """
    from vq3dcli.export.video import check_output
    from vq3dcli.model.draw_codes import NO_CLASS
    from vq3dcli.pipelines.film import check_shot, shot_of
    from vq3dcli.pipelines.geometry import open_geometry
    from vq3dcli.pipelines.sampling.record import SampleWish, pick_classes, some_classes
    from vq3dcli.pipelines.sampling.sample import RECORD_NAME, make_samples, sharpening_of
    from vq3dcli.weights_file import load_prior, load_weights

    share = options.asked_part(part, said)
    if orbit and camera not in (None, "orbit"):
        raise UsageError(f"one camera path at a time, not --orbit and --camera {camera}")
    camera, shot, geometry = "orbit" if orbit else camera, None, None
    if camera is None:
        options.refuse_given(context, _OF_VIDEOS, "is for videos (--camera orbit)")
    else:
        shot = shot_of(camera, amplitude, frames=frames, seconds=seconds, fps=fps, size_px=size, quality=quality)
        check_shot(shot, "mp4")
    target = pick_device(device)
    if detail == "photo":
        geometry = open_geometry(None, target)
    loaded_prior = load_prior(prior, target)
    loaded = load_weights(weights, target)
    loaded_prior.check_stage1(loaded)
    sharpening = sharpening_of(loaded_prior, **vars(sharpened))
    names = loaded_prior.tokens.class_names
    if classes is None:
        chosen = some_classes(loaded_prior.recognised, SHOWN_CLASSES) or [NO_CLASS]
    else:
        chosen = pick_classes(classes, names)
    video = shot is not None
    check_output(out / ("sheet.mp4" if video else "sheet.png"), "mp4" if video else "png")  # before hours of work
    said.replacing([out / RECORD_NAME])
    said.note(f"{count} samples of {len(chosen)} classes, prior {loaded_prior.path}, weights {loaded.path}")
    if classes is None and len(chosen) < len(names):
        said.note(f"{len(chosen)} of {len(names)} classes; --class all takes all")
    wish = SampleWish(chosen, count, seed, sharpening, shot, None, disparity, npz, geometry)
    outputs = make_samples(out, loaded, loaded_prior, wish, said.progress, share)
    if outputs is None:
        said.note(options.unfinished(share))
    said.finish(
        count=wish.total,
        seed=seed,
        weights=loaded,
        metrics={"prior": {"path": loaded_prior.path, "sha256": loaded_prior.sha256}, "classes": len(chosen)}
        | ({} if outputs is not None else {"part": str(share)}),
        table=[],
        outputs=[out] if outputs is None else outputs,
        show=open_it,
    )
