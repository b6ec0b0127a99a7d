"""`python -m microgpt_serve`."""

from microgpt_serve.main import run

run()
