"""Datasets in few words, and as tables of a notebook."""

import pytest
from markup import shown_in
from microgpt import Dataset
from texts import TALK, assistant, user

LONG = "<i>x</i> " * 30


def rows_of(dataset: Dataset) -> dict[str, str]:
    _, *cells = shown_in(dataset._repr_html_())
    return dict(zip(cells[::2], cells[1::2], strict=True))


def test_dataset_is_described_on_one_line() -> None:
    dataset = Dataset.from_documents(["anna", "bo"] * 600)
    assert repr(dataset) == "<Dataset: documents 1,200, tokens 4,800, longest 5, vocabulary 5>"
    talks = Dataset.from_conversations([[user("hi"), assistant("hi")]])
    assert repr(talks) == "<Dataset: conversations 1, tokens 9, longest 9, vocabulary 6>"
    assert repr(dataset.only(len(dataset))).startswith("<Dataset: documents 0, tokens 0")


def test_dataset_shows_its_sizes_and_first_documents() -> None:
    rows = rows_of(Dataset.from_documents(["anna", "a&b", "otto", "bob", "ann", "nan"]))
    assert rows == {
        "documents": "6",
        "tokens": "26",
        "longest": "5",
        "vocabulary": "7 tokens: &abnot",
        "document 0": "anna",
        "document 1": "a&b",
        "document 2": "otto",
        "document 3": "bob",
        "document 4": "ann",
    }


def test_conversation_shows_who_speaks() -> None:
    talk = [user("hi"), assistant("hello"), user("<b>")]
    rows = rows_of(Dataset.from_conversations([talk]))
    assert rows["document 0"] == "[user] hi [assistant] hello [user] <b>"


def test_long_documents_are_cut_and_the_table_stays_small() -> None:
    dataset = Dataset.from_documents([LONG] * 9)
    assert rows_of(dataset)["document 0"] == LONG[:59].rstrip() + " …"
    assert len(dataset._repr_html_()) < 2000


@pytest.mark.parametrize(("n", "end"), [(58, ""), (59, ""), (60, " …")])
def test_mark_of_a_cut_stands_where_text_is_left_out(n: int, end: str) -> None:
    dataset = Dataset.from_documents(["x" * n])
    assert rows_of(dataset)["document 0"] == "x" * min(n, 59) + end


def test_part_of_a_document_is_shown_from_its_first_character() -> None:
    parts = Dataset.from_documents(["abcdef"]).fitted(3, "split")
    assert [rows_of(parts)[f"document {i}"] for i in range(2)] == ["abc", "cdef"]


def test_subwords_are_shown_as_text() -> None:
    dataset = Dataset.from_documents(["naïve ☺"])
    assert rows_of(dataset.with_subwords(257))["document 0"] == "naïve ☺"
    talks = Dataset.from_conversations([TALK]).with_subwords(262)
    assert rows_of(talks)["document 0"].startswith("[user]")
