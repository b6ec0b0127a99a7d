"""Write the lessons as notebooks, beside their chapters, with the names that they read.

hatch run lessons     # libs/microgpt/docs/lessons/*.ipynb, which are not part of the repository
"""

import doctest
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LESSONS = ROOT / "libs/microgpt/docs/lessons"
NAMES = ROOT / "apps/microgpt_cli/src/microgpt_cli/sample_data/names.txt"
CHAPTERS = sorted(LESSONS.glob("[1-9]-*.md"))
CODE = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK_TO_CHAPTER = re.compile(r"(?<=\]\()(\d-\w+)\.md")


class Part(NamedTuple):
    """A piece of a chapter: "text", "program" for gpt.py, or "session", typed with what it prints.

    `line` counts from 0.
    """

    kind: str
    source: str
    line: int


def parts_of(chapter: str) -> Iterator[Part]:
    """Yield the parts of a chapter in their order."""
    end = 0
    for code in CODE.finditer(chapter):
        yield Part("text", chapter[end : code.start()], chapter.count("\n", 0, end))
        kind = "session" if code[1].startswith(">>>") else "program"
        yield Part(kind, code[1], chapter.count("\n", 0, code.start(1)))
        end = code.end()
    yield Part("text", chapter[end:], chapter.count("\n", 0, end))


def program(chapters: Sequence[Path]) -> str:
    """Return gpt.py as it is after these chapters."""
    parts = (part for path in chapters for part in parts_of(path.read_text(encoding="utf-8")))
    return "\n\n".join(part.source for part in parts if part.kind == "program")


def cells_of(part: Part) -> Iterator[str]:
    """Yield the code of each cell: what a session prints ends one."""
    if part.kind == "program":
        yield part.source
        return
    cell = ""
    for example in doctest.DocTestParser().get_examples(part.source):
        cell += example.source
        if example.want:
            yield cell
            cell = ""
    if cell:
        yield cell


def notebook_of(chapter: Path) -> dict[str, Any]:
    """Return a chapter as a notebook without outputs; its first cell is gpt.py as it was before."""
    cells: list[tuple[str, str]] = []
    for part in parts_of(chapter.read_text(encoding="utf-8")):
        if part.kind == "text":
            cells.append(("markdown", LINK_TO_CHAPTER.sub(r"\1.ipynb", part.source.strip())))
        else:
            cells += [("code", code.rstrip()) for code in cells_of(part)]
    if before := program(CHAPTERS[: CHAPTERS.index(chapter)]):
        cells.insert(1, ("code", f"# gpt.py: the chapters before wrote this\n{before.rstrip()}"))
    cells = [(kind, source.replace(*MAIN)) for kind, source in cells if source]
    described: list[dict[str, Any]] = [
        {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": source}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for i, (kind, source) in enumerate(cells)
    ]
    if before:
        described[1]["metadata"] = {"jupyter": {"source_hidden": True}}
    return {
        "cells": described,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


# A notebook has no command line; and a hundred steps are enough to see the loss fall.
MAIN = (
    'if __name__ == "__main__":\n    main(sys.argv[1])',
    'main("names.txt", steps=100, n_samples=5)',
)


def write(folder: Path) -> None:
    """Write the notebooks and the names."""
    shutil.copy(NAMES, folder / "names.txt")
    for chapter in CHAPTERS:
        path = folder / chapter.with_suffix(".ipynb").name
        content = json.dumps(notebook_of(chapter), indent=1, ensure_ascii=False)
        path.write_text(content + "\n", encoding="utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    write(LESSONS)
