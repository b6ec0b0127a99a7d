"""Scores: the loss of documents of any length, in overlapping windows."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from microgpt.checks import check_choice, checked_texts
from microgpt.corpus.batches import Batch, Batches
from microgpt.corpus.dataset import Dataset
from microgpt.data import BaseTokenizer
from microgpt.engines.base import Engine
from microgpt.errors import DataError
from microgpt.notebook import table
from microgpt.parameters import IntArray

__all__ = ["ROWS_TOGETHER", "IfUnknown", "Score", "score_all", "score_dataset", "score_each"]

IfUnknown: TypeAlias = Literal["error", "skip", "worst"]

ROWS_TOGETHER = 4096  # positions of one call of an engine, documents together
MAX_SHORT = ROWS_TOGETHER // 2  # tokens; the windows of such a document fit into one call


class _Document(NamedTuple):
    inputs: IntArray  # (T,)
    targets: IntArray  # (T,), -1 where a token does not count
    n_bytes: int = 0
    n_unknown: int = 0


_Window: TypeAlias = tuple[_Document, int, int, int]  # see `_windows`


@dataclass(frozen=True)
class Score:
    """How well a model predicts something.

    Args:
        n_tokens: predicted tokens that count: every character or subword, chat token and closing
            BOS, unless the dataset leaves some out.
        nats_per_token: mean loss; lower is better.
        n_bytes: UTF-8 bytes of the text that counts.
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


def _batch(windows: Sequence[_Window]) -> Batch:
    """Lay windows of documents end to end."""
    inputs, targets = [], []
    for document, start, seen, end in windows:
        inputs.append(document.inputs[start:end])
        targets.append(document.targets[start:end].astype(np.int32))
        targets[-1][: seen - start] = -1  # counted in the window before
    lengths = np.array([len(window) for window in inputs])
    return Batch(np.concatenate(inputs), np.concatenate(targets), lengths)


def _windows_of(document: _Document, block_size: int) -> list[_Window]:
    return [(document, *window) for window in _windows(len(document.inputs), block_size)]


def summed_loss(engine: Engine, documents: Sequence[_Document]) -> float:
    """Return the summed loss in nats of documents, each of at least one position."""
    block_size = engine.config.block_size
    windows = [window for document in documents for window in _windows_of(document, block_size)]
    n_together = max(1, ROWS_TOGETHER // max(end - start for _, start, _, end in windows))
    total = 0.0
    for first in range(0, len(windows), n_together):
        loss, _ = engine.loss(_batch(windows[first : first + n_together]))
        total += loss
    return total


def _loss_of_each(engine: Engine, documents: Sequence[_Document]) -> list[float]:
    """Return the summed loss of each document, to the bit as it is alone."""
    short = [each for each in documents if len(each.inputs) < MAX_SHORT]
    losses: Iterator[float] = iter([])
    if short:
        windows = [_windows_of(each, engine.config.block_size) for each in short]
        together = _batch([window for each in windows for window in each])
        losses = iter(engine.losses(Batches(together, list(map(len, windows)))))
    return [
        next(losses) if len(each.inputs) < MAX_SHORT else summed_loss(engine, [each])
        for each in documents
    ]


def score_dataset(engine: Engine, dataset: Dataset) -> Score:
    """Return how well the engine predicts the tokens of a dataset that count."""
    tokenizer = dataset.tokenizer
    n_together = max(1, ROWS_TOGETHER // int(dataset.lengths.max()))
    total, counts = 0.0, np.zeros(tokenizer.vocab_size, np.int64)
    for first in range(0, len(dataset), n_together):
        part = range(first, min(first + n_together, len(dataset)))
        documents = dataset.batches(part, 1)
        total += summed_loss(engine, [_Document(*each[:2]) for each in documents])
        targets = documents.together.targets
        counts += np.bincount(targets[targets >= 0], minlength=len(counts))
    n_tokens = int(counts.sum())
    if not n_tokens:
        raise DataError("no token of the dataset counts")
    used = np.flatnonzero(counts)  # few, of a short document
    n_bytes = sum(len(tokenizer.token_bytes(int(i))) * int(counts[i]) for i in used)
    return Score(n_tokens, total / n_tokens, n_bytes)


def _encoded(tokenizer: BaseTokenizer, text: str, unknown: IfUnknown) -> _Document:
    ids = tokenizer.encode(text, unknown="error" if unknown == "error" else "skip")
    known = text if unknown == "error" else tokenizer.decode(ids)
    n_bytes = len((text if unknown == "worst" else known).encode("utf-8", "surrogatepass"))
    document = np.array([tokenizer.bos, *ids, tokenizer.bos])
    return _Document(document[:-1], document[1:], n_bytes, len(text) - len(known))


def _parts(
    tokenizer: BaseTokenizer, texts: Iterable[str], unknown: IfUnknown
) -> Iterator[list[_Document]]:
    """Yield documents, some ROWS_TOGETHER tokens of them at a time."""
    check_choice("unknown", unknown, get_args(IfUnknown))
    part, n_rows = list[_Document](), 0
    for text in texts:
        part.append(_encoded(tokenizer, text, unknown))
        n_rows += len(part[-1].inputs)
        if n_rows >= ROWS_TOGETHER:
            yield part
            part, n_rows = [], 0
    if part:
        yield part


def score_texts(
    engine: Engine, tokenizer: BaseTokenizer, texts: Iterable[str], unknown: IfUnknown = "error"
) -> Score:
    """Return how well the engine predicts texts and their ends.

    Raises:
        TokenError: a text holds an unknown character and `unknown` is "error".
        DataError: there is no text.
    """
    total, n_tokens, n_bytes, n_unknown = 0.0, 0, 0, 0
    for part in _parts(tokenizer, texts, unknown):
        total += summed_loss(engine, part)
        n_tokens += sum(len(document.inputs) for document in part)
        n_bytes += sum(document.n_bytes for document in part)
        n_unknown += sum(document.n_unknown for document in part)
    if not n_tokens:
        raise DataError("dataset is empty")
    return _score(total, n_tokens, n_bytes, n_unknown, _per_unknown(tokenizer, unknown))


def score_all(
    engine: Engine,
    tokenizer: BaseTokenizer,
    dataset: Dataset | Iterable[str],
    unknown: IfUnknown = "error",
) -> Score:
    """Return how well the engine predicts a dataset or texts; see `LanguageModel.measure`."""
    if not isinstance(dataset, Dataset):
        return score_texts(engine, tokenizer, checked_texts(dataset), unknown)
    check_choice("unknown of a dataset", unknown, ["error"])
    return score_dataset(engine, dataset.encoded_with(tokenizer))


def score_each(
    engine: Engine, tokenizer: BaseTokenizer, texts: Iterable[str], unknown: IfUnknown = "error"
) -> Iterator[Score]:
    """Yield the score of each text alone; texts are read ahead, some thousand tokens of them.

    Raises:
        TokenError: see `score_texts`.
    """
    per_unknown = _per_unknown(tokenizer, unknown)
    for part in _parts(tokenizer, texts, unknown):
        losses = _loss_of_each(engine, part)
        for (inputs, _, n_bytes, n_unknown), loss in zip(part, losses, strict=True):
            yield _score(loss, len(inputs), n_bytes, n_unknown, per_unknown)


def _per_unknown(tokenizer: BaseTokenizer, unknown: IfUnknown) -> float:
    """Return what an unknown character costs in nats, 0 where it is left out."""
    return 2 * math.log(tokenizer.vocab_size) if unknown == "worst" else 0.0


def _score(total: float, n_tokens: int, n_bytes: int, n_unknown: int, per_unknown: float) -> Score:
    if per_unknown:
        total += n_unknown * per_unknown
        n_tokens += n_unknown
    return Score(n_tokens, total / n_tokens, n_bytes, n_unknown)
