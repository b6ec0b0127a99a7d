"""The pages that `hatch run docs` writes: each public name on one of them, and no dead link."""

import runpy
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import microgpt
import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools/docs.py"))


class Page(HTMLParser):
    """Collects the anchors and the links of a page, and its text outside of source code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self._in_source = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids.add(values.get("id") or "")
        if tag == "a":
            self.links.add(values.get("href") or "")
        if tag == "div" and (self._in_source or "pdoc-code" in str(values.get("class"))):
            self._in_source += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._in_source:
            self._in_source -= 1

    def handle_data(self, data: str) -> None:
        if not self._in_source:
            self.text += data


@pytest.fixture(scope="module")
def folder(docs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output: Path = tmp_path_factory.mktemp("docs") / "api"
    docs["write"](output)
    return output


@pytest.fixture(scope="module")
def pages(folder: Path) -> dict[str, Page]:
    return {path.name: Page(path) for path in folder.glob("*.html")}


def test_every_public_name_is_on_one_page(docs: dict[str, Any]) -> None:
    listed = Counter(name for _, names in docs["TOPICS"].values() for name in names.split())
    twice = [name for name, count in listed.items() if count > 1]
    missing, unknown = microgpt.__all__ - listed.keys(), listed.keys() - {*microgpt.__all__}
    assert not missing, f"add {sorted(missing)} to a topic of TOPICS in tools/docs.py"
    assert not unknown, f"remove {sorted(unknown)} from TOPICS in tools/docs.py: not public"
    assert not twice, f"TOPICS in tools/docs.py lists {twice} on two pages"
    first, *_ = docs["TOPICS"].values()
    assert first[1].startswith("fit load ")


def test_names_and_their_members_have_an_entry(
    docs: dict[str, Any], pages: dict[str, Page]
) -> None:
    for name, page in docs["PAGE_OF"].items():
        assert name in pages[f"{page}.html"].ids
        assert f"{page}.html#{name}" in pages["index.html"].links
    algorithm = pages["microgpt-the-algorithm.html"]
    assert {"GPT.logits", "InferenceGPT.decode"} <= algorithm.ids  # of a base class
    assert "number of updates" in pages["microgpt-training-step-by-step.html"].text


def test_links_lead_to_an_entry(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if not file.startswith("http"):
                target = pages[file or name]
                assert not anchor or anchor in target.ids, f"{name} links to {link}"


def test_pages_name_no_module_below_the_package(folder: Path, pages: dict[str, Page]) -> None:
    for text in (*(page.text for page in pages.values()), (folder / "search.js").read_text()):
        for module in ("corpus.", "engines.", "inference.", "storage.", "training."):
            assert f"microgpt.{module}" not in text


def test_search_knows_members_by_their_public_name(folder: Path) -> None:
    index = (folder / "search.js").read_text(encoding="utf-8")
    for name in ("microgpt.fit", "microgpt.LanguageModel.generate", "microgpt.TrainConfig.steps"):
        assert f'"{name}"' in index


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_search_finds_a_method_and_leads_to_it(folder: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        for start in ("index.html", "microgpt-errors.html"):
            page.goto((folder / start).as_uri())
            page.get_by_role("searchbox").fill("perplexity")
            page.get_by_text("microgpt.Score.perplexity").first.click()
            expect(page.get_by_role("heading", name="Train, load, use")).to_be_visible()
            assert page.url.endswith("train-load-use.html#Score.perplexity")
        browser.close()
