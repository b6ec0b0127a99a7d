"""Subwords as a file: `tokenizer.json` in the format of the `tokenizers` package.

The file holds the subwords alone. Special tokens are not in it: a literal "<bos>" is text.
"""

import json
from typing import Any

from microgpt.corpus.byte_pairs import BYTES, N_BYTES, Pair
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.corpus.words import PATTERN
from microgpt.errors import CheckpointError

__all__ = ["decode_tokenizer", "encode_tokenizer", "most_bytes"]

# In the file, of a token of 128 bytes: 300 in the vocabulary, and as many in each merge that makes
# the token; seldom is there more than one merge.
MAX_BYTES_PER_TOKEN = 1200

# GPT-2 writes a byte as a character: printable ones as themselves, others from U+0100 on.
_N_PRINTABLE = next(i for i in range(N_BYTES) if BYTES[i] == 0)
_CHARS = [
    chr(BYTES[i]) if i < _N_PRINTABLE else chr(0x100 + i - _N_PRINTABLE) for i in range(N_BYTES)
]
_CHAR_OF = dict(zip(BYTES, _CHARS, strict=True))


def _document(vocab: Any, merges: Any) -> dict[str, Any]:
    """Return the content of the file as the package itself writes it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    steps = [
        split | {"invert": False},
        byte_level | {"add_prefix_space": False, "use_regex": False},
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": model,
    }


def encode_tokenizer(tokenizer: SubwordTokenizer) -> bytes:
    """Return the file of a tokenizer; equal merges give equal bytes."""
    names = ["".join(map(_CHAR_OF.__getitem__, content)) for content in tokenizer.subwords]
    merges = [[names[left], names[right]] for left, right in tokenizer.merges]
    document = _document({name: i for i, name in enumerate(names)}, merges)
    return json.dumps(document, ensure_ascii=False, indent=2).encode()


def most_bytes(vocab_size: int) -> int:
    """Return the most bytes of a file of so many tokens."""
    return MAX_BYTES_PER_TOKEN * vocab_size


def decode_tokenizer(
    content: bytes, *, is_chat: bool = False, has_system: bool = False
) -> SubwordTokenizer:
    """Return the tokenizer of a file.

    Args:
        content: of a file that `encode_tokenizer` made.
        is_chat: whether the chat tokens exist.
        has_system: whether the chat tokens include "system".

    Raises:
        CheckpointError: the file is damaged, or describes another kind of tokenizer; the
            difference is named.
    """
    try:
        found = json.loads(content)
        model = found.get("model") if isinstance(found, dict) else None
        own = model if isinstance(model, dict) else {}
        _check_same("the file", found, _document(own.get("vocab"), own.get("merges")))
        return SubwordTokenizer(_merges_of(own["vocab"], own["merges"]), is_chat, has_system)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"failed to read tokenizer.json: {error}") from None


def _refused(where: str, found: Any, expected: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer.json: {where} is {json.dumps(found):.80}, expected {expected}",
        hint="only byte-level BPE with this library's pattern, and without added tokens, is read",
    )


def _check_same(where: str, found: Any, expected: Any) -> None:
    """Raise CheckpointError at the first difference."""
    if found is expected:  # vocabulary and merges, read later
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected:
            if key not in found:
                raise CheckpointError(f"tokenizer.json: {where} has no {key!r}")
            _check_same(key, found[key], expected[key])
        if unknown := found.keys() - expected.keys():
            raise CheckpointError(f"tokenizer.json: {where} has {min(unknown)!r:.80}, not known")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for i, (each, of_ours) in enumerate(zip(found, expected, strict=True)):
            _check_same(f"{where}[{i}]", each, of_ours)
    elif type(found) is not type(expected) or found != expected:
        raise _refused(where, found, json.dumps(expected))


def _merges_of(vocab: Any, merges: Any) -> tuple[Pair, ...]:
    """Return the merges as ids, or raise CheckpointError unless they make the vocabulary."""
    if not isinstance(vocab, dict):
        raise _refused("vocab", vocab, "an object")
    if not isinstance(merges, list):
        raise _refused("merges", merges, "an array")
    ids = {char: i for i, char in enumerate(_CHARS)}
    pairs = []
    for rank, merge in enumerate(merges):
        match merge:
            case [str(left), str(right)] if left in ids and right in ids and left + right in vocab:
                pairs.append((ids[left], ids[right]))
                ids.setdefault(left + right, len(ids))
            case _:
                expected = "two tokens that are made before it, and that together are in vocab"
                raise _refused(f"merges[{rank}]", merge, expected)
    for token in [*ids, *vocab]:
        if (found := vocab.get(token)) != (own := ids.get(token)):
            expected = "no such token" if own is None else f"{own}, as the merges make it"
            raise _refused(f"vocab[{json.dumps(token):.80}]", found, expected)
    return tuple(pairs)
