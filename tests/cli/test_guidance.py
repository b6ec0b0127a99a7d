"""What a run says about its losses: advice while it trains, and the meaning of the last one."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt import StepReport, TrainConfig, Trainer
from microgpt_cli.guidance import Guide

NAMES = ["anna", "bob", "hannah", "otto", "eve", "ava", "elle", "abel"]
TALKS = [
    [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": f"{word}!"}]
    for word in ("anna", "bob", "otto", "eve")
]


def trainer_of(**options: Any) -> Trainer:
    dataset = microgpt.Dataset.from_documents(NAMES)
    return microgpt.prepare(dataset, TrainConfig(n_embd=4, **options))[1]


def advice_on(trainer: Trainer, losses: list[float]) -> list[str]:
    guide = Guide(trainer)
    reports = (StepReport(step, loss, 0.01, 5) for step, loss in enumerate(losses, 1))
    return [advice for report in reports if (advice := guide.advise(report))]


@pytest.mark.parametrize(
    ("losses", "fault"),
    [
        ([2.4] * 5 + [3.5] * 195, "the loss is 3.50, above the 2.30 of guessing"),
        ([2.0] * 40 + [1.0] * 40 + [1.6] * 120, "the loss has risen from 1.00 to 1.60"),
    ],
    ids=["above guessing", "risen"],
)
def test_rate_that_is_too_high_is_said_once(losses: list[float], fault: str) -> None:
    (advice,) = advice_on(trainer_of(steps=200, learning_rate=0.3), losses)
    assert advice == f"{fault}: the learning rate is too high; try --lr 0.1 or less"


def test_both_rates_of_muon_are_named() -> None:
    muon = {"optimizer": "muon", "muon_learning_rate": 0.6, "learning_rate": 0.3}
    (advice,) = advice_on(trainer_of(steps=200, **muon), [2.4] + [3.5] * 199)
    assert advice.endswith("try --lr 0.1 --muon-lr 0.2 or less")


@pytest.mark.parametrize(
    "losses",
    [
        [2.0 - step / 100 for step in range(200)],
        [2.0] * 40 + [1.0] * 40 + [1.6] * 20 + [1.0] * 100,  # one window
        [3.5] * 40 + [2.0] * 160,  # the first steps
        [3.5 - step / 500 for step in range(200)],  # from initial weights, at a low rate
    ],
    ids=["falling", "a bad moment", "a bad beginning", "a low rate"],
)
def test_losses_that_are_in_order_get_no_advice(losses: list[float]) -> None:
    assert advice_on(trainer_of(steps=200), losses) == []


def test_loss_of_sorted_documents_may_rise() -> None:
    losses = [2.0] * 40 + [1.0] * 40 + [1.6] * 120
    assert advice_on(trainer_of(steps=200, shuffle=False), losses) == []


def test_validation_that_only_stops_falling_needs_no_advice() -> None:
    dataset = microgpt.Dataset.from_documents(NAMES)
    config = TrainConfig(n_embd=4, steps=200, val_fraction=0.25, eval_every=10)
    _, trainer = microgpt.prepare(dataset, config)
    guide = Guide(trainer)
    trainer.best, trainer.step = microgpt.Best(2.0, 10, trainer.engine.parameters.flat), 200
    for loss, is_advised in ((2.05, False), (2.07, True)):
        reports = (StepReport(step, 1.0, 0.01, 5, val_loss=loss) for step in range(1, 9))
        advice = [each for report in reports if (each := guide.advise(report))]
        assert len(advice) == is_advised


def test_warm_up_may_be_above_guessing() -> None:
    assert advice_on(trainer_of(steps=200, warmup_steps=100), [3.5] * 130 + [2.0] * 70) == []


VALIDATED = ("--val-fraction", 0.25, "--eval-every", 10, "--steps", 400, "--lr", 0.05)


def test_validation_that_rises_for_long_is_said_once(cli: Any, names: Path, tmp_path: Path) -> None:
    result = cli("train", "--input", names, "--output", tmp_path / "out", *VALIDATED)
    (advice,) = result.err.splitlines()
    best = microgpt.load(tmp_path / "out").training
    assert best
    step = int(next(line for line in result.lines if line.startswith("best")).split()[3][:-1])
    assert advice == (
        f"warning: the validation loss was least at step {step}: since then the model learns its "
        "documents by heart; that step's weights are saved, and --patience 5 ends a run there"
    )


def test_patience_needs_no_advice(cli: Any, names: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = cli("train", "--input", names, "--output", output, *VALIDATED, "--patience", 20)
    assert result.err == ""
    assert "stopped after step" in result.out


def test_text_that_is_small_for_a_new_model_is_said(cli: Any, names: Path, tmp_path: Path) -> None:
    flags = ("--steps", 1, "--n-embd", 64, "--output", tmp_path / "large")
    (advice,) = cli("train", "--input", names, *flags).err.splitlines()
    assert advice == (
        "warning: 39 tokens for 51,456 weights: the model will learn the text by heart; use more "
        "text or a smaller --n-embd, and --val-fraction 0.1 to see it"
    )
    more = ("--init-from", tmp_path / "large", "--steps", 1, "--output", tmp_path / "more")
    assert cli("train", "--input", names, *more).err == ""
    assert cli("train", "--input", names, "--steps", 1, "--output", tmp_path / "small").err == ""


def test_lines_of_validation_obey_log_every(cli: Any, names: Path, tmp_path: Path) -> None:
    flags = ("--val-fraction", 0.25, "--eval-every", 3, "--steps", 20, "--log-every", 10, "--force")
    job = ("train", "--input", names, "--output", tmp_path / "out", *flags)
    shown = [line.split()[1] for line in cli(*job).lines if "val loss" in line and "|" in line]
    assert shown == ["12", "20"]
    events = map(json.loads, cli(*job, "--json").lines)
    steps = [event["step"] for event in events if event["event"] == "validation"]
    assert steps == [3, 6, 9, 12, 15, 18, 20]


# ---------------------------------------------------------------- the meaning of the last loss


def meaning(cli: Any, *arguments: object) -> tuple[dict[str, Any], list[float]]:
    """Return the figures of a run, and its losses."""
    events = list(map(json.loads, cli("train", *arguments, "--json", "--log-every", 1).lines))
    (figures,) = (event for event in events if event["event"] == "meaning")
    return figures, [event["loss"] for event in events if event["event"] == "step"]


def entropy(counts: Counter[Any]) -> float:
    n = counts.total()
    return -sum(count / n * math.log(count / n) for count in counts.values())


def test_loss_is_explained_beside_guessing_and_counting(
    cli: Any, names: Path, tmp_path: Path
) -> None:
    figures, losses = meaning(cli, "--input", names, "--steps", 50, "--output", tmp_path / "out")
    nats = sum(losses[-20:]) / 20
    assert figures["nats_per_token"] == pytest.approx(nats)
    letters = "".join(NAMES)
    assert figures["bits_per_character"] == pytest.approx(
        nats / math.log(2) * (len(letters) + len(NAMES)) / len(letters)
    )
    assert figures["perplexity"] == pytest.approx(math.exp(nats))
    assert figures["guessing"] == pytest.approx(math.log(len({*letters}) + 1))
    assert figures["counting"] == pytest.approx(entropy(Counter("\n".join([*NAMES, ""]))))


def test_validation_is_explained_where_there_is_one(cli: Any, names: Path, tmp_path: Path) -> None:
    flags = ("--steps", 50, "--val-fraction", 0.25, "--output", tmp_path / "out")
    figures, _ = meaning(cli, "--input", names, *flags)
    record = microgpt.load(tmp_path / "out").training
    assert record
    assert figures["nats_per_token"] == record.val_loss
    text = cli("train", "--input", names, *flags, "--force").out
    assert f"\nvalidation: {record.val_loss:.4f} nats per token, " in text


def test_subwords_are_explained_by_bytes(cli: Any, names: Path, tmp_path: Path) -> None:
    names.write_text("Zoë Zoë\nbanana\n", encoding="utf-8")
    flags = ("--tokenizer", "bpe", "--vocab-size", 260, "--steps", 3, "--output", tmp_path / "out")
    figures, losses = meaning(cli, "--input", names, *flags)
    dataset = microgpt.Dataset.from_documents(["Zoë Zoë", "banana"]).with_subwords(260)
    n_tokens, n_bytes = int(dataset.lengths.sum()), len("Zoë Zoëbanana".encode())
    nats = sum(losses) / 3
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) * n_tokens / n_bytes)
    targets = [token for i in range(2) for token in dataset[i].tolist()[1:]]
    assert figures["counting"] == pytest.approx(entropy(Counter(targets)))


def test_only_targets_are_counted(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(talk) + "\n" for talk in TALKS))
    flags = ("--chat", "--loss-on", "assistant", "--steps", 3, "--output", tmp_path / "out")
    figures, _ = meaning(cli, "--input", path, *flags)
    answers = "".join(f"{talk[1]['content']}\n" for talk in TALKS)
    assert figures["counting"] == pytest.approx(entropy(Counter(answers)))


def test_run_resumed_after_its_last_step_has_nothing_to_explain(
    cli: Any, names: Path, tmp_path: Path
) -> None:
    job = ("--steps", 10, "--snapshot-every", 5, "--output", tmp_path / "out")
    assert "\nlast 10 steps: " in cli("train", "--input", names, *job).out
    resumed = cli("train", "--resume", tmp_path / "out")
    assert resumed.status == 0
    assert "nats" not in resumed.out
