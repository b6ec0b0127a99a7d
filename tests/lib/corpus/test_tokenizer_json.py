"""`tokenizer.json`: read by the `tokenizers` package, read back, and foreign ones refused."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import CheckpointError
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.corpus.tokenizer_json import decode_tokenizer, encode_tokenizer

TEXT = "aaabdaaabac the theme of them, 中文 中文\n"


@cache
def trained() -> SubwordTokenizer:
    return SubwordTokenizer.from_texts([TEXT], 270)


def changed(change: Callable[[Any], object]) -> bytes:
    document = json.loads(encode_tokenizer(trained()))
    change(document)
    return json.dumps(document).encode()


def set_at(*path: Any) -> Callable[[Any], object]:
    """Return a change that sets the value at a path."""
    *way, key, value = path

    def change(document: Any) -> None:
        for step in way:
            document = document[step]
        document[key] = value

    return change


def test_file_is_read_by_the_package(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="compares with the `tokenizers` package")
    content = encode_tokenizer(trained())
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    text = "<bos> the aaab's 中文\U0001f44d\r\n"
    assert theirs.encode(text).ids == trained().encode(text)
    assert theirs.decode(trained().encode(text)) == text
    assert theirs.get_vocab_size() == len(trained().subwords)
    assert theirs.to_str(pretty=True).encode() == content


def test_file_is_read_back() -> None:
    assert decode_tokenizer(encode_tokenizer(trained())) == trained()
    chat = SubwordTokenizer(trained().merges, is_chat=True, has_system=True)
    assert decode_tokenizer(encode_tokenizer(chat), is_chat=True, has_system=True) == chat


@given(st.text("ab é", max_size=50), st.integers(257, 300))
def test_any_tokenizer_is_read_back(text: str, vocab_size: int) -> None:
    tokenizer = SubwordTokenizer.from_texts([text], vocab_size)
    assert decode_tokenizer(encode_tokenizer(tokenizer)) == tokenizer


def test_compact_file_is_read_as_well() -> None:
    assert decode_tokenizer(changed(lambda _: None)) == trained()


def test_file_is_of_the_merges_alone() -> None:
    content = encode_tokenizer(trained())
    assert content == encode_tokenizer(SubwordTokenizer.from_texts([TEXT], 270))
    assert content == encode_tokenizer(SubwordTokenizer(trained().merges, is_chat=True))
    assert content != encode_tokenizer(SubwordTokenizer.from_texts([TEXT], 269))


def test_bytes_are_the_characters_of_gpt2() -> None:
    vocab = json.loads(encode_tokenizer(trained()))["model"]["vocab"]
    assert [vocab[char] for char in "!a~¡ÿĀĠŃ"] == [0, 64, 93, 94, 187, 188, 220, 255]
    assert "Ġthe" in vocab


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
FOREIGN: list[tuple[Callable[[Any], object], str]] = [
    (set_at("model", "type", "WordPiece"), '"WordPiece", expected "BPE"'),
    (set_at("model", "dropout", 0.1), "dropout is 0.1, expected null"),
    (set_at("model", "byte_fallback", 1.5), "byte_fallback is 1.5, expected false"),
    (set_at("model", "fuse_unk", 0), "fuse_unk is 0, expected false"),
    (set_at("model", "unk_token", "<unk>"), 'unk_token is "<unk>", expected null'),
    (set_at("added_tokens", [{"id": 280, "content": "<bos>"}]), "added_tokens is [{"),
    (set_at("normalizer", {"type": "NFC"}), 'normalizer is {"type": "NFC"}, expected null'),
    (set_at("post_processor", {"type": "ByteLevel"}), "post_processor is {"),
    (set_at("truncation", {"max_length": 5}), "truncation is {"),
    (set_at("version", "2.0"), 'version is "2.0", expected "1.0"'),
    (set_at("pre_tokenizer", {"type": "Whitespace"}), 'type is "Whitespace", expected "Sequence"'),
    (set_at("pre_tokenizer", None), "pre_tokenizer is null, expected {"),
    (set_at(*SPLIT, "pattern", "Regex", r"\w+"), r'Regex is "\\w+", expected "'),
    (set_at(*SPLIT, "behavior", "Removed"), 'behavior is "Removed", expected "Isolated"'),
    (set_at("pre_tokenizer", "pretokenizers", []), "pretokenizers is [], expected ["),
    (set_at("decoder", None), "decoder is null, expected {"),
    (set_at("extra", 1), "the file has 'extra', not known"),
    (lambda document: document.pop("model"), "the file has no 'model'"),
    (lambda document: document["model"].pop("vocab"), "model has no 'vocab'"),
    (lambda document: document["model"].pop("merges"), "model has no 'merges'"),
    (set_at("model", []), "model is [], expected {"),
    (set_at("model", "vocab", []), "vocab is [], expected an object"),
    (set_at("model", "merges", {}), "merges is {}, expected an array"),
    (set_at("model", "merges", 0, "a a"), 'merges[0] is "a a", expected two tokens'),
    (set_at("model", "merges", 0, ["a", 5]), 'merges[0] is ["a", 5], expected two tokens'),
    (set_at("model", "merges", 0, ["a"]), 'merges[0] is ["a"], expected two tokens'),
    (set_at("model", "merges", 1, ["zz", "a"]), 'merges[1] is ["zz", "a"], expected two tokens'),
    (set_at("model", "merges", 1, ["a", "zz"]), 'merges[1] is ["a", "zz"], expected two tokens'),
    (set_at("model", "merges", 2, ["x", "y"]), 'merges[2] is ["x", "y"], expected two tokens'),
    (lambda document: document["model"]["merges"].reverse(), "merges[0] is ["),
    (lambda document: document["model"]["merges"].pop(), "no such token"),
    (lambda document: document["model"]["merges"].insert(1, ["a", "a"]), "merge 1 is that of 0"),
    (set_at("model", "vocab", "zz", 280), 'vocab["zz"] is 280, expected no such token'),
    (set_at("model", "vocab", "a", 65), 'vocab["a"] is 65, expected 64, as the merges make it'),
    (lambda document: document["model"]["vocab"].pop("b"), 'vocab["b"] is null, expected 65'),
]


@pytest.mark.parametrize(("change", "problem"), FOREIGN, ids=[problem for _, problem in FOREIGN])
def test_foreign_file_is_refused_and_the_difference_named(
    change: Callable[[Any], object], problem: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        decode_tokenizer(changed(change))
    assert problem in str(caught.value)
    assert str(caught.value).startswith(("tokenizer.json: ", "failed to read tokenizer.json: "))


def test_merges_in_another_order_are_refused() -> None:
    document = json.loads(encode_tokenizer(trained()))
    first, second, *rest = document["model"]["merges"]
    ids = document["model"]["vocab"]
    assert first[0] in ids and second[0] in ids  # noqa: PT018
    document["model"]["merges"] = [["e", "Ġ"], first, second, *rest]
    document["model"]["vocab"]["eĠ"] = len(ids)  # in the vocabulary, but not where it is made
    with pytest.raises(CheckpointError, match=r"is 2\d\d, expected 2\d\d, as the merges make it"):
        decode_tokenizer(json.dumps(document).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2", b"\xff\xfe\x00", b"\xc3", encode_tokenizer(trained())[:-5], b'{"a": 1'],
)
def test_damaged_file_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"failed to read tokenizer\.json: "):
        decode_tokenizer(content)


@pytest.mark.parametrize("content", [b"null", b"[]", b"5", b'"text"'])
def test_json_of_another_kind_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the file is .*, expected \{"):
        decode_tokenizer(content)


@pytest.mark.parametrize("depth", [500, 900, 10_000, 200_000])
@pytest.mark.parametrize("where", ["%s", '{"version": %s}', '{"version": "1.0", "truncation": %s}'])
def test_deep_file_is_refused(depth: int, where: str) -> None:
    with pytest.raises(CheckpointError):
        decode_tokenizer((where % ("[" * depth + "]" * depth)).encode())


def test_token_that_is_too_long_is_refused() -> None:
    document = json.loads(encode_tokenizer(SubwordTokenizer(())))
    model, token = document["model"], "a"
    for _ in range(8):
        model["merges"].append([token, token])
        token += token
        model["vocab"][token] = len(model["vocab"])
    with pytest.raises(CheckpointError, match="makes a token of 256 bytes, expected at most 128"):
        decode_tokenizer(json.dumps(document).encode())
