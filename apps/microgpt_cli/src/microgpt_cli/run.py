"""The training loop of the command line: reports, saves, signals, and the end of a run."""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import microgpt
import typer

from microgpt_cli.errors import Failures
from microgpt_cli.guidance import Guide
from microgpt_cli.interruption import interruptible
from microgpt_cli.plan import Pace
from microgpt_cli.questions import ask_trained
from microgpt_cli.reporting import Reporter
from microgpt_cli.saving import Saver
from microgpt_cli.terminal import shown, typed, warn

__all__ = ["Run", "follow", "lead"]

SECONDS_PER_CALL = 0.1  # of the library, between two checks for signals
CLOCK_SECONDS = 1e-7  # a tick of the clock of Windows
N_QUESTIONS = 100  # asked at the end of a run on conversations
SECONDS_PER_SHARED_CALL = 0.02  # in an MPI job, because mpirun leaves little time to save


@dataclass(frozen=True)
class Run:
    """A training run that is set up.

    Args:
        model: the model that is trained.
        trainer: trains it.
        pace: when something is due.
        saver: writes its files.
        reporter: reports its events.
        failures: errors of saver and reporter; none of them ends the run.
        guide: advises on its losses.
    """

    model: microgpt.LanguageModel
    trainer: microgpt.Trainer
    pace: Pace
    saver: Saver
    reporter: Reporter
    failures: Failures
    guide: Guide


class Advance(NamedTuple):
    """The steps of one call of the library, and the speed since the run began or was resumed."""

    reports: list[microgpt.StepReport]
    elapsed: float  # seconds
    steps_per_second: float
    tokens_per_second: float


def advances(trainer: microgpt.Trainer, pace: Pace, received: list[int]) -> Iterator[Advance]:
    """Take the remaining steps, a few per call, until the last step or a signal.

    Args:
        trainer: takes them.
        pace: where a call has to end.
        received: the signals so far.
    """
    ranks = trainer.ranks
    if ranks:
        ranks.is_leaving = lambda: bool(received)
    seconds_per_call = SECONDS_PER_SHARED_CALL if ranks else SECONDS_PER_CALL
    first_step, n_tokens = trainer.step, 0
    start = time.perf_counter() - CLOCK_SECONDS  # so that no time since is 0
    while not trainer.is_finished:
        elapsed = time.perf_counter() - start
        n_in_time = 1 + int((trainer.step - first_step) / elapsed * seconds_per_call)
        n = 0 if received else min(pace.next_stop(trainer.step) - trainer.step, n_in_time)
        n = ranks.least(n) if ranks else n
        reports = trainer.advance(n)
        if not reports:
            return
        elapsed = time.perf_counter() - start
        n_tokens += sum(report.n_tokens for report in reports)
        n_steps = trainer.step - first_step
        yield Advance(reports, elapsed, n_steps / elapsed, n_tokens / elapsed)


class LastGood:
    """The latest weights that are known to give a finite loss.

    Args:
        trainer: `remember` its weights before each call of `advance`.
    """

    def __init__(self, trainer: microgpt.Trainer) -> None:
        self._trainer = trainer
        self._weights: list[tuple[int, Any]] = []  # after so many steps; two at most
        self.remember()

    def remember(self) -> None:
        """Copy the current weights."""
        now = (self._trainer.step, self._trainer.engine.parameters.flat.copy())
        self._weights = [*self._weights[-1:], now]

    def restore(self) -> bool:
        """Restore the latest good weights, unless they are the initial ones; return whether."""
        # A step was taken from weights that gave a finite loss.
        good = [weights for step, weights in self._weights if 0 < step < self._trainer.step]
        if good:
            self._trainer.engine.parameters.flat[:] = good[-1]
        return bool(good)


def follow(trainer: microgpt.Trainer, pace: Pace) -> None:
    """Train along with the first process of an MPI job, which saves and reports.

    Args:
        trainer: of this process.
        pace: that of the first process.

    Raises:
        Exit: a signal has ended the run.
    """
    with interruptible() as received:
        for _ in advances(trainer, pace, received):
            pass
    if not trainer.is_finished:
        raise typer.Exit(_status(received))


def lead(run: Run, header: dict[str, Any], rng: random.Random) -> None:
    """Train to the end or until a signal, save, and show samples.

    Args:
        run: set up, at its first step or resumed.
        header: first report, by label.
        rng: for the samples at the end.

    Raises:
        Exit: a signal has ended the run.
        MicrogptError: training failed, or a file or stdout beside it.
    """
    trainer = run.trainer
    start = time.perf_counter()
    with interruptible() as received:
        run.reporter.start(header, trainer.step)
        run.saver.begin()
        good = LastGood(trainer)
        try:
            with run.reporter.progress(trainer.step):
                for advance in advances(trainer, run.pace, received):
                    _attend(run, advance)
                    good.remember()
        except microgpt.NonFiniteLossError as error:
            error.hint = f"{error.hint}; {_keep_good(run, good)}"
            raise
        except microgpt.RankLostError as error:
            run.saver.save_snapshot()
            if not run.failures:
                error.hint = f"resume with {_resuming(run)}"
            raise
        except BaseException:
            _save(run)
            raise
        _save(run)
    if not trainer.is_finished:
        if run.failures:
            raise run.failures[0]
        _warn_interrupted(run)
        raise typer.Exit(_status(received))
    samples: list[str] = []
    if run.model.tokenizer.is_chat:
        _ask(run)
    else:
        samples = _closing_samples(run, rng)
    _report_result(run, samples, time.perf_counter() - start)
    if run.failures:
        raise run.failures[0]


def _attend(run: Run, advance: Advance) -> None:
    """Report, sample and save after the steps of a call, where that is due."""
    trainer, pace, n_failures = run.trainer, run.pace, len(run.failures)
    run.saver.add_metrics(advance.reports, advance.tokens_per_second, advance.elapsed)
    for report in advance.reports:
        if advice := run.guide.advise(report):
            run.reporter.advise(advice)
    run.reporter.steps(
        advance.reports[-1],
        advance.steps_per_second,
        advance.tokens_per_second,
        is_best=trainer.best is not None and trainer.best.step == trainer.step,
        is_last=trainer.is_finished,
    )
    if pace.sample_every and trainer.step % pace.sample_every == 0:
        _sample(run)
    if pace.snapshot_every and trainer.step % pace.snapshot_every == 0:
        run.saver.save_snapshot()
    for failure in run.failures[n_failures:]:
        warn(f"{failure}; training continues")


def _sample(run: Run) -> None:
    """Show a sample; its draws are not those of training."""
    if run.reporter.style != "quiet" and not run.model.tokenizer.is_chat:
        step = run.trainer.step
        (text,) = run.model.generate(1, seed=step)
        run.reporter.sample(step, text)


def _save(run: Run) -> None:
    """Save the best model so far, or without validation the latest; and a snapshot to resume."""
    trainer = run.trainer
    if not trainer.step:
        return
    if not trainer.is_finished:
        run.saver.save_snapshot()  # first, because the best weights replace the latest
    _save_model(run)


def _save_model(run: Run) -> None:
    run.trainer.use_best()
    if run.trainer.has_lost_patience:
        run.reporter.stopped_early(run.trainer)
    if run.trainer.best:
        run.reporter.best(run.trainer.best)
    if run.reporter.style != "quiet" and (meaning := run.guide.explanation()):
        text, figures = meaning
        run.reporter.event("meaning", text, **figures)
    run.saver.save_model()
    run.reporter.saved(run.saver.directory)


def _keep_good(run: Run, good: LastGood) -> str:
    """Save the last good model unless another run is kept; return a hint about it."""
    if run.saver.replaces:
        return f"{run.saver.directory} is as it was before"
    if not good.restore() and run.trainer.best is None:
        return "nothing was learned before"
    try:
        _save_model(run)
    except microgpt.MicrogptError as error:
        return str(error)
    return f"{run.saver.directory} holds the last good weights"


def _warn_interrupted(run: Run) -> None:
    step, n_steps = run.trainer.step, run.trainer.config.steps
    if step:
        warn(f"interrupted after step {step} of {n_steps}; resume with {_resuming(run)}")
    else:
        warn("interrupted before the first step; there is nothing to save")


def _resuming(run: Run) -> str:
    return f"microgpt-cli train --resume {typed(run.saver.directory)}"


def _status(received: list[int]) -> int:
    """Return the exit status of a run that a signal has ended, of this process or another."""
    return 128 + (received[0] if received else signal.SIGTERM)


def _closing_samples(run: Run, rng: random.Random) -> list[str]:
    if not run.pace.num_samples:
        return []
    samples = run.model.generate(run.pace.num_samples, rng=rng)
    text = "\n".join(["\n--- samples ---", *(f"  {_indented(sample)}" for sample in samples)])
    run.reporter.event("samples", text, samples=samples)
    return samples


def _ask(run: Run) -> None:
    """Ask a chat model some of the questions that it was trained on, and show a few answers."""
    is_shown = run.pace.num_samples and run.reporter.style != "quiet"
    answers = ask_trained(run.model, run.trainer, N_QUESTIONS) if is_shown else []
    if not answers:
        return
    lines, system = ["\n--- trained questions ---"], ""
    for answer in answers[: run.pace.num_samples]:
        if answer.system != system:
            system = answer.system
            lines.append(f"  system: {_indented(system) or 'none'}")
        lines += [f"  > {_indented(answer.question)}", f"  {_indented(answer.reply)}"]
    n_right = sum(answer.is_right for answer in answers)
    lines.append(f"{n_right} of {len(answers)} answered word for word (temperature 0)")
    run.reporter.event(
        "questions",
        "\n".join(lines),
        asked=len(answers),
        right=n_right,
        answers=[answer._asdict() for answer in answers],
    )


def _indented(text: str) -> str:
    return shown(text).replace("\n", "\n  ")


def _report_result(run: Run, samples: list[str], elapsed: float) -> None:
    best = run.trainer.best
    run.reporter.event(
        "result",
        "",
        steps=run.trainer.step,
        stopped_early=run.trainer.step < run.trainer.config.steps,
        val_loss=best and best.val_loss,
        best_step=best and best.step,
        elapsed=round(elapsed, 3),
        model_dir=str(run.saver.directory),
        samples=samples,
    )
