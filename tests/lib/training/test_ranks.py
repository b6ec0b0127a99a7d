import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from microgpt import Dataset, TrainConfig
from mpi import mpirun, needs_mpi

pytestmark = needs_mpi

# Trains together with each of several options, and writes the reports, the weights and the means of
# every rank.
PROGRAM = """
import json, random, sys
from pathlib import Path
import microgpt
import numpy as np

folder, documents, train, options = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
ranks = microgpt.Ranks()
dataset = microgpt.Dataset.from_documents(documents)
config = microgpt.TrainConfig(**train)
for number, each in enumerate(options):
    _, trainer = microgpt.prepare(dataset, config, random.Random(3), **each, ranks=ranks)
    reports = trainer.advance(4) + list(trainer)
    state = np.concatenate([trainer.engine.parameters.flat, trainer.engine.adam_m.flat])
    state.tofile(folder / f"state-{number}-{ranks.rank}")
    results = [[r.loss, r.n_tokens, r.grad_norm, r.val_loss] for r in reports]
    found = json.dumps([results, trainer.best.step])
    (folder / f"reports-{number}-{ranks.rank}").write_text(found)
"""
DOCUMENTS = [random.Random(i).choice("abc") * (1 + i % 7) for i in range(40)]
TRAIN: dict[str, Any] = {
    "steps": 12,
    "batch_size": 6,
    "clip": 0.5,
    "weight_decay": 0.1,
    "learning_rate": 0.05,
}
OPTIONS: dict[str, Any] = {
    "n_embd": 8,
    "n_head": 2,
    "block_size": 5,
    "val_fraction": 0.25,
    "eval_every": 5,
}
MUON, BPE = {"optimizer": "muon"}, {"tokenizer": "bpe", "vocab_size": 262}


def run_job(n_processes: int, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command, environment = mpirun(n_processes, "-c", program, *arguments)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.parametrize(
    ("n_processes", "engines_and_more"),
    [
        (2, [("native", {}), ("native", MUON), ("native", BPE), ("vectorized", MUON)]),
        (3, [("native", {}), ("native", MUON), ("vectorized", {})]),
    ],
    ids=["two", "three"],
)
def test_ranks_that_share_a_batch_train_as_one_process_does(
    tmp_path: Path, n_processes: int, engines_and_more: list[tuple[str, dict[str, Any]]]
) -> None:
    options = [
        OPTIONS | {"engine": engine, "dtype": "float64"} | more for engine, more in engines_and_more
    ]
    arguments = map(json.dumps, (DOCUMENTS, TRAIN, options))
    job = run_job(n_processes, PROGRAM, tmp_path, *arguments)
    assert job.returncode == 0, job.stderr
    for number, each in enumerate(options):
        check_job(tmp_path, n_processes, number, each)


def check_job(folder: Path, n_processes: int, number: int, options: dict[str, Any]) -> None:
    """Compare what the ranks wrote with the training of one process."""
    dataset = Dataset.from_documents(DOCUMENTS)
    _, alone = microgpt.prepare(dataset, TrainConfig(**TRAIN), random.Random(3), **options)
    expected = [[r.loss, r.n_tokens, r.grad_norm, r.val_loss] for r in alone]
    state = np.concatenate([alone.engine.parameters.flat, alone.engine.adam_m.flat])
    for rank in range(n_processes):
        results, best_step = json.loads((folder / f"reports-{number}-{rank}").read_text())
        found = np.array(results, np.float64)
        # Sums in another order: 1e-16 each, which twelve steps amplify.
        np.testing.assert_allclose(found, np.array(expected, np.float64), rtol=1e-11)
        assert alone.best
        assert best_step == alone.best.step
        found_state = np.fromfile(folder / f"state-{number}-{rank}")
        np.testing.assert_allclose(found_state, state, rtol=1e-9, atol=1e-12)
    # All hold the same state to the last bit, or they would drift apart.
    states = {(folder / f"state-{number}-{rank}").read_bytes() for rank in range(n_processes)}
    assert len(states) == 1


REFUSED = """
import random, sys
import microgpt

ranks = microgpt.Ranks()
documents = ["anna", "bob", "otto"] if ranks.rank or not int(sys.argv[1]) else ["anna", "bob", "o"]
config = microgpt.TrainConfig(batch_size=int(sys.argv[2]))
dataset = microgpt.Dataset.from_documents(documents)
try:
    microgpt.prepare(
        dataset,
        config,
        random.Random(3),
        val_fraction=0.3,
        eval_every=10 + ranks.rank * int(sys.argv[3]),
        ranks=ranks,
    )
except microgpt.ConfigError as error:
    print(f"{error} | {error.hint}")
"""


@pytest.mark.parametrize("differing", [(1, 2, 0), (0, 2, 1)], ids=["data", "eval_every"])
def test_ranks_that_are_set_up_otherwise_are_refused(differing: tuple[int, ...]) -> None:
    job = run_job(2, REFUSED, *differing)
    lines = sorted(job.stdout.splitlines())
    hint = " | give all processes the same files, flags and snapshot"
    assert lines == [
        f"rank {a} has other data, options or weights than rank {1 - a}{hint}" for a in (0, 1)
    ]


def test_batch_with_less_than_a_document_for_each_rank_is_refused() -> None:
    job = run_job(3, REFUSED, 0, 2, 0)
    message = "batch_size is 2, expected at least one document for each of the 3 processes | None"
    assert job.stdout.splitlines() == [message] * 3


LOST = """
import os, signal, time
import microgpt
import numpy as np

ranks = microgpt.Ranks()
if ranks.rank == 1:
    time.sleep(60)  # does not answer
asked_at = time.monotonic() + 0.2
ranks.is_leaving = lambda: time.monotonic() > asked_at
try:
    ranks.add(np.ones(3))
except microgpt.RankLostError as error:
    print(error, round(time.monotonic() - asked_at, 1))
ranks.abort(3)
"""


def test_rank_that_is_asked_to_end_does_not_wait_for_the_dead() -> None:
    job = run_job(2, LOST)
    assert job.stdout.startswith(
        "rank 0 was asked to end, and the other 1 did not finish the step within 0.1 s"
    )
    assert job.returncode == 3


LOST_IN_UPDATE = """
import json, random, sys, time
import microgpt
import numpy as np

documents, options = map(json.loads, sys.argv[1:])
ranks = microgpt.Ranks()
dataset = microgpt.Dataset.from_documents(documents)
config = microgpt.TrainConfig(steps=3, batch_size=4)
_, trainer = microgpt.prepare(dataset, config, random.Random(3), **options, ranks=ranks)
engine = trainer.engine
trainer.advance(1)
state = engine.parameters.flat, engine.adam_m.flat, engine.adam_v.flat
before = [array.copy() for array in state]
asked_at = time.monotonic() + 0.2
ranks.is_leaving = lambda: time.monotonic() > asked_at
if ranks.rank == 1:
    ranks.exchange = lambda shares: time.sleep(60)  # does not answer
try:
    trainer.advance(1)
except microgpt.RankLostError:
    same = [np.array_equal(a, b) for a, b in zip(state, before)]
    print(trainer.step, engine.n_updates, same)
ranks.abort(3)
"""


@pytest.mark.parametrize("engine", ["native", "vectorized"])
def test_rank_lost_during_muons_update_leaves_the_step_before(engine: str) -> None:
    options = {"n_embd": 8, "n_head": 2, "block_size": 5, "optimizer": "muon", "engine": engine}
    job = run_job(2, LOST_IN_UPDATE, json.dumps(DOCUMENTS), json.dumps(options))
    assert job.stdout == "1 1 [True, True, True]\n", job.stderr


SHARES = """
import json
import microgpt
import numpy as np

ranks = microgpt.Ranks()
lengths = np.array([1, 4, 2, 4, 3])
ids = np.arange(14)
share = ranks.share(microgpt.Batch(ids, ids + 1, lengths))
print(json.dumps([ranks.rank, *(part.tolist() for part in share)]))
"""


def test_every_document_of_a_batch_is_learned_once_and_long_ones_are_dealt_out() -> None:
    job = run_job(2, SHARES)
    shares = sorted(json.loads(line) for line in job.stdout.splitlines())
    # Of lengths 4, 4, 3, 2, 1 each takes every second, in the order of the batch.
    assert [share[3] for share in shares] == [[1, 4, 3], [4, 2][::-1]]
    assert shares[0][1] == [0, 1, 2, 3, 4, 11, 12, 13]
    assert shares[0][2] == [i + 1 for i in shares[0][1]]
    assert sorted(shares[0][1] + shares[1][1]) == list(range(14))


def test_missing_mpi4py_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(microgpt.EngineError, match="cannot join the other processes") as info:
        microgpt.Ranks()
    assert info.value.hint is not None
    assert info.value.hint.startswith("pip install mpi4py, and an MPI library")
