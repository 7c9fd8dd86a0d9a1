"""Embedded colour profiles are applied wherever a picture is read, and cost nothing where they say sRGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from vq3dcli.data.images import decode_image, decode_square
from vq3dcli.data.pillow import colour_change

PATCHES = np.array([[230, 80, 60], [90, 190, 100], [70, 90, 200], [128, 128, 128], [220, 210, 90]], np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

_AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="an older Pillow"))


def profile_of(matrix: np.ndarray, gamma: float) -> bytes:
    """An RGB profile of ICC version 2 by its matrix to XYZ (D50), columns red, green, blue, and one gamma."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)

    curve = b"curv\0\0\0\0\0\0\0\x01" + round(gamma * 256).to_bytes(2, "big") + b"\0\0"
    text = b"desc\0\0\0\0\0\0\0\x05test\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": xyz(np.array([0.9642, 1.0, 0.8249]))}
    tags |= {name: xyz(matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + (start + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    size = (start + len(body)).to_bytes(4, "big")
    header = size + bytes(4) + b"\x02\x20\0\0" + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return header.ljust(128, b"\0") + len(tags).to_bytes(4, "big") + table + body


# Display P3 and sRGB: matrices to XYZ of their primaries, adapted to D50 (ICC's own profiles).
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB_MATRIX = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
GAMMA = 2.2
IN_P3 = profile_of(P3, GAMMA)
SWAPPED = profile_of(SRGB_MATRIX[:, [1, 0, 2]], GAMMA)


def stored_as(profile_matrix: np.ndarray, srgb: np.ndarray) -> np.ndarray:
    """What a file with a profile stores for sRGB colours `[N, 3]`, by its definition."""
    value = srgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    inside = np.linalg.solve(profile_matrix, SRGB_MATRIX @ linear.T).T.clip(0.0, 1.0)
    return np.round(255.0 * inside ** (1.0 / GAMMA)).astype(np.uint8)


def picture(patches: np.ndarray, side: int = 32) -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(patches[None], side, 0), side, 1))


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def patches_of(decoded: torch.Tensor, side: int = 32) -> np.ndarray:
    return decoded[:, side // 2, side // 2 :: side].T.numpy().astype(int)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", _AVIF])
@pytest.mark.parametrize(("matrix", "profile"), [(P3, IN_P3), (SRGB_MATRIX[:, [1, 0, 2]], SWAPPED)])
def test_colours_are_those_of_srgb(image_format, matrix, profile):
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(image_format, {"quality": 100})
    if image_format == "JPEG":
        options["subsampling"] = 0
    data = saved(picture(stored_as(matrix, PATCHES)), image_format, icc_profile=profile, **options)
    decoded = decode_image(data, name="x")
    assert np.abs(patches_of(decoded) - PATCHES).max() <= 4
    square = decode_square(data, 32, name="x", window=lambda height, width: (0, 0, 32))
    assert np.abs(square.image[:, 16, 16].numpy().astype(int) - PATCHES[0]).max() <= 4


def test_colours_of_heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    image = picture(stored_as(P3, PATCHES))
    heif = pillow_heif.from_pillow(image)
    heif.info["icc_profile"] = IN_P3
    buffer = io.BytesIO()
    heif.save(buffer, quality=-1, chroma=444)
    assert np.abs(patches_of(decode_image(buffer.getvalue(), name="x")) - PATCHES).max() <= 6


def test_colours_change_before_they_lie_over_grey():
    image = picture(stored_as(P3, PATCHES)).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 255))
    image.paste((9, 200, 9, 0), (0, 16, image.width, 32))
    decoded = decode_image(saved(image, "PNG", icc_profile=IN_P3), name="x")
    assert (decoded[:, 17:] == 128).all()
    assert np.abs(decoded[:, 8, 16::32].T.numpy().astype(int) - PATCHES).max() <= 4


def test_a_profile_in_several_segments_of_a_jpeg_is_joined_and_one_that_lacks_a_part_is_none():
    long = IN_P3 + bytes(100_000 - len(IN_P3))
    plain, short, data = (
        saved(picture(PATCHES), "JPEG", **options) for options in ({}, {"icc_profile": IN_P3}, {"icc_profile": long})
    )
    assert torch.equal(decode_image(data, name="x"), decode_image(short, name="x"))
    first = data.index(b"\xff\xe2")
    end = first + 2 + int.from_bytes(data[first + 2 : first + 4], "big")
    assert torch.equal(decode_image(data[:first] + data[end:], name="x"), decode_image(plain, name="x"))
    assert not torch.equal(decode_image(data, name="x"), decode_image(plain, name="x"))


@pytest.mark.parametrize("profile", [SRGB, b"no profile", IN_P3[:200], profile_of(SRGB_MATRIX, 2.2)[:-40] + bytes(40)])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_says_srgb_or_is_damaged_changes_no_bit(image_format, profile):
    plain = decode_image(saved(picture(PATCHES), image_format), name="x")
    assert torch.equal(decode_image(saved(picture(PATCHES), image_format, icc_profile=profile), name="x"), plain)
    assert colour_change(profile, "RGB") is None


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16"])
def test_profiles_of_three_colours_do_no_harm_to_other_pixels(mode):
    image = Image.fromarray(np.full((8, 8), 40_000, np.uint16)) if mode == "I;16" else picture(PATCHES).convert(mode)
    image_format = "JPEG" if mode == "CMYK" else "PNG"
    plain = decode_image(saved(image, image_format), name="x").float()
    tagged = decode_image(saved(image, image_format, icc_profile=SWAPPED), name="x").float()
    assert (tagged - plain).abs().max() <= 12  # a grey of gamma 2.2 as one of sRGB


def test_grey_profiles_change_greys():
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
    linear = bytearray(profile_of(SRGB_MATRIX, 1.0).replace(b"mntrRGB ", b"mntrGRAY").replace(b"rTRC", b"kTRC"))
    expected = 255.0 * np.where(
        (v := np.arange(256) / 255.0) <= 0.0031308, 12.92 * v, 1.055 * np.maximum(v, 1e-9) ** (1 / 2.4) - 0.055
    )
    for image_format, tolerance in (("PNG", 2), ("JPEG", 4)):
        data = saved(
            Image.fromarray(ramp),
            image_format,
            icc_profile=bytes(linear),
            **({"quality": 100} if image_format == "JPEG" else {}),
        )
        decoded = decode_image(data, name="x")
        assert np.abs(decoded[:, 8].numpy() - expected)[:, 8:].max() <= tolerance
