"""Several served models: how they are found, loaded and loaded again."""

import shutil
from pathlib import Path

import microgpt
import pytest
from microgpt import CheckpointError
from microgpt_serve.serving.batcher import Batcher
from microgpt_serve.serving.errors import ApiError, UnavailableError
from microgpt_serve.serving.models import ModelStore
from serve.service import MakeClient, StartLog


def save(directory: Path, letter: str) -> Path:
    """Save a model that writes one letter only."""
    microgpt.fit([letter * 12], steps=60, n_embd=8, n_head=2).save(directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds models a and b, and other things."""
    folder = tmp_path_factory.mktemp("several")
    for letter in "ba":
        save(folder / letter, letter)
    (folder / "notes").mkdir()
    (folder / "readme.txt").write_text("no model")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "several")


def store_of(model_dir: Path | str, max_mb: int = 0) -> ModelStore:
    return ModelStore(str(model_dir), lambda name: Batcher(1, 0, 9.0, name=name), 1, max_mb << 20)


def loaded(model_dir: Path | str) -> ModelStore:
    store = store_of(model_dir)
    store.load()
    return store


def names_in(store: ModelStore) -> list[str]:
    return [served.id for served in store]


def letter_of(store: ModelStore, name: str) -> str:
    (text,) = store.get(name).model.generate(1, max_tokens=1, temperature=0)
    return text


def test_models_are_found_in_a_directory_or_listed(saved: Path) -> None:
    a, b = saved / "a", saved / "b"
    cases: list[tuple[Path | str, list[str]]] = [
        (saved, ["a", "b"]),
        (f"{b},{a}", ["b", "a"]),
        (f" {b} , {a} ,", ["b", "a"]),
        (a, ["a"]),
    ]
    for model_dir, expected in cases:
        store = loaded(model_dir)
        assert names_in(store) == expected
        assert store.get().id == expected[0]
        assert [letter_of(store, name) for name in expected] == expected


def test_a_directory_with_a_comma_in_its_name_is_one(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "a", tmp_path / "a,b")
    assert names_in(loaded(tmp_path / "a,b")) == ["a,b"]


def test_a_model_that_is_not_served_is_named_with_those_that_are(saved: Path) -> None:
    with pytest.raises(ApiError, match="the model 'c' does not exist, expected 'a' or 'b'"):
        loaded(saved).get("c")
    with pytest.raises(UnavailableError, match="loading"):
        store_of(saved).get("a")


def test_models_that_cannot_be_served_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", tmp_path / "other" / "a")
    with pytest.raises(CheckpointError, match="two models are named 'a'"):
        store_of(f"{folder / 'a'},{tmp_path / 'other' / 'a'}").load()
    (folder / "b" / "weights.json").write_text("{")
    store = store_of(folder)
    with pytest.raises(CheckpointError, match="weights"):
        store.load()
    assert not store.is_loaded
    with pytest.raises(CheckpointError, match="nothing"):
        store_of(tmp_path / "nothing").load()


def test_the_memory_of_all_weights_is_limited(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microgpt_serve.serving.models.MEBIBYTE", 1 << 10)
    one = microgpt.load(saved / "a").parameters.flat.nbytes
    with pytest.raises(CheckpointError, match=r"2 models up to .*b take .* raise MODELS_MB"):
        ModelStore(str(saved), lambda _: Batcher(1, 0, 9.0), 1, 2 * one - 1).load()
    ModelStore(str(saved), lambda _: Batcher(1, 0, 9.0), 1, 2 * one).load()


def test_reloading_keeps_what_cannot_be_read(
    folder: Path, start_log: StartLog, capsys: pytest.CaptureFixture[str]
) -> None:
    store = loaded(folder)
    before = {name: store.get(name).model for name in "ab"}
    batchers = [store.get(name).batcher for name in "ab"]
    (folder / "a" / "weights.json").write_text("{")
    shutil.rmtree(folder / "b")
    save(folder / "b", "y")
    save(folder / "c", "c")
    store.reload()
    assert names_in(store) == ["a", "b", "c"]
    assert store.get("a").model is before["a"]
    assert [letter_of(store, name) for name in "abc"] == ["a", "y", "c"]
    assert [store.get(name).batcher for name in "ab"] == batchers
    shutil.rmtree(folder / "b")
    start_log("text")
    store.reload()
    assert letter_of(store, "b") == "y"
    assert "the directory is gone, keeping the old model model=b" in capsys.readouterr().err


def test_a_link_may_lead_to_another_model_after_a_reload(saved: Path, tmp_path: Path) -> None:
    for name, letter in {"current": "a", "stable": "a"}.items():
        (tmp_path / name).symlink_to(saved / letter)
    store = loaded(tmp_path)
    assert names_in(store) == ["current", "stable"]
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(saved / "b")
    store.reload()
    assert names_in(store) == ["current", "stable"]
    assert [letter_of(store, name) for name in names_in(store)] == ["b", "a"]


def test_a_request_keeps_the_model_that_it_began_with(folder: Path) -> None:
    """A prompt that one model has encoded is never continued by the next one."""
    store = loaded(folder)
    served = store.get("a")
    before = served.model
    save(folder / "a", "x")
    store.reload()
    assert served.model is before
    assert store.get("a").model is not before


def test_a_second_model_of_a_name_is_not_taken_by_a_reload(
    folder: Path, tmp_path: Path, start_log: StartLog, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "a", other / "c")
    store = loaded(f"{folder},{other}")
    before = [served.model for served in store]
    shutil.copytree(folder / "b", other / "a")
    start_log("text")
    store.reload()
    assert [served.model for served in store] == before
    assert "two models are named 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("model_dir", [",", ",".join(["model"] * 100), "x" * 300])
def test_directories_that_cannot_be_looked_into_are_refused(model_dir: str) -> None:
    with pytest.raises(CheckpointError):
        store_of(model_dir).load()


def test_a_directory_that_is_forbidden_is_no_model(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_log: StartLog,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as lost+found, at the top of a volume."""

    def holds_model(directory: Path) -> bool:
        if directory.name == "notes":
            raise PermissionError(13, "Permission denied")
        return microgpt.holds_model(directory)

    monkeypatch.setattr("microgpt_serve.serving.models.holds_model", holds_model)
    start_log("text")
    assert names_in(loaded(folder)) == ["a", "b"]
    assert "cannot look into a directory" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"cannot read .*notes: Permission denied"):
        store_of(folder / "notes").load()


def test_a_name_that_is_not_utf_8_can_be_sent(
    make_client: MakeClient, saved: Path, tmp_path: Path
) -> None:
    client = make_client(shutil.copytree(saved / "a", tmp_path / "name\udcff"))
    assert client.get("/v1/models").json()["data"][0]["id"] == "name?"
    body = {"model": "name?", "max_tokens": 1, "temperature": 0}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "a"


def test_requests_choose_their_model(make_client: MakeClient, saved: Path) -> None:
    client = make_client(saved)
    body = {"max_tokens": 3, "temperature": 0}
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["a", "b"]
    assert client.get("/v1/models/b").json()["id"] == "b"
    assert client.get("/microgpt/v1/model").json()["chars"] == "a"
    assert client.get("/microgpt/v1/model?model=b").json()["chars"] == "b"
    for model, letter in ((None, "a"), ("a", "a"), ("b", "b")):
        answer = client.post("/v1/completions", json={**body, "model": model}).json()
        assert (answer["model"], answer["choices"][0]["text"]) == (letter, letter * 3)
        answer = client.post("/microgpt/v1/generate", json={**body, "model": model}).json()
        assert answer["samples"] == [letter * 3]
        top = client.post("/microgpt/v1/next", json={"model": model}).json()["tokens"][0]
        assert top["token"] == letter
        tokens = {"tokens": [0], "model": model}
        assert client.post("/detokenize", json=tokens).json() == {"prompt": letter}
    for path in ("/v1/completions", "/microgpt/v1/generate", "/microgpt/v1/next", "/tokenize"):
        response = client.post(path, json={"model": "c", "prompt": ""})
        assert response.status_code == 404
        assert "'a' or 'b'" in response.text
    assert client.get("/tokenizer_info?model=c").status_code == 404


def test_a_conversation_for_a_model_of_documents_names_the_chat_models(
    make_client: MakeClient, names_dir: Path, chat_dir: Path
) -> None:
    client = make_client(Path(f"{names_dir},{chat_dir}"))
    body = {"messages": [{"role": "user", "content": "hi"}]}
    message = client.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert message.endswith(f"chat tokens; request model {chat_dir.name!r}")
