"""Memory of training: over many steps, and for a large file."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="memory is read from /proc")

MEGABYTE = 1_000_000


# Says after each call of the library what memory there is, in bytes. A reader of /proc in another
# process may come late.
SAMPLED = """
import os
from pathlib import Path
from microgpt_cli import run
from microgpt_cli.main import run as main

advances = run.advances

def sampled(trainer, *others):
    for advance in advances(trainer, *others):
        yield advance
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(trainer.step, pages * os.sysconf("SC_PAGE_SIZE"))

run.advances = sampled
main()
"""


def test_memory_is_constant_over_many_steps(names: Path, tmp_path: Path) -> None:
    # The reports of a call are in memory together, and a quick machine takes many steps in a call:
    # `--log-every` keeps them to a thousand at any speed.
    flags = ("--steps", 40_000, "--log-every", 1000, "--snapshot-every", 5000, "--quiet")
    arguments = ("train", "--input", names, "--output", tmp_path / "out", *flags)
    command = [sys.executable, "-c", SAMPLED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]

    def peak(first: int, last: int) -> int:
        return max(n_bytes for step, n_bytes in used if first <= step <= last)

    # After two snapshots, which load what they take, and before the end: 20,000 steps that leak 25
    # bytes each are seen.
    assert peak(31_000, 39_000) - peak(11_000, 19_000) < 0.4 * MEGABYTE


def write_lines(path: Path, n_bytes: int) -> int:
    """Write lines of 100 to 130 letters; return how many."""
    rng = random.Random(1)
    lines = [
        "".join(rng.choices("abcdefghij klmnop", k=rng.randint(100, 130))) for _ in range(1000)
    ]
    block = "x" + "\n".join(lines) + "\n"
    n_blocks = n_bytes // len(block) + 1
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_blocks):
            file.write(block)
    return n_blocks * len(lines)


# Not getrusage: its peak may be that of the process which started this one.
PEAK = """
from pathlib import Path
from microgpt_cli.main import run
try:
    run()
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


def peak_of_training(path: Path, output: Path, *flags: object) -> int:
    """Return the most memory, in bytes, of a command that trains a few steps."""
    arguments = ("train", "--input", path, "--output", output, "--steps", 20, *flags, "--quiet")
    command = [sys.executable, "-c", PEAK, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize(
    ("split", "long"),
    [("line", "truncate"), ("paragraph", "truncate"), ("file", "truncate"), ("file", "window")],
)
@pytest.mark.parametrize(
    ("n_bytes", "n_others"),
    [
        (20 * MEGABYTE, 100 * MEGABYTE),  # a command without data takes half of the others
        pytest.param(1000 * MEGABYTE, 200 * MEGABYTE, marks=pytest.mark.long),
    ],
)
def test_large_file_takes_little_more_memory_than_its_tokens(
    tmp_path: Path, n_bytes: int, n_others: int, split: str, long: str
) -> None:
    n_lines = write_lines(tmp_path / "large.txt", n_bytes)
    n_tokens = (tmp_path / "large.txt").stat().st_size  # a BOS in the place of each line's end
    flags = ("--split", split, "--long", long, "--snapshot-every", 10)
    peak = peak_of_training(tmp_path / "large.txt", tmp_path / "out", *flags)
    assert peak < 2 * n_tokens + 8 * n_lines * (split == "line") + n_others
    (tmp_path / "large.txt").unlink()


def test_many_files_take_little_more_memory_than_their_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(10_000):
        (folder / f"{i}.txt").write_text(f"note {i}\n" * 100)
    n_tokens = 100 * sum(len(f"note {i}\n") for i in range(10_000))
    peak = peak_of_training(folder, tmp_path / "out", "--split", "file")
    assert peak < 2 * n_tokens + 200 * MEGABYTE
