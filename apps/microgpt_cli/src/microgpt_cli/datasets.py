"""Datasets from the files, folders and streams that users name."""

import sys
from collections.abc import Sequence
from typing import Any

import microgpt
import typer

from microgpt_cli.plan import Source
from microgpt_cli.system import END_OF_INPUT
from microgpt_cli.terminal import counted, remark, warn

__all__ = [
    "STDIN",
    "check_kind",
    "open_texts",
    "read_dataset",
    "read_talks",
    "read_texts",
    "warn_of_texts",
    "with_subwords",
]

STDIN = "-"


def check_kind(split: str, field: str | None, *, chat: bool) -> None:
    """Raise BadParameter for two flags that each say what a document is."""
    if chat and (split != "line" or field is not None):
        raise typer.BadParameter(
            "not with conversations.", param_hint="--field" if field else "--split"
        )
    if split != "line" and field is not None:
        raise typer.BadParameter("use it or --field, not both.", param_hint="--split")


def read_dataset(paths: Sequence[str], source: Source) -> microgpt.Dataset:
    """Read documents or conversations; warn about those that were changed or left out.

    Args:
        paths: files, folders, or "-" for stdin.
        source: how to read them.
    """
    if source.chat:
        return microgpt.Dataset.from_conversations(read_talks(paths).conversations)
    return read_texts(paths, source)[0]


def read_texts(paths: Sequence[str], source: Source) -> tuple[microgpt.Dataset, microgpt.Documents]:
    """Read documents as `read_dataset` does; return the notes about their lines too."""
    documents = open_texts(paths, source)
    dataset = microgpt.Dataset.from_documents(documents)
    warn_of_texts(documents, source)
    return dataset, documents


def open_texts(paths: Sequence[str], source: Source) -> microgpt.Documents:
    """Return documents that are read when they are used."""
    return microgpt.read_documents(_opened(paths), split=source.split, field=source.field)


def read_talks(paths: Sequence[str], *, keep_unanswered: bool = False) -> microgpt.Conversations:
    """Read conversations; warn about those that were trimmed or left out."""
    conversations = microgpt.read_conversations(_opened(paths), keep_unanswered=keep_unanswered)
    _warn_of_files(conversations.notes)
    if conversations.n_trimmed:
        trimmed = counted(conversations.n_trimmed, "conversation")
        warn(f"{trimmed} trimmed: nobody answers the user turn at the end")
    for reason, n in conversations.skipped.items():
        warn(f"{counted(n, 'conversation')} left out: {reason}")
    return conversations


def with_subwords(dataset: microgpt.Dataset, vocab_size: int | None) -> microgpt.Dataset:
    """Learn subwords unless they are learned; warn about fewer than were asked for."""
    if not isinstance(dataset.tokenizer, microgpt.SubwordTokenizer):
        size = {} if vocab_size is None else {"vocab_size": vocab_size}
        dataset = dataset.with_subwords(**size)
    if vocab_size and dataset.tokenizer.vocab_size < vocab_size:
        warn(
            f"the vocabulary has {dataset.tokenizer.vocab_size:,} of {vocab_size:,} tokens: "
            "no pair is left to merge"
        )
    return dataset


def _opened(paths: Sequence[str]) -> list[Any]:
    """Return the paths, and stdin in place of "-"."""
    if STDIN in paths and sys.stdin.isatty():
        remark(f"reading stdin; {END_OF_INPUT}")
    return [sys.stdin.buffer if path == STDIN else path for path in paths]


def warn_of_texts(documents: microgpt.Documents, source: Source) -> None:
    """Warn about documents that were read: what was changed or left out."""
    notes = documents.notes
    _warn_of_files(notes)
    if source.split == "line" and notes.n_indented:
        lines = counted(notes.n_indented, "line")
        warn(f"{lines} lost leading space; --split paragraph or --split file keeps it")
    if notes.json_files:
        warn(
            f"{_first(notes.json_files)}: JSON is learned as plain text; --field NAME takes a "
            "field of each line, --chat reads conversations"
        )


def _warn_of_files(notes: Any) -> None:
    if skipped := ", ".join(f"{n:,} {reason}" for reason, n in notes.skipped.items() if n):
        warn(f"skipped in folders: {skipped}")
    if notes.repeated:
        warn(f"given twice, read once: {_first(notes.repeated)}")
    if notes.newlines:
        warn(f"lines end with CR in {_first(notes.newlines)}: read as line ends")


def _first(names: Sequence[str]) -> str:
    """Return the first name, and how many more there are."""
    return names[0] + f" and {len(names) - 1:,} more" * (len(names) > 1)
