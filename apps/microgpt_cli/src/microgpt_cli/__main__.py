"""Where the program begins: `microgpt-cli`, or `python -m microgpt_cli`."""

import sys

__all__ = ["run"]


def run() -> None:
    """Run the command line; Ctrl-C while it is still loading ends it as quietly as later."""
    try:
        from microgpt_cli.main import run as run_command  # noqa: PLC0415 - takes 0.1 s
    except KeyboardInterrupt:
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    run()
