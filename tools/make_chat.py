"""Make the sample conversations of `microgpt-cli data chat`, and the questions held out of them.

Every task has answers that follow from the question, so that a model can be checked. A tenth of
all words and of all pairs of numbers is held out: questions use only these, conversations none of
them. Nor do questions use what some conversation says by chance, as the reverse of another word.

    hatch run python tools/make_chat.py

Prints fresh questions for `microgpt-cli evaluate` as well, of any words, names and pairs: for every
task and place in a conversation 300, and besides the sums of all pairs:

    hatch run python tools/make_chat.py --fresh 300 --seed 7 > demo/fresh.jsonl
"""

import argparse
import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

N_CONVERSATIONS = 45_000
MOST_EXCHANGES = 4  # of a conversation
MOST_CHARACTERS = 170  # of it, so that with its marks it fits into the block of the demo
MOST_BETWEEN = 2  # exchanges between telling a name and asking for it
N_BETWEEN = (0, 1, 2, 2)  # the same to train on, where there is room: the hardest most often
N_QUESTIONS = 1000  # per task
SEED = 2026
LARGEST_NUMBER = 30
WORD_LENGTHS = range(3, 8)
N_DOUBLED = (0, 0, 0, 1, 1, 2)  # letters of a word to train on: the hardest to spell
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OUTPUT = Path(__file__).parents[1] / "apps/microgpt_cli/src/microgpt_cli/sample_data"

CAPITALS = {
    "argentina": "buenos aires",
    "australia": "canberra",
    "austria": "vienna",
    "bangladesh": "dhaka",
    "belgium": "brussels",
    "brazil": "brasilia",
    "bulgaria": "sofia",
    "cambodia": "phnom penh",
    "canada": "ottawa",
    "chile": "santiago",
    "china": "beijing",
    "colombia": "bogota",
    "croatia": "zagreb",
    "cuba": "havana",
    "cyprus": "nicosia",
    "denmark": "copenhagen",
    "ecuador": "quito",
    "egypt": "cairo",
    "estonia": "tallinn",
    "ethiopia": "addis ababa",
    "finland": "helsinki",
    "france": "paris",
    "germany": "berlin",
    "ghana": "accra",
    "greece": "athens",
    "hungary": "budapest",
    "iceland": "reykjavik",
    "india": "new delhi",
    "indonesia": "jakarta",
    "iran": "tehran",
    "iraq": "baghdad",
    "ireland": "dublin",
    "italy": "rome",
    "jamaica": "kingston",
    "japan": "tokyo",
    "jordan": "amman",
    "kenya": "nairobi",
    "latvia": "riga",
    "lebanon": "beirut",
    "lithuania": "vilnius",
    "malta": "valletta",
    "mexico": "mexico city",
    "mongolia": "ulaanbaatar",
    "morocco": "rabat",
    "nepal": "kathmandu",
    "norway": "oslo",
    "pakistan": "islamabad",
    "peru": "lima",
    "poland": "warsaw",
    "portugal": "lisbon",
    "romania": "bucharest",
    "russia": "moscow",
    "senegal": "dakar",
    "serbia": "belgrade",
    "slovakia": "bratislava",
    "spain": "madrid",
    "sweden": "stockholm",
    "thailand": "bangkok",
    "tunisia": "tunis",
    "turkey": "ankara",
    "ukraine": "kyiv",
    "uruguay": "montevideo",
    "vietnam": "hanoi",
    "zambia": "lusaka",
}
SMALL_TALK = {
    "hello": "hi there!",
    "hi": "hello!",
    "hey": "hey, good to see you!",
    "good morning": "good morning!",
    "good evening": "good evening!",
    "good night": "sleep well!",
    "how are you?": "i am fine, thank you.",
    "how do you do?": "very well, thank you.",
    "who are you?": "i am microgpt, a very small model.",
    "what are you?": "a small language model.",
    "what can you do?": "i can add, spell, reverse and count.",
    "are you a human?": "no, i am a program.",
    "do you like music?": "i have never heard any.",
    "tell me a joke": "my memory is one block long.",
    "thank you": "you are welcome!",
    "thanks": "any time!",
    "well done": "thank you!",
    "that is wrong": "sorry about that.",
    "see you later": "see you!",
    "bye": "goodbye!",
}

Exchange = tuple[str, str]  # what the user says, what the assistant answers
T = TypeVar("T")


def is_held_out(text: str) -> bool:
    """Return whether a word, or a pair of numbers in rising order, is for questions alone."""
    return zlib.crc32(text.encode()) % 10 == 0


@dataclass(frozen=True)
class Draws:
    """What exchanges are made of.

    Args:
        rng: draws it.
        held_out: whether words and pairs are those for questions alone; None for any.
        plain: whether everything is asked in its first phrasing, and words are of any letters.
        said: words that are never drawn.
    """

    rng: random.Random
    held_out: bool | None
    plain: bool = False
    said: frozenset[str] = frozenset()

    def word(self) -> str:
        """Return a word of this side."""
        while True:
            found = self._any_word()
            if self.held_out in {None, is_held_out(found)} and found not in self.said:
                return found

    def pair(self) -> tuple[int, int]:
        """Return two numbers of this side."""
        while True:
            a, b = (self.rng.randint(0, LARGEST_NUMBER) for _ in range(2))
            if self.held_out in {None, is_held_out(f"{min(a, b)}+{max(a, b)}")}:
                return a, b

    def phrasing(self, *phrasings: str) -> str:
        """Return the first in half of all cases, else any."""
        if self.plain or self.rng.randrange(2):
            return phrasings[0]
        return self.rng.choice(phrasings)

    def _any_word(self) -> str:
        """Return letters: mostly at random, else such as can be spoken; some doubled."""
        rng = self.rng
        length = rng.choice(WORD_LENGTHS)
        if self.plain:
            return "".join(rng.choices(LETTERS, k=length))
        if rng.randrange(3):
            letters = rng.choices(LETTERS, k=length)
        else:
            starts_with = rng.randrange(2)
            kinds = (VOWELS, CONSONANTS)
            letters = [rng.choice(kinds[(i + starts_with) % 2]) for i in range(length)]
        for _ in range(0 if self.held_out else rng.choice(N_DOUBLED)):
            i = rng.randrange(length - 1)
            letters[i + 1] = letters[i]
        return "".join(letters)


def sums(draws: Draws) -> Exchange:
    """Ask for the sum of two numbers."""
    a, b = draws.pair()
    asked = draws.phrasing("what is {} plus {}?", "what is {} + {}?", "add {} and {}", "{} plus {}")
    return asked.format(a, b), str(a + b)


def spelling(draws: Draws) -> Exchange:
    """Ask for the letters of a word."""
    word = draws.word()
    asked = draws.phrasing("spell {}", "how do you spell {}?", "can you spell {}?")
    return asked.format(word), "-".join(word)


def reversing(draws: Draws) -> Exchange:
    """Ask for a word from its end."""
    word = draws.word()
    asked = draws.phrasing("reverse {}", "what is {} backwards?", "turn {} around")
    return asked.format(word), word[::-1]


def counting(draws: Draws) -> Exchange:
    """Ask for the length of a word."""
    word = draws.word()
    asked = draws.phrasing(
        "count the letters in {}", "how many letters are in {}?", "how long is {}?"
    )
    return asked.format(word), str(len(word))


def capitals(draws: Draws) -> Exchange:
    """Ask for a capital."""
    country, capital = draws.rng.choice(list(CAPITALS.items()))
    asked = draws.phrasing(
        "what is the capital of {}?",
        "capital of {}",
        "name the capital of {}",
        "which city is the capital of {}?",
    )
    return asked.format(country), capital


def greetings(draws: Draws) -> Exchange:
    """Say something that has one good answer."""
    return draws.rng.choice(list(SMALL_TALK.items()))


def telling_and_asking(draws: Draws) -> tuple[Exchange, Exchange]:
    """Tell a name, and ask for it."""
    name = draws.word()
    tell = draws.phrasing("my name is {}", "i am {}", "call me {}").format(name)
    ask = draws.phrasing("what is my name?", "do you know my name?", "who am i?")
    return (tell, f"nice to meet you, {name}!"), (ask, f"your name is {name}")


Task = Callable[[Draws], Exchange]
# A share of each among the exchanges; the hardest to learn have the most.
TASKS: dict[Task, float] = {
    sums: 0.32,
    reversing: 0.25,
    counting: 0.13,
    spelling: 0.16,
    capitals: 0.06,
    greetings: 0.08,
}
OPEN_TASKS: tuple[Task, ...] = (sums, spelling, reversing, counting)
SHARE_OF_NAMES = 0.5  # of the conversations, in which a name is told
N_EXCHANGES = {1: 0.2, 2: 0.2, 3: 0.2, 4: 0.4}  # what comes late is harder, and seen less


def draw(rng: random.Random, shares: dict[T, float]) -> T:
    """Return a key, as often as its value says."""
    (chosen,) = rng.choices(list(shares), list(shares.values()))
    return chosen


def others(draws: Draws, n: int, tasks: dict[Task, float] = TASKS) -> list[Exchange]:
    """Return exchanges of any task."""
    return [draw(draws.rng, tasks)(draws) for _ in range(n)]


def conversation(draws: Draws) -> list[Exchange]:
    """Return any tasks; in some a name is told, and asked for later where there is room."""
    rng = draws.rng
    n = draw(rng, N_EXCHANGES)
    exchanges = others(draws, n)
    if rng.random() < SHARE_OF_NAMES:
        told_at = rng.randrange(n)
        exchanges[told_at], asking = telling_and_asking(draws)
        n_after = n - told_at - 1
        if n_after:
            n_between = min(rng.choice(N_BETWEEN), n_after - 1)
            exchanges[told_at + 1 + n_between] = asking
    return exchanges


def recall(draws: Draws, n_exchanges: int) -> list[Exchange]:
    """Return exchanges of which the last asks for a name that one before told."""
    told, asking = telling_and_asking(draws)
    n_between = draws.rng.randint(0, min(n_exchanges - 2, MOST_BETWEEN))
    before, between = others(draws, n_exchanges - 2 - n_between), others(draws, n_between)
    return [*before, told, *between, asking]


def question(draws: Draws, task: Task) -> list[Exchange]:
    """Return exchanges of which the last is the question; what comes before is held out too.

    Capitals and greetings cannot be held out themselves: they are asked after something else.
    """
    n_before = 1 if task in {capitals, greetings} else draws.rng.randint(0, 1)
    return [*others(draws, n_before, dict.fromkeys(OPEN_TASKS, 1.0)), task(draws)]


def messages(exchanges: list[Exchange]) -> list[dict[str, str]]:
    """Return exchanges as messages."""
    roles = ("user", "assistant")
    return [
        {"role": role, "content": content}
        for exchange in exchanges
        for role, content in zip(roles, exchange, strict=True)
    ]


def conversations(rng: random.Random) -> Iterator[list[dict[str, str]]]:
    """Yield what to train on."""
    draws = Draws(rng, held_out=False)
    for _ in range(N_CONVERSATIONS):
        exchanges = conversation(draws)
        while sum(map(len, chain(*exchanges))) > MOST_CHARACTERS:
            exchanges = conversation(draws)
        yield messages(exchanges)


def asked(task: str, exchanges: list[Exchange]) -> dict[str, object]:
    """Return a line for `evaluate`: the last answer is what is expected."""
    *before, answer = messages(exchanges)
    return {"task": task, "messages": before, "answer": answer["content"]}


def questions(rng: random.Random, talks: str) -> Iterator[dict[str, object]]:
    """Yield what to ask, all of it held out of the talks."""
    draws = Draws(rng, held_out=True, said=frozenset(re.findall("[a-z]+", talks)))
    for task in TASKS:
        for _ in range(N_QUESTIONS):
            yield asked(task.__name__, question(draws, task))
    for _ in range(N_QUESTIONS):
        yield asked("recall", recall(draws, rng.randint(2, MOST_EXCHANGES)))


def fresh_questions(n: int, rng: random.Random) -> Iterator[dict[str, object]]:
    """Yield every sum, then `n` questions per task and place, in the first phrasing of each."""
    draws = Draws(rng, held_out=None, plain=True)
    for a in range(LARGEST_NUMBER + 1):
        for b in range(LARGEST_NUMBER + 1):
            yield asked("all sums", [(f"what is {a} plus {b}?", str(a + b))])
    for place in range(1, MOST_EXCHANGES + 1):
        for task in TASKS:
            for _ in range(n):
                yield asked(f"{task.__name__} {place}", [*others(draws, place - 1), task(draws)])
        for _ in range(n):
            told, _ = telling_and_asking(draws)
            yield asked(f"telling {place}", [*others(draws, place - 1), told])
        for _ in range(n if place > 1 else 0):
            yield asked(f"recall {place}", recall(draws, place))


def json_lines(lines: Iterable[object]) -> str:
    """Return one line of JSON each."""
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def write(name: str, text: str) -> None:
    """Write a sample file, compressed, the same bytes every time."""
    (OUTPUT / name).write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{text.count(chr(10))} lines, {len(text):,} bytes written to {name}")


def main() -> None:
    """Write conversations and questions, or print fresh questions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", type=int, metavar="N", help="print fresh questions instead")
    parser.add_argument("--seed", type=int, default=SEED, help="of the fresh questions")
    arguments = parser.parse_args()
    if arguments.fresh:
        print(json_lines(fresh_questions(arguments.fresh, random.Random(arguments.seed))), end="")
        return
    talks = json_lines(conversations(random.Random(SEED)))
    write("chat.jsonl.gz", talks)
    write("questions.jsonl.gz", json_lines(questions(random.Random(SEED + 1), talks)))


if __name__ == "__main__":
    main()
