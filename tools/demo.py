"""Run the main commands on the sample data: `hatch run demo` takes seconds, the others minutes.

Prints each command of `microgpt-cli` before it runs, and in the end commands to try next. A second
run replaces the data and the model of the first.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path("demo")
DATA = ("names.txt", "poem.txt", "chat.jsonl", "questions.jsonl")  # may be those of another version
NAMES = (
    f"microgpt-cli data names --output {FOLDER}/names.txt",
    (
        f"microgpt-cli train --input {FOLDER}/names.txt --output {FOLDER}/model"
        " --n-embd 32 --n-layer 2 --batch-size 64 --steps 800 --optimizer muon --weight-decay 0.2"
        " --log-every 200 --force"
    ),
    f"microgpt-cli generate --model-dir {FOLDER}/model --prompt jo --num-samples 5",
)
NEXT_NAMES = f"""
The model is in {FOLDER}/model. Try next:

    hatch run microgpt-cli generate --model-dir {FOLDER}/model --temperature 1.0
    hatch run microgpt-cli info --model-dir {FOLDER}/model
    hatch run microgpt-cli train --help
"""
TEXT = (
    f"microgpt-cli data poem --output {FOLDER}/poem.txt",
    (
        f"microgpt-cli train --input {FOLDER}/poem.txt --split file --output {FOLDER}/text-model"
        " --long window --n-embd 128 --n-head 4 --n-layer 4 --block-size 64 --batch-size 12"
        " --steps 3000 --lr 0.004 --warmup-steps 100 --schedule cosine --clip 1 --weight-decay 0.1"
        " --val-fraction 0.1 --eval-every 500 --log-every 500 --num-samples 0 --force"
    ),
    (
        f"microgpt-cli generate --model-dir {FOLDER}/text-model --prompt 'Book I\n\n\nOf '"
        " --max-tokens 500 --num-samples 1 --temperature 0.8"
    ),
)
NEXT_TEXT = f"""
The model is in {FOLDER}/text-model. Try next:

    hatch run microgpt-cli generate --model-dir {FOLDER}/text-model --max-tokens 1000
"""
CHAT = (
    f"microgpt-cli data chat --output {FOLDER}/chat.jsonl",
    f"microgpt-cli data questions --output {FOLDER}/questions.jsonl",
    (
        f"microgpt-cli train --chat --input {FOLDER}/chat.jsonl --output {FOLDER}/chat-model"
        " --n-embd 80 --n-head 4 --n-layer 4 --block-size 192 --batch-size 24 --steps 3300"
        " --optimizer muon --lr 0.007 --warmup-steps 60 --weight-decay 0.2"
        " --loss-on assistant --log-every 500 --force"
    ),
    f"microgpt-cli evaluate {FOLDER}/chat-model --questions {FOLDER}/questions.jsonl",
    f"microgpt-cli chat --model-dir {FOLDER}/chat-model --temperature 0",
)
LINES = """\
hello
my name is ada
what is 7 plus 12?
reverse karai
what is my name?
"""  # for the chat
NEXT_CHAT = f"""
The model is in {FOLDER}/chat-model. Talk with it:

    hatch run microgpt-cli chat --model-dir {FOLDER}/chat-model
"""


def run(command: str, lines: str | None) -> None:
    """Print a command and run it, with `lines` as its input; exit with its status if it fails."""
    print(f"\n$ {command}", flush=True)
    if lines is not None:
        print("".join(f"> {line}\n" for line in lines.splitlines()), flush=True)
    program, *arguments = shlex.split(command)
    whole = [sys.executable, "-m", program.replace("-", "_"), *arguments]
    status = subprocess.run(whole, input=lines, encoding="utf-8", check=False).returncode
    if status:
        sys.exit(status)


DEMOS = {"names": (NAMES, NEXT_NAMES), "text": (TEXT, NEXT_TEXT), "chat": (CHAT, NEXT_CHAT)}


def main() -> None:
    """Run the commands of one demo."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", choices=DEMOS, nargs="?", default="names")
    commands, remark = DEMOS[parser.parse_args().demo]
    FOLDER.mkdir(exist_ok=True)
    for name in DATA:
        (FOLDER / name).unlink(missing_ok=True)
    for command in commands:
        run(command, LINES if command.startswith("microgpt-cli chat ") else None)
    print(remark)


if __name__ == "__main__":
    main()
