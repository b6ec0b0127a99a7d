"""Models small enough to be checked against the plain one, for the tests of the facade."""

from typing import Any

import microgpt
import numpy as np
from microgpt import InferenceGPT, LanguageModel, ModelConfig, Tokenizer
from microgpt.parameters import Parameters

DOCUMENTS = ["anna", "bob", "hannah", "otto", "nathan", "tobbot", "bo", "aha"]
SIZES: dict[str, Any] = {"n_embd": 6, "n_head": 3, "n_layer": 2, "block_size": 8}


def learned() -> LanguageModel:
    """Return a model that has learned a little, so its texts end now and then."""
    return microgpt.fit(DOCUMENTS, steps=60, dtype="float64", engine="vectorized", **SIZES)


def plain(model: LanguageModel) -> InferenceGPT:
    weights = {name: view.tolist() for name, view in model.parameters.items()}
    return InferenceGPT(model.config, weights)


def in_float32(model: LanguageModel) -> LanguageModel:
    parameters = Parameters(model.config, model.parameters.flat.astype(np.float32))
    return LanguageModel(model.tokenizer, parameters)


def untrained(
    block_size: int, scale: float = 0.3, dtype: str = "float64", engine: str = "auto"
) -> LanguageModel:
    """Return a model of the characters a to d, with weights of that standard deviation."""
    config = ModelConfig(vocab_size=5, n_embd=6, n_head=2, n_layer=1, block_size=block_size)
    weights = np.random.default_rng(42).normal(0, scale, config.n_params).astype(dtype)
    return LanguageModel(Tokenizer(tuple("abcd")), Parameters(config, weights), engine=engine)
