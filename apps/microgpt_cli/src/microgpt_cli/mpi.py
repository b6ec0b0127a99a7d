"""Training as one process of an MPI job."""

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import microgpt
import typer

from microgpt_cli.errors import report_error

__all__ = ["job_ranks"]

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")  # set by mpirun
SECONDS_TO_FORWARD = 0.2  # for mpirun to forward our last lines before it ends the job
SECONDS_FOR_RANK_0 = 1.0  # to report an error that all processes have


@contextmanager
def job_ranks() -> Iterator[microgpt.Ranks | None]:
    """Yield the processes that mpirun has started together with this one, or None without mpirun.

    A process that fails reports its error and ends the job; the others would wait for it forever.
    """
    if not any(int(os.environ.get(name) or 1) > 1 for name in SIZE_VARIABLES):
        yield None
        return
    ranks = microgpt.Ranks()
    try:
        yield ranks
    except typer.Exit:  # all processes leave together
        raise
    except BaseException as error:  # noqa: BLE001 - the others must not wait
        if ranks.rank:
            time.sleep(SECONDS_FOR_RANK_0)  # an error of rank 0 ends this process meanwhile
        prefix = f"rank {ranks.rank}: " if ranks.rank else ""
        if not report_error(error, prefix):
            traceback.print_exc()
        time.sleep(SECONDS_TO_FORWARD)
        ranks.abort(1)
