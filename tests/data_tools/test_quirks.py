"""Odd images from end to end: kept as they should look, or rejected with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.data.images import decode_image
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare

COLOUR = (200, 90, 40)


def plain(mode: str = "RGB", colour: object = COLOUR, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.full((40, 48), 100 * 257, np.uint16)), "PNG")


def palette() -> bytes:
    return encoded(plain().convert("P", palette=Image.Palette.ADAPTIVE), "PNG")


def bomb() -> bytes:
    """A PNG of 144 megapixels in less than a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(12_001 * 1000)) for _ in range(12)) + packer.flush()
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def broken_exif() -> bytes:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40
    return encoded(plain(), "JPEG", exif=exif, quality=95)


def animated() -> bytes:
    return encoded(plain(), "GIF", save_all=True, append_images=[plain(colour=(0, 0, 255))], duration=40)


KEPT = {
    "cmyk.JPEG": (lambda: encoded(plain().convert("CMYK"), "JPEG", quality=95), COLOUR),
    "png_named.JPEG": (lambda: encoded(plain(), "PNG"), COLOUR),
    "webp_named.JPEG": (lambda: encoded(plain(), "WEBP", quality=95), COLOUR),
    "grey.JPEG": (lambda: encoded(plain("L", 90), "JPEG", quality=95), (90, 90, 90)),
    "grey_alpha.png": (lambda: encoded(plain("LA", (90, 255)), "PNG"), (90, 90, 90)),
    "alpha.png": (lambda: encoded(plain("RGBA", (*COLOUR, 0)), "PNG"), (128, 128, 128)),
    "sixteen.png": (sixteen_bits, (100, 100, 100)),
    "palette.png": (palette, COLOUR),
    "bits.png": (lambda: encoded(plain("1", 1), "PNG"), (255, 255, 255)),
    "broken_exif.JPEG": (broken_exif, COLOUR),
    "animated.gif": (animated, COLOUR),
    "progressive.JPEG": (lambda: encoded(plain(), "JPEG", quality=95, progressive=True), COLOUR),
    "dot.png": (lambda: encoded(plain(size=(1, 1)), "PNG"), COLOUR),
    "line.png": (lambda: encoded(plain(size=(1, 20_000)), "PNG"), COLOUR),
}

PHOTO = encoded(Image.effect_noise((60, 50), 60).convert("RGB"), "JPEG", quality=90)
REJECTED = {
    "cut25.JPEG": (lambda: PHOTO[: len(PHOTO) // 4], "truncated"),
    "cut50.JPEG": (lambda: PHOTO[: len(PHOTO) // 2], "truncated"),
    "cut90.JPEG": (lambda: PHOTO[: len(PHOTO) * 9 // 10], "truncated"),
    "cut.png": (lambda: encoded(plain(), "PNG")[:-30], "cannot decode image"),
    "empty.JPEG": (lambda: b"", "the file is empty"),
    "page.JPEG": (lambda: b"<html><body>404</body></html>", "its bytes are none of JPEG"),
    "zeros.JPEG": (lambda: bytes(5000), "its bytes are none of JPEG"),
    "bomb.png": (bomb, "over the limit of 128 megapixels"),
}


@pytest.mark.parametrize("preset", ["imagenet", "folder"])
def test_odd_images_are_kept_as_they_should_look_or_rejected_with_a_reason(
    tmp_path: Path, archives: ModuleType, preset: str
):
    files = {f"n01440764/{name}": make() for name, (make, _) in (KEPT | REJECTED).items()}
    source = tmp_path / "src.tar"
    source.write_bytes(archives.tar_bytes(files))
    listed = open_source(preset, source, tmp_path / "out")  # type: ignore[arg-type]
    manifest = prepare(tmp_path / "out", image_job(preset, listed, Options(16), max_bad=0.9))  # type: ignore[arg-type]
    assert manifest is not None
    assert (manifest.num_samples, manifest.num_rejects) == (len(KEPT), len(REJECTED))
    shards = ShardFolder(tmp_path / "out")
    for i, info in enumerate(archives.infos(tmp_path / "out")):
        pixels = decode_image(shards.read(i)["jpg"], name="x").float()
        _, colour = KEPT[str(info["source"]).partition("/")[2]]
        assert (pixels - torch.tensor(colour).float()[:, None, None]).abs().max() < 8, info["source"]
    reasons = archives.rejects(tmp_path / "out")
    for name, (_, reason) in REJECTED.items():
        assert reason in reasons[f"n01440764/{name}"], name


def test_orientation_is_applied_to_a_users_folder_and_ignored_for_benchmarks(tmp_path: Path, archives: ModuleType):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:24] = 255  # white above
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    for preset, white in (("folder", (slice(None), slice(9, 16))), ("imagenet", (slice(0, 7), slice(None)))):
        source = archives.write_tree(tmp_path / preset, {"n01440764/a.JPEG": data})
        out = tmp_path / f"{preset}-out"
        listed = open_source(preset, source, out)  # type: ignore[arg-type]
        manifest = prepare(out, image_job(preset, listed, Options(16)))  # type: ignore[arg-type]
        assert manifest is not None
        assert manifest.options["orientation"] == {"folder": "applied", "imagenet": "ignored"}[preset]
        image = decode_image(ShardFolder(out).read(0)["jpg"], name="x").float()
        assert image[:, *white].min() > 240
        assert image.mean() == pytest.approx(127, abs=12)
