"""Train with the flags of a recipe of microgpt-cli's README.

    hatch run recipe names-10s --input names.txt --output out

Arguments after the recipe's name are passed to `microgpt-cli train` and override its flags.
"""

import subprocess
import sys
from typing import Any, TypeVar

import microgpt
import msgspec

Config = TypeVar("Config", bound=microgpt.TrainConfig)

PASSAGES = (
    "--split file --long window --steps 2300 --batch-size 24 --optimizer muon --lr 0.005 "
    "--warmup-steps 100 --n-embd 128 --n-layer 4 --block-size 128 --weight-decay 0.1 --clip 1"
)
SHORT = "--split file --long window --n-layer 4 --block-size 64 --weight-decay 0.1 --clip 1"
RECIPES = {
    "names-tiny": "--steps 1000",
    "names-1s": "--steps 800 --batch-size 128 --optimizer muon --lr 0.01 --muon-lr 0.02 "
    "--warmup-steps 50 --n-embd 32 --n-layer 2 --weight-decay 0.01",
    "names-10s": "--steps 800 --batch-size 128 --optimizer muon --lr 0.007 --muon-lr 0.015 "
    "--muon-iterations 3 --warmup-steps 20 --n-embd 64 --n-layer 3",
    "names-60s": "--steps 2500 --batch-size 128 --optimizer muon --lr 0.007 --muon-lr 0.015 "
    "--warmup-steps 100 --n-embd 64 --n-layer 3 --weight-decay 0.15",
    "text": "--steps 3000 --batch-size 32 --lr 0.003 --warmup-steps 150 --n-embd 64 --n-layer 2 "
    "--block-size 64 --long split --weight-decay 0.1 --clip 1",
    "shakespeare-60s": f"{SHORT} --steps 1700 --batch-size 24 --optimizer muon --lr 0.006 "
    "--muon-lr 0.03 --warmup-steps 50 --n-embd 96",
    "shakespeare": PASSAGES,
    "python": PASSAGES,
    "chat": "--chat --steps 2500 --batch-size 4 --optimizer muon --lr 0.005 --warmup-steps 50 "
    "--n-embd 128 --n-head 8 --n-layer 4 --block-size 256",
}
ADAM = {  # the best ones known without Muon, for the same time
    "names-1s": "--steps 1000 --batch-size 128 --lr 0.01 --warmup-steps 50 --n-embd 32 "
    "--n-layer 2 --weight-decay 0.01",
    "names-10s": "--steps 900 --batch-size 128 --lr 0.01 --warmup-steps 60 --n-embd 64 "
    "--n-layer 3 --weight-decay 0.01",
    "names-60s": "--steps 8000 --batch-size 64 --lr 0.003 --warmup-steps 400 --n-embd 64 "
    "--n-layer 3 --weight-decay 0.2",
    "shakespeare-60s": f"{SHORT} --steps 2000 --batch-size 12 --lr 0.004 --schedule cosine "
    "--warmup-steps 100 --n-embd 128",
}
FIELDS = {"lr": "learning_rate", "muon_lr": "muon_learning_rate"}  # of flags with other names
VALIDATION = "--val-fraction 0.1 --eval-every 1000000"  # after the last step


def config_of(flags: str, kind: type[Config], **options: Any) -> Config:
    """Return the options of a run that flags with values set.

    Args:
        flags: the last one of a name counts; `--split`, of the documents, is left out.
        kind: class of the options.
        **options: others.
    """
    words = [word.removeprefix("--").replace("-", "_") for word in flags.split()]
    given = dict(zip(words[::2], words[1::2], strict=True))
    given.pop("split", None)
    named = {FIELDS.get(name, name): value for name, value in given.items()}
    return msgspec.convert(named | options, kind, strict=False)


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
