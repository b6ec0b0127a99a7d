"""Texts that a model continues together: each is the reply to its prompt."""

import copy
import gc
import itertools
import os
import pickle
import random
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from batch_cases import (
    CHARACTERS,
    SUBWORDS,
    Request,
    finish,
    model_of,
    random_request,
    random_requests,
    replies_of,
)
from engine_cases import Case, sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from microgpt import (
    ConfigError,
    ContextLengthError,
    LanguageModel,
    LiveText,
    PrefixCache,
    Prompt,
    SamplingConfig,
    SamplingError,
    StopSignal,
    TextBatch,
    TokenError,
)
from microgpt.engines import ENGINES, unavailable_engines
from microgpt.inference.batch import GrowingText

NAMES = [name for name in ENGINES if name != "auto" and name not in unavailable_engines()]
MODELS = {"characters": model_of(CHARACTERS), "subwords": model_of(SUBWORDS)}
TOKENIZERS = {"characters": CHARACTERS, "subwords": SUBWORDS}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
LONG = SamplingConfig(max_tokens=10**9, seed=1)
SPECIAL = tuple(range(CHARACTERS.n_plain, SUBWORDS.vocab_size))
ENDLESS = Prompt([0], forbidden=SPECIAL)  # each token is a character


class Watched:
    """A text of a batch, and what it has given so far."""

    def __init__(self, batch: TextBatch, request: Request, **options: Any) -> None:
        self.request, self.text = request, batch.add(*request, **options)
        self.pieces: list[str] = []
        self.token_ids: list[int] = []
        self.logits: list[Any] = []

    def collect(self) -> None:
        self.pieces.append(self.text.piece)
        self.token_ids += [token.token_id for token in self.text.tokens]
        self.logits += [token.logits for token in self.text.tokens]
        assert self.token_ids == self.text.token_ids

    def check(self, model: LanguageModel) -> None:
        expected = model.reply(*self.request)
        assert self.text.reply() == expected
        assert self.text.is_finished
        assert "".join(self.pieces) == expected.content
        assert self.token_ids == list(expected.token_ids)
        assert self.text.n_tokens == expected.n_tokens


def watched_to_their_ends(
    batch: TextBatch, requests: list[Request], choose: Callable[[list[int]], int], **options: Any
) -> list[Watched]:
    """Let texts join at any step, and continue them by any number of tokens."""
    waiting = list(requests)
    texts: list[Watched] = []
    while waiting or len(batch):
        n_new = min(len(waiting), choose([0, 1, 3]))
        texts += [Watched(batch, waiting.pop(), **options) for _ in range(n_new)]
        changed = batch.advance(choose([1, 2, 7, 100, 10**40]))
        for each in texts:
            if each.text in changed:
                each.collect()
    return texts


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
@settings(max_examples=150)
def test_texts_that_join_at_any_step_are_the_replies(kind: str, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    block_size = data.draw(st.sampled_from([1, 2, 12, 24]))
    model = model_of(TOKENIZERS[kind], block_size=block_size)
    requests = [
        each
        for each in random_requests(model, data.draw(st.integers(0, 9)), rng.getrandbits(32))
        if len(each.prompt.token_ids) <= block_size
    ]
    for each in watched_to_their_ends(model.batch(), requests, rng.choice):
        each.check(model)


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_continues_texts_as_it_replies(name: str) -> None:
    model = model_of(CHARACTERS, name, block_size=12)
    requests = random_requests(model, 8, 3)
    for each in watched_to_their_ends(model.batch(), requests, random.Random(1).choice):
        each.check(model)


@models
@pytest.mark.parametrize("threads", [1, 3])
def test_tokens_have_the_logits_of_a_stream_and_of_a_reply(
    model: LanguageModel, threads: int
) -> None:
    model = LanguageModel(model.tokenizer, model.parameters, threads=threads)
    requests = random_requests(model, 12, 5)
    texts = watched_to_their_ends(
        model.batch(), requests, random.Random(2).choice, keep_logits=True
    )
    for each in texts:
        each.check(model)
        stream = model.stream(*each.request)
        assert [list(token.logits) for _ in stream for token in stream.tokens] == each.logits
        logits = model.reply_logits(each.text.reply())
        expected = np.array(each.logits).reshape(logits.shape)
        if model.engine.has_exact_prefixes:
            assert logits.tolist() == expected.tolist()
        else:
            np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-12)


def test_logits_are_kept_only_on_demand() -> None:
    batch = MODELS["characters"].batch()
    text = batch.add(ENDLESS, SamplingConfig(max_tokens=3))
    batch.advance(2)
    assert [token.logits for token in text.tokens] == [(), ()]


@models
@pytest.mark.parametrize("stop", [(), ("never said",)])
def test_token_without_text_is_part_of_the_reply(
    model: LanguageModel, stop: tuple[str, ...]
) -> None:
    special = model.tokenizer.bos
    never = tuple(i for i in range(model.config.vocab_size) if i != special)
    request = Request(
        Prompt([0], stop_token=-1, forbidden=never), SamplingConfig(max_tokens=3, stop=stop)
    )
    (each,) = watched_to_their_ends(model.batch(), [request], max)
    each.check(model)
    assert each.token_ids == [special] * 3


# ---------------------------------------------------------------- ends


def test_advance_returns_the_texts_that_grew_or_ended() -> None:
    model = MODELS["characters"]
    batch = model.batch()
    assert batch.advance() == []
    texts = [batch.add(ENDLESS, SamplingConfig(max_tokens=n)) for n in (1, 3, 2)]
    assert [len(batch.advance()), len(batch)] == [3, 2]
    assert [text.is_finished for text in texts] == [True, False, False]
    assert batch.advance() == texts[1:]
    assert batch.advance() == [texts[1]]
    assert (len(batch), batch.advance()) == (0, [])


def test_text_of_a_held_back_beginning_of_a_stop_text_has_not_grown() -> None:
    model = MODELS["characters"]
    content = model.reply(ENDLESS, SamplingConfig(max_tokens=3)).content
    batch = model.batch()
    text = batch.add(ENDLESS, SamplingConfig(max_tokens=3, stop=(content + "x",)))
    assert (batch.advance(), text.n_tokens, text.piece) == ([], 1, "")
    batch.advance()
    assert batch.advance() == [text]
    assert (text.piece, text.token_ids) == (content, list(text.reply().token_ids))


@models
def test_signal_ends_one_text_and_the_others_go_on(model: LanguageModel) -> None:
    batch = model.batch()
    signal = StopSignal()
    other = Watched(batch, Request(ENDLESS, SamplingConfig(max_tokens=50)))
    ended = batch.add(ENDLESS, LONG, signal=signal)
    batch.advance(2)
    other.collect()
    signal.set()
    assert ended in batch.advance()
    other.collect()
    assert (ended.n_tokens, ended.finish_reason, len(batch)) == (2, "stop", 1)
    whole = model.reply(ENDLESS, SamplingConfig(max_tokens=2, seed=1))
    assert ended.reply().content == whole.content
    while len(batch):
        batch.advance()
        other.collect()
    other.check(model)


def test_signal_that_is_set_before_ends_a_text_without_tokens() -> None:
    signal = StopSignal()
    signal.set()
    batch = MODELS["characters"].batch()
    text = batch.add(ENDLESS, LONG, signal=signal)
    assert batch.advance(5) == [text]
    assert (text.reply().content, text.n_tokens) == ("", 0)


def test_signal_of_an_earlier_reply_ends_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CHARACTERS)
    signal = StopSignal()
    config = SamplingConfig(max_tokens=9)
    expected = model.reply(ENDLESS, config)
    model.reply(ENDLESS, config, signal=signal)
    advance = model.engine.advance

    def set_late(*arguments: Any) -> None:
        signal.set()
        advance(*arguments)

    monkeypatch.setattr(model.engine, "advance", set_late)
    assert model.reply(ENDLESS, config) == expected


@models
def test_text_that_is_removed_is_the_reply_so_far(model: LanguageModel) -> None:
    batch = model.batch()
    kept = batch.add(ENDLESS, SamplingConfig(max_tokens=9))
    text = batch.add(ENDLESS, LONG)
    batch.advance(4)
    batch.remove(text)
    batch.remove(text)
    assert (len(batch), text.is_finished, text.finish_reason) == (1, True, "stop")
    whole = model.reply(ENDLESS, SamplingConfig(max_tokens=4, seed=1))
    assert (text.reply().content, text.token_ids) == (whole.content, list(whole.token_ids))
    assert text not in batch.advance(100)
    assert text.n_tokens == 4
    assert kept.reply() == model.reply(ENDLESS, SamplingConfig(max_tokens=9))


def test_text_that_is_removed_gives_what_was_held_back() -> None:
    model = MODELS["characters"]
    content = model.reply(ENDLESS, SamplingConfig(max_tokens=3)).content
    batch = model.batch()
    text = batch.add(ENDLESS, SamplingConfig(max_tokens=30, stop=(content + "x",)))
    batch.advance(3)
    assert text.piece == ""
    batch.remove(text)
    assert text.piece == text.reply().content == content


def test_reply_to_an_unfinished_text_is_refused() -> None:
    batch = MODELS["characters"].batch()
    text = batch.add(ENDLESS, LONG)
    batch.advance()
    with pytest.raises(SamplingError, match="the text is not finished; call `advance` or `remove`"):
        text.reply()


@pytest.mark.parametrize("name", NAMES)
def test_logits_that_are_not_finite_end_a_text_with_an_error(name: str) -> None:
    model = model_of(CHARACTERS, name)
    model.parameters["wte"][1] = np.nan
    batch = model.batch()
    bad, good = batch.add(Prompt([1]), LONG), batch.add(Prompt([0], forbidden=(1, *SPECIAL)), LONG)
    batch.advance(2)
    assert (bad.is_finished, bad.token_ids, good.n_tokens) == (True, [], 2)
    with pytest.raises(SamplingError, match="logits are not finite"):
        bad.reply()


def test_error_half_way_leaves_the_other_texts_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(CHARACTERS)
    requests = [
        Request(ENDLESS, SamplingConfig(max_tokens=n, seed=n % 3)) for n in (90, 70, 80, 60, 90)
    ]
    prefixes = PrefixCache()
    batch = model.batch(prefixes)
    texts = [batch.add(*request) for request in requests]
    errors = itertools.cycle([None, MemoryError("no memory"), None])
    begin = model.engine.begin

    def begin_or_fail(*arguments: Any, **options: Any) -> Any:
        if error := next(errors):
            raise error
        return begin(*arguments, **options)

    monkeypatch.setattr(model.engine, "begin", begin_or_fail)
    n_errors = 0
    while len(batch):
        try:
            batch.advance(5)
        except MemoryError:
            n_errors += 1
    assert n_errors > 1
    monkeypatch.undo()
    expected = [model.reply(*request) for request in requests]
    assert [text.reply() for text in texts] == expected
    assert replies_of(model.batch(prefixes), requests) == expected
    assert prefixes.n_hits > 1


# ---------------------------------------------------------------- replies


@models
@pytest.mark.parametrize("n_together", [1, 3, 10**30])
def test_replies_come_in_the_order_of_their_prompts(model: LanguageModel, n_together: int) -> None:
    requests = random_requests(model, 15, 11)
    prompts, configs = zip(*requests, strict=True)
    n_most = 0
    batch = model.batch()

    def read() -> Iterator[Prompt]:
        nonlocal n_most
        for prompt in prompts:
            n_most = max(n_most, len(batch) + 1)
            yield prompt

    replies = list(batch.replies(read(), configs, min(n_together, 2**60)))
    assert replies == [model.reply(*request) for request in requests]
    assert n_most == min(n_together, 15)


def test_replies_have_places_beside_other_texts() -> None:
    model = MODELS["characters"]
    batch = model.batch()
    others = [batch.add(ENDLESS, LONG) for _ in range(3)]
    request = random_request(model, random.Random(1))
    replies = batch.replies([request.prompt] * 4, itertools.repeat(request.config), 2)
    assert list(replies) == [model.reply(*request)] * 4
    assert len(batch) == len(others)


def test_replies_that_are_not_read_to_the_end_leave_the_batch() -> None:
    batch = MODELS["characters"].batch()
    config = SamplingConfig(max_tokens=1)
    replies = batch.replies([ENDLESS] * 5, itertools.chain([config], itertools.repeat(LONG)), 4)
    assert next(replies).n_tokens == 1
    assert len(batch) == 3
    del replies
    assert len(batch) == 0


def test_fewer_configs_than_prompts_are_refused() -> None:
    batch = MODELS["characters"].batch()
    with pytest.raises(ConfigError, match="there are fewer configs than prompts"):
        list(batch.replies([ENDLESS] * 2, [SamplingConfig()], 4))
    assert len(batch) == 0
    assert list(batch.replies([], [SamplingConfig()], 4)) == []


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda b: b.advance(0), "n_tokens is 0, expected an integer of at least 1"),
        (lambda b: b.advance(-1), "n_tokens is -1, expected an integer of at least 1"),
        (lambda b: b.advance(1.5), "n_tokens is 1.5, expected an integer"),
        (lambda b: b.add("text"), "prompt is 'text', expected a Prompt"),
        (lambda b: b.add(ENDLESS, 0), "config is 0, expected a SamplingConfig"),
        (lambda b: b.add(ENDLESS, signal=True), "signal is True, expected a StopSignal"),
        (lambda b: next(b.replies([ENDLESS], [LONG], 0)), "n_together is 0, expected an integer"),
        (
            lambda b: TextBatch(b._engine, b._tokenizer, cast("Any", 64)),
            "prefixes is 64, expected a PrefixCache",
        ),
    ],
)
def test_argument_out_of_its_domain_is_refused(
    use: Callable[[TextBatch], object], message: str
) -> None:
    batch = MODELS["characters"].batch()
    batch.add(ENDLESS, LONG)
    with pytest.raises(ConfigError, match=message):
        use(batch)
    assert len(batch) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (Prompt([0] * 25), ContextLengthError),
        (Prompt([0, 99]), TokenError),
        (Prompt([-1]), TokenError),
        (Prompt([0], forbidden=tuple(range(CHARACTERS.vocab_size))), TokenError),
    ],
)
def test_prompt_that_cannot_be_continued_is_refused(
    name: str, prompt: Prompt, error: type[Exception]
) -> None:
    model = model_of(CHARACTERS, name)
    batch = model.batch()
    for use in (batch.add, model.reply):
        with pytest.raises(error):
            use(prompt)
    assert len(batch) == 0


@pytest.mark.parametrize("name", NAMES)
def test_ids_that_are_no_tokens_forbid_nothing_and_end_nothing(name: str) -> None:
    model = model_of(CHARACTERS, name)
    config = SamplingConfig(max_tokens=9)
    strange = Prompt([0], forbidden=(-1, 10**30, *SPECIAL), stop_token=2**64 + 1)
    batch = model.batch()
    text = batch.add(strange, config)
    finish(batch)
    expected = list(model.reply(ENDLESS, config).token_ids)
    assert text.token_ids == list(model.reply(strange, config).token_ids) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocab_size", [1, 2])
@pytest.mark.parametrize("block_size", [1, 2])
def test_smallest_models_continue_texts(name: str, vocab_size: int, block_size: int) -> None:
    engine = Case(sizes(vocab_size, 1, 1, 1, block_size), [1]).engine(name)
    for temperature, top_k in itertools.product((0, 1e-300, 1.0), (None, 1, 10**30)):
        config = SamplingConfig(temperature, top_k, 0.5, max_tokens=7)
        growing = GrowingText(engine, Prompt([0]), random.Random(1), config)
        token_ids = []
        while not growing.is_finished:
            engine.advance([growing.part], 2)
            token_ids += [token.token_id for token in growing.collect()]
        assert len(token_ids) == 7
        assert set(token_ids) <= set(range(vocab_size))


# ---------------------------------------------------------------- memory, copies, processes


def test_finished_text_frees_the_memory_of_its_context() -> None:
    model = model_of(CHARACTERS, block_size=20_000)
    batch = model.batch()
    tracemalloc.start()
    try:
        texts = [batch.add(ENDLESS, SamplingConfig(max_tokens=2)) for _ in range(3)]
        finish(batch)
        n_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(text.n_tokens == 2 for text in texts)
    assert n_bytes < model.engine.new_cache().n_bytes


def test_batch_that_is_dropped_is_freed_at_once() -> None:
    batch = MODELS["characters"].batch()
    texts = [weakref.ref(batch.add(ENDLESS, LONG)) for _ in range(3)]
    batch.advance(50)
    gc.disable()
    try:
        del batch
        assert [text() for text in texts] == [None] * 3
    finally:
        gc.enable()


def test_batches_and_their_texts_are_short_where_they_are_printed() -> None:
    batch = MODELS["characters"].batch()
    text = batch.add(ENDLESS, SamplingConfig(max_tokens=1))
    assert (repr(batch), repr(text)) == (
        "<TextBatch: 1 unfinished text>",
        "<LiveText: '', 0 tokens, unfinished>",
    )
    batch.advance()
    assert repr(text) == f"<LiveText: {text.reply().content!r}, 1 token, length>"
    long = batch.add(ENDLESS, SamplingConfig(max_tokens=500))
    finish(batch)
    assert len(long.reply().content) == 500
    assert len(repr(long)) < 120


def test_copies_of_a_model_continue_texts_alike() -> None:
    model = model_of(CHARACTERS)
    requests = random_requests(model, 5, 4)
    expected = replies_of(model.batch(), requests)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - its own bytes
        model.parameters.flat[:] = 0
        assert replies_of(other.batch(), requests) == expected
        model = other


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_texts_go_on_in_a_forked_process() -> None:
    model = model_of(CHARACTERS)
    requests = random_requests(model, 20, 6)
    batch = model.batch()
    texts = [batch.add(*request) for request in requests]
    batch.advance(2)
    if (child := os.fork()) == 0:
        try:
            finish(batch)
            same = [text.reply() for text in texts] == [model.reply(*each) for each in requests]
        except BaseException:  # noqa: BLE001 - the child must not run the other tests
            same = False
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finish(batch)
    assert [text.reply() for text in texts] == [model.reply(*each) for each in requests]


def test_texts_of_several_threads_share_an_engine() -> None:
    model = MODELS["characters"]
    requests = random_requests(model, 12, 8)
    expected = [model.reply(*request) for request in requests]

    def use(number: int) -> bool:
        if number % 2:
            return [model.reply(*request) for request in requests] == expected
        return replies_of(model.batch(), requests) == expected

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, range(24)))


def test_live_text_is_the_one_that_was_added() -> None:
    batch = MODELS["characters"].batch()
    text = batch.add(ENDLESS)
    assert isinstance(text, LiveText)
    assert text.prompt is ENDLESS
    assert (text.piece, text.tokens, text.token_ids, text.finish_reason) == ("", [], [], None)
