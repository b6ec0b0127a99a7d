"""What was read of earlier texts, for prompts that begin as they did."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from microgpt.checks import checked_integer
from microgpt.engines.base import Engine
from microgpt.parameters import IntArray

__all__ = ["PrefixCache"]

MAX_BYTES = 64 << 20


class PrefixCache:
    """Caches of texts, so that what prompts have in common is read once.

    For one model, whose weights do not change, and one thread at a time. Results are the same with
    and without it, bit for bit.

    Args:
        max_bytes: of the caches together; those not used for the longest time are dropped.

    Attributes:
        n_hits: prompts whose beginning was found.
        n_reused: their tokens that were not read again.

    Raises:
        ConfigError: `max_bytes` is below 0.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = checked_integer("max_bytes", max_bytes, 0)
        self._texts: list[tuple[IntArray, Any]] = []  # tokens and their cache; the latest last
        self.n_hits = self.n_reused = 0

    def cache_for(self, engine: Engine, token_ids: Sequence[int]) -> Any:
        """Return a new cache that holds the longest known beginning of a prompt.

        It lacks the last token at least, which gives the logits of the next.
        """
        ids = np.asarray(token_ids)
        lengths = [_n_common(ids, known) for known, _ in self._texts]
        length = min(max(lengths, default=0), len(ids) - 1)
        if length < 1:
            return engine.new_cache()
        at = lengths.index(max(lengths))
        self._texts.append(self._texts.pop(at))
        self.n_hits += 1
        self.n_reused += length
        return engine.fork(self._texts[-1][1], length)

    def keep(self, token_ids: Sequence[int], cache: Any) -> None:
        """Keep the cache of a text, which nothing may append to any more.

        Args:
            token_ids: of the prompt and the text; the cache holds the first of them.
            cache: of an engine.
        """
        ids = np.asarray(token_ids)[: cache.length]
        self._texts = [text for text in self._texts if _n_common(ids, text[0]) < len(text[0])]
        self._texts.append((ids, cache))
        n_bytes = 0
        for n_kept, (_, each) in enumerate(reversed(self._texts)):
            n_bytes += each.n_bytes
            if n_bytes > self._max_bytes:
                self._texts = self._texts[len(self._texts) - n_kept :]
                break

    def __len__(self) -> int:
        return len(self._texts)


def _n_common(a: IntArray, b: IntArray) -> int:
    """Return the number of equal items at the beginning."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
