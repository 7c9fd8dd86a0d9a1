"""Maps for other tools: 16-bit PNG, PFM, npz; and pictures in the one npz that ADM's evaluation reads.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021.

Legend: V views, H height_px, W width_px.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vq3dcli.files import atomic_path, write_bytes
from vq3dcli.rendering.cameras import Camera, DepthRange, z_depth_from_s
from vq3dcli.rendering.scene import SceneView


def write_disparity_png(path: Path, s: Tensor) -> None:
    """Write s `[H, W]` as a 16-bit greyscale PNG: s = level / 65535, 1 near and 0 far."""
    levels = (s.detach().cpu().double().clamp(0.0, 1.0) * 65535.0).round().numpy().astype(np.uint16)
    data = io.BytesIO()
    Image.fromarray(levels).save(data, "PNG")
    write_bytes(path, data.getvalue())


def write_pfm(path: Path, values: Tensor) -> None:
    """Write a float map `[H, W]` as a portable float map, little-endian, whose rows run from the bottom up."""
    height_px, width_px = values.shape
    rows = values.detach().cpu().numpy().astype("<f4")[::-1]
    write_bytes(path, f"Pf\n{width_px} {height_px}\n-1.0\n".encode("ascii") + rows.tobytes())


def write_views(path: Path, view: SceneView, camera: Camera, depth_range: DepthRange) -> None:
    """Write pictures, disparities and cameras of V views as npz, without pickled objects.

    Arrays: `rgb` uint8 `[V, H, W, 3]`; `s` and `z_depth` float32 `[V, H, W]`; `cam_to_world` `[V, 4, 4]`, `intrinsics`
    `[V, 3, 3]` in pixels, `near` and `far`.
    """
    s = view.s.cpu()
    # Through a handle: NumPy would add its own suffix to a name like A.NPZ.
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            rgb=view.rgb.permute(0, 2, 3, 1).cpu().numpy(),
            s=s.numpy(),
            z_depth=z_depth_from_s(s, depth_range).numpy(),
            cam_to_world=camera.cam_to_world.cpu().numpy(),
            intrinsics=camera.intrinsics.cpu().numpy(),
            near=np.float32(depth_range.near),
            far=np.float32(depth_range.far),
        )


@contextlib.contextmanager
def picture_archive(path: Path, count: int, size_px: int) -> Iterator[Callable[[Tensor, int], None]]:
    """Open an npz file of `arr_0`, uint8 `[count, size_px, size_px, 3]`, and `arr_1`, class indices int64 `[count]`.

    The same bytes as `numpy.savez` writes, but no picture stays in memory. The file appears under its name when the
    context ends without an error, and must have all its pictures by then.

    Yields:
        Adds a picture, uint8 `[3, size_px, size_px]`, and its class index.
    """
    labels: list[int] = []
    shape = (count, size_px, size_px, 3)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)

            def add(picture: Tensor, class_index: int) -> None:
                assert picture.shape == (3, size_px, size_px)
                member.write(picture.permute(1, 2, 0).contiguous().numpy().tobytes())
                labels.append(class_index)

            yield add
        assert len(labels) == count, f"{len(labels)} pictures for {count}"
        with archive.open("arr_1.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.array(labels, np.int64))
