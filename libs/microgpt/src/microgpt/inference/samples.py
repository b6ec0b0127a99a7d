"""Whole texts in one call of the engine: one, or many that continue the same prompt."""

import random
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from microgpt.checks import check_type, checked_integer
from microgpt.engines.base import Engine
from microgpt.engines.decoding import SamplingConfig, StopSignal, room_after, slid
from microgpt.errors import ConfigError
from microgpt.inference.prompt import Prompt
from microgpt.parameters import FloatArray

__all__ = [
    "WORK_TOGETHER",
    "draw_samples",
    "draw_texts",
    "logits_of_text",
    "max_tokens_after",
]

MAX_SAMPLES = 1_000_000  # of one call: all are returned at once
SAMPLES_TOGETHER = 1024  # at most, since their draws are in memory
WORK_TOGETHER = 1_000_000_000  # multiplications of one call: some 0.1 s, before Ctrl-C is obeyed


def max_tokens_after(prompt: Prompt, config: SamplingConfig, block_size: int) -> int:
    """Return the most tokens of a text that continues `prompt`."""
    room = room_after(prompt.token_ids, block_size)
    return room if config.max_tokens is None else config.max_tokens


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


def draw_texts(
    engine: Engine,
    prompt: Prompt,
    generators: Iterable[random.Random],
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return the token ids of one text per generator; each gives draws for the whole block."""
    if signal is not None:
        check_type("signal", signal, StopSignal)
    draw = partial(
        _draw_in_block,
        engine,
        config=config,
        stop=prompt.stop_token,
        forbidden=prompt.forbidden,
        signal=signal,
    )
    block_size = engine.config.block_size
    rngs = list(generators)
    room = room_after(prompt.token_ids, block_size)
    n_tokens = max_tokens_after(prompt, config, block_size)
    texts = draw(prompt.token_ids, rngs, min(n_tokens, room))
    for text, rng in zip(texts, rngs, strict=True):
        context, n_draws, more = prompt.token_ids, room, text
        while len(text) < n_tokens and len(more) == n_draws:  # the block is full, not the text
            context = slid([*context, *more], block_size, prompt.first)
            n_draws = min(n_tokens - len(text), room_after(context, block_size))
            (more,) = draw(context, [rng], n_draws)
            text.extend(more)
    return texts


def _draw_in_block(
    engine: Engine,
    token_ids: Sequence[int],
    rngs: Sequence[random.Random],
    n_draws: int,
    **options: Any,
) -> list[list[int]]:
    draws = [[rng.random() for _ in range(n_draws)] for rng in rngs]
    return engine.sample(token_ids, np.array(draws, np.float64).reshape(-1, n_draws), **options)


def _draw_by_seed(
    engine: Engine,
    prompt: Prompt,
    num_samples: int,
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return texts of consecutive seeds, several in each call of the engine."""
    seeds = range(int(config.seed), int(config.seed) + num_samples)
    n_tokens = max_tokens_after(prompt, config, engine.config.block_size)
    work = engine.config.n_params * max(1, min(n_tokens, engine.config.block_size))
    n_together = max(1, min(SAMPLES_TOGETHER, WORK_TOGETHER // work))
    texts = []
    for first in range(0, num_samples, n_together):
        generators = map(random.Random, seeds[first : first + n_together])
        texts += draw_texts(engine, prompt, generators, config, signal)
    return texts


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
    prompt: Prompt,
    num_samples: int,
    config: SamplingConfig,
    rng: random.Random | None,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return texts of consecutive seeds, or where `rng` is given all drawn from it in turn."""
    num_samples = _checked_number(num_samples)
    if rng is None:
        return _draw_by_seed(engine, prompt, num_samples, config, signal)
    check_type("rng", rng, random.Random)
    return [_draw_and_rewind(engine, prompt, rng, config, signal) for _ in range(num_samples)]
