import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import microgpt
import numpy as np
import pytest
from faults import FAULTS, needs_strace, strike_each_call
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from microgpt import CheckpointError, ConfigError, LanguageModel, ModelConfig, Tokenizer
from microgpt.parameters import Parameters
from safetensors.numpy import save as save_tensors

CONFIG = ModelConfig(vocab_size=4, n_embd=4, n_head=2, n_layer=1, block_size=3)
CHARS = ("a", "é", "😀")


def model_of(flat: Any, *, is_chat: bool = False) -> LanguageModel:
    tokenizer = Tokenizer(CHARS[: 3 - 3 * is_chat], is_chat)
    return LanguageModel(tokenizer, Parameters(CONFIG, np.asarray(flat)), engine="vectorized")


def numbered(start: float, dtype: str = "float32") -> LanguageModel:
    return model_of(np.linspace(start, start + 1, CONFIG.n_params, dtype=dtype))


def flat_of(directory: Path) -> list[float]:
    flat: list[float] = microgpt.load(directory, engine="vectorized").parameters.flat.tolist()
    return flat


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    numbered(1.0).save(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- what was saved is loaded


@settings(deadline=None, max_examples=60)
@given(dtype=st.sampled_from(["float32", "float64"]), data=st.data())
@pytest.mark.parametrize("weights_format", ["json", "safetensors"])
def test_every_bit_survives(
    weights_format: Any, dtype: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    numbers = st.floats(
        allow_nan=False, allow_infinity=False, width=32 if dtype == "float32" else 64
    )
    flat = data.draw(hnp.arrays(dtype, CONFIG.n_params, elements=numbers))
    directory = tmp_path_factory.mktemp("model")
    model_of(flat).save(directory, format=weights_format)
    loaded = microgpt.load(directory, engine="vectorized")
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded.parameters.flat, flat)
    assert loaded.tokenizer == Tokenizer(CHARS)


def test_chat_tokens_survive(tmp_path: Path) -> None:
    model = model_of(np.zeros(CONFIG.n_params), is_chat=True)
    model.save(tmp_path)
    assert microgpt.load(tmp_path).tokenizer == model.tokenizer
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["special_tokens"] == ["user", "assistant", "end_turn"]


def test_float32_weights_are_printed_in_their_shortest_form(tmp_path: Path) -> None:
    model_of(np.full(CONFIG.n_params, 0.1, np.float32)).save(tmp_path)
    weights = json.loads((tmp_path / "weights.json").read_text())
    assert weights["wte"][0] == [0.1] * 4


@pytest.mark.parametrize("number", [0.0, 3.0, -0.08, 123.456, 1e-5, 2e-20, 1e-45])
def test_shortest_form_is_found_at_every_size(tmp_path: Path, number: float) -> None:
    flat = np.full(CONFIG.n_params, number, np.float32)
    flat[1] = 0.25  # needs other digits than its neighbours
    model_of(flat).save(tmp_path)
    weights = json.loads((tmp_path / "weights.json").read_text())
    assert weights["wte"][0] == [number, 0.25, number, number]


def test_metadata_is_readable_and_in_the_order_of_the_rust_system(saved: Path) -> None:
    text = (saved / "meta.json").read_text(encoding="utf-8")
    assert '  "vocab_size": 4,\n  "n_embd": 4,\n  "n_head": 2,\n  "n_layer": 1' in text
    assert "é" in text
    assert list(json.loads(text)) == [
        *("vocab_size", "n_embd", "n_head", "n_layer", "block_size", "chars"),
        *("dtype", "weights_file", "weights_sha256"),
    ]


def test_windows_are_recorded_after_all_keys_of_before(saved: Path) -> None:
    model = microgpt.fit(["abc"], steps=1, long="window", block_size=2)
    assert model.windows
    model.save(saved)
    meta = json.loads((saved / "meta.json").read_text())
    assert list(meta.items())[-2:] == [("training", meta["training"]), ("windows", True)]
    assert microgpt.load(saved).windows
    del meta["windows"]
    (saved / "meta.json").write_text(json.dumps(meta))
    assert not microgpt.load(saved).windows


def test_half_precision_keeps_three_digits_in_half_the_bytes(tmp_path: Path) -> None:
    model = numbered(-0.5)
    model.save(tmp_path / "whole", format="safetensors")
    model.save(tmp_path / "half", format="safetensors", half=True)
    whole, half = (tmp_path / name / "weights.safetensors" for name in ("whole", "half"))
    assert whole.stat().st_size - half.stat().st_size == pytest.approx(
        2 * CONFIG.n_params,
        abs=100,  # of the header
    )
    loaded = microgpt.load(tmp_path / "half")
    assert loaded.dtype == "float32"
    rounded = model.parameters.flat.astype(np.float16)
    np.testing.assert_array_equal(loaded.parameters.flat, rounded)


def test_another_format_leaves_one_file_of_weights(saved: Path) -> None:
    numbered(2.0).save(saved, format="safetensors")
    assert sorted(path.name for path in saved.iterdir()) == ["meta.json", "weights.safetensors"]
    assert flat_of(saved)[0] == 2.0
    numbered(3.0).save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["meta.json", "weights.json"]
    assert flat_of(saved)[0] == 3.0


# ---------------------------------------------------------------- what cannot be saved


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_saved(saved: Path, number: float) -> None:
    model = numbered(2.0)
    model.parameters["lm_head"][1, 1] = number
    with pytest.raises(
        CheckpointError, match="lm_head holds numbers that are not finite"
    ) as caught:
        model.save(saved)
    assert caught.value.hint == "train with a smaller learning rate"
    assert flat_of(saved)[0] == 1.0


def test_numbers_beyond_half_precision_are_not_halved(saved: Path) -> None:
    model = numbered(2.0)
    model.parameters["wpe"][1, 1] = 1e5
    message = "wpe holds numbers beyond the range of float16"
    with pytest.raises(CheckpointError, match=message) as caught:
        model.save(saved, format="safetensors", half=True)
    assert caught.value.hint == "save it without half"
    assert flat_of(saved)[0] == 1.0


@pytest.mark.parametrize("options", [{"half": True}, {"format": "pickle"}, {"format": []}])
def test_format_that_there_is_not_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected json, safetensors, or safetensors and half"):
        numbered(1.0).save(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_directory_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/model: Not a directory"):
        numbered(1.0).save(tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "kept"


def test_directories_on_the_way_are_made(tmp_path: Path) -> None:
    numbered(1.0).save(tmp_path / "new" / "below")
    assert flat_of(tmp_path / "new" / "below")[0] == 1.0


@pytest.mark.parametrize("hint", [None, "the model that was there before is intact"])
def test_save_that_fails_says_what_became_of_the_model_before(
    tmp_path: Path, hint: str | None
) -> None:
    if hint:
        numbered(1.0).save(tmp_path)
    (tmp_path / "weights.json.staged").mkdir()
    with pytest.raises(CheckpointError, match=r"^cannot write .*: Is a directory$") as caught:
        numbered(2.0).save(tmp_path)
    assert caught.value.hint == hint


@pytest.mark.parametrize("record", ["[1", "[1, 2]", "{}", '"meta.json"'])
def test_record_that_is_not_ours_stops_a_save(saved: Path, record: str) -> None:
    (saved / "commit.json").write_text(record)
    with pytest.raises(CheckpointError, match=r"^invalid .*commit\.json: ") as caught:
        numbered(2.0).save(saved)
    assert caught.value.hint == "it is not one of ours: move it away"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.json/", "{place} is a directory"),
        ("weights.safetensors.staged/", "{place} is a directory"),
        ("checkpoints", "{place} is not a directory"),
        ("commit.json", "invalid {place}: "),
    ],
)
def test_what_stands_in_the_way_of_a_save_is_told_before(
    saved: Path, name: str, message: str
) -> None:
    microgpt.check_writable(saved)
    microgpt.check_writable(saved / "new" / "below")
    place = saved / name.rstrip("/")
    if name.endswith("/"):
        place.unlink(missing_ok=True)
        place.mkdir()
    else:
        place.write_text("[1")
    with pytest.raises(CheckpointError) as caught:
        microgpt.check_writable(saved)
    assert message.format(place=place) in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "cause"),
    [(os.ST_RDONLY, "the file system of {} is read-only"), (0, "no permission to write {}")],
)
def test_place_that_cannot_be_written_is_told_before_with_its_cause(
    saved: Path, monkeypatch: pytest.MonkeyPatch, flag: int, cause: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flag))
    for place in (saved, saved / "new" / "below"):
        with pytest.raises(CheckpointError) as caught:
            microgpt.check_writable(place)
        assert str(caught.value) == f"cannot write {place}: {cause.format(saved)}"


def test_read_only_file_system_is_not_a_lack_of_permission(saved: Path) -> None:
    bind = f"mount --bind {saved} {saved} && mount -o remount,bind,ro {saved}"
    before = ["unshare", "-rm", "sh", "-c", f'{bind} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    command = [sys.executable, "-c", f"import microgpt; microgpt.check_writable({str(saved)!r})"]
    done = subprocess.run([*before, *command], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(f"cannot write {saved}: the file system of {saved} is read-only\n")


def test_place_below_a_file_is_told_before(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"meta.json is not a directory"):
        microgpt.check_writable(saved / "meta.json" / "below")


def test_last_word_before_a_model_is_replaced_may_keep_it(saved: Path) -> None:
    before = flat_of(saved)

    def refuse() -> None:
        assert (saved / "weights.json.staged").exists()
        raise PermissionError("not that one")

    with pytest.raises(CheckpointError, match="not that one"):
        numbered(2.0).save(saved, before_replacing=refuse)
    assert flat_of(saved) == before
    assert sorted(path.name for path in saved.iterdir()) == ["meta.json", "weights.json"]


def test_full_disk_leaves_the_model_before(saved: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = numbered(2.0)
    code = f"""
        import resource, signal, sys
        sys.path[:0] = {[str(Path(__file__).parents[i]) for i in (0, 2)]!r}
        from test_model_directory import numbered
        model = numbered(2.0)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, {most}))
        model.save({str(saved)!r})
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert "CheckpointError: cannot write" in run.stderr
    assert "File too large" in run.stderr
    assert sorted(path.name for path in saved.iterdir()) == ["meta.json", "weights.json"]
    assert flat_of(saved)[0] == 1.0
    model.save(saved)
    assert flat_of(saved)[0] == 2.0


# ---------------------------------------------------------------- damage


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def with_weights(**changes: Any) -> Callable[[Path], None]:
    """Return a change of `weights.json` that its digest does not give away."""

    def change(directory: Path) -> None:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        del meta["weights_sha256"]
        (directory / "meta.json").write_text(json.dumps(meta))
        weights = json.loads((directory / "weights.json").read_text())
        for name, value in changes.items():
            weights[name.replace("__", ".")] = value
        for name in [name for name, value in weights.items() if value is None]:
            del weights[name]
        (directory / "weights.json").write_text(json.dumps(weights))

    return change


def nothing(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def folder(name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return change


ROWS = [[0.5] * 4] * 4
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty directory", nothing, r"cannot read .*meta.json: No such file"),
    ("no weights", lambda d: (d / "weights.json").unlink(), r"cannot read .*weights.json: No such"),
    ("folder as metadata", folder("meta.json"), "meta.json: it is not a regular file"),
    ("folder as weights", folder("weights.json"), "weights.json: it is not a regular file"),
    (
        "empty weights",
        lambda d: (d / "weights.json").write_text(""),
        "size in bytes is 0, expected 472 to 1063680 ",
    ),
    ("digest", replace_text("weights.json", "1.0,", "1.5,"), "its SHA-256 digest differs"),
    ("metadata is a list", lambda d: (d / "meta.json").write_text("[]"), "Expected `object`"),
    ("UTF-16", lambda d: (d / "meta.json").write_text("{}", "utf-16"), "invalid meta.json"),
    ("nesting", lambda d: (d / "meta.json").write_text("[" * 9999), "invalid meta.json"),
    ("missing key", replace_text("meta.json", '"n_head"', '"n_heads"'), "required field `n_head`"),
    ("text as size", replace_text("meta.json", '"n_embd": 4', '"n_embd": "4"'), "Expected `int`"),
    ("null size", replace_text("meta.json", '"n_embd": 4', '"n_embd": null'), "Expected `int`"),
    ("size 0", replace_text("meta.json", '"n_layer": 1', '"n_layer": 0'), "n_layer is 0"),
    ("negative", replace_text("meta.json", '"n_embd": 4', '"n_embd": -4'), "n_embd is -4"),
    ("heads", replace_text("meta.json", '"n_head": 2', '"n_head": 3'), "must be divisible"),
    ("huge size", replace_text("meta.json", '"n_embd": 4', '"n_embd": 4000000'), "expected .* to"),
    ("char twice", replace_text("meta.json", '"é"', '"a"'), "a character twice"),
    (
        "long char",
        replace_text("meta.json", '"é"', '"éé"'),
        "expected a tuple of single characters",
    ),
    (
        "vocabulary",
        replace_text("meta.json", '"vocab_size": 4', '"vocab_size": 5'),
        "vocab_size is 5",
    ),
    ("dtype", replace_text("meta.json", "float32", "float16"), "dtype is 'float16'"),
    ("other file", replace_text("meta.json", "weights.json", "../x.json"), "weights_file is"),
    ("missing tensor", with_weights(lm_head=None), "lm_head is missing"),
    ("extra tensor", with_weights(bias=ROWS), "bias is unknown"),
    ("another layer", with_weights(layer1__attn_wq=ROWS), "layer1.attn_wq is unknown"),
    (
        "ragged",
        with_weights(wte=[[0.5] * 4] * 3 + [[0.5] * 3]),
        r"wte has shape \(4, 3 or 4\), exp",
    ),
    (
        "rows missing",
        with_weights(wte=ROWS[:3]),
        r"wte has shape \(3, 4\), expected \(4, 4\) as meta.json says",
    ),
    ("no rows", with_weights(wte=[]), r"wte has shape \(0, 0\), expected \(4, 4\)"),
    ("flat", with_weights(wte=[0.5] * 16), "Expected `array`"),
    ("text as number", with_weights(wte=[["0.5"] * 4] * 4), "Expected `float`"),
    ("bool as number", with_weights(wte=[[True] * 4] * 4), "Expected `float`"),
    ("null as number", with_weights(wpe=[[float("nan")] * 4] * 3), "invalid .*weights.json"),
    ("beyond float32", with_weights(wpe=[[1e39] * 4] * 3), "beyond the range of float32"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES]
)
def test_damaged_model_is_refused(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        microgpt.load(saved)


ROLE_NAMES = ["user", "assistant", "end_turn"]
TRAINED = "is this the directory of a trained model?"
MESSAGES: list[tuple[Callable[[Path], object], str, str | None]] = [
    (nothing, "cannot read {path}/meta.json: No such file or directory", TRAINED),
    (
        lambda d: (d / "meta.json").write_text(""),
        "invalid meta.json: Input data was truncated in {path}/meta.json",
        None,
    ),
    (
        replace_text("weights.json", "1.0,", "1.5,"),
        "{path}/weights.json is not what meta.json describes: its SHA-256 digest differs",
        "it was changed or damaged after it was saved; restore all files from one copy",
    ),
    (
        replace_text("meta.json", '"n_layer": 1', '"n_layer": 0'),
        "invalid meta.json: n_layer is 0, expected an integer of at least 1 in {path}/meta.json",
        None,
    ),
    (
        replace_text("meta.json", '"dtype"', '"special_tokens": ["user"],\n"dtype"'),
        (
            f"invalid meta.json: special_tokens is ['user'], expected {ROLE_NAMES} in "
            "{path}/meta.json"
        ),
        None,
    ),
    (
        replace_text("meta.json", '"vocab_size": 4', '"vocab_size": 5'),
        "invalid meta.json: vocab_size is 5, expected 4 in {path}/meta.json",
        None,
    ),
    (
        replace_text("meta.json", "weights.json", "../x.json"),
        (
            "invalid meta.json: weights_file is '../x.json', expected weights.json or "
            "weights.safetensors in {path}/meta.json"
        ),
        None,
    ),
    (
        replace_text("meta.json", "float32", "float16"),
        "invalid meta.json: dtype is 'float16', expected float32 or float64 in {path}/meta.json",
        None,
    ),
    (
        with_weights(wte=[[0.5] * n for n in (4, 1, 2, 3)]),
        (
            "invalid {path}/weights.json: wte has shape (4, 1 or 2 or 3), expected (4, 4) as "
            "meta.json says"
        ),
        None,
    ),
    (
        with_weights(wpe=[[1e39] * 4] * 3),
        (
            "invalid {path}/weights.json: wpe holds a number beyond the range of float32, expected "
            "finite numbers"
        ),
        None,
    ),
    (
        lambda d: (d / "commit.json").write_text('["x", "meta.json"]'),
        "invalid {path}/commit.json: it names ['x']",
        None,
    ),
]


@pytest.mark.parametrize(("damage", "message", "hint"), MESSAGES)
def test_error_says_what_was_found_what_was_expected_and_where(
    saved: Path, damage: Callable[[Path], object], message: str, hint: str | None
) -> None:
    damage(saved)
    with pytest.raises(CheckpointError) as caught:
        microgpt.load(saved)
    assert str(caught.value) == message.format(path=saved)
    assert caught.value.hint == hint


def test_name_that_no_directory_can_have_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^cannot read .*: .*null byte"):
        microgpt.load(f"{saved}/a\0b")


def test_float64_is_what_metadata_without_a_type_means(saved: Path) -> None:
    replace_text("meta.json", '"dtype": "float32",', "")(saved)
    assert microgpt.load(saved).dtype == "float64"
    assert microgpt.load(saved, dtype="float32").dtype == "float32"


@pytest.mark.parametrize("n_swaps", [1, 2, 3])
def test_pair_that_a_writer_swaps_between_two_reads_is_read_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch, n_swaps: int
) -> None:
    read_bytes, swaps = Path.read_bytes, iter(range(n_swaps))

    def read_while_writing(path: Path) -> bytes:
        is_swapped = path.name == "weights.json" and next(swaps, None) is not None
        return read_bytes(path) + b" " * is_swapped

    monkeypatch.setattr(Path, "read_bytes", read_while_writing)
    if n_swaps < 3:
        assert flat_of(saved)[0] == 1.0
    else:
        with pytest.raises(CheckpointError, match="digest differs"):
            microgpt.load(saved)


@pytest.mark.parametrize("number", ["1e999", "NaN", "Infinity", "null", "1" * 400])
def test_number_that_is_none_is_refused(saved: Path, number: str) -> None:
    with_weights()(saved)
    replace_text("weights.json", "1.0,", f"{number},")(saved)
    with pytest.raises(CheckpointError, match=r"weights\.json"):
        microgpt.load(saved)


@pytest.mark.parametrize("weights_format", ["json", "safetensors"])
@pytest.mark.parametrize("name", ["meta.json", "weights"])
def test_file_cut_anywhere_is_refused(tmp_path: Path, weights_format: Any, name: str) -> None:
    numbered(1.0).save(tmp_path, format=weights_format)
    path = tmp_path / (name if name == "meta.json" else f"weights.{weights_format}")
    whole = path.read_bytes()
    last = len(whole.rstrip())
    for n_bytes in {*range(0, last, max(1, last // 40)), last - 1}:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(CheckpointError):
            microgpt.load(tmp_path)


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    numbered(2.0).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "weights.json", saved)
    with pytest.raises(CheckpointError, match="its SHA-256 digest differs") as caught:
        microgpt.load(saved)
    assert "restore all files from one copy" in str(caught.value.hint)


@pytest.mark.parametrize("in_place", ["neither", "weights.json", "meta.json"])
def test_committed_save_is_read_where_nothing_may_be_renamed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: str
) -> None:
    numbered(2.0).save(tmp_path / "new")
    for name in ("weights.json", "meta.json"):
        place = saved / name if name == in_place else saved / f"{name}.staged"
        shutil.copy(tmp_path / "new" / name, place)
    (saved / "commit.json").write_text('["weights.json","meta.json"]')

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "replace", refuse)
    assert flat_of(saved) == flat_of(tmp_path / "new")


def tensors_with(**changes: Any) -> bytes:
    tensors = {
        name: np.zeros(view.shape, np.float32) for name, view in numbered(1.0).parameters.items()
    }
    tensors |= changes
    return save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})


TENSORS: list[tuple[str, bytes, str]] = [
    ("noise", b"\xff" * 1000, r"invalid .*weights.safetensors"),
    ("header longer than the file", (10**6).to_bytes(8, "little") + b"{}" * 900, "invalid"),
    ("missing tensor", tensors_with(wte=None), "wte is missing"),
    ("extra tensor", tensors_with(bias=np.zeros((2, 2), np.float32)), "bias is unknown"),
    ("shape", tensors_with(wte=np.zeros((3, 4), np.float32)), r"wte has shape \(3, 4\)"),
    ("integers", tensors_with(wte=np.zeros((4, 4), np.int32)), "type int32, expected a matrix"),
    ("vector", tensors_with(wte=np.zeros(16, np.float32)), r"shape \(16,\)"),
    ("NaN", tensors_with(wte=np.full((4, 4), np.nan, np.float32)), "wte holds a number beyond"),
]


@pytest.mark.parametrize(
    ("content", "message"), [case[1:] for case in TENSORS], ids=[case[0] for case in TENSORS]
)
def test_damaged_tensors_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    numbered(1.0).save(tmp_path, format="safetensors")
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    del meta["weights_sha256"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        microgpt.load(tmp_path)


# ---------------------------------------------------------------- killed at any system call

SETUP = """
import microgpt, safetensors.numpy
model = microgpt.load({model!r}, engine="vectorized")
def save(directory):
    model.save(directory, format={format!r})
"""


CALLS = {
    "openat": 11,
    "write": 5,
    "fsync": 8,
    "rename": 5,
    "unlink": 11,
    "mkdir": 3,
    "flock": 3,
}


@needs_strace
@pytest.mark.parametrize(
    ("fault", "weights_format"),
    [
        (FAULTS[0], "json"),
        (FAULTS[0], "safetensors"),
        (FAULTS[1], "safetensors"),
        (FAULTS[2], "json"),
    ],
)
def test_save_that_fails_at_any_system_call_loses_nothing(
    tmp_path: Path, fault: str, weights_format: Any
) -> None:
    numbered(2.0).save(tmp_path / "new")
    setup = SETUP.format(model=str(tmp_path / "new"), format=weights_format)
    for directory in strike_each_call(setup, fault, tmp_path, numbered(1.0).save, CALLS):
        assert flat_of(directory)[0] in {1.0, 2.0}, directory
        numbered(3.0).save(directory, format=weights_format)
        assert flat_of(directory)[0] == 3.0, directory
        names = sorted(path.name for path in directory.iterdir())
        assert names == ["meta.json", f"weights.{weights_format}"]
