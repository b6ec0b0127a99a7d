"""Train with the flags of a recipe of microgpt-cli's README.

    hatch run recipe names-10s --input names.txt --output out

Arguments after the recipe's name are passed to `microgpt-cli train` and override its flags.
"""

import subprocess
import sys

PASSAGES = (
    "--split file --long window --steps 2600 --batch-size 12 --lr 0.005 --warmup-steps 100 "
    "--schedule cosine --n-embd 128 --n-layer 4 --block-size 128 --weight-decay 0.1 --clip 1"
)
RECIPES = {
    "names-tiny": "--steps 1000",
    "names-1s": "--steps 5000 --batch-size 16 --lr 0.007 --warmup-steps 250 --n-embd 32",
    "names-10s": "--steps 6500 --batch-size 32 --lr 0.004 --warmup-steps 400 --n-embd 48 "
    "--n-layer 2 --weight-decay 0.1",
    "names-60s": "--steps 8000 --batch-size 64 --lr 0.003 --warmup-steps 400 --n-embd 64 "
    "--n-layer 3 --weight-decay 0.2",
    "text": "--steps 3000 --batch-size 32 --lr 0.003 --warmup-steps 150 --n-embd 64 --n-layer 2 "
    "--block-size 64 --long split --weight-decay 0.1 --clip 1",
    "shakespeare": PASSAGES,
    "python": PASSAGES,
    "chat": "--chat --steps 10000 --n-embd 128 --n-head 8 --n-layer 4 --block-size 256",
}
VALIDATION = "--val-fraction 0.1 --eval-every 1000000"  # after the last step


def main() -> int:
    """Run one recipe."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in RECIPES:
        print(f"usage: recipes.py {{{','.join(RECIPES)}}} --input FILE [options of train]")
        return 2
    command = ["microgpt-cli", "train", *RECIPES[name].split(), *VALIDATION.split(), *arguments]
    print("$", *command, flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
