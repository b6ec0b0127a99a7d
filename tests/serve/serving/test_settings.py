"""Settings from the environment."""

import re
from pathlib import Path

import pytest
from microgpt_serve.serving.settings import Settings, SettingsError, describe

ANYWHERE = "0.0.0.0"  # noqa: S104 - what the warning is about


def test_no_variables_give_the_defaults() -> None:
    settings = Settings.from_environment({"UNRELATED": "x", "PORT": ""})
    assert settings == Settings()
    assert (settings.model_dir, settings.host, settings.port) == ("output", "127.0.0.1", 8080)


def test_every_variable_is_read(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"\xef\xbb\xbfsesame\r\n")  # as Notepad may write it
    environment = {
        "MODEL_DIR": "out",
        "PORT": "81",
        "HOST": "[::1]",
        "PATH_PREFIX": "/some/where/",
        "WORKERS": "3",
        "THREADS": "4",
        "MAX_QUEUE": "5",
        "PREFIX_MB": "1",
        "MODELS_MB": "2",
        "RATE_LIMIT": "6",
        "REQUEST_TIMEOUT": "7.5",
        "MAX_TOKENS": "70",
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
        path_prefix="/some/where",
        workers=3,
        threads=4,
        max_queue=5,
        prefix_mb=1,
        models_mb=2,
        rate_limit=6,
        request_timeout=7.5,
        max_tokens=70,
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
        ("MAX_TOKENS", "0"),
        ("RATE_LIMIT", "-1"),
        *[("REQUEST_TIMEOUT", value) for value in ("0", "-1", "nan", "inf", "1e9", "x")],
        *[("GRACE_PERIOD", value) for value in ("0", "nan", "x")],
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("DOCS", "maybe"),
        ("METRICS", "2"),
        ("PAGE", "yes!"),
        *[("PATH_PREFIX", value) for value in ("gpt", "/a/../b", "/a//b", "/a b", "/a?b", "//a")],
    ],
)
def test_a_bad_value_is_named_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} is '"):
        Settings.from_environment({name: value})


@pytest.mark.parametrize("value", ["INFO", "Info", "info"])
def test_choices_may_be_written_in_capitals(value: str) -> None:
    assert Settings.from_environment({"LOG_LEVEL": value}).log_level == "info"


def test_choices_are_listed() -> None:
    expected = r"^LOG_LEVEL is 'loud', expected debug, info, warning or error$"
    with pytest.raises(SettingsError, match=expected):
        Settings.from_environment({"LOG_LEVEL": "loud"})
    with pytest.raises(SettingsError, match=r"^LOG_FORMAT is 'xml', expected text or json$"):
        Settings.from_environment({"LOG_FORMAT": "xml"})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WORKERS", "two", "an integer"),
        ("WORKERS", "0", "at least 1"),
        ("GRACE_PERIOD", "x", "a number"),
        ("GRACE_PERIOD", "0", "more than 0"),
        ("REQUEST_TIMEOUT", "1e9", "at most 86400"),
        ("DOCS", "maybe", "0, 1, false or true"),
    ],
)
def test_bad_value_is_refused_with_what_was_expected(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is '{value}', expected {expected}$"):
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
    with pytest.raises(SettingsError, match=rf"^CORS_ORIGINS contains {re.escape(repr(origin))}, "):
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
        ("[::1]", "", False),
        ("[::]", "", True),
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
    settings = Settings.from_environment({"HOST": host, "API_KEY": api_key})
    assert settings.is_exposed == is_exposed


def test_every_variable_is_described_with_its_default() -> None:
    lines = describe().splitlines()
    assert [line.split()[0] for line in lines] == [
        name.upper() for name in Settings.__struct_fields__
    ]
    assert all(re.fullmatch(r"  [A-Z_]+ +\S.* \[\S+\]", line) for line in lines)
