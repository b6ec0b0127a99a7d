"""The page at `/` in a real browser: what it shows, how it is used, whom it talks to."""

import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import microgpt
import pytest
from matplotlib.image import imread
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright
from serve.service import Server, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("background-networking", "component-update", "sync", "gpu", "quic")  # all disabled
PHONE: Any = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
ANSWERS = {"hello": "hi there!", "who are you?": "a small model, that says one letter at a time."}
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
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A chat model that has learned its two answers."""
    turns: list[list[microgpt.Message]] = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in ANSWERS.items()
    ]
    model, trainer = microgpt.prepare(
        microgpt.Dataset.from_conversations([*turns, turns[0] + turns[1], turns[1] + turns[0]]),
        microgpt.TrainConfig(steps=250, learning_rate=0.01),
        random.Random(1),
        n_embd=32,
        n_layer=1,
        block_size=128,
    )
    trainer.advance(250)
    with serving(model, tmp_path_factory.mktemp("page") / "talking") as server:
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


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_reply_can_be_stopped(slow_dir: Path, open_page: OpenPage, how: str) -> None:
    with running(slow_dir) as server:
        page = open_page(server)
        expect(page.locator("#stop")).to_be_disabled()
        page.fill("#message", "hello")
        page.click("#send")
        reply = page.locator("#turns .assistant")
        expect(reply).to_have_text(re.compile(".{5,}"))
        if how == "button":
            page.click("#stop")
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


def test_problems_are_shown(naming: Server, open_page: OpenPage) -> None:
    page = open_page(naming, expected="status of 400")
    page.fill("#prompt", "a7")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("'7'")
    expect(page.locator("#bars-problem")).to_contain_text("'7'")


def test_the_likeliest_next_tokens_are_bars(
    naming: Server, names_dir: Path, open_page: OpenPage
) -> None:
    page = open_page(naming)
    page.fill("#prompt", "hanna")
    greedy = microgpt.load(names_dir).generate(prompt="hanna", temperature=0)[0]
    first = page.locator("#bars tr").first
    expect(first.locator("th")).to_have_text(greedy[5])
    expect(page.locator("#bars tr")).to_have_count(10)
    shares = [
        float(text.removesuffix(" %").removeprefix("< "))
        for text in page.locator("#bars td:last-child").all_inner_texts()
    ]
    assert shares == sorted(shares, reverse=True)
    room = first.locator("td").first.bounding_box()
    length = first.locator("div").bounding_box()
    assert room
    assert length
    assert length["width"] / room["width"] == pytest.approx(shares[0] / 100, abs=0.02)


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
    page.goto(f"{talking.url}/gpt/docs", wait_until="networkidle")
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


def test_the_documentation_loads_whole_from_this_service(
    naming: Server, open_page: OpenPage
) -> None:
    page = open_page(naming)
    page.goto(f"{naming.url}/docs", wait_until="networkidle")
    page.get_by_role("heading", name="microgpt-serve").wait_for()


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
    with running(names_dir, api_key="sesame") as server:
        page = open_page(server, expected="status of 401")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("simsim")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_have_text("This is not the key.")
        page.keyboard.type("sesame")
        page.keyboard.press("Enter")
        page.click("#generate button")
        expect(page.locator("#texts li")).to_have_count(12)
        page.reload()
        expect(page.locator("#bars tr")).to_have_count(10)
        assert "sesame" not in server.log
