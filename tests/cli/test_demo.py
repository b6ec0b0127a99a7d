import subprocess
import sys
from pathlib import Path

from measuring import unmeasured

DEMO = Path(__file__).parents[2] / "tools/demo.py"


def test_demo_replaces_the_data_of_another_version(tmp_path: Path) -> None:
    names = tmp_path / "demo/names.txt"
    names.parent.mkdir()
    names.write_text("of another version\n")
    result = subprocess.run(
        [sys.executable, DEMO],
        cwd=tmp_path,
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "weights saved to demo/model/weights.json" in result.stdout
    assert "another version" not in names.read_text()
