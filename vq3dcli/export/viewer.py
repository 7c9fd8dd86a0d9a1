"""A scene as one HTML file that anyone can look around in: no server, no network, no library.

The file holds the layers as pictures (of a photo its two reliefs), a script of our own that draws them by WebGL 2, and
a still picture for where that is missing. A content security policy forbids everything else: only this script and this
style sheet, known by their hashes, and pictures inside the file.

Legend: L layers, H height_px, W width_px.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data.images import encode_jpeg, encode_png
from vq3dcli.editing.photo_scene import STRETCH_FADES, STRETCH_GONE, PhotoScene
from vq3dcli.export.colour import colour_table
from vq3dcli.export.layers import Layers
from vq3dcli.files import as_bytes, write_bytes
from vq3dcli.rendering.scene import to_uint8

# How far the camera may turn at most: farther out, layers of the first view have nothing more to show.
BOUND_RAD = 0.2
# Cells a side that each layer is divided into: layers with nothing in a part of the view are left out there.
_CELLS = 16
_HELP = "Drag, arrow keys or tilt to look around; wheel or pinch to zoom; d for disparity; 0 to go back."


def write_viewer(
    path: Path,
    title: str,
    layers: Layers | PhotoScene,
    still: Tensor,
    shown: tuple[float, float],
    *,
    bound_rad: float = BOUND_RAD,
    pivot_z: float | None = None,
    zoom: float = 1.0,
) -> None:
    """Write the page, atomically.

    Args:
        title: Any text, for example a file's name; it is escaped.
        layers: At most 32 of at most 512 pixels, or a photo without margins of at most 512 pixels.
        still: What is shown without WebGL, uint8 `[3, H, W]` of any size.
        shown: The range of s that the colours of the disparity span.
        pivot_z: How far in front of the first camera the point lies that it turns around; default: the origin.
    """
    height_px, width_px = layers.front.s.shape if isinstance(layers, PhotoScene) else layers.alpha.shape[1:]
    script, style = _resource("viewer.js"), _resource("viewer.css")
    policy = (
        f"default-src 'none'; img-src data:; script-src {hash_source(script)}; style-src {hash_source(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    drawn = _photo_value(layers) if isinstance(layers, PhotoScene) else _layers_value(layers)
    frustum = layers.frustum
    value = {
        **drawn,
        "width_px": width_px,
        "height_px": height_px,
        "fov_rad": frustum.fov_rad,
        **asdict(frustum.depth_range),
        "shown": list(shown),
        "colour_map": base64.b64encode(colour_table().numpy().tobytes()).decode(),
        "bound_rad": bound_rad,
        "pivot_z": pivot_z or frustum.radius,
        "zoom": zoom,
    }
    name = html.escape(title)
    picture = _data_uri("jpeg", encode_jpeg(still))
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="vq3d">'
        f'<link rel="icon" href="data:,"><title>{name}</title><style>{style}</style></head>\n'
        f'<body><h1>{name}</h1><div id="frame"><img id="still" src="{picture}" alt="The scene from the front"></div>\n'
        '<div id="bar"><button id="disparity" type="button" aria-pressed="false">Disparity</button>'
        '<button id="tilt" type="button" aria-pressed="false" hidden>Tilt</button>'
        f'<button id="reset" type="button">Reset</button></div><p id="status" role="status"></p><p>{_HELP}</p>\n'
        f'<script type="application/json" id="scene">{json_in_html(value)}</script>\n'
        f"<script>{script}</script></body></html>\n"
    )
    write_bytes(path, as_bytes(text))


def _layers_value(layers: Layers) -> dict[str, object]:
    low, high = _place_range(layers)
    level = (layers.s - low[:, None, None]) / (high - low)[:, None, None]
    # Opacity in the red and place in the green of a PNG: lossless, unlike the colours.
    shapes = torch.stack([layers.alpha, level, torch.zeros_like(level)], 1)
    return {
        "cells": _CELLS,
        "cover": _cover(layers),
        "planes_s": layers.planes_s.tolist(),
        "low_s": low.tolist(),
        "high_s": high.tolist(),
        "colours": [_data_uri("jpeg", encode_jpeg(to_uint8(picture))) for picture in layers.rgb],
        "shapes": [_data_uri("png", encode_png(to_uint8(picture))) for picture in shapes],
    }


def _photo_value(photo: PhotoScene) -> dict[str, object]:
    both = (photo.front, photo.behind)
    return {
        "ranges_s": [float(value) for layer in both for value in (layer.s.min(), layer.s.max())],
        "fades": [STRETCH_FADES, STRETCH_GONE],
        "colours": [_data_uri("jpeg", encode_jpeg(to_uint8(layer.rgb.cpu()))) for layer in both],
        "shapes": [_data_uri("png", encode_png(_relief_picture(layer.s.cpu()))) for layer in both],
    }


def _relief_picture(s: Tensor) -> Tensor:
    """Disparity in 16 bits, the upper ones in red, the lower ones in green: 256 levels would make terraces."""
    level = (s * 65535.0).round().clamp(0, 65535).to(torch.int32)
    return torch.stack([level // 256, level % 256, torch.zeros_like(level)]).to(torch.uint8)


def _cover(layers: Layers) -> str:
    """What the script needs to leave layers out: a digit for each cell of each layer, row by row, near to far.

    0: nothing is there, 1: something, 2: all of the cell is opaque. Cells reach a texel into their neighbours, as
    bilinear samples do.
    """
    alpha = layers.alpha[:, None].cpu()
    something = functional.adaptive_max_pool2d(functional.max_pool2d(alpha, 3, 1, 1), _CELLS).flatten(1)
    opaque = -functional.adaptive_max_pool2d(functional.max_pool2d(-alpha, 3, 1, 1), _CELLS).flatten(1)
    digits = (something > 0.5 / 255.0).long() + (opaque > 254.5 / 255.0).long()
    return "".join(map(str, digits.flatten().tolist()))


def _place_range(layers: Layers) -> tuple[Tensor, Tensor]:
    """The range of s in each layer, `[L]` twice, over texels that can be seen, so that 256 levels are fine steps."""
    visible = layers.alpha > 1.0 / 255.0
    low = torch.where(visible, layers.s, torch.inf).flatten(1).amin(1)
    high = torch.where(visible, layers.s, -torch.inf).flatten(1).amax(1)
    planes = layers.planes_s.to(low)
    empty = ~visible.flatten(1).any(1)
    low, high = torch.where(empty, planes, low), torch.where(empty, planes, high)
    return low, torch.maximum(high, low + 1e-4)  # a range of nothing would divide by zero


def json_in_html(value: object) -> str:
    """JSON that cannot end the element it stands in, whatever text is inside."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _resource(name: str) -> str:
    return resources.files("vq3dcli.export").joinpath(name).read_text(encoding="utf-8")


def hash_source(text: str) -> str:
    """The source of a content security policy that allows a script or style sheet, and nothing else."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
