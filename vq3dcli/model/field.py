"""The radiance field: summed plane features through a small MLP to density and colour.

Density belongs to the world, not to a camera or a sample count:
    sigma(x) = 24 softplus(6 raw + 8 (0.45 - s_c(x)) - 2.5) / (z_c(x)^2 (1/near - 1/far)),
with z_c the clamped canonical z_depth of x and s_c its normalised disparity. Since dz = z^2 (1/near - 1/far) ds, a
step ds has the optical thickness 24 softplus(...) ds wherever it lies: the network faces the same scale near and far.
The term 8 (0.45 - s_c) says that space is empty near the camera and filled far away. Without it, the depth loss first
thins the density everywhere, since half of the range is in front of the surface, and it may never come back. The
factor 6 lets a surface sharpen within a short run: it grows with the step of the optimizer, which is the same for all
weights (docs/notes/measurements.md compares 1, 4 and 12).

Legend: B scenes, N points, C plane channels.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.model.vit import is_on_cpu
from vq3dcli.rendering.cameras import s_from_z_depth
from vq3dcli.rendering.lookup import gather_planes, sample_planes
from vq3dcli.rendering.render import Density, Field, note_slower
from vq3dcli.rendering.space import Frustum, Space

RAW_GAIN = 6.0
# An untrained ray (raw = 0) ends around s = 0.25, near the mean of toy scenes, with weight on either side.
_DENSITY = Density(scale=24.0, gain=RAW_GAIN, slope=8.0, middle=0.45, shift=2.5)
# Points a matmul: padding the last tile to the same shape makes a point's bits independent of its chunk.
_TILE = 4096


class FieldMLP(nn.Module):
    """Features to raw density and colour: `layers` ReLU layers of width `hidden`, colour by sigmoid."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        widths = [channels] + [hidden] * layers
        self.hidden = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
        self.out = nn.Linear(widths[-1], 4)
        for module in self.hidden:
            assert isinstance(module, nn.Linear)
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., C]` to raw density `[...]` and rgb `[..., 3]` in [0, 1]."""
        for layer in self.hidden:
            features = functional.relu(layer(features))
        # float32 also under autocast: the gain would make steps of 0.2 of bfloat16's in the exponent of density.
        with torch.autocast(features.device.type, enabled=False):
            output = self.out(features.float())
        return output[..., 0], torch.sigmoid(output[..., 1:])


class FieldModel(nn.Module):
    """The part of a model that reads planes: all that a saved scene needs to be rendered.

    `field_mlp` makes density and colour of plane features, `space` plane coordinates of world points; `frustum` is what
    the canonical camera sees.
    """

    def __init__(self, field_mlp: FieldMLP, space: Space, frustum: Frustum) -> None:
        super().__init__()
        self.field_mlp = field_mlp
        self.space, self.frustum = space, frustum

    def field(self, planes: Tensor) -> Field:
        """The differentiable field over planes `[B, 3, P, P, C]`; on a CPU the one of `rendering.fused_training`."""
        exact = functools.partial(self.evaluate, planes)
        weight = self.field_mlp.out.weight
        if not is_on_cpu(planes) or not planes.dtype == weight.dtype == torch.float32 or planes.shape[2] == 1:
            return exact
        from vq3dcli.rendering.fused import flat_layers, scene_numbers, whole_lanes  # numba takes half a second
        from vq3dcli.rendering.fused_training import FusedTrainedField

        padded = whole_lanes(planes.permute(0, 2, 3, 1, 4))
        layers, out, inputs = flat_layers(self._layers, padded.shape[-1])
        numbers = scene_numbers(self.space, _DENSITY, self.frustum)
        return FusedTrainedField(padded, layers, out, inputs, numbers, exact)

    def evaluate(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """What the field over planes `[B, 3, P, P, C]` says at points, see `Field`."""
        z_depth = self.frustum.z_depth(points)
        raw, rgb = self.field_mlp(sample_planes(planes, self.space(points)))
        return self.density(thickness(raw, self._prior(z_depth)), z_depth), rgb

    @property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return [(layer.weight, layer.bias) for layer in [*self.field_mlp.hidden, self.field_mlp.out]]

    def frozen_field(self, planes: Tensor) -> Field:
        """The field for rendering only: of one scene the one of `rendering.fused` or `fused_cuda`."""
        exact = self.exact_field(planes)
        if planes.device.type not in ("cpu", "cuda") or len(planes) != 1:
            return exact
        from vq3dcli.rendering.fused import FusedField, pack

        scene = pack(planes[0], self._layers, self.space, _DENSITY, self.frustum)
        if planes.device.type == "cpu":
            return FusedField(scene, exact)
        try:
            from vq3dcli.rendering.fused_cuda import fused_or_exact
        except ImportError as error:
            note_slower(str(error))
            return exact
        return fused_or_exact(scene, exact, planes.device)

    def exact_field(self, planes: Tensor) -> Field:
        """The same by tensor operations: on a CPU a point's bits do not depend on the other points."""
        sample = gather_planes if planes.device.type == "cpu" else sample_planes

        @torch.no_grad()
        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            z_depth = self.frustum.z_depth(points)
            features = sample(planes, self.space(points))
            prior = self._prior(z_depth)
            thickness_s, rgb = _tiled(self.field_mlp, features.reshape(-1, features.shape[-1]), prior.reshape(-1))
            shape = points.shape[:-1]
            return self.density(thickness_s.reshape(shape), z_depth), rgb.reshape(*shape, 3)

        return field

    def density(self, thickness_s: Tensor, z_depth: Tensor) -> Tensor:
        """Thickness a unit of s `[...]` at canonical z_depths `[...]` to density a metre `[...]`."""
        return thickness_s / (z_depth.square() * self.frustum.depth_range.extent)

    def _prior(self, z_depth: Tensor) -> Tensor:
        """8 (0.45 - s_c): `[...]`, from -4.4 at near to 3.6 at far."""
        return _DENSITY.slope * (_DENSITY.middle - s_from_z_depth(z_depth, self.frustum.depth_range))


def thickness(raw: Tensor, prior: Tensor) -> Tensor:
    """24 softplus(6 raw + prior - 2.5): optical thickness a unit of s, `[...]`."""
    return _DENSITY.scale * functional.softplus(RAW_GAIN * raw.float() + prior - _DENSITY.shift)


def _tiled(mlp: FieldMLP, features: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Features `[N, C]` and priors `[N]` to thickness `[N]` and rgb `[N, 3]`; on a CPU in tiles of one shape.

    Matmuls, and softplus and sigmoid in the last few elements of a tensor, round differently with the shape.
    """
    if features.device.type != "cpu":
        raw, rgb = mlp(features)
        return thickness(raw, prior), rgb
    count = features.shape[0]
    excess = -count % _TILE
    tiles = functional.pad(features, (0, 0, 0, excess)).split(_TILE)
    parts = []
    for tile, tile_prior in zip(tiles, functional.pad(prior, (0, excess)).split(_TILE), strict=True):
        raw, rgb = mlp(tile)
        parts.append((thickness(raw, tile_prior), rgb))
    return torch.cat([part[0] for part in parts])[:count], torch.cat([part[1] for part in parts])[:count]
