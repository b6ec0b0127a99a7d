"""Compare speeds side by side, in one run: `hatch run bench`.

Compares microgpt with PyTorch in eager mode, if it is installed and MICROGPT_SHARED (or the folder
`shared` beside this checkout) has its program, and with the rate of NumPy's matrix product on one
core. Both sides alternate, and figures are medians; compare ratios, because machines are noisy.
Takes some ten minutes.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import microgpt
import numpy as np
from microgpt_cli.commands.bench import Shape, peak_gflop_per_second, prepare

ROUNDS = 5
SECONDS = 0.3  # of one measurement
SHARED = Path(os.environ.get("MICROGPT_SHARED", Path(__file__).parents[2] / "shared"))
PEER = SHARED / "peers/torch_gpt.py"
RUST_RATE = 985  # its tokens per second at 128/8/4/256
ORIGINAL_SECONDS = 200  # microgpt.py, 1000 steps
WIDTH = 48  # of the first column
TINY, LARGE = Shape(16, 4, 1, 16, 1, 7), Shape(128, 8, 4, 256, 1, 256)
LARGE_BATCH = Shape(128, 8, 4, 256, 8, 256)
CHAT = Shape(128, 4, 3, 192, 1, 192)
WIDE, WIDER = Shape(256, 8, 6, 256, 4, 256), Shape(384, 6, 6, 256, 4, 256)
AGAINST_TORCH = [  # shape, threads, at least
    (TINY, 1, 75),
    (Shape(16, 4, 1, 16, 16, 7), 1, 16),
    (Shape(64, 4, 1, 16, 16, 7), 1, 3),
    (Shape(128, 4, 1, 16, 16, 7), 1, 1.7),
    (LARGE, 1, 1.6),
    (LARGE, 2, 1.6),
    (LARGE_BATCH, 2, 1.8),
    (WIDE, 1, 1.4),
    (WIDE, 2, 1.5),
    (WIDER, 1, 1.25),
    (WIDER, 2, 1.3),
]


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of `work`."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def our_step(shape: Shape, threads: int) -> float:
    """Return the seconds of one training step: the median over calls of many steps."""
    _, trainer = prepare(shape, "native", threads)
    trainer.advance(2)
    n_steps = 1 + int(SECONDS / 5 / (seconds(lambda: trainer.advance(2)) / 2))
    return statistics.median(seconds(lambda: trainer.advance(n_steps)) / n_steps for _ in range(5))


def loop_step(shape: Shape, threads: int) -> float:
    """Return the seconds of one step of `for report in trainer`, as `our_step` measures."""
    _, trainer = prepare(shape, "native", threads)
    reports, n_steps = iter(trainer), 10_000  # several times as many as are prepared together
    times = (seconds(lambda: deque(islice(reports, n_steps), maxlen=0)) for _ in range(5))
    return statistics.median(times) / n_steps


def torch_step(shape: Shape, threads: int) -> float:
    """Return the seconds of one training step in PyTorch."""
    flags = {
        "n-embd": shape.n_embd,
        "n-head": shape.n_head,
        "n-layer": shape.n_layer,
        "block-size": shape.block_size,
        "vocab": 27,
        "tokens": shape.n_tokens,
        "batch": shape.batch_size,
        "threads": threads,
        "steps": 200 if shape.n_tokens < 100 else 15 if shape.n_embd < 256 else 5,  # noqa: PLR2004
    }
    command = [sys.executable, str(PEER)]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    output = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    return float(json.loads(output)["us_per_step"]) * 1e-6


def report(label: str, ours: float, theirs: float, at_least: float) -> None:
    """Print one line: both durations, their ratio, and the least ratio we accept."""
    times = f"{ours * 1e6:12,.1f} us {theirs * 1e6:12,.1f} us"
    print(f"{label:<{WIDTH}} {times} {theirs / ours:8.2f} x (at least {at_least})", flush=True)


def report_cost(label: str, ours: float, theirs: float, limit: str) -> None:
    """Print one line: both durations, how many times as long ours is, and the limit."""
    times = f"{ours * 1e6:12,.1f} us {theirs * 1e6:12,.1f} us"
    print(f"{label:<{WIDTH}} {times} {ours / theirs:8.2f} times as long ({limit})", flush=True)


def compare_with_torch() -> None:
    """Print training steps against PyTorch."""
    if importlib.util.find_spec("torch") is None or not PEER.exists():
        print("PyTorch, or its program for the same model, is missing: not compared")
        return
    print(f"{'training step':<{WIDTH}} {'microgpt':>15} {'PyTorch':>15}")
    for shape, threads, at_least in AGAINST_TORCH:
        pairs = [(our_step(shape, threads), torch_step(shape, threads)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        label = f"{shape.model}, {shape.batch} tokens, {threads} thread{'s' * (threads > 1)}"
        report(label, ours, theirs, at_least)


def compare_with_itself() -> None:
    """Print two threads against one, loops against calls, and a step against its products."""
    print("\nagainst itself, and its matrix products at the best rate of NumPy on this core")
    pairs = [(our_step(LARGE_BATCH, 2), our_step(LARGE_BATCH, 1)) for _ in range(2 * ROUNDS)]
    two, one = (statistics.median(side) for side in zip(*pairs, strict=True))
    report(f"{LARGE_BATCH.model}, {LARGE_BATCH.batch} tokens, 2 threads / 1", two, one, 1.8)
    pairs = [(loop_step(TINY, 1), our_step(TINY, 1)) for _ in range(2 * ROUNDS)]
    loop, call = (statistics.median(side) for side in zip(*pairs, strict=True))
    report_cost(f"{TINY.model}, for report in trainer / advance", loop, call, "at most 1.3")
    rounds = [(our_step(LARGE, 1), peak_gflop_per_second(1)) for _ in range(ROUNDS)]
    steps, rates = zip(*rounds, strict=True)
    step, rate = statistics.median(steps), max(rates)
    products = LARGE.gflop(vocab_size=27) / rate
    limit = f"at most 1.4; NumPy: {rate:.0f} GFLOP/s"
    report_cost(f"{LARGE.model}, whole step / its products", step, products, limit)


def kernel_rate(model: microgpt.LanguageModel) -> float:
    """Return tokens per second of one call that draws many samples."""
    bos = model.tokenizer.bos
    uniforms = np.random.default_rng(42).random((20_000, model.config.block_size))
    start = time.perf_counter()
    texts = model.engine.sample([bos], uniforms, microgpt.SamplingConfig(), stop=bos)
    return sum(len(text) + 1 for text in texts) / (time.perf_counter() - start)


def facade_rate(model: microgpt.LanguageModel) -> float:
    """Return tokens per second of `LanguageModel.generate`."""
    start = time.perf_counter()
    texts = model.generate(5_000)
    return sum(len(text) + 1 for text in texts) / (time.perf_counter() - start)


def stream_rate(model: microgpt.LanguageModel) -> float:
    """Return tokens per second of one stream, one call each, while its context becomes full."""
    n_tokens = 32
    cache = model.engine.new_cache()
    model.engine.prefill([0] * (model.config.block_size - n_tokens), cache)
    start = time.perf_counter()
    for _ in range(n_tokens):
        model.engine.decode(0, cache)
    return n_tokens / (time.perf_counter() - start)


def lockstep_rates(model: microgpt.LanguageModel) -> tuple[float, float]:
    """Return tokens per second of 64 texts in one call, and of one text, to the block's end."""
    rates = []
    for n_texts in (64, 1):
        uniforms = np.random.default_rng(42).random((n_texts, model.config.block_size))
        start = time.perf_counter()
        model.engine.sample([0], uniforms, microgpt.SamplingConfig(), stop=-1)
        rates.append(uniforms.size / (time.perf_counter() - start))
    return rates[0], rates[1]


def compare_sampling() -> None:
    """Print tokens per second of sampling."""
    print("\nsampling, 1 thread")
    tiny, trainer = prepare(TINY, "native", 1)
    trainer.advance(1000)
    large, _ = prepare(LARGE, "native", 1)
    for label, rate, model, at_least in (
        (f"{TINY.model}, many samples in one call", kernel_rate, tiny, 2_500_000),
        (f"{TINY.model}, LanguageModel.generate", facade_rate, tiny, 1_500_000),
        (f"{LARGE.model}, one stream, full context", stream_rate, large, 10 * RUST_RATE),
    ):
        figure = statistics.median(rate(model) for _ in range(2 * ROUNDS))
        print(f"{label:<{WIDTH}} {figure:12,.0f} tokens/s (at least {at_least:,})", flush=True)
    chat, _ = prepare(CHAT, "native", 1)
    rounds = (lockstep_rates(chat) for _ in range(ROUNDS))
    many, one = map(statistics.median, zip(*rounds, strict=True))
    label = f"{CHAT.model}, 64 texts / one"
    times = f"{many:12,.0f} tokens/s {one:12,.0f} tokens/s"
    print(f"{label:<{WIDTH}} {times} {many / one:8.2f} x (at least 1.8)", flush=True)


def compare_whole_command() -> None:
    """Print the duration of the command for 1000 steps on names, from start to end."""
    print("\nwhole command")
    with tempfile.TemporaryDirectory() as directory:
        names = f"{directory}/names.txt"
        command = [sys.executable, "-m", "microgpt_cli"]
        subprocess.run([*command, "data", "names", "--output", names], check=True)
        train = [*command, "train", "--input", names, "--output", f"{directory}/out", "--force"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

        def work() -> None:
            subprocess.run(train, check=True, stdout=subprocess.DEVNULL, env=environment)

        work()  # compiles the modules, as the first run of an installation does
        elapsed = statistics.median(seconds(work) for _ in range(2 * ROUNDS))
    ratio = ORIGINAL_SECONDS / elapsed
    print(f"{'train, 1000 steps on names':<{WIDTH}} {elapsed:12.2f} s")
    print(f"{'microgpt.py (CPython 3.11)':<{WIDTH}} {ORIGINAL_SECONDS:12.2f} s  {ratio:.0f} x")


def cpu() -> str:
    """Return the processor's name and how many cores may be used."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores {names[0] if names else platform.machine()}"


def main() -> None:
    """Run all comparisons, or those that are named."""
    comparisons = {
        "torch": compare_with_torch,
        "itself": compare_with_itself,
        "sampling": compare_sampling,
        "command": compare_whole_command,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", choices=["all", *comparisons], default="all")
    which = parser.parse_args().which
    machine = f"{platform.system()} {platform.machine()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, float32, {cpu()}")
    for name in comparisons if "all" in which else which:
        comparisons[name]()


if __name__ == "__main__":
    main()
