"""The vectorized engine: the same step in NumPy, with the backward pass written out.

Documents of a batch are padded to the longest with targets that do not count; causal attention
never reads ahead, so padding changes nothing. Rows are all positions of all documents: R = B * T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from microgpt.corpus.batches import Batch
from microgpt.engines.base import ArrayCache, Engine
from microgpt.model import RMSNORM_EPS
from microgpt.parameters import FloatArray, IntArray, Parameters

__all__ = ["BlockTrace", "VectorizedEngine"]

# Rows of attention: parts of a long text spare half the work, and are so small that a BLAS does not
# share them out among threads, which would wait for each other hundreds of times.
QUERIES_TOGETHER = 32


# Each operation of the model is a pair: forward, and the gradient of its input given the gradient
# of its output. Both stand side by side.


def _rmsnorm(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return x (R, C) scaled to unit root mean square, and the scales (R, 1)."""
    mean_square = np.einsum("rc,rc->r", x, x)[:, None] / x.dtype.type(x.shape[1])
    scale = 1.0 / np.sqrt(mean_square + x.dtype.type(RMSNORM_EPS))
    return x * scale, scale


def _rmsnorm_backward(d_y: FloatArray, y: FloatArray, scale: FloatArray) -> FloatArray:
    """Return the gradient of x; y = x * scale."""
    projection = np.einsum("rc,rc->r", d_y, y)[:, None] / y.dtype.type(y.shape[1])
    d_x: FloatArray = (d_y - y * projection) * scale
    return d_x


def _softmax(scores: FloatArray) -> FloatArray:
    """Return probabilities along the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _softmax_backward(d_probs: FloatArray, probs: FloatArray) -> FloatArray:
    """Return the gradient of the scores, in place of `d_probs`."""
    d_probs -= np.einsum("...t,...t->...", d_probs, probs)[..., None]
    d_probs *= probs
    return d_probs


def _cross_entropy(logits: FloatArray, targets: IntArray) -> tuple[float, int, FloatArray]:
    """Return summed loss, count of targets that are not -1, and the gradient of logits (R, V)."""
    logits -= logits.max(axis=1, keepdims=True)
    rows = np.flatnonzero(targets >= 0)
    chosen = targets[rows]
    target_logits = logits[rows, chosen].astype(np.float64)
    probs = np.exp(logits)
    totals = probs.sum(axis=1, keepdims=True)
    nll = np.log(totals[rows, 0], dtype=np.float64) - target_logits
    probs /= totals
    probs[rows, chosen] -= 1.0
    if len(rows) < len(targets):
        probs[targets < 0] = 0.0
    return float(nll.sum()), len(rows), probs


@dataclass
class _BlockWeights:
    """Views of one block's weights, or of their gradients."""

    w_qkv: FloatArray  # (3C, C): wq, wk and wv, one after another in the flat buffer
    w_o: FloatArray  # (C, C)
    w_1: FloatArray  # (4C, C)
    w_2: FloatArray  # (C, 4C)

    @classmethod
    def of(cls, parameters: Parameters) -> "list[_BlockWeights]":
        return [
            cls(
                parameters.stacked(f"layer{i}.attn_wq", f"layer{i}.attn_wv"),
                parameters[f"layer{i}.attn_wo"],
                parameters[f"layer{i}.mlp_fc1"],
                parameters[f"layer{i}.mlp_fc2"],
            )
            for i in range(parameters.config.n_layer)
        ]


@dataclass
class BlockTrace:
    """Results of one block's forward pass, for its backward pass and for those who look inside."""

    normed_attn: FloatArray  # (R, C)
    scale_attn: FloatArray  # (R, 1)
    qkv: FloatArray  # (3, B, H, T, D)
    probs: FloatArray  # (B, H, T, T)
    mixed: FloatArray  # (R, C)
    from_attn: FloatArray  # (R, C), added to the residual stream
    normed_mlp: FloatArray  # (R, C)
    scale_mlp: FloatArray  # (R, 1)
    hidden: FloatArray  # (R, 4C)
    from_mlp: FloatArray  # (R, C), added to the residual stream


def _swap(x: FloatArray) -> FloatArray:
    """Swap the last two axes."""
    return x.swapaxes(-1, -2)


def _merge_heads(x: FloatArray) -> FloatArray:
    """(B, H, T, D) -> (R, C)."""
    n_docs, n_head, n_tokens, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n_docs * n_tokens, n_head * head_dim)


def _pad(batch: Batch) -> tuple[IntArray, IntArray]:
    """Return inputs (B, T), padded with 0, and targets (R,), padded with -1."""
    n_docs, n_tokens = len(batch.lengths), int(batch.lengths.max())
    if n_docs == 1:
        return batch.inputs[None], batch.targets
    filled = np.arange(n_tokens) < batch.lengths[:, None]  # (B, T)
    inputs = np.zeros(filled.shape, np.int32)
    targets = np.full(filled.shape, -1, np.int32)
    inputs[filled] = batch.inputs
    targets[filled] = batch.targets
    return inputs, targets.reshape(-1)


class VectorizedEngine(Engine):
    """NumPy on padded batches; runs wherever NumPy does."""

    name = "vectorized"
    has_exact_prefixes = False  # products sum in another order for one row than for many

    def __init__(self, parameters: Parameters, threads: int | None = None) -> None:
        super().__init__(parameters, threads)
        self._blocks = _BlockWeights.of(parameters)
        self._attention_scale = parameters.flat.dtype.type(self.config.head_dim**-0.5)
        self._mask = self._causal_mask(1)

    @cached_property
    def _block_grads(self) -> list[_BlockWeights]:
        return _BlockWeights.of(self.grads)

    def _causal_mask(self, n_tokens: int) -> FloatArray:
        """Return the mask added to scores, shape (T, T): -inf where a key is ahead of its query."""
        # A mask for the whole block would take gigabytes where it is long and documents are short.
        dtype = self.parameters.flat.dtype.type
        ahead = np.triu(np.ones((n_tokens, n_tokens), np.bool_), k=1)
        return np.where(ahead, dtype(-np.inf), dtype(0))

    # ------------------------------------------------------------ training

    @np.errstate(all="ignore")  # on arm64, BLAS may warn of correct products
    def loss_and_grads(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss_and_grads`."""
        self.check_batch(batch)
        inputs, targets = _pad(batch)
        embedded, scale = self._embed(inputs)
        x, _, traces = self._forward(embedded, *inputs.shape)
        nll, n_targets, d_logits = _cross_entropy(x @ self.parameters["lm_head"].T, targets)

        np.matmul(d_logits.T, x, out=self.grads["lm_head"])
        d_x: FloatArray = d_logits @ self.parameters["lm_head"]  # (R, C)
        for block, trace, grads in zip(
            reversed(self._blocks), reversed(traces), reversed(self._block_grads), strict=True
        ):
            d_x = self._block_backward(block, trace, grads, d_x)
        self._embed_backward(_rmsnorm_backward(d_x, embedded, scale), inputs)
        return nll, n_targets

    def _forward(
        self, x: FloatArray, n_docs: int, n_tokens: int
    ) -> tuple[FloatArray, FloatArray, list[BlockTrace]]:
        """Return the residual stream (R, C) after the last block, attention, and all results."""
        c = self.config
        probs = np.zeros((c.n_layer, n_docs, c.n_head, n_tokens, n_tokens), x.dtype)
        traces = []
        for block, out in zip(self._blocks, probs, strict=True):
            x, trace = self._block(block, x, out)
            traces.append(trace)
        return x, probs, traces

    def _embed(self, ids: IntArray, start: int = 0) -> tuple[FloatArray, FloatArray]:
        """Return the normed sum of token and position embeddings (R, C), and its scales."""
        tokens, positions = self.parameters["wte"], self.parameters["wpe"]
        x = tokens[ids] + positions[start : start + ids.shape[1]]  # (B, T, C)
        return _rmsnorm(x.reshape(-1, self.config.n_embd))

    def _embed_backward(self, d_x: FloatArray, ids: IntArray) -> None:
        d_tokens, d_positions = self.grads["wte"], self.grads["wpe"]
        d_tokens[:] = 0.0
        np.add.at(d_tokens, ids.reshape(-1), d_x)  # a token may occur many times
        d_positions[ids.shape[1] :] = 0.0
        d_x.reshape(*ids.shape, -1).sum(axis=0, out=d_positions[: ids.shape[1]])

    def _split_heads(self, x: FloatArray, n_docs: int, n_tokens: int, n_parts: int) -> FloatArray:
        """(R, n_parts * C) -> (n_parts, B, H, T, D)."""
        config = self.config
        split = x.reshape(n_docs, n_tokens, n_parts, config.n_head, config.head_dim)
        return split.transpose(2, 0, 3, 1, 4)

    def _attention(
        self,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        start: int = 0,
        probs: FloatArray | None = None,
    ) -> FloatArray:
        """Return the values that queries (B, H, T, D) from position `start` on mix from all of `v`.

        The attention probabilities are written to `probs`, if that is given: zeros.
        """
        n_queries, n_keys = q.shape[-2], k.shape[-2]
        if n_queries > QUERIES_TOGETHER:
            mixed = np.empty_like(q)
            for first in range(0, n_queries, QUERIES_TOGETHER):
                rows = slice(first, first + QUERIES_TOGETHER)
                seen = slice(min(start + first + QUERIES_TOGETHER, n_keys))  # the others are ahead
                part = None if probs is None else probs[..., rows, seen]
                mixed[..., rows, :] = self._attention(
                    q[..., rows, :], k[..., seen, :], v[..., seen, :], start + first, part
                )
            return mixed
        scores = np.matmul(q, _swap(k), out=probs)  # (B, H, T, start + T)
        scores *= self._attention_scale
        if n_queries > 1:  # a single query, the latest, sees all keys
            mask = self._mask  # which another thread may replace
            if len(mask) < n_keys:
                mask = self._mask = self._causal_mask(n_keys)
            scores += mask[start:n_keys, :n_keys]
        result: FloatArray = _softmax(scores) @ v
        return result

    def _block(
        self, block: _BlockWeights, x: FloatArray, probs: FloatArray
    ) -> tuple[FloatArray, BlockTrace]:
        """Return the residual stream (R, C) after one block; write attention to `probs`: zeros."""
        n_docs, _, n_tokens, _ = probs.shape
        normed_attn, scale_attn = _rmsnorm(x)
        qkv = self._split_heads(normed_attn @ block.w_qkv.T, n_docs, n_tokens, 3)
        q, k, v = qkv
        mixed = _merge_heads(self._attention(q, k, v, probs=probs))  # (R, C)
        from_attn = mixed @ block.w_o.T
        x = x + from_attn
        normed_mlp, scale_mlp = _rmsnorm(x)
        hidden = np.maximum(normed_mlp @ block.w_1.T, 0)  # (R, 4C)
        from_mlp = hidden @ block.w_2.T
        return x + from_mlp, BlockTrace(
            normed_attn,
            scale_attn,
            qkv,
            probs,
            mixed,
            from_attn,
            normed_mlp,
            scale_mlp,
            hidden,
            from_mlp,
        )

    def _block_backward(
        self, block: _BlockWeights, trace: BlockTrace, grads: _BlockWeights, d_x: FloatArray
    ) -> FloatArray:
        """Write the block's gradients; return that of its input, given that of its output."""
        np.matmul(d_x.T, trace.hidden, out=grads.w_2)
        d_hidden = d_x @ block.w_2  # (R, 4C)
        d_hidden *= trace.hidden > 0
        np.matmul(d_hidden.T, trace.normed_mlp, out=grads.w_1)
        d_x = d_x + _rmsnorm_backward(d_hidden @ block.w_1, trace.normed_mlp, trace.scale_mlp)

        np.matmul(d_x.T, trace.mixed, out=grads.w_o)
        q, k, v = trace.qkv
        n_docs, _, n_tokens, _ = q.shape
        (d_mixed,) = self._split_heads(d_x @ block.w_o, n_docs, n_tokens, 1)  # (B, H, T, D)
        d_scores = _softmax_backward(d_mixed @ _swap(v), trace.probs)  # (B, H, T, T)
        d_scores *= self._attention_scale
        d_qkv = np.concatenate(  # (R, 3C)
            [
                _merge_heads(d_scores @ k),
                _merge_heads(_swap(d_scores) @ q),
                _merge_heads(_swap(trace.probs) @ d_mixed),
            ],
            axis=1,
        )
        np.matmul(d_qkv.T, trace.normed_attn, out=grads.w_qkv)
        d_normed = d_qkv @ block.w_qkv
        return d_x + _rmsnorm_backward(d_normed, trace.normed_attn, trace.scale_attn)

    # ------------------------------------------------------------ inference

    def new_cache(self) -> ArrayCache:
        """See `Engine.new_cache`."""
        shape = (self.config.n_layer, self.config.block_size, self.config.n_embd)
        dtype = self.parameters.dtype
        return ArrayCache(np.empty(shape, dtype), np.empty(shape, dtype))

    def fork(self, cache: ArrayCache, length: int) -> ArrayCache:
        """See `Engine.fork`."""
        return ArrayCache(cache.keys.copy(), cache.values.copy(), length)

    @np.errstate(all="ignore")  # weights may be too large: see choose_token
    def prefill(self, token_ids: Sequence[int], cache: ArrayCache) -> list[float]:
        """See `Engine.prefill`."""
        x = self._extend(token_ids, cache)
        logits: list[float] = (self.parameters["lm_head"] @ x[-1]).tolist()
        return logits

    @np.errstate(all="ignore")  # weights may be too large: see choose_token
    def logits(self, token_ids: Sequence[int]) -> FloatArray:
        """See `Engine.logits`."""
        x = self._extend(token_ids, self.new_cache())
        return x @ self.parameters["lm_head"].T

    @np.errstate(all="ignore")  # weights may be too large: see choose_token
    def trace(self, token_ids: Sequence[int]) -> tuple[FloatArray, FloatArray, list[BlockTrace]]:
        """Return the embedded tokens, attention, and what else each block computes (B = 1).

        Their shapes are (T, C) and (n_layer, H, T, T).

        Args:
            token_ids: see `Engine.logits`.

        Raises:
            As `Engine.logits`.
        """
        ids = self.check_tokens(token_ids)[None]
        embedded, _ = self._embed(ids)
        _, probs, blocks = self._forward(embedded, *ids.shape)
        return embedded, probs[:, 0], blocks

    def _extend(self, token_ids: Sequence[int], cache: ArrayCache) -> FloatArray:
        """Append tokens to `cache`; return the residual stream after the last block (T, C)."""
        ids = self.check_tokens(token_ids, cache.length)
        start, end = cache.length, cache.length + len(ids)
        by_head = (1, end, self.config.n_head, self.config.head_dim)
        x, _ = self._embed(ids[None], start)
        for i, block in enumerate(self._blocks):
            q, k, v = np.split(_rmsnorm(x)[0] @ block.w_qkv.T, 3, axis=1)  # (T, C) each
            cache.keys[i, start:end] = k
            cache.values[i, start:end] = v
            (q_heads,) = self._split_heads(q, 1, len(ids), 1)  # (1, H, T, D)
            k_heads = cache.keys[i, :end].reshape(by_head).transpose(0, 2, 1, 3)
            v_heads = cache.values[i, :end].reshape(by_head).transpose(0, 2, 1, 3)
            mixed = _merge_heads(self._attention(q_heads, k_heads, v_heads, start))
            x = x + mixed @ block.w_o.T
            x = x + np.maximum(_rmsnorm(x)[0] @ block.w_1.T, 0) @ block.w_2.T
        cache.length = end
        return x
