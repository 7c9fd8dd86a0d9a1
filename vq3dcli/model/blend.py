"""Between scenes: in the continuous space of codes, or in the planes.

A mixture of codes goes through the decoder, which makes a scene of its own of it; a mixture of planes shows one scene
through the other.

Legend: B scenes, L tokens, D code_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.scene import Scene, scene_from_codes

# Below this angle in radians the arc is a straight line to the last bit of a float32.
_SMALL_RAD = 1e-3


def between_on_sphere(first: Tensor, second: Tensor, fraction: float) -> Tensor:
    """The point at `fraction` of the arc between unit vectors `[..., D]` (slerp, Shoemake, SIGGRAPH 1985)."""
    cosine = (first * second).sum(-1, keepdim=True).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)
    sine = torch.sin(angle).clamp(min=1e-12)
    arc = (torch.sin((1.0 - fraction) * angle) * first + torch.sin(fraction * angle) * second) / sine
    straight = torch.lerp(first, second, fraction)
    return functional.normalize(torch.where(angle < _SMALL_RAD, straight, arc), dim=-1)


@torch.no_grad()
def mix_codes(model: Autoencoder, first: Tensor, second: Tensor, fraction: float, *, requantize: bool = False) -> Scene:
    """A scene between those of codes `[B, L]`, in the space that the decoder reads.

    A `fraction` of exactly 0 or 1 gives exactly that scene. `requantize` moves each token to its nearest code, so that
    the mixture is a scene that codes can describe; else its `codes` have no column.
    """
    if fraction in (0.0, 1.0):
        return scene_from_codes(model, first if fraction == 0.0 else second)
    quantizer = model.quantizer
    embeddings = between_on_sphere(quantizer.embed(first), quantizer.embed(second), fraction)
    if requantize:
        return scene_from_codes(model, quantizer.nearest(embeddings))
    return Scene(model, model.planes_from_embeddings(embeddings), first[:, :0])


@torch.no_grad()
def mix_planes(first: Scene, second: Scene, fraction: float) -> Scene:
    """A scene between two of the same field, whose planes are a weighted mean; 0 and 1 give exactly those scenes."""
    if fraction in (0.0, 1.0):
        return first if fraction == 0.0 else second
    return Scene(first.model, torch.lerp(first.planes, second.planes, fraction), first.codes[:, :0])
