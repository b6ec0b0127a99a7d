"""`microgpt-cli data`: sample data, and the description of a file."""

import gzip
import json
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import microgpt
import typer

from microgpt_cli.datasets import check_kind, read_talks, read_texts, with_subwords
from microgpt_cli.options import Force, JsonField, Split, VocabSize, check_vocab_size
from microgpt_cli.options import field as train_field
from microgpt_cli.plan import Source
from microgpt_cli.terminal import counted
from microgpt_cli.writing import refuse_to_replace

__all__ = ["command"]

MAX_BLOCK_SIZE = 1024  # of the suggestion
WINDOW = 128  # suggested block size of windows, for files of half the length or more
SHARE_OF_CODE = 0.1  # of lines that are indented
SHARE_BETWEEN_PARAGRAPHS = 0.02  # of blank lines: after every fiftieth line or more often
SECONDS_OF_TRIAL = 0.3
STEPS = 1000  # of the estimate

app = typer.Typer(
    help="Write sample data, or describe your own.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
command = app

Output = Annotated[Path | None, typer.Option(help="File to write.", show_default="stdout")]


@app.command()
def names(*, output: Output = None, force: Force = False) -> None:
    """Write a list of given names, one per line."""
    _write("names.txt", output, force=force)


@app.command()
def poem(*, output: Output = None, force: Force = False) -> None:
    """Write Milton's Paradise Lost, a text of 450,000 characters."""
    _write("poem.txt.gz", output, force=force)


@app.command()
def chat(*, output: Output = None, force: Force = False) -> None:
    """Write conversations to train with --chat on, one per line."""
    _write("chat.jsonl.gz", output, force=force)


@app.command()
def faq(*, output: Output = None, force: Force = False) -> None:
    """Write 40 questions and answers of a shop.

    Each question has five phrasings; the first 40 lines hold one of each.
    """
    _write("faq.jsonl", output, force=force)


@app.command()
def questions(*, output: Output = None, force: Force = False) -> None:
    """Write questions and answers for evaluate. No conversation of `data chat` holds one."""
    _write("questions.jsonl.gz", output, force=force)


def _write(name: str, output: Path | None, *, force: bool) -> None:
    """Write a sample file to `output` or stdout."""
    content = (files("microgpt_cli") / "sample_data" / name).read_bytes()
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    _write_content(content, output, force=force)


def _write_content(content: bytes, output: Path | None, *, force: bool) -> None:
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    refuse_to_replace(output, force=force, content=content)
    microgpt.write_file(output, content)


@app.command()
def stats(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Text files, folders, - for stdin.")
    ],
    *,
    split: Split = "line",
    field: JsonField = None,
    chat: Annotated[bool, typer.Option("--chat", help="Read conversations.")] = False,
    tokenizer: Annotated[Literal["characters", "bpe"], train_field("tokenizer")] = "characters",
    vocab_size: VocabSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe files. Vocabulary, lengths of documents, and training time on this machine."""
    check_kind(split, field, chat=chat)
    check_vocab_size(vocab_size, tokenizer)
    source = Source(inputs, chat=chat, split=split, field=field)
    suggested: dict[str, str] = {}
    kinds: dict[str, int] = {}
    if chat:
        conversations = read_talks(inputs)
        kinds = dict(conversations.kinds)
        dataset = microgpt.Dataset.from_conversations(conversations.conversations)
    else:
        dataset, documents = read_texts(inputs, source)
        suggested = _suggested_split(documents)
    by_characters = dataset
    if tokenizer == "bpe":
        dataset = with_subwords(dataset, vocab_size)
    p50, p90, p99, longest = dataset.length_percentiles(50, 90, 99, 100)
    block_size = min(max(1 << (p99 - 1).bit_length(), 2), MAX_BLOCK_SIZE)
    is_long = p50 > (WINDOW if split == "file" else MAX_BLOCK_SIZE)
    if is_long and not chat:  # else most documents would lose most of their text
        suggested["suggested_long"], block_size = "window", WINDOW
    covered = float((dataset.lengths <= block_size).mean())
    figures: dict[str, Any] = {
        "documents": len(dataset),
        "tokens": int(dataset.lengths.sum()),
        "characters": len(by_characters.tokenizer.chars),
        "vocab_size": dataset.tokenizer.vocab_size,
        "tokens_p50": p50,
        "tokens_p90": p90,
        "tokens_p99": p99,
        "tokens_longest": longest,
        "suggested_block_size": block_size,
        "covered": covered,
        "not_ascii": _n_not_ascii(by_characters),
        "seconds_per_1000_steps": _seconds_of_training(dataset, block_size),
    } | suggested
    if chat:
        figures["kinds"] = kinds
    if tokenizer == "bpe":
        figures["characters_per_token"] = round(
            float(by_characters.lengths.sum() / dataset.lengths.sum()), 3
        )
    charset = by_characters.tokenizer.chars
    if as_json:
        typer.echo(json.dumps(figures | {"charset": list(charset)}))
        return
    for label, value in _rows(figures, "".join(charset)).items():
        typer.echo(f"{label + ':':<17}{value}")


@app.command()
def convert(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files of conversations, - for stdin.")
    ],
    *,
    output: Output = None,
    force: Force = False,
) -> None:
    """Write conversations of any form as JSON lines."""
    conversations = read_talks(inputs).conversations
    lines = [json.dumps(messages, ensure_ascii=False) + "\n" for messages in conversations]
    _write_content("".join(lines).encode(), output, force=force)


def _suggested_split(documents: microgpt.Documents) -> dict[str, str]:
    """Return another split for files whose lines are no documents of their own."""
    notes = documents.notes
    if documents.split != "line" or documents.field is not None:
        return {}
    if notes.n_indented > SHARE_OF_CODE * notes.n_lines:
        return {"suggested_split": "file"}
    if notes.n_blank > SHARE_BETWEEN_PARAGRAPHS * notes.n_lines:
        return {"suggested_split": "paragraph"}
    return {}


def _rows(figures: dict[str, Any], charset: str) -> dict[str, str]:
    """Return the description for people, by label."""
    block_size, longest = figures["suggested_block_size"], figures["tokens_longest"]
    unit = "subword" if "characters_per_token" in figures else "character"
    rows = {
        "documents": f"{figures['documents']:,}",
        "tokens": f"{figures['tokens']:,} (each predicted once: {unit}s and ends)",
        "vocabulary": f"{figures['vocab_size']} ({counted(figures['characters'], 'character')})",
        "charset": repr(charset),
        "not ASCII": f"characters of {counted(figures['not_ascii'], 'document')}",
        "document length": f"half up to {figures['tokens_p50']}, 90 % up to "
        f"{figures['tokens_p90']}, 99 % up to {figures['tokens_p99']}, longest {longest}",
        "block size": f"--block-size {block_size} covers {figures['covered']:.1%} of the documents",
    }
    if per_token := figures.get("characters_per_token"):
        rows["vocabulary"] = (
            f"{figures['vocab_size']} (subwords; a block holds {per_token:.2f} times the text that "
            "it holds by characters)"
        )
    if kinds := figures.get("kinds"):
        rows["forms"] = ", ".join(f"{n:,} with {key}" for key, n in kinds.items())
    if split := figures.get("suggested_split"):
        reason = {"file": "many lines are indented", "paragraph": "blank lines part the text"}
        rows["split"] = f"--split {split} is worth a try: {reason[split]}"
        rows["samples"] = "end as documents do; longer passages need --split file --long window"
    if long := figures.get("suggested_long"):
        rows["block size"] = f"--block-size {block_size} with --long {long}: documents are long"
    return rows | {
        "training": f"{STEPS} steps of the default model at that block size: about "
        f"{figures['seconds_per_1000_steps']:.2g} s here"
    }


def _n_not_ascii(dataset: microgpt.Dataset) -> int:
    """Return the number of documents with a character beyond ASCII."""
    chars = dataset.tokenizer.chars  # sorted by code point, as their ids are
    first = sum(char.isascii() for char in chars)
    (at,) = ((dataset.tokens >= first) & (dataset.tokens < len(chars))).nonzero()
    ends = dataset.starts + dataset.lengths
    return int((at.searchsorted(ends) > at.searchsorted(dataset.starts)).sum())


def _seconds_of_training(dataset: microgpt.Dataset, block_size: int) -> float:
    """Return the time of 1000 training steps, estimated from a short trial."""
    config = microgpt.TrainConfig(steps=STEPS, block_size=block_size)
    _, trainer = microgpt.prepare(dataset, config)
    trainer.advance(1)  # the first step includes the set-up
    start = time.perf_counter()
    while trainer.step < STEPS and time.perf_counter() - start < SECONDS_OF_TRIAL:
        trainer.advance(min(10, STEPS - trainer.step))
    return round((time.perf_counter() - start) / (trainer.step - 1) * STEPS, 3)
