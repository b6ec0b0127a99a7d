"""`microgpt-cli bench`: the speed of the engines on models of several sizes."""

import functools
import json
import os
import random
import statistics
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import microgpt
import typer

from microgpt_cli.options import Threads, field

__all__ = ["Shape", "command", "peak_gflop_per_second", "prepare"]

N_MEASUREMENTS = 5
SECONDS_PER_MEASUREMENT = 0.1
MAX_SECONDS_PER_STEP = 0.5  # an engine slower than this at one shape skips the larger shapes

# Prints the best rate of a float32 matrix product in GFLOP/s. A process of its own, because a BLAS
# library reads its number of threads when it is loaded.
PEAK_PROGRAM = """
import time
import numpy as np
best = 0.0
for m, k, n in [(256, 128, 512), (512, 512, 512), (1024, 1024, 1024)]:
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    c = np.empty((m, n), np.float32)
    for _ in range(20):
        start = time.perf_counter()
        np.matmul(a, b, out=c)
        best = max(best, 2e-9 * m * k * n / (time.perf_counter() - start))
print(best)
"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of a training batch."""

    n_embd: int
    n_head: int
    n_layer: int
    block_size: int
    batch_size: int
    n_tokens: int  # positions of each document

    @property
    def model(self) -> str:
        """The model's sizes, such as 16/4/1/16."""
        return f"{self.n_embd}/{self.n_head}/{self.n_layer}/{self.block_size}"

    @property
    def batch(self) -> str:
        """The batch, such as 16 x 7: documents and positions per document."""
        return f"{self.batch_size} x {self.n_tokens}"

    def gflop(self, vocab_size: int) -> float:
        """Return the operations of one training step's matrix products, in 10^9."""
        weights = 12 * self.n_layer * self.n_embd**2 + vocab_size * self.n_embd
        pairs = self.n_tokens * (self.n_tokens + 1) / 2  # of query and key, causal
        products = weights * self.n_tokens + 2 * self.n_layer * self.n_embd * pairs
        return 3 * 2e-9 * products * self.batch_size  # forward, and twice as much backward


SHAPES = (
    Shape(16, 4, 1, 16, 1, 7),
    Shape(16, 4, 1, 16, 16, 7),
    Shape(64, 4, 1, 16, 16, 7),
    Shape(128, 4, 1, 16, 16, 7),
    Shape(128, 8, 4, 256, 1, 256),
    Shape(128, 8, 4, 256, 8, 256),
)


@dataclass(frozen=True)
class Result:
    """The speed of one engine at one shape."""

    model: str
    batch: str
    engine: str
    us_per_step: float
    tokens_per_second: float
    gflop_per_second: float
    share_of_peak: float
    sampled_tokens_per_second: float


def command(
    *,
    threads: Threads = None,
    optimizer: Annotated[Literal["adam", "muon"], field("optimizer")] = "adam",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the speed of the engines on this machine. In float32; takes half a minute."""
    peak = peak_gflop_per_second(threads)
    if as_json:
        results = [asdict(result) for result in _results(threads, peak, optimizer)]
        typer.echo(json.dumps({"peak_gflop_per_second": round(peak, 1), "results": results}))
        return
    typer.echo("model: n_embd/n_head/n_layer/block_size; step: documents x tokens; float32")
    typer.echo(f"peak: a plain matrix product (NumPy), here {peak:.0f} GFLOP/s\n")
    line = "{:<12} {:<8} {:<11} {:>10} {:>10} {:>8} {:>8} {:>10}".format
    typer.echo(
        line("model", "step", "engine", "per step", "tokens/s", "GFLOP/s", "of peak", "sampled/s")
    )
    for result in _results(threads, peak, optimizer):
        typer.echo(
            line(
                result.model,
                result.batch,
                result.engine,
                _duration(result.us_per_step),
                f"{result.tokens_per_second:,}",
                f"{result.gflop_per_second:.3g}",
                f"{result.share_of_peak:.1%}",
                f"{result.sampled_tokens_per_second:,}",
            )
        )


def _duration(microseconds: float) -> str:
    if microseconds < 1e3:  # noqa: PLR2004 - units
        return f"{microseconds:.1f} us"
    return f"{microseconds / 1e3:.1f} ms"


def peak_gflop_per_second(threads: int | None) -> float:
    """Return the best rate of NumPy's float32 matrix product on this number of cores."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    limits = {name: str(threads) for name in names} if threads else {}
    result = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PEAK_PROGRAM],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env=os.environ | limits,
    )
    return float(result.stdout)


def _results(
    threads: int | None, peak: float, optimizer: Literal["adam", "muon"]
) -> Iterator[Result]:
    missing = microgpt.unavailable_engines()
    engines = [name for name in microgpt.ENGINES if name != "auto" and name not in missing]
    for shape in SHAPES:
        for engine in engines.copy():
            result = _measure(shape, *prepare(shape, engine, threads, optimizer=optimizer), peak)
            if result.us_per_step > MAX_SECONDS_PER_STEP * 1e6 or engine == "scalar":
                engines.remove(engine)
            yield result


def prepare(
    shape: Shape, engine: str, threads: int | None, **options: Any
) -> tuple[microgpt.LanguageModel, microgpt.Trainer]:
    """Return a model of a shape, and a trainer on random letters with unlimited steps.

    Args:
        shape: sizes of model and batch.
        engine: see `microgpt.ENGINES`.
        threads: cores to use; None for all.
        **options: fields of `TrainConfig`.
    """
    rng = random.Random(42)
    documents = [
        "".join(rng.choices(string.ascii_lowercase, k=shape.n_tokens - 1)) for _ in range(256)
    ]
    config = microgpt.TrainConfig(
        steps=1 << 40,
        batch_size=shape.batch_size,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_layer=shape.n_layer,
        block_size=shape.block_size,
        engine=engine,
    )
    dataset = microgpt.Dataset.from_documents(documents)
    return microgpt.prepare(dataset, config, rng, threads=threads, **options)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _measure(
    shape: Shape, model: microgpt.LanguageModel, trainer: microgpt.Trainer, peak: float
) -> Result:
    n_steps = 1 + int(SECONDS_PER_MEASUREMENT / _seconds(lambda: trainer.advance(1)))
    step = statistics.median(
        _seconds(lambda: trainer.advance(n_steps)) / n_steps for _ in range(N_MEASUREMENTS)
    )
    n_samples = 1
    while True:
        elapsed = _seconds(functools.partial(model.generate, n_samples))
        if elapsed >= SECONDS_PER_MEASUREMENT:
            break
        n_samples *= 2
    n_sampled = sum(len(text) + 1 for text in model.generate(n_samples))
    gflop = shape.gflop(model.config.vocab_size)
    return Result(
        model=shape.model,
        batch=shape.batch,
        engine=model.engine.name,
        us_per_step=round(step * 1e6, 1),
        tokens_per_second=round(shape.batch_size * shape.n_tokens / step),
        gflop_per_second=round(gflop / step, 4),
        share_of_peak=round(gflop / step / peak, 5),
        sampled_tokens_per_second=round(n_sampled / elapsed),
    )
