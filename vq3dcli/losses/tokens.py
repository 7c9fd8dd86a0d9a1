"""How well codes were predicted: cross-entropy, in nats to train by and in bits to tell.

Legend: B batch, L codes of an image, K codebook size.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

BITS_PER_NAT = 1.0 / math.log(2.0)


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy float32 `[B, L]` of codes int64 `[B, L]`; a uniform guess costs log K.

    Of logits `[B, L, K]` of any float type, in float32: in bfloat16 a logarithm has three digits.
    """
    flat = functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return flat.reshape(tokens.shape)
