"""Scenes for depth models alone, of any field of view: more that is plain, lamps, vignettes, tables from above.

What photos of rooms and of things on plain surfaces show, and the canonical scenes do not. Lengths as in `layout.py`.
"""

from __future__ import annotations

import math

import numpy as np

from vq3dcli.meshscenes.builder import NUM_BOARDS, NUM_PLAIN, Skin, boards, plain, turned
from vq3dcli.meshscenes.layout import Draft, Layout
from vq3dcli.meshscenes.models import Model
from vq3dcli.meshscenes.raster import NOTHING, Bytes, Floats
from vq3dcli.rendering.cameras import CAMERA_RADIUS


class VariedDraft(Draft):
    """A scene that may have plain surfaces, a lamp and a vignette."""

    plain_share = 0.15

    def dressed(self, model: Model) -> Model:
        """A model with its own textures or, where there are coats, as often with a photo thrown over it from a side.

        So figure and ground are told apart by what occludes and where things stand, not by what a model's texture is
        like (domain randomisation: Tobin et al., 2017).
        """
        dice, coats = self.dice, self.library.coats
        if coats is None or dice.chance(0.5):
            return model
        along, zoom = turned(model.corners, dice(0.0, 2.0 * math.pi))[..., :2], dice(0.4, 1.0)
        flat = along.reshape(-1, 2)
        lower, upper = flat.min(0), flat.max(0)
        share = (along - lower) / np.maximum(upper - lower, 1e-6)
        uv = share * zoom + np.array(dice.many(2)) * (1.0 - zoom)
        return model._replace(
            uv=uv.astype(np.float32),
            colour=np.full_like(model.colour, 255),
            texture=np.zeros_like(model.texture),
            textures=[coats.texture(dice)],
        )

    def surface(self) -> Skin:
        """What a ground, a wall or a table shows."""
        return self.plain() if self.dice.chance(self.plain_share) else super().surface()

    def plain(self) -> Skin:
        """Nearly one colour."""
        dice = self.dice
        period_m = self.frame * math.exp(dice(-1.5, 2.0))
        return Skin(plain(dice.number(NUM_PLAIN)), period_m, self.tint(0.25, 1.0))

    def wooden(self) -> Skin:
        """Boards."""
        dice = self.dice
        brown = np.array([1.0, dice(0.6, 0.97), dice(0.35, 0.9)]) * dice(60.0, 250.0)
        period_m = self.frame * math.exp(dice(-1.5, 0.7))
        return Skin(boards(dice.number(NUM_BOARDS)), period_m, (brown + 0.5).astype(np.uint8))

    def tint(self, low: float, high: float, strength: float = 0.4) -> Bytes:
        """A colour of a brightness from `low` to `high`, nearly grey for a small strength."""
        dice = self.dice
        level, depth = dice(low, high), strength * dice()
        shades = np.array(dice.many(3))
        return ((level * (1.0 - depth * shades)).clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    def lit(self, layout: Layout, lamp: Floats, lamp_m: float, share: float) -> Layout:
        """The scene with a lamp at a level place `[3]` in `share` of all cases, with a vignette and its exposure."""
        dice = self.dice
        if dice.chance(share):
            light = layout.light._replace(
                sun=1.6 * layout.light.sun,
                ambient=1.6 * layout.light.ambient,
                lamp=self.tilted(lamp),
                lamp_m=lamp_m,
            )
            layout = layout._replace(light=light)
        return layout._replace(
            vignette=dice(0.1, 0.6) if dice.chance(share) else 0.0, brightness=(dice(0.2, 0.42), dice(0.55, 0.8))
        )

    def draw(self) -> Layout:
        """The scene."""
        return self.lit(super().draw(), np.array([self.dice.bell() * self.frame, -self.frame, 0.0]), self.frame, 0.15)


class TableDraft(VariedDraft):
    """Small things on a surface that fills the picture, seen from above."""

    plain_share = 0.6

    def elevation_deg(self) -> float:
        """By which the camera looks down; the horizon is above the picture."""
        return self.dice(max(20.0, 6.0 + math.degrees(0.5 * self.fov_rad)), 65.0)

    def draw(self) -> Layout:
        """The scene."""
        dice = self.dice
        self.ground_y = 0.15 * dice.bell() * self.frame
        class_index, number = self.library.pick(dice)
        self._put(number, 0.15 * dice.bell(), 0.15 * dice.bell(), 0)
        for part in range(1, 1 + dice.number(4)):
            _, number = self.library.pick(dice, class_index if dice.chance(0.2) else None)
            self._put(number, dice(-0.5, 0.5), dice(-0.5, 0.5), part)
        skin = self.surface()
        if dice.chance(0.25):
            self._lay_sheet()
        num_casters = self.builder.count
        self.lay_floor(skin, self.ground_y, 60.0)
        middle = np.array([0.0, self.ground_y, 0.0])
        layout = self.finished(class_index, num_casters, middle, 0.9 * self.frame, walled=True)
        x, z, high = (0.35 * dice.bell(), 0.35 * dice.bell(), dice(0.3, 1.5))
        lamp = self.frame * np.array([x, -high, z]) + middle
        layout = self.lit(layout, lamp, self.frame * dice(0.8, 2.5), 0.6)
        blurred = dice.chance(0.15)
        return layout._replace(blur_px=dice(0.3, 1.2) if blurred else 0.0, least_share=0.0, least_contrast=0.012)

    def surface(self) -> Skin:
        """What the table or a sheet shows."""
        return self.wooden() if self.dice.chance(0.15) else super().surface()

    def plain(self) -> Skin:
        """Nearly one colour, white and grey more often than not."""
        skin = super().plain()
        return skin._replace(tint=self.tint(0.4, 1.0, 0.12)) if self.dice.chance(0.6) else skin

    def _place(self, right: float, down: float) -> tuple[Floats, float]:
        """The point of the surface at a place of the picture, in frames from its middle, and its z_depth."""
        sine, cosine = math.sin(self.elevation_rad), math.cos(self.elevation_rad)
        x, y = right * self.frame / CAMERA_RADIUS, down * self.frame / CAMERA_RADIUS
        direction = np.array([x, cosine * y + sine, cosine - sine * y])
        eye = np.array([0.0, -CAMERA_RADIUS * sine, -CAMERA_RADIUS * cosine])
        z_depth = (self.ground_y - eye[1]) / float(direction[1])
        return eye + z_depth * direction, z_depth

    def _put(self, number: int, right: float, down: float, part: int) -> None:
        """A model at a place of the picture, of a size that is a share of the picture, if there is room."""
        dice, model = self.dice, self.library.model(number)
        if dice.chance(0.4):
            model = laid(model)
        place, z_depth = self._place(right, down)
        share = 0.08 * math.exp(dice(0.0, 1.5)) if dice.chance(0.8) else dice(0.35, 0.8)
        flat = dice(0.2, 0.8) if dice.chance(0.35) else 1.0
        size = model.size * np.array([1.0, flat, 1.0])
        scale = share * self.frame * z_depth / CAMERA_RADIUS / float(size.max())
        radius = 0.5 * scale * float(max(size[0], size[2]))
        x, z = float(place[0]), float(place[2])
        if not self.free(x, z, radius):
            return
        stretch = np.array([dice.sign() * scale, flat * scale, scale])
        self.stand(model, np.array([x, self.ground_y, z]), dice(0.0, 2.0 * math.pi), stretch, part)

    def _lay_sheet(self) -> None:
        dice = self.dice
        wide, long = self.frame * dice(0.15, 0.5), self.frame * dice(0.15, 0.6)
        high = self.frame * (0.002 if dice.chance(0.5) else dice(0.01, 0.06))
        x, z = 0.3 * self.frame * dice.bell(), 0.3 * self.frame * dice.bell()
        skin = self.surface()._replace(period_m=max(wide, long))
        lower = np.array([x - wide, self.ground_y - high, z - long])
        self.builder.box(lower, np.array([x, self.ground_y, z]), dice(0.0, math.pi), skin, NOTHING)


def laid(model: Model) -> Model:
    """A model that lies on its back."""
    corners, normals = (
        v[..., [0, 2, 1]] * np.array([1.0, 1.0, -1.0], np.float32) for v in (model.corners, model.normals)
    )
    corners[..., 1] -= corners[..., 1].max()
    corners[..., 2] -= 0.5 * (corners[..., 2].max() + corners[..., 2].min())
    return model._replace(corners=corners, normals=normals)
