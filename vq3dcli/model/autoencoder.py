"""Stage 1: an image to codes to tri-planes.

```
image -> ViT encoder -> project -> quantizer -> ViT decoder -> plane head -> tri-planes -> field
  |        ^                          |             `-> 2D head (training only)
  depth network                     codes
```

The frozen depth network, where there is one, adds what it sees to the image as a fourth channel: an encoder that is
trained on some ten thousand photos learns little of their geometry by itself (docs/notes/weights.md).

Legend: B batch, L tokens, D width, C plane channels, P plane side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vq3dcli.model.depth_network import DepthNetwork
from vq3dcli.model.field import FieldModel
from vq3dcli.model.planes import PlaneHead
from vq3dcli.model.quantizer import Quantized, Quantizer
from vq3dcli.model.vit import Transformer, patchify, unpatchify
from vq3dcli.rendering.render import Field, TrainedField


class Encoded(NamedTuple):
    """What one pass through the autoencoder gives."""

    planes: Tensor  # `[B, 3, P, P, C]`
    auxiliary: Tensor | None  # image of the 2D head `[B, 3, H, W]` in [-1, 1] or beyond, or None
    quantized: Quantized  # the quantizer's result


class Autoencoder(FieldModel):
    """The ViT-VQ autoencoder whose decoder emits a NeRF. Parts are built by `model.build`.

    Args:
        patch: Pixels a token covers along a side.
        encoder: Transformer over the image's tokens, and `decoder`, over the codes.
        field: Reads the planes; its parts become the model's own.
        auxiliary_head: Build the 2D head that speeds up early training.
        depth_network: What the encoder sees beside the image, frozen; None for the image alone.
    """

    def __init__(
        self,
        *,
        patch: int,
        encoder: Transformer,
        decoder: Transformer,
        quantizer: Quantizer,
        plane_head: PlaneHead,
        field: FieldModel,
        auxiliary_head: bool,
        depth_network: DepthNetwork | None = None,
    ) -> None:
        nn.Module.__init__(self)  # the field's parts follow in their place: sums over all tensors keep their order
        code_dim = quantizer.codebook.shape[1]
        encoder_width, decoder_width = encoder.positions.shape[2], decoder.positions.shape[2]
        self._checkpoint_field = False
        self.patch, self.space, self.frustum = patch, field.space, field.frustum
        channels = 3 if depth_network is None else 4
        self.embed_patches = nn.Linear(channels * patch * patch, encoder_width)
        self.encoder = encoder
        self.to_code = nn.Linear(encoder_width, code_dim)
        self.quantizer = quantizer
        self.from_code = nn.Linear(code_dim, decoder_width)
        self.decoder = decoder
        self.plane_head = plane_head
        self.field_mlp = field.field_mlp
        self.auxiliary_head = nn.Linear(decoder_width, 3 * patch * patch) if auxiliary_head else None
        self.depth_network = depth_network
        if depth_network is not None:
            depth_network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Autoencoder:
        """As of any module, but the depth network's normalisations keep their statistics."""
        super().train(mode)
        if self.depth_network is not None:
            self.depth_network.eval()
        return self

    def forward(self, images: Tensor) -> Encoded:
        """Images `[B, 3, H, W]` in [-1, 1] to planes, with gradients through the quantizer."""
        quantized = self.quantizer(self.encode(images))
        tokens = self.decoder(self.from_code(quantized.embedding))
        auxiliary = None
        if self.auxiliary_head is not None:
            auxiliary = unpatchify(self.auxiliary_head(tokens), self.patch, 3)
        return Encoded(self.plane_head(tokens), auxiliary, quantized)

    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] to encoder outputs before normalisation, `[B, L, code_dim]`."""
        if self.depth_network is not None:
            disparity = self.depth_network.standardised((images + 1.0) * 127.5)
            images = torch.cat([images, disparity], 1)
        return self.to_code(self.encoder(self.embed_patches(patchify(images, self.patch))))

    def codes(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] to code indices `[B, L]`."""
        return self.quantizer.nearest(self.quantizer.project(self.encode(images)))

    def planes_from_codes(self, codes: Tensor) -> Tensor:
        """Code indices `[B, L]` to planes `[B, 3, P, P, C]`."""
        return self.planes_from_embeddings(self.quantizer.embed(codes))

    def planes_from_embeddings(self, embeddings: Tensor) -> Tensor:
        """Points on the sphere of codes `[B, L, code_dim]`, codes or between them, to planes `[B, 3, P, P, C]`."""
        return self.plane_head(self.decoder(self.from_code(embeddings)))

    def checkpoint_activations(self) -> None:
        """From now on compute activations anew in the backward pass instead of keeping them."""
        self.encoder.checkpoint_activations = self.decoder.checkpoint_activations = True
        self._checkpoint_field = True

    def compile_parts(self, backend: str = "inductor") -> None:
        """From now on run the transformers and the field through `torch.compile`; names of tensors stay."""
        for part in (self.encoder, self.decoder):
            part.compile(backend=backend)
        self.evaluate = torch.compile(self.evaluate, backend=backend)  # type: ignore[method-assign]

    def field(self, planes: Tensor) -> Field:
        """The differentiable field over planes `[B, 3, P, P, C]`."""
        field = super().field(planes)
        if isinstance(field, TrainedField) or not (self._checkpoint_field and torch.is_grad_enabled()):
            return field  # the one keeps no activations
        return lambda points: checkpoint(field, points, use_reentrant=False)
