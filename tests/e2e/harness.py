"""What harness.c computes, by NumPy: `python harness.py 32|64`."""

import random
import sys
from collections.abc import Iterator

import numpy as np
from microgpt import Batch, ModelConfig, SamplingConfig
from microgpt.engines import select
from microgpt.engines.muon import Muon
from microgpt.parameters import Parameters

STEPS, N_ADAM, DOCUMENTS, LENGTH = 100, 60, 3, 7
VOCAB, TEXTS, TOKENS = 27, 5, 12
MODELS = [
    ModelConfig(vocab_size=VOCAB, n_embd=n_embd, n_head=n_head, n_layer=n_layer, block_size=block)
    for n_embd, n_head, n_layer, block in ((20, 4, 2, 24), (16, 8, 1, 16), (16, 1, 1, 24))
]


def numbers() -> Iterator[float]:
    state = 42
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield (state >> 40) / 2**24


def compute(config: ModelConfig, number: Iterator[float]) -> None:
    weights = [0.4 * next(number) - 0.2 for _ in range(config.n_params)]
    parameters = Parameters(config, np.array(weights, f"float{sys.argv[1]}"))
    engine = select("vectorized", parameters)
    n_rows = DOCUMENTS * LENGTH
    inputs = np.array([int(VOCAB * next(number)) for _ in range(STEPS * n_rows)], np.int32)
    targets = (inputs * 5 + np.arange(len(inputs), dtype=np.int32) % LENGTH) % VOCAB
    lengths = np.full(DOCUMENTS, LENGTH)
    batches = [
        Batch(inputs[start : start + n_rows], targets[start : start + n_rows], lengths)
        for start in range(0, len(inputs), n_rows)
    ]
    for some, muon in ((batches[:N_ADAM], None), (batches[N_ADAM:], Muon(2.0))):
        for result in engine.train_steps(some, [0.01] * len(some), 1.0, 0.01, muon):
            print("loss", result.loss)
    prompt = [7 * i % VOCAB for i in range(config.block_size - TOKENS)]
    for logit in engine.logits(prompt)[-1].tolist():
        print("logit", logit)
    of_seeds = [random.Random(seed) for seed in range(TEXTS)]
    uniforms = np.array([[rng.random() for _ in range(TOKENS)] for rng in of_seeds])
    for draw in uniforms.flat:
        print("draw", draw)
    how = SamplingConfig(temperature=0.9, top_k=20, top_p=0.95)
    for text in engine.sample(prompt, uniforms, how, stop=-1):
        for token in text:
            print("token", token)


numbers_of_all = numbers()
for each in MODELS:
    compute(each, numbers_of_all)
