"""Settings from the environment, and the command that reads them."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from measuring import measuring
from microgpt_serve.serving.settings import Settings, SettingsError, describe
from serve.service import running

ANYWHERE = "0.0.0.0"  # noqa: S104 - what the warning is about


def test_no_variables_give_the_defaults() -> None:
    settings = Settings.from_environment({"UNRELATED": "x", "PORT": ""})
    assert settings == Settings()
    assert (settings.model_dir, settings.host, settings.port) == ("output", "127.0.0.1", 8080)


def test_every_variable_is_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    environment = {
        "MODEL_DIR": "out",
        "PORT": "81",
        "HOST": "::1",
        "WORKERS": "3",
        "THREADS": "4",
        "MAX_QUEUE": "5",
        "RATE_LIMIT": "6",
        "REQUEST_TIMEOUT": "7.5",
        "GRACE_PERIOD": "8",
        "API_KEY_FILE": str(key),
        "CORS_ORIGINS": "https://a.example, https://b.example",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "json",
        "DOCS": "0",
        "METRICS": "false",
        "PAGE": "0",
    }
    expected = Settings(
        model_dir="out",
        port=81,
        host="::1",
        workers=3,
        threads=4,
        max_queue=5,
        rate_limit=6,
        request_timeout=7.5,
        grace_period=8,
        api_key="sesame",
        cors_origins="https://a.example, https://b.example",
        log_level="debug",
        log_format="json",
        docs=False,
        metrics=False,
        page=False,
    )
    assert Settings.from_environment(environment) == expected
    assert set(environment) | {"API_KEY"} == {name.upper() for name in Settings.__struct_fields__}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("PORT", value) for value in ("x", "-1", "65536", "8080.5", "10" * 300)],
        *[("WORKERS", value) for value in ("0", "257", "two")],
        *[("THREADS", value) for value in ("-1", "257")],
        ("MAX_QUEUE", "-1"),
        ("RATE_LIMIT", "-1"),
        *[("REQUEST_TIMEOUT", value) for value in ("0", "-1", "nan", "inf", "1e9", "x")],
        *[("GRACE_PERIOD", value) for value in ("0", "nan", "x")],
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("DOCS", "maybe"),
        ("METRICS", "2"),
        ("PAGE", "yes!"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} is '"):
        Settings.from_environment({name: value})


def test_bad_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="both set"):
        Settings.from_environment({"API_KEY": "a", "API_KEY_FILE": "b"})
    with pytest.raises(SettingsError, match="cannot read"):
        Settings.from_environment({"API_KEY_FILE": str(tmp_path / "none")})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        Settings.from_environment({"API_KEY_FILE": str(tmp_path / "empty")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot read"):
        Settings.from_environment({"API_KEY_FILE": str(tmp_path / "binary")})
    (tmp_path / "lines").write_text("one\ntwo\n")
    lines = {"API_KEY_FILE": str(tmp_path / "lines")}
    for environment in (lines, {"API_KEY": "k\udcff"}, {"API_KEY": " "}, {"API_KEY": "k "}):
        with pytest.raises(SettingsError, match="no header can carry"):
            Settings.from_environment(environment)


@pytest.mark.parametrize(
    "origin",
    ["example.org", "https://example.org/", "https://Example.org", "https://", "https://a b", "**"],
)
def test_origins_that_no_browser_sends_are_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match=rf"^CORS_ORIGINS holds {re.escape(repr(origin))}: "):
        Settings.from_environment({"CORS_ORIGINS": f"https://a.example,{origin}"})


def test_origins_that_browsers_send_are_taken() -> None:
    for origin in ("*", "http://localhost:3000", "https://[::1]:8443", "chrome-extension://abc"):
        settings = Settings.from_environment({"CORS_ORIGINS": f" {origin} , https://b.example,"})
        assert settings.origins == [origin, "https://b.example"]


@pytest.mark.parametrize(
    ("host", "api_key", "is_exposed"),
    [
        ("127.0.0.1", "", False),
        ("127.1.2.3", "", False),
        ("::1", "", False),
        ("localhost", "", False),
        (ANYWHERE, "", True),
        ("::", "", True),
        ("example.org", "", True),
        (ANYWHERE, "key", False),
    ],
)
def test_exposed_is_who_listens_to_others_without_a_key(
    host: str, api_key: str, *, is_exposed: bool
) -> None:
    assert Settings(host=host, api_key=api_key).is_exposed == is_exposed


def test_every_variable_is_described_with_its_default() -> None:
    lines = describe().splitlines()
    assert [line.split()[0] for line in lines] == [
        name.upper() for name in Settings.__struct_fields__
    ]
    assert all(re.fullmatch(r"  [A-Z_]+ +\S.* \[\S+\]", line) for line in lines)


# ---------------------------------------------------------------- the command


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microgpt_serve", *arguments],
        env=environment | measuring(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_and_version() -> None:
    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert describe() in shown.stdout
    assert version("microgpt-serve") in run("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "error"),
    [
        (["serve"], {}, 2, "unexpected argument 'serve'; see microgpt-serve --help"),
        ([], {"PORT": "x"}, 2, "PORT is 'x': Expected `int`, got `str`"),
        ([], {"PORT": "99999"}, 2, "PORT is '99999': Expected `int` <= 65535"),
        ([], {"HOST": "203.0.113.7"}, 1, "cannot listen on 203.0.113.7:8080: Cannot assign"),
        ([], {"HOST": "a" * 70}, 1, f"cannot listen on {'a' * 70}:8080: "),
        ([], {"HOST": "no such host"}, 1, "cannot listen on no such host:8080: "),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], environment: dict[str, str], status: int, error: str
) -> None:
    done = run(*arguments, **environment)
    assert done.returncode == status
    assert done.stderr.startswith(f"error: {error}")
    assert done.stderr.count("\n") == 1


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        done = run(MODEL_DIR=str(tmp_path), PORT="0", WORKERS=workers)
        assert done.returncode == 1
        assert f"cannot load the model error='cannot read {tmp_path}/meta.json" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_open_service_without_a_key_warns(names_dir: Path) -> None:
    with running(names_dir, host=ANYWHERE) as server:
        assert f"warning: anyone who reaches {ANYWHERE} can use this service" in server.log
    with running(names_dir, host=ANYWHERE, api_key="x") as server:
        assert "warning" not in server.log
