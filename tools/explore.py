"""Measure the experiments of libs/microgpt/docs/learning.md: `python tools/explore.py [NAME ...]`.

Variants of an experiment differ in one thing, and take the same documents in the same order with
each seed. Runs use one thread and can share the machine with others: losses do not depend on that,
and the cost of a step is in processor time. Results are added to learning.json, and `hatch run
pictures learning` draws them and writes the tables. A variant with a result is not run again.
"""

import argparse
import json
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import microgpt
from learn import SEED, read, trained
from recipes import config_of

RESULTS = Path(__file__).parents[1] / "libs/microgpt/docs/learning.json"
N_SEEDS = 3

NAMES = (
    "--n-embd 48 --n-layer 2 --batch-size 64 --steps 1000 --warmup-steps 100 --optimizer muon "
    "--lr 0.007 --muon-lr 0.015"
)
SHAKESPEARE = (
    "--long window --n-embd 64 --n-layer 2 --block-size 64 --batch-size 12 --steps 1000 "
    "--warmup-steps 100 --optimizer muon --lr 0.005 --muon-lr 0.02"
)
ADAM = "--n-embd 48 --n-layer 2 --batch-size 64 --warmup-steps 100"
ADAM_SHAKESPEARE = (
    "--long window --n-embd 64 --n-layer 2 --block-size 64 --batch-size 12 --warmup-steps 100"
)
WIDTHS = (16, 32, 64, 128, 256, 512)
RATES = (0.005, 0.01, 0.02, 0.04)


def one_by_one(base: str, *changes: str) -> dict[str, str]:
    """Return a variant for each change of a base, and the base itself."""
    return {change or "base": f"{base} {change}".rstrip() for change in ("", *changes)}


def rates_of(width: int) -> dict[str, str]:
    """Return variants with other rates of Muon at one width."""
    base = f"--n-embd {width} --batch-size 64 --steps 400 --warmup-steps 40 --optimizer muon"
    return {f"--muon-lr {rate}": f"{base} --muon-lr {rate}" for rate in RATES}


def rates_of_adam(base: str, *runs: tuple[float, int]) -> dict[str, str]:
    """Return variants of Adam, of a learning rate and a number of steps each."""
    return {
        f"adam --lr {rate} --steps {steps}": f"{base} --steps {steps} --lr {rate}"
        for rate, steps in runs
    }


TABLES = {
    "names, optimizer": {
        **rates_of_adam(
            ADAM, (0.003, 1000), (0.006, 1000), (0.012, 1000), (0.003, 1400), (0.006, 1400)
        ),
        **one_by_one(NAMES, "--muon-lr 0.01", "--muon-lr 0.025", "--lr 0.0035", "--lr 0.014"),
    },
    "tiny Shakespeare, optimizer": {
        **rates_of_adam(ADAM_SHAKESPEARE, (0.005, 1000), (0.01, 1000), (0.005, 1300)),
        **one_by_one(SHAKESPEARE, "--muon-lr 0.01", "--muon-lr 0.04", "--lr 0.01"),
    },
    "tiny Shakespeare, other options": one_by_one(
        SHAKESPEARE,
        "--weight-decay 0.1",
        "--muon-iterations 3",
        "--schedule cosine",
        "--batch-size 24 --steps 500 --warmup-steps 50",
    ),
    "names, batch and steps": one_by_one(
        NAMES,
        "--batch-size 32 --steps 2000",
        "--batch-size 128 --steps 500 --warmup-steps 50",
        "--batch-size 256 --steps 250 --warmup-steps 25",
    ),
    "names, schedule": one_by_one(NAMES, "--schedule cosine", "--hold 0.5", "--hold 0.8"),
    "names, warm-up": one_by_one(
        NAMES, "--warmup-steps 0", "--warmup-steps 20", "--warmup-steps 300"
    ),
    "names, iterations": one_by_one(NAMES, "--muon-iterations 3", "--muon-iterations 4"),
    "names, momentum": one_by_one(
        NAMES, "--muon-momentum 0.9", "--muon-momentum 0.97", "--muon-momentum 0.98"
    ),
    "names, weight decay": one_by_one(
        NAMES, "--weight-decay 0.02", "--weight-decay 0.1", "--weight-decay 0.3"
    ),
    "names, mean of the last weights": one_by_one(
        NAMES,
        "--average 0.99",
        "--schedule constant",
        "--schedule constant --average 0.99",
        "--hold 0.8 --average 0.99",
    ),
}
BUDGETS = {  # by optimizer, at its best rates
    name: [f"{base} --steps {steps}" for steps in (250, 500, 1000, 2000)]
    for name, base in {
        "adam": f"{ADAM} --lr 0.006",
        "muon": NAMES.replace("--steps 1000 ", ""),
    }.items()
}
EXPERIMENTS = {
    **TABLES,
    "names, time": {flags: flags for runs in BUDGETS.values() for flags in runs},
    **{f"names, {width} wide": rates_of(width) for width in WIDTHS},
}
ONE_SEED = ("names, 256 wide", "names, 512 wide")  # which take minutes


class Explored(microgpt.TrainConfig, frozen=True, kw_only=True):
    """Options of a run, and those that are tried but are not in the library.

    Args:
        hold: share of the steps after the warm-up at the full rate, before a linear decay (warm-up,
            stable, decay); the `schedule` counts if it is 0.
        average: share of the running mean of the weights that each step keeps; 0 for none.
    """

    hold: float = 0.0
    average: float = 0.0

    def rate_at(self, step: int) -> float:
        """Return the factor of the highest learning rate at a step."""
        if not self.hold or step < self.warmup_steps:
            return super().rate_at(step)
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return min(1.0, (1 - progress) / (1 - self.hold))


def measure(flags: str, seed: int) -> dict[str, Any]:
    """Return the result of one run, with what identifies it; a loss of None if it diverged."""
    config = config_of(flags, Explored, seed=seed)
    dataset = read("shakespeare" if config.long == "window" else "names")
    row: dict[str, Any] = {"flags": flags, "seed": seed, "loss": None}
    with suppress(microgpt.NonFiniteLossError):
        outcome = trained(
            dataset, config, threads=1, clock=time.process_time, average=config.average
        )
        row["loss"] = round(outcome.loss, 4)
        row["processor_seconds"] = round(outcome.seconds, 2)
    return row


def results() -> list[dict[str, Any]]:
    """Return all results so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def keep(row: dict[str, Any]) -> None:
    """Add one result to the file, which another process may have changed."""
    rows = sorted([*results(), row], key=lambda each: (each["flags"], each["seed"]))
    lines = ",\n".join(json.dumps(each) for each in rows)
    RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Run the experiments that are named, or all, and keep their results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", nargs="*", choices=[[], *EXPERIMENTS], help="default: all")
    for experiment in parser.parse_args().experiment or EXPERIMENTS:
        seeds = range(SEED, SEED + (1 if experiment in ONE_SEED else N_SEEDS))
        for seed, flags in product(seeds, EXPERIMENTS[experiment].values()):
            if any((row["flags"], row["seed"]) == (flags, seed) for row in results()):
                continue
            row = measure(flags, seed)
            keep(row)
            print(experiment, *row.values(), flush=True)


if __name__ == "__main__":
    main()
