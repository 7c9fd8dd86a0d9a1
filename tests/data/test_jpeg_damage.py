"""The fast JPEG decoder gives the pixels that Pillow gives, and leaves to Pillow what it may not judge."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vq3dcli.data import jpeg_damage
from vq3dcli.data.images import decode_image, decode_square, encode_png, resize
from vq3dcli.errors import DataError


def photo(width: int = 97, height: int = 61) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    pixels = np.stack([x * 200 // width, y * 200 // height, (x + y) % 200], -1) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def saved(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 30},
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
        {"comment": b"text"},
    ],
)
def test_pixels_are_pillows_to_the_bit(options):
    for image in (photo(), photo().convert("L"), photo(1, 1), photo(300, 7)):
        if options.get("keep_rgb") and image.mode == "L":
            continue
        data = saved(image, **options)
        pixels = jpeg_damage.decode(data, image.height, image.width)
        assert pixels is not None
        assert torch.equal(pixels[0], by_pillow(data))
        assert torch.equal(decode_image(data, name="x"), by_pillow(data))


def test_what_it_may_not_judge_goes_to_pillow():
    cmyk = saved(photo().convert("CMYK"))
    assert torch.equal(decode_image(cmyk, name="x"), by_pillow(cmyk))
    cut = saved(photo())[:-40]
    assert jpeg_damage.decode(cut, 61, 97) is None
    assert jpeg_damage.decode(saved(photo()), 61, 96) is None  # Pillow reads another size
    with pytest.raises(DataError, match=r"cannot decode image \(cut\)"):
        decode_square(cut, 16, name="cut")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_before_the_window(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        turned = torch.from_numpy(np.array(ImageOps.exif_transpose(image))).permute(2, 0, 1)
    seen = []

    def window(height_px: int, width_px: int) -> tuple[int, int, int]:
        seen.append((height_px, width_px))
        return 3, 5, 40

    square = decode_square(data, 24, name="x", window=window)
    assert seen == [turned.shape[1:]] == [square[1:3]]
    assert square.window == (3, 5, 40)
    assert torch.equal(square.image, resize(turned[:, 3:43, 5:45], 24, 24))
    as_stored = decode_square(data, 24, name="x", apply_orientation=False)
    assert torch.equal(as_stored.image, resize(by_pillow(data)[:, :, 18:79], 24, 24))


def exif_in(order: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112], exif[0x0131] = "maker", 6, "software"
    return saved(photo(8, 6), exif=exif, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_pillows_whatever_byte_is_changed(order):
    data = exif_in(order)
    start = data.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    turned = 0
    for place in range(start + 4, end):
        for value in (0, 1, 3, 8, 0xFF):
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            with Image.open(io.BytesIO(changed)) as image:
                try:
                    orientation = image.getexif().get(0x0112, 1)
                except Exception:  # damaged EXIF says nothing
                    orientation = 1
            shape = (3, 8, 6) if orientation in (5, 6, 7, 8) else (3, 6, 8)
            assert decode_image(changed, name="x").shape == shape, (place, value)
            turned += shape == (3, 8, 6)
    assert turned > 100


def test_an_orientation_in_xmp_counts():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    part = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    data = saved(photo())
    tagged = data[:2] + b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part + data[2:]
    assert decode_image(tagged, name="x").shape == (3, 97, 61)


def test_pixels_lie_so_that_torch_resizes_them_the_fast_way():
    data = saved(photo())
    for scratch in (False, True):
        window = jpeg_damage.decode(data, 61, 97, scratch=scratch)[:, :, 1:31, 1:31]
        resized = torch.nn.functional.interpolate(window, size=(9, 9), mode="bicubic", antialias=True)
        assert resized.is_contiguous(memory_format=torch.channels_last)


def test_a_square_does_not_change_when_the_next_one_is_decoded():
    first = decode_square(saved(photo(64, 64)), 64, name="x").image
    before = first.clone()
    decode_square(saved(ImageOps.invert(photo(64, 64))), 64, name="y")
    assert torch.equal(first, before)


def test_squares_of_other_formats_and_of_animations():
    frames = [photo(), ImageOps.invert(photo())]
    for data in (
        encode_png(by_pillow(saved(photo()))),
        saved(frames[0], "GIF", save_all=True, append_images=[frames[1]]),
    ):
        whole = decode_image(data, name="x")
        assert torch.equal(decode_square(data, 61, name="x").image, whole[:, :, 18:79])


def test_bombs_are_found_before_decoding():
    data = bytearray(saved(photo()))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(DataError, match="128 megapixels"):
        decode_square(bytes(data), 16, name="bomb")


def cut(data: bytes) -> bytes:
    """The first half of the last scan, with an end mark."""
    return data[: (data.rindex(b"\xff\xda") + len(data)) // 2] + b"\xff\xd9"


def holed(data: bytes) -> bytes:
    """Without 300 bytes in the middle of the last scan."""
    middle = (data.rindex(b"\xff\xda") + len(data)) // 2
    return data[:middle] + data[middle + 300 :]


KINDS = {
    "RGB": {},
    "progressive": {"progressive": True},
    "L": {},
    "CMYK": {},
    "intervals": {"restart_marker_rows": 1},
    "no JFIF": {"keep_rgb": True},
}


@pytest.mark.parametrize("damage", [cut, holed])
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_data_that_are_not_whole_are_an_error_though_pillow_is_content(kind, damage):
    image = photo(160, 120).convert(kind if kind in ("L", "CMYK") else "RGB")
    data = saved(image, **KINDS[kind])
    decode_image(data, name="x")
    by_pillow(damage(data))
    # libjpeg tells its first warning only: one about the headers must not hide the damage.
    for odd in (data, with_an_odd_revision(data), with_bytes_between_segments(data)):
        with pytest.raises(DataError, match="cannot decode image"):
            decode_square(damage(odd), 32, name="x")


def with_an_odd_revision(data: bytes) -> bytes:
    return data.replace(b"JFIF\0\1", b"JFIF\0\7", 1)


def with_bytes_between_segments(data: bytes) -> bytes:
    table = data.index(b"\xff\xdb")
    return data[:table] + b"\0\0\0" + data[table:]


def with_odd_scan_parameters(data: bytes) -> bytes:
    start = data.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[: end - 3] + b"\0\0\0" + data[end:]


def padded(data: bytes) -> bytes:
    return data[:-2] + bytes(200) + b"\xff\xd9"


def trailed(data: bytes) -> bytes:
    return data + b"text" * 20


@pytest.mark.parametrize(
    "odd", [with_an_odd_revision, with_bytes_between_segments, with_odd_scan_parameters, padded, trailed]
)
def test_what_is_odd_but_whole_is_kept(odd):
    data = saved(photo(160, 120))
    assert odd(data) != data
    assert torch.equal(decode_image(odd(data), name="x"), by_pillow(data))


def test_no_room_in_memory_says_nothing_about_the_image(monkeypatch):
    from vq3dcli.data import images

    data = saved(photo())
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(images, "_decode", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(MemoryError):
            decode_image(data, name="x")


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), progressive=st.booleans())
def test_a_changed_byte_has_pillows_outcome(place, value, progressive):
    data = bytearray(saved(photo(40, 24), progressive=progressive))
    data[int(place * len(data))] = value
    changed = bytes(data)
    try:
        expected = by_pillow(changed)
    except Exception:  # Pillow's own reading of a header
        expected = None
    try:
        pixels = decode_image(changed, name="x", apply_orientation=False)
    except DataError:  # Pillow is content with holes
        return
    assert expected is not None
    assert torch.equal(pixels, expected)
