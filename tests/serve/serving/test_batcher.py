"""How the texts of many requests grow in one batch."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import microgpt
import pytest
from microgpt import LanguageModel, Prompt, SamplingConfig, SamplingError
from microgpt_serve.serving import batcher as batcher_module
from microgpt_serve.serving import metrics
from microgpt_serve.serving.batcher import Batcher, Grown
from microgpt_serve.serving.errors import BusyError, DeadlineError, ShuttingDownError
from small_models import untrained

TIMEOUT = 30.0


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A model whose texts seldom end before their last token."""
    return untrained(64, dtype="float32")


def configs(n: int, max_tokens: int = 40) -> list[SamplingConfig]:
    return [SamplingConfig(1.0, max_tokens=max_tokens, seed=i) for i in range(n)]


async def read(texts: AsyncGenerator[Grown]) -> list[Grown]:
    return [grown async for grown in texts]


def scenario(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def value(metric: Any) -> float:
    return float(next(iter(metric.collect())).samples[0].value)


def long_text(n_tokens: int = 100_000) -> tuple[list[Prompt], list[SamplingConfig]]:
    """Return the prompt and options of a text that never ends by itself."""
    return [Prompt([4, 0])], configs(1, n_tokens)


@pytest.mark.parametrize("pieces", [False, True])
def test_texts_of_many_requests_are_those_of_the_model_alone(
    model: LanguageModel, *, pieces: bool
) -> None:
    prompts = [model.prompt(text) for text in ("", "a", "ab", "abcd" * 5)]

    async def work() -> None:
        batcher = Batcher(7, 100, TIMEOUT)

        async def ask(prompt: Prompt, wait: float) -> list[Grown]:
            await asyncio.sleep(wait)
            return await read(batcher.generate(model, [prompt], configs(3, 150), pieces=pieces))

        answers = await asyncio.gather(
            *(ask(prompt, 0.003 * i) for i, prompt in enumerate(prompts * 2))
        )
        for prompt, answer in zip(prompts * 2, answers, strict=True):
            for i, config in enumerate(configs(3, 150)):
                expected = model.reply(prompt, config)
                grown = [each for each in answer if each.index == i]
                assert "".join(each.piece for each in grown) == expected.content
                assert grown[-1].finish_reason == expected.finish_reason
                assert grown[-1].n_tokens == expected.n_tokens
                assert len(grown) == 1 or pieces
        batcher.abort_all()

    scenario(work())
    assert value(metrics.BATCH_SIZE) == value(metrics.TOKENS_PER_SECOND) == 0


def test_a_stream_comes_in_few_pieces_of_many_tokens(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(1, 0, TIMEOUT)
        prompt, options = long_text(5000)
        grown = await read(batcher.generate(model, prompt, options, pieces=True))
        assert grown[0].n_tokens == 1  # at once
        assert grown[-1].n_tokens == 5000
        assert 2 < len(grown) < 1000
        batcher.abort_all()

    scenario(work())


def test_logits_come_with_the_tokens(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(2, 0, TIMEOUT)
        prompt = model.prompt("ab")
        (config,) = configs(1)
        grown = await read(
            batcher.generate(model, [prompt], [config], of_token=lambda token: token)
        )
        tokens = [token for each in grown for token in each.tokens]
        reply = model.reply(prompt, config)
        ended = replace(reply, token_ids=[*reply.token_ids, prompt.stop_token])
        assert reply.finish_reason == "stop"
        assert [token.token_id for token in tokens] == ended.token_ids
        assert [token.logits for token in tokens] == model.reply_logits(ended).tolist()
        batcher.abort_all()

    scenario(work())


def test_a_short_text_does_not_wait_for_a_long_one(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(2, 0, TIMEOUT)
        endless = batcher.generate(model, *long_text(), pieces=True)
        await anext(endless)
        await read(batcher.generate(model, [model.prompt("a")], configs(1)))
        assert (await anext(endless)).finish_reason is None
        await endless.aclose()
        batcher.abort_all()

    scenario(work())


def test_requests_of_many_texts_let_others_begin(model: LanguageModel) -> None:
    order: list[str] = []

    async def work() -> None:
        batcher = Batcher(2, 1, TIMEOUT)

        async def ask(name: str, n: int) -> None:
            async for grown in batcher.generate(model, [model.prompt("a")], configs(n)):
                assert grown.finish_reason
                order.append(name)

        many = asyncio.create_task(ask("many", 40))
        await asyncio.sleep(0)
        await ask("one", 1)
        await many
        batcher.abort_all()

    scenario(work())
    assert order.index("one") < 20
    assert len(order) == 41


def test_requests_beyond_the_queue_are_refused_until_one_ends(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(1, 1, TIMEOUT)
        running = batcher.generate(model, *long_text(), pieces=True)
        await anext(running)
        assert batcher.is_healthy
        waiting = asyncio.create_task(
            read(batcher.generate(model, [model.prompt("a")], configs(1)))
        )
        await asyncio.sleep(0.02)
        assert (value(metrics.IN_FLIGHT), value(metrics.QUEUED)) == (1, 1)
        assert not batcher.is_healthy
        with pytest.raises(BusyError):
            await read(batcher.generate(model, [model.prompt("a")], configs(1)))
        assert not waiting.done()
        await running.aclose()
        assert len(await waiting) == 1
        await asyncio.sleep(0.02)
        assert batcher.is_healthy
        assert (value(metrics.IN_FLIGHT), value(metrics.QUEUED)) == (0, 0)
        batcher.abort_all()

    scenario(work())


def test_a_cancelled_request_leaves_its_neighbours_as_they_are(model: LanguageModel) -> None:
    prompt, (config,) = model.prompt("b"), configs(1, 20_000)

    async def work() -> None:
        batcher = Batcher(8, 0, TIMEOUT)
        kept = asyncio.create_task(read(batcher.generate(model, [prompt], [config])))
        for _ in range(20):
            leaving = asyncio.create_task(read(batcher.generate(model, *long_text())))
            await asyncio.sleep(0.002)
            leaving.cancel()
            await asyncio.wait((leaving,))
        (grown,) = await kept
        assert grown.piece == model.reply(prompt, config).content
        batcher.abort_all()

    scenario(work())
    assert (value(metrics.IN_FLIGHT), value(metrics.QUEUED), value(metrics.BATCH_SIZE)) == (0, 0, 0)


def test_running_and_waiting_requests_that_miss_their_deadlines_raise(
    model: LanguageModel,
) -> None:
    async def work() -> None:
        batcher = Batcher(1, 1, 0.1)
        running = batcher.generate(model, *long_text(10**6), pieces=True)
        pieces = [await anext(running)]

        async def read_on() -> None:
            async for grown in running:
                pieces.append(grown)  # noqa: PERF401 - kept when an error follows

        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(read(batcher.generate(model, *long_text(10**6), pieces=True)))
        with pytest.raises(DeadlineError, match=r"longer than 0\.1 seconds"):
            await read_on()
        assert len(pieces) > 2  # the error comes after them
        with pytest.raises(DeadlineError):
            await waiting
        batcher.abort_all()

    scenario(work())


def test_what_a_request_did_before_counts_for_its_deadline(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(1, 1, TIMEOUT)
        since = asyncio.get_running_loop().time() - TIMEOUT
        with pytest.raises(DeadlineError):
            await read(batcher.generate(model, *long_text(10**6), since=since))
        batcher.abort_all()

    scenario(work())


def test_a_reader_that_stops_reading_keeps_no_place(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(1, 1, TIMEOUT)
        unread = batcher.generate(model, *long_text(500), pieces=True)
        first = await anext(unread)
        assert len(await read(batcher.generate(model, [model.prompt("a")], configs(1)))) == 1
        rest = await read(unread)
        assert rest[-1].n_tokens == 500
        assert len(first.piece + "".join(each.piece for each in rest)) <= 500
        batcher.abort_all()

    scenario(work())


def test_abort_reaches_running_waiting_and_unread_requests(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(1, 2, TIMEOUT)
        unread = batcher.generate(model, *long_text(), pieces=True)
        await anext(unread)
        waiting = asyncio.create_task(
            read(batcher.generate(model, [model.prompt("a")], configs(1)))
        )
        await asyncio.sleep(0.02)
        batcher.abort_all()
        assert not batcher.is_healthy
        for ended in (waiting, anext(unread)):
            with pytest.raises(ShuttingDownError):
                await ended
        with pytest.raises(ShuttingDownError):
            await read(batcher.generate(model, [model.prompt("a")], configs(1)))

    scenario(work())
    assert (value(metrics.IN_FLIGHT), value(metrics.QUEUED)) == (0, 0)


def test_prompt_that_does_not_fit_fails_alone(model: LanguageModel) -> None:
    async def work() -> None:
        batcher = Batcher(4, 0, TIMEOUT)
        good = asyncio.create_task(read(batcher.generate(model, [model.prompt("a")], configs(1))))
        with pytest.raises(microgpt.ContextLengthError):
            await read(batcher.generate(model, [Prompt([0] * 65)], configs(1)))
        assert len(await good) == 1
        batcher.abort_all()

    scenario(work())


def test_weights_that_are_not_finite_are_an_error_of_their_texts(model: LanguageModel) -> None:
    broken = untrained(16, dtype="float32")
    broken.parameters["lm_head"][:] = float("nan")

    async def work() -> None:
        batcher = Batcher(4, 0, TIMEOUT)
        good = asyncio.create_task(read(batcher.generate(model, [model.prompt("a")], configs(1))))
        with pytest.raises(SamplingError, match="logits are not finite"):
            await read(batcher.generate(broken, [broken.prompt("a")], configs(2)))
        assert len(await good) == 1
        batcher.abort_all()

    scenario(work())


def test_texts_of_a_replaced_model_go_on(model: LanguageModel) -> None:
    other = untrained(32, dtype="float32")

    async def work() -> None:
        batcher = Batcher(4, 0, TIMEOUT)
        old = asyncio.create_task(
            read(batcher.generate(model, [model.prompt("c")], configs(2, 3000)))
        )
        await asyncio.sleep(0.003)
        new = await read(batcher.generate(other, [other.prompt("c")], configs(2)))
        await old
        await read(batcher.generate(other, [other.prompt("c")], configs(1)))
        assert set(batcher._batches) == {other}  # the old model's memory is free
        for texts, each, options in ((old.result(), model, 3000), (new, other, 40)):
            expected = [each.reply(each.prompt("c"), config) for config in configs(2, options)]
            by_index = sorted(texts, key=lambda grown: grown.index)
            assert [grown.piece for grown in by_index] == [reply.content for reply in expected]
        batcher.abort_all()

    scenario(work())


def test_error_in_a_turn_reaches_its_requests_and_no_later_ones(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        batcher = Batcher(4, 0, TIMEOUT)
        with monkeypatch.context() as patch:
            patch.setattr(microgpt.TextBatch, "advance", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await read(batcher.generate(model, [model.prompt("a")], configs(2)))
        assert len(await read(batcher.generate(model, [model.prompt("a")], configs(2)))) == 2
        batcher.abort_all()

    scenario(work())
    assert (value(metrics.IN_FLIGHT), value(metrics.QUEUED), value(metrics.BATCH_SIZE)) == (0, 0, 0)


def test_few_prompts_are_read_between_two_turns(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "PROMPT_TOKENS", 50)
    joined: list[int] = []
    turn = Batcher._turn

    def spy(self: Batcher, joining: Sequence[Any], n_steps: int) -> Any:
        joined.append(len(joining))
        return turn(self, list(joining), n_steps)

    monkeypatch.setattr(Batcher, "_turn", spy)

    async def work() -> None:
        batcher = Batcher(64, 0, TIMEOUT)
        prompt = model.prompt("abcd" * 5)  # 21 tokens
        await asyncio.gather(
            *(read(batcher.generate(model, [prompt], configs(1))) for _ in range(10))
        )
        batcher.abort_all()

    scenario(work())
    assert max(joined) == 2
    assert sum(joined) == 10


def test_prompts_that_begin_alike_are_counted(model: LanguageModel) -> None:
    before = value(metrics.PREFIX_HITS), value(metrics.PREFIX_TOKENS)

    async def work() -> None:
        batcher = Batcher(1, 1, TIMEOUT)
        for text in ("abc", "abcd", "b"):
            await read(batcher.generate(model, [model.prompt(text)], configs(1, 5)))
        batcher.abort_all()

    scenario(work())
    assert value(metrics.PREFIX_HITS) - before[0] == 1  # BOS alone is not worth a copy
    assert value(metrics.PREFIX_TOKENS) - before[1] == 4  # BOS and abc
