"""The notebook of the docs: stored without outputs, since figures differ between processors."""

import ast
import math
import re
from pathlib import Path
from typing import Any

import microgpt
import nbformat
import pytest
from markup import parsed, shown_in
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = "libs/microgpt/docs/first-model.ipynb"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to run the notebook in, with the data beside it as in the checkout."""
    (tmp_path / "apps").symlink_to(ROOT / "apps")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / Path(NOTEBOOK).parent
    folder.mkdir(parents=True)
    return folder


def executed(folder: Path) -> dict[str, str]:
    """Run the notebook; return the last line of each cell of code, and what a reader sees of it."""
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {
        cell.source.splitlines()[-1].strip(): "".join(map(shown, cell.outputs)) for cell in cells
    }


def shown(output: Any) -> str:
    """Return the HTML of a value where it has some, or its text, or a part of what is printed."""
    text: str = (
        output.text
        if output.output_type == "stream"
        else output.data.get("text/html", output.data["text/plain"])
    )
    return text


def test_notebook_is_sound_and_has_no_outputs() -> None:
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.execution_count, cell.outputs) for cell in cells] == [(None, [])] * len(cells)
    assert all(ast.parse(cell.source) for cell in cells)
    texts = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((.*?)\)", texts)
    assert links
    assert all((ROOT / NOTEBOOK).parent.joinpath(link).exists() for link in links)


@pytest.mark.long
def test_notebook_trains_plots_samples_scores_and_saves(folder: Path) -> None:
    seen = executed(folder)
    assert shown_in(seen.pop("dataset"))[0] == "Dataset"
    assert float(seen.pop("math.log(dataset.tokenizer.vocab_size)")) == pytest.approx(math.log(27))
    assert shown_in(seen.pop("model"))[0] == "LanguageModel"
    elements = parsed(seen.pop("model.history")).iter()
    assert sum(element.tag.endswith("polyline") for element in elements) == 2
    learning, samples, new, scores, following, belles = seen.values()
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", learning)]
    assert len(losses) == 5
    assert losses[0] > 3
    assert losses[-1] < 2.5
    greedy, *_, hot = (line.split()[1:] for line in samples.splitlines())
    assert (len(greedy), len({*greedy})) == (6, 1)
    assert len({*hot}) > 3
    n_new, n_all = map(int, re.findall(r"\d+", new)[:2])
    assert 500 < n_new < n_all == 1000
    assert scores.split()[1::2][:2] == ["maria", "aurelia"]
    assert scores.split()[-1] == "qqq"
    assert following.split()[0] == "i"
    assert "bella" in belles.splitlines()[1]
    assert microgpt.load(folder / "names-model").config.n_embd == 32
