"""A photo in the public domain, for demonstrations: no third-party picture lies in this repository."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from vq3dcli.data.images import encode_png
from vq3dcli.files import make_folder, write_bytes


def example_photo(folder: Path) -> Path | None:
    """Write scikit-image's photo of a cat (CC0, Stefan van der Walt's Chelsea) to `folder`.

    Returns:
        The PNG, or None without scikit-image.
    """
    path = folder / "cat.png"
    if path.exists():
        return path
    if find_spec("skimage") is None:
        return None
    make_folder(folder)
    pixels = import_module("skimage.data").chelsea()
    write_bytes(path, encode_png(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()))
    return path
