import io
import os
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

import microgpt
import pytest
from microgpt import ConfigError, DataError, read_documents
from microgpt.corpus import sources

IS_WINDOWS = sys.platform == "win32"


def files(folder: Path, **contents: bytes | str) -> None:
    """Write files; a double underscore in a name stands for a folder, a single one for a dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_folder_has_the_text_files_below_it_sorted(tmp_path: Path) -> None:
    files(tmp_path, b_txt="b", a_md="a", z__c_py="c", z__a="d", y__x__e="e")
    documents = read_documents(tmp_path)
    assert list(documents) == ["a", "b", "e", "d", "c"]
    assert +documents.notes.skipped == {}


def test_several_inputs_are_read_in_their_order(tmp_path: Path) -> None:
    files(tmp_path, b="b", a="a", z__c="c")
    given: list[str | Path | BinaryIO] = [
        str(tmp_path / "z"),
        io.BytesIO(b"s"),
        tmp_path / "b",
        tmp_path / "a",
    ]
    assert list(read_documents(given)) == ["c", "s", "b", "a"]


@pytest.mark.skipif(IS_WINDOWS, reason="no named pipes there, and links need a privilege")
def test_what_is_no_text_for_people_is_skipped_and_counted(tmp_path: Path) -> None:
    files(tmp_path, a="a", _hidden="x", _git__config="x", b_png=b"\x89PNG\r\n\x1a\n\0", u="é")
    files(tmp_path, v=b"\xff\xfeb\0", latin=b"")
    microgpt.fit(["ab"], steps=1).save(tmp_path / "model")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "again").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    documents = read_documents(tmp_path)
    expected = {
        "hidden": 2,
        "not text": 1,
        "model directory": 1,
        "unreadable": 1,
        "linked twice": 1,
        "no regular file": 1,
    }
    for _ in range(2):
        assert [*iter(documents)] == ["a", "é", "b"]
        assert documents.notes.skipped == expected


def test_directory_of_a_run_that_has_saved_nothing_yet_is_skipped(tmp_path: Path) -> None:
    files(tmp_path, a="a", out__metrics_jsonl='{"step": 1}')
    with microgpt.lock_directory(tmp_path / "out"):  # what a killed run leaves
        documents = read_documents(tmp_path)
        assert list(documents) == ["a"]
    assert documents.notes.skipped["model directory"] == 1


def test_file_that_is_binary_after_its_beginning_is_skipped(tmp_path: Path) -> None:
    files(tmp_path, a="a", b=b"text\n" * 4000 + b"\0")
    documents = read_documents(tmp_path)
    assert list(documents) == ["a"]
    assert documents.notes.skipped["not text"] == 1


def test_folders_a_thousand_deep_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "walk", lambda *_, **__: (_ for _ in ()).throw(RecursionError))
    with pytest.raises(DataError, match="too many folders in one another"):
        read_documents(tmp_path)


@pytest.mark.parametrize(
    "stream", [io.StringIO("a\nb"), io.TextIOWrapper(io.BytesIO(b"a"), encoding="utf-8")]
)
def test_stream_of_text_is_refused(stream: Any) -> None:
    with pytest.raises(ConfigError, match="the stream is one of text, expected one that is open"):
        read_documents(stream)


def test_empty_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="the path is empty, expected a file or a folder"):
        read_documents("")
    with pytest.raises(DataError, match="no text file in an empty list, expected one"):
        read_documents([])


def test_stream_is_not_read_twice() -> None:
    documents = read_documents(io.BytesIO(b"a\nb"))
    assert [*iter(documents)] == ["a", "b"]
    with pytest.raises(DataError, match="stream is a stream that was read before, expected a file"):
        next(iter(documents))


@pytest.mark.skipif(IS_WINDOWS, reason="links need a privilege there")
def test_folders_linked_in_a_circle_are_read_once(tmp_path: Path) -> None:
    files(tmp_path, notes__a="a")
    (tmp_path / "notes/back").symlink_to(tmp_path, target_is_directory=True)
    documents = read_documents(tmp_path)
    assert list(documents) == ["a"]
    assert documents.notes.skipped["linked twice"] == 1


@pytest.mark.skipif(IS_WINDOWS, reason="a file is not made unreadable there by its mode")
@pytest.mark.skipif(not IS_WINDOWS and os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_of_a_folder_are_counted(tmp_path: Path) -> None:
    files(tmp_path, a="a", b="b", c__d="d")
    (tmp_path / "b").chmod(0)
    (tmp_path / "c").chmod(0)
    documents = read_documents(tmp_path)
    assert list(documents) == ["a"]
    assert documents.notes.skipped["unreadable"] == 2


def test_file_of_a_folder_that_vanishes_is_counted(tmp_path: Path) -> None:
    files(tmp_path, a="a", b="b")
    documents = read_documents(tmp_path)
    (tmp_path / "b").unlink()
    assert list(documents) == ["a"]
    assert documents.notes.skipped["unreadable"] == 1


def test_other_encoding_in_a_folder_is_an_error(tmp_path: Path) -> None:
    files(tmp_path, a="a", b="caf\xe9 au lait".encode("latin-1"))
    path = re.escape(str(tmp_path / "b"))
    with pytest.raises(DataError, match=f"failed to read {path}: invalid UTF-8 on line 1"):
        list(read_documents(tmp_path))


def test_files_that_a_drive_does_not_number_are_different_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, a="a", z__b="b", z__c="c")
    numbered = Path.stat

    def unnumbered(path: Path, **options: bool) -> os.stat_result:
        fields = list(numbered(path, **options))
        fields[1:3] = [0, 0]  # as some drives of networks under Windows
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", unnumbered)
    assert list(read_documents([tmp_path / "a", tmp_path / "z"])) == ["a", "b", "c"]


def test_file_given_twice_is_read_once(tmp_path: Path) -> None:
    files(tmp_path, a="a", b="b")
    documents = read_documents([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert list(documents) == ["a", "b"]
    assert documents.notes.repeated == [str(tmp_path / "a")]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [({}, "none"), ({"_hidden": "x"}, "1 hidden"), ({"a_png": "\0", "b_png": "\0"}, "2 not text")],
)
def test_folder_without_a_text_file_is_an_error(
    tmp_path: Path, contents: dict[str, str], reason: str
) -> None:
    files(tmp_path, **contents)
    with pytest.raises(
        DataError,
        match=f"^no text file in {re.escape(str(tmp_path))}, expected one; skipped: {reason}$",
    ):
        list(read_documents(tmp_path))


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("missing", "(No such file or directory|The system cannot find the .*)"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(DataError, match=rf"failed to read .*: {cause}; expected a UTF-8 text"):
        read_documents(tmp_path / name)


def test_inputs_of_another_type_are_refused() -> None:
    with pytest.raises(ConfigError, match="the path is 3, expected a string or a Path"):
        read_documents([3])  # type: ignore[list-item]


# ---------------------------------------------------------------- pipes and devices


@pytest.mark.skipif(IS_WINDOWS, reason="pipes have no path there")
def test_pipe_is_read_to_its_end() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"a\nb\n")
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert list(read_documents(Path(f"/dev/fd/{pipe.fileno()}"))) == ["a", "b"]


def test_stream_that_was_read_to_its_end_gives_its_documents_once() -> None:
    documents = read_documents(io.BytesIO(b"a\nb"))
    assert len(documents) == 2  # which keeps them
    assert list(documents) == ["a", "b"]


@pytest.mark.skipif(IS_WINDOWS, reason="there are no such devices")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_devices_of_no_text_end_at_once(device: str) -> None:
    with pytest.raises(DataError, match=f"failed to read {device}: (NUL byte|invalid UTF-8)"):
        list(read_documents(device))


class Endless(io.RawIOBase):
    name = "<endless>"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = b"\n" * len(buffer)
        return len(buffer)


def test_stream_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_STREAM", 3 << 20)
    with pytest.raises(DataError, match="failed to read endless: it goes on after 3,145,728 bytes"):
        sum(1 for _ in read_documents(io.BufferedReader(Endless())))


def test_closed_stream_is_an_error() -> None:
    stream = io.BytesIO(b"a")
    stream.close()
    with pytest.raises(DataError, match="failed to read stream: I/O operation on closed file"):
        list(read_documents(stream))
