"""3D Gaussian splats in the plain PLY layout that viewers read (Kerbl et al., SIGGRAPH 2023).

One flat Gaussian a surface point: x y z, unused normals, colour as the constant spherical harmonic, opacity before the
sigmoid, logarithms of three standard deviations, and a rotation quaternion w x y z. Nothing else: viewers choke on
extra elements.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vq3dcli.export.ply import write_ply
from vq3dcli.export.points import Surface

# The constant spherical harmonic: colour = 0.5 + SH_0 f_dc.
SH_0 = 0.5 / math.sqrt(math.pi)
OPACITY = 0.98
# Standard deviation in pixels. At 0.6 the middle between four splats is 94 % opaque, and little blur is added.
_SIGMA_PX = 0.6
_THICKNESS = 0.1


def write_splats(path: Path, surface: Surface) -> None:
    """Write the splats of a surface, atomically."""
    scale, rotation = gaussians(surface)
    count = len(surface.points)
    logit = math.log(OPACITY / (1.0 - OPACITY))
    columns: dict[str, Tensor] = {name: surface.points[:, axis] for axis, name in enumerate("xyz")}
    columns |= {name: torch.zeros(count) for name in ("nx", "ny", "nz")}
    columns |= {f"f_dc_{i}": (surface.rgb[:, i].float() / 255.0 - 0.5) / SH_0 for i in range(3)}
    columns |= {"opacity": torch.full((count,), logit)}
    columns |= {f"scale_{i}": scale[:, i].log() for i in range(3)}
    columns |= {f"rot_{i}": rotation[:, i] for i in range(4)}
    write_ply(path, {name: values.numpy().astype(np.float32) for name, values in columns.items()})


def gaussians(surface: Surface) -> tuple[Tensor, Tensor]:
    """Shapes that cover the surface between neighbouring points.

    Returns:
        Standard deviations `[N, 3]`, and quaternions (w, x, y, z) `[N, 4]` that turn their axes into the world's.
    """
    across, down = surface.across.double(), surface.down.double()
    extent = torch.minimum(across.norm(dim=-1), down.norm(dim=-1)).clamp(min=1e-6)
    normal = torch.nn.functional.normalize(torch.linalg.cross(across, down), dim=-1)
    spread = _SIGMA_PX**2 * (across[:, :, None] * across[:, None] + down[:, :, None] * down[:, None])
    flat = (_THICKNESS * _SIGMA_PX * extent)[:, None, None] ** 2
    covariance = spread + flat * (normal[:, :, None] * normal[:, None] + 1e-3 * torch.eye(3, dtype=torch.float64))
    variance, axes = torch.linalg.eigh(covariance)
    # Axes of a rotation, not of a mirror image.
    axes = torch.cat([axes[..., :2], axes[..., 2:] * torch.linalg.det(axes)[:, None, None].sign()], -1)
    return variance.clamp(min=1e-12).sqrt().float(), quaternions(axes).float()


def quaternions(rotation: Tensor) -> Tensor:
    """Rotation matrices `[N, 3, 3]` to unit quaternions (w, x, y, z) `[N, 4]`, by the largest of the four squares."""
    m = rotation
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    # Row i is 4 q_i q: each is a multiple of the quaternion, and the one with the largest q_i is well conditioned.
    w = torch.stack([1 + trace, m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1)
    rows = [w]
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        row = torch.empty_like(w)
        row[:, 0] = m[:, k, j] - m[:, j, k]
        row[:, 1 + i] = 1 + 2 * m[:, i, i] - trace
        row[:, 1 + j] = m[:, j, i] + m[:, i, j]
        row[:, 1 + k] = m[:, k, i] + m[:, i, k]
        rows.append(row)
    candidates = torch.stack(rows, 1)
    squares = torch.stack([candidates[:, i, i] for i in range(4)], -1)
    best = squares.argmax(-1)
    return torch.nn.functional.normalize(candidates[torch.arange(len(m)), best], dim=-1)
