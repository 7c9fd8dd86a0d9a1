r"""Decoding and resizing photos to squares: `decode_square` beside Pillow, on a folder of photos.

Pillow decodes, converts to RGB, crops the centre and resizes by its bicubic filter. The two run in turn, photo by
photo, one thread, first the one and then the other way round; a photo's time is the least CPU time of the rounds, since
what other processes take from the caches only adds to it. Files that Pillow refuses are left out. With --allocator
memory is kept as the commands keep it (`vq3dcli/allocator.py`).

Example:
    python benchmarks/decode.py photos/ --size 256
    python benchmarks/decode.py photos/ --size 64 256 --count 200
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vq3dcli.allocator import keep_freed_memory
from vq3dcli.data import jpeg_damage
from vq3dcli.data.images import centre_square, decode_image, decode_square

Pixels = NDArray[np.uint8]


def by_pillow(data: bytes, size_px: int) -> Pixels:
    """The reference, `[size, size, 3]`."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    top, left, side = centre_square(image.height, image.width)
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size_px, size_px), Image.Resampling.BICUBIC))


def by_us(data: bytes, size_px: int) -> Pixels:
    """The same by `decode_square`."""
    return decode_square(data, size_px, name="photo").image.permute(1, 2, 0).numpy()


def milliseconds(
    functions: dict[str, Callable[[bytes, int], Pixels]], photos: list[bytes], size_px: int, rounds: int
) -> dict[str, float]:
    """Mean over the photos of the least CPU time of a function; the order is turned round in every other round."""
    least = {name: [math.inf] * len(photos) for name in functions}
    for number in range(rounds):
        order = list(functions.items())
        for i, data in enumerate(photos):
            for name, function in order if number % 2 else order[::-1]:
                started = time.thread_time()
                function(data, size_px)
                least[name][i] = min(least[name][i], 1000 * (time.thread_time() - started))
    return {name: statistics.fmean(times) for name, times in least.items()}


def psnr(a: Pixels, b: Pixels) -> float:
    """Of two uint8 images; infinite where they are equal."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def same_pixels(data: bytes) -> bool:
    """Whether the fast decoder takes a file and gives Pillow's pixels."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = jpeg_damage.decode(data, image.height, image.width)
        expected = torch.from_numpy(np.array(image.convert("RGB")))
        return pixels is not None and torch.equal(pixels[0].permute(1, 2, 0), expected)


def measure(photos: list[bytes], size_px: int, rounds: int) -> dict[str, object]:
    """Speed and agreement at one size."""
    agreement = [psnr(by_us(data, size_px), by_pillow(data, size_px)) for data in photos]

    taken = milliseconds({"pillow": by_pillow, "decode_square": by_us}, photos, size_px, rounds)
    finite = [value for value in agreement if math.isfinite(value)]
    return {
        "size_px": size_px,
        "pillow_ms": taken["pillow"],
        "decode_square_ms": taken["decode_square"],
        "ratio": taken["pillow"] / taken["decode_square"],
        "psnr_least": min(agreement) if finite else None,
        "psnr_mean_of_finite": statistics.fmean(finite) if finite else None,
        "equal_images": len(agreement) - len(finite),
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="A folder; files are found below it.")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="Side of the squares in pixels.")
    parser.add_argument("--count", type=int, default=100, help="Photos, evenly spread over the folder.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocator", action="store_true", help="Set up the allocator as the commands do.")
    options = parser.parse_args()
    if options.allocator:
        keep_freed_memory()
    torch.set_num_threads(1)
    files = sorted(path for path in options.photos.rglob("*") if path.is_file())
    photos = []
    for path in files[:: max(1, len(files) // options.count)]:
        data = path.read_bytes()
        try:
            by_pillow(data, 16)
            decode_image(data, name=str(path))
        except Exception:
            continue
        photos.append(data)
    result = {
        "photos": len(photos),
        "taken_by_the_fast_decoder_with_equal_pixels": sum(map(same_pixels, photos)),
        "sizes": [measure(photos, size, options.rounds) for size in options.size],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
