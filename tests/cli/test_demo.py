import runpy
import sys
from pathlib import Path

import pytest
from measuring import measuring

DEMO = Path(__file__).parents[2] / "tools/demo.py"


def test_demo_replaces_the_data_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "demo/names.txt"
    names.parent.mkdir()
    names.write_text("of another version\n")
    demo = runpy.run_path(str(DEMO))
    commands, remark = demo["DEMOS"]["names"]
    shorter = [command.replace("--steps 800", "--steps 8") for command in commands]
    assert shorter != [*commands]
    monkeypatch.setitem(demo["DEMOS"], "names", (shorter, remark))
    monkeypatch.setattr(sys, "argv", [str(DEMO)])
    monkeypatch.chdir(tmp_path)
    for name in measuring():
        monkeypatch.delenv(name)
    demo["main"]()
    out, err = capfd.readouterr()
    assert err == ""
    assert "weights saved to demo/model/weights.json" in out
    assert "another version" not in names.read_text()
