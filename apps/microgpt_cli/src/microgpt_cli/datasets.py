"""Datasets from the files that users name."""

from pathlib import Path

import microgpt

from microgpt_cli.terminal import counted, warn

__all__ = ["read_dataset"]


def read_dataset(path: Path, *, chat: bool) -> microgpt.Dataset:
    """Read documents or conversations; warn about those that were trimmed or left out."""
    if not chat:
        return microgpt.Dataset.from_documents(microgpt.read_documents(path))
    conversations = microgpt.read_conversations(path)
    if conversations.n_trimmed:
        trimmed = counted(conversations.n_trimmed, "conversation")
        warn(f"{trimmed} trimmed: nobody answers the user turn at the end")
    if conversations.n_skipped:
        skipped = counted(conversations.n_skipped, "conversation")
        warn(f"{skipped} left out: there is no assistant turn")
    return microgpt.Dataset.from_conversations(conversations.conversations)
