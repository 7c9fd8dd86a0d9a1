"""Decoder tokens to tri-planes.

Legend: B batch, L tokens, D width, C plane channels, P plane side in texels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from vq3dcli.model.vit import unpatchify

PlaneHeadKind = Literal["linear", "residual", "convolution"]


class PlaneHead(nn.Module):
    """Each token becomes a patch of each of the three planes.

    `linear` unpatchifies and shows the token grid; `residual` adds a zero-initialised 3x3 convolution, GELU, 3x3 a
    plane, which may soften the seams; `convolution` unpatchifies to twice the channels and convolves them down.

    Args:
        width: Token channels D.
        patch: Texels a token covers along a side.
        channels: Plane channels C.
        kind: Which head.
    """

    def __init__(self, width: int, patch: int, channels: int, kind: PlaneHeadKind) -> None:
        super().__init__()
        self.patch, self.channels, self.kind = patch, channels, kind
        inner = 3 * channels * (2 if kind == "convolution" else 1)
        self.inner = inner
        self.unpatchify = nn.Linear(width, inner * patch * patch)
        nn.init.trunc_normal_(self.unpatchify.weight, std=0.02)
        nn.init.zeros_(self.unpatchify.bias)
        self.convolutions: nn.Sequential | None = None
        if kind != "linear":
            self.convolutions = nn.Sequential(
                nn.Conv2d(inner, 6 * channels, 3, padding=1, padding_mode="replicate", groups=3),
                nn.GELU(approximate="tanh"),
                nn.Conv2d(6 * channels, 3 * channels, 3, padding=1, padding_mode="replicate", groups=3),
            )
        if kind == "residual" and self.convolutions is not None:
            last = self.convolutions[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, L, D]` to channels-last planes `[B, 3, P, P, C]`."""
        images = unpatchify(self.unpatchify(tokens), self.patch, self.inner)
        if self.convolutions is not None:
            convolved = self.convolutions(images)
            images = images + convolved if self.kind == "residual" else convolved
        batch, _, side, _ = images.shape
        return images.reshape(batch, 3, self.channels, side, side).permute(0, 1, 3, 4, 2).contiguous()
