"""Whole texts in one call of the engine: one, or many that continue the same prompt."""

import random
from collections.abc import Iterable

import numpy as np

from microgpt.checks import check_type
from microgpt.engines.base import Engine
from microgpt.engines.decoding import SamplingConfig, StopSignal, room_after
from microgpt.inference.prompt import Prompt

__all__ = ["WORK_TOGETHER", "draw_and_rewind", "draw_by_seed", "draw_texts", "max_tokens_after"]

SAMPLES_TOGETHER = 1024  # at most, since their draws are in memory
WORK_TOGETHER = 1_000_000_000  # multiplications of one call: some 0.1 s, before Ctrl-C is obeyed


def max_tokens_after(prompt: Prompt, config: SamplingConfig, block_size: int) -> int:
    """Return the most tokens of a text that continues `prompt`."""
    room = room_after(prompt.token_ids, block_size)
    return room if config.max_tokens is None else min(config.max_tokens, room)


def draw_texts(
    engine: Engine,
    prompt: Prompt,
    generators: Iterable[random.Random],
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return the token ids of one text per generator; each gives draws for the longest text."""
    if signal is not None:
        check_type("signal", signal, StopSignal)
    n_tokens = max_tokens_after(prompt, config, engine.config.block_size)
    draws = [[rng.random() for _ in range(n_tokens)] for rng in generators]
    return engine.sample(
        prompt.token_ids,
        np.array(draws, np.float64).reshape(-1, n_tokens),
        config,
        stop=prompt.stop_token,
        forbidden=prompt.forbidden,
        signal=signal,
    )


def draw_by_seed(
    engine: Engine,
    prompt: Prompt,
    num_samples: int,
    config: SamplingConfig,
    signal: StopSignal | None,
) -> list[list[int]]:
    """Return texts of consecutive seeds, several in each call of the engine."""
    seeds = range(int(config.seed), int(config.seed) + num_samples)
    n_tokens = max_tokens_after(prompt, config, engine.config.block_size)
    work = engine.config.n_params * max(1, n_tokens)
    n_together = max(1, min(SAMPLES_TOGETHER, WORK_TOGETHER // work))
    texts = []
    for first in range(0, num_samples, n_together):
        generators = map(random.Random, seeds[first : first + n_together])
        texts += draw_texts(engine, prompt, generators, config, signal)
    return texts


def draw_and_rewind(
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
