"""Sampling: from logits to the next token, and from one token to a whole document."""

import math
import random

from microgpt.model import InferenceGPT

__all__ = ["TEMPERATURE", "generate", "sample_token"]

TEMPERATURE = 0.5


def sample_token(logits: list[float], temperature: float, rng: random.Random) -> int:
    """Draw a token from softmax(logits / temperature).

    Args:
        logits: shape (V,).
        temperature: 0 always takes the most likely token, without a draw.
        rng: source of the draw.
    """
    largest = max(logits)
    if temperature == 0.0:
        return logits.index(largest)
    weights = [math.exp((z - largest) / temperature) for z in logits]  # (V,)
    return rng.choices(range(len(logits)), weights)[0]


def generate(
    model: InferenceGPT, bos: int, rng: random.Random, temperature: float = TEMPERATURE
) -> list[int]:
    """Return the token ids of one document: from BOS until the next BOS or block_size tokens.

    Args:
        model: over plain floats.
        bos: token id that begins the document and ends it.
        rng: source of the draws.
        temperature: see `sample_token`.
    """
    document: list[int] = []
    cache, token_id = model.new_cache(), bos
    while len(document) < model.config.block_size:
        token_id = sample_token(model.decode(token_id, cache), temperature, rng)
        if token_id == bos:
            break
        document.append(token_id)
    return document
