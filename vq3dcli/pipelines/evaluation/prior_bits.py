"""Held-out bits per code of a finished prior, on the token store that it was trained with."""

from __future__ import annotations

from typing import Any

import torch

from vq3dcli.data.token_store import TokenLoader, TokenStore
from vq3dcli.errors import DataError, UsageError
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.held_out import by_class, held_out_bits, unigram_bits
from vq3dcli.weights_file import LoadedPrior

_BATCH = 16


def prior_bits(prior: LoadedPrior, store: TokenStore) -> dict[str, Any]:
    """Bits per code of the images that the prior's training held out, beside the class-conditional unigram entropy.

    Which images those are depends on their numbers and on the recipe's `training.held_out` alone.

    Args:
        prior: The prior.
        store: The token store of its training.

    Returns:
        JSON values: `bits`, `unigram_bits`, `share` (the first over the second), `images`, and the same by class.

    Raises:
        DataError: The store's codes or classes are not those of the prior.
        UsageError: The training held nothing out.
    """
    facts = prior.tokens
    store.check_stage1(facts.stage1_sha256)
    if (store.codebook_size, store.length, tuple(store.class_names)) != (
        facts.codebook_size,
        facts.length,
        facts.class_names,
    ):
        raise DataError(
            f"tokens with other classes or another length than the prior's ({store.path})",
            remedy="the store that the prior was trained with",
        )
    held_out = prior.recipe.training.held_out
    loader = TokenLoader(store, batch_size=_BATCH, seed=0, held_out=held_out)
    if not len(loader.held_out_images):
        raise UsageError(
            f"the prior's training held none of these images out ({store.path})", remedy="it without --tokens"
        )
    found = held_out_bits(
        prior.model,
        loader,
        batch_size=_BATCH,
        autocast_dtype=torch.float32,
        device=prior.model.positions.device,
        ranks=Ranks(),
    )
    unigram = unigram_bits(loader, Ranks(), torch.device("cpu"))
    return {
        **by_class(found, unigram, facts.class_names),
        "held_out": held_out,
        "tokens_sha256": store.manifest.tokens_sha256,
    }
