"""The main job on the sample names, in a few seconds: `hatch run demo`.

Runs three commands of `microgpt-cli`, shows each before it runs, and says what to try next. May be
run again: it replaces the model of the last time.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path("demo")
COMMANDS = (
    f"microgpt-cli data names --output {FOLDER}/names.txt",
    (
        f"microgpt-cli train --input {FOLDER}/names.txt --output {FOLDER}/model"
        " --steps 5000 --log-every 1000 --force"
    ),
    f"microgpt-cli generate --model-dir {FOLDER}/model --prompt jo --num-samples 5",
)
NEXT = f"""
The model is in {FOLDER}/model. Try next:

    hatch run microgpt-cli generate --model-dir {FOLDER}/model --temperature 1.0
    hatch run microgpt-cli info --model-dir {FOLDER}/model
    hatch run microgpt-cli train --help
"""


def main() -> None:
    """Run the commands; stop at the first that fails, with its status."""
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        print(f"\n$ {command}", flush=True)
        program, *arguments = command.split()
        status = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments], check=False
        ).returncode
        if status:
            sys.exit(status)
    print(NEXT)


if __name__ == "__main__":
    main()
