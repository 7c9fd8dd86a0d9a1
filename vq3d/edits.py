"""Scenes of scenes: the way from one to another, and things put into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vq3d.scene import Film, Scene, ViewAt
from vq3d.words import in_own_words
from vq3dcli.errors import UsageError
from vq3dcli.meshscenes.ray_mesh import is_mesh
from vq3dcli.pipelines.compose import Opened
from vq3dcli.pipelines.composition import composition_from_options
from vq3dcli.pipelines.film import Shot, StereoKind, shot_camera
from vq3dcli.pipelines.geometry import with_relief
from vq3dcli.pipelines.inputs import STDIN, OpenedScene, Source
from vq3dcli.pipelines.interpolate import Mix, way_between
from vq3dcli.rendering.cameras import Camera
from vq3dcli.scene_file import camera_of

Place = tuple[float, float]
Box = tuple[float, float, float, float]

# Places on a way that `Way.at` tells apart.
_STEPS = 1 << 20


class Way(Film):
    """The way from one scene to another: `interpolate` makes one.

    Attributes:
        name: Of both scenes.
    """

    def __init__(self, first: Scene, second: Scene, *, mix: Mix | None, requantize: bool, loop: bool) -> None:
        weights = first.weights or second.weights
        mix = mix or ("planes" if weights is None else "codes")
        if mix == "codes" and weights is None:
            raise UsageError("codes are mixed by the weights that made them", remedy='mix="planes"')
        self._opened = (first._opened, second._opened)
        self.name = f"{first.name}_to_{second.name}"
        self._source = Source(STDIN, self.name)
        self._weights = weights
        # Codes are decoded by the weights, whose field of view is not that of the photo.
        camera = first._opened.camera
        self._camera = camera if mix == "planes" or weights is None else camera_of(weights, camera.aspect)
        self._scene_at = way_between(self._opened, weights, mix=mix, requantize=requantize, loop=loop)

    def __repr__(self) -> str:
        return f"Way({self.name!r})"

    @in_own_words
    def at(self, progress: float) -> Scene:
        """The scene at a place on the way, a plain NeRF.

        Args:
            progress: A part of the way, 0 for the first scene, 1 for the last one.

        Raises:
            UsageError: A part that is not in [0, 1].

        >>> import vq3d
        >>> a, b = vq3d.load().reconstruct(["toyscene:snowman", "toyscene:tower"])
        >>> vq3d.interpolate(a, b).at(0.25)
        Scene('toyscene-snowman_to_toyscene-tower', plain NeRF)
        """
        if not 0.0 <= progress <= 1.0:
            raise UsageError(f"a part of the way is from 0 to 1, not {progress}", remedy="0.5 for the middle")
        nerf, first = self._scene_at(round(progress * _STEPS), _STEPS + 1), self._opened[0]
        facts = {"weights_sha256": first.provenance["weights_sha256"], "way": self.name, "progress": progress}
        return Scene(OpenedScene(nerf, None, self.name, self._camera, facts), detail="none", weights=self._weights)

    def _staged(self, shot: Shot, stereo: StereoKind | None) -> tuple[ViewAt, Camera]:
        if stereo is not None:
            raise UsageError("no stereo on the way between scenes", remedy="no stereo, or way.at(0.5)")

        def view_at(frame: int) -> Any:
            return partial(self._scene_at(frame, shot.length).render, samples=shot.samples)

        return view_at, shot_camera(shot, self._camera.frustum)


@in_own_words
def interpolate(a: Scene, b: Scene, *, mix: Mix | None = None, requantize: bool = False, loop: bool = False) -> Way:
    """The way from one scene to another, of their plain NeRFs.

    Args:
        a: The first scene; the camera is its.
        b: The last one, of the same weights.
        mix: `codes`, every step decoded anew, or `planes`, a weighted mean of the tri-planes; default: `codes` where
            the weights are at hand.
        requantize: Move every mixed token to its nearest code; of `codes`.
        loop: Go back to the first scene, so that a video repeats.

    Raises:
        UsageError: Scenes of different weights, or without codes where codes are to be mixed.

    >>> import vq3d
    >>> a, b = vq3d.load().reconstruct(["toyscene:snowman", "toyscene:tower"])
    >>> way = vq3d.interpolate(a, b)
    >>> way.at(0.5).view(size=32)
    View(32 x 32 px)
    >>> way.save_video("a_to_b.gif", camera="still", frames=2, size=32)
    [PosixPath('a_to_b.gif')]
    """
    return Way(a, b, mix=mix, requantize=requantize, loop=loop)


@in_own_words
def compose(
    scene: Scene,
    insert: Scene | str | Path | None = None,
    *,
    at: Place | Sequence[Place] | None = None,
    box: Box | None = None,
    distance: float | None = None,
    scale: float = 1.0,
    rotate: float = 0.0,
    spin: float = 0.0,
    shadow: float = 0.35,
    move: Mapping[Box, Place | Sequence[Place]] | None = None,
    delete: Sequence[Box] = (),
) -> Scene:
    """Put a thing into a scene, move what is in it, or take it away; a composed scene takes more of it.

    Places and boxes are fractions of the scene's first view: (0, 0) is its top left corner, (1, 1) its bottom right.

    Args:
        scene: What it is put into; it stays as it was.
        insert: A scene to cut a thing out of, or the file of a mesh (.glb, .ply, .obj, .stl).
        at: Where its foot stands, (x, y), or several places that it visits during a video; default: its own place.
        box: Where in `insert` the thing is: left, top, right, bottom; default: what stands out of all of it.
        distance: Of its foot from the first camera; default: that of what the scene shows there.
        scale: Its size against its own; of meshes, the longest side in metres.
        rotate: Degrees about the vertical axis.
        spin: Further degrees during a video.
        shadow: How dark its shadow is, 0 to 1.
        move: From boxes in the scene to where the thing in each goes.
        delete: Boxes whose things are taken away.

    Raises:
        UsageError: A value out of range, or an insertion that is neither a scene nor a mesh.
        DataError: No thing in a box; found when it is first looked at.

    >>> import vq3d
    >>> room, other = vq3d.load().reconstruct(["toyscene:box", "toyscene:snowman"])
    >>> both = vq3d.compose(room, insert=other, at=(0.3, 0.8))
    >>> both
    Scene('toyscene-box', plain NeRF, composed)
    >>> both.view(yaw=5, size=32)
    View(32 x 32 px)
    """
    inserts: list[dict[str, Any]] = []
    before, objects = scene._edits, dict(scene._objects)
    if insert is not None:
        thing = {"object": str(insert), "scale": scale, "rotate_deg": rotate, "spin_deg": spin, "shadow": shadow}
        if isinstance(insert, Scene):
            thing["object"] = f"object {len(objects) + 1}"
            objects[str(thing["object"])] = _in_relief(insert)
        elif not isinstance(insert, str | Path) or not is_mesh(str(insert)):
            raise UsageError(
                f"what is inserted is a scene or a mesh ({insert})", remedy="model.reconstruct(path) for a photo"
            )
        optional = {"at": None if at is None else _places(at), "box": box, "z_depth": distance}
        inserts = [thing | {key: value for key, value in optional.items() if value is not None}]
    moves = [{"box": place, "at": _places(goal), "shadow": shadow} for place, goal in (move or {}).items()]
    added = composition_from_options("scene", inserts, moves, [{"box": place} for place in delete])
    if before is None:
        edits = Opened(added, _in_relief(scene), objects.__getitem__)
    else:
        edits = Opened(before.composition.with_more(added), before.scene, objects.__getitem__)
    return scene._composed(edits, objects)


def _in_relief(scene: Scene) -> OpenedScene:
    """A scene as it was opened; a photo's with the relief that it is shown with."""
    return with_relief(scene._opened, scene._look(None).geometry) if scene.detail == "photo" else scene._opened


def _places(at: Any) -> list[Any]:
    """One place or several as several. Raises `UsageError`."""
    if not isinstance(at, Iterable):
        raise UsageError(f"a place is two numbers, not {at!r}", remedy="(0.3, 0.8), or a list of such")
    several = list(at)
    return [several] if several and not isinstance(several[0], Sequence) else several
