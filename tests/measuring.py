"""Which of the programs that tests start `hatch run coverage` measures: those that inherit this."""

import os

__all__ = ["measuring", "unmeasured"]


def measuring() -> dict[str, str]:
    """Return the variables that have a program measured; none while coverage is not asked for."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def unmeasured() -> dict[str, str]:
    """Return the environment without them, for programs that cannot write what was measured."""
    return {name: value for name, value in os.environ.items() if name not in measuring()}
