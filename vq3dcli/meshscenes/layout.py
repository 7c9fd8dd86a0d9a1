"""Where the models, surfaces and lights of mesh scenes are.

About six in ten scenes stand on a ground that is seen (open land, before a wall, in a room, on a table), so that what
is low is near, as in most photos; the others are close-ups, before a photo out of focus more often than not.

Lengths are in metres with the pivot at the distance 3, and mostly drawn as shares of the frame, which is as long as the
picture's side at the pivot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from vq3dcli.meshscenes.builder import Builder, Skin, plain, tilted, turned
from vq3dcli.meshscenes.library import Dice, Library
from vq3dcli.meshscenes.models import Model
from vq3dcli.meshscenes.raster import NOTHING, Floats, Singles, Textures, Triangles
from vq3dcli.meshscenes.shading import Light, Sky
from vq3dcli.rendering.cameras import CAMERA_RADIUS

Kind = Literal["open", "wall", "room", "table", "close"]

KINDS: tuple[tuple[Kind, float], ...] = (
    ("open", 0.22),
    ("wall", 0.11),
    ("room", 0.14),
    ("table", 0.14),
    ("close", 0.39),
)
_WIDE_M = 300.0
_CLEAR_M = 1.5  # others stand at least so far from the camera
_ROLL_RAD = math.radians(6.0)


class Layout(NamedTuple):
    """A scene in the world."""

    kind: Kind  # what is around the main model
    class_index: int  # of the main model
    triangles: Triangles  # those that cast shadows come first. Part 0 is the main model, NOTHING are surfaces
    num_casters: int  # how many cast shadows
    textures: Textures  # of the triangles and the sky
    sky: Sky  # what is behind all
    light: Light  # sun and air
    reach_m: float  # half width of what shadows are computed for, around `centre`
    centre: Floats  # of shadows `[3]`
    fov_rad: float  # of the cameras
    blur_px: float  # of a picture of 128 pixels, at half of the main model's disparity; 0 for none
    vignette: float = 0.0  # share of the light that the corners lack
    brightness: tuple[float, float] = (0.28, 0.62)  # least and largest mean level of the picture
    least_share: float = 0.03  # of the picture that the main model must cover
    least_contrast: float = 0.04  # deviation that the picture's levels must have
    whole: bool = False  # the main model must not be cut by the picture's edges


def drawn_kind(dice: Dice, kinds: Sequence[tuple[Kind, float]]) -> Kind:
    """One of the kinds, by their shares, whose sum is 1."""
    place = dice()
    for kind, share in kinds[:-1]:
        place -= share
        if place < 0.0:
            return kind
    return kinds[-1][0]


class Draft:
    """A scene while it is drawn."""

    off_centre = 1.0  # how far the main model may be from the middle, as a share of what is usual
    depth_counts = 0.0  # how much of its length away from the camera counts where its size is drawn

    def __init__(self, library: Library, dice: Dice, kind: Kind, fov_rad: float) -> None:
        self.library, self.dice, self.kind, self.fov_rad = library, dice, kind, fov_rad
        self.frame = 2.0 * CAMERA_RADIUS * math.tan(0.5 * fov_rad)
        self.builder = Builder()
        self.elevation_rad = math.radians(self.elevation_deg())
        lean = 2.0 * dice() - 1.0
        self.roll_rad = lean * abs(lean) * _ROLL_RAD  # most photos are nearly level
        self.used: list[tuple[float, float, float]] = []

    def elevation_deg(self) -> float:
        """By which the camera looks down."""
        dice = self.dice
        if self.kind == "open":
            return min(45.0, 2.0 + 12.0 * abs(dice.bell()))
        if self.kind == "table":
            return dice(10.0, 58.0)
        if self.kind == "close":
            return dice(-4.0, 12.0) if dice.chance(0.5) else dice(8.0, 45.0)
        return dice(2.0, 14.0) if dice.chance(0.5) else dice(10.0, 40.0)

    def main_size(self) -> tuple[float, float]:
        """Least and largest side of the main model in the picture, as shares of the frame."""
        return {
            "open": (0.2, 1.1), "wall": (0.4, 1.2), "room": (0.3, 1.0), "table": (0.25, 0.75), "close": (0.8, 2.0),
        }[self.kind]  # fmt: skip

    def draw(self) -> Layout:
        """The scene."""
        dice = self.dice
        class_index, number = self.library.pick(dice)
        self._place_main(number)
        count = {"open": 9, "wall": 4, "room": 5, "table": 6, "close": 4}[self.kind]
        for part in range(1, 1 + dice.number(count)):
            self._place_other(class_index, part)
        if self.kind == "table":
            self._lay_table()
        if self.kind == "open" and dice.chance(0.45):
            self._raise_hills()
        num_casters = self.builder.count
        floor_y = self.ground_y + (dice(0.4, 1.2) * self.frame if self.kind == "table" else 0.0)
        grounded = self.kind not in ("close", "table") or dice.chance(0.6)
        if grounded:
            self.lay_floor(self.surface(), floor_y, 2.0 * _WIDE_M)
        walled = self.kind in ("wall", "room") or dice.chance({"table": 0.6, "close": 0.35}.get(self.kind, 0.0))
        if walled:
            self._build_walls(floor_y)
        centre = np.array([0.0, self.ground_y, 0.0])
        return self.finished(class_index, num_casters, centre, 1.3 * self.frame, walled=walled)

    def finished(self, class_index: int, num_casters: int, centre: Floats, reach_m: float, *, walled: bool) -> Layout:
        """The scene of what was built, with its light; shadows are computed within `reach_m` of `centre` (level)."""
        dice = self.dice
        light = self._light(walled)
        sky = self._sky()
        level = self.builder.triangles()
        blurred = dice.chance(0.6 if self.kind == "close" else 0.25)
        return Layout(
            kind=self.kind,
            class_index=class_index,
            triangles=level._replace(
                corners=self.tilted(level.corners).astype(np.float32),
                normals=self.tilted(level.normals).astype(np.float32),
            ),
            num_casters=num_casters,
            textures=self.builder.textures(),
            sky=sky,
            light=light,
            reach_m=reach_m,
            centre=self.tilted(centre),
            fov_rad=self.fov_rad,
            blur_px=dice(0.4, 2.4) if blurred else 0.0,
        )

    def tilted(self, vectors: Floats | Singles) -> Floats:
        """Level vectors `[..., 3]` in the world."""
        return tilted(vectors, self.elevation_rad, self.roll_rad)

    def _place_main(self, number: int) -> None:
        dice, model = self.dice, self.library.model(number)
        low, high = self.main_size()
        yaw_rad = dice(0.0, 2.0 * math.pi)
        stretch = np.array([dice(0.85, 1.2) for _ in range(3)] if dice.chance(0.25) else [1.0, 1.0, 1.0])
        stretch[0] *= dice.sign()
        seen = tilted(turned(model.corners * stretch, yaw_rad), self.elevation_rad, 0.0).reshape(-1, 3)
        lower, upper = seen.min(0), seen.max(0)
        scale = dice(low, high) * self.frame / float(((upper - lower) * (1.0, 1.0, self.depth_counts)).max())
        self.main_scale = scale
        x, y = (dice.bell() * share * self.off_centre * self.frame for share in (0.1, 0.07))
        height = -float(model.corners[..., 1].min()) * float(stretch[1]) * scale
        self.ground_y = y + 0.5 * height
        self.stand(model, np.array([x, self.ground_y, 0.0]), yaw_rad, stretch * scale, 0)
        self.used.append((x, 0.0, 0.5 * scale * float(max(model.size[0], model.size[2]))))

    def _place_other(self, class_index: int, part: int) -> None:
        """One more model, where there is room for it."""
        dice = self.dice
        _, number = self.library.pick(dice, class_index if dice.chance(0.4) else None)
        model = self.library.model(number)
        scale = self.main_scale * math.exp(0.45 * dice.bell()) * (0.7 if self.kind == "close" else 1.0)
        radius = 0.5 * scale * float(max(model.size[0], model.size[2]))
        yaw_rad, side, across = dice(0.0, 2.0 * math.pi), dice.sign(), dice(-1.1, 1.1)
        away = dice() * dice() if self.kind == "open" and dice.chance(0.6) else None
        eye_z = -CAMERA_RADIUS * math.cos(self.elevation_rad)
        depth = dice(0.55, 1.5) * CAMERA_RADIUS if away is None else CAMERA_RADIUS * (0.8 + 12.0 * away)
        if self.kind == "table":
            depth = CAMERA_RADIUS + dice(-0.45, 0.6) * self.frame
        z = depth + eye_z
        x = across * depth * math.tan(0.5 * self.fov_rad)
        if depth - radius >= _CLEAR_M and self.free(x, z, radius):
            self.stand(model, np.array([x, self.ground_y, z]), yaw_rad, np.array([side * scale, scale, scale]), part)

    def free(self, x: float, z: float, radius: float) -> bool:
        """Whether there is room for something on the ground; then it is taken."""
        if any((x - a) ** 2 + (z - b) ** 2 < 0.8 * (radius + c) ** 2 for a, b, c in self.used):
            return False
        self.used.append((x, z, radius))
        return True

    def stand(self, model: Model, place: Floats, yaw_rad: float, scale: Floats, part: int) -> None:
        """Put a model there, with what its surface shows."""
        self.builder.model(self.dressed(model), place, yaw_rad, scale, part)

    def dressed(self, model: Model) -> Model:
        """A model with what its surface shows."""
        return model

    def surface(self) -> Skin:
        """What a ground, a wall or a table shows."""
        texture = self.library.surface(self.dice)
        return Skin(texture, self.frame * math.exp(self.dice(-1.0, 1.4)))

    def _lay_table(self) -> None:
        dice = self.dice
        skin = self.surface()
        reach = max(math.hypot(x, z) + r for x, z, r in self.used)
        half_x, half_z = (max(dice(0.5, 1.6) * self.frame, 0.9 * reach) for _ in range(2))
        lower = np.array([-half_x, self.ground_y, -half_z])
        upper = np.array([half_x, self.ground_y + dice(0.03, 0.15) * self.frame, half_z])
        self.builder.box(lower, upper, dice(-0.5, 0.5), skin, len(self.used))

    def lay_floor(self, skin: Skin, floor_y: float, wide_m: float) -> None:
        """A square around the pivot."""
        turn = self.dice(0.0, math.pi)
        along, across = (turned(np.array(v), turn) * wide_m for v in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
        corner = np.array([0.0, floor_y, 0.0]) - 0.5 * (along + across)
        self.builder.quad(corner, along, across, skin, (self.dice(), self.dice()))

    def _build_walls(self, floor_y: float) -> None:
        """A wall behind; in rooms one at a side too, and a ceiling now and then."""
        dice = self.dice
        angle = 0.3 * dice.bell()
        ahead, right = turned(np.array([0.0, 0.0, 1.0]), angle), turned(np.array([1.0, 0.0, 0.0]), angle)
        behind = max(z + r for _, z, r in self.used[:1]) + dice(0.05, 1.6) * self.frame
        high = 12.0 * self.frame if self.kind != "wall" or dice.chance(0.6) else dice(0.8, 3.0) * self.frame
        up, floor = np.array([0.0, -high, 0.0]), np.array([0.0, floor_y, 0.0])
        skin = self.surface()
        middle = floor + behind * ahead
        offset = (dice(), dice())
        self.builder.quad(middle - 20.0 * right, 40.0 * right, up, skin, offset)
        if self.kind != "room":
            return
        if dice.chance(0.5):
            skin = self.surface()
        side = dice(0.8, 2.2) * self.frame * dice.sign()
        self.builder.quad(middle + side * right - 30.0 * ahead, 30.0 * ahead, up, skin, offset)
        if dice.chance(0.4):
            eye_y = -CAMERA_RADIUS * math.sin(self.elevation_rad)
            skin = self.surface()
            ceiling = np.array([0.0, min(floor_y - dice(1.2, 3.0) * self.frame, eye_y - 0.3 * self.frame), 0.0])
            corner = ceiling + behind * ahead - 20.0 * right - 30.0 * ahead
            self.builder.quad(corner, 40.0 * right, 30.0 * ahead, skin)

    def _raise_hills(self) -> None:
        """Up to two ridges far away, each a row of upright strips."""
        dice = self.dice
        for _ in range(1 + dice.number(2)):
            skin = self.surface()
            away, top, steps = dice(8.0, 60.0), dice(0.02, 0.22), 20
            heights = [dice()]
            for _ in range(steps):
                heights.append(min(1.0, max(0.05, heights[-1] + 0.28 * dice.bell())))
            width = 3.0 * away / steps
            for i in range(steps):
                foot = np.array([(i - 0.5 * steps) * width, self.ground_y, away])
                tops = (-heights[i] * top * away, -heights[i + 1] * top * away)
                self.builder.strip(foot, width, tops, skin._replace(period_m=4.0 * skin.period_m))

    def _light(self, walled: bool) -> Light:
        dice = self.dice
        reach = 1.3 if walled else 2.6  # behind a wall there is no light
        azimuth, sine = dice(-reach, reach), dice(0.3, 0.95)
        level = math.sqrt(1.0 - sine * sine)
        direction = np.array([math.sin(azimuth) * level, -sine, -math.cos(azimuth) * level])
        overcast = dice.chance(0.25)
        ambient = dice(0.65, 0.9) if overcast else dice(0.35, 0.65)
        strength = (1.15 - ambient) * (0.4 if overcast else dice(0.9, 1.5))
        warmth, tint = 0.1 * dice.bell(), 0.04 * dice.bell()
        warm = np.array([1.0 + warmth, 1.0 + tint, 1.0 - warmth])
        haze = dice()
        return Light(
            direction=self.tilted(direction),
            sun=strength * warm,
            ambient=ambient * (1.0 + 0.3 * (1.0 - warm)),
            darkness=dice(0.5, 0.95),
            softness=dice(0.6, 2.5),
            haze_m=12.0 * math.exp(3.0 * haze) if self.kind == "open" and dice.chance(0.5) else math.inf,
        )

    def _sky(self) -> Sky:
        dice = self.dice
        blue, pale, grey = dice(), dice(), dice()
        zenith = np.array([0.35 + 0.25 * grey, 0.52 + 0.15 * grey, 0.72 + 0.2 * blue])
        horizon = np.array([0.72, 0.78, 0.84]) + 0.14 * pale
        if dice.chance(0.3) or self.kind not in ("open", "wall"):
            zenith = np.array([dice(0.1, 0.95) for _ in range(3)]) * 0.5 + 0.5 * dice(0.1, 0.95)
            horizon = (zenith + 0.1 * np.array([dice.bell() for _ in range(3)])).clip(0.02, 1.0)
        photo, zoom = NOTHING, 1.0
        shares = {"open": 0.4, "wall": 0.4, "room": 0.0, "table": 0.7, "close": 0.75}
        if self.library.photos is not None and dice.chance(shares[self.kind]):
            photo = self.builder.texture(self.library.photos.texture(dice), mirrored=True)
            zoom = dice(0.5, 1.0) / (2.0 * math.tan(0.5 * self.fov_rad))
        up = self.tilted(np.array([0.0, -1.0, 0.0]))
        return Sky(zenith, horizon, up, photo, zoom, np.array([0.5, 0.5]), dice(0.75, 1.2))


class AloneDraft(Draft):
    """One model, whole in the picture, on even ground in clear air: what a generator of objects can learn."""

    off_centre, depth_counts = 0.3, 0.8

    def __init__(self, library: Library, dice: Dice, fov_rad: float) -> None:
        super().__init__(library, dice, "open", fov_rad)

    def elevation_deg(self) -> float:
        """By which the camera looks down."""
        return self.dice(4.0, 24.0)

    def main_size(self) -> tuple[float, float]:
        """As of `Draft`."""
        return (0.6, 0.85)

    def draw(self) -> Layout:
        """The scene."""
        class_index, number = self.library.pick(self.dice)
        self._place_main(number)
        num_casters = self.builder.count
        self.lay_floor(self.surface(), self.ground_y, 2.0 * _WIDE_M)
        centre = np.array([0.0, self.ground_y, 0.0])
        scene = self.finished(class_index, num_casters, centre, 1.3 * self.frame, walled=False)
        return cleared(scene)._replace(whole=True)

    def surface(self) -> Skin:
        """An even ground of one pale colour."""
        tint = 255.0 * (self.dice(0.4, 0.9) + 0.04 * np.array([self.dice.bell() for _ in range(3)]))
        return Skin(plain(0), self.frame, tint.clip(0.0, 255.0).astype(np.uint8))


def cleared(layout: Layout) -> Layout:
    """The same scene without haze and with everything in focus."""
    return layout._replace(blur_px=0.0, light=layout.light._replace(haze_m=math.inf))
