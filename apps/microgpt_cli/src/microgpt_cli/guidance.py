"""Advice from the losses of a run while it trains, and the meaning of its last loss."""

import math
from collections import deque
from collections.abc import Sequence
from operator import mul
from typing import Any

import microgpt

from microgpt_cli.terminal import counted

__all__ = ["Guide", "advice_on_size"]

WEIGHTS_PER_TOKEN = 10  # above it, a model learns its text by heart
FEW_WEIGHTS = 10_000  # of a model for trying things out
N_WINDOWS = 50  # of the whole run, within these steps each: single losses are noisy
MIN_WINDOW, MAX_WINDOW = 20, 500
RISE = 0.5  # nats by which the mean of two windows is above the best one
STALE = 5  # validations, and STALE_SHARE of the run, without a better one
STALE_SHARE = 0.2
WORSE = 1.03  # times the best one, each of the latest validations
MAX_EXPONENT = 700


def advice_on_size(trainer: microgpt.Trainer) -> str | None:
    """Return what to do about a text that is small for a new model; None if it is not."""
    dataset, n_params = trainer.dataset, trainer.engine.config.n_params
    n_tokens = int(dataset.lengths.sum(dtype="int64"))
    if n_params <= max(FEW_WEIGHTS, WEIGHTS_PER_TOKEN * n_tokens):
        return None
    if dataset.tokenizer.is_chat or trainer.origin:  # that is what they are for
        return None
    return (
        f"{counted(n_tokens, 'token')} for {n_params:,} weights: the model will learn the text by "
        "heart; use more text or a smaller --n-embd, and --val-fraction 0.1 to see it"
    )


class Guide:
    """Watches the losses of a run, and explains the last loss.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: microgpt.Trainer) -> None:
        self._trainer = trainer
        self._window = min(max(MIN_WINDOW, trainer.config.steps // N_WINDOWS), MAX_WINDOW)
        self._first: float | None = None  # loss, of the initial weights
        self._latest: deque[float] = deque(maxlen=self._window)  # losses
        self._means: list[float] = []  # of the windows so far
        self._n_reports = 0
        self._val_losses: deque[float] = deque(maxlen=STALE)
        self._has_advised_rate = self._has_advised_stop = False

    def advise(self, report: microgpt.StepReport) -> str | None:
        """Return what to do about the losses so far, once for each kind of trouble.

        Args:
            report: of the latest step; each step is reported once, in order.
        """
        self._first = report.loss if self._first is None else self._first
        self._latest.append(report.loss)
        self._n_reports += 1
        advice = None
        if self._n_reports % self._window == 0:
            self._means.append(math.fsum(self._latest) / self._window)
            advice = self._advice_on_rate(report.step)
        if report.val_loss is not None:
            self._val_losses.append(report.val_loss)
            advice = advice or self._advice_on_stopping()
        return advice

    def _advice_on_rate(self, step: int) -> str | None:
        latest = self._means[-2:]
        is_early = len(latest) < 2 or step <= self._trainer.config.warmup_steps + 2 * self._window  # noqa: PLR2004 - two windows
        if self._has_advised_rate or is_early:
            return None
        least, best, guessing = min(latest), min(self._means), self._guessing
        assert self._first is not None, "a window is over"
        if least > max(guessing, self._first + RISE):
            fault = f"the loss is {latest[-1]:.2f}, above the {guessing:.2f} of guessing"
        elif least > best + RISE and self._trainer.config.shuffle:  # of documents in one mixture
            fault = f"the loss has risen from {best:.2f} to {latest[-1]:.2f}"
        else:
            return None
        self._has_advised_rate = True
        rate = f"--lr {self._trainer.learning_rate / 3:.2g}"
        if muon_rate := self._trainer.config.muon_learning_rate:
            rate += f" --muon-lr {muon_rate / 3:.2g}"
        return f"{fault}: the learning rate is too high; try {rate} or less"

    def _advice_on_stopping(self) -> str | None:
        trainer, best = self._trainer, self._trainer.best
        if self._has_advised_stop or trainer.config.patience or not (best and trainer.validation):
            return None
        n_steps = max(STALE * trainer.validation.every, STALE_SHARE * trainer.config.steps)
        has_risen = min(self._val_losses) > WORSE * best.val_loss
        if trainer.step - best.step < n_steps or not has_risen:
            return None
        self._has_advised_stop = True
        advice = f"that step's weights are saved, and --patience {STALE} ends a run there"
        if trainer.dataset.tokenizer.is_chat:
            advice += "; a model that is to know its answers by heart needs no validation"
        return (
            f"the validation loss was least at step {best.step}: since then the model learns its "
            f"documents by heart; {advice}"
        )

    @property
    def _guessing(self) -> float:
        """The loss of guessing among all tokens, in nats."""
        return math.log(self._trainer.engine.config.vocab_size)

    def explanation(self) -> tuple[str, dict[str, Any]] | None:
        """Return what the loss of the model means, as text and as figures; None without steps."""
        if not self._latest:
            return None
        dataset = self._trainer.dataset
        counts = dataset.token_counts().tolist()
        n_tokens = sum(counts)
        counting = sum(n * math.log(n_tokens / n) for n in counts if n) / n_tokens
        loss, where = self._last_loss()
        n_units, unit, letters = _units(dataset.tokenizer, counts)
        bits = loss / math.log(2) * n_tokens / max(1, n_units)
        perplexity = math.exp(min(loss, MAX_EXPONENT))
        text = (
            f"{where}: {loss:.4f} nats per token, {bits:.2f} bits per {unit}, perplexity "
            f"{perplexity:.4g}; guessing costs {self._guessing:.2f} nats, counting {letters} "
            f"{counting:.2f}"
        )
        return text, {
            "nats_per_token": loss,
            f"bits_per_{unit}": bits,
            "perplexity": perplexity,
            "guessing": self._guessing,
            "counting": counting,
        }

    def _last_loss(self) -> tuple[float, str]:
        """Return the loss of the model that is saved, and what it is the loss of."""
        if self._trainer.best:
            return self._trainer.best.val_loss, "validation"
        n = len(self._latest)
        return math.fsum(self._latest) / n, f"last {counted(n, 'step')}"


def _units(tokenizer: microgpt.BaseTokenizer, counts: Sequence[int]) -> tuple[int, str, str]:
    """Return the number of characters or bytes of a text, their name, and that of its tokens."""
    plain = counts[: tokenizer.n_plain]
    if not isinstance(tokenizer, microgpt.SubwordTokenizer):
        return sum(plain), "character", "letters"
    sizes = (len(tokenizer.token_bytes(token_id)) for token_id in range(len(plain)))
    return sum(map(mul, plain, sizes)), "byte", "subwords"
