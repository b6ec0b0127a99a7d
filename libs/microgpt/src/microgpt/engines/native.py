"""The compiled engine: C through ctypes, which releases the interpreter while C computes.

Arguments are checked here, before they are passed to C; C does not check them again.
"""

from collections.abc import Iterator, Sequence
from ctypes import addressof, byref
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microgpt.corpus.batches import Batch, Batches
from microgpt.engines.base import StepResult
from microgpt.engines.library import Training, aligned_zeros
from microgpt.engines.muon import Muon
from microgpt.engines.native_inference import NativeInference, pop_or
from microgpt.errors import NonFiniteLossError, ShapeError
from microgpt.parameters import Parameters
from microgpt.train import ADAM_EPS, BETA1, BETA2

__all__ = ["NativeEngine"]

_Arrays = dict[str, NDArray[Any]]


def _arrays_of(batches: Batches) -> _Arrays:
    """Return the documents of all steps as the arrays of `Training`."""
    inputs, targets, _ = batches.together
    return {
        "inputs": np.ascontiguousarray(inputs, np.int32),
        "targets": np.ascontiguousarray(targets, np.int32),
        "starts": batches.starts,
        "first_documents": batches.first_documents,
        "n_targets": np.add.reduceat(targets >= 0, batches.first_rows[:-1], dtype=np.int64),
    }


class NativeEngine(NativeInference):
    """The model in compiled C; the fastest engine.

    Args:
        parameters: see `Engine`.
        threads: see `Engine`.
        vector_bytes: see `NativeInference`.

    Raises:
        EngineError, ShapeError: see `NativeInference`.
    """

    name = "native"

    def __init__(
        self, parameters: Parameters, threads: int | None = None, vector_bytes: int | None = None
    ) -> None:
        super().__init__(parameters, threads, vector_bytes)
        # Memory that no call uses at the moment: several threads may compute losses.
        self._workspaces: list[NDArray[np.uint8]] = []

    def loss(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss`."""
        arrays = self._train("train", [batch], loss_only=True)
        return float(arrays["losses"][0]), int(arrays["n_targets"][0])

    def losses(self, batches: Batches) -> list[float]:
        """See `Engine.losses`."""
        losses: list[float] = self._train("train", batches, loss_only=True)["losses"].tolist()
        return losses

    def loss_and_grads(self, batch: Batch) -> tuple[float, int]:
        """See `Engine.loss_and_grads`."""
        self._prepare_training()
        arrays = self._train("train", [batch])
        return float(arrays["losses"][0]), int(arrays["n_targets"][0])

    def update(
        self,
        learning_rate: float,
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> float | None:
        """See `Engine.update`."""
        self._prepare_training()
        arrays = self._train("update", [], [learning_rate], clip, weight_decay, muon)
        self.n_updates += 1
        return None if clip is None else float(arrays["norms"][0])

    def train_steps(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> list[StepResult]:
        """See `Engine.train_steps`."""
        if len(batches) != len(learning_rates):
            raise ShapeError(f"got {len(batches)} batches and {len(learning_rates)} learning rates")
        if not batches:
            return []
        self._prepare_training()
        struct, arrays, workspace = self._training(
            batches, learning_rates, clip, weight_decay, muon
        )
        try:
            self.functions["train"](self.model_pointer, byref(struct))
        finally:  # an interrupt is raised here, after the steps
            self.n_updates += struct.n_done
            self._workspaces.append(workspace)
        losses, n_targets = arrays["losses"].tolist(), arrays["n_targets"].tolist()
        if (n_done := struct.n_done) < len(batches):
            raise NonFiniteLossError(self.n_updates + 1, learning_rates[n_done], losses[n_done])
        norms = [None] * n_done if clip is None else arrays["norms"].tolist()
        return list(map(StepResult, losses, n_targets, norms))

    def each_step(
        self,
        batches: Batches,
        learning_rates: Sequence[float],
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
    ) -> Iterator[tuple[float, int, float | None]]:
        """See `Engine.each_step`; all but the step itself is prepared for all steps together."""
        self._prepare_training()
        struct, arrays, workspace = self._training(
            batches, learning_rates, clip, weight_decay, muon
        )
        take = partial(self.functions["train"], addressof(self.model), addressof(struct))
        loss_of, norm_of = arrays["losses"].item, arrays["norms"].item
        try:
            for step, n_targets in enumerate(arrays["n_targets"].tolist()):
                struct.n_steps = step + 1
                try:
                    take()
                finally:
                    self.n_updates += struct.n_done - step
                if struct.n_done == step:
                    rate = learning_rates[step]
                    raise NonFiniteLossError(self.n_updates + 1, rate, loss_of(step))
                yield loss_of(step), n_targets, None if clip is None else norm_of(step)
        finally:
            self._workspaces.append(workspace)

    def _prepare_training(self) -> None:
        """Allocate gradients and moments, which inference does without."""
        if not self.parameters.flat.flags.writeable:
            raise ShapeError(
                "the weights are read-only, expected an array that training may change"
            )
        if not self.model.grads:
            self.model.grads = self.grads.flat.ctypes.data
            self.model.adam_m = self.adam_m.flat.ctypes.data
            self.model.adam_v = self.adam_v.flat.ctypes.data

    def _train(
        self,
        function: str,
        batches: Batches | Sequence[Batch],
        *options: Any,
        loss_only: bool = False,
    ) -> _Arrays:
        """Call `train` or, without batches, `update`; return all arrays."""
        struct, arrays, workspace = self._training(batches, *options, loss_only=loss_only)
        self.functions[function](self.model_pointer, byref(struct))
        self._workspaces.append(workspace)
        return arrays

    def _training(
        self,
        batches: Batches | Sequence[Batch],
        learning_rates: Sequence[float] | None = None,
        clip: float | None = None,
        weight_decay: float = 0.0,
        muon: Muon | None = None,
        *,
        loss_only: bool = False,
    ) -> tuple[Training, _Arrays, NDArray[np.uint8]]:
        """Return the arguments of `train` or, without batches, `update`, and what is in them.

        That is the arrays by name, and a workspace, which goes back to `_workspaces`.
        """
        n_steps, n_rows = max(len(batches), 1), 1
        arrays: _Arrays = {"losses": np.empty(n_steps), "norms": np.empty(n_steps)}
        if batches:
            checked = self.check_batches(batches)
            arrays |= _arrays_of(checked)
            n_rows = int(np.diff(checked.first_rows).max())
        if learning_rates is not None:
            arrays["learning_rates"] = np.array(learning_rates, np.float64)
        n_threads = self.n_threads(n_rows, 3, muon)
        n_bytes = self.functions["training_bytes"](self.model_pointer, n_threads)
        workspace = pop_or(self._workspaces, aligned_zeros, n_bytes)
        if len(workspace) < n_bytes:
            workspace = aligned_zeros(n_bytes)
        struct = Training(
            workspace=workspace.ctypes.data,
            n_members=n_threads,
            n_steps=n_steps,
            loss_only=loss_only,
            weight_decay=weight_decay,
            clip=clip or 0.0,
            n_updates=self.n_updates,
            beta1=BETA1,
            beta2=BETA2,
            eps=ADAM_EPS,
            muon_ratio=muon.ratio if muon else 0.0,
            muon_momentum=muon.momentum if muon else 0.0,
            muon_iterations=muon.iterations if muon else 0,
            muon_first=muon.first if muon else 0,
            muon_every=muon.every if muon else 1,
            **{name: array.ctypes.data for name, array in arrays.items()},
        )
        return struct, arrays, workspace
