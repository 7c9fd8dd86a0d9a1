"""`vq3d compose`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vq3dcli.commands import options
from vq3dcli.commands.output import Output
from vq3dcli.errors import UsageError

SCENE = "A photo, sample, saved scene or toyscene:CLASS[:SEED]; or a composition file, NAME.toml."
INSERT = "What to insert: a photo or scene to cut it out of, or a mesh (.glb, .ply, .obj, .stl). Again for more."
OF_EACH = "Give it once for each --insert, in their order; - for its default."
BOX = (
    "Where on its picture the object is: left,top,right,bottom, from 0 to 1, and perhaps its nearest and farthest "
    f"distance. Default: what stands out of the whole picture. {OF_EACH}"
)
AT = f"Where on the scene's picture its foot stands; several, X,Y:X,Y, are its way during the video. {OF_EACH}"
DISTANCE = f"Distance of its foot from the first camera. Default: that of what the scene shows there. {OF_EACH}"
SCALE = f"Its size against its own; of meshes, the longest side in metres. {OF_EACH}"
ROTATE = f"Degrees about the vertical axis, or yaw,pitch,roll. {OF_EACH}"
MOVE = "LEFT,TOP,RIGHT,BOTTOM=X,Y[:X,Y...]: move what is in a box of the scene's picture."
OUTPUT = (
    "NAME.mp4, .webm, .gif or .png (contact sheet), or FOLDER/. Default: SCENE_composed.mp4. NAME.toml goes beside."
)
_FILMED = options.Filmed(camera="orbit", samples=64)


def command(
    said: Output,
    scene: Annotated[str, typer.Argument(metavar="SCENE", help=SCENE)],
    insert: Annotated[list[str] | None, typer.Option("--insert", metavar="OBJECT", help=INSERT)] = None,
    box: Annotated[list[str] | None, typer.Option("--box", metavar="L,T,R,B", help=BOX)] = None,
    at: Annotated[list[str] | None, typer.Option("--at", metavar="X,Y", help=AT)] = None,
    distance: Annotated[list[str] | None, typer.Option("--distance", metavar="D", help=DISTANCE)] = None,
    scale: Annotated[list[str] | None, typer.Option("--scale", metavar="S", help=SCALE)] = None,
    rotate: Annotated[list[str] | None, typer.Option("--rotate", metavar="DEG", help=ROTATE)] = None,
    move: Annotated[list[str] | None, typer.Option("--move", metavar="BOX=X,Y", help=MOVE)] = None,
    delete: Annotated[
        list[str] | None, typer.Option("--delete", metavar="L,T,R,B", help="Take away what is in a box.")
    ] = None,
    shadow: Annotated[
        float | None, typer.Option(help="How dark shadows are, 0 to 1. Default: 0.35, or as the file says.")
    ] = None,
    filmed: options.Filmed = _FILMED,
    detail: options.Detail = None,
    geometry: options.Geometry = None,
    photo_fov: options.PhotoFov = None,
    fit: options.Fit = None,
    output: Annotated[str | None, typer.Option("--out", "-o", metavar="PATH", help=OUTPUT)] = None,
) -> None:
    """Insert, move and delete objects in a scene, and film it.

    Example:
      vq3d compose room.jpg --insert cat.jpg --box 0.2,0.3,0.7,0.9 --at 0.6,0.8
      vq3d compose room.jpg --insert a.glb --at 0.3,0.8 --insert b.glb --at 0.2,0.9:0.8,0.9 --camera still
      vq3d compose room.jpg --move 0.1,0.4,0.4,0.9=0.7,0.8 --delete 0.6,0.1,0.9,0.5
      vq3d compose room_composed.toml --camera swing -o again.mp4
    """
    from vq3dcli.pipelines.compose import compose
    from vq3dcli.pipelines.composition import SUFFIX, composition_from_options, read_composition, with_shadows
    from vq3dcli.pipelines.render import Look

    shot = filmed.shot()
    file = Path(scene) if scene.endswith(SUFFIX) else None
    base = None if file is None else read_composition(file)
    added = composition_from_options(
        scene if base is None else base.scene,
        _of_each(insert or [], {"box": box, "at": at, "distance": distance, "scale": scale, "rotate": rotate}),
        [_move(text) for text in move or []],
        [_box("--delete", text) for text in delete or []],
    )
    composition = added if base is None else base.with_more(added)
    if shadow is not None:
        composition = with_shadows(composition, shadow)
    with said.progress("rendering", unit="frames") as count:
        task = filmed.task(said, count, output, geometry)
        made = compose(composition, file, shot, Look(detail, fit, photo_fov_deg=photo_fov), task)
    said.show_made(made, show=filmed.open_it, camera=filmed.camera)


def _of_each(objects: Sequence[str], given: dict[str, list[str] | None]) -> list[dict[str, Any]]:
    """The insertions that the options describe: the n-th value of each belongs to the n-th object."""
    inserts: list[dict[str, Any]] = [{"object": name} for name in objects]
    for option, values in given.items():
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
    if option == "distance":
        return {"z_depth": options.numbers("--distance", text, 1)[0]}
    if option == "scale":
        return {"scale": options.numbers("--scale", text, 1)[0]}
    turns = options.numbers("--rotate", text, 1, 3)
    return {"rotate_deg": turns[0] if len(turns) == 1 else turns}


def _move(text: str) -> dict[str, Any]:
    box, equals, places = text.partition("=")
    if not equals:
        raise UsageError(f"--move needs a box and a place ({text})", remedy="--move 0.1,0.4,0.4,0.9=0.7,0.8")
    return {**_box("--move", box), "at": _places("--move", places)}


def _box(option: str, text: str) -> dict[str, Any]:
    numbers = options.numbers(option, text, 4, 6)
    return {"box": numbers[:4]} | ({"z_range": numbers[4:]} if len(numbers) == 6 else {})


def _places(option: str, text: str) -> list[list[float]]:
    return [options.numbers(option, part, 2) for part in text.split(":")]
