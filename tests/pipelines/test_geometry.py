"""Where geometry comes from: disparity maps of the user, what is none, and options that contradict each other."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.errors import DataError, UnavailableError, UsageError
from vq3dcli.pipelines.geometry import (
    NERF,
    check_shape,
    geometry_of_map,
    read_disparity,
    user_s,
)
from vq3dcli.pipelines.inputs import parse_sources
from vq3dcli.pipelines.render import Look, check_look, with_geometry
from vq3dcli.pipelines.targets import Task
from vq3dcli.scene_file import camera_of
from vq3dcli.weights_file import embedded_path, load_weights

CPU = torch.device("cpu")


def test_options_that_contradict_each_other() -> None:
    for look, texts, options in (
        (Look(), ["a.jpg", "b.jpg"], {"has_map": True, "has_network": False}),
        (Look(save_scene=True), ["a.jpg"], {"has_map": True, "has_network": False}),
        (Look(save_scene=True), ["a.vq3d.safetensors"], {"has_map": False, "has_network": False}),
        (Look(), ["samples.json#a"], {"has_map": False, "has_network": True}),
    ):
        with pytest.raises(UsageError):
            check_look(look, parse_sources(texts), **options)
    for text in ("a.jpg", "toyscene:box", "samples.json#a"):
        check_look(Look(), parse_sources([text]), has_map=True, has_network=False)


def test_geometry_is_asked_for_where_it_shows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3, 4))
    given = Look(geometry=geometry_of_map(tmp_path / "a.npy"))
    for look, text in ((given, "a.jpg"), (Look(), "toyscene:box"), (Look("none"), "a.jpg")):
        with pytest.raises(UsageError):
            with_geometry(look, parse_sources([text]), Task(CPU, geometry="nerf"))
        assert with_geometry(look, parse_sources([text]), Task(CPU, geometry=None)) is look
    assert with_geometry(Look(), parse_sources(["a.jpg"]), Task(CPU, geometry="nerf")).geometry is NERF
    chosen = with_geometry(Look(), parse_sources(["a.jpg"]), Task(CPU, geometry=None)).geometry
    assert (chosen.kind == "both") == embedded_path("depth").exists()
    if chosen is NERF:
        with pytest.raises(UnavailableError, match=r"no embedded depth network.*try: --geometry nerf"):
            with_geometry(Look(), parse_sources(["a.jpg"]), Task(CPU, geometry="both"))


def huge_png() -> bytes:
    """The beginning of a grey PNG of 400 megapixels and 16 bits."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 16, 0, 0, 0, 0), b"IDAT")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_disparity_maps(tmp_path: Path) -> None:
    values = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "a.pfm").write_bytes(b"Pf\n4 3\n-1.0\n" + values[::-1].tobytes())
    Image.fromarray((values * 65535).astype(np.uint16)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.pfm", "a.png"):
        disparity = read_disparity(tmp_path / name)
        assert torch.allclose(disparity / disparity.max(), torch.from_numpy(values), atol=1e-4), name
    np.save(tmp_path / "a.npy", values[None, ..., None])  # axes of length 1
    assert read_disparity(tmp_path / "a.npy").shape == (3, 4)
    np.save(tmp_path / "g.npy", values.astype(np.float64) * 1e300)
    np.save(tmp_path / "h.npy", values * 1j)
    (tmp_path / "i.png").write_bytes(huge_png())
    (tmp_path / "b.npy").write_bytes(b"nothing")
    np.save(tmp_path / "c.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "d.npy", np.zeros((3, 3, 3)))
    (tmp_path / "e.pfm").write_bytes(b"Pf\n4 3\n-1.0\n1234")
    np.save(tmp_path / "f.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", values)
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    for name in ("z.npy", "b.npy", "c.npy", "d.npy", "e.pfm", "f.npy", "g.npy", "h.npy", "i.png"):
        with pytest.raises(DataError, match=name):
            read_disparity(tmp_path / name)


def test_a_coloured_map_is_refused_and_a_grey_jpeg_is_not(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    grey = np.stack([ramp] * 3, -1)
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=60)
    assert (read_disparity(tmp_path / "grey.jpg")[24] - torch.from_numpy(ramp[24])).abs().max() < 6
    for name, colours in {
        "spectral.png": np.stack([ramp, 255 - ramp, 128 + ramp // 4], -1),
        "magma.jpg": np.stack([ramp, ramp // 3, np.where(ramp < 128, ramp, 255 - ramp)], -1).astype(np.uint8),
    }.items():
        Image.fromarray(colours.astype(np.uint8)).save(tmp_path / name, quality=90)
        with pytest.raises(DataError, match=r"a coloured picture of a map .*; try: its grey or 16-bit version"):
            read_disparity(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_map_is_turned_as_its_photo_is(tmp_path: Path, orientation: int) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "deep.png", exif=exif)
    Image.fromarray((values // 257).astype(np.uint8)).save(tmp_path / "flat.png", exif=exif)
    deep, flat = read_disparity(tmp_path / "deep.png"), read_disparity(tmp_path / "flat.png")
    assert deep.shape == flat.shape
    assert (deep / 257 - flat).abs().max() <= 1


def test_what_is_no_map_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "zip.npz", np.zeros((3, 3)))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**30)})
    (tmp_path / "huge.npy").write_bytes(header.getvalue())
    (tmp_path / "double.tif").write_bytes(
        _float_tiff().replace(struct.pack("<HHIHH", 258, 3, 1, 32, 0), struct.pack("<HHIHH", 258, 3, 1, 16, 0))
    )
    for name, told in (
        ("zip.npy", "magic string"),
        ("huge.npy", "bytes for"),
        ("double.tif", "numbers that Pillow does not read"),
    ):
        with pytest.raises(DataError, match=f"{name}.*{told}.*try: a PNG, .npy or .pfm") as error:
            read_disparity(tmp_path / name)
        assert "\n" not in str(error.value)


def _float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def test_maps_are_brought_to_the_statistics_of_training(tiny_weights: Path) -> None:
    loss, facts = load_weights(tiny_weights).recipe.loss, camera_of(load_weights(tiny_weights))
    # 17 megapixels, more than PyTorch finds quantiles of.
    s = user_s(torch.linspace(0.0, 7.0, 4096).expand(4100, 4096), facts, name="a")
    assert max(s.shape) <= 2048
    assert s.mean() == pytest.approx(loss.alignment_mean, abs=0.02)
    assert s.std(unbiased=False) == pytest.approx(loss.alignment_std, abs=0.02)
    with pytest.raises(DataError, match="without any relief"):
        user_s(torch.full((30, 40), 3.0), facts, name="a")


def test_maps_of_another_shape() -> None:
    assert check_shape(torch.zeros(30, 40), [1.0, 4 / 3], name="a") == 4 / 3
    assert check_shape(torch.zeros(30, 30), [1.0, 4 / 3], name="a") == 1.0
    with pytest.raises(DataError, match="another shape"):
        check_shape(torch.zeros(30, 40), [1.0, 1.5], name="a")
