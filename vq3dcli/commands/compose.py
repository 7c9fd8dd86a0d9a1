"""`vq3d compose`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vq3dcli.commands.options import FOV, DisparityOption, FormatOption, GeometryOption, WeightsOption
from vq3dcli.commands.output import DeviceOption, JsonOption, Output, QuietOption, pick_device
from vq3dcli.config.defaults import VIDEO_FPS, VIDEO_FRAMES
from vq3dcli.errors import UsageError

if TYPE_CHECKING:
    from vq3dcli.pipelines.inputs import OpenedScene, Source

CameraName = Literal["still", "orbit", "swing", "spiral", "dolly", "dolly-zoom"]

SCENE = "A photo, sample, saved scene or toyscene:CLASS[:SEED]; or a composition file, NAME.toml."
INSERT = "What to insert: a photo or scene to cut it out of, or a mesh (.glb, .ply, .obj, .stl). Again for more."
OF_EACH = "Give it once for each --insert, in their order; - for its default."
BOX = (
    "Where on its picture the object is: left,top,right,bottom, from 0 to 1, and perhaps its nearest and farthest "
    f"distance. Default: what stands out of the whole picture. {OF_EACH}"
)
AT = f"Where on the scene's picture its foot stands; X,Y:X,Y:... is its way during the video. {OF_EACH}"
DEPTH = f"Distance of its foot from the first camera. Default: that of what the scene shows there. {OF_EACH}"
SCALE = f"Its size against its own; of meshes, the longest side in metres. {OF_EACH}"
ROTATE = f"Degrees about the vertical axis, or yaw,pitch,roll. {OF_EACH}"
MOVE = "LEFT,TOP,RIGHT,BOTTOM=X,Y[:X,Y...]: move what is in a box of the scene's picture."
OUTPUT = (
    "NAME.mp4, .webm, .gif or .png (contact sheet), or FOLDER/. Default: SCENE_composed.mp4. NAME.toml goes beside."
)


def command(
    scene: Annotated[str, typer.Argument(metavar="SCENE", help=SCENE)],
    insert: Annotated[list[str] | None, typer.Option("--insert", metavar="OBJECT", help=INSERT)] = None,
    box: Annotated[list[str] | None, typer.Option("--box", metavar="L,T,R,B", help=BOX)] = None,
    at: Annotated[list[str] | None, typer.Option("--at", metavar="X,Y", help=AT)] = None,
    depth: Annotated[list[str] | None, typer.Option("--depth", metavar="D", help=DEPTH)] = None,
    scale: Annotated[list[str] | None, typer.Option("--scale", metavar="S", help=SCALE)] = None,
    rotate: Annotated[list[str] | None, typer.Option("--rotate", metavar="DEG", help=ROTATE)] = None,
    move: Annotated[list[str] | None, typer.Option("--move", metavar="BOX=X,Y", help=MOVE)] = None,
    delete: Annotated[
        list[str] | None, typer.Option("--delete", metavar="L,T,R,B", help="Take away what is in a box.")
    ] = None,
    shadow: Annotated[
        float | None, typer.Option(help="How dark shadows are, 0 to 1. Default: 0.35, or as the file says.")
    ] = None,
    camera: Annotated[CameraName, typer.Option(help="How the camera moves, once around.")] = "orbit",
    frames: Annotated[int, typer.Option(help="Frames of the video.")] = VIDEO_FRAMES,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = VIDEO_FPS,
    size: Annotated[int | None, typer.Option(help="Longer side of the video in pixels.")] = None,
    fov: Annotated[float | None, typer.Option(help=FOV)] = None,
    amplitude: Annotated[float | None, typer.Option(help="How far the camera goes, in degrees.")] = None,
    samples: Annotated[int, typer.Option(help="Samples a ray; more are slower and cleaner.")] = 64,
    disparity: DisparityOption = False,
    detail: Annotated[
        Literal["photo", "none"] | None, typer.Option(help="The photo's own pixels, or the plain NeRF. Default: photo.")
    ] = None,
    geometry: GeometryOption = None,
    fit: Annotated[
        Literal["crop", "squash"] | None,
        typer.Option(help="The centre square of photos, or all of them. Default: squash with photo detail, else crop."),
    ] = None,
    video_format: FormatOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Insert, move and delete objects in a scene, and film it.

    Example:
      vq3d compose room.jpg --insert cat.jpg --box 0.2,0.3,0.7,0.9 --at 0.6,0.8
      vq3d compose room.jpg --insert a.glb --at 0.3,0.8 --insert b.glb --at 0.2,0.9:0.8,0.9 --camera still
      vq3d compose room.jpg --move 0.1,0.4,0.4,0.9=0.7,0.8 --delete 0.6,0.1,0.9,0.5
      vq3d compose room_composed.toml --camera swing -o again.mp4
    """
    from vq3dcli.pipelines.compose import Unchanging, build_stage, composition_files, composition_sources
    from vq3dcli.pipelines.composition import (
        SUFFIX,
        check_place,
        composition_from_options,
        read_composition,
        with_shadows,
        write_composition,
    )
    from vq3dcli.pipelines.film import Shot, check_shot, film_changing
    from vq3dcli.pipelines.inputs import needs_weights, open_scene
    from vq3dcli.pipelines.render import Look, as_shown, staged, with_geometry
    from vq3dcli.pipelines.targets import check_targets, plan_joint_target
    from vq3dcli.rendering.cameras import one_camera
    from vq3dcli.weights_file import load_weights

    if output == "-":
        raise UsageError("compose writes files, not stdout", remedy="a file name with -o")
    said = Output("compose", json, quiet)
    still = camera == "still"
    if still and amplitude is not None:
        raise UsageError("a camera that stands still has no amplitude", remedy="--camera orbit")
    shot = Shot("orbit" if still else camera, frames, fps, size, fov, 0.0 if still else amplitude, samples)
    from_file = scene.endswith(SUFFIX)
    base = read_composition(Path(scene)) if from_file else None
    options = _of_each(insert or [], {"box": box, "at": at, "depth": depth, "scale": scale, "rotate": rotate})
    added = composition_from_options(
        scene if base is None else base.scene,
        options,
        [_move(text) for text in move or []],
        [_box("--delete", text) for text in delete or []],
    )
    composition = added if base is None else base.with_more(added)
    if shadow is not None:
        composition = with_shadows(composition, shadow)

    # Stdin may be the scene, or one of the objects, but not both.
    sources = composition_sources(composition)
    stem = Path(scene).name.removesuffix(SUFFIX) if from_file else sources[0].stem
    kept = composition_files(composition, *([Path(scene)] if from_file else []), *([weights] if weights else []))
    target = plan_joint_target(sources, stem, output, video_format, kind="composed", disparity=disparity, kept=kept)
    written = target.video.with_name(f"{target.video.name.removesuffix(target.video.suffix)}{SUFFIX}")
    changed = base is None or composition != base
    if changed and written.resolve() in {path.resolve() for path in kept}:
        raise UsageError(f"the composition would overwrite the input ({written})", remedy="another name with -o")
    check_shot(shot, target.video_format)
    check_targets([target])
    if changed:
        check_place(written)
    said.replacing([*target.replaced, *([written] if changed and written.exists() else [])])

    place = pick_device(device)
    loaded = load_weights(weights, place) if weights is not None or needs_weights(sources) else None
    if loaded is not None and composition.weights_sha256 not in (None, loaded.sha256):
        said.warn(f"made with the weights {str(composition.weights_sha256)[:12]}, not with {loaded.sha256[:12]}")
    stdin = None if sys.stdin is None else sys.stdin.buffer
    look = with_geometry(Look(detail, fit, write_cameras=False), sources[:1], geometry, place)

    def open_source(source: Source) -> OpenedScene:
        return open_scene(source, loaded, fit=look.fit_of(source), stdin=stdin, device=place)

    first, *others = sources
    opened = as_shown(open_source(first), first, look)
    shown, cameras = staged(opened, shot, look, detail=look.detail_of(first))
    by_text = {source.text: source for source in others}
    stage = build_stage(
        composition,
        opened,
        lambda text: open_source(by_text[text]),
        picture=None if shown is opened.scene else shown,
    )
    holes = len(composition.delete) + len(composition.move)
    said.note(f"{len(stage.things)} things in the scene, {holes} holes closed")
    for index in stage.out_of(one_camera(cameras, 0)):
        said.warn(f"thing {index + 1} lies outside of the picture")
    whole = None if stage.moving else Unchanging(stage.at(0.0)) if still else stage.at(0.0)
    with said.progress("rendering", frames, unit="frames") as progress:
        film_changing(
            lambda frame: whole or stage.at(frame / max(1, frames - 1)),
            cameras,
            target,
            fps=fps,
            samples=samples,
            on_frames=progress.advance,
        )
    outputs = list(target.paths)
    if changed:
        sha256 = None if loaded is None else loaded.sha256
        write_composition(written, composition.model_copy(update={"weights_sha256": sha256}))
        outputs.append(written)
    said.finish(
        count=len(stage.things),
        weights=loaded,
        metrics={"things": len(stage.things), "holes": holes, "camera": camera, "frames": frames},
        table=[],
        outputs=outputs,
    )


def _of_each(objects: Sequence[str], options: dict[str, list[str] | None]) -> list[dict[str, Any]]:
    """The insertions that the options describe: the n-th value of each belongs to the n-th object."""
    inserts: list[dict[str, Any]] = [{"object": name} for name in objects]
    for option, values in options.items():
        if values and len(values) != len(objects):
            raise UsageError(
                f"{len(values)} values of --{option} for {len(objects)} of --insert",
                remedy=f"--{option} once for each --insert, or a composition file",
            )
        for insert, text in zip(inserts, values or [], strict=False):
            if text != "-":
                insert |= _option(option, text)
    return inserts


def _option(option: str, text: str) -> dict[str, Any]:
    if option == "box":
        return _box("--box", text)
    if option == "at":
        return {"at": _places("--at", text)}
    if option == "depth":
        return {"z_depth": _numbers("--depth", text, 1)[0]}
    if option == "scale":
        return {"scale": _numbers("--scale", text, 1)[0]}
    turns = _numbers("--rotate", text, 1, 3)
    return {"rotate_deg": turns[0] if len(turns) == 1 else turns}


def _move(text: str) -> dict[str, Any]:
    box, equals, places = text.partition("=")
    if not equals:
        raise UsageError(f"--move needs a box and a place ({text})", remedy="--move 0.1,0.4,0.4,0.9=0.7,0.8")
    return {**_box("--move", box), "at": _places("--move", places)}


def _box(option: str, text: str) -> dict[str, Any]:
    numbers = _numbers(option, text, 4, 6)
    return {"box": numbers[:4]} | ({"z_range": numbers[4:]} if len(numbers) == 6 else {})


def _places(option: str, text: str) -> list[list[float]]:
    return [_numbers(option, part, 2) for part in text.split(":")]


def _numbers(option: str, text: str, *counts: int) -> list[float]:
    """Numbers between commas, one of `counts` many. Raises `UsageError`."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{option} needs {wanted} numbers with commas between them, got {text!r}")
    return numbers
