"""`microgpt-cli score`: the loss of a trained model on files, in all and for each document."""

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import microgpt
import typer

from microgpt_cli.datasets import check_kind, open_texts, read_dataset, warn_of_texts
from microgpt_cli.options import (
    Directory,
    Force,
    JsonField,
    ModelDir,
    Split,
    Threads,
    chosen_directory,
)
from microgpt_cli.plan import Source
from microgpt_cli.terminal import counted, remark, warn
from microgpt_cli.writing import refuse_to_replace

__all__ = ["command"]

HINT = "--unknown skip leaves such characters out, --unknown worst has each cost twice log V"
Unknown: TypeAlias = Literal["error", "skip", "worst"]


class Row(NamedTuple):
    """The score of one document, and where it stands."""

    line: int
    text: str
    nats_per_token: float
    tokens: int
    unknown: int
    file: str


def command(
    directory: Directory = None,
    *,
    model_dir: ModelDir = None,
    input: Annotated[  # noqa: A002 - the name of the flag
        list[str], typer.Option(help="Text file, folder, - for stdin; JSONL for a chat model.")
    ],
    split: Split = "line",
    field: JsonField = None,
    unknown: Annotated[
        Unknown,
        typer.Option(
            help="Characters that the model does not know: refused, left out, or each counted as a "
            "token that costs twice the logarithm of the vocabulary."
        ),
    ] = "error",
    per_document: Annotated[
        bool, typer.Option("--per-document", help="Print the loss of each document too.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File for a row per document: tab-separated, JSON lines if it ends in .jsonl."
        ),
    ] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Measure how well a model predicts text. All characters and ends of documents count.

    In conversations only answers count if the model was trained on answers alone, by
    --loss-on assistant.
    """
    if output:
        refuse_to_replace(output, force=force)
    model = microgpt.load(chosen_directory(directory, model_dir), threads=threads)
    is_chat = model.tokenizer.is_chat
    check_kind(split, field, chat=is_chat)
    if is_chat and (unknown != "error" or output):
        remedy = "--per-document prints the loss of each" if output else "leave it out"
        raise typer.BadParameter(
            f"it is for texts, and this model reads conversations; {remedy}.",
            param_hint="--output" if output else "--unknown",
        )
    source = Source(input, chat=is_chat, split=split, field=field)
    needs_each = per_document or output is not None
    if is_chat:
        dataset = _conversations(model, source)
        total = model.measure(dataset)
        each = [model.measure(dataset.only(i)) for i in range(len(dataset))] if needs_each else []
    else:
        texts = _Texts(source)
        with texts.named():
            rows = list(_rows(model, texts, unknown)) if needs_each else []
            each = [score for _, score in rows]
            total = _total(each) if needs_each else model.measure(texts, unknown=unknown)
        warn_of_texts(texts.documents, source)
        if output:
            microgpt.write_file(output, _table([row for row, _ in rows], output).encode())
    if total.n_unknown:
        treatment = {"skip": "left out", "worst": "counted as twice log V each"}[unknown]
        n_unknown = counted(total.n_unknown, "character")
        warn(f"{n_unknown} that the model does not know {treatment}")
    _print(
        total, [score.nats_per_token for score in each] if per_document else None, as_json=as_json
    )


def _conversations(model: microgpt.LanguageModel, source: Source) -> microgpt.Dataset:
    """Return conversations, in which the turns that the model was trained on count."""
    dataset = read_dataset(source.input, source).encoded_with(model.tokenizer)
    if model.training is None or model.training.options.get("loss_on") != "assistant":
        return dataset
    remark("only the answers count, as in training")
    return dataset.only_assistant()


class _Texts:
    """The documents of a source, and where the latest one stands.

    Args:
        source: text, not conversations.
    """

    def __init__(self, source: Source) -> None:
        self.documents = open_texts(source.input, source)
        self.file, self.line = "", 0

    def __iter__(self) -> Iterator[str]:
        for file, line, text in self.documents.numbered():
            self.file, self.line = file, line
            yield text

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let an error name the latest text."""
        try:
            yield
        except microgpt.TokenError as error:
            message = f"line {self.line} of {self.file}: {error}"
            raise microgpt.TokenError(message, hint=HINT) from error


def _rows(
    model: microgpt.LanguageModel, texts: _Texts, unknown: Unknown
) -> Iterator[tuple[Row, microgpt.Score]]:
    read = deque[tuple[int, str, str]]()  # texts are read before the scores of those before

    def remembered() -> Iterator[str]:
        for text in texts:
            read.append((texts.line, text, texts.file))
            yield text

    for score in model.measure_each(remembered(), unknown=unknown):
        line, text, file = read.popleft()
        yield Row(line, text, score.nats_per_token, score.n_tokens, score.n_unknown, file), score


def _total(scores: Sequence[microgpt.Score]) -> microgpt.Score:
    if not scores:
        raise microgpt.DataError("dataset is empty")
    n_tokens = sum(score.n_tokens for score in scores)
    nats = sum(score.n_tokens * score.nats_per_token for score in scores)
    n_bytes, n_unknown = (
        sum(getattr(each, name) for each in scores) for name in ("n_bytes", "n_unknown")
    )
    return microgpt.Score(n_tokens, nats / n_tokens, n_bytes, n_unknown)


def _table(rows: Sequence[Row], path: Path) -> str:
    """Return rows as JSON lines, or with tabs between columns and a line of names first."""
    if path.suffix == ".jsonl":
        return "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
    lines = ["\t".join(Row._fields)]
    for row in rows:
        shown = row._replace(text=_escaped(row.text))._asdict()
        shown["nats_per_token"] = f"{row.nats_per_token:.6f}"
        lines.append("\t".join(map(str, shown.values())))
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    r"""Return a text without tabs and line ends: as \t and \n, and a backslash as two."""
    return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n")


def _print(total: microgpt.Score, documents: list[float] | None, *, as_json: bool) -> None:
    figures: dict[str, Any] = {
        "n_tokens": total.n_tokens,
        "nats_per_token": total.nats_per_token,
        "bits_per_token": total.bits_per_token,
        "bits_per_byte": total.bits_per_byte,
        "perplexity": total.perplexity,
    }
    if as_json:
        # JSON has no infinity, and no figure for no bytes.
        figures = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        typer.echo(json.dumps(figures | ({} if documents is None else {"documents": documents})))
        return
    for i, nats_per_token in enumerate(documents or [], 1):
        typer.echo(f"{i:6d}  {nats_per_token:.4f}")
    for label, value in figures.items():
        typer.echo(f"{label + ':':<17}{value if label == 'n_tokens' else f'{value:.4f}'}")
