"""A trace holds what the plain model and PyTorch compute, for any model and any kind of text."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import microgpt
import numpy as np
import pytest
from engine_cases import Case, sizes
from markup import shown_in
from microgpt import (
    ENGINES,
    ChatError,
    ConfigError,
    ContextLengthError,
    InferenceGPT,
    LanguageModel,
    MicrogptError,
    ModelConfig,
    ShapeError,
    TokenError,
    Tokenizer,
    Trace,
)
from microgpt.autograd import relu
from microgpt.model import add, attention, cross_entropy, dot, linear, rmsnorm, softmax
from microgpt.parameters import FloatArray, Parameters
from small_models import learned, untrained
from texts import TALK

TOLERANCE = 1e-12  # of each array, relative to its norm
MARKUP = "<b title='\"'>&amp;\x07"
N_SHAPES, N_ALWAYS = 50, 3
shapes = pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=pytest.mark.long if seed >= N_ALWAYS else ())
        for seed in range(N_SHAPES)
    ],
)
Arrays = dict[str, FloatArray]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return learned()


@pytest.fixture(scope="module")
def chatty() -> LanguageModel:
    return microgpt.fit_chat([TALK], steps=5, block_size=64, n_embd=8, n_layer=1)


def random_case(seed: int, widest: int, most_tokens: int) -> tuple[Parameters, list[int]]:
    """Return weights of some shape, and tokens: each axis of another size, mostly."""
    rng = np.random.default_rng(seed)
    n_head, n_layer = (int(n) for n in rng.integers(1, 5, 2))
    n_tokens = int(rng.integers(1, most_tokens))
    config = sizes(
        vocab_size=int(rng.integers(2, 4 * widest)),
        n_embd=n_head * int(rng.integers(1, widest)),
        n_head=n_head,
        n_layer=n_layer,
        block_size=n_tokens + int(rng.integers(0, 3)),
    )
    weights = Case(config, [n_tokens], seed=seed).parameters()
    return weights, rng.integers(0, config.vocab_size, n_tokens).tolist()


def traced(weights: Parameters, token_ids: Sequence[int]) -> Trace:
    chars = tuple(map(chr, range(0x4E00, 0x4E00 + weights.config.vocab_size - 1)))
    return LanguageModel(Tokenizer(chars), weights).trace(token_ids)


def assert_same(trace: Trace, expected: Arrays) -> None:
    for name, array in expected.items():
        got = getattr(trace, name)
        assert got.dtype == np.float64
        assert got.shape == array.shape, name
        error = np.linalg.norm(np.nan_to_num(got - array))
        norm = np.linalg.norm(np.nan_to_num(array))
        assert error <= TOLERANCE * max(1.0, float(norm)), name


# ---------------------------------------------------------------- the same figures elsewhere


def by_plain_model(weights: Parameters, token_ids: Sequence[int]) -> Arrays:
    """Return what `forward` of model.py computes: its lines, with every result kept."""
    config = weights.config
    w = {name: view.tolist() for name, view in weights.items()}
    n_tokens, layers = len(token_ids), range(config.n_layer)
    probs = np.zeros((config.n_layer, config.n_head, n_tokens, n_tokens))
    kept: dict[str, list[list[Any]]] = {
        name: [[] for _ in range(n)]
        for name, n in (
            ("residual", config.n_layer + 1),
            ("from_attn", config.n_layer),
            ("from_mlp", config.n_layer),
            ("hidden", config.n_layer),
            ("lens", config.n_layer + 1),
        )
    }
    keys: list[list[list[float]]] = [[] for _ in layers]
    values: list[list[list[float]]] = [[] for _ in layers]
    for position, token_id in enumerate(token_ids):
        x = rmsnorm(add(w["wte"][token_id], w["wpe"][position]))
        kept["residual"][0].append(x)
        kept["lens"][0].append(linear(x, w["lm_head"]))
        for i in layers:
            h = rmsnorm(x)
            q = linear(h, w[f"layer{i}.attn_wq"])
            keys[i].append(linear(h, w[f"layer{i}.attn_wk"]))
            values[i].append(linear(h, w[f"layer{i}.attn_wv"]))
            for head in range(config.n_head):
                part = slice(head * config.head_dim, (head + 1) * config.head_dim)
                scores = [dot(q[part], k[part]) / config.head_dim**0.5 for k in keys[i]]
                probs[i, head, position, : position + 1] = softmax(scores)
            from_attn = linear(
                attention(q, keys[i], values[i], config.n_head), w[f"layer{i}.attn_wo"]
            )
            x = add(x, from_attn)
            hidden = [relu(a) for a in linear(rmsnorm(x), w[f"layer{i}.mlp_fc1"])]
            from_mlp = linear(hidden, w[f"layer{i}.mlp_fc2"])
            x = add(x, from_mlp)
            for name, value in (
                ("from_attn", from_attn),
                ("hidden", hidden),
                ("from_mlp", from_mlp),
            ):
                kept[name][i].append(value)
            kept["residual"][i + 1].append(x)
            kept["lens"][i + 1].append(linear(x, w["lm_head"]))
    arrays = {name: np.array(value) for name, value in kept.items()} | {"attention": probs}
    plain = InferenceGPT(config, w).logits(token_ids)
    assert arrays["lens"][-1].tolist() == plain  # it is the model that is kept
    costs = [cross_entropy(z, target) for z, target in zip(plain, token_ids[1:], strict=False)]
    return arrays | {"logits": np.array(plain), "surprise": np.array([np.nan, *costs])}


@shapes
def test_every_figure_is_that_of_the_plain_model(seed: int) -> None:
    weights, token_ids = random_case(seed, widest=6, most_tokens=10)
    assert_same(traced(weights, token_ids), by_plain_model(weights, token_ids))


def by_pytorch(torch: Any, weights: Parameters, token_ids: Sequence[int]) -> Arrays:
    torch.set_num_threads(1)
    functional, config = torch.nn.functional, weights.config
    state = {name: torch.tensor(view) for name, view in weights.items()}
    n_tokens, n_head = len(token_ids), config.n_head

    def normed(x: Any) -> Any:
        return functional.rms_norm(x, (config.n_embd,), eps=1e-5)

    x = normed(state["wte"][torch.tensor(token_ids)] + state["wpe"][:n_tokens])  # (T, C)
    kept: dict[str, list[Any]] = {"residual": [x], "lens": [x @ state["lm_head"].T]}
    kept |= {name: [] for name in ("attention", "from_attn", "hidden", "from_mlp")}
    ahead = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    for i in range(config.n_layer):
        q, k, v = (
            (normed(x) @ state[f"layer{i}.attn_w{kind}"].T).view(n_tokens, n_head, -1)
            for kind in "qkv"
        )  # (T, H, D)
        scores = torch.einsum("qhd,khd->hqk", q, k) / config.head_dim**0.5
        probs = scores.masked_fill(ahead, -torch.inf).softmax(-1)  # (H, T, T)
        mixed = torch.einsum("hqk,khd->qhd", probs, v).reshape(n_tokens, -1)
        kept["attention"].append(probs)
        kept["from_attn"].append(mixed @ state[f"layer{i}.attn_wo"].T)
        x = x + kept["from_attn"][-1]
        kept["hidden"].append((normed(x) @ state[f"layer{i}.mlp_fc1"].T).relu())
        kept["from_mlp"].append(kept["hidden"][-1] @ state[f"layer{i}.mlp_fc2"].T)
        x = x + kept["from_mlp"][-1]
        kept["residual"].append(x)
        kept["lens"].append(x @ state["lm_head"].T)
    costs = functional.cross_entropy(
        kept["lens"][-1][:-1], torch.tensor(token_ids)[1:], reduction="none"
    )
    arrays: Arrays = {name: torch.stack(each).numpy() for name, each in kept.items()}
    return arrays | {"surprise": np.array([np.nan, *costs.tolist()])}


@shapes
def test_every_figure_is_that_of_pytorch(seed: int) -> None:
    torch = pytest.importorskip("torch")
    weights, token_ids = random_case(1000 + seed, widest=40, most_tokens=200)
    assert_same(traced(weights, token_ids), by_pytorch(torch, weights, token_ids))


@shapes
def test_attention_sums_to_one_and_looks_at_nothing_ahead(seed: int) -> None:
    weights, token_ids = random_case(2000 + seed, widest=30, most_tokens=200)
    trace = traced(weights, token_ids)
    np.testing.assert_allclose(trace.attention.sum(axis=-1), 1.0, rtol=TOLERANCE)
    assert not np.triu(trace.attention, k=1).any()
    other = traced(weights, [*token_ids[:-1], (token_ids[-1] + 1) % weights.config.vocab_size])
    for name in ("residual", "from_attn", "from_mlp", "hidden", "lens"):
        got, expected = (getattr(each, name)[:, :-1] for each in (other, trace))
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "auto"])
def test_a_trace_is_the_same_on_every_engine_and_in_float64(engine: str, dtype: str) -> None:
    model = untrained(9, dtype=dtype, engine=engine)
    trace = model.trace("abcd")
    same = Parameters(model.config, model.parameters.flat.astype(np.float64))
    assert_same(trace, by_plain_model(same, trace.token_ids))
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(trace.logits, model.logits(trace.token_ids), rtol=tolerance)


# ---------------------------------------------------------------- what is read


def test_loss_and_surprise_are_those_of_a_score(model: LanguageModel) -> None:
    trace = model.trace(model.tokenizer.encode_document("hanna"))
    score = model.measure(["hanna"])
    assert trace.loss == pytest.approx(score.nats_per_token, rel=1e-12)
    assert np.isnan(trace.surprise[0])
    assert len(trace.surprise) == score.n_tokens + 1


def test_one_token_has_no_loss(model: LanguageModel) -> None:
    trace = model.trace("")
    assert trace.tokens == ["bos"]
    assert math.isnan(trace.loss)
    assert repr(trace) == "<Trace: 1 token, 2 blocks of 3 heads>"
    figures = json.loads(trace.to_json())
    assert (figures["loss"], figures["surprise"]) == (None, [None])


def test_text_longer_than_the_block_is_refused_and_its_end_can_be_traced(
    model: LanguageModel,
) -> None:
    with pytest.raises(ContextLengthError, match="got 9 tokens, expected at most block_size=8"):
        model.trace("hannahbo")
    trace = model.trace(model.prompt("hannahbo", too_long="truncate"))
    assert "".join(trace.tokens) == "boshbo"
    assert trace.prompt.tokens_dropped == 5


def test_trace_of_too_many_figures_is_refused(model: LanguageModel) -> None:
    trace = model.trace("hanna")
    arrays = (trace.attention, trace.lens, trace.residual, trace.hidden, trace.from_attn)
    with pytest.raises(ContextLengthError, match=r"a trace of 6 tokens .* has 2,202 figures") as e:
        model.trace("hanna", max_figures=2201)
    assert sum(array.size for array in arrays) + model.config.n_params < 2202
    assert "expected at most 2,201; shorten the text" in str(e.value)
    assert model.trace("hanna", max_figures=2202).token_ids == trace.token_ids


def test_model_of_windows_reads_no_bos() -> None:
    model = microgpt.fit(["anna and bob " * 9], steps=1, block_size=12, long="window")
    assert model.windows
    assert model.trace("bob").tokens == ["b", "o", "b"]
    assert model.trace("").tokens == ["bos"]


def test_subwords_are_traced() -> None:
    model = microgpt.fit(["banana", "bandana", "bananas"], steps=1, tokenizer="bpe", vocab_size=262)
    trace = model.trace("bananas☺")
    assert trace.tokens == ["bos", "banana", "s", "\\xe2", "\\x98", "\\xba"]
    token = json.loads(trace.to_json(1))["tokens"][3]
    assert token == {"id": trace.token_ids[3], "text": "\\xe2"}


def test_conversation_is_read_as_for_its_reply(chatty: LanguageModel) -> None:
    asked = chatty.trace(TALK[:1])
    assert asked.token_ids == chatty.prompt(TALK[:1]).token_ids
    answered = chatty.trace(TALK[:2])
    answer = chatty.tokenizer.encode_turn("assistant", TALK[1]["content"])
    assert answered.token_ids == [*asked.token_ids[:-1], *answer]
    assert answered.tokens[-1] == "end_turn"


def test_unknown_characters_are_refused_or_left_out_and_counted(
    model: LanguageModel, chatty: LanguageModel
) -> None:
    with pytest.raises(TokenError, match="does not know: 'x'"):
        model.trace("box")
    trace = model.trace("box", unknown="skip")
    assert (trace.tokens, trace.prompt.n_unknown) == (["bos", "b", "o"], 1)
    strange = [
        {"role": "user", "content": f"{TALK[0]['content']}☺"},
        {"role": "assistant", "content": f"☺{TALK[1]['content']}☻☺"},
    ]
    with pytest.raises(TokenError, match="does not know: '☺'"):
        chatty.trace(strange)
    trace = chatty.trace(strange, unknown="skip")
    assert trace.token_ids == chatty.trace(TALK[:2]).token_ids
    assert trace.prompt.n_unknown == 4
    assert trace.prompt.unknown == "☺☻"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ([], ShapeError, "got no tokens, expected at least one"),
        ([0, 7], TokenError, "token id 7, expected 0 to 6"),
        ([0.5], ShapeError, "token ids are .* expected a list of integers"),
        (None, ShapeError, "token ids are .* expected a list of integers"),
        ([{"role": "user", "content": "anna"}], ChatError, "not trained with chat tokens"),
        ([{"role": "user"}], ChatError, "a message is"),
        ([{"role": "user", "content": "anna"}, 7], ChatError, "a message is 7"),
    ],
)
def test_what_cannot_be_read_is_refused(
    model: LanguageModel, text: Any, error: type[MicrogptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.trace(text)


def test_answer_that_nobody_asked_for_is_refused(chatty: LanguageModel) -> None:
    with pytest.raises(ChatError, match="messages must not be empty"):
        chatty.trace([{"role": "assistant", "content": "a"}])


@pytest.mark.parametrize("temperature", [0.3, 1, 2.5])
def test_probabilities_follow_the_temperature(model: LanguageModel, temperature: float) -> None:
    trace = model.trace("hanna")
    expected = [softmax([z / temperature for z in row]) for row in trace.logits.tolist()]
    np.testing.assert_allclose(trace.probs(temperature), expected, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_smallest_temperatures_choose_the_likeliest(
    model: LanguageModel, temperature: float
) -> None:
    trace = model.trace("hanna")
    assert (
        trace.probs(temperature).tolist()
        == (trace.probs() == trace.probs().max(1)[:, None]).tolist()
    )


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan, "warm", True])
def test_temperature_that_is_none_is_refused(model: LanguageModel, temperature: Any) -> None:
    with pytest.raises(ConfigError, match=r"temperature is .*, expected a number above 0"):
        model.trace("a").probs(temperature)


# ---------------------------------------------------------------- shown


def test_json_has_what_there_is_to_show(model: LanguageModel) -> None:
    trace = model.trace("hanna")
    figures = json.loads(trace.to_json(top=2))
    assert [token["text"] for token in figures["tokens"]] == trace.tokens
    assert figures["tokens"][:2] == [
        {"id": 6, "text": "bos", "special": True},
        {"id": 2, "text": "h"},
    ]
    assert figures["loss"] == round(trace.loss, 4)
    assert figures["surprise"][1:] == np.round(trace.surprise[1:], 4).tolist()
    probs = np.exp(trace.logits) / np.exp(trace.logits).sum(axis=1, keepdims=True)
    for row, nearest in zip(probs, figures["next"], strict=True):
        best = np.argsort(-row)[:2]
        assert [token["id"] for token in nearest] == best.tolist()
        assert [token["probability"] for token in nearest] == np.round(row[best], 4).tolist()
    assert np.shape(figures["lens"]) == (3, 6)
    assert figures["lens"][-1] == [nearest[0] for nearest in figures["next"]]
    assert [token["id"] for token in figures["lens"][1]] == trace.lens[1].argmax(axis=1).tolist()
    for i, j, t in np.ndindex(2, 3, 6):
        assert (
            figures["attention"][i][j][t] == np.round(trace.attention[i, j, t, : t + 1], 4).tolist()
        )
    for name in ("residual", "from_attn", "from_mlp"):
        expected = np.sqrt((getattr(trace, name) ** 2).mean(axis=-1))
        np.testing.assert_allclose(figures[name], expected, atol=5e-5)
    np.testing.assert_allclose(figures["active"], (trace.hidden > 0).mean(axis=-1), atol=5e-5)
    assert len(json.loads(trace.to_json(99))["next"][0]) == 7
    rest = json.loads(trace.to_json(2, attention=False))
    assert rest == {name: value for name, value in figures.items() if name != "attention"}
    with pytest.raises(ConfigError, match="top is 0, expected an integer of at least 1"):
        trace.to_json(0)


def test_weights_that_are_too_large_show_as_null_and_not_as_warnings() -> None:
    model = untrained(9)
    for name in ("layer0.mlp_fc1", "lm_head"):
        model.parameters[name][:] *= np.finfo(np.float64).max / 4
    trace = model.trace("abc")
    figures = json.loads(trace.to_json(), parse_constant=pytest.fail)
    assert figures["surprise"] == [None] * 4
    assert repr(trace).endswith("loss nan>")
    assert shown_in(trace._repr_html_())


def test_notebook_shows_surprise_and_heads_without_running_anything() -> None:
    model = microgpt.fit([MARKUP], steps=30, block_size=32, n_layer=2, n_head=2)
    markup = model.trace(MARKUP)._repr_html_()
    visible = MARKUP.replace(" ", "␣").replace("\x07", r"\x07")
    heads = [f"block {i}, head {j}" for i in (1, 2) for j in (1, 2)]
    texts = shown_in(markup)
    assert texts[0] == "⟨bos⟩"
    assert "".join(texts[1:]) == visible + "".join(heads)


def test_notebook_shades_what_a_head_looks_at(model: LanguageModel) -> None:
    trace = model.trace("an")
    trace.attention[:] = 0.0
    trace.attention[0, 0] = np.array([[1, 0, 0], [0.75, 0.25, 0], [0.01, 0.49, 0.5]])
    markup = trace._repr_html_()
    assert '<path d="M0 0.5h1" opacity="1"/>' in markup
    assert '<path d="M0 1.5h1" opacity="0.75"/>' in markup
    assert '<path d="M1 2.5h1M2 2.5h1" opacity="0.5"/>' in markup
    assert '<path d="M1 1.5h1" opacity="0.25"/>' in markup
    assert markup.count("h1") == 5


def test_notebook_stays_small_where_text_and_model_are_large() -> None:
    config = ModelConfig(vocab_size=3, n_embd=32, n_head=8, n_layer=4, block_size=600)
    weights = np.random.default_rng(42).normal(0, 1, config.n_params)
    model = LanguageModel(Tokenizer(tuple("ab")), Parameters(config, weights))
    trace = model.trace([0, 1, 2] * 200)
    markup = trace._repr_html_()
    assert len(markup) < 500_000
    assert len([text for text in shown_in(markup) if text.startswith("block")]) == 32
    trace.attention[:] = 0.0
    trace.attention[0, 0, 599, 300] = 1.0  # seen, though its cell stands for many
    assert re.search(r'<path d="M\d+ \d+\.5h1" opacity="1"/>', trace._repr_html_())
