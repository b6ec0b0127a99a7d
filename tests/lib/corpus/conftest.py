"""Texts that several tests of words and subwords share."""

import random

import pytest

KINDS = (
    "abcdefghijklmnopqrstuvwxyzABCXYZ",
    "0123456789",
    "     \n\n\r\t\v\f",
    "'.,;!?-_()[]{}@#`~\"\\/<>|",
    "\0\x01\x1b\x1c\x1f\x7f\x80\x85\xa0\xad",
    "éßñçøåÄÖ\u0301\u0308\u0327\u20dd\ufe0f\u200d",
    "中文漢字、。日本語한국어العربيةहिन्दी",
    "\u2028\u2029\u3000\u2003\u200b\ufeff\ufffd\uffff",
    "👍🏽👩‍👩‍👧🇩🇪😀𝄞𐍈\U0001f9ff\U0010ffff\U000e0061",
)
PHRASES = (" the", "it's", "they'll", "\r\n", "<bos>", "<|endoftext|>", " 'tis", "  \n", "e\u0301")


def strange_text(rng: random.Random) -> str:
    """Return a text of up to 40 parts, of any plane of Unicode."""

    def part() -> str:
        kind = rng.randrange(len(KINDS) + 2)
        if kind < len(KINDS):
            return "".join(rng.choices(KINDS[kind], k=rng.randint(1, 6)))
        if kind == len(KINDS):
            return rng.choice(PHRASES)
        code_point = rng.randrange(0x110000 - 0x800)
        return chr(code_point + 0x800 * (code_point >= 0xD800))  # no surrogate

    return "".join(part() for _ in range(rng.randint(0, 40)))


@pytest.fixture(scope="session")
def strange_texts() -> list[str]:
    rng = random.Random(18)
    return [strange_text(rng) for _ in range(10_000)]
