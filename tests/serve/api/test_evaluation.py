"""The requests of lm-evaluation-harness 0.4.13, and what it reads of the responses.

Its model `local-completions` with the tokenizer of the service, and `max_length=17`: a block of 16
tokens, and one generated.
"""

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import microgpt
import pytest
from serve.service import MakeClient, running
from starlette.testclient import TestClient

HEADERS = {"Authorization": "Bearer "}  # without a key
LINES = ["anna", "hannah", "otto", "maximilianannab"]  # the last one fills the block, with BOS
LONG_LINE = "annabobhannahottocarlaemma"
QUESTIONS = [("hann", ["ah", "o"], 0), ("ott", ["a", "o"], 1)]  # context, choices, the right one
PROBE = "test"  # what is tokenized to find out whether the service can

# Recorded prompts, by the task; 0 to 25 are the letters, 26 is BOS. A request has one prompt, or
# with `batch_size` many.
SCORING = {
    "model": "names",
    "temperature": 0,
    "max_tokens": 1,
    "logprobs": 1,
    "seed": 1234,
    "echo": True,
}
BOS = 26
LIKELIHOOD = [
    [26, 0, 13, 13, 0],
    [26, 7, 0, 13, 13, 0, 7],
    [26, 14, 19, 19, 14],
    [26, 12, 0, 23, 8, 12, 8, 11, 8, 0, 13, 0, 13, 13, 0, 1],
]
ROLLING = [
    [26, 0, 13, 13, 0, 1, 14, 1, 7, 0, 13, 13, 0, 7, 14, 19],
    [13, 0, 7, 14, 19, 19, 14, 2, 0, 17, 11, 0, 4, 12, 12, 0],
]
N_ROLLING_CONTEXT = [1, 5]  # tokens of each window that are not scored
CHOICES = [
    [[7, 0, 13, 13, 0, 7], [7, 0, 13, 13, 14]],
    [[14, 19, 19, 0], [14, 19, 19, 14]],
]
GENERATING = {
    "model": "names",
    "max_tokens": 5,
    "temperature": 0,
    "stop": ["\n\n", "<|bos|>"],
    "seed": 1234,
}
BEGINNINGS = [[0, 13], [7, 0], [14, 19], [12, 0]]


# ---------------------------------------------------------------- the harness


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body, headers=HEADERS)
    assert response.status_code == 200, response.text
    return response.json()


def tokenize(client: TestClient, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    tokens: list[int] = post(client, "/tokenize", body)["tokens"]
    return tokens


def detokenize(client: TestClient, tokens: list[int]) -> str:
    return str(post(client, "/detokenize", {"tokens": tokens})["prompt"])


def scored(
    client: TestClient, prompt: str | list[str] | list[list[int]], n_context: list[int]
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each prompt after its context, and whether it is greedy."""
    answer = post(client, "/v1/completions", {**SCORING, "prompt": prompt})
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert len(choices) == len(n_context)
    results = []
    for choice, n in zip(choices, n_context, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][n:-1]
        top = choice["logprobs"]["top_logprobs"][n:-1]
        is_greedy = all(p == max(row.values()) for p, row in zip(logprobs, top, strict=True))
        results.append((sum(logprobs), is_greedy))
    return results


# ---------------------------------------------------------------- the model


@pytest.fixture(scope="module")
def model(names_dir: Path) -> microgpt.LanguageModel:
    return microgpt.load(names_dir)


def log_probabilities(model: microgpt.LanguageModel, token_ids: list[int]) -> list[list[float]]:
    """Return those of the next token after each, shape (T, V)."""
    rows = model.logits(token_ids).tolist()
    totals = [math.log(math.fsum(math.exp(z) for z in row)) for row in rows]
    return [[z - total for z in row] for row, total in zip(rows, totals, strict=True)]


def likelihood(model: microgpt.LanguageModel, text: str) -> float:
    """Return the log-probability of a document, as `microgpt-cli score`, without its end."""
    ids = [model.tokenizer.bos, *model.tokenizer.encode(text)]
    (mean,) = model.score([text])
    return -mean * len(ids) - log_probabilities(model, ids)[-1][model.tokenizer.bos]


def likelihood_after(model: microgpt.LanguageModel, ids: list[int], n_context: int) -> float:
    """Return the log-probability of the tokens after a context, which begins with BOS."""
    rows = log_probabilities(model, ids[:-1])[n_context - 1 :]
    return sum(row[i] for row, i in zip(rows, ids[n_context:], strict=True))


# ---------------------------------------------------------------- recorded requests


def test_the_tokenizer_of_the_service_is_found(names: TestClient) -> None:
    info = names.get("/tokenizer_info").json()
    assert tokenize(names, info["eos_token"]) == tokenize(names, info["bos_token"]) == [BOS]
    assert tokenize(names, PROBE) == [19, 4, 18, 19]
    assert [[BOS, *tokenize(names, text)] for text in LINES] == LIKELIHOOD
    for (context, endings, _), prompts in zip(QUESTIONS, CHOICES, strict=True):
        assert [tokenize(names, context + ending) for ending in endings] == prompts


def test_the_tokenizer_is_found_where_the_probe_is_unknown(
    make_client: MakeClient, tmp_path: Path
) -> None:
    microgpt.fit(["1", "12"], steps=1).save(tmp_path / "digits")
    assert tokenize(make_client(tmp_path / "digits"), PROBE) == []


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loglikelihood_is_the_score_without_the_end(
    names: TestClient, model: microgpt.LanguageModel, batch_size: int
) -> None:
    results = []
    for first in range(0, len(LINES), batch_size):
        prompts = LIKELIHOOD[first : first + batch_size]
        results += scored(names, prompts, [1] * len(prompts))
    expected = [likelihood(model, text) for text in LINES]
    assert [result for result, _ in results] == pytest.approx(expected, abs=1e-4)
    for ids, (_, is_greedy) in zip(LIKELIHOOD, results, strict=True):
        likeliest = [row.index(max(row)) for row in log_probabilities(model, ids[:-1])]
        assert is_greedy == (likeliest == ids[1:])


def test_prompts_may_be_texts(names: TestClient) -> None:
    """With `tokenized_requests=False`."""
    texts = [detokenize(names, ids) for ids in LIKELIHOOD]
    expected = scored(names, LIKELIHOOD, [1] * 4)
    assert scored(names, texts, [1] * 4) == expected
    assert [scored(names, text, [1])[0] for text in texts] == expected


def test_perplexity_of_a_file(names: TestClient, model: microgpt.LanguageModel) -> None:
    total = sum(result for result, _ in scored(names, LIKELIHOOD, [1] * len(LINES)))
    n_bytes = sum(map(len, LINES))
    expected = math.exp(-sum(likelihood(model, text) for text in LINES) / n_bytes)
    assert math.exp(-total / n_bytes) == pytest.approx(expected, abs=1e-4)


def test_windows_of_a_text_longer_than_the_block(
    names: TestClient, model: microgpt.LanguageModel
) -> None:
    assert [BOS, *tokenize(names, LONG_LINE)][:16] == ROLLING[0]
    results = scored(names, ROLLING, N_ROLLING_CONTEXT)
    expected = [
        likelihood_after(model, ROLLING[0], 1),
        likelihood_after(model, [BOS, *ROLLING[1]], N_ROLLING_CONTEXT[1] + 1),
    ]
    assert [result for result, _ in results] == pytest.approx(expected, abs=1e-4)


def test_multiple_choice(names: TestClient, model: microgpt.LanguageModel) -> None:
    """A context without BOS is a beginning of a document: the service puts BOS before it."""
    for (context, endings, right), prompts in zip(QUESTIONS, CHOICES, strict=True):
        n_context = len(tokenize(names, context))
        results = [scored(names, [ids], [n_context])[0] for ids in prompts]
        expected = [likelihood_after(model, [BOS, *ids], n_context + 1) for ids in prompts]
        assert [result for result, _ in results] == pytest.approx(expected, abs=1e-4)
        assert max(range(len(endings)), key=expected.__getitem__) == right
        assert results[right][1]


def test_generation(names: TestClient, model: microgpt.LanguageModel) -> None:
    answer = post(names, "/v1/completions", {**GENERATING, "prompt": BEGINNINGS})
    texts = [model.tokenizer.decode(ids) for ids in BEGINNINGS]
    whole = [model.generate(1, prompt=text, temperature=0, max_tokens=5)[0] for text in texts]
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert [text + c["text"] for text, c in zip(texts, choices, strict=True)] == whole


def test_generation_after_a_context_that_was_cut_to_nothing(names: TestClient) -> None:
    (choice,) = post(names, "/v1/completions", {**GENERATING, "prompt": [[]]})["choices"]
    assert choice["text"].isalpha()


# ---------------------------------------------------------------- the harness itself


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has nothing to do with this workspace, its versions and its bytecode."""
    ours = ("PYTHON", "UV_CONSTRAINT")
    others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = others | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def harness() -> Iterator[Path]:
    """The program, in an environment of its own; half a gigabyte that is deleted at the end."""
    if not (uv := os.environ.get("HATCH_UV") or shutil.which("uv")):
        pytest.skip("uv is not installed")
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"
        for command in (["venv", folder], ["pip", "install", "--python", python, "lm_eval[api]"]):
            done = run([uv, *command])
            if done.returncode:
                pytest.skip(f"lm_eval cannot be installed: {done.stderr}")
        yield Path(folder, "bin", "lm_eval")


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **task: Any) -> None:
    """Write a task of the harness; its YAML is JSON."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    files = {"data_files": {"test": str(data)}}
    common = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps({**common, "target_delimiter": "", **task}))


def write_tasks(folder: Path) -> None:
    lines = [{"text": text} for text in LINES]
    perplexity = [{"metric": "byte_perplexity"}]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_target": "{{text}}"}
    write_task(folder, "file", lines, **rolling, doc_to_text="", metric_list=perplexity)
    longer = [{"text": LONG_LINE}]
    write_task(folder, "longer", longer, **rolling, doc_to_text="", metric_list=perplexity)
    write_task(
        folder,
        "likelihood",
        lines,
        output_type="loglikelihood",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "perplexity"}],
    )
    write_task(
        folder,
        "choice",
        [dict(zip(("context", "choices", "right"), each, strict=True)) for each in QUESTIONS],
        output_type="multiple_choice",
        doc_to_text="{{context}}",
        doc_to_choice="{{choices}}",
        doc_to_target="right",
        metric_list=[{"metric": "acc"}],
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "batch_size"), [("", 1), (",tokenized_requests=False,num_concurrent=2", 4)]
)
def test_the_harness_itself(
    harness: Path,
    tmp_path: Path,
    names_dir: Path,
    model: microgpt.LanguageModel,
    options: str,
    batch_size: int,
) -> None:
    write_tasks(tmp_path)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    with running(names_dir) as server:
        url = f"{server.url}/v1/completions"
        command = [str(harness), "run", "--model", "local-completions", "--model_args"]
        command += [f"model=names,base_url={url},max_length=17{options}"]
        command += ["--tasks", "likelihood,file,longer,choice", "--include_path", str(tmp_path)]
        command += ["--batch_size", str(batch_size)]
        command += ["--output_path", str(tmp_path), "--log_samples"]
        done = run(command, **offline)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("names/results_*.json")
    results = json.loads(written.read_text())["results"]
    assert results["choice"]["acc,none"] == 1
    expected = [likelihood(model, text) for text in LINES]
    perplexity = math.exp(-sum(expected) / sum(map(len, LINES)))
    assert results["file"]["byte_perplexity,none"] == pytest.approx(perplexity, abs=1e-4)
    windows = [
        likelihood_after(model, ROLLING[0], 1),
        likelihood_after(model, [BOS, *ROLLING[1]], N_ROLLING_CONTEXT[1] + 1),
    ]
    perplexity = math.exp(-sum(windows) / len(LONG_LINE))
    assert results["longer"]["byte_perplexity,none"] == pytest.approx(perplexity, abs=1e-4)
    (samples,) = tmp_path.glob("names/samples_likelihood_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    found = {row["doc"]["text"]: float(row["filtered_resps"][0][0]) for row in rows}
    assert found == pytest.approx(dict(zip(LINES, expected, strict=True)), abs=1e-4)
