"""`explain` shows what the library traces, in a terminal of any width, as JSON and as a page."""

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import microgpt
import numpy as np
import pytest
from matplotlib.image import imread
from microgpt import LanguageModel, ModelConfig, Tokenizer, Trace
from microgpt.parameters import Parameters
from microgpt_cli.explained_page import page_of
from microgpt_cli.explaining import lines_of, looks_at
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from rich.cells import cell_len
from serve.api.test_page import CHROMIUM, LEAST_CONTRAST, PHONE, QUIET
from texts import TALK

STRANGE = "</script>\x1b漢"
Explain = Callable[..., Any]


def saved(model: LanguageModel, directory: Path) -> Path:
    model.save(directory)
    return directory


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100, n_layer=2)
    return saved(model, tmp_path_factory.mktemp("explain") / "names")


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = microgpt.fit_chat([TALK], steps=200, block_size=64, n_embd=16, n_layer=1)
    return saved(model, tmp_path_factory.mktemp("explain") / "chat")


def looking_back(block_size: int = 8) -> LanguageModel:
    """Return a model with one head, built to attend to the previous token: by position alone."""
    n = block_size
    config = ModelConfig(vocab_size=4, n_embd=n, n_head=1, n_layer=1, block_size=n)
    weights = Parameters.zeros(config, "float64")
    weights["wpe"][:] = np.eye(n)
    weights["layer0.attn_wq"][:] = 9 * np.eye(n, k=1)  # position t asks for t - 1
    weights["layer0.attn_wk"][:] = np.eye(n)
    return LanguageModel(Tokenizer(tuple("abc")), weights)


def wide(n_layer: int, n_head: int, block_size: int = 16) -> LanguageModel:
    """Return a model of strange characters."""
    config = ModelConfig(
        vocab_size=len(set(STRANGE)) + 1,
        n_embd=n_head * 2,
        n_head=n_head,
        n_layer=n_layer,
        block_size=block_size,
    )
    weights = np.random.default_rng(42).normal(0, 1, config.n_params)
    return LanguageModel(Tokenizer(tuple(sorted(set(STRANGE)))), Parameters(config, weights))


def figures_of(trace: Trace) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(trace.to_json())
    return figures


# ---------------------------------------------------------------- what is explained


def test_json_is_that_of_the_library(cli: Any, model_dir: Path) -> None:
    expected = microgpt.load(model_dir).trace("hanna").to_json()
    for arguments in ((model_dir, "hanna"), ("--model-dir", model_dir, "hanna")):
        result = cli("explain", *arguments, "--json")
        assert (result.status, result.out, result.err) == (0, f"{expected}\n", "")


def test_text_alone_is_read_by_the_model_in_output(
    cli: Any, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_dir.parent)
    assert "cannot read output/" in cli("explain", "anna").err


def test_directory_of_a_model_alone_is_no_text(cli: Any, model_dir: Path) -> None:
    result = cli("explain", model_dir)
    assert (result.status, result.out) == (2, "")
    assert result.err.splitlines()[-1] == "Error: Invalid value for TEXT: it is missing."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Invalid value for TEXT: it is missing."),
        (["mine", "an", "na"], "got 3, expected a directory and a text; quote a text with spaces."),
        (["mine", "anna", "--input", "-"], "got 2, expected with --input a directory alone"),
        (["mine", "anna", "--json", "--output", "x"], "--json: use it or --output, not both."),
        (["mine", "anna", "--model-dir", "yours"], "--model-dir: it is yours, expected the same"),
        (["mine", "anna", "--document", "0"], "--document"),
        (["mine", "anna", "--document", "2"], "--document: it needs --input; TEXT is one document"),
        (["mine", "anna", "--split", "file"], "--split: it needs --input; TEXT is one document"),
        (["mine", "anna", "--field", "name"], "--field: it needs --input; TEXT is one document"),
        (["mine", "anna", "--output", "-"], "--output: it is -, expected the name of a file;"),
    ],
)
def test_wrong_usage_is_told(cli: Any, arguments: list[str], message: str) -> None:
    result = cli("explain", *arguments)
    assert (result.status, result.out) == (2, "")
    assert message in " ".join(result.err.split())


def test_a_document_of_a_file_is_explained(cli: Any, model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("anna\nbob\n")
    model = microgpt.load(model_dir)
    for number, text in ((1, "anna"), (2, "bob")):
        result = cli("explain", model_dir, "--input", path, "--document", number, "--json")
        assert result.out == model.trace(text).to_json() + "\n"
    result = cli("explain", model_dir, "--input", path, "--document", 3)
    assert (result.status, result.out) == (1, "")
    assert result.err == f"error: {path} holds 2 documents, expected at least 3\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("annannannannannannannanna", "got 26 tokens, expected at most block_size=16"),
        ("anx", "characters that the model does not know: 'x'"),
    ],
)
def test_text_that_the_model_cannot_read_is_refused(
    cli: Any, model_dir: Path, text: str, message: str
) -> None:
    result = cli("explain", model_dir, text)
    assert (result.status, result.out) == (1, "")
    assert message in result.err


def test_chat_model_explains_a_message_or_a_conversation(
    cli: Any, chat_dir: Path, tmp_path: Path
) -> None:
    model = microgpt.load(chat_dir)
    question = TALK[0]["content"]
    result = cli("explain", chat_dir, f"{question}☺", "--json")
    assert result.out == model.trace(TALK[:1]).to_json() + "\n"
    assert result.err == "warning: 1 character left out that the model does not know\n"
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps(TALK) + "\n")
    result = cli("explain", chat_dir, "--input", path, "--json")
    assert result.out == model.trace(TALK).to_json() + "\n"
    result = cli("explain", chat_dir, "--input", path, "--continue")
    assert (result.status, result.out) == (1, "")
    assert "the conversation ends with an answer" in result.err


def test_question_at_the_end_of_a_conversation_is_explained_and_answered(
    cli: Any, chat_dir: Path, tmp_path: Path
) -> None:
    model = microgpt.load(chat_dir)
    path = tmp_path / "talk.jsonl"
    path.write_text(f"{json.dumps(TALK[:1])}\n{json.dumps(TALK[:3])}\n")
    for number, asked in enumerate((TALK[:1], TALK[:3]), 1):
        result = cli("explain", chat_dir, "--input", path, "--document", number, "--json")
        assert (result.out, result.err) == (model.trace(asked).to_json() + "\n", "")
    result = cli("explain", chat_dir, "--input", path, "--continue", "--json")
    assert result.status == 0
    n_tokens = len(model.trace(TALK[:1]).token_ids)
    assert len(json.loads(result.out)["tokens"]) > n_tokens


def test_a_text_can_be_continued(cli: Any, model_dir: Path, chat_dir: Path) -> None:
    model = microgpt.load(model_dir)
    text = model.generate(prompt="h", temperature=0)[0]
    figures = json.loads(cli("explain", model_dir, "h", "--continue", "--json").out)
    assert [token["text"] for token in figures["tokens"]] == ["bos", *text, "bos"]
    reply = microgpt.load(chat_dir).chat(TALK[:1], temperature=0)
    figures = json.loads(cli("explain", chat_dir, TALK[0]["content"], "--continue", "--json").out)
    assert [token["id"] for token in figures["tokens"]] == [
        *reply.prompt.token_ids,
        *reply.token_ids,
        reply.prompt.stop_token,
    ]


# ---------------------------------------------------------------- the terminal


def test_a_head_built_to_look_at_the_previous_token_is_seen_to(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("explain", saved(looking_back(), tmp_path), "abca")
    assert result.lines[-7:] == [
        "block 1: rows attend to columns, from 0% ·, 5% ░, 20% ▒, 40% ▓, 70% █",
        "      1 previous 100%",
        "<bos> ██",
        "a     ██··",
        "b     ··██··",
        "c     ····██··",
        "a     ······██··",
    ]


def test_table_has_surprise_next_tokens_and_lens(
    cli: Any, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    figures = figures_of(microgpt.load(model_dir).trace("hanna"))
    lines = cli("explain", model_dir, "hanna").lines
    assert lines[0].split() == ["token", "surprise", "next", "lens", "0", "lens", "1"]
    names = ["<bos>", *"hanna"]
    for t, line in enumerate(lines[1:7]):
        shown = [*figures["next"][t][:3], figures["lens"][0][t], figures["lens"][1][t]]
        expected = [names[t], *([f"{figures['surprise'][t]:.2f}"] if t else [])]
        for token in shown:
            name = "<bos>" if "special" in token else token["text"]
            expected += [name, f"{token['probability']:.0%}"]
        assert line.split() == expected
    assert lines[7].split() == ["mean", f"{figures['loss']:.2f}", "nats", "per", "token"]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("n_layer", [1, 9])
@pytest.mark.parametrize("n_head", [1, 8])
def test_lines_fit_the_terminal_and_control_nothing(width: int, n_layer: int, n_head: int) -> None:
    trace = wide(n_layer, n_head).trace(STRANGE)
    lines = [*lines_of(trace, width)]
    assert max(map(cell_len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("block") for line in lines) == n_layer
    assert sum(line.startswith("\\x1b") for line in lines) > n_layer


def test_long_names_are_cut_by_the_columns_that_they_take() -> None:
    model = microgpt.fit([8 * "漢"] * 9, steps=1, tokenizer="bpe", vocab_size=300)
    lines = [*lines_of(model.trace(8 * "漢"), 80)]
    assert lines[2].startswith("漢漢漢漢 …  ")


def test_many_heads_take_no_time_in_a_wide_terminal() -> None:
    trace = wide(6, 12, block_size=160).trace([0] * 160)
    start = time.thread_time()
    assert sum(map(len, lines_of(trace, 5000))) > 72 * 160 * 160 / 2
    assert time.thread_time() - start < 1


def test_wide_terminal_shows_more() -> None:
    trace = wide(9, 8).trace(STRANGE)
    narrow, broad = ([*lines_of(trace, width)] for width in (80, 200))
    assert len(broad) < len(narrow)
    assert broad[0].count("lens") > narrow[0].count("lens") >= 1
    assert "lens 8" in broad[0]
    assert "lens 9" not in broad[0]  # which is `next`


def test_heads_of_a_long_text_have_cells_for_several_tokens() -> None:
    trace = looking_back(block_size=50).trace("ab" * 24 + "c")
    lines = [*lines_of(trace, 40)]
    start = next(i for i, line in enumerate(lines) if line.startswith("block"))
    assert lines[start].startswith("block 1, a cell is 2 tokens: rows attend")
    assert lines[start + 1].split() == ["1", "previous", "100%"]
    rows = [line[len("<bos> ") :] for line in lines[start + 2 :]]
    assert rows == ["█"] + ["·" * i + "██" for i in range(24)]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ([[1.0]], "itself 100%"),
        ([[1.0, 0], [0.25, 0.75]], "itself 75%"),
        ([[1.0, 0], [0.75, 0.25]], "previous 75%"),
        ([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0, 0.5, 0]], "first 75%"),
        ([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.25, 0, 0.5, 0.25]], "previous 75%"),
        ([[math.nan] * 2] * 2, "itself nan%"),
    ],
)
def test_a_head_is_described(head: Any, expected: str) -> None:
    assert looks_at(np.array(head)) == expected


def test_weights_that_are_too_large_are_shown_as_unknown(cli: Any, tmp_path: Path) -> None:
    model = looking_back()
    model.parameters["lm_head"][:] = np.finfo(np.float64).max
    result = cli("explain", saved(model, tmp_path / "large"), "abc")
    assert (result.status, result.err) == (0, "")
    assert result.lines[1].split()[:3] == ["<bos>", "a", "?"]


@pytest.mark.parametrize("scale", [1e4, 1e30, 1e90])
def test_lines_fit_the_terminal_however_large_a_surprise(scale: float) -> None:
    model = looking_back()
    model.parameters["lm_head"][:] = -scale * np.eye(4, 8)
    trace = model.trace("abc")
    assert trace.loss > scale
    assert max(map(cell_len, lines_of(trace, 60))) <= 60
    assert len(repr(trace)) < 60


# ---------------------------------------------------------------- the page


def test_page_is_a_file_that_is_not_replaced_unasked(
    cli: Any, model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    result = cli("explain", model_dir, "anna", "--output", path)
    assert (result.status, result.out, result.err) == (0, "", "")
    assert path.read_bytes().decode() == page_of(microgpt.load(model_dir).trace("anna"))
    result = cli("explain", model_dir, "bob", "--output", path)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"error: {path} exists")
    assert cli("explain", model_dir, "bob", "--output", path, "--force").status == 0
    assert path.read_bytes().decode() == page_of(microgpt.load(model_dir).trace("bob"))


def data_of(page: str) -> dict[str, Any]:
    found = re.search('<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_page_holds_all_that_it_shows(model_dir: Path) -> None:
    trace = microgpt.load(model_dir).trace("hannah")
    data = data_of(page_of(trace))
    assert data["tokens"] == ["<bos>", *"hannah"]
    assert data["surprise"] == figures_of(trace)["surprise"]
    heads = trace.attention.reshape(8, 7, 7)
    shares = [share for head in heads for row in range(7) for share in head[row, : row + 1]]
    kept = np.frombuffer(base64.b64decode(data["attention"]), np.uint8)
    np.testing.assert_allclose(kept / 255, shares, atol=0.003)
    for step, temperature in ((1, 0.1), (10, 1.0), (20, 2.0)):
        probs = trace.probs(temperature)
        for t in range(7):
            for _, gap, token_id in data["next"][t]:
                p = data["best"][t][step - 1] * math.exp(gap / temperature)
                assert p == pytest.approx(probs[t, token_id], abs=2e-4)
    assert data["heads"][5]["title"] == "block 2, head 2"
    for stage, expected in zip(data["lens"], figures_of(trace)["lens"], strict=True):
        assert [p for _, p in stage] == [token["probability"] for token in expected]


def test_page_asks_nobody_and_runs_only_its_own_script() -> None:
    page = page_of(wide(1, 1).trace(STRANGE))
    assert "<" not in page.partition('type="application/json">')[2].partition("</script>")[0]
    assert data_of(page)["tokens"][1:] == [*"</script>", "\\x1b", "漢"]
    scripts = re.findall("<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
        for content in (scripts[1][1], style)
    ]
    assert policy[1] == (
        f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"https?:|src=|href=|url\(|@import|style=|fetch|import\(", page)


def test_page_that_would_be_too_large_is_refused(
    cli: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt_cli.explained_page.MOST_CELLS", 100)
    result = cli("explain", model_dir, "anna", "--output", tmp_path / "page.html")
    assert (result.status, [*tmp_path.iterdir()]) == (1, [])
    assert "5 tokens of 8 heads make 120 cells of attention, expected at most 100" in result.err


def test_page_of_weights_that_are_too_large_has_no_figures() -> None:
    model = looking_back()
    for name in ("lm_head", "layer0.mlp_fc1"):
        model.parameters[name][:] = np.finfo(np.float64).max
    data = data_of(page_of(model.trace("abc")))
    assert data["surprise"] == [None] * 4
    model.parameters["layer0.mlp_fc1"][:] = 0
    data = data_of(page_of(model.trace("abc")))  # infinite logits, and no warning of them
    assert [gap for row in data["next"] for _, gap, _ in row] == [None] * 16


@pytest.mark.long
def test_page_of_unknown_probabilities_shows_none(open_page: Callable[..., Page]) -> None:
    model = looking_back()
    model.parameters["wte"][:] = math.nan
    page = open_page(model.trace("abc"))
    for degrees in ("10", "0"):
        page.locator("#temperature").fill(degrees)
        shown = [row.inner_text().split()[-1] for row in page.locator("#next tr").all()]
        assert set(shown) == {"?"}


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the page of a trace; fail on errors and on any request."""
    problems: list[str] = []
    pages: list[Page] = []
    path = tmp_path / "page.html"

    def on_request(sent: Request) -> None:
        if sent.url != path.as_uri():
            problems.append(sent.url)

    def make(trace: Trace, **window: Any) -> Page:
        path.write_text(page_of(trace))
        page = browser.new_context(**window).new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text))
        page.on("request", on_request)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield make
    for page in pages:
        page.context.close()
    assert problems == []


def shown_next(page: Page) -> list[tuple[str, float]]:
    rows = [row.inner_text().split() for row in page.locator("#next tr").all()]
    return [(row[0], float(row[-2]) / 100) for row in rows if row[1] != "<"]


@pytest.mark.long
def test_tokens_heads_and_temperature_are_chosen(
    model_dir: Path, open_page: Callable[..., Page]
) -> None:
    trace = microgpt.load(model_dir).trace("hannah")
    page = open_page(trace)
    expect(page.locator("#chosen")).to_contain_text("Token 7 of 7: h, surprise")
    tokens, heads = (page.locator(f"#{name} [role=option]") for name in ("tokens", "heads"))
    tokens.nth(1).hover()
    expect(page.locator("#chosen")).to_contain_text("Token 2 of 7: h, surprise")
    for name, p in shown_next(page):
        token_id = trace.tokenizer.encode(name)[0] if name != "<bos>" else trace.tokenizer.bos
        assert p == pytest.approx(trace.probs()[1, token_id], abs=1e-3)
    tokens.nth(1).focus()
    for key, at in (("ArrowRight", 3), ("End", 7), ("ArrowLeft", 6), ("Home", 1), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        expect(page.locator("#chosen")).to_contain_text(f"Token {at} of 7")
    page.keyboard.press("Tab")  # to the chosen head
    expect(heads.first).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#head-title")).to_contain_text("block 2, head 4: ")
    expect(heads.last).to_have_attribute("aria-selected", "true")
    heads.nth(1).click()
    expect(page.locator("#head-title")).to_contain_text("block 1, head 2: ")
    slider = page.locator("#temperature")
    slider.focus()
    for key, degrees in (("Home", 0.0), ("End", 2.0)):
        page.keyboard.press(key)
        expect(page.locator("#degrees")).to_have_text(f"{degrees:.1f}")
        shown = [p for _, p in shown_next(page)]
        expected = sorted(trace.probs(degrees or 1e-9)[0], reverse=True)[: len(shown)]
        assert shown == pytest.approx(expected, abs=1e-3)
    page.check("[value=attention]")
    tints = [each.evaluate("e => getComputedStyle(e).backgroundColor") for each in tokens.all()]
    assert len(set(tints[1:])) == 1  # nothing after the first token, which is chosen
    assert tints[0] != tints[1]


@pytest.mark.long
def test_a_cell_of_the_large_head_is_named(open_page: Callable[..., Page]) -> None:
    page = open_page(looking_back().trace("abca"))
    box = page.locator("#large").bounding_box()
    assert box
    size = (box["width"] - 56) / 5
    for row, column, shown in ((2, 1, "3, b, attends to 2, a: 100.0 %"), (1, 2, "")):
        x, y = (56 + size * (place + 0.5) for place in (column, row))
        page.mouse.move(box["x"] + x, box["y"] + y)
        expect(page.locator("#cell")).to_have_text(shown)
    pixel = """([x, y]) => [...document.querySelector("#large").getContext("2d")
        .getImageData(x, y, 1, 1).data].slice(0, 3)"""
    x, y = (round(56 + size * (place + 0.5)) for place in (1, 2))
    assert page.evaluate(pixel, [x, y]) == [0x24, 0x57, 0xD6]  # --blue, whole


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [{}, PHONE], ids=["desk", "phone"])
def test_all_is_readable(
    open_page: Callable[..., Page], tmp_path: Path, scheme: str, window: dict[str, Any]
) -> None:
    page = open_page(wide(4, 8).trace(STRANGE), color_scheme=scheme, **window)
    for tint in ("surprise", "attention"):
        page.check(f"[value={tint}]")
        assert page.evaluate(LEAST_CONTRAST) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    brightness = imread(tmp_path / "page.png")[..., :3].mean()
    assert brightness < 0.3 if scheme == "dark" else brightness > 0.7
