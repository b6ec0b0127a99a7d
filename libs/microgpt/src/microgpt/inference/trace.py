"""The trace of a text: attention, residual stream and logits of a forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import msgspec
import numpy as np

from microgpt.checks import checked_integer, checked_messages, is_number
from microgpt.data import BaseTokenizer, Message, Unknown
from microgpt.engines.vectorized import VectorizedEngine
from microgpt.errors import ConfigError, ContextLengthError
from microgpt.inference.prompt import Prompt, build_prompt, left_out, text_prompt
from microgpt.model import ModelConfig
from microgpt.notebook import shades, tints, visible
from microgpt.parameters import FloatArray, Parameters

__all__ = ["Trace", "Traceable", "trace_text"]

Traceable: TypeAlias = str | Prompt | Sequence[Message] | Sequence[int]

DIGITS = 4  # of the figures of `Trace.to_json`
LARGE = 1e5  # a loss that is shown with its exponent


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """The results of a forward pass over a text, in float64 for every engine and dtype.

    The residual stream begins as the embedded tokens. Each block adds the output of its attention,
    then of its MLP, and `lm_head` maps the stream to logits. T is the number of tokens.

    Args:
        prompt: the tokens, with counts of dropped tokens and unknown characters.
        tokenizer: of the model.
        attention: probabilities, from each position, a row, to each position, a column: shape
            (n_layer, H, T, T). Rows sum to 1, and are 0 at later positions.
        residual: the residual stream before the first block and after each, shape
            (n_layer + 1, T, C).
        from_attn: output of each block's attention, shape (n_layer, T, C).
        from_mlp: output of each block's MLP, shape (n_layer, T, C).
        hidden: activations of the MLPs, after ReLU, shape (n_layer, T, 4C).
        lens: the logit lens: `lm_head` on each stage of the residual stream, as logits of shape
            (n_layer + 1, T, V).

    Example:
        >>> import microgpt
        >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100)
        >>> trace = model.trace("hann")
        >>> trace
        <Trace: 5 tokens, 1 block of 4 heads, loss 0.45>
        >>> trace.tokens
        ['bos', 'h', 'a', 'n', 'n']
        >>> trace.attention.shape, trace.residual.shape, trace.logits.shape
        ((1, 4, 5, 5), (2, 5, 16), (5, 7))
        >>> [round(nats, 1) for nats in trace.surprise[1:].tolist()]
        [1.7, 0.0, 0.0, 0.0]
        >>> model.tokenizer.token_text(trace.logits[-1].argmax())
        'a'
    """

    prompt: Prompt
    tokenizer: BaseTokenizer = field(repr=False)
    attention: FloatArray
    residual: FloatArray
    from_attn: FloatArray
    from_mlp: FloatArray
    hidden: FloatArray
    lens: FloatArray

    @property
    def token_ids(self) -> list[int]:
        """The tokens read."""
        return self.prompt.token_ids

    @property
    def tokens(self) -> list[str]:
        """The tokens read, as `BaseTokenizer.token_text` shows them."""
        return [self.tokenizer.token_text(token_id) for token_id in self.token_ids]

    @property
    def logits(self) -> FloatArray:
        """The logits after each token, shape (T, V): the last stage of `lens`."""
        last: FloatArray = self.lens[-1]
        return last

    @property
    def surprise(self) -> FloatArray:
        """Loss of each token given the tokens before, in nats; NaN for the first: shape (T,)."""
        costs = np.full(len(self.token_ids), np.nan)
        rows = np.arange(len(costs) - 1)
        costs[1:] = 0.0 - log_probs(self.logits[:-1])[rows, self.token_ids[1:]]
        return costs

    @property
    def loss(self) -> float:
        """The mean of `surprise`, in nats per predicted token; NaN for a single token."""
        costs = self.surprise[1:]
        return float(costs.mean()) if costs.size else float("nan")

    def probs(self, temperature: float = 1.0) -> FloatArray:
        """Return the probabilities of the next token after each token, shape (T, V).

        Args:
            temperature: divides the logits; above 0.

        Raises:
            ConfigError: `temperature` is no such number.
        """
        if not is_number(temperature) or not 0 < temperature < np.inf:
            raise ConfigError(f"temperature is {temperature!r:.80}, expected a number above 0")
        with np.errstate(over="ignore", invalid="ignore"):  # of small temperatures, large weights
            below = self.logits - self.logits.max(axis=-1, keepdims=True)
            result: FloatArray = np.exp(log_probs(below / temperature))
        return result

    def __repr__(self) -> str:
        return f"<Trace: {self._summary()}>"

    def _summary(self) -> str:
        n_layer, n_head, n_tokens, _ = self.attention.shape
        tokens = f"{n_tokens} token{'s' * (n_tokens > 1)}"
        heads = f"{n_layer} block{'s' * (n_layer > 1)} of {n_head} head{'s' * (n_head > 1)}"
        loss = f", loss {self.loss:{'.2f' if self.loss < LARGE else '.1e'}}" * (n_tokens > 1)
        return f"{tokens}, {heads}{loss}"

    def _repr_html_(self) -> str:
        special = self.tokenizer.n_plain
        words = [
            f"⟨{text}⟩" if token_id >= special else visible(text)
            for token_id, text in zip(self.token_ids, self.tokens, strict=True)
        ]
        heads = {
            f"block {i + 1}, head {j + 1}": head
            for i, block in enumerate(self.attention)
            for j, head in enumerate(block)
        }
        text = tints("surprise in nats", words, self.surprise.tolist())
        return f"<div>{text}{shades(f'Trace: {self._summary()}', heads)}</div>"

    def to_json(self, top: int = 10, *, attention: bool = True) -> str:
        """Return the trace as JSON; figures are rounded to four decimals.

        An object with these members, where a token is an object of its `id` and its `text`, and of
        `special`, true, if it stands for no text; a figure that is no finite number is null:

        - `tokens`: the tokens read, T of them.
        - `surprise`: nats of each, null for the first; `loss`: their mean.
        - `next`: after each token the likeliest next tokens, in falling order of their
          `probability`.
        - `lens`: for each stage of the residual stream and each token the likeliest next token.
        - `attention`: per block, head and position the probabilities of the positions up to it.
        - `residual`: root mean square of each stage, per token; `from_attn` and `from_mlp`: root
          mean square of each block's output, per token.
        - `active`: share of the hidden units of each block that are above 0, per token.

        Args:
            top: number of next tokens, at least 1.
            attention: include `attention`, which has most of the figures of a long text.

        Raises:
            ConfigError: `top` is no such integer.
        """
        rows = {
            "tokens": [self._token(token_id) for token_id in self.token_ids],
            "loss": _rounded(self.loss),
            "surprise": _rounded(self.surprise),
            "next": self._likeliest(self.logits, checked_integer("top", top, 1)),
            "lens": [[each for (each,) in self._likeliest(stage, 1)] for stage in self.lens],
            "residual": _rounded(_root_mean_square(self.residual)),
            "from_attn": _rounded(_root_mean_square(self.from_attn)),
            "from_mlp": _rounded(_root_mean_square(self.from_mlp)),
            "active": _rounded((self.hidden > 0).mean(axis=-1)),
        }
        if attention:
            rows["attention"] = [[_encoded(head) for head in block] for block in self.attention]
        return msgspec.json.encode(rows).decode()

    def _token(self, token_id: int) -> dict[str, Any]:
        token = {"id": token_id, "text": self.tokenizer.token_text(token_id)}
        return token | {"special": True} if token_id >= self.tokenizer.n_plain else token

    def _likeliest(self, logits: FloatArray, n: int) -> list[list[dict[str, Any]]]:
        """Return the likeliest tokens of logits (T, V) with their probabilities, per row."""
        order = np.argsort(-logits, axis=1, kind="stable")[:, :n]
        probs = np.exp(np.take_along_axis(log_probs(logits), order, axis=1))
        return [
            [self._token(i) | {"probability": p} for i, p in zip(ids, each, strict=True)]
            for ids, each in zip(order.tolist(), _rounded(probs), strict=True)
        ]


def log_probs(logits: FloatArray) -> FloatArray:
    """Return the logarithms of the probabilities of logits along the last axis, shape as given."""
    with np.errstate(invalid="ignore"):  # logits may be infinite: the weights were too large
        shifted = logits - logits.max(axis=-1, keepdims=True)
        result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _root_mean_square(x: FloatArray) -> FloatArray:
    """Return the root mean square along the last axis: (..., C) -> (...)."""
    with np.errstate(over="ignore"):
        result: FloatArray = np.sqrt(np.mean(np.square(x), axis=-1))
    return result


def _encoded(head: FloatArray) -> msgspec.Raw:
    """Return the lower triangle of a head as JSON: in memory, its numbers take thrice as much."""
    rows = [row[: i + 1] for i, row in enumerate(_rounded(head))]
    return msgspec.Raw(msgspec.json.encode(rows))


def _rounded(figures: FloatArray | float) -> Any:
    return np.round(figures, DIGITS).tolist()


def trace_text(
    parameters: Parameters,
    tokenizer: BaseTokenizer,
    windows: bool,  # noqa: FBT001 - the parts of a model, then what is asked
    text: Traceable,
    unknown: Unknown,
    max_figures: int | None,
) -> Trace:
    """Return the trace of a text; see `LanguageModel.trace`."""
    block_size = parameters.config.block_size
    if isinstance(text, Prompt):
        prompt = text
    elif isinstance(text, str):
        prompt = text_prompt(text, tokenizer, block_size, unknown, windows=windows)
    elif isinstance(text, Sequence) and text and isinstance(text[0], dict):
        prompt = _conversation_prompt(text, tokenizer, block_size, unknown)
    else:
        ids = VectorizedEngine(parameters).check_tokens(text)  # type: ignore[arg-type]
        prompt = Prompt(ids.tolist())
    if max_figures is not None:
        _check_size(parameters.config, len(prompt.token_ids), max_figures)
    weights = Parameters(parameters.config, parameters.flat.astype(np.float64))
    engine = VectorizedEngine(weights)
    embedded, attention, blocks = engine.trace(prompt.token_ids)
    residual = [embedded]
    with np.errstate(all="ignore"):  # sums of what the engine computes, to the bit
        for block in blocks:
            residual.append(residual[-1] + block.from_attn + block.from_mlp)
        stream = np.stack(residual)
        lens = stream @ weights["lm_head"].T
    return Trace(
        prompt=prompt,
        tokenizer=tokenizer,
        attention=attention,
        residual=stream,
        from_attn=np.stack([block.from_attn for block in blocks]),
        from_mlp=np.stack([block.from_mlp for block in blocks]),
        hidden=np.stack([block.hidden for block in blocks]),
        lens=lens,
    )


def _conversation_prompt(
    messages: Sequence[Any], tokenizer: BaseTokenizer, block_size: int, unknown: Unknown
) -> Prompt:
    """Return the prompt of a reply; an answer at the end of the messages follows its prompt."""
    *_, (role, answer) = checked_messages(messages)
    if role != "assistant":
        return build_prompt(messages, tokenizer, block_size, unknown=unknown)
    prompt = build_prompt(messages[:-1], tokenizer, block_size, unknown=unknown)
    _, *rest = tokenizer.encode_turn(role, answer, unknown=unknown)
    n_unknown, strange = left_out(answer, rest, tokenizer)
    return replace(
        prompt,
        token_ids=[*prompt.token_ids, *rest],
        n_unknown=prompt.n_unknown + n_unknown,
        unknown="".join(dict.fromkeys(prompt.unknown + strange)),
    )


def _check_size(config: ModelConfig, n_tokens: int, most: int) -> None:
    """Raise ContextLengthError for a trace of more than `most` figures."""
    per_block = config.n_head * n_tokens + 12 * config.n_embd  # attention; what `BlockTrace` holds
    lens = (config.n_layer + 1) * config.vocab_size
    n = config.n_params + n_tokens * (config.n_layer * per_block + lens)
    if n > most:
        raise ContextLengthError(
            f"a trace of {n_tokens} tokens by this model has {n:,} figures, expected at most "
            f"{most:,}; shorten the text"
        )
