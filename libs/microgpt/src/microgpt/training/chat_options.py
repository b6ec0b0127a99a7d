"""Options for conversations, chosen from the data where they are open."""

import math
from typing import Any

from microgpt.checks import check_type, is_integer
from microgpt.corpus.dataset import Dataset
from microgpt.corpus.subwords import VOCAB_SIZE, SubwordTokenizer
from microgpt.errors import DataError
from microgpt.inference.language_model import LanguageModel
from microgpt.training.options import TrainConfig

__all__ = ["chat_setup"]

SIZES = {"n_embd", "n_head", "n_layer", "block_size"}
MODELS = ((8_000, 64, 2), (100_000, 96, 3), (math.inf, 128, 4))  # below n characters: width, layers
MANY = 100_000  # characters from which subwords are learned in a fraction of the time
CHARACTERS_PER_SUBWORD = 2.5
COVERED = 95  # percent of the conversations that the block holds
SLACK = 1.25  # times that: a block that holds all of them may be as large
BLOCKS = range(32, 513, 16)
WEIGHT_DECAY = 0.2  # an answer then depends less on the case and marks of its question
BATCH_SIZES = (16, 32)  # below MANY, and from there
SEEN = 80  # times that each conversation is learned from, unless that takes long
MOST_TOKENS = 6_000_000  # five minutes on two cores
LEAST_STEPS = 300


def chat_setup(
    dataset: Dataset, *, init_from: LanguageModel | None = None, **given: Any
) -> tuple[TrainConfig, Dataset]:
    """Return options for conversations, and these encoded as they are to be trained on.

    Args:
        dataset: conversations.
        init_from: the model to start from, whose sizes and tokenizer are kept; None for a new one.
        **given: fields of `TrainConfig` that are not to be chosen. With sizes, tokens stay
            characters, unless `tokenizer` is given too.

    Raises:
        DataError: the dataset holds plain documents.
        ConfigError: an option is out of its domain.
    """
    check_type("dataset", dataset, Dataset)
    if not dataset.tokenizer.is_chat:
        raise DataError("got plain documents, expected conversations")
    is_large = _n_characters(dataset) >= MANY
    options: dict[str, Any] = {
        "optimizer": "muon", "loss_on": "assistant", "weight_decay": WEIGHT_DECAY,
        "batch_size": BATCH_SIZES[is_large],
    }  # fmt: skip
    if init_from is None:
        if is_large and not SIZES & given.keys():
            options["tokenizer"] = "bpe"
        if (options | given).get("tokenizer") == "bpe" and dataset.tokenizer.chars:
            dataset = dataset.with_subwords(given.get("vocab_size") or VOCAB_SIZE)
        options |= _sizes(dataset)
    config = TrainConfig(**options | given | _pace(dataset, options | given))
    n_trained = int(len(dataset) * (1 - config.val_fraction))
    if "batch_size" not in given and n_trained < 2 * config.batch_size:  # some may be left out
        options["batch_size"] = max(1, n_trained // 2)
        config = TrainConfig(**options | given | _pace(dataset, options | given))
    return config, dataset


def _n_characters(dataset: Dataset) -> float:
    """Return the number of characters of conversations, about."""
    is_of_subwords = isinstance(dataset.tokenizer, SubwordTokenizer)
    return float(dataset.lengths.sum()) * (CHARACTERS_PER_SUBWORD if is_of_subwords else 1)


def _sizes(dataset: Dataset) -> dict[str, int]:
    """Return a width and layers that can hold the conversations, and a block that covers them."""
    n_characters = _n_characters(dataset)
    n_embd, n_layer = next(sizes for most, *sizes in MODELS if n_characters < most)
    covered, longest = dataset.length_percentiles(COVERED, 100)
    covered = longest if longest <= SLACK * covered else covered
    block_size = next((size for size in BLOCKS if size >= covered), BLOCKS[-1])
    return {"n_embd": n_embd, "n_layer": n_layer, "block_size": block_size}


def _pace(dataset: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """Return steps and warm-up, unless they are among the options, which may be out of domain."""
    most = min(SEEN * len(dataset), MOST_TOKENS * len(dataset) // int(dataset.lengths.sum()))
    n_together = options["batch_size"]
    is_size = is_integer(n_together) and n_together > 0
    steps = options.get("steps", max(LEAST_STEPS, most // n_together) if is_size else LEAST_STEPS)
    pace = {"steps": steps, "warmup_steps": steps // 20 if is_integer(steps) else 0}
    return {name: value for name, value in pace.items() if name not in options}
