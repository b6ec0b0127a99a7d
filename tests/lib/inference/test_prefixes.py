"""Prompts that begin as earlier texts: the replies are the same, and less is read."""

import copy
import pickle
import random
import tracemalloc
from collections.abc import Sequence
from time import process_time
from typing import Any

import pytest
from batch_cases import (
    CHARACTERS,
    SUBWORDS,
    Request,
    finish,
    model_of,
    random_requests,
    replies_of,
)
from engine_cases import Case, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from microgpt import (
    ConfigError,
    LanguageModel,
    Message,
    PrefixCache,
    Prompt,
    Reply,
    SamplingConfig,
    TokenError,
)
from microgpt.engines import ENGINES, native_inference, unavailable_engines
from microgpt.engines.base import Engine
from microgpt.inference.prefixes import MIN_REUSED
from texts import assistant, user

NAMES = [name for name in ENGINES if name != "auto" and name not in unavailable_engines()]
EXACT = [name for name in NAMES if name != "vectorized"]
FORBIDDEN = tuple(range(CHARACTERS.n_plain, CHARACTERS.vocab_size))
SHORT = SamplingConfig(max_tokens=4)
WIDE = model_of(SUBWORDS).engine
TOKEN_IDS = st.sampled_from([1, 255, 256])


def with_logits(model: LanguageModel, prefixes: PrefixCache | None, request: Request) -> Any:
    """Return a reply, and the logits that its tokens were chosen from."""
    batch = model.batch(prefixes)
    text = batch.add(*request, keep_logits=True)
    logits = []
    while len(batch):
        batch.advance(3)
        logits += [token.logits for token in text.tokens]
    return text.reply(), logits


def filled(engine: Engine, prefixes: PrefixCache, token_ids: Sequence[int]) -> Any:
    """Keep the cache of a text of these tokens, and return it."""
    cache = prefixes.cache_for(engine, token_ids)
    engine.prefill(token_ids[cache.length :], cache)
    prefixes.keep(token_ids, cache)
    return cache


def known(engine: Engine, prefixes: PrefixCache, token_ids: Sequence[int]) -> int:
    """Return how many tokens of a prompt are known."""
    return int(prefixes.cache_for(engine, token_ids).length)


def engine_of(block_size: int = 40, name: str = "auto") -> Engine:
    return model_of(CHARACTERS, name, block_size).engine


def test_copied_or_pickled_cache_is_empty_and_serves_another_model() -> None:
    engine, prefixes = engine_of(), PrefixCache(max_bytes=1 << 30)
    filled(engine, prefixes, [*range(9)])
    assert known(engine, prefixes, [*range(9)]) == 8
    assert repr(prefixes) == f"<PrefixCache: 1 text, 1 hit, {prefixes.n_bytes:,} bytes>"
    for made in (copy.copy(prefixes), pickle.loads(pickle.dumps(prefixes))):  # noqa: S301 - ours
        assert repr(made) == "<PrefixCache: 0 texts, 0 hits, 0 bytes>"
        filled(engine_of(), made, [*range(9)])
        assert len(made) == 1
    assert (len(prefixes), copy.copy(PrefixCache(5))._max_bytes) == (1, 5)


# ---------------------------------------------------------------- the same texts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokenizer", [CHARACTERS, SUBWORDS], ids=["characters", "subwords"])
def test_replies_and_logits_are_the_same_bit_for_bit(name: str, tokenizer: Any) -> None:
    model = model_of(tokenizer, name)
    prefixes = PrefixCache()
    n_requests = 6 if name == "scalar" else 20
    for request in random_requests(model, n_requests, 1) * 2:
        expected = with_logits(model, None, request)
        assert with_logits(model, prefixes, request) == expected
        assert expected[0] == model.reply(*request)
    assert (prefixes.n_hits > n_requests // 2) == (name in EXACT)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 12, 24]), st.sampled_from([0, 30_000, 2**26]))
@settings(max_examples=60)
def test_texts_of_any_company_with_any_memory_are_the_replies(
    seed: int, block_size: int, max_bytes: int
) -> None:
    model = model_of(CHARACTERS, block_size=block_size)
    requests = [
        each
        for each in random_requests(model, 12, seed)
        if len(each.prompt.token_ids) <= block_size
    ]
    prefixes = PrefixCache(max_bytes)
    expected = [model.reply(*request) for request in requests]
    for _ in range(2):
        assert replies_of(model.batch(prefixes), requests) == expected
        assert prefixes.n_bytes <= max_bytes


def test_threads_that_read_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_inference, "FLOPS_PER_THREAD", 1.0)
    monkeypatch.setattr(native_inference, "_usable_cores", lambda: 3)
    one, three = (model_of(CHARACTERS, block_size=40, threads=n) for n in (1, 3))
    requests = random_requests(one, 20, 2)
    expected = [one.reply(*request) for request in requests]
    for model in (one, three):
        prefixes = PrefixCache()
        for _ in range(2):
            assert replies_of(model.batch(prefixes), requests) == expected
        assert prefixes.n_hits > 10


def test_conversation_reads_only_what_is_new() -> None:
    model = model_of(CHARACTERS, block_size=400)
    prefixes = PrefixCache()
    messages: list[Message] = []
    n_read = 0
    for number in range(8):
        messages.append(user("abc fed"[: number + 1]))
        prompt = model.prompt(messages)
        batch = model.batch(prefixes)
        before = prefixes.n_reused
        text = batch.add(prompt, SHORT)
        n_read += len(prompt.token_ids) - (prefixes.n_reused - before)
        finish(batch)
        assert text.reply() == model.reply(prompt, SHORT)
        messages.append(assistant(text.reply().content))
    assert prefixes.n_hits == 7
    assert n_read == len(prompt.token_ids) - prefixes.n_reused + sum_of_earlier(model, messages)
    assert len(prefixes) == 1  # each turn begins as the one before, which it replaces


def sum_of_earlier(model: LanguageModel, messages: list[Message]) -> int:
    """Return the tokens of all prompts of a conversation but the last."""
    return sum(len(model.prompt(messages[:n]).token_ids) for n in range(1, len(messages) - 2, 2))


def test_forks_of_one_beginning_do_not_change_each_other() -> None:
    model = model_of(CHARACTERS, block_size=60)
    prefixes = PrefixCache()
    batch = model.batch(prefixes)
    beginning = batch.add(model.prompt("abc def abc def"), SHORT)
    finish(batch)
    assert beginning.reply() == model.reply(model.prompt("abc def abc def"), SHORT)
    requests = [
        Request(model.prompt("abc def" + end), SamplingConfig(seed=seed))
        for seed, end in enumerate([" fed", " fed", "", ".", " abc def", "c", " abc de"])
    ]
    assert replies_of(batch, requests) == [model.reply(*request) for request in requests]
    assert prefixes.n_hits == len(requests)


def test_repeated_prompt_is_read_from_its_last_token() -> None:
    model = model_of(CHARACTERS)
    prefixes = PrefixCache()
    prompt = model.prompt("abc def")
    for seed in range(4):
        config = SamplingConfig(seed=seed, max_tokens=3)
        (reply,) = replies_of(model.batch(prefixes), [Request(prompt, config)])
        assert reply == model.reply(prompt, config)
        assert prefixes.n_reused == seed * (len(prompt.token_ids) - 1)


def test_context_that_slides_is_known_again() -> None:
    model = model_of(CHARACTERS)
    prefixes = PrefixCache()
    request = Request(Prompt([0], forbidden=FORBIDDEN), SamplingConfig(max_tokens=100, seed=5))
    first, second = (replies_of(model.batch(prefixes), [request]) for _ in range(2))
    assert first == second == [model.reply(*request)]
    # Its first context is of one token, and each later one of half a block.
    assert prefixes.n_reused == prefixes.n_hits * (model.config.block_size // 2 - 1)
    assert prefixes.n_hits == 6


@pytest.mark.parametrize("name", EXACT)
def test_text_whose_logits_are_not_finite_is_not_kept(name: str) -> None:
    model = model_of(CHARACTERS, name)
    model.parameters["wte"][1] = float("nan")
    prefixes = PrefixCache()
    batch = model.batch(prefixes)
    text = batch.add(Prompt([0, 0, 0, 0, 0, 1]), SHORT)
    finish(batch)
    assert text.is_finished
    assert len(prefixes) == 0


def test_removed_text_is_kept() -> None:
    model = model_of(CHARACTERS)
    prefixes = PrefixCache()
    batch = model.batch(prefixes)
    text = batch.add(Prompt([0] * 6, forbidden=FORBIDDEN), SamplingConfig(max_tokens=10))
    batch.advance(3)
    batch.remove(text)
    token_ids = [0] * 6 + text.token_ids
    assert known(model.engine, prefixes, [*token_ids, 0]) == len(token_ids)


def test_text_that_a_stop_text_ends_is_kept() -> None:
    model = model_of(CHARACTERS)
    content = model.reply(Prompt([0] * 6, forbidden=FORBIDDEN), SHORT).content
    prefixes = PrefixCache()
    config = SamplingConfig(max_tokens=10, stop=(content[:2],))
    replies_of(model.batch(prefixes), [Request(Prompt([0] * 6, forbidden=FORBIDDEN), config)])
    token_ids = [0] * 6 + model.tokenizer.encode(content[:2])
    assert known(model.engine, prefixes, [*token_ids, 0]) == len(token_ids)


def test_engine_of_other_sums_reuses_nothing() -> None:
    engine = engine_of(name="vectorized")
    prefixes = PrefixCache()
    filled(engine, prefixes, [1, 2, 3, 4, 5, 6])
    assert (len(prefixes), prefixes.n_bytes, known(engine, prefixes, [1, 2, 3, 4, 5, 6])) == (
        0,
        0,
        0,
    )


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("name", EXACT)
def test_longest_known_beginning_is_taken_but_for_the_last_token(name: str) -> None:
    engine = engine_of(name=name)
    prefixes = PrefixCache()
    filled(engine, prefixes, [1, 2, 3, 4, 5])
    filled(engine, prefixes, [1, 2, 3, 4, 0, 7, 6, 5])
    filled(engine, prefixes, [1, 2, 3, 4, 0, 1, 1])
    filled(engine, prefixes, [1, 2, 3, 4, 0, 7, 7, 7, 7])
    assert known(engine, prefixes, [1, 2, 3, 4, 0, 7, 6, 0]) == 7
    assert known(engine, prefixes, [1, 2, 3, 4, 0, 7, 6, 5]) == 7
    assert known(engine, prefixes, [1, 2, 3, 4, 0, 7, 6, 5, 4]) == 8
    assert known(engine, prefixes, [1, 2, 3, 4, 6]) == 4
    assert known(engine, prefixes, [1, 2, 3, 6]) == 0  # fewer than pay


@given(
    st.lists(st.lists(TOKEN_IDS, min_size=1, max_size=12), max_size=12),
    st.lists(TOKEN_IDS, min_size=1, max_size=12),
)
def test_known_beginning_is_the_longest_of_all_texts(
    texts: list[list[int]], prompt: list[int]
) -> None:
    prefixes = PrefixCache()
    for text in texts:
        filled(WIDE, prefixes, text)
    n_common = [
        next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), None)
        or (min(len(text), len(prompt)) if text[0] == prompt[0] else 0)
        for text in texts
    ]
    expected = min(max(n_common, default=0), len(prompt) - 1)
    n_hits, n_reused = prefixes.n_hits, prefixes.n_reused
    cache = prefixes.cache_for(WIDE, prompt)
    assert cache.length == (expected if expected >= MIN_REUSED else 0)
    assert prefixes.n_hits - n_hits == (cache.length > 0)
    assert prefixes.n_reused - n_reused == cache.length
    logits = WIDE.prefill(prompt[cache.length :], cache)
    assert logits == WIDE.prefill(prompt, WIDE.new_cache())
    kept = {tuple(text) for text in texts}
    kept -= {a for a in kept for b in kept if a != b and b[: len(a)] == a}
    assert len(prefixes) == len(kept)


def test_beginning_of_a_longer_text_is_replaced_by_it_and_not_kept_after_it() -> None:
    engine = engine_of()
    prefixes = PrefixCache()
    filled(engine, prefixes, [1, 2, 3, 4, 5])
    n_bytes = prefixes.n_bytes
    filled(engine, prefixes, [1, 2, 3, 4, 5, 6])
    assert (len(prefixes), prefixes.n_bytes > n_bytes) == (1, True)
    n_bytes = prefixes.n_bytes
    for token_ids in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1]):
        filled(engine, prefixes, token_ids)
        assert (len(prefixes), prefixes.n_bytes) == (1, n_bytes)
    assert known(engine, prefixes, [1, 2, 3, 4, 5, 6, 7]) == 6


def test_texts_not_used_for_the_longest_time_are_dropped() -> None:
    engine = engine_of()
    one = PrefixCache()
    filled(engine, one, [0] * 9)
    prefixes = PrefixCache(3 * one.n_bytes)
    for first in (1, 2, 3):
        filled(engine, prefixes, [first] * 9)
    assert known(engine, prefixes, [1] * 6) == 5  # used now
    prefixes.keep([2] * 6, engine.fork(filled(engine, PrefixCache(), [2] * 9), 6))  # and this one
    filled(engine, prefixes, [4] * 9)
    assert [known(engine, prefixes, [first] * 10) for first in (1, 2, 3, 4)] == [9, 9, 0, 9]
    filled(engine, prefixes, [5] * 9)
    assert [known(engine, prefixes, [first] * 10) for first in (1, 2, 4, 5)] == [0, 9, 9, 9]
    assert len(prefixes) == 3
    assert prefixes.n_bytes <= 3 * one.n_bytes


def test_text_larger_than_the_memory_drops_no_other() -> None:
    engine = engine_of()
    one = PrefixCache()
    filled(engine, one, [1] * 9)
    prefixes = PrefixCache(one.n_bytes)
    filled(engine, prefixes, [1] * 9)
    filled(engine, prefixes, [2] * 10)
    assert known(engine, prefixes, [1] * 10) == 9


def test_cache_without_memory_keeps_nothing() -> None:
    engine = engine_of()
    prefixes = PrefixCache(0)
    filled(engine, prefixes, [1] * 9)
    assert (len(prefixes), prefixes.n_bytes, known(engine, prefixes, [1] * 9)) == (0, 0, 0)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("block_size", [8, 200])
def test_memory_is_within_max_bytes(name: str, block_size: int) -> None:
    """What is counted is what is allocated, also where the objects are larger than the numbers."""
    engine = model_of(SUBWORDS if name == "native" else CHARACTERS, name, block_size).engine
    rng = random.Random(1)
    texts = [[rng.randrange(8) for _ in range(7)] for _ in range(60)]
    prefixes = PrefixCache(max_bytes := 10**6 if name == "scalar" else 600_000)
    for token_ids in texts[-10:]:
        filled(engine, PrefixCache(), token_ids)  # the engine's own memory
    tracemalloc.start()
    try:
        for token_ids in texts:
            filled(engine, prefixes, token_ids)
        n_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 < len(prefixes) <= 60
    assert n_bytes <= prefixes.n_bytes <= max_bytes


def test_many_texts_cost_far_less_than_what_they_save() -> None:
    rng = random.Random(3)
    engine = Case(sizes(100, 64, 4, 2, 512), [1]).engine("auto", "float32", threads=1)
    texts = [[0, 1, *(rng.randrange(100) for _ in range(400))] for _ in range(300)]
    prefixes = PrefixCache(2**40)
    source = filled(engine, prefixes, texts[0])
    for token_ids in texts:
        prefixes.keep(token_ids, source)

    def seconds(use: Any) -> float:
        times = []
        for _ in range(5):
            start = process_time()
            for token_ids in texts[::30]:
                use([*token_ids[:300], 1, 2])
            times.append(process_time() - start)
        return min(times)

    saved = seconds(lambda ids: engine.prefill(ids, engine.new_cache()))
    spent = seconds(lambda ids: prefixes.keep(ids, prefixes.cache_for(engine, ids)))
    assert spent < saved / 5


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("max_bytes", [-1, 1.5, "64", None])
def test_memory_that_is_no_size_is_refused(max_bytes: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_bytes is .*, expected an integer of at least 0"):
        PrefixCache(max_bytes)


@pytest.mark.parametrize("name", NAMES)
def test_cache_of_another_model_is_refused(name: str) -> None:
    prefixes = PrefixCache()
    first, second = (model_of(CHARACTERS, name) for _ in range(2))
    replies_of(first.batch(prefixes), random_requests(first, 2, 1))
    with pytest.raises(ConfigError, match="the prefix cache belongs to another model"):
        second.batch(prefixes).add(second.prompt("abc"))


def test_tokens_that_do_not_exist_are_refused_and_not_counted() -> None:
    engine = engine_of()
    prefixes = PrefixCache()
    filled(engine, prefixes, [1] * 9)
    for strange in (-1, 99, 2**40):
        with pytest.raises(TokenError):
            prefixes.cache_for(engine, [1] * 8 + [strange])
    assert prefixes.n_hits == 0


def test_reply_of_a_known_prompt_has_its_prompt() -> None:
    model = model_of(CHARACTERS)
    prompt = model.prompt("abc def")
    prefixes = PrefixCache()
    for _ in range(2):
        (reply,) = replies_of(model.batch(prefixes), [Request(prompt, SHORT)])
        assert isinstance(reply, Reply)
        assert reply.prompt is prompt
