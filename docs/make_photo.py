"""Make docs/photo.webp: two photos, their orbits and their disparity.

The photos are scikit-image's, both CC0: a cat (Stefan van der Walt) and coffee (Rachel Michetti). Run
`python docs/make_photo.py` after a change of the embedded weights or of photo detail.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import skimage.data
from PIL import Image

from vq3dcli.cli import run

FRAMES, GAP_PX = 24, 8


def row(photo: Path, folder: Path, frame: int) -> Image.Image:
    """The photo, a view and its disparity, side by side."""
    view, disparity = (
        Image.open(folder / name / f"frame_{frame:05}.png").convert("RGB")
        for name in (photo.stem, f"{photo.stem}_disparity")
    )
    width, height = view.size
    tiles = (Image.open(photo).convert("RGB").resize(view.size), view, disparity)
    strip = Image.new("RGB", (3 * width + 2 * GAP_PX, height), "white")
    for column, tile in enumerate(tiles):
        strip.paste(tile, (column * (width + GAP_PX), 0))
    return strip


def main() -> None:
    """Render both photos and put the frames together."""
    photos = [Path(skimage.data.__file__).with_name(name) for name in ("chelsea.png", "coffee.png")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for photo in photos:
            shape = ["--size", "320", "--frames", str(FRAMES), "--format", "frames"]
            assert run(["render", str(photo), "-o", f"{folder / photo.stem}/", "--disparity", *shape]) == 0
        pictures = []
        for frame in range(FRAMES):
            rows = [row(photo, folder, frame) for photo in photos]
            height = sum(strip.height for strip in rows) + GAP_PX * (len(rows) - 1)
            picture = Image.new("RGB", (rows[0].width, height), "white")
            for number, strip in enumerate(rows):
                picture.paste(strip, (0, number * (strip.height + GAP_PX)))
            pictures.append(picture)
    to = Path(__file__).with_name("photo.webp")
    pictures[0].save(to, save_all=True, append_images=pictures[1:], duration=70, loop=0, quality=60, method=6)


if __name__ == "__main__":
    main()
