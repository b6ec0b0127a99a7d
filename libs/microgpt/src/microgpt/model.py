"""Decoder-only transformer: token ids in, next-token logits out, one position at a time.

Logits are scores whose softmax gives probabilities. x is the residual stream: every block adds to
it. `forward` is the one definition: over `Value` it trains (`GPT`), over floats it infers
(`InferenceGPT`), and tests compare every faster engine with it.

    x = rmsnorm(wte[token] + wpe[position])            token and position embeddings
    per layer:  h = rmsnorm(x);  q, k, v = attn_wq @ h, attn_wk @ h, attn_wv @ h
                x += attn_wo @ attention(q, all k, all v)
                x += mlp_fc2 @ relu(mlp_fc1 @ rmsnorm(x))
    logits = lm_head @ x

There are no biases, no learned gains, no final norm, and lm_head is not tied to wte. Matrices are
stored (out, in). Source: Radford et al. 2019 (GPT-2), simplified as in Karpathy's microgpt.py.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Generic

from microgpt.autograd import Scalar, Value, exp, log, number, relu
from microgpt.checks import checked_integer
from microgpt.errors import ConfigError, ContextLengthError, ShapeError, TokenError

__all__ = ["GPT", "InferenceGPT", "KVCache", "ModelConfig", "init_weights", "parameter_shapes"]

RMSNORM_EPS = 1e-5  # inside the root, in the units of x squared
INIT_STD = 0.08
MAX_PARAMS = 2**48  # a petabyte in float32: beyond any memory, and its bytes fit into int64

Weights = Mapping[str, Sequence[Sequence[Scalar]]]  # parameter name -> matrix (out, in)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of a model; all at least 1.

    Args:
        vocab_size: V, number of token ids.
        n_embd: C, width of the residual stream.
        n_head: H, attention heads; must divide n_embd.
        n_layer: transformer blocks.
        block_size: the most tokens that the model can attend to.

    Raises:
        ConfigError: a size below 1, n_head does not divide n_embd, or more than 2**48 parameters.

    Example:
        >>> ModelConfig(vocab_size=27).n_params
        4192
    """

    vocab_size: int
    n_embd: int = 16
    n_head: int = 4
    n_layer: int = 1
    block_size: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            size = checked_integer(field.name, getattr(self, field.name), 1)
            object.__setattr__(self, field.name, size)
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})")
        if self.n_params > MAX_PARAMS:
            raise ConfigError(
                f"a model of these sizes has {self.n_params:,} parameters, expected at most "
                f"{MAX_PARAMS:,}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head: D = C / H."""
        return self.n_embd // self.n_head

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        tables = (2 * self.vocab_size + self.block_size) * self.n_embd
        return tables + self.n_layer * 12 * self.n_embd**2  # 4 of (C, C), 2 of (4C, C)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shape (out, in) of every parameter, in the order they are drawn and stored."""
    n_embd, embedding = config.n_embd, (config.vocab_size, config.n_embd)
    shapes = {"wte": embedding, "wpe": (config.block_size, n_embd), "lm_head": embedding}
    for i in range(config.n_layer):
        shapes |= {f"layer{i}.attn_w{kind}": (n_embd, n_embd) for kind in "qkvo"}
        shapes[f"layer{i}.mlp_fc1"] = (4 * n_embd, n_embd)
        shapes[f"layer{i}.mlp_fc2"] = (n_embd, 4 * n_embd)
    return shapes


def init_weights(config: ModelConfig, rng: random.Random) -> Iterator[float]:
    """Yield the initial weights, normal with mean 0 and standard deviation 0.08, row by row."""
    return (rng.gauss(0.0, INIT_STD) for _ in range(config.n_params))


def dot(a: Sequence[Scalar], b: Sequence[Scalar]) -> Scalar:
    """Return the inner product of two vectors of equal length, at least 1."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = total + x * y
    return total


def linear(x: Sequence[Scalar], w: Sequence[Sequence[Scalar]]) -> list[Scalar]:
    """Return w @ x, shape (out,), for x of shape (in,) and w of shape (out, in)."""
    return [dot(row, x) for row in w]


def add(x: Sequence[Scalar], y: Sequence[Scalar]) -> list[Scalar]:
    """Return the sum of two vectors of shape (C,)."""
    return [a + b for a, b in zip(x, y, strict=True)]


def rmsnorm(x: Sequence[Scalar]) -> list[Scalar]:
    """Scale `x`, shape (C,), to unit root mean square; there is no learned gain.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    mean_square = dot(x, x) / len(x)
    scale = (mean_square + RMSNORM_EPS) ** -0.5
    return [a * scale for a in x]


def shifted_exps(logits: Sequence[Scalar]) -> tuple[float, list[Scalar], Scalar]:
    """Return the largest logit, exp(logits - largest), shape (V,), and the sum of these."""
    largest = max(map(number, logits))  # a float: the shift cancels, so it needs no gradient
    exps = [exp(z - largest) for z in logits]
    return largest, exps, sum(exps[1:], start=exps[0])


def softmax(logits: Sequence[Scalar]) -> list[Scalar]:
    """Return probabilities proportional to exp(logits), shape as given, at least 1 long."""
    _, exps, total = shifted_exps(logits)
    return [e / total for e in exps]


def cross_entropy(logits: Sequence[Scalar], target: int) -> Scalar:
    """Return -log softmax(logits)[target] in nats, finite where the probability rounds to 0."""
    largest, _, total = shifted_exps(logits)
    return log(total) - (logits[target] - largest)


@dataclass
class KVCache(Generic[Scalar]):
    """Keys and values of every position so far, for attention.

    Args:
        keys: per layer a list of vectors, each of shape (C,).
        values: as `keys`.
    """

    keys: list[list[list[Scalar]]]
    values: list[list[list[Scalar]]]

    @property
    def length(self) -> int:
        """Positions held so far: T."""
        return len(self.keys[0])


def attention(
    q: Sequence[Scalar],
    keys: Sequence[Sequence[Scalar]],
    values: Sequence[Sequence[Scalar]],
    n_head: int,
) -> list[Scalar]:
    """Return per head the mean of `values`, weighted by how well `keys` match `q`: shape (C,).

    Args:
        q: query of the newest position, shape (C,).
        keys: of every position up to the newest, shape (T, C): attention is causal.
        values: as `keys`.
        n_head: H; head h owns columns h*D to (h+1)*D.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    head_dim = len(q) // n_head
    mixed: list[Scalar] = []
    for start in range(0, len(q), head_dim):
        head = slice(start, start + head_dim)
        scores = [dot(q[head], k[head]) / head_dim**0.5 for k in keys]  # (T,)
        probs = softmax(scores)  # (T,)
        head_values = [v[head] for v in values]  # (T, D)
        mixed += [dot(probs, column) for column in zip(*head_values, strict=True)]
    return mixed


def forward(
    weights: Weights[Scalar], config: ModelConfig, token_id: int, cache: KVCache[Scalar]
) -> list[Scalar]:
    """Return the logits after one token, shape (V,), and append its keys and values to `cache`.

    Args:
        weights: every parameter of `parameter_shapes`, by name.
        config: sizes.
        token_id: in 0..V-1.
        cache: keys and values of the earlier tokens, fewer than block_size.
    """
    x = rmsnorm(add(weights["wte"][token_id], weights["wpe"][cache.length]))  # (C,)
    for i in range(config.n_layer):
        h = rmsnorm(x)  # (C,)
        q = linear(h, weights[f"layer{i}.attn_wq"])  # (C,)
        cache.keys[i].append(linear(h, weights[f"layer{i}.attn_wk"]))
        cache.values[i].append(linear(h, weights[f"layer{i}.attn_wv"]))
        mixed = attention(q, cache.keys[i], cache.values[i], config.n_head)  # (C,)
        x = add(x, linear(mixed, weights[f"layer{i}.attn_wo"]))
        hidden = [relu(a) for a in linear(rmsnorm(x), weights[f"layer{i}.mlp_fc1"])]  # (4C,)
        x = add(x, linear(hidden, weights[f"layer{i}.mlp_fc2"]))
    return linear(x, weights["lm_head"])  # (V,)


class _Transformer(Generic[Scalar]):
    """The common part of `GPT` and `InferenceGPT`: sizes, weights, and ways to run `forward`."""

    def __init__(self, config: ModelConfig, weights: Weights[Scalar]) -> None:
        shapes = parameter_shapes(config)
        if weights.keys() != shapes.keys():
            raise ShapeError(f"got parameters {sorted(weights)}, expected {sorted(shapes)}")
        for name, (n_rows, n_columns) in shapes.items():
            if [len(row) for row in weights[name]] != [n_columns] * n_rows:
                raise ShapeError(f"{name} is not a matrix of shape ({n_rows}, {n_columns})")
        self.config = config
        self.weights: Weights[Scalar] = {name: weights[name] for name in shapes}

    def new_cache(self) -> KVCache[Scalar]:
        """Return an empty cache: the next token is the first."""
        layers = range(self.config.n_layer)
        return KVCache([[] for _ in layers], [[] for _ in layers])

    def decode(self, token_id: int, cache: KVCache[Scalar]) -> list[Scalar]:
        """Append one token to `cache` and return the logits of the next, shape (V,)."""
        self._check_token(token_id)
        if cache.length >= self.config.block_size:
            raise ContextLengthError(
                f"got token {cache.length + 1}, expected at most block_size="
                f"{self.config.block_size}; shorten the input"
            )
        return forward(self.weights, self.config, token_id, cache)

    def prefill(self, token_ids: Sequence[int], cache: KVCache[Scalar]) -> list[Scalar]:
        """Append several tokens (at least one); return the logits after the last, shape (V,)."""
        return self.logits(token_ids, cache)[-1]

    def logits(
        self, token_ids: Sequence[int], cache: KVCache[Scalar] | None = None
    ) -> list[list[Scalar]]:
        """Return the logits after each of the tokens, shape (T, V)."""
        if len(token_ids) == 0:
            raise ShapeError("got no tokens, expected at least one")
        cache = self.new_cache() if cache is None else cache
        return [self.decode(token_id, cache) for token_id in token_ids]

    def _check_token(self, token_id: int) -> None:
        if not 0 <= token_id < self.config.vocab_size:
            raise TokenError(f"token id {token_id}, expected 0 to {self.config.vocab_size - 1}")


class GPT(_Transformer[Value]):
    """The model over `Value`: slow and differentiable.

    Args:
        config: sizes.
        weights: parameter name to matrix of `Value`, all of `parameter_shapes`.

    Example:
        >>> model = GPT.init(ModelConfig(vocab_size=3, n_embd=4), random.Random(42))
        >>> loss = model.loss([0, 1, 2])
        >>> loss.backward()
        >>> round(loss.data, 2), len(model.parameters())
        (0.95, 280)
    """

    @classmethod
    def init(cls, config: ModelConfig, rng: random.Random) -> "GPT":
        """Return a model with initial weights.

        Args:
            config: sizes.
            rng: one `gauss` is drawn per weight.
        """
        return cls.from_numbers(config, init_weights(config, rng))

    @classmethod
    def from_numbers(cls, config: ModelConfig, numbers: Iterator[float]) -> "GPT":
        """Return a model with given weights.

        Args:
            config: sizes.
            numbers: at least n_params, in the order of `parameters`.
        """
        values = map(Value, numbers)
        weights = {
            name: [[next(values) for _ in range(n_in)] for _ in range(n_out)]
            for name, (n_out, n_in) in parameter_shapes(config).items()
        }
        return cls(config, weights)

    def parameters(self) -> list[Value]:
        """Return every weight, in the order of `parameter_shapes`, row by row."""
        return [weight for matrix in self.weights.values() for row in matrix for weight in row]

    def loss(self, token_ids: Sequence[int]) -> Value:
        """Return the mean loss in nats of predicting each token from those before it.

        Args:
            token_ids: one document, at least 2 tokens; cut after block_size + 1.

        Raises:
            ShapeError: fewer than 2 tokens.
        """
        if len(token_ids) < 2:  # noqa: PLR2004 - one to read and one to predict
            raise ShapeError(f"the number of tokens is {len(token_ids)}, expected at least 2")
        targets = token_ids[1 : self.config.block_size + 1]
        self._check_token(targets[-1])  # the others are inputs too
        logits = self.logits(token_ids[: len(targets)])
        losses = [cross_entropy(z, target) for z, target in zip(logits, targets, strict=True)]
        return sum(losses[1:], start=losses[0]) / len(losses)


class InferenceGPT(_Transformer[float]):
    """The model over plain floats: no gradients, safe to share between threads.

    Args:
        config: sizes.
        weights: parameter name to matrix of floats, all of `parameter_shapes`.
    """

    @classmethod
    def from_gpt(cls, model: GPT) -> "InferenceGPT":
        """Return a copy of the model without gradients.

        Args:
            model: over `Value`.
        """
        weights = {k: [[w.data for w in row] for row in w_k] for k, w_k in model.weights.items()}
        return cls(model.config, weights)
