"""Every kind of image has one known outcome: the right pixels, or a `DataError` with a reason."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin, features

from vq3dcli.data import images, pillow
from vq3dcli.data.images import decode_image, encode_jpeg, encode_png, read_image, to_square
from vq3dcli.errors import DataError, InputMissingError

_AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="an older Pillow"))


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    pixels = np.stack([x * 200 // width, y * 200 // height, (x + y) % 200], -1) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int, height: int) -> bytes:
    """A valid black 1-bit PNG; built by hand, since encoding it would need the memory that decoding must not."""

    compressor = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_pixel(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    decoded = decode_image(saved(photo(), image_format, **options), name="x")
    assert decoded.dtype == torch.uint8
    assert decoded.is_contiguous()
    assert torch.equal(decoded, as_tensor(photo()))


def test_png_and_jpeg_round_trip():
    image = as_tensor(photo())
    assert torch.equal(decode_image(encode_png(image), name="x"), image)
    assert (decode_image(encode_jpeg(image), name="x").float() - image.float()).abs().mean() < 5


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
@pytest.mark.parametrize("image_format", ["TIFF"])
def test_colour_modes_become_rgb(mode, image_format):
    image = photo().convert(mode)
    packed = "tiff_lzw" if mode == "YCbCr" else None  # Pillow 12 cannot read what it writes without
    decoded = decode_image(saved(image, image_format, compression=packed), name="x")
    assert (decoded.float() - as_tensor(image).float()).abs().max() <= 2


def test_cmyk_jpeg_is_not_inverted():
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert decode_image(saved(white, "JPEG"), name="x").min() >= 250


@pytest.mark.parametrize("scale", [1, 257])
def test_16_bit_grey_is_scaled_not_clipped(scale):
    values = (np.arange(256, dtype=np.uint16) * scale).reshape(16, 16)
    decoded = decode_image(saved(Image.fromarray(values), "PNG"), name="x")
    expected = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    assert np.array_equal(decoded[0].numpy(), expected)
    assert torch.equal(decoded[0], decoded[2])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_over_mid_grey(mode):
    image = photo().convert(mode)
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (24, 0, 48, 32))
    image.putalpha(alpha)
    decoded = decode_image(saved(image, "PNG"), name="x")
    assert (decoded[:, :, :24] == 128).all()
    assert torch.equal(decoded[:, :, 24:], as_tensor(photo().convert(mode[:-1]))[:, :, 24:])


def test_palette_transparency_lies_over_mid_grey():
    image = Image.new("P", (8, 8), 3)
    image.putpalette([200, 10, 10] * 256)
    assert (decode_image(saved(image, "PNG", transparency=3), name="x") == 128).all()
    assert (decode_image(saved(image, "PNG", transparency=bytes([255, 255, 255, 0])), name="x") == 128).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_unless_told_otherwise(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = as_tensor(ImageOps.exif_transpose(image))
    assert torch.equal(decode_image(data, name="x"), expected)
    assert torch.equal(decode_image(data, name="x", apply_orientation=False), as_tensor(photo()))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_is_ignored(exif):
    assert decode_image(saved(photo(), "JPEG", exif=exif), name="x").shape == (3, 32, 48)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(image_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], image_format, save_all=True, append_images=frames[1:])
    decoded = decode_image(data, name="x").float().mean((1, 2))
    assert decoded[0] > 240
    assert decoded[1:].max() < 15


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", _AVIF])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_truncated_files_are_refused(image_format, fraction):
    data = saved(photo(96, 96), image_format)
    with pytest.raises(DataError, match=r"cannot decode image \(cut\)"):
        decode_image(data[: int(len(data) * fraction)], name="cut")


def test_truncated_progressive_jpeg_is_refused():
    data = saved(photo(96, 96), "JPEG", progressive=True)
    for fraction in (0.25, 0.5, 0.9):
        with pytest.raises(DataError):
            decode_image(data[: int(len(data) * fraction)], name="cut")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello\n" * 50, b"<!DOCTYPE html><html></html>", pickle.dumps({"a": 1}), b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_what_is_not_an_image_is_refused(data):
    with pytest.raises(DataError):
        decode_image(data, name="photo.jpg")


def test_floating_point_pixels_are_refused():
    with pytest.raises(DataError, match="floating-point"):
        decode_image(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), name="x")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 65500), (65500, 1)])
def test_extreme_shapes_are_kept(width, height):
    decoded = decode_image(saved(Image.new("RGB", (width, height), "red"), "PNG"), name="x")
    assert decoded.shape == (3, height, width)
    for fit in ("crop", "squash"):
        square = to_square(decoded, 16, fit=fit)
        assert square.shape == (3, 16, 16)
        assert (square[0] == 255).all()


def test_decompression_bombs_are_one_clear_error_in_little_memory(tmp_path: Path):
    sizes = [(20000, 20000), (12000, 11000)]  # above and below Pillow's own limit
    paths = [tmp_path / f"{width}.png" for width, _ in sizes]
    for path, (width, height) in zip(paths, sizes, strict=True):
        path.write_bytes(huge_png(width, height))
    script = (
        "import resource, sys, warnings; warnings.simplefilter('error')\n"
        "from pathlib import Path\n"
        "from vq3dcli.data.images import read_image\n"
        "from vq3dcli.errors import DataError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        read_image(Path(path))\n"
        "    except DataError as error:\n        print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *messages, kilobytes = result.stdout.splitlines()
    assert len(messages) == 2
    assert all("over the limit of 128 megapixels; try: a smaller copy" in message for message in messages)
    assert int(kilobytes) < 50_000
    assert result.stderr == ""


def test_one_picture_after_another_takes_the_memory_of_one(tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(huge_png(6000, 5000))  # 90 MB of pixels, and 30 MB in the decoder
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from vq3dcli.allocator import keep_freed_memory\n"
        "from vq3dcli.data.images import decode_square\n"
        "keep_freed_memory()\n"
        "data = Path(sys.argv[1]).read_bytes()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for _ in range(3):\n    decode_square(data, 64, name='x')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 220_000


def huge_webp(width: int, height: int) -> bytes:
    """A black WebP: a lossless one of one pixel that claims another size, whose decoder takes 16 bytes a pixel."""
    data = bytearray(saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") >> 28 << 28 | (height - 1) << 14 | (width - 1)
    data[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(data)


def test_webp_is_judged_by_its_header():
    with pytest.raises(DataError, match=r"image too large \(x\): over the limit of 48 megapixels"):
        decode_image(huge_webp(8000, 8000), name="x")


def test_large_images_are_converted_in_strips_without_a_seam(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pillow, "_STRIP_PIXELS", 500)
    assert torch.equal(decode_image(saved(photo(), "PNG"), name="x"), as_tensor(photo()))
    palette = photo().quantize(16)
    decoded = decode_image(saved(palette, "PNG", transparency=bytes([0] * 8)), name="x")
    assert torch.equal(decoded, as_tensor(palette).where(torch.from_numpy(np.array(palette)) >= 8, 128))


def test_heic_is_decoded_and_turned_or_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    heif = pillow_heif.from_pillow(photo())
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    heif.save(buffer, quality=-1, chroma=444)
    decoded = decode_image(buffer.getvalue(), name="x")
    assert decoded.shape == (3, 48, 32)
    assert (decoded.float() - as_tensor(photo()).transpose(1, 2).flip(2).float()).abs().mean() < 4
    with pytest.raises(DataError, match="cannot decode image"):
        decode_image(buffer.getvalue()[:-200], name="x")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"HEIC needs pillow-heif: pip install 'vq3d\[heic\]'"):
        decode_image(buffer.getvalue(), name="x")


@pytest.mark.parametrize(
    ("kind", "start", "where"),
    [
        (b"zTXt", b"workflow\0\0", 33),  # after the header
        (b"iTXt", b"workflow\0\1\0\0\0", 33),
        (b"iTXt", b"workflow\0\1\0\0\0", -12),  # before the end
        (b"iCCP", b"profile\0\0", 33),
    ],
)
def test_pngs_with_large_texts_and_profiles_are_whole_pictures(kind, start, where):
    data = saved(photo(), "PNG")
    bomb = png_chunk(kind, start + zlib.compress(bytes(70 << 20)))
    assert torch.equal(decode_image(data[:where] + bomb + data[where:], name="x"), as_tensor(photo()))


def test_camera_raw_is_not_taken_for_its_thumbnail():
    def tiff(**tags: object) -> bytes:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            info[int(tag[1:])] = value
        return saved(photo(), "TIFF", tiffinfo=info)

    assert torch.equal(decode_image(tiff(), name="x"), as_tensor(photo()))
    for tags in ({"_50706": b"\1\4\0\0"}, {"_254": 1, "_330": 8}):
        with pytest.raises(DataError, match=r"camera raw.*develop it to JPEG first"):
            decode_image(tiff(**tags), name="x")
    canon = bytearray(tiff())
    canon[8:10] = b"CR"
    with pytest.raises(DataError):
        decode_image(bytes(canon), name="x")
    with pytest.raises(DataError, match="reduced copy of another"):
        decode_image(tiff(_254=1), name="x")


def test_a_tiff_that_pillow_does_not_know_says_what_it_holds():
    data = bytearray(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    data = data.replace(struct.pack("<HHIHH", 258, 3, 1, 32, 0), struct.pack("<HHIHH", 258, 3, 1, 64, 0))
    with pytest.raises(DataError, match="a TIFF that is damaged, or of numbers that Pillow does not read"):
        decode_image(bytes(data), name="x")


def test_the_bytes_of_a_file_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2 << 20)
    with pytest.raises(DataError, match="more than 2 MiB"):
        images.read_file(Path("/dev/zero"))
    path = tmp_path / "x"
    for size in (0, 1, (1 << 20) + 1, 2 << 20):
        path.write_bytes(bytes(size))
        assert images.read_file(path) == bytes(size)
    path.write_bytes(bytes((2 << 20) + 1))
    with pytest.raises(DataError, match="more than 2 MiB"):
        images.read_file(path)


def test_missing_files_and_folders(tmp_path: Path):
    with pytest.raises(InputMissingError, match="no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(InputMissingError, match="not a file"):
        read_image(tmp_path)
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"text\.jpg"):
        read_image(text)
    png_named_jpeg = tmp_path / "x.JPEG"
    png_named_jpeg.write_bytes(saved(photo(), "PNG"))
    assert torch.equal(read_image(png_named_jpeg), as_tensor(photo()))


def test_to_square_takes_the_centre_and_matches_pillow():
    image = photo(300, 200)
    square = to_square(as_tensor(image), 64, fit="crop")
    expected = as_tensor(image.crop((50, 0, 250, 200)).resize((64, 64), Image.Resampling.BICUBIC))
    assert (square.float() - expected.float()).abs().max() <= 1
    squashed = to_square(as_tensor(image), 64, fit="squash")
    expected = as_tensor(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert (squashed.float() - expected.float()).abs().max() <= 1
