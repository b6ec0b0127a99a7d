"""`python -m microgpt_cli`."""

from microgpt_cli.main import run

if __name__ == "__main__":
    run()
