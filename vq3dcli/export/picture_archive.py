"""Pictures as ADM's evaluation reads them (Dhariwal and Nichol, 2021): one npz file, written picture by picture."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from vq3dcli.files import atomic_path


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
