"""Samples of a model, drawn until there are enough of those that are wanted."""

import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

import microgpt

from microgpt_cli.terminal import counted

__all__ = ["MAX_DRAWS", "Sample", "Wanted", "draw"]

MAX_DRAWS = 100  # per wanted sample
SECONDS_PER_CALL = 0.1  # of the library, between two looks at Ctrl-C


class Sample(NamedTuple):
    """A text, and the seed that gives it again."""

    seed: int
    text: str


class Wanted(NamedTuple):
    """Which samples are wanted.

    Args:
        n: how many.
        unique: each text once.
        novel: texts that are not among `known`.
        known: texts, stripped.
    """

    n: int
    unique: bool = False
    novel: bool = False
    known: Collection[str] = frozenset()

    @property
    def max_draws(self) -> int:
        """The most samples to draw."""
        return self.n * (MAX_DRAWS if self.unique or self.novel else 1)


def draw(
    model: microgpt.LanguageModel,
    prompt: str,
    start: microgpt.Prompt,
    config: microgpt.SamplingConfig,
    wanted: Wanted,
) -> Iterator[list[Sample]]:
    """Yield the wanted samples of consecutive seeds, some at a time, as soon as they are drawn.

    Args:
        model: draws them.
        prompt: beginning of every text.
        start: what the model reads of it.
        config: sampling options, with the first seed.
        wanted: which samples.

    Raises:
        DataError: there are not enough of them; those that were found have been yielded.
    """
    n_read = len(model.tokenizer.decode(start.token_ids))
    options = {name: value for name, value in vars(config).items() if name != "seed"}
    seen: set[str] = set()  # texts so far
    n_found, n_drawn, n_together = 0, 0, 1
    while n_found < wanted.n:
        n_together = min(n_together, wanted.max_draws - n_drawn)
        if not n_together:
            raise microgpt.DataError(_shortage(wanted, n_found), hint=HINT)
        began = time.perf_counter()
        seed = config.seed + n_drawn
        documents = model.generate(n_together, prompt=start, seed=seed, **options)
        found = []
        for i, document in enumerate(documents):
            text = prompt + document[n_read:]
            is_left_out = wanted.novel and text.strip() in wanted.known
            if not is_left_out and not (wanted.unique and text in seen):
                found.append(Sample(seed + i, text))
                seen.add(text)
        found = found[: wanted.n - n_found]
        n_drawn += n_together
        n_found += len(found)
        yield found
        n_together = 1 + int(n_together * SECONDS_PER_CALL / (time.perf_counter() - began))


HINT = "a higher --temperature gives more different ones"


def _shortage(wanted: Wanted, n_found: int) -> str:
    return (
        f"{counted(wanted.max_draws, 'draw')} gave {n_found:,} of {counted(wanted.n, 'sample')} "
        f"that are {' and '.join(['unique'] * wanted.unique + ['novel'] * wanted.novel)}"
    )
