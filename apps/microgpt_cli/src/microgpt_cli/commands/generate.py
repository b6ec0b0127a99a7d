"""`microgpt-cli generate`: new documents from a trained model."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeAlias

import microgpt
import typer

from microgpt_cli.drawing import MAX_DRAWS, Sample, Wanted, draw
from microgpt_cli.options import (
    Directory,
    Force,
    MaxTokens,
    ModelDir,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    chosen_directory,
)
from microgpt_cli.progress import sample_count
from microgpt_cli.terminal import counted, shown, warn
from microgpt_cli.writing import refuse_to_replace

__all__ = ["command"]

Line: TypeAlias = Callable[[int, Sample], str]  # from a sample and its number


def command(
    directory: Directory = None,
    *,
    model_dir: ModelDir = None,
    num_samples: Annotated[
        int,
        typer.Option(min=0, help="Number of samples; sample i, from 0, has seed SEED + i."),
    ] = 20,
    temperature: Temperature = microgpt.SamplingConfig.temperature,
    seed: Seed = microgpt.SamplingConfig.seed,
    prompt: Annotated[str, typer.Option(help="Beginning of every sample.")] = "",
    top_k: TopK = microgpt.SamplingConfig.top_k,
    top_p: TopP = microgpt.SamplingConfig.top_p,
    max_tokens: MaxTokens = microgpt.SamplingConfig.max_tokens,
    stop: Stop = None,
    unique: Annotated[
        bool,
        typer.Option(
            "--unique",
            help=f"Each text once: draw on until there are enough, at most {MAX_DRAWS} per sample.",
        ),
    ] = False,
    novel: Annotated[
        list[str] | None,
        typer.Option(help="Only texts that are no line of this file; may be repeated."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print the texts alone, one per line.")
    ] = False,
    null: Annotated[
        bool,
        typer.Option(
            "--null", help="As --plain, with a NUL byte after each in place of a line end."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write, as --plain; JSON lines if it ends in .jsonl.",
            show_default="stdout",
        ),
    ] = None,
    force: Force = False,
    threads: Threads = None,
) -> None:
    """Print samples of a trained model."""
    if as_json and (plain or null):
        raise typer.BadParameter("use it or --plain, not both.", param_hint="--json")
    line: Line = _numbered
    if as_json or (output and output.suffix == ".jsonl" and not (plain or null)):
        line = _as_json
    elif plain or null or output:
        line = _with_null if null else _with_line_end
    if output:
        refuse_to_replace(output, force=force)
    known = {text for path in novel or [] for text in microgpt.read_documents(path)}
    wanted = Wanted(num_samples, unique, bool(novel), known)
    config = microgpt.SamplingConfig(temperature, top_k, top_p, max_tokens, stop or [], seed)
    model = microgpt.load(chosen_directory(directory, model_dir), threads=threads)
    if model.tokenizer.is_chat:
        warn("the model was trained on conversations; microgpt-cli chat replies to messages")
    start = model.prompt(prompt, too_long="truncate" if max_tokens else "error")
    if start.tokens_dropped:
        dropped = counted(start.tokens_dropped, "token")
        warn(f"{dropped} at the beginning of the prompt do not fit into the block and are not read")
    drawn = chain.from_iterable(draw(model, prompt, start, config, wanted))
    with _written(output) as write, sample_count(num_samples, is_shown=bool(output)) as count:
        has_line_ends = False
        for number, sample in enumerate(drawn, 1):
            write(line(number, sample))
            count(number)
            has_line_ends |= "\n" in sample.text
    if has_line_ends and num_samples > 1 and line is _with_line_end:
        warn("some texts hold line ends; --null tells where each ends, and --json")


def _numbered(number: int, sample: Sample) -> str:
    return f"sample {number:2d}: {shown(sample.text)}\n"


def _with_line_end(_: int, sample: Sample) -> str:
    return f"{sample.text}\n"


def _with_null(_: int, sample: Sample) -> str:
    return f"{sample.text}\0"


def _as_json(number: int, sample: Sample) -> str:
    fields = {"sample": number, "seed": sample.seed, "text": sample.text}
    return json.dumps(fields, ensure_ascii=False) + "\n"


@contextmanager
def _written(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Yield what writes a text to stdout at once, or to a file at the end, also of too few."""
    if path is None:
        # Not typer.echo, which removes the escape sequences of colours.
        yield partial(print, end="", flush=True)
        return
    parts: list[str] = []
    try:
        yield parts.append
    except microgpt.DataError:
        microgpt.write_file(path, "".join(parts).encode())
        raise
    microgpt.write_file(path, "".join(parts).encode())
