"""A multiplane image as a folder: PNG layers and `mpi.json`, for engines and other people's viewers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from vq3dcli.data.images import encode_png
from vq3dcli.errors import OutputError
from vq3dcli.export.layers import Layers
from vq3dcli.files import make_folder, write_bytes, write_json
from vq3dcli.rendering.cameras import z_depth_from_s

FORMAT_VERSION = 1
INDEX_NAME = "mpi.json"
_FORMAT = "mpi"


def layers_in(folder: Path) -> list[Path]:
    """The files of a multiplane image, whoever made it, that a new one replaces; none if the folder is not there."""
    return sorted([*folder.glob("layer_[0-9][0-9].png"), *folder.glob(INDEX_NAME)])


def check_folder(folder: Path) -> None:
    """Raise `OutputError` if the folder holds pictures of such names that are no multiplane image of ours."""
    there = layers_in(folder)
    try:
        ours = not there or json.loads((folder / INDEX_NAME).read_bytes())["format"] == _FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        ours = False
    if not ours:
        raise OutputError(f"vq3d did not make what it would replace ({there[0]})", remedy="another folder with -o")


def write_mpi(folder: Path, layers: Layers) -> list[Path]:
    """Write layers that are flat pictures, each at one depth (`layers.flat_layers`).

    Returns:
        The files: `mpi.json`, then the layers from near to far.
    """
    make_folder(folder)
    frustum = layers.frustum
    z_depth = z_depth_from_s(layers.planes_s, frustum.depth_range)
    entries, written = [], []
    for index in range(len(layers)):
        name = f"layer_{index:02d}.png"
        picture = torch.cat([layers.rgb[index], layers.alpha[index : index + 1]])
        levels = (picture * 255.0).round().clamp(0, 255).to(torch.uint8).cpu()
        write_bytes(folder / name, encode_png(levels))
        entries.append({"file": name, "s": float(layers.planes_s[index]), "z_depth": float(z_depth[index])})
        written.append(folder / name)
    height_px, width_px = layers.alpha.shape[1:]
    tangent = frustum.tangent
    index_value = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "width_px": width_px,
        "height_px": height_px,
        "axes": "x right, y down, z forward; the camera looks along +z and stands at z = -radius",
        "alpha": "straight; composite from the last layer to the first",
        "fov_x_deg": _angle_deg(tangent * layers.margins[0]),
        "fov_y_deg": _angle_deg(tangent * layers.margins[1] / frustum.aspect),
        "view_fov_x_deg": _angle_deg(tangent),
        "view_fov_y_deg": _angle_deg(tangent / frustum.aspect),
        "radius": frustum.radius,
        **asdict(frustum.depth_range),
        "layers": entries,
    }
    write_json(folder / INDEX_NAME, index_value)
    return [folder / INDEX_NAME, *written]


def _angle_deg(tangent: float) -> float:
    return math.degrees(2.0 * math.atan(tangent))
