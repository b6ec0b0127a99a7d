"""Models to serve, and clients of the application in this process."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt_serve.app import create_app
from microgpt_serve.serving.limits import DEFAULT_LIMITS, Limits
from microgpt_serve.serving.log import configure_logging
from microgpt_serve.serving.settings import Settings
from serve.service import MakeClient, StartLog, save_talker
from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def names_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of names, trained a little."""
    directory = tmp_path_factory.mktemp("models") / "names"
    names = ["anna", "bob", "hannah", "otto", "carla", "emma", "olivia", "mia", "zoe", "maximilian"]
    microgpt.fit([*names, "jacqueline", "freddy", "gwyneth", "steve", "patrick"], steps=300).save(
        directory
    )
    return directory


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick chat model; its replies fill its block of 64 tokens."""
    directory = tmp_path_factory.mktemp("models") / "chat"
    save_talker(directory, 16, 4, 1, 64)
    return directory


@pytest.fixture(scope="session")
def slow_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slow chat model: a reply of 1000 tokens takes seconds."""
    directory = tmp_path_factory.mktemp("models") / "slow"
    save_talker(directory, 256, 8, 8, 1024)
    return directory


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    with ExitStack() as stack:

        def make(model_dir: Path, limits: Limits = DEFAULT_LIMITS, **settings: Any) -> TestClient:
            app = create_app(Settings(model_dir=str(model_dir), **settings), limits)
            app.state.models.load()
            stack.callback(app.state.pool.abort_all)
            stack.callback(app.state.models.abort_all)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def names(make_client: MakeClient, names_dir: Path) -> TestClient:
    return make_client(names_dir)


@pytest.fixture
def chat(make_client: MakeClient, chat_dir: Path) -> TestClient:
    return make_client(chat_dir)


# ---------------------------------------------------------------- the log


@pytest.fixture
def start_log() -> Iterator[StartLog]:
    """Log to stderr, as "text" or "json", for this test."""
    names = ("microgpt_serve", "hypercorn.error", "asyncio", "py.warnings")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield lambda style: configure_logging("info", style)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
