"""`python -m microgpt FILE`: train on a file and print losses and samples, in plain Python.

The run of Karpathy's microgpt.py, digit for digit: seed 42, 1000 steps, 20 samples.
"""

import io
import os
import random
import sys

from microgpt.corpus.documents import read_documents
from microgpt.data import Tokenizer
from microgpt.errors import DataError, MicrogptError
from microgpt.model import GPT, InferenceGPT, ModelConfig
from microgpt.sampling import generate
from microgpt.train import train

SEED, STEPS, NUM_SAMPLES = 42, 1000, 20


def main(path: str) -> None:
    """Train on the lines of a file, then print samples."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for characters that its encoding lacks
        if not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")  # files are read as UTF-8 everywhere
    rng = random.Random(SEED)
    documents = list(read_documents(path))
    if not documents:
        raise DataError("dataset is empty")
    rng.shuffle(documents)
    tokenizer = Tokenizer.from_texts(documents)
    model = GPT.init(ModelConfig(vocab_size=tokenizer.vocab_size), rng)
    print(f"num docs: {len(documents)}", flush=True)
    print(f"vocab size: {tokenizer.vocab_size}", flush=True)
    print(f"num params: {model.config.n_params}", flush=True)
    encoded = [tokenizer.encode_document(document) for document in documents]
    for step, loss in enumerate(train(model, encoded, STEPS), 1):
        print(f"step {step:4d} / {STEPS:4d} | loss {loss:.4f}", flush=True)
    print("\n--- inference (new, hallucinated names) ---", flush=True)
    trained = InferenceGPT.from_gpt(model)
    for i in range(1, NUM_SAMPLES + 1):
        sample = tokenizer.decode(generate(trained, tokenizer.bos, rng))
        print(f"sample {i:2d}: {sample}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and a file
        sys.stderr.write("usage: python -m microgpt FILE\n")
        sys.exit(2)
    try:
        main(sys.argv[1])
    except MicrogptError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the unwritten rest
        if not isinstance(error, BrokenPipeError):  # else the reader of the output has left
            sys.exit(f"error: cannot write to stdout: {error.strerror}")
