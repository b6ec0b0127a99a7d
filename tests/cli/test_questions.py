"""Training on conversations without other flags, and the questions asked at its end."""

import json
from pathlib import Path
from typing import Any

import microgpt
import pytest
from microgpt_cli.questions import ask_trained

PAIRS = {
    "When do you open?": "At nine.",
    "When do you close?": "At six, but on Sundays at noon.",
    "Where are you?": "In Mill Lane,\nnext to the bakery.",
    "Do you take cards?": "Yes.",
}


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    path = tmp_path / "faq.jsonl"
    lines = (json.dumps({"question": asked, "answer": told}) for asked, told in PAIRS.items())
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_pairs_are_learned_and_asked_without_any_flag(
    cli: Any, talks: Path, tmp_path: Path
) -> None:
    result = cli("train", "--chat", "--input", talks, "--output", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    chosen = next(line for line in result.lines if line.startswith("chosen:"))
    assert "--block-size" in chosen
    assert "--n-embd" in chosen
    reason = next(line for line in result.lines if line.startswith("reason:"))
    assert reason.startswith("reason:      100% of the conversations fit into the block, and each")
    shown = result.out.partition("\n--- trained questions ---\n")[2]
    assert shown.endswith("4 of 4 answered word for word (temperature 0)\n")
    for asked, told in PAIRS.items():
        assert f"  > {asked}\n  {told}\n".replace(",\n", ",\n  ") in shown
    command = ["train", "--chat", "--input", talks, "--output", tmp_path / "same"]
    typed = cli(*command, *chosen.split()[1:])
    assert "chosen:" not in typed.out
    weights = [microgpt.load(tmp_path / name).parameters.flat for name in ("out", "same")]
    assert (weights[0] == weights[1]).all()


def test_answers_are_events_and_may_be_left_out(cli: Any, talks: Path, tmp_path: Path) -> None:
    job = ("train", "--chat", "--input", talks, "--output", tmp_path / "out", "--json", "--force")
    events = list(map(json.loads, cli(*job).lines))
    (questions,) = (event for event in events if event["event"] == "questions")
    assert (questions["asked"], questions["right"]) == (4, 4)
    assert {each["question"]: each["reply"] for each in questions["answers"]} == PAIRS
    quiet = list(map(json.loads, cli(*job, "--num-samples", 0, "--steps", 1).lines))
    assert "questions" not in [event["event"] for event in quiet]


def test_wrong_answers_are_counted(cli: Any, talks: Path, tmp_path: Path) -> None:
    flags = ("--steps", 1, "--output", tmp_path / "out")
    assert "\n0 of 4 answered word for word" in cli("train", "--chat", "--input", talks, *flags).out


def test_message_of_the_system_is_shown_where_it_changes(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
    systems = [[{"role": "system", "content": content}] for content in ("Be kind.", "Be\nkind.")]
    talks = [[*systems[0], *talk], talk, [*systems[1], *talk], [*systems[1], *talk]]
    path.write_text("".join(f"{json.dumps(each)}\n" for each in talks))
    flags = ("--steps", 1, "--no-shuffle", "--output", tmp_path / "out")
    lines = cli("train", "--chat", "--input", path, *flags).lines
    marked = [line for line in lines if line.startswith(("  system:", "  kind", "  >"))]
    shown = [
        "  system: Be kind.",
        "  >",
        "  system: none",
        "  >",
        "  system: Be",
        "  kind.",
    ]
    assert [line.removesuffix(" hi") for line in marked] == [*shown, "  >", "  >"]


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_first_answer_is_asked_for_with_the_system_turn(tokenizer: Any) -> None:
    talk = [("system", "Be brief."), ("user", "hi"), ("assistant", "yes"), ("user", "a")]
    talk.append(("assistant", "b"))
    long = [("user", " ".join(str(7919**n) for n in range(12))), ("assistant", "cut")]
    dataset = microgpt.Dataset.from_conversations(
        [{"role": role, "content": content} for role, content in each] for each in (talk, long)
    )
    options = {"block_size": 60, "steps": 120, "tokenizer": tokenizer}
    config, dataset = microgpt.chat_setup(dataset, **options)
    model, trainer = microgpt.prepare(dataset, config)
    trainer.advance(config.steps)
    (answer,) = ask_trained(model, trainer, 10)
    assert answer == ("hi", "yes", True, "Be brief.")


@pytest.mark.parametrize(
    "beginning",
    [
        [("assistant", "hello")],
        [("system", "Be brief."), ("assistant", "hello")],
        [("user", "x"), ("assistant", "not learned")],
    ],
    ids=["the assistant begins", "after a system turn", "an answer of weight 0"],
)
def test_first_learned_answer_to_a_user_is_asked_for(beginning: list[tuple[str, str]]) -> None:
    talk: list[Any] = [{"role": role, "content": content} for role, content in beginning]
    talk += [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    talk[len(beginning) - 1]["weight"] = 0 if beginning[0][0] == "user" else 1
    dataset = microgpt.Dataset.from_conversations([talk, talk])
    config, dataset = microgpt.chat_setup(dataset, steps=120)
    model, trainer = microgpt.prepare(dataset, config)
    trainer.advance(config.steps)
    system = "Be brief." if beginning[0][0] == "system" else ""
    assert ask_trained(model, trainer, 10) == [("hi", "yes", True, system)] * 2


def test_pieces_that_begin_at_a_turn_are_asked(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    talk = [
        {"role": role, "content": f"{role[0]}{number} " * 3}
        for number in range(6)
        for role in ("user", "assistant")
    ]
    path.write_text(f"{json.dumps(talk)}\n" * 4)
    flags = ("--long", "split", "--block-size", 64, "--steps", 20, "--output", tmp_path / "out")
    result = cli("train", "--chat", "--input", path, *flags)
    assert result.status == 0
    assert "answered word for word" in result.out


def test_question_without_room_for_an_answer_is_wrong() -> None:
    talk = [{"role": "user", "content": "x" * 30}, {"role": "assistant", "content": "yes"}]
    dataset = microgpt.Dataset.from_conversations([talk])
    config, dataset = microgpt.chat_setup(dataset, block_size=38)
    model, trainer = microgpt.prepare(dataset, config)
    assert ask_trained(model, trainer, 10) == [("x" * 30, "", False, "")]


@pytest.mark.long  # two minutes
def test_phrasings_of_the_readme_answer_forms_that_were_not_seen(cli: Any, tmp_path: Path) -> None:
    phrasings, forms = tmp_path / "phrasings.jsonl", tmp_path / "forms.jsonl"
    cli("data", "faq", "--output", tmp_path / "faq.jsonl")
    seen, unseen = [], []
    for line in (tmp_path / "faq.jsonl").read_text().splitlines():
        pair = json.loads(line)
        plain = pair["question"].rstrip("?")
        small, capitals, title = plain.lower(), plain.upper(), plain.title()
        shown = (f"{plain}?", small, f"{capitals}!", f"{title}.")
        others = [plain, f"{plain}!", f"{plain} ?", f"{title}?", capitals, f"{capitals}?"]
        others += [f"{small}?", f"{small}??", f"{small}.", f"{small}!"]
        seen += [pair | {"question": question} for question in shown]
        unseen += [(question, pair["answer"]) for question in others]
    known = {pair["question"] for pair in seen}
    phrasings.write_text("".join(f"{json.dumps(pair)}\n" for pair in seen))
    lines = (
        {"messages": [{"role": "user", "content": question}], "answer": answer}
        for question, answer in unseen
        if question not in known
    )
    forms.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job = ("train", "--chat", "--input", phrasings, "--output", tmp_path / "bot", "--quiet")
    assert cli(*job).status == 0
    result = json.loads(cli("evaluate", tmp_path / "bot", "--questions", forms, "--json").out)
    assert result["asked"] > 1_900
    assert result["right"] / result["asked"] > 0.9
