"""Make the sample conversations of `microgpt-cli data chat`, and the questions held out of them.

Every task has answers that follow from the question, so that a model can be checked. A tenth of
all words and of all pairs of numbers is held out: questions use only these, conversations none of
them.

    hatch run python tools/make_chat.py
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

N_CONVERSATIONS = 30_000
N_QUESTIONS = 200  # per task
SEED = 2026
LARGEST_NUMBER = 30
WORD_LENGTHS = range(3, 8)
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


def is_held_out(text: str) -> bool:
    """Return whether a word, or a pair of numbers in rising order, is for questions alone."""
    return zlib.crc32(text.encode()) % 10 == 0


def any_word(rng: random.Random) -> str:
    """Return letters: mostly at random, else such as can be spoken."""
    length = rng.choice(WORD_LENGTHS)
    if rng.randrange(3):
        return "".join(rng.choices(LETTERS, k=length))
    starts_with = rng.randrange(2)
    return "".join(rng.choice((VOWELS, CONSONANTS)[(i + starts_with) % 2]) for i in range(length))


def word(rng: random.Random, *, held_out: bool) -> str:
    """Return a word of one side."""
    while is_held_out(found := any_word(rng)) != held_out:
        pass
    return found


def pair(rng: random.Random, *, held_out: bool) -> tuple[int, int]:
    """Return two numbers of one side."""
    while True:
        a, b = rng.randint(0, LARGEST_NUMBER), rng.randint(0, LARGEST_NUMBER)
        if is_held_out(f"{min(a, b)}+{max(a, b)}") == held_out:
            return a, b


def sums(rng: random.Random, *, held_out: bool) -> Exchange:
    """Ask for the sum of two numbers."""
    a, b = pair(rng, held_out=held_out)
    phrasings = ("what is {} plus {}?", "what is {} + {}?", "add {} and {}", "{} plus {}")
    return rng.choice(phrasings).format(a, b), str(a + b)


def spelling(rng: random.Random, *, held_out: bool) -> Exchange:
    """Ask for the letters of a word."""
    asked = word(rng, held_out=held_out)
    phrasings = ("spell {}", "how do you spell {}?", "can you spell {}?")
    return rng.choice(phrasings).format(asked), "-".join(asked)


def reversing(rng: random.Random, *, held_out: bool) -> Exchange:
    """Ask for a word from its end."""
    asked = word(rng, held_out=held_out)
    phrasings = ("reverse {}", "what is {} backwards?", "turn {} around")
    return rng.choice(phrasings).format(asked), asked[::-1]


def counting(rng: random.Random, *, held_out: bool) -> Exchange:
    """Ask for the length of a word."""
    asked = word(rng, held_out=held_out)
    phrasings = ("count the letters in {}", "how many letters are in {}?", "how long is {}?")
    return rng.choice(phrasings).format(asked), str(len(asked))


def capitals(rng: random.Random, **_: bool) -> Exchange:
    """Ask for a capital."""
    country, capital = rng.choice(list(CAPITALS.items()))
    phrasings = (
        "what is the capital of {}?",
        "capital of {}",
        "name the capital of {}",
        "which city is the capital of {}?",
    )
    return rng.choice(phrasings).format(country), capital


def greetings(rng: random.Random, **_: bool) -> Exchange:
    """Say something that has one good answer."""
    return rng.choice(list(SMALL_TALK.items()))


T = TypeVar("T")
Task = Callable[..., Exchange]
# A share of each among the exchanges; the hardest to learn have the most.
TASKS: dict[Task, float] = {
    sums: 0.26,
    reversing: 0.24,
    counting: 0.13,
    spelling: 0.15,
    capitals: 0.11,
    greetings: 0.11,
}
SHARE_OF_RECALL = 0.3  # of the conversations
N_EXCHANGES = {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1}


def draw(rng: random.Random, shares: dict[T, float]) -> T:
    """Return a key, as often as its value says."""
    (chosen,) = rng.choices(list(shares), list(shares.values()))
    return chosen


def others(rng: random.Random, n: int, *, held_out: bool) -> list[Exchange]:
    """Return exchanges of any task."""
    return [draw(rng, TASKS)(rng, held_out=held_out) for _ in range(n)]


def recall(rng: random.Random, *, held_out: bool) -> list[Exchange]:
    """Tell a name, speak of other things, ask for the name; at most four exchanges."""
    name = word(rng, held_out=held_out)
    tell = rng.choice(("my name is {}", "i am {}", "call me {}")).format(name)
    ask = rng.choice(("what is my name?", "do you know my name?", "who am i?"))
    n_between = rng.randint(0, 2)
    before = others(rng, rng.randint(0, 2 - n_between), held_out=held_out)
    between = others(rng, n_between, held_out=held_out)
    told = (tell, f"nice to meet you, {name}!")
    return [*before, told, *between, (ask, f"your name is {name}")]


def conversation(rng: random.Random) -> list[Exchange]:
    """Return one conversation without anything that is held out."""
    if rng.random() < SHARE_OF_RECALL:
        return recall(rng, held_out=False)
    return others(rng, draw(rng, N_EXCHANGES), held_out=False)


def question(rng: random.Random, task: Task) -> list[Exchange]:
    """Return exchanges of which the last is the question; what comes before is held out too.

    Capitals and greetings cannot be held out themselves: they are asked after something else.
    """
    n_before = 1 if task in {capitals, greetings} else rng.randint(0, 1)
    open_tasks = [sums, spelling, reversing, counting]
    before = [rng.choice(open_tasks)(rng, held_out=True) for _ in range(n_before)]
    return [*before, task(rng, held_out=True)]


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
    for _ in range(N_CONVERSATIONS):
        yield messages(conversation(rng))


def questions(rng: random.Random) -> Iterator[dict[str, object]]:
    """Yield what to ask: a task, messages that end with a question, the answer."""
    makers = {task.__name__: partial(question, task=task) for task in TASKS}
    for name, make in {**makers, "recall": partial(recall, held_out=True)}.items():
        for _ in range(N_QUESTIONS):
            *asked, answer = messages(make(rng))
            yield {"task": name, "messages": asked, "answer": answer["content"]}


def write(name: str, lines: list[object]) -> None:
    """Write JSON lines, compressed, the same bytes every time."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (OUTPUT / name).write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{len(lines)} lines, {len(text):,} bytes written to {name}")


def main() -> None:
    """Write conversations and questions."""
    write("chat.jsonl.gz", list(conversations(random.Random(SEED))))
    write("questions.jsonl.gz", list(questions(random.Random(SEED + 1))))


if __name__ == "__main__":
    main()
