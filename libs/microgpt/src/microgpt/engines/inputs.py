"""What engines are given, checked before they compute."""

from collections.abc import Collection, Sequence

import numpy as np

from microgpt.corpus.batches import Batch, Batches
from microgpt.engines.decoding import room_after
from microgpt.errors import ContextLengthError, ShapeError, TokenError
from microgpt.model import ModelConfig
from microgpt.parameters import FloatArray, IntArray

__all__ = ["InputChecks"]


class InputChecks:
    """The checks of an engine, by the sizes of its model."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        raise NotImplementedError

    def check_uniforms(self, uniforms: FloatArray, prompt: Sequence[int]) -> int:
        """Return the most tokens of a text, or raise ShapeError (see `sample`)."""
        room = room_after(prompt, self.config.block_size)
        match uniforms.shape:
            case (_, int(max_tokens)) if max_tokens <= room:
                return max_tokens
        raise ShapeError(
            f"got uniforms of shape {uniforms.shape}, expected (n_samples, at most {room})"
        )

    def check_draws(self, draws: FloatArray, n_before: int) -> None:
        """Raise ShapeError for draws of more tokens than there is room."""
        room = self.config.block_size - n_before + 1
        if draws.ndim != 1 or draws.size > room:
            raise ShapeError(f"got draws of shape {draws.shape}, expected (at most {room},)")

    def checked_forbidden(self, forbidden: Collection[int]) -> list[int]:
        """Return the forbidden ids that are tokens, or raise TokenError if all tokens are."""
        ids = sorted({token_id for token_id in forbidden if 0 <= token_id < self.config.vocab_size})
        if len(ids) == self.config.vocab_size:
            raise TokenError(
                f"all {len(ids)} tokens are forbidden, expected at least one to choose from"
            )
        return ids

    def check_batch(self, batch: Batch) -> None:
        """Raise unless the parts of `batch` fit each other and the model (see `loss_and_grads`)."""
        self.check_batches([batch])

    def check_batches(self, batches: Batches | Sequence[Batch]) -> Batches:
        """Return batches (at least one) laid end to end, or raise (see `loss_and_grads`)."""
        if isinstance(batches, Batches):
            self._check_parts(batches.together)
        else:
            for batch in batches:
                self._check_parts(batch)
            batches = Batches.of(batches)
        self._check_length(int(batches.together.lengths.max()))
        self._check_range(batches.together.inputs, 0)
        self._check_range(batches.together.targets, -1)
        return batches

    def _check_parts(self, batch: Batch) -> None:
        for name, ids in zip(Batch._fields, batch, strict=True):
            if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"):
                raise ShapeError(f"{name} is {_describe(ids)}, expected a 1-D array of integers")
        if batch.lengths.size == 0:
            raise ShapeError("lengths are empty, expected at least one document")
        if batch.lengths.min() < 1:
            raise ShapeError(f"a length is {batch.lengths.min()}, expected at least 1")
        if not batch.inputs.size == batch.targets.size == batch.lengths.sum():
            raise ShapeError(
                f"got inputs of shape {batch.inputs.shape} and targets of shape "
                f"{batch.targets.shape}, expected ({batch.lengths.sum()},), the sum of lengths"
            )

    def check_tokens(self, token_ids: Sequence[int], n_before: int = 0) -> IntArray:
        """Return `token_ids` as an array, or raise (see `prefill`)."""
        ids = np.asarray(token_ids)
        if ids.size == 0:
            raise ShapeError("got no tokens, expected at least one")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ShapeError(f"token ids are {_describe(ids)}, expected a list of integers")
        self._check_length(n_before + ids.size)
        self._check_range(ids, 0)
        return ids

    def _check_length(self, n_tokens: int) -> None:
        if n_tokens > self.config.block_size:
            raise ContextLengthError(
                f"got {n_tokens} tokens, expected at most block_size={self.config.block_size}; "
                "shorten the text or use a model with a larger block_size"
            )

    def _check_range(self, ids: IntArray, smallest: int) -> None:
        low, high = int(ids.min()), int(ids.max())
        if low < smallest or high >= self.config.vocab_size:
            strange = low if low < smallest else high
            raise TokenError(
                f"token id {strange}, expected {smallest} to {self.config.vocab_size - 1}"
            )


def _describe(ids: object) -> str:
    if isinstance(ids, np.ndarray):
        return f"an array of shape {ids.shape} and type {ids.dtype}"
    return f"a {type(ids).__name__}"
