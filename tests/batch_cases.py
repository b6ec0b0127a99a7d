"""Small models with random weights, and requests of many kinds for them."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from engine_cases import Case, sizes
from microgpt import LanguageModel, LiveText, Prompt, Reply, SamplingConfig, TextBatch
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.data import BaseTokenizer, Tokenizer
from texts import assistant, user

CHARACTERS = Tokenizer.from_texts(["abcdef ."], is_chat=True)
SUBWORDS = SubwordTokenizer.from_texts(["größe 👍 banana ananas"] * 3, 275, is_chat=True)
TEXTS = {CHARACTERS: ("", "a", "fed cab", "bad. a"), SUBWORDS: ("", "größe", "banana 👍", "an")}


def model_of(
    tokenizer: BaseTokenizer, engine: str = "auto", block_size: int = 24, threads: int | None = None
) -> LanguageModel:
    case = Case(sizes(tokenizer.vocab_size, 8, 2, 2, block_size), [1])
    return LanguageModel(tokenizer, case.parameters("float64"), engine=engine, threads=threads)


class Request(NamedTuple):
    """What a text is made of."""

    prompt: Prompt
    config: SamplingConfig


def random_request(model: LanguageModel, rng: random.Random) -> Request:
    """Return a prompt of a text or of messages, and options that end texts in every way."""
    texts = TEXTS[model.tokenizer]
    block_size = model.config.block_size
    if rng.random() < 0.5 and block_size >= 12:
        turns = [user(rng.choice(texts)), assistant(rng.choice(texts)), user(rng.choice(texts))]
        prompt = model.prompt(turns[rng.choice((0, 2)) :], too_long="truncate")
    else:
        prompt = model.prompt(rng.choice(texts), too_long="truncate")
    config = SamplingConfig(
        temperature=rng.choice((0, 0.5, 1.5)),
        top_k=rng.choice((None, 3, 10**30)),
        top_p=rng.choice((1.0, 0.9)),
        max_tokens=rng.choice((None, 1, 5, 3 * block_size)),
        stop=rng.choice(((), ("a",), ("ab", "cad"), ("ban", "ö"))),
        seed=rng.choice((-7, 42, 2**70)) + rng.randrange(100),
    )
    return Request(prompt, config)


def random_requests(model: LanguageModel, n: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    return [random_request(model, rng) for _ in range(n)]


def finish(batch: TextBatch, n_tokens: int = 1) -> None:
    while len(batch):
        batch.advance(n_tokens)


def replies_of(batch: TextBatch, requests: Sequence[Request]) -> list[Reply]:
    """Return the replies to requests that are continued together."""
    texts: list[LiveText] = [batch.add(*request) for request in requests]
    finish(batch, 3)
    return [text.reply() for text in texts]
