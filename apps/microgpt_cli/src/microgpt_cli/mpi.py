"""The processes of an MPI job: joining them, and ending all of them if one fails."""

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import microgpt
import typer

from microgpt_cli.errors import report_error

__all__ = ["processes"]

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")  # that mpirun sets
SECONDS_TO_FORWARD = 0.2  # for mpirun to pass on what was printed before it ends all
SECONDS_FOR_RANK_0 = 1.0  # to report what has gone wrong everywhere


@contextmanager
def processes() -> Iterator[microgpt.Ranks | None]:
    """Yield the processes that mpirun has started together with this one, or None.

    Where one of them fails, it says so and ends the job; the others would wait for it for ever.
    """
    if not any(int(os.environ.get(name) or 1) > 1 for name in SIZE_VARIABLES):
        yield None
        return
    ranks = microgpt.Ranks()
    try:
        yield ranks
    except typer.Exit:  # all leave together
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, the others must not wait
        if ranks.rank:
            time.sleep(SECONDS_FOR_RANK_0)  # if it has failed too, it ends us now
        prefix = f"rank {ranks.rank}: " if ranks.rank else ""
        if not report_error(error, prefix):
            traceback.print_exc()
        time.sleep(SECONDS_TO_FORWARD)
        ranks.abort(1)
