import io
import re
import sys
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import ConfigError, DataError, Documents, read_documents

POEM = "\n\nRoses\n  are red;\n \n\n\nViolets \n\tare blue.\n"
SPLITS = {
    "line": ["Roses", "are red;", "Violets", "are blue."],
    "paragraph": ["Roses\n  are red;", "Violets \n\tare blue."],
    "file": [POEM],
}


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_text(POEM)
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_split_says_what_a_document_is(poem: Path, split: str) -> None:
    documents = read_documents(poem, split=split)  # type: ignore[arg-type] # from a table
    assert list(documents) == SPLITS[split]
    assert [documents[0], documents[-1], len(documents)] == [
        SPLITS[split][0],
        SPLITS[split][-1],
        len(SPLITS[split]),
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_datasets_take_documents_as_they_are(poem: Path, split: str) -> None:
    documents = read_documents(str(poem), split=split)  # type: ignore[arg-type] # from a table
    for chosen in (documents, documents[:1]):
        dataset = microgpt.Dataset.from_documents(chosen)
        texts = [dataset.tokenizer.decode(dataset[i].tolist()) for i in range(len(dataset))]
        assert texts == list(chosen)


def test_other_texts_are_stripped_as_ever() -> None:
    dataset = microgpt.Dataset.from_documents([" a\nb ", "\n"])
    assert [dataset.tokenizer.decode(dataset[i].tolist()) for i in range(len(dataset))] == ["a\nb"]


def test_slices_are_documents_of_the_same_kind(poem: Path) -> None:
    part = read_documents(poem, split="paragraph")[1:]
    assert isinstance(part, Documents)
    assert (part.split, list(part), part[0]) == ("paragraph", [SPLITS["paragraph"][1]], part[0])
    assert list(part[5:]) == []


def test_every_iteration_reads_the_file_anew(poem: Path) -> None:
    documents = read_documents(poem)
    assert next(iter(documents)) == "Roses"
    poem.write_text("other\n", encoding="utf-8")
    assert [*iter(documents)] == ["other"]
    assert documents.notes.n_lines == 1


def test_long_texts_are_encoded_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"{i} " for i in range(400_000))
    (tmp_path / "numbers.txt").write_text(text)
    documents = read_documents([io.BytesIO(b"x"), tmp_path / "numbers.txt"], split="file")
    pieces = [list(document) for document in documents.pieces()]
    assert len(pieces[1]) > 2
    dataset = microgpt.Dataset.from_documents(read_documents(tmp_path, split="file"))
    assert dataset.tokenizer.decode(dataset[0].tolist()) == text
    assert dataset.lengths.tolist() == [len(text) + 1]


def test_paragraphs_of_many_lines_are_encoded_whole(tmp_path: Path) -> None:
    text = "\n".join(f"  line {i}" for i in range(60_000))
    (tmp_path / "long.txt").write_text(f"{text}\n\nend\n")
    documents = read_documents(tmp_path, split="paragraph")
    assert list(documents) == [text, "end"]
    dataset = microgpt.Dataset.from_documents(documents)
    assert dataset.tokenizer.decode(dataset[0].tolist()) == text
    assert dataset.tokenizer.decode(dataset[1].tolist()) == "end"


def test_blank_files_and_lines_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n\t\n")
    (tmp_path / "b.txt").write_text("")
    for split in SPLITS:
        assert list(read_documents(tmp_path, split=split)) == []  # type: ignore[arg-type] # a table
    with pytest.raises(DataError, match="dataset is empty"):
        microgpt.Dataset.from_documents(read_documents(tmp_path))


def test_notes_count_blank_and_indented_lines(poem: Path) -> None:
    documents = read_documents(poem)
    for _ in range(2):  # and forget those of the reading before
        assert len([*iter(documents)]) == 4
        notes = documents.notes
        assert (notes.n_lines, notes.n_blank, notes.n_indented) == (4, 5, 2)


# ---------------------------------------------------------------- fields of JSON lines


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_field_of_json_lines_is_the_document(tmp_path: Path) -> None:
    rows = ('{"id": 1, "the text": "  a\\n b "}', "", '{"the text": " "}', '{"the text": "c"}')
    path = write(tmp_path / "rows.jsonl", *rows)
    documents = read_documents(path, field="the text")
    assert list(documents) == ["  a\n b ", "c"]
    assert list(documents[:1]) == ["  a\n b "]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a"}', "missing required field `text`"),
        ('{"text": 3}', r"Expected `str`, got `int` - at `\$.text`"),
        ('{"text": null}', "Expected `str`, got `null`"),
        ("a", "JSON is malformed"),
        (r'{"text": "\ud800"}', "half of a surrogate pair"),
    ],
)
def test_line_without_the_field_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "a"}', line)
    place = f"^invalid JSON on line 2 of {re.escape(str(path))}: .*{message}"
    with pytest.raises(DataError, match=f'{place}.*; expected an object with the string "text"$'):
        list(read_documents(path, field="text"))


@pytest.mark.parametrize(
    ("line", "is_json"),
    [('{"a": 1}', True), ("[1, 2]", True), ("{a", False), ("3", False), ("[" * 10_000, False)],
)
def test_json_that_is_read_as_text_is_noted(tmp_path: Path, line: str, *, is_json: bool) -> None:
    path = write(tmp_path / "rows.txt", line, "a")
    documents = read_documents(path)
    assert list(documents) == [line, "a"]
    assert documents.notes.json_files == [str(path)] * is_json
    for split in SPLITS:
        documents = read_documents(path, split=split)  # type: ignore[arg-type] # from a table
        assert list(documents)
        assert documents.notes.json_files == [str(path)] * is_json


def test_lines_of_a_field_end_with_lf(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", r'{"text": "a\r\nb\rc"}')
    assert list(read_documents(path, field="text")) == ["a\nb\nc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "word"}, "split is 'word', expected one of line, paragraph, file"),
        ({"field": 3}, "field is 3, expected a string or None"),
        ({"field": "a", "split": "file"}, "got field='a' and split='file', expected one of them"),
    ],
)
def test_options_out_of_their_domain_are_named(poem: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_documents(poem, **options)


# ---------------------------------------------------------------- what stumbled before


def test_scenes_keep_their_lines(shared: Path) -> None:
    scene = shared / "trials/scene.txt"
    assert len(read_documents(scene, split="paragraph")) == 3
    (whole,) = read_documents(scene, split="file")
    assert whole == scene.read_text()
    assert (
        "\n" in microgpt.Dataset.from_documents(read_documents(scene, split="file")).tokenizer.chars
    )


def test_code_keeps_its_indentation(shared: Path) -> None:
    code = shared / "trials/indented.py.txt"
    assert list(read_documents(code, split="file")) == [code.read_text()]
    assert read_documents(code, split="paragraph")[0].startswith("def area(r):\n    if r < 0:\n")
    lines = read_documents(code)
    assert len(lines) == 6
    assert lines.notes.n_indented == 4


def test_own_standard_library_is_text() -> None:
    folder = Path(sys.modules["json"].__file__ or "").parent
    documents = read_documents(folder, split="file")
    assert len(documents) >= 4
    assert all("\n    " in text for text in documents[:2])
    assert documents.notes.skipped["not text"] >= 0
