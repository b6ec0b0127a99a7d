"""The page at `/` in a real browser: what it shows, how it is used, whom it talks to."""

import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import microgpt
import pytest
from matplotlib.image import imread
from microgpt.engines.decoding import choose_token
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)
from serve.service import Server, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("background-networking", "component-update", "sync", "gpu", "quic")  # all disabled
PHONE: Any = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
ANSWERS = {"hello": "hi there!", "who are you?": "a small model, that says one letter at a time."}
SYSTEM, LOUD = "shout.", "HI THERE!"
MARKUP = "<img src=x onerror=alert(1)>"
expect.set_options(timeout=20_000)  # milliseconds: for a machine that is busy with other tests
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

# How much moved by itself; up to 0.1 is good: https://web.dev/articles/cls.
WATCH_SHIFTS = """
window.shifts = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""
# The least contrast of any text with what is behind it (WCAG 2.2, 1.4.3).
LEAST_CONTRAST = """() => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => rgb(color).slice(0, 3)
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { while ((rgb(getComputedStyle(e).backgroundColor)[3] ?? 1) === 0)
    e = e.parentElement; return getComputedStyle(e).backgroundColor; };
  const ratios = [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && !e.matches(":disabled")
      && (e.matches("input:not([type=range]), textarea")
        || [...e.childNodes].some((n) => n.data?.trim())))
    .map((e) => [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((a, b) => b - a))
    .map(([light, dark]) => (light + 0.05) / (dark + 0.05));
  return Math.min(...ratios);
}"""


class OpenPage(Protocol):
    """Returns the page of a server in a fresh window."""

    def __call__(self, server: Server, expected: str | None = None, **window: Any) -> Page: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Fail on console errors except an `expected` one, on failures, on requests to other hosts."""
    problems: list[str] = []
    pages: list[Page] = []

    def make(server: Server, expected: str | None = None, **window: Any) -> Page:
        def on_console(said: ConsoleMessage) -> None:
            if not expected or expected not in said.text:
                problems.append(said.text)

        def on_request(sent: Request) -> None:
            if not sent.url.startswith(f"{server.url}/"):
                problems.append(sent.url)

        page = browser.new_context(**window).new_page()
        page.add_init_script(WATCH_SHIFTS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("console", on_console)
        page.on("request", on_request)
        page.goto(server.url)
        pages.append(page)
        return page

    yield make
    for page in pages:
        assert page.evaluate("window.shifts") < 0.1
        page.context.close()
    assert problems == []


@contextmanager
def serving(model: microgpt.LanguageModel, directory: Path) -> Iterator[Server]:
    model.save(directory)
    with running(directory) as server:
        yield server


@pytest.fixture(scope="module")
def talking_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that has learned its two answers, and another after a message of the system."""
    turns: list[list[microgpt.Message]] = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in ANSWERS.items()
    ]
    loud: list[microgpt.Message] = [
        {"role": "system", "content": SYSTEM},
        *[turns[0][0], {"role": "assistant", "content": LOUD}] * 2,
    ]
    model, trainer = microgpt.prepare(
        microgpt.Dataset.from_conversations(
            [*turns, turns[0] + turns[1], turns[1] + turns[0], loud]
        ),
        microgpt.TrainConfig(steps=250, learning_rate=0.01),
        random.Random(1),
        n_embd=32,
        n_layer=1,
        block_size=128,
    )
    trainer.advance(250)
    directory = tmp_path_factory.mktemp("models") / "talking"
    model.save(directory)
    return directory


@pytest.fixture(scope="module")
def talking(talking_dir: Path) -> Iterator[Server]:
    with running(talking_dir) as server:
        yield server


@pytest.fixture(scope="module")
def naming(names_dir: Path) -> Iterator[Server]:
    with running(names_dir) as server:
        yield server


def test_a_conversation_comes_piece_by_piece(talking: Server, open_page: OpenPage) -> None:
    page = open_page(talking)
    expect(page.locator("#model")).to_contain_text("talking · ")
    expect(page.locator("#message")).to_be_focused()
    page.evaluate(
        """() => { window.lengths = [];
        new MutationObserver(() => lengths.push(document.querySelector("#turns").innerText.length))
          .observe(document.querySelector("#turns"), { childList: true, subtree: true }); }"""
    )
    for asked, answer in ANSWERS.items():
        page.keyboard.type(asked)
        page.keyboard.press("Enter")
        expect(page.locator("#turns .assistant").last).to_have_text(answer)
        expect(page.locator("#turns .assistant").last).to_have_attribute("aria-busy", "false")
    assert page.locator("#turns .user").all_inner_texts() == list(ANSWERS)
    lengths = page.evaluate("window.lengths")
    assert len(set(lengths)) > 2 * len(ANSWERS)  # a question, then its answer as it grows
    page.click("#clear")
    expect(page.locator("#turns li")).to_have_count(0)
    expect(page.locator("#message")).to_be_focused()


def test_a_message_of_the_system_precedes_every_conversation(
    talking: Server, open_page: OpenPage
) -> None:
    page = open_page(talking)

    def say_hello() -> str:
        page.fill("#message", "hello")
        expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")
        likeliest = next(iter(bars_of(page)))
        page.keyboard.press("Enter")
        expect(page.locator("#turns .assistant").last).to_have_attribute("aria-busy", "false")
        reply = page.locator("#turns .assistant").last.inner_text()
        assert reply.startswith(likeliest)
        return reply

    expect(page.locator("#message")).to_be_focused()
    for key in ("Shift+Tab", "Shift+Tab", "Enter", "Tab"):  # the messages, the summary: it opens
        page.keyboard.press(key)
    expect(page.get_by_label("System message")).to_be_focused()
    page.keyboard.type(f" {SYSTEM}")
    assert [say_hello(), say_hello()] == [LOUD] * 2
    page.click("#clear")
    page.click("#instructions summary")  # closes it
    expect(page.locator("#system-shown")).to_have_text(SYSTEM)
    assert say_hello() == LOUD
    page.click("#clear")
    page.click("#instructions summary")
    page.fill("#system", " ")
    assert say_hello() == ANSWERS["hello"]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_reply_can_be_stopped(slow_dir: Path, open_page: OpenPage, how: str) -> None:
    with running(slow_dir) as server:
        page = open_page(server)
        expect(page.locator("#stop")).to_be_disabled()
        expect(page.locator("#instructions")).to_be_hidden()  # the model knows no such message
        page.fill("#message", "hello")
        page.click("#send")
        reply = page.locator("#turns .assistant")
        expect(reply).to_have_text(re.compile(".{5,}"))
        if how == "button":
            page.focus("#stop")
            page.keyboard.press("Enter")
            expect(page.locator("#message")).to_be_focused()
        else:
            page.keyboard.press("Escape")
        expect(page.locator("#turns .note")).to_have_text("stopped")
        text = reply.inner_text()
        assert 5 <= len(text) < 900
        expect(page.locator("#send")).to_be_enabled()
        page.wait_for_timeout(200)
        assert reply.inner_text() == text
        while server.metric("microgpt_in_flight"):
            page.wait_for_timeout(20)


def test_samples_by_keyboard_alone(naming: Server, names_dir: Path, open_page: OpenPage) -> None:
    page = open_page(naming)
    expect(page.locator("#prompt")).to_be_focused()
    page.fill("#seed", "7")
    page.focus("#prompt")
    for key in ("a", "Tab", "5", "Tab", "Enter"):  # tabbing selects the number that is there
        page.keyboard.press(key)
    expect(page.locator("#texts li")).to_have_count(5)
    expected = microgpt.load(names_dir).generate(5, prompt="a", seed=7)
    assert page.locator("#texts li").all_inner_texts() == expected


def test_a_problem_is_shown_once_and_replaces_what_was_there(
    naming: Server, open_page: OpenPage
) -> None:
    page = open_page(naming, expected="status of 400")
    page.fill("#prompt", "a")
    page.keyboard.press("Enter")
    expect(page.locator("#texts li")).to_have_count(40)
    page.fill("#prompt", "a7")
    page.keyboard.press("Enter")
    expect(page.get_by_text("'7'")).to_have_count(1)
    expect(page.locator("#problem")).to_contain_text("'7'")
    expect(page.locator("#texts li")).to_have_count(0)
    expect(page.locator("#bars tr")).to_have_count(0)
    page.fill("#prompt", "a")
    expect(page.locator("#problem")).to_be_empty()
    expect(page.locator("#bars tr")).to_have_count(16)


def test_a_long_problem_covers_nothing(talking: Server, open_page: OpenPage) -> None:
    page = open_page(talking, expected="status of 400")
    refused: dict[str, Any] = {"error": {"message": "this cannot be done; " * 100}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=refused))
    page.fill("#message", "hello")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("this cannot be done")
    expect(page.locator("#message")).to_have_value("hello")
    for name in ("send", "clear"):
        page.click(f"#{name}", trial=True, timeout=2000)
    problem, stop = (page.locator(part).bounding_box() for part in ("#problem", "#stop"))
    assert problem
    assert stop
    assert problem["y"] + problem["height"] < stop["y"]
    page.keyboard.type("?")
    expect(page.locator("#problem")).to_be_empty()


def test_invalid_numbers_are_explained_and_not_sent(naming: Server, open_page: OpenPage) -> None:
    page = open_page(naming)
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("aside summary")  # closes it
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    for name, value in (("top_k", "0"), ("max_tokens", "1.5"), ("seed", "-1"), ("top_k", "28")):
        page.evaluate(
            "([id, value]) => { document.getElementById(id).value = value; }", [name, value]
        )
        page.click("#generate button")
        expect(page.locator(f"#{name}")).to_be_focused()
        page.fill(f"#{name}", "")
    assert sent == []
    page.click("#generate button")
    expect(page.locator("#texts li")).to_have_count(40)


def test_what_the_model_does_not_read_is_noted(talking: Server, open_page: OpenPage) -> None:
    page = open_page(talking)
    lost = {"X-Microgpt-Tokens-Dropped": "1200", "X-Microgpt-Unknown": "%C3%A4%0A"}
    answer: dict[str, Any] = {"tokens": [], "tokens_dropped": 0, "unknown": "ä"}
    page.route("**/v1/next", lambda route: route.fulfill(json=answer))
    page.route("**/v1/chat/completions", lambda route: with_headers(route, lost))
    page.fill("#message", "hello ä")
    unknown = "unknown to the model and left out: ä"
    expect(page.locator("#next-note")).to_have_text(unknown)
    page.keyboard.press("Enter")
    note = page.locator("#turns .user + .note")
    expect(note).to_contain_text("1,200 tokens from the start dropped")
    expect(note).to_contain_text(f"{unknown} new line")
    expect(page.locator("#turns .assistant")).to_have_attribute("aria-busy", "false")
    assert page.locator("#turns li").count() == 3


def test_bars_of_a_reply_have_no_tokens_that_are_never_drawn(
    talking: Server, chat_dir: Path, open_page: OpenPage
) -> None:
    model = microgpt.load(chat_dir)
    prompt = model.prompt([{"role": "user", "content": "hello"}])
    specials = range(model.tokenizer.n_plain, model.tokenizer.vocab_size)
    tokens = [
        {"token": model.tokenizer.token_text(i), "probability": 0.1, "is_special": True}
        for i in specials
    ]
    tokens.insert(0, {"token": "h", "probability": 1 - 0.1 * len(specials), "is_special": False})
    page = open_page(talking)
    expect(page.locator("#next-note")).to_contain_text("Type a message")
    expect(page.locator("#bars tr")).to_have_count(0)
    page.route("**/v1/next", lambda route: route.fulfill(json={"tokens": tokens}))
    page.fill("#message", "hello")
    page.fill("#temperature", "1")
    expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")
    drawn = {model.tokenizer.token_text(i) for i in specials if i not in prompt.forbidden}
    assert bars_of(page).keys() == {"h", *drawn}
    assert sum(bars_of(page).values()) == pytest.approx(100)


def with_headers(route: Route, headers: dict[str, str]) -> None:
    response = route.fetch()
    route.fulfill(response=response, headers={**response.headers, **headers})


def test_one_of_several_models_is_chosen_in_the_header(
    talking: Server, talking_dir: Path, names_dir: Path, open_page: OpenPage
) -> None:
    page = open_page(talking)
    expect(page.locator("#message")).to_be_focused()
    expect(page.locator("#models")).to_be_hidden()
    with running(f"{talking_dir},{names_dir}") as both:
        page = open_page(both)
        _choose(page)
        _choose_while_answers_are_late(page)


def _choose(page: Page) -> None:
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json))
    expect(page.locator("#models option")).to_have_text(["talking", "names"])
    page.fill("#message", "hello")
    page.keyboard.press("Enter")
    expect(page.locator("#turns .assistant")).to_have_text(ANSWERS["hello"])
    page.select_option("#models", "names")
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#chat")).to_be_hidden()
    page.click("#generate button")
    expect(page.locator("#texts li")).to_have_count(40)
    assert [body["model"] for body in sent if body] == [
        *["talking"] * 2,  # the next token, the reply
        *["names"] * 2,  # the next token, the samples
    ]


def _choose_while_answers_are_late(page: Page) -> None:
    """What comes late is of the model before, and is not shown."""
    late: list[Route] = []

    def hold(route: Route) -> None:
        late.append(route)

    page.route("**/generate", hold)
    page.click("#generate button")
    page.select_option("#models", "talking")
    expect(page.locator("#message")).to_be_focused()
    page.route("**/model?model=names", hold)
    page.select_option("#models", "names")
    page.select_option("#models", "talking")
    expect(page.locator("#message")).to_be_focused()
    assert len(late) == 2
    for route in late:
        route.continue_()
    page.wait_for_timeout(200)
    expect(page.locator("#texts li")).to_have_count(0)
    expect(page.locator("#chat")).to_be_visible()
    expect(page.locator("#samples")).to_be_hidden()


class Uniforms:
    """Draws that are spread evenly over [0, 1)."""

    def __init__(self, n: int) -> None:
        self._left = [(i + 0.5) / n for i in range(n)]

    def random(self) -> float:
        return self._left.pop()


def shares_of_draws(
    model: microgpt.LanguageModel, source: str | list[microgpt.Message], **options: Any
) -> dict[str, float]:
    """Return the percentage of each token among those that the library draws."""
    prompt = model.prompt(source)
    logits = model.logits(prompt.token_ids)[-1].tolist()
    config, rng, n = microgpt.SamplingConfig(**options), Uniforms(2000), 2000
    drawn = Counter(choose_token(logits, config, rng, prompt.forbidden) for _ in range(n))
    return {model.tokenizer.token_text(i): 100 * drawn[i] / n for i in drawn}


def bars_of(page: Page) -> dict[str, float]:
    """Return the percentages beside the bars; those below 0.1 as 0."""
    rows = [row.split() for row in page.locator("#bars tr").all_inner_texts()]
    return {row[0].strip("<>"): 0.0 if row[1] == "<" else float(row[1]) for row in rows}


def test_bars_fill_their_room_and_are_the_probabilities_of_the_draw(
    naming: Server, names_dir: Path, open_page: OpenPage
) -> None:
    page = open_page(naming, viewport={"width": 1280, "height": 800})
    expect(page.locator("#bars tr")).to_have_count(16)
    rooms = page.locator("#bars td:nth-child(2)").all()
    widths = [box["width"] for cell in rooms if (box := cell.locator("div").bounding_box())]
    room = rooms[0].bounding_box()
    assert room
    assert widths[0] / room["width"] > 0.95
    shares = list(bars_of(page).values())
    assert widths[1] / widths[0] == pytest.approx(shares[1] / shares[0], abs=0.02)
    for part in ("#samples", "#next"):
        box = page.locator(part).bounding_box()
        assert box
        assert box["y"] + box["height"] == pytest.approx(784, abs=2)  # down to the end
    model = microgpt.load(names_dir)
    for options in (
        {"temperature": 0.5},
        {"temperature": 2},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.8},
        {"temperature": 0},
    ):
        page.fill("#prompt", "han")
        for name, value in options.items():
            page.fill(f"#{name}", str(value))
        expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")
        shown = bars_of(page)
        expected = shares_of_draws(model, "han", **options)
        if "top_p" in options or options["temperature"] == 0:
            assert shown.keys() == expected.keys()
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
        for token, share in shown.items():
            assert share == pytest.approx(expected.get(token, 0.0), abs=0.11)  # both are rounded


def test_the_page_works_below_a_prefix_that_a_proxy_strips(
    talking: Server, open_page: OpenPage
) -> None:
    page = open_page(talking)
    expect(page.locator("#message")).to_be_focused()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.route(  # the proxy
        f"{talking.url}/gpt/**",
        lambda route: route.fulfill(
            response=route.fetch(url=route.request.url.replace("/gpt/", "/", 1))
        ),
    )
    page.goto(f"{talking.url}/gpt/")
    page.fill("#message", "hello")
    page.keyboard.press("Enter")
    expect(page.locator("#turns .assistant")).to_have_text(ANSWERS["hello"])
    page.goto(f"{talking.url}/gpt/docs", wait_until="load")
    page.get_by_role("heading", name="microgpt-serve").wait_for()
    assert {"/gpt/v1/chat/completions", "/gpt/static/docs.css"} <= {
        url.removeprefix(talking.url) for url in sent
    }
    assert all(url.startswith(f"{talking.url}/gpt/") for url in sent)


def test_model_output_is_never_markup(tmp_path: Path, open_page: OpenPage) -> None:
    model = microgpt.fit([MARKUP], steps=200, block_size=32)
    with serving(model, tmp_path / MARKUP.replace(" ", "")) as server:
        page = open_page(server)
        page.click("#generate button")
        expect(page.locator("#texts li").first).to_have_text(MARKUP)
        assert page.locator("img").count() == 0


def test_light_or_dark_on_a_phone_all_is_readable(
    talking: Server, naming: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    brightness = {}
    looks: dict[str, dict[str, Any]] = {"light": {}, "dark": PHONE}
    for server, field in ((talking, "#message"), (naming, "#prompt")):
        for scheme, window in looks.items():
            page = open_page(server, color_scheme=scheme, **window)
            page.fill(field, "h")
            page.keyboard.press("Enter")
            expect(page.locator("#turns .assistant, #texts li").first).to_be_visible()
            expect(page.locator("[aria-busy=true]")).to_have_count(0)
            for button in page.locator("button[type=submit]:visible").all():
                expect(button).to_be_in_viewport(ratio=1)
            page.screenshot(path=tmp_path / "page.png", full_page=True)
            brightness[scheme] = imread(tmp_path / "page.png")[..., :3].mean()
            assert page.evaluate(LEAST_CONTRAST) >= 4.5
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert brightness["dark"] < 0.3
    assert brightness["light"] > 0.7


def test_the_page_asks_for_an_api_key(names_dir: Path, open_page: OpenPage) -> None:
    with running(names_dir, api_key="sesame", path_prefix="/gpt") as server:
        page = open_page(server, expected="status of 401")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("simsim")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_have_text("This is not the key.")
        page.keyboard.type("sesame")
        page.keyboard.press("Enter")
        page.click("#generate button")
        expect(page.locator("#texts li")).to_have_count(40)
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url.removeprefix(server.url)))
        page.reload()
        expect(page.locator("#bars tr")).to_have_count(16)
        # A proxy that strips the prefix sends "/" for "/gpt" too: all links begin at the prefix.
        assert len(sent) > 4
        assert {url for url in sent if not url.startswith("/gpt/")} == {"/"}
        assert "sesame" not in server.log
