"""How well codes were predicted: cross-entropy, in nats to train by and in bits to tell.

Legend: B batch, L codes of an image, K codebook size.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

BITS_PER_NAT = 1.0 / math.log(2.0)


def token_nats(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of each code; a uniform guess costs log K.

    Args:
        logits: `[B, L, K]`, any float type; computed in float32, for in bfloat16 a logarithm has three digits.
        tokens: int64 `[B, L]`.

    Returns:
        float32 `[B, L]`.
    """
    flat = functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return flat.reshape(tokens.shape)
