"""Varied scenes in rooms.

A room is a box with the camera in it. Its own axes (u, v) are those of the level frame, turned around the pivot: the
wall behind is at the largest v. Lengths are in metres of the room, times `unit` in those of the scene.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from vq3dcli.meshscenes.builder import NUM_TILES, Skin, tiles, turned
from vq3dcli.meshscenes.layout import Layout
from vq3dcli.meshscenes.raster import Floats
from vq3dcli.meshscenes.varied import VariedDraft
from vq3dcli.rendering.cameras import CAMERA_RADIUS

# The longest side of furniture, by words in the names of classes; models of other classes are small things.
_FURNITURE_M = {
    "bed": (1.8, 2.2), "sofa": (1.5, 2.3), "couch": (1.5, 2.3), "chair": (0.8, 1.15), "stool": (0.4, 0.75),
    "table": (0.7, 1.8), "desk": (1.1, 1.7), "cabinet": (0.8, 2.1), "shel": (0.9, 2.1), "bookcase": (1.2, 2.2),
    "wardrobe": (1.7, 2.2), "dresser": (0.9, 1.5), "lamp": (0.4, 1.7), "vase": (0.25, 0.6), "plant": (0.3, 1.5),
}  # fmt: skip
_SMALL_M = (0.2, 1.1)
_FLAT = ("table", "desk", "cabinet", "dresser")  # small things stand on them
_CLEAR_M = 0.55  # nothing is so near the camera
_ATTEMPTS = 5
_INWARD = {"back": (0.0, 0.0, -1.0), "left": (1.0, 0.0, 0.0), "right": (-1.0, 0.0, 0.0), "front": (0.0, 0.0, 1.0)}
_Area = tuple[float, float, float, float]  # on the floor: least u, most u, least v, most v
# Counters, shelves and beds: ranges of length, depth and height.
_BUILT_M = (
    ((0.8, 3.2), (0.5, 0.7), (0.7, 1.0)),
    ((0.6, 1.6), (0.25, 0.4), (0.8, 2.2)),
    ((1.9, 2.2), (0.9, 1.8), (0.3, 0.55)),
)


class RoomDraft(VariedDraft):
    """A room with furniture along its walls and in its middle, things on it, pictures, windows and carpets."""

    plain_share = 0.3

    def surface(self) -> Skin:
        """What a thing in the room shows."""
        dice, kind = self.dice, self.dice()
        if kind < 0.15:
            return self.wooden()
        if kind < 0.25:
            return Skin(tiles(dice.number(NUM_TILES)), self.unit * dice(0.4, 1.5), self.tint(0.3, 1.0))
        return super().surface()

    def elevation_deg(self) -> float:
        """By which the camera looks down."""
        return self.dice(-2.0, 16.0) if self.dice.chance(0.55) else self.dice(12.0, 36.0)

    def draw(self) -> Layout:
        """The scene."""
        dice = self.dice
        self._measure()
        class_index, number = self._pick()
        for _ in range(_ATTEMPTS):
            scale = self._scale(number)
            depth_m = min(dice(1.3, 4.5), 0.95 * float(self.upper[2] - self.eye[2]) / self.unit)
            if self._stand(number, scale, *self._ray(dice(-0.7, 0.7), depth_m), dice(0.0, 2.0 * math.pi), 0):
                break
        parts = 6 + dice.number(10)
        if dice.chance(0.45):
            self._place_near(1)
        for part in range(2, 2 + parts):
            for _ in range(_ATTEMPTS):
                placed = self._place_built(part) if dice.chance(0.25) else self._place_model(self._pick()[1], part)
                if placed:
                    break
        num_casters = self.builder.count
        self._build_shell()
        middle = 0.5 * (self.lower + self.upper)
        reach = 0.5 * math.hypot(*(self.upper - self.lower)[[0, 2]])
        centre = turned(np.array([middle[0], self.upper[1], middle[2]]), self.yaw_rad)
        layout = self.finished(class_index, num_casters, centre, min(reach, 3.5 * self.unit), walled=True)
        lamp = np.array([dice(self.lower[0], self.upper[0]), self.lower[1], dice(self.eye[2], self.upper[2])])
        layout = self.lit(layout, turned(lamp, self.yaw_rad), self.unit * dice(1.5, 5.0), 0.6)
        light = layout.light
        soft = light._replace(sun=light.sun * dice(0.2, 0.9), ambient=light.ambient * dice(1.1, 1.6), softness=2.5)
        return layout._replace(light=soft, least_share=0.004)

    def _measure(self) -> None:
        """Where walls, floor and ceiling are, in the room's axes; y is down."""
        dice = self.dice
        self.unit = unit = dice(1.5, 2.1)
        self.yaw_rad = math.radians(dice(-48.0, 48.0) if dice.chance(0.6) else 8.0 * dice.bell())
        back = CAMERA_RADIUS * math.cos(self.elevation_rad)
        eye = np.array([0.0, -CAMERA_RADIUS * math.sin(self.elevation_rad), -back])
        self.eye = turned(eye, -self.yaw_rad)
        above = dice(1.2, 1.7)
        high = dice(2.4, 3.0)
        left, right = dice(0.8, 3.4), dice(0.8, 3.4)
        self.lower = self.eye + unit * np.array([-left, above - high, -dice(0.3, 2.0)])
        self.upper = self.eye + unit * np.array([right, above, dice(2.2, 5.5)])
        clear = _CLEAR_M * unit
        u, _, v = self.eye.tolist()
        self.areas: list[_Area] = [(u - clear, u + clear, v - clear, v + clear)]  # the camera's own

    def _pick(self) -> tuple[int, int]:
        names = self.library.assets.class_names
        furniture = [i for i, name in enumerate(names) if _furniture(name) is not None]
        if furniture and self.dice.chance(0.8):
            return self.library.pick(self.dice, furniture[self.dice.number(len(furniture))])
        return self.library.pick(self.dice)

    def _scale(self, number: int) -> float:
        name = self.library.assets.class_names[self.library.assets.models[number].class_index]
        length = self.dice(*(_furniture(name) or _SMALL_M)) * self.unit
        return min(length, 0.95 * float(self.upper[1] - self.lower[1]) / float(self.library.size(number)[1]))

    def _ray(self, across: float, depth_m: float) -> tuple[float, float]:
        """(u, v) of a place, `across` from -1 to 1 over the width of the picture."""
        depth = depth_m * self.unit
        level = np.array([across * depth * math.tan(0.5 * self.fov_rad), 0.0, depth])
        u, _, v = turned(level, -self.yaw_rad) + self.eye
        return float(u), float(v)

    def _inside(self, u: float, v: float, half_u: float, half_v: float) -> tuple[float, float]:
        """The nearest place for something of a half size that is within the walls."""
        least_u, most_u = float(self.lower[0]) + half_u, float(self.upper[0]) - half_u
        least_v, most_v = float(self.lower[2]) + half_v, float(self.upper[2]) - half_v
        return max(least_u, min(most_u, u)), max(least_v, min(most_v, v))

    def _free(self, u: float, v: float, half_u: float, half_v: float) -> bool:
        """Whether a place in sight, between the walls, is free; then it is taken."""
        left, right, front, back = area = (u - half_u, u + half_u, v - half_v, v + half_v)
        x, _, z = turned(np.array([u - self.eye[0], 0.0, v - self.eye[2]]), self.yaw_rad)
        if abs(x) > 1.35 * z * math.tan(0.5 * self.fov_rad):
            return False
        fits = left >= self.lower[0] and right <= self.upper[0] and front >= self.lower[2] and back <= self.upper[2]
        if not fits or any(left < b and a < right and front < d and c < back for a, b, c, d in self.areas):
            return False
        self.areas.append(area)
        return True

    def _place_near(self, part: int) -> None:
        """Something near the camera that the picture's border cuts."""
        dice = self.dice
        across = dice(0.6, 1.3) * dice.sign()
        u, v = self._ray(across, dice(0.9, 1.6))
        if dice.chance(0.6):
            number = self._pick()[1]
            self._stand(number, self._scale(number), u, v, dice(0.0, 2.0 * math.pi), part)
        else:
            size = self.unit * np.array([dice(0.4, 1.2), dice(0.4, 1.3), dice(0.4, 1.2)])
            self._box(u, v, size, self._painted(), part)

    def _place_model(self, number: int, part: int) -> bool:
        """A model at a wall, with its back to it, or anywhere."""
        dice, scale = self.dice, self._scale(number)
        if dice.chance(0.4):
            u, v = self._ray(dice(-1.1, 1.1), dice(1.0, 5.0))
            turn = 0.5 * math.pi * dice.number(4) if dice.chance(0.5) else dice(0.0, 2.0 * math.pi)
            return self._stand(number, scale, u, v, turn, part)
        side, along = self._wall(), dice()
        size = self.library.size(number) * scale
        turn = {"back": 0.0, "left": -0.5 * math.pi, "right": 0.5 * math.pi}[side]
        half_u, half_v = (0.5 * size[0], 0.5 * size[2]) if side == "back" else (0.5 * size[2], 0.5 * size[0])
        return self._stand(number, scale, *self._at_wall(side, along, float(half_u), float(half_v)), turn, part)

    def _wall(self) -> str:
        return "back" if self.dice.chance(0.45) else ("left", "right")[self.dice.number(2)]

    def _at_wall(self, side: str, along: float, half_u: float, half_v: float) -> tuple[float, float]:
        """The place at a wall; on the walls at the sides, what is before the camera."""
        u = float(self.lower[0] + along * (self.upper[0] - self.lower[0]))
        v = float(self.eye[2] + along * (self.upper[2] - self.eye[2]))
        u, v = {"back": (u, math.inf), "left": (-math.inf, v), "right": (math.inf, v)}[side]
        return self._inside(u, v, half_u + 0.01, half_v + 0.01)

    def _stand(self, number: int, scale: float, u: float, v: float, turn: float, part: int) -> bool:
        """A model on the floor near a place, if it is free, and what stands on it."""
        dice, model = self.dice, self.library.model(number)
        size = self.library.size(number) * scale
        cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
        half_u, half_v = 0.5 * float(cos * size[0] + sin * size[2]), 0.5 * float(sin * size[0] + cos * size[2])
        u, v = self._inside(u, v, half_u, half_v)
        mirrored = dice.sign()
        if not self._free(u, v, half_u, half_v):
            return False
        floor = float(self.upper[1])
        place = turned(np.array([u, floor, v]), self.yaw_rad)
        self.stand(model, place, self.yaw_rad + turn, np.array([mirrored * scale, scale, scale]), part)
        name = self.library.assets.class_names[self.library.assets.models[number].class_index]
        if any(word in name for word in _FLAT):
            self._clutter(u, v, 0.7 * half_u, 0.7 * half_v, floor - float(size[1]), part)
        return True

    def _clutter(self, u: float, v: float, half_u: float, half_v: float, top: float, part: int) -> None:
        """Up to four small things on something."""
        dice = self.dice
        for _ in range(dice.number(5)):
            _, number = self.library.pick(dice)
            model = self.library.model(number)
            scale = min(self.unit * dice(0.1, 0.4), 1.5 * min(half_u, half_v), 0.9 * (top - float(self.lower[1])))
            size = self.library.size(number)
            radius = 0.5 * scale * math.hypot(float(size[0]), float(size[2]))
            at_u, at_v = self._inside(u + dice(-half_u, half_u), v + dice(-half_v, half_v), radius, radius)
            place = turned(np.array([at_u, top, at_v]), self.yaw_rad)
            self.stand(model, place, dice(0.0, 6.28), np.full(3, scale), part)

    def _painted(self) -> Skin:
        if self.dice.chance(0.4):
            return self.wooden()
        return self.plain() if self.dice.chance(0.75) else self.surface()

    def _box(self, u: float, v: float, size: Floats, skin: Skin, part: int, raised: float = 0.0) -> bool:
        """A box of a size `[3]` near a place on the floor, or above it, if the place is free."""
        u, v = self._inside(u, v, 0.5 * float(size[0]), 0.5 * float(size[2]))
        if raised == 0.0 and not self._free(u, v, 0.5 * float(size[0]), 0.5 * float(size[2])):
            return False
        lower = np.array([u - 0.5 * size[0], self.upper[1] - raised - size[1], v - 0.5 * size[2]])
        self.builder.box(lower, lower + size, self.yaw_rad, skin, part)
        return True

    def _place_built(self, part: int) -> bool:
        """A counter with cupboards above, shelves with books, or a bed, at a wall."""
        dice, unit = self.dice, self.unit
        side, along, kind = self._wall(), dice(), dice.number(3)
        long, deep, high = (dice(*limits) for limits in _BUILT_M[kind])
        size = unit * np.array([long, high, deep] if side == "back" else [deep, high, long])
        u, v = self._at_wall(side, along, 0.5 * float(size[0]), 0.5 * float(size[2]))
        skin = self._painted()
        if not self._box(u, v, size, skin, part):
            return False
        floor = float(self.upper[1])
        if kind == 0:
            self._clutter(u, v, 0.45 * float(size[0]), 0.35 * float(size[2]), floor - float(size[1]), part)
            if dice.chance(0.5):
                above = size * np.array([1.0, dice(0.6, 0.9), 1.0])
                self._box(u, v, above, skin, part, raised=unit * dice(1.35, 1.5))
        elif kind == 1:
            self._books(side, u, v, size, part)
        else:
            pillow = size * np.array([0.9, 0.0, 0.9]) + np.array([0.0, unit * dice(0.05, 0.25), 0.0])
            self._box(u, v, pillow, self.surface(), part, raised=float(size[1]))
        return True

    def _books(self, side: str, u: float, v: float, size: Floats, part: int) -> None:
        """Rows of books that stand out of shelves a little; between them it is dark."""
        dice, unit = self.dice, self.unit
        rows = max(2, int(float(size[1]) / (0.38 * unit)))
        inward = np.array(_INWARD[side])
        along = np.array([1.0, 0.0, 0.0]) if side == "back" else np.array([0.0, 0.0, 1.0])
        deep, long = (size[2], size[0]) if side == "back" else (size[0], size[2])
        middle = np.array([u, float(self.upper[1]), v]) + 0.5 * deep * inward
        pitch = float(size[1]) / rows
        for row in range(rows):
            at = -0.46 * float(long)
            while at < 0.4 * float(long):
                wide = min(unit * dice(0.04, 0.25), 0.48 * float(long) - at)
                tall = pitch * dice(0.45, 0.85)
                lower = middle + at * along - np.array([0.0, row * pitch + tall + 0.04 * unit, 0.0])
                upper = lower + wide * along + np.array([0.0, tall, 0.0]) + 0.03 * unit * dice(0.3, 1.0) * inward
                low, high = np.minimum(lower, upper), np.maximum(lower, upper)
                skin = self.plain()._replace(tint=self.tint(0.1, 1.0, 1.0))
                self.builder.box(low, high, self.yaw_rad, skin, part)
                at += wide * (1.05 if dice.chance(0.8) else 2.5)

    def _build_shell(self) -> None:
        """Floor, walls and ceiling, and what is flat on them."""
        dice, unit = self.dice, self.unit
        lower, upper = self.lower, self.upper
        x, y, z = np.diag(upper - lower)
        closed = dice.chance(0.8)
        if not closed:
            y = 4.0 * y
        paint = self._wall_skin()
        floor = np.array([lower[0], upper[1], lower[2]])
        for side, corner, along in (
            ("back", floor + z, x),
            ("left", floor, z),
            ("right", floor + x, z),
            ("front", floor, x),
        ):
            skin = paint if dice.chance(0.75) else self._wall_skin()
            self._flat(corner, along, -y, skin)
            for _ in range(dice.number(4) if side != "front" else 0):
                self._hang(corner, along, np.array(_INWARD[side]))
        self._flat(floor, x, z, self.wooden() if dice.chance(0.35) else self.surface())
        if dice.chance(0.45):
            wide, long = unit * dice(0.8, 2.4), unit * dice(0.8, 2.4)
            u, v = self._inside(*self._ray(dice(-0.6, 0.6), dice(1.2, 3.0)), 0.5 * wide, 0.5 * long)
            skin = self.surface()._replace(period_m=max(wide, long) * dice(0.3, 1.0))
            corner = np.array([u - 0.5 * wide, upper[1] - 0.01 * unit, v - 0.5 * long])
            self._flat(corner, np.array([wide, 0.0, 0.0]), np.array([0.0, 0.0, long]), skin)
        if closed:
            skin = self.plain()._replace(tint=self.tint(0.7, 1.0)) if dice.chance(0.8) else self.surface()
            self._flat(lower, x, z, skin)
            if dice.chance(0.3):
                u, v = self._ray(dice(-0.8, 0.8), dice(1.5, 4.0))
                corner = np.array([*self._inside(u, v, unit, unit), 0.0])[[0, 2, 1]]
                corner[1] = lower[1] + 0.02 * unit
                self._flat(
                    corner, 0.4 * unit * np.array([1.0, 0, 0]), 0.8 * unit * np.array([0, 0, 1.0]), self._bright()
                )

    def _flat(self, corner: Floats, along: Floats, across: Floats, skin: Skin) -> None:
        corner, along, across = (turned(each, self.yaw_rad) for each in (corner, along, across))
        self.builder.quad(corner, along, across, skin, (self.dice(), self.dice()))

    def _bright(self) -> Skin:
        return self.plain()._replace(tint=self.tint(0.95, 1.0))

    def _wall_skin(self) -> Skin:
        dice = self.dice
        if dice.chance(0.6):
            return self.plain()._replace(tint=self.tint(0.4, 1.0))
        return self.surface()

    def _hang(self, corner: Floats, along: Floats, inward: Floats) -> None:
        """A picture, a window or a door on the wall from a lower corner `[3]`."""
        dice, unit = self.dice, self.unit
        length = math.sqrt(float((along * along).sum()))
        ahead, kind = along / length, dice()
        wide, tall, base = unit * dice(0.2, 1.0), unit * dice(0.25, 0.9), unit * dice(1.1, 1.5)
        if kind < 0.35:
            wide, tall, base = unit * dice(0.7, 1.8), unit * dice(0.8, 1.3), unit * dice(0.75, 1.0)
        elif kind < 0.5:
            wide, tall, base = unit * dice(0.75, 0.95), unit * dice(1.95, 2.1), 0.0
        if wide > 0.9 * length:
            return
        at = dice(0.05, 0.95) * (length - wide)
        off = 0.01 * unit * inward
        frame = unit * dice(0.02, 0.08)
        place = corner + at * ahead - np.array([0.0, base, 0.0]) + off
        self._flat(place, wide * ahead, np.array([0.0, -tall, 0.0]), self.plain())
        if kind < 0.35:
            skin = self._bright()
        elif kind < 0.5:
            skin = self._painted()
        elif self.library.photos is not None:
            skin = Skin(self.library.photos.texture(dice), max(wide, tall))
        else:
            skin = self.surface()
        inner = place + frame * ahead - np.array([0.0, frame, 0.0]) + off
        panes = 2 if kind < 0.35 and dice.chance(0.6) else 1
        pane = (wide - frame * (1 + panes)) / panes
        for number in range(panes):
            first = inner + number * (pane + frame) * ahead
            self._flat(first, pane * ahead, np.array([0.0, 2.0 * frame - tall, 0.0]), skin)


@functools.cache
def _furniture(name: str) -> tuple[float, float] | None:
    """The length of furniture of that class, None for other things."""
    return next((length for word, length in _FURNITURE_M.items() if word in name.lower()), None)
