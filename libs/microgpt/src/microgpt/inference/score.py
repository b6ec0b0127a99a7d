"""Scores: the loss of documents of any length, in overlapping windows."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from microgpt.checks import check_choice
from microgpt.corpus.batches import Batch
from microgpt.corpus.dataset import Dataset
from microgpt.data import BaseTokenizer
from microgpt.engines.base import Engine
from microgpt.errors import DataError
from microgpt.notebook import table
from microgpt.parameters import IntArray

__all__ = ["ROWS_TOGETHER", "IfUnknown", "Score", "score_dataset", "score_texts"]

IfUnknown: TypeAlias = Literal["error", "skip", "worst"]

ROWS_TOGETHER = 4096  # positions of one call of an engine, documents together


@dataclass(frozen=True)
class Score:
    """How well a model predicts something.

    Args:
        n_tokens: predicted tokens: every character or subword, chat token and closing BOS.
        nats_per_token: mean loss; lower is better.
        n_bytes: UTF-8 bytes of the text.
        n_unknown: characters that the model does not know.
    """

    n_tokens: int
    nats_per_token: float
    n_bytes: int = 0
    n_unknown: int = 0

    @property
    def bits_per_token(self) -> float:
        """The mean loss in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """The summed loss in bits, per byte of text: comparable between tokenizers."""
        return self.bits_per_token * self.n_tokens / self.n_bytes if self.n_bytes else math.nan

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss: the effective number of equally likely next tokens; may be inf."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    def _repr_html_(self) -> str:
        rows = {
            "tokens": f"{self.n_tokens:,}",
            "nats per token": f"{self.nats_per_token:.4g}",
            "bits per token": f"{self.bits_per_token:.4g}",
            "bits per byte": f"{self.bits_per_byte:.4g}",
            "perplexity": f"{self.perplexity:.4g}",
            "unknown characters": f"{self.n_unknown:,}",
        }
        return table("Score", rows)


def _windows(n_targets: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, seen, end): read positions start..end-1, count from `seen` on."""
    seen = 0
    while seen < n_targets:
        start = max(0, min(seen - block_size // 2, n_targets - block_size)) if seen else 0
        end = min(start + block_size, n_targets)
        yield start, seen, end
        seen = end


def _batch(windows: Sequence[tuple[IntArray, int, int, int]]) -> Batch:
    """Lay windows of documents end to end."""
    inputs, targets = [], []
    for ids, start, seen, end in windows:
        inputs.append(ids[start:end])
        targets.append(ids[start + 1 : end + 1].astype(np.int32))
        targets[-1][: seen - start] = -1  # counted in the window before
    lengths = np.array([len(window) for window in inputs])
    return Batch(np.concatenate(inputs), np.concatenate(targets), lengths)


def summed_loss(engine: Engine, documents: Sequence[IntArray]) -> float:
    """Return the summed loss in nats of documents, each at least two ids."""
    windows = [
        (ids, *window)
        for ids in documents
        for window in _windows(len(ids) - 1, engine.config.block_size)
    ]
    n_together = max(1, ROWS_TOGETHER // max(end - start for _, start, _, end in windows))
    total = 0.0
    for first in range(0, len(windows), n_together):
        loss, _ = engine.loss(_batch(windows[first : first + n_together]))
        total += loss
    return total


def score_dataset(engine: Engine, dataset: Dataset) -> Score:
    """Return how well the engine predicts every token of a dataset."""
    tokenizer = dataset.tokenizer
    n_together = max(1, ROWS_TOGETHER // int(dataset.lengths.max()))
    total, counts = 0.0, np.zeros(tokenizer.vocab_size, np.int64)
    for first in range(0, len(dataset), n_together):
        documents = [dataset[i] for i in range(first, min(first + n_together, len(dataset)))]
        total += summed_loss(engine, documents)
        predicted = np.concatenate([ids[1:] for ids in documents])
        counts += np.bincount(predicted, minlength=len(counts))
    n_tokens = int(dataset.lengths.sum())
    used = np.flatnonzero(counts)  # few, of a short document
    n_bytes = sum(len(tokenizer.token_bytes(int(i))) * int(counts[i]) for i in used)
    return Score(n_tokens, total / n_tokens, n_bytes)


def score_texts(
    engine: Engine, tokenizer: BaseTokenizer, texts: Iterable[str], unknown: IfUnknown = "error"
) -> Score:
    """Return how well the engine predicts texts and their ends.

    Raises:
        TokenError: a text holds an unknown character and `unknown` is "error".
        DataError: there is no text.
    """
    check_choice("unknown", unknown, get_args(IfUnknown))
    together: list[IntArray] = []
    total, n_rows, n_tokens, n_bytes, n_unknown = 0.0, 0, 0, 0, 0
    for text in texts:
        ids = tokenizer.encode(text, unknown="error" if unknown == "error" else "skip")
        known = text if unknown == "error" else tokenizer.decode(ids)
        n_unknown += len(text) - len(known)
        n_bytes += len((text if unknown == "worst" else known).encode("utf-8", "surrogatepass"))
        n_tokens += len(ids) + 1
        together.append(np.array([tokenizer.bos, *ids, tokenizer.bos]))
        n_rows += len(ids) + 1
        if n_rows >= ROWS_TOGETHER:
            total += summed_loss(engine, together)
            together, n_rows = [], 0
    if together:
        total += summed_loss(engine, together)
    if not n_tokens:
        raise DataError("dataset is empty")
    if unknown == "worst":
        total += n_unknown * 2 * math.log(tokenizer.vocab_size)
        n_tokens += n_unknown
    return Score(n_tokens, total / n_tokens, n_bytes, n_unknown)
