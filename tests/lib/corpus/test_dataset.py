import random
import tracemalloc
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from microgpt import (
    Batch,
    Batches,
    ChatError,
    ConfigError,
    DataError,
    Dataset,
    Message,
    TokenError,
    Tokenizer,
)
from microgpt.checks import ROLES
from texts import TALK, assistant, conversations, documents, user

# ---------------------------------------------------------------- encoded once


@given(documents)
def test_dataset_holds_what_the_tokenizer_encodes(docs: list[str]) -> None:
    kept = [doc.strip() for doc in docs if doc.strip()]
    dataset = Dataset.from_documents(docs)
    assert dataset.tokenizer == Tokenizer.from_texts(kept)
    assert [ids.tolist() for ids in map(dataset.__getitem__, range(len(dataset)))] == [
        dataset.tokenizer.encode_document(doc) for doc in kept
    ]
    assert dataset.lengths.tolist() == [len(doc) + 1 for doc in kept]


@given(conversations)
def test_chat_dataset_holds_what_the_tokenizer_encodes(talks: list[list[Message]]) -> None:
    dataset = Dataset.from_conversations(talks)
    contents = [turn["content"] for talk in talks for turn in talk]
    assert dataset.tokenizer == Tokenizer.from_texts(contents, is_chat=True)
    assert [ids.tolist() for ids in map(dataset.__getitem__, range(len(dataset)))] == [
        dataset.tokenizer.encode_conversation(talk) for talk in talks
    ]


def test_texts_larger_than_what_is_encoded_at_a_time_are_encoded_alike() -> None:
    rng = random.Random(42)
    # New characters turn up in later chunks, some before the known ones in order.
    docs = ["".join(rng.choices("mn", k=700_000)), "z" * 300_000, "am" * 200_000, "é"]
    docs += ["".join(rng.choices("xyz", k=7)) for _ in range(50_000)]
    dataset = Dataset.from_documents(iter(docs))
    assert dataset.tokenizer.chars == ("a", "m", "n", "x", "y", "z", "é")
    for i in (*range(4), *rng.sample(range(4, len(docs)), 99)):
        assert dataset.tokenizer.decode(dataset[i].tolist()) == docs[i]


def test_ids_take_two_bytes_until_the_vocabulary_needs_four() -> None:
    many = "".join(map(chr, range(0x10000, 0x10000 + 65_536)))  # none of them is blank
    small, large = Dataset.from_documents([many[:60_000]]), Dataset.from_documents(["ab", many])
    assert [small.tokens.dtype.name, large.tokens.dtype.name] == ["uint16", "uint32"]
    assert large.tokenizer.decode(large[1].tolist()) == many
    assert large.tokenizer.decode(large[0].tolist()) == "ab"


@pytest.mark.parametrize(
    "docs",
    [(f"document number {i}" for i in range(200_000)), ["one-document" * 500_000]],
    ids=["many documents", "one long document"],
)
def test_encoding_takes_little_more_memory_than_the_ids(docs: Any) -> None:
    tracemalloc.start()
    dataset = Dataset.from_documents(docs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrays = dataset.tokens.nbytes + dataset.starts.nbytes + dataset.lengths.nbytes
    # A table of all code points takes 4.5 MB; a chunk of text in all its forms or, at the end,
    # offsets that are there twice, some 5 MB. As strings the many documents would take 15 MB
    # more, and 6 MB of text in all its forms 100 MB.
    assert arrays > 10e6
    assert peak < arrays + 12e6


@pytest.mark.parametrize("docs", [[], [""], [" ", "\n\t"]])
def test_dataset_without_documents_is_refused(docs: list[str]) -> None:
    with pytest.raises(DataError, match=r"^dataset is empty$"):
        Dataset.from_documents(docs)
    with pytest.raises(DataError, match=r"^chat dataset is empty$"):
        Dataset.from_conversations([])


def test_unknown_role_is_refused() -> None:
    with pytest.raises(ChatError, match=r"^unknown role: bot$"):
        Dataset.from_conversations([[{"role": "bot", "content": "hi"}]])


def test_percentiles_are_lengths_that_occur() -> None:
    dataset = Dataset.from_documents(["a" * n for n in range(1, 11)])
    assert dataset.length_percentiles(0, 10, 50, 90, 91, 100) == [2, 2, 6, 10, 11, 11]


def test_one_document_alone_is_a_dataset() -> None:
    dataset = Dataset.from_documents(["ab", "c", "de"])
    alone = dataset.only(1)
    assert len(alone) == 1
    assert alone.tokenizer.decode(alone[0].tolist()) == "c"


def test_shuffle_is_that_of_random() -> None:
    dataset = Dataset.from_documents(list("abcdefghij"))
    expected = list(range(10))
    random.Random(5).shuffle(expected)
    assert list(dataset.shuffled(random.Random(5))) == expected


# ---------------------------------------------------------------- another tokenizer


def test_other_tokenizer_encodes_the_same_texts() -> None:
    dataset = Dataset.from_documents(["ba", "c"])
    other = Tokenizer(("0", "1", "a", "b", "c"))
    found = dataset.encoded_with(other)
    assert [found[i].tolist() for i in range(2)] == [
        other.encode_document("ba"),
        other.encode_document("c"),
    ]
    chat = Dataset.from_conversations([[user("a"), assistant("c")]])
    other = Tokenizer(("a", "b", "c"), is_chat=True)
    assert chat.encoded_with(other)[0].tolist() == other.encode_conversation(
        [user("a"), assistant("c")]
    )


def test_other_tokenizer_must_know_the_characters_and_be_of_the_same_kind() -> None:
    dataset = Dataset.from_documents(["abc"])
    with pytest.raises(TokenError, match="does not know: 'b', 'c'"):
        dataset.encoded_with(Tokenizer(("a",)))
    with pytest.raises(DataError, match="expected both of one kind"):
        dataset.encoded_with(Tokenizer(("a", "b", "c"), is_chat=True))


def test_digest_tells_datasets_apart_that_train_differently() -> None:
    base = [TALK, [user("a"), assistant("b")]]
    dataset = Dataset.from_conversations(base)
    assert dataset.digest() == Dataset.from_conversations(base).digest()
    others = [
        Dataset.from_conversations(base[::-1]),
        Dataset.from_conversations(base[:1]),
        dataset.only(0),
        dataset.fitted(8),
        dataset.fitted(8, "split"),
        dataset.only_assistant(),
        Dataset.from_documents(["ab"]),
        Dataset.from_documents(["ac"]),
    ]
    digests = {data.digest() for data in [dataset, *others]}
    assert len(digests) == 1 + len(others)


# ---------------------------------------------------------------- documents that are too long


def predictions(dataset: Dataset) -> Counter[tuple[int, int]]:
    """Return how often each pair of neighbours is learned."""
    pairs: Counter[tuple[int, int]] = Counter()
    for i in range(len(dataset)):
        pairs.update(pairwise(dataset[i].tolist()))
    return pairs


@given(documents, st.integers(1, 9))
def test_truncated_documents_keep_their_beginning(docs: list[str], block_size: int) -> None:
    dataset = Dataset.from_documents(docs)
    fitted = dataset.fitted(block_size)
    assert len(fitted) == len(dataset)
    for i in range(len(dataset)):
        assert fitted[i].tolist() == dataset[i].tolist()[: block_size + 1]


@given(documents, st.integers(1, 9))
def test_split_documents_learn_every_token_once(docs: list[str], block_size: int) -> None:
    dataset = Dataset.from_documents(docs)
    fitted = dataset.fitted(block_size, "split")
    assert fitted.lengths.max() <= block_size
    assert fitted.lengths.min() >= 1
    assert predictions(fitted) == predictions(dataset)


@given(conversations, st.integers(1, 9))
def test_split_conversations_begin_with_a_turn_where_one_fits(
    talks: list[list[Message]], block_size: int
) -> None:
    dataset = Dataset.from_conversations(talks)
    fitted = dataset.fitted(block_size, "split")
    assert fitted.lengths.max() <= block_size
    assert predictions(fitted) == predictions(dataset)
    roles = {dataset.tokenizer.special_id(role) for role in ROLES}
    for i in range(1, len(fitted)):
        before, ids = fitted[i - 1].tolist(), fitted[i].tolist()
        if ids[0] not in roles | {dataset.tokenizer.bos}:  # cut inside a turn
            assert len(before) == block_size + 1
            assert not roles & set(before[1:])


def test_split_conversations_are_cut_as_late_as_a_turn_begins() -> None:
    dataset = Dataset.from_conversations([[user("a"), assistant("b"), user("c"), assistant("d")]])
    # Turns begin at 1, 4, 7 and 10; the last BOS stands at 13.
    assert dataset.fitted(7, "split").lengths.tolist() == [7, 6]
    assert dataset.fitted(6, "split").lengths.tolist() == [4, 6, 3]
    assert dataset.fitted(2, "split").lengths.tolist() == [1, 2, 1, 2, 1, 2, 1, 2, 1]


def test_long_documents_are_skipped() -> None:
    dataset = Dataset.from_documents(["abc", "d", "efgh", "ij"])
    fitted = dataset.fitted(3, "skip")
    assert [fitted.tokenizer.decode(fitted[i].tolist()) for i in range(len(fitted))] == ["d", "ij"]
    assert fitted.tokenizer is dataset.tokenizer


@pytest.mark.parametrize("long", ["truncate", "split", "skip", "window"])
def test_documents_that_fit_stay_as_they_are(long: Any) -> None:
    dataset = Dataset.from_documents(["abc", "d"])
    assert dataset.fitted(4, long) is dataset


def test_documents_for_windows_stay_whole() -> None:
    dataset = Dataset.from_documents(["abc", "d"])
    assert dataset.fitted(2, "window") is dataset


@pytest.mark.parametrize("block_size", [4, 100])
def test_windows_of_conversations_are_refused(block_size: int) -> None:
    with pytest.raises(ConfigError, match=r"^long is 'window', which would begin and") as caught:
        Dataset.from_conversations([TALK]).fitted(block_size, "window")
    assert caught.value.hint == "use split, which divides long conversations between turns"


def test_skipping_every_document_is_refused() -> None:
    with pytest.raises(DataError, match=r"^every document is longer than block_size=3$"):
        Dataset.from_documents(["abc", "defg"]).fitted(3, "skip")


@pytest.mark.parametrize(
    ("block_size", "long", "message"),
    [
        (0, "skip", "block_size is 0, expected an integer of at least 1"),
        (-1, "truncate", "block_size is -1"),
        (4, "wrap", "long is 'wrap', expected one of truncate, split, skip, window"),
    ],
)
def test_way_to_fit_that_there_is_not_is_refused(block_size: int, long: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Dataset.from_documents(["abc"]).fitted(block_size, long)


def test_digest_is_of_the_vocabulary_and_the_documents() -> None:
    dataset = Dataset.from_documents(["ab", "b"])
    # Of the code that wrote the first snapshots: another one would keep them from being resumed.
    assert dataset.digest().startswith("3019455a4961")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat = Dataset.from_conversations([talk])
    assert chat.only_assistant().digest().startswith("ba6e628aad22")
    others = (Dataset.from_documents(["ab", "a"]), Dataset.from_documents(["abb"]), chat)
    assert len({each.digest() for each in (dataset, *others)}) == 4


# ---------------------------------------------------------------- only what the assistant says


def spoken(dataset: Dataset) -> list[str]:
    """Return what of each document counts; end_turn as a full stop."""
    end_turn = dataset.tokenizer.special_id("end_turn")
    result = []
    for i in range(len(dataset)):
        targets = dataset.batch([i], 10**6).targets
        counted = [token_id for token_id in targets.tolist() if token_id >= 0]
        result.append(
            "".join("." if t == end_turn else dataset.tokenizer.decode([t]) or "?" for t in counted)
        )
    return result


def test_only_what_the_assistant_says_counts() -> None:
    dataset = Dataset.from_conversations([TALK, [user("x"), assistant("")]])
    assert spoken(dataset.only_assistant()) == ["hello.see you.", "."]
    assert spoken(dataset) == ["?hi.?hello.?bye.?see you.?", "?x.?.?"]


@given(conversations)
def test_what_counts_is_every_assistant_turn_and_nothing_else(talks: list[list[Message]]) -> None:
    said = [[m["content"] for m in talk if m["role"] == "assistant"] for talk in talks]
    dataset = Dataset.from_conversations(talks)
    if not any(said):
        with pytest.raises(DataError, match="says nothing in any conversation"):
            dataset.only_assistant()
        return
    expected = ["".join(f"{content}." for content in contents) for contents in said if contents]
    assert spoken(dataset.only_assistant()) == expected


def test_conversations_that_are_cut_before_the_reply_are_left_out() -> None:
    dataset = Dataset.from_conversations([[user("a long question"), assistant("no")], TALK])
    assert spoken(dataset.fitted(10).only_assistant()) == ["hello"]


def test_piece_that_begins_inside_a_reply_counts_from_its_start() -> None:
    dataset = Dataset.from_conversations([[user("q"), assistant("abcdefghij")]])
    pieces = dataset.fitted(6, "split").only_assistant()
    assert "".join(spoken(pieces)) == "abcdefghij."


def test_piece_without_a_word_of_the_assistant_is_left_out() -> None:
    dataset = Dataset.from_conversations([[assistant("abc"), user("q"), assistant("d")]])
    # The third piece, [end_turn, user, q, end_turn, assistant], begins with what counts, but that
    # was the last target of the second.
    assert dataset.fitted(4, "split").lengths.tolist() == [1, 4, 4, 3]
    assert spoken(dataset.fitted(4, "split").only_assistant()) == ["abc.", "d."]


def test_plain_documents_have_no_assistant() -> None:
    with pytest.raises(DataError, match=r"^got plain documents, expected conversations$"):
        Dataset.from_documents(["abc"]).only_assistant()


# ---------------------------------------------------------------- batches


def plain_batch(dataset: Dataset, indices: list[int], block_size: int) -> Batch:
    """Return what `batch` should, one document at a time."""
    rows = [dataset[i].astype(np.int32)[: block_size + 1] for i in indices]
    return Batch(
        np.concatenate([ids[:-1] for ids in rows]),
        np.concatenate([ids[1:] for ids in rows]),
        np.array([len(ids) - 1 for ids in rows], np.int32),
    )


@given(documents, st.integers(1, 5), st.integers(1, 3), st.randoms())
def test_batches_are_documents_end_to_end(
    docs: list[str], block_size: int, batch_size: int, rng: random.Random
) -> None:
    dataset = Dataset.from_documents(docs)
    indices = rng.choices(range(len(dataset)), k=3 * batch_size)  # repeats are allowed
    batches = dataset.batches(indices, batch_size, block_size)
    assert len(batches) == 3
    for i, batch in enumerate(batches):
        chosen = indices[i * batch_size : (i + 1) * batch_size]
        expected = plain_batch(dataset, chosen, block_size)
        alone = dataset.batch(chosen, block_size)
        for found, again, wanted in zip(batch, alone, expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(again, wanted)
        assert batch.inputs.dtype == batch.targets.dtype == np.int32
    for again_batch, batch in zip(Batches.of(list(batches)), batches, strict=True):
        for found, wanted in zip(again_batch, batch, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_targets_are_counted_in_what_is_left_of_the_documents() -> None:
    dataset = Dataset.from_documents(["abca", "b", "caab", "abcabcabc"])
    for part in (dataset, dataset.only(2), dataset.fitted(3), dataset.fitted(3, "split")):
        targets = np.concatenate([part[i][1:] for i in range(len(part))])
        expected = np.bincount(targets, minlength=dataset.tokenizer.vocab_size)
        assert part.token_counts().tolist() == expected.tolist()
