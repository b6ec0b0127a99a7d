"""Compare what Adam and Muon learn in the same time: `hatch run learn`.

Trains the recipe of Muon, and the best one known of Adam for the same time, on the same documents
in the same order, one after the other, and prints seconds of training (without validation) and the
validation loss. Takes some ten minutes on two cores. The names are those of makemore, the text is
tiny Shakespeare; both are read from the folder `data` of MICROGPT_SHARED (or of the folder `shared`
beside this checkout).

    hatch run learn                          # all
    hatch run learn names-1s names-10s       # some recipes
    hatch run learn --threads 1 --seeds 1    # beside other jobs: time is that of the processor
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import microgpt
from bench import SHARED, cpu
from microgpt.training.validation import validation_loss
from recipes import ADAM, RECIPES, config_of

SEED = 42
N_SEEDS = {"names-1s": 5, "names-10s": 5, "names-60s": 2, "shakespeare-60s": 2}
STEPS_TOGETHER = 20  # in one call


@dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Args:
        seconds: of training, without validation.
        loss: on the documents held out, in nats per token.
        n_params: of the model.
    """

    seconds: float
    loss: float
    n_params: int


def read(recipe: str) -> microgpt.Dataset:
    """Return the documents of a recipe."""
    is_names = recipe.startswith("names")
    path = SHARED / "data" / ("names.txt" if is_names else "tinyshakespeare.txt")
    return microgpt.Dataset.from_documents(
        microgpt.read_documents(path, split="line" if is_names else "file")
    )


def trained(
    dataset: microgpt.Dataset,
    config: microgpt.TrainConfig,
    *,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    average: float = 0.0,
) -> Outcome:
    """Train on nine tenths of the documents, and validate once, on the last tenth.

    Args:
        dataset: all documents.
        config: options of the run.
        threads: cores to use; None for all.
        clock: in seconds.
        average: share of the running mean of the weights that each step keeps; the mean
            replaces the weights at the end. 0 for none.
    """
    model, trainer = microgpt.prepare(dataset, config, val_fraction=0.1, threads=threads)
    assert trainer.validation is not None, "val_fraction is set"
    validation, trainer.validation = trainer.validation, None
    weights = model.engine.parameters.flat
    mean, keep = weights.copy(), average**STEPS_TOGETHER
    start = clock()
    while not trainer.is_finished:
        trainer.advance(STEPS_TOGETHER)
        mean += (1 - keep) * (weights - mean)
    seconds = clock() - start
    weights[:] = mean
    return Outcome(seconds, validation_loss(model.engine, validation), model.config.n_params)


def compare(recipe: str, n_seeds: int, threads: int | None) -> None:
    """Print one row: means over the seeds, and the range of the paired differences."""
    dataset = read(recipe)
    clock = time.process_time if threads == 1 else time.perf_counter
    pairs = []
    for seed in range(SEED, SEED + n_seeds):
        configs = [
            config_of(flags, microgpt.TrainConfig, seed=seed)
            for flags in (ADAM[recipe], RECIPES[recipe])
        ]
        pairs.append([trained(dataset, config, threads=threads, clock=clock) for config in configs])
    gains = [adam.loss - muon.loss for adam, muon in pairs]
    cells = []
    for outcomes in zip(*pairs, strict=True):
        seconds = statistics.mean(each.seconds for each in outcomes)
        loss = statistics.mean(each.loss for each in outcomes)
        cells += [f"{outcomes[0].n_params:9,}", f"{seconds:7.2f} s", f"{loss:.4f}"]
    spread = f"{min(gains):+.4f} to {max(gains):+.4f}" if n_seeds > 1 else f"{gains[0]:+.4f}"
    print(f"{recipe:<15} {n_seeds:5}  {'  '.join(cells)}  {spread}", flush=True)


def main() -> None:
    """Compare the recipes that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", nargs="*", choices=[[], *ADAM], help="default: all")
    parser.add_argument("--seeds", type=int, help="number of seeds, from 42 on")
    parser.add_argument("--threads", type=int, help="cores; with 1, time is that of the processor")
    arguments = parser.parse_args()
    if not (SHARED / "data/names.txt").exists():
        parser.error(f"no names.txt in {SHARED / 'data'}: set MICROGPT_SHARED to a folder with it")
    print(cpu())
    print(f"{'recipe':<15} seeds  {'Adam':<29}  {'Muon':<29}  gain, nats")
    for recipe in arguments.recipe or N_SEEDS:
        compare(recipe, arguments.seeds or N_SEEDS[recipe], arguments.threads)


if __name__ == "__main__":
    main()
