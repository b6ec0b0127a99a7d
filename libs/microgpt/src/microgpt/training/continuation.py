"""Training that starts from another model: its sizes, weights and characters, and new ones."""

import dataclasses
import hashlib
import random
from typing import Any

from msgspec.structs import replace

from microgpt.checks import listed
from microgpt.corpus.dataset import Dataset
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.data import BaseTokenizer, Tokenizer
from microgpt.errors import ConfigError, DataError, TokenError
from microgpt.inference.language_model import LanguageModel
from microgpt.parameters import Parameters
from microgpt.storage.model_directory import Origin
from microgpt.training.options import DEFAULTS, TrainConfig, resolved

__all__ = ["config_of_model", "origin_of", "starting_weights", "with_tokens_of"]

UNKNOWN_SYSTEM = "the conversations hold system turns, which the model to start from does not know"
SIZES = ("n_embd", "n_head", "n_layer", "block_size")
RATES = ("learning_rate", "muon_learning_rate")


def config_of_model(config: TrainConfig, model: LanguageModel) -> TrainConfig:
    """Return the options with the sizes and tokenizer of a model; choose the open options.

    A rate is a fifth of that of a new model: at the whole rate a model forgets more of the old
    data than it learns of a little new data.

    Raises:
        ConfigError: an option is neither the default nor the model's.
    """
    kept: dict[str, Any] = {name: getattr(model.config, name) for name in SIZES}
    if isinstance(model.tokenizer, SubwordTokenizer):
        kept |= {"tokenizer": "bpe", "vocab_size": model.config.vocab_size}
    else:
        kept |= {"tokenizer": "characters", "vocab_size": None}
    for name, value in kept.items():
        if getattr(config, name) not in (value, getattr(DEFAULTS, name)):
            raise ConfigError(
                f"{name} is {getattr(config, name)}, expected {value} as in the model to start "
                "from",
                hint="leave it out; another needs a new model",
            )
    dtype = model.dtype if config.dtype == DEFAULTS.dtype else config.dtype
    sized = replace(config, **kept, dtype=dtype)
    chosen = resolved(sized)
    rates = {name: getattr(chosen, name) for name in RATES if getattr(config, name) is None}
    return replace(sized, **{name: rate / 5 for name, rate in rates.items() if rate})


def with_tokens_of(model: LanguageModel, dataset: Dataset, *, extend_vocab: bool) -> Dataset:
    """Return the dataset, encoded by the model's tokenizer or by an extended one.

    An extended tokenizer has the characters of both, sorted as ever.

    Raises:
        TokenError: the model lacks characters, and they are not to be added.
        DataError: only one of the dataset and the model is for chat.
        ConfigError: characters are to be added to subwords.
    """
    known = model.tokenizer
    if known.is_chat != dataset.tokenizer.is_chat:
        got, expected = ("conversations", "documents")[:: -1 if known.is_chat else 1]
        raise DataError(f"got {got}, expected {expected} as the model to start from has learned")
    if not (isinstance(known, Tokenizer) and isinstance(dataset.tokenizer, Tokenizer)):
        if extend_vocab:
            raise ConfigError(
                "extend_vocab is True, expected False with subwords: they encode any character",
                hint="leave it out; another vocabulary needs a new model",
            )
        if dataset.tokenizer.has_system and not known.has_system:
            raise TokenError(UNKNOWN_SYSTEM)
        return dataset.encoded_with(known)
    lacking = sorted({*dataset.tokenizer.chars} - {*known.chars})
    if dataset.tokenizer.has_system and not (known.has_system or extend_vocab):
        raise TokenError(UNKNOWN_SYSTEM, hint="extend_vocab (--extend-vocab) adds their token")
    if lacking and not extend_vocab:
        noun = "characters" if len(lacking) > 1 else "character"
        raise TokenError(
            f"the documents hold {len(lacking)} {noun} that the model to start from does not know: "
            f"{listed(lacking)}",
            hint="extend_vocab (--extend-vocab) adds them",
        )
    has_system = known.has_system or dataset.tokenizer.has_system
    tokenizer = Tokenizer(tuple(sorted({*known.chars, *lacking})), known.is_chat, has_system)
    return dataset.encoded_with(tokenizer)


def starting_weights(
    model: LanguageModel, tokenizer: BaseTokenizer, dtype: str, seed: int
) -> Parameters:
    """Return a copy of the model's weights, with initial rows for the tokens that it lacks.

    Args:
        model: is not changed.
        tokenizer: has all tokens of the model's.
        dtype: of the copy.
        seed: of the added rows; they take no draw from the run's generator.
    """
    old = model.parameters
    if tokenizer == model.tokenizer:
        return Parameters(old.config, old.flat.astype(dtype))
    config = dataclasses.replace(old.config, vocab_size=tokenizer.vocab_size)
    new = Parameters.init(config, random.Random(seed), dtype)
    rows = tokenizer.encode("".join(model.tokenizer.chars))
    rows += [tokenizer.special_id(name) for name in model.tokenizer.special_tokens]
    rows.append(tokenizer.bos)  # all in the order of the model's own ids
    for name, weights in old.items():
        new[name][rows if name in ("wte", "lm_head") else slice(None)] = weights
    return new


def origin_of(model: LanguageModel) -> Origin:
    """Return what identifies the model that a run starts from."""
    digest = hashlib.sha256(model.parameters.flat.data).hexdigest()
    return Origin(weights_digest=digest, training=model.training)
