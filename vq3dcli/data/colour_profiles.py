"""From the colours of an embedded ICC profile to sRGB, by LittleCMS as Pillow brings it.

A profile that is damaged, of another kind than the pixels, or that says nothing but sRGB changes nothing. Which that is
is found out once a profile: a folder of photos has few.
"""

from __future__ import annotations

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageCms

# Tables for printers take some megabytes; what is larger is no profile.
MAX_PROFILE_BYTES = 16 << 20
# Profiles of sRGB differ in the rounding of their curves. Nobody sees a level or two.
_SAME_LEVELS = 2
_GRID = 17
_log = logging.getLogger(__name__)


class ColourChange:
    """Changes pixels of `mode` (`L`, `RGB` or `CMYK`) to sRGB."""

    def __init__(self, transform: ImageCms.ImageCmsTransform, mode: str) -> None:
        self._transform = transform
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image of one of `mode`."""
        return ImageCms.applyTransform(image, self._transform) or image


def colour_change(profile: bytes, mode: str) -> ColourChange | None:
    """What turns pixels with a profile into sRGB; None where nothing has to be done, or can be."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return None
    grey = mode in ("1", "L", "LA") or mode.startswith("I")
    return _change(profile, "CMYK" if mode == "CMYK" else "L" if grey else "" if mode == "LAB" else "RGB")


@functools.lru_cache(maxsize=8)
def _change(profile: bytes, mode: str) -> ColourChange | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        # A grey picture with a profile of three colours is one whose three colours are equal.
        mode = "RGB" if (space, mode) == ("RGB", "L") else mode
        if {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space) != mode:
            return None
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        change = ColourChange(transform, mode)
        return None if mode != "CMYK" and _changes_nothing(change) else change
    except ImportError:
        _log.warning("this Pillow has no LittleCMS: colour profiles are ignored")
        return None
    except Exception:  # damaged profiles raise almost any type, and say nothing about the pixels
        return None


def _changes_nothing(change: ColourChange) -> bool:
    steps = np.linspace(0, 255, 256 if change.mode == "L" else _GRID).round().astype(np.uint8)
    if change.mode == "L":
        before = np.repeat(steps[None, :, None], 3, axis=2)
        after = change(Image.fromarray(steps[None]))
    else:
        before = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        after = change(Image.fromarray(before))
    return bool(np.abs(np.asarray(after).astype(int) - before).max() <= _SAME_LEVELS)
