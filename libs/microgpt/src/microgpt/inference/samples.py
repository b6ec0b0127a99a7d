"""Whole texts in one call of the engine: one, or many that continue the same prompt."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from microgpt.checks import check_type, checked_integer
from microgpt.data import BaseTokenizer
from microgpt.engines.base import Engine
from microgpt.engines.decoding import SamplingConfig, StopSignal, room_after, slid
from microgpt.engines.draws import uniforms
from microgpt.errors import ConfigError
from microgpt.inference.batch import GrowingText, max_tokens_after
from microgpt.inference.prompt import Prompt
from microgpt.inference.stream import Reply, reply_of, text_of, texts_of
from microgpt.parameters import FloatArray

__all__ = ["draw_reply", "draw_samples", "draw_texts", "logits_of_reply", "logits_of_text"]

MAX_SAMPLES = 1_000_000  # of one call: all are returned at once
SAMPLES_TOGETHER = 8192  # at most, since their draws are in memory
WORK_TOGETHER = 3_000_000_000  # multiplications of one call: some 0.1 s, before Ctrl-C is obeyed


def _checked_number(num_samples: int) -> int:
    """Return a number of samples for one call, or raise ConfigError."""
    if checked_integer("num_samples", num_samples, 0) > MAX_SAMPLES:
        raise ConfigError(
            f"num_samples is {num_samples}, expected at most {MAX_SAMPLES:,}; "
            "ask for more in several calls, each with its own seed"
        )
    return num_samples


def logits_of_text(engine: Engine, prompt: Prompt, token_ids: Sequence[int]) -> FloatArray:
    """Return the logits that each token of a text was chosen from, shape (len(token_ids), V)."""
    block_size = engine.config.block_size
    context, rest = prompt.token_ids, list(token_ids)
    parts = [np.empty((0, engine.config.vocab_size), engine.parameters.dtype)]
    while rest:
        new = rest[: room_after(context, block_size)]
        parts.append(engine.logits([*context, *new[:-1]])[-len(new) :])
        rest = rest[len(new) :]
        context = slid([*context, *new], block_size, prompt.first)
    return np.concatenate(parts)


def logits_of_reply(engine: Engine, reply: Reply) -> FloatArray:
    """Return the logits of the tokens of a reply; see `LanguageModel.reply_logits`."""
    check_type("reply", reply, Reply)
    return logits_of_text(engine, reply.prompt, reply.token_ids)


def draw_texts(
    engine: Engine,
    prompt: Prompt,
    generators: Iterable[random.Random],
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return the token ids of one text per generator; each gives draws for the whole block."""
    _check_signal(signal)
    n_tokens, room = _limits(engine, prompt, config)
    if n_tokens > room:
        return _grown(engine, prompt, generators, config, signal)
    draws = [[rng.random() for _ in range(n_tokens)] for rng in generators]
    drawn = np.array(draws, np.float64).reshape(-1, n_tokens)
    return engine.sample(prompt.token_ids, drawn, config, **_ends(prompt, signal))


def draw_reply(
    engine: Engine,
    tokenizer: BaseTokenizer,
    prompt: Prompt,
    config: SamplingConfig,
    signal: StopSignal | None,
) -> Reply:
    """Return one text that continues a prompt, drawn from the seed of `config`."""
    check_type("prompt", prompt, Prompt)
    rng = random.Random(int(config.seed))
    (token_ids,) = draw_texts(engine, prompt, [rng], config, signal)
    n_tokens = max_tokens_after(prompt, config, engine.config.block_size)
    return reply_of(token_ids, tokenizer, n_tokens, config.stop, prompt)


def _check_signal(signal: StopSignal | None) -> None:
    if signal is not None:
        check_type("signal", signal, StopSignal)


def _limits(engine: Engine, prompt: Prompt, config: SamplingConfig) -> tuple[int, int]:
    """Return the most tokens of a text, and those within the block."""
    block_size = engine.config.block_size
    room = room_after(prompt.token_ids, block_size)
    return max_tokens_after(prompt, config, block_size), room


def _ends(prompt: Prompt, signal: StopSignal | None) -> dict[str, Any]:
    return {"stop": prompt.stop_token, "forbidden": prompt.forbidden, "signal": signal}


def _grown(
    engine: Engine,
    prompt: Prompt,
    generators: Iterable[random.Random],
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return the token ids of texts that may leave the block."""
    texts = [GrowingText(engine, prompt, rng, config, signal) for rng in generators]
    token_ids: list[list[int]] = [[] for _ in texts]
    while any(not text.is_finished for text in texts):
        going_on = [text.part for text in texts if not text.is_finished]
        engine.advance(going_on, engine.config.block_size)
        for ids, text in zip(token_ids, texts, strict=True):
            ids += [token.token_id for token in text.collect()]
            text.check()
    return token_ids


def _texts_by_seed(
    engine: Engine,
    tokenizer: BaseTokenizer,
    prompt: Prompt,
    num_samples: int,
    config: SamplingConfig,
    signal: StopSignal | None,
) -> Iterator[str]:
    """Yield texts of consecutive seeds, many in each call of the engine."""
    _check_signal(signal)
    n_tokens, room = _limits(engine, prompt, config)
    work = engine.config.n_params * max(1, min(n_tokens, room))
    n_together = max(1, min(SAMPLES_TOGETHER, WORK_TOGETHER // work))
    for first in range(0, num_samples, n_together):
        start = int(config.seed) + first
        seeds = range(start, start + min(n_together, num_samples - first))
        if n_tokens > room:
            grown = _grown(engine, prompt, map(random.Random, seeds), config, signal)
            yield from (text_of(ids, tokenizer, config.stop) for ids in grown)
            continue
        draws = uniforms(seeds, n_tokens)
        tokens, lengths = engine.draw(prompt.token_ids, draws, config, **_ends(prompt, signal))
        yield from texts_of(tokens, lengths, tokenizer, config.stop)


def _draw_and_rewind(
    engine: Engine,
    prompt: Prompt,
    rng: random.Random,
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[int]:
    """Return one text; advance `rng` by one draw per token, although all draws are taken ahead."""
    before = rng.getstate()
    (token_ids,) = draw_texts(engine, prompt, [rng], config, signal)
    rng.setstate(before)
    if config.temperature > 0.0:
        n_tokens = max_tokens_after(prompt, config, engine.config.block_size)
        for _ in range(min(len(token_ids) + 1, n_tokens)):  # the stop token is drawn too
            rng.random()
    return token_ids


def draw_samples(
    engine: Engine,
    tokenizer: BaseTokenizer,
    prompt: Prompt,
    num_samples: int,
    config: SamplingConfig,
    rng: random.Random | None,
    signal: StopSignal | None,
) -> list[str]:
    """Return texts of consecutive seeds, or where `rng` is given all drawn from it in turn."""
    num_samples = _checked_number(num_samples)
    if rng is None:
        return list(_texts_by_seed(engine, tokenizer, prompt, num_samples, config, signal))
    check_type("rng", rng, random.Random)
    samples = (_draw_and_rewind(engine, prompt, rng, config, signal) for _ in range(num_samples))
    return [text_of(token_ids, tokenizer, config.stop) for token_ids in samples]
