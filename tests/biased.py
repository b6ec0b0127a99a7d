"""Chat models whose replies are known without training."""

import numpy as np
from microgpt import LanguageModel, Tokenizer
from microgpt.model import ModelConfig
from microgpt.parameters import Parameters

__all__ = ["biased"]


def biased(chars: str, logits: dict[str, float], block_size: int = 32) -> LanguageModel:
    """Return a model that draws its next token by the same logits wherever it stands.

    All embeddings are ones and all layers zeros, so what the head sees is the same everywhere.

    Args:
        chars: its characters.
        logits: by character, or name of a chat token, or "BOS"; 0 for all others.
        block_size: the most tokens that it can attend to.
    """
    tokenizer = Tokenizer(tuple(sorted(chars)), is_chat=True)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, block_size=block_size)
    parameters = Parameters(config, np.zeros(config.n_params, np.float32))
    parameters["wte"][:] = parameters["wpe"][:] = 1.0
    names = [*tokenizer.chars, *tokenizer.special_tokens, "BOS"]
    for name, logit in logits.items():
        parameters["lm_head"][names.index(name)] = logit / config.n_embd
    return LanguageModel(tokenizer, parameters)
