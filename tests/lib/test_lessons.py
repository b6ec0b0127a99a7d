"""The lessons: every line runs, the program is microgpt.py's, each exercise has its solution."""

import doctest
import json
import math
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import microgpt
import nbformat
import pytest
from microgpt_cli.explaining import lines_of
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "libs/microgpt/docs/lessons"
SOLUTIONS = LESSONS / "solutions.md"
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "tools/lessons.py"))
CHAPTERS: list[Path] = TOOL["CHAPTERS"]
PROGRAM: str = TOOL["program"](CHAPTERS)
TEXT_BLOCK = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
BASH_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAX_WORDS = 1000  # of a chapter: ten minutes with its code

of_each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that a reader works in, with the names."""
    shutil.copy(TOOL["NAMES"], tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def golden() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((ROOT / "tests/golden/sample_names.json").read_text())
    return figures


def session_with(program: str, **names: Any) -> dict[str, Any]:
    """Return what `from gpt import *` imports."""
    names["__name__"] = "gpt"
    exec(compile(program, "gpt.py", "exec"), names)  # noqa: S102 - as a reader does
    return names


def follow(path: Path, program: str) -> int:
    """Run a chapter as a reader does, with a new session for each state of gpt.py.

    Args:
        path: the chapter.
        program: gpt.py before it.

    Returns:
        How many lines were typed.
    """
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    names = session_with(program)
    for part in TOOL["parts_of"](path.read_text(encoding="utf-8")):
        if part.kind == "program":
            program = f"{program}\n\n{part.source}"
            names = session_with(program)
        elif part.kind == "session":
            parse = doctest.DocTestParser().get_doctest
            session = parse(part.source, names, path.name, str(path), part.line)
            session.globs = names  # not the copy: definitions stay for the next session
            runner.run(session, out=report.append, clear_globs=False)
    assert not report, "".join(report)
    return runner.tries


# ---------------------------------------------------------------- the chapters


@of_each_chapter
def test_lines_print_what_the_chapter_shows(chapter: Path) -> None:
    assert follow(chapter, TOOL["program"](CHAPTERS[: CHAPTERS.index(chapter)])) >= 4


def test_solutions_print_what_they_show() -> None:
    assert follow(SOLUTIONS, PROGRAM) > 20


def test_wrong_line_is_noticed(tmp_path: Path) -> None:
    chapter = CHAPTERS[0].read_text(encoding="utf-8").replace("dy/dx  7.000", "dy/dx  7.001")
    (tmp_path / "wrong.md").write_text(chapter, encoding="utf-8")
    with pytest.raises(AssertionError, match=r"wrong\.md\", line \d+(.*\n)+.*7\.001"):
        follow(tmp_path / "wrong.md", "")


@of_each_chapter
def test_chapter_is_short_and_leads_on(chapter: Path) -> None:
    content = chapter.read_text(encoding="utf-8")
    texts = (part.source for part in TOOL["parts_of"](content) if part.kind == "text")
    assert sum(len(text.split()) for text in texts) < MAX_WORDS
    number = CHAPTERS.index(chapter)
    following = CHAPTERS[number + 1].name if chapter != CHAPTERS[-1] else "README.md"
    assert f"]({following})" in content.splitlines()[-1]
    assert f"]({chapter.name})" in (LESSONS / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\n## Exercise: (.*)\n", content)
    assert re.search(r"!\[.+\]\(.*\.svg\)", content)


def test_picture_of_the_first_graph_is_what_draw_draws() -> None:
    x = microgpt.Value(3.0)
    y = x * x + x
    y.backward()
    picture = (LESSONS / "1-numbers.svg").read_text(encoding="utf-8")
    assert picture == microgpt.draw(y, {"x": x, "y": y}).svg + "\n", "hatch run pictures lessons"


def test_links_lead_somewhere() -> None:
    for page in LESSONS.glob("*.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                file, _, anchor = link.partition("#")
                target = (LESSONS / file).resolve()
                assert target.exists(), f"{page.name} links to {link}"
                headings = re.findall(
                    r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE
                )
                anchors = [re.sub(r"[^\w -]", "", each).replace(" ", "-") for each in headings]
                assert not anchor or anchor in [each.lower() for each in anchors], link


def test_explain_names_the_head_that_was_built_in_the_library() -> None:
    (chapter,) = (path for path in CHAPTERS if path.stem == "6-block")
    content = chapter.read_text(encoding="utf-8")
    *_, session = (part for part in TOOL["parts_of"](content) if part.kind == "session")
    names: dict[str, Any] = {"names": ["anna", "bob"]}
    for example in doctest.DocTestParser().get_examples(session.source):
        exec(example.source, names)  # noqa: S102 - as a reader does
    heads = lines_of(names["model"].trace("anna"), 80)
    assert "calls it `previous 100%`" in content
    assert [line.strip() for line in heads if "previous" in line] == ["1 previous 100%"]


@pytest.mark.long
def test_commands_train_the_model_whose_heads_are_described() -> None:
    (chapter,) = (path for path in CHAPTERS if path.stem == "5-attention")
    (commands,) = BASH_BLOCK.findall(chapter.read_text(encoding="utf-8"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    typed = ["bash", "-ec", commands]
    printed = subprocess.check_output(typed, env={**os.environ, "PATH": path}, text=True)
    heads = microgpt.load("out").trace("christopher").attention[0]
    assert "  2 previous 61%  " in printed
    assert heads[1].diagonal(-1)[1:].mean() > 0.6  # "the previous letter"
    assert all(heads[2][3:6, 1] > 0.7)  # "still looks at the c when it has read r, i and s"


# ---------------------------------------------------------------- the program


def printed_by_microgpt(golden: dict[str, Any]) -> list[str]:
    return [
        *("num docs: 4692", "vocab size: 27", "num params: 4192"),
        *(f"step {i:4d} / 1000 | loss {loss:.4f}" for i, loss in enumerate(golden["losses"], 1)),
        *("", "--- inference (new, hallucinated names) ---"),
        *(f"sample {i:2d}: {sample}" for i, sample in enumerate(golden["samples"], 1)),
    ]


def test_program_begins_like_microgpt(golden: dict[str, Any]) -> None:
    lines: list[str] = []
    losses: list[float] = []

    def note(line: str) -> None:
        lines.append(line)
        if line.startswith("step    3"):
            raise InterruptedError

    def noted_loss(*arguments: Any) -> Any:
        loss = name_loss(*arguments)
        losses.append(loss.data)
        return loss

    names = session_with(PROGRAM, print=note)
    name_loss, names["name_loss"] = names["name_loss"], noted_loss
    with pytest.raises(InterruptedError):
        names["main"]("names.txt")
    assert losses == pytest.approx(golden["losses"][:3], rel=1e-12)
    assert len(lines) == 6
    assert lines == printed_by_microgpt(golden)[: len(lines)]


def test_program_is_as_long_as_the_lessons_say() -> None:
    assert "some 250 lines" in (LESSONS / "README.md").read_text(encoding="utf-8")
    assert 240 < len(PROGRAM.splitlines()) < 260


@pytest.mark.long
def test_program_prints_all_that_microgpt_prints(
    golden: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    session_with(PROGRAM)["main"]("names.txt")
    assert capsys.readouterr().out.splitlines() == printed_by_microgpt(golden)


def test_output_in_the_chapters_is_that_of_the_program(golden: dict[str, Any]) -> None:
    printed = printed_by_microgpt(golden)
    shown = [
        line
        for chapter in CHAPTERS
        for block in TEXT_BLOCK.findall(chapter.read_text(encoding="utf-8"))
        for line in block.splitlines()
    ]
    assert len(shown) > 12
    assert {*shown} - {*printed} == {"..."}


# ---------------------------------------------------------------- the exercises


@pytest.fixture(scope="module")
def solved() -> dict[str, Any]:
    """Return gpt.py with all solutions."""
    return session_with(TOOL["program"]([*CHAPTERS, SOLUTIONS]))


@pytest.mark.parametrize("at", [1.3, 0.2, -0.7])
def test_squared_relu_has_its_row_of_derivatives(solved: dict[str, Any], at: float) -> None:
    x = solved["Value"](at)
    y = solved["squared_relu"](x)
    assert y.operands == (x,)
    solved["backward"](y)
    theirs = microgpt.Value(at)
    square = theirs.relu() ** 2
    square.backward()
    assert (y.data, x.grad) == (square.data, theirs.grad)
    h = 1e-6
    above, below = (solved["squared_relu"](solved["Value"](at + by)).data for by in (h, -h))
    assert x.grad == pytest.approx((above - below) / (2 * h), rel=1e-6)


def test_guess_by_frequency_is_the_entropy_of_the_tokens(solved: dict[str, Any]) -> None:
    names = solved["read_names"]("names.txt")
    counts = Counter("".join(f"{name}." for name in names))
    entropy = -sum(n * math.log(n / counts.total()) for n in counts.values()) / counts.total()
    assert solved["frequency_loss"](names) == pytest.approx(entropy, rel=1e-12)


def test_trigram_of_one_name_is_known_by_hand(solved: dict[str, Any]) -> None:
    # After "..", ".a" and "ab" one token was seen; after "b." nothing is predicted.
    row = -math.log((1 + 0.5) / (1 + 27 * 0.5))
    assert solved["trigram_loss"](["ab"], ["ab"], 0.5) == pytest.approx(row, rel=1e-12)
    unseen = (row - 2 * math.log(0.5 / (1 + 27 * 0.5)) / 2 + math.log(27)) / 3
    assert solved["trigram_loss"](["ab"], ["ac"], 0.5) == pytest.approx(unseen, rel=1e-12)


def test_gradient_by_hand_is_that_of_backward(solved: dict[str, Any]) -> None:
    rng = random.Random(1)
    for _ in range(5):
        logits = [rng.gauss(0, 2) for _ in range(7)]
        counts = [rng.randrange(1, 9) for _ in range(7)]
        row = [solved["Value"](z) for z in logits]
        pairs = zip(solved["softmax"](row), counts, strict=True)
        losses = [-p.log() * (n / sum(counts)) for p, n in pairs]
        solved["backward"](sum(losses[1:], start=losses[0]))
        found = solved["row_gradient"](logits, counts)
        assert found == pytest.approx([z.grad for z in row], rel=1e-9, abs=1e-12)


def test_head_looks_two_back(solved: dict[str, Any]) -> None:
    w_q, w_k = solved["two_back"](7)
    keys: list[Any] = []
    for t in range(7):
        x = [solved["Value"](float(i == t)) for i in range(7)]
        keys.append(solved["linear"](x, w_k))
        weights = solved["attention_weights"](solved["linear"](x, w_q), keys)
        if t >= 2:
            assert weights[t - 2].data > 0.99
        else:
            assert [w.data for w in weights] == pytest.approx([1 / (t + 1)] * (t + 1))


def test_number_of_weights_is_that_of_the_library(solved: dict[str, Any]) -> None:
    for sizes in product((5, 27), (8, 12), (1, 3), (4, 16)):
        names = ("vocab_size", "n_embd", "n_layer", "block_size")
        config = microgpt.ModelConfig(**dict(zip(names, sizes, strict=True)), n_head=2)
        assert solved["n_weights"](*sizes) == config.n_params


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_the_library(solved: dict[str, Any], max_norm: float) -> None:
    grads = [3.0, -4.0, 1e-3]
    ours = [solved["Value"](1.0) for _ in grads]
    theirs = [microgpt.Value(1.0) for _ in grads]
    for p, q, grad in zip(ours, theirs, grads, strict=True):
        p.grad = q.grad = grad
    norm = solved["clip"](ours, max_norm)
    assert norm == pytest.approx(math.hypot(*grads), rel=1e-12)
    solved["Adam"](ours).step(0.1)
    assert microgpt.Adam(theirs).step(0.1, clip=max_norm) == pytest.approx(norm, rel=1e-12)
    assert [p.data for p in ours] == pytest.approx([q.data for q in theirs], rel=1e-12)


def test_top_k_draws_only_the_likeliest(solved: dict[str, Any]) -> None:
    numbers = [0.0, 2.0, -1.0, 1.0]
    logits = [solved["Value"](z) for z in numbers]
    rng = random.Random(1)
    draws = Counter(solved["sample_top_k"](logits, 2, 0.5, rng) for _ in range(2000))
    assert draws.keys() == {1, 3}
    assert draws[1] / 2000 == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)  # 3.6 sigma
    assert {solved["sample_top_k"](logits, 1, 9.0, rng) for _ in range(50)} == {1}
    assert {solved["sample_top_k"](logits, 4, 9.0, rng) for _ in range(200)} == {0, 1, 2, 3}


# ---------------------------------------------------------------- the notebooks


@of_each_chapter
def test_notebook_is_sound(chapter: Path) -> None:
    notebook = nbformat.from_dict(TOOL["notebook_of"](chapter))  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert not [source for source in sources if source.startswith(">>>") or "sys.argv[1]" in source]
    assert sum("class Value" in source for source in sources) == 1
    texts = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.findall(r"\]\(\d-\w+\.md\)", texts)


@pytest.mark.long
@of_each_chapter
def test_notebook_shows_what_the_chapter_shows(
    chapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    TOOL["write"](folder)
    path = folder / chapter.with_suffix(".ipynb").name
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", ())]
    shown = "".join(each.get("text") or each.data["text/plain"] + "\n" for each in outputs)
    for part in TOOL["parts_of"](chapter.read_text(encoding="utf-8")):
        if part.kind == "session":
            for example in doctest.DocTestParser().get_examples(part.source):
                assert example.want.strip() in shown
    if chapter == CHAPTERS[0]:
        assert [each for each in outputs if "image/svg+xml" in each.get("data", ())]
    if chapter == CHAPTERS[-1]:
        assert "step    1 /  100 | loss 3.3164" in shown
        assert "sample  5: " in shown
