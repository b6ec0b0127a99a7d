"""Caches of earlier texts, for prompts with the same beginning."""

from bisect import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from microgpt.checks import checked_integer
from microgpt.engines.base import Engine
from microgpt.errors import ConfigError
from microgpt.parameters import IntArray

__all__ = ["PrefixCache"]

MAX_BYTES = 64 << 20
ENTRY_BYTES = 3072  # Python objects of an entry, measured: 1,500 to 2,150
MIN_REUSED = 4  # tokens; fewer are read in the time of a copy, and all chat prompts share two


class PrefixCache:
    """Caches of texts that a model has read, so that prompts read a shared beginning only once.

    A prefix cache belongs to one model, whose weights do not change, and to one thread at a time.
    Texts are the same with and without it, bit for bit. The engine `vectorized` reuses nothing,
    because its sums depend on the number of tokens that are read together.

    Args:
        max_bytes: limit of the memory; the least recently used texts are dropped.

    Attributes:
        n_hits: prompts with a known beginning.
        n_reused: tokens of these beginnings, which were not read again.
        n_bytes: memory in use.

    Raises:
        ConfigError: `max_bytes` is below 0.

    Example:
        >>> import microgpt
        >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
        >>> prefixes = microgpt.PrefixCache()
        >>> batch = model.batch(prefixes)
        >>> for text in ("hanna", "hannah"):
        ...     _ = batch.add(model.prompt(text))
        ...     while len(batch):
        ...         _ = batch.advance()
        >>> len(prefixes), prefixes.n_hits, prefixes.n_reused
        (1, 1, 6)
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = checked_integer("max_bytes", max_bytes, 0)
        self._engine: Engine | None = None
        self._caches: dict[bytes, Any] = {}  # by the tokens in them; the latest used is last
        self._keys: list[bytes] = []  # of `_caches`, sorted; none is the beginning of another
        self.n_hits = self.n_reused = self.n_bytes = 0

    def __repr__(self) -> str:
        texts = f"{len(self)} text{'s' * (len(self) != 1)}"
        hits = f"{self.n_hits} hit{'s' * (self.n_hits != 1)}"
        return f"<PrefixCache: {texts}, {hits}, {self.n_bytes:,} bytes>"

    def __reduce__(self) -> tuple[type["PrefixCache"], tuple[int]]:
        """Support copying and pickling: the copy is empty, for a model of its own."""
        return type(self), (self._max_bytes,)

    def cache_for(self, engine: Engine, token_ids: Sequence[int]) -> Any:
        """Return a new cache with the longest known beginning of a prompt.

        The cache lacks at least the last token, which gives the logits of the next.

        Args:
            engine: of the model.
            token_ids: of the prompt.

        Raises:
            ShapeError, TokenError, ContextLengthError: see `Engine.prefill`.
            ConfigError: the prefix cache belongs to another model.
        """
        if self._engine not in (None, engine):
            raise ConfigError(
                "the prefix cache belongs to another model, expected a PrefixCache for each model"
            )
        self._engine = engine
        key = _key_of(engine.check_tokens(token_ids))
        at = bisect(self._keys, key)
        nearest = self._keys[max(0, at - 1) : at + 1]  # sorted: no other key has more in common
        n_common, known = max(((_n_common(key, each), each) for each in nearest), default=(0, b""))
        length = min(n_common, len(token_ids) - 1)
        if length < MIN_REUSED:
            return engine.new_cache()
        self.n_hits += 1
        self.n_reused += length
        return engine.fork(self._used(known), length)

    def keep(self, token_ids: Sequence[int], cache: Any) -> None:
        """Keep the cache of a text that has ended.

        Args:
            token_ids: of the prompt and the text; the cache holds the first of them.
            cache: from `cache_for`; the caller must not append to it any more.
        """
        key = _key_of(token_ids[: cache.length])
        n_bytes = _n_bytes(key, cache)
        if not getattr(self._engine, "has_exact_prefixes", False) or n_bytes > self._max_bytes:
            return
        at = bisect(self._keys, key)
        if at < len(self._keys) and self._keys[at].startswith(key):
            self._used(self._keys[at])
            return
        if at and key.startswith(self._keys[at - 1]):
            at -= 1
            self._drop(self._keys[at])
        self._keys.insert(at, key)
        self._caches[key] = cache
        self.n_bytes += n_bytes
        while self.n_bytes > self._max_bytes:
            self._drop(next(iter(self._caches)))

    def _used(self, key: bytes) -> Any:
        """Return a cache, as the latest used."""
        cache = self._caches[key] = self._caches.pop(key)
        return cache

    def _drop(self, key: bytes) -> None:
        del self._keys[bisect(self._keys, key) - 1]
        self.n_bytes -= _n_bytes(key, self._caches.pop(key))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._caches)


def _key_of(token_ids: Sequence[int] | IntArray) -> bytes:
    """Return token ids as bytes with the same order and the same beginnings."""
    return np.asarray(token_ids, ">u4").tobytes()


def _n_common(a: bytes, b: bytes) -> int:
    """Return the number of tokens at the beginning that two keys share."""
    n_bytes = min(len(a), len(b))
    differ = np.frombuffer(a[:n_bytes], np.uint32) != np.frombuffer(b[:n_bytes], np.uint32)
    return int(differ.argmax()) if differ.any() else n_bytes // 4


def _n_bytes(key: bytes, cache: Any) -> int:
    n_bytes: int = cache.n_bytes
    return len(key) + n_bytes + ENTRY_BYTES
