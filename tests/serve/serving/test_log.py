"""Log lines."""

import logging

import pytest
from microgpt_serve.serving.log import log
from serve.service import StartLog


def test_log_lines_cannot_be_forged(
    capsys: pytest.CaptureFixture[str], start_log: StartLog
) -> None:
    for style, expected in (("text", r" name='a\nb c'"), ("json", r'"name":"a\nb c"}')):
        start_log(style)
        log(logging.INFO, "event", name="a\nb c")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(expected)
