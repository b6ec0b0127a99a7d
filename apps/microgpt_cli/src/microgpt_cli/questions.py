"""Questions from the conversations that a chat model was trained on, and its answers."""

from typing import NamedTuple

import microgpt

__all__ = ["Answer", "ask_trained"]


class Answer(NamedTuple):
    """A question of the training data, the reply to it, and whether it is the trained one."""

    question: str
    reply: str
    is_right: bool


def ask_trained(
    model: microgpt.LanguageModel, trainer: microgpt.Trainer, n_questions: int
) -> list[Answer]:
    """Ask the first question of some conversations that were trained on; take likeliest replies.

    Args:
        model: a chat model.
        trainer: has its conversations; those that were cut before the end of the first answer are
            passed over.
        n_questions: the most to ask, spread over the conversations.
    """
    order = trainer.order
    n = min(n_questions, len(order))
    config = microgpt.SamplingConfig(temperature=0)
    answers = []
    for index in (order[i * len(order) // n] for i in range(n)):
        messages = _first_exchange(model.tokenizer, trainer.dataset[index].tolist())
        if not messages:
            continue
        *asked, answer = messages
        try:
            reply = model.reply(model.prompt(asked), config).content
        except microgpt.ContextLengthError:  # the question leaves no room for an answer
            reply = ""
        answers.append(Answer(asked[-1]["content"], reply, reply == answer["content"]))
    return answers


def _first_exchange(tokenizer: microgpt.BaseTokenizer, ids: list[int]) -> list[microgpt.Message]:
    """Return the messages up to the assistant's first, whole; none if it is cut."""
    roles = {tokenizer.special_id(name): name for name in tokenizer.special_tokens}
    messages: list[microgpt.Message] = []
    role, content = "", list[int]()
    for token_id in ids[1:]:
        name = roles.get(token_id)
        if name == "end_turn":
            messages.append({"role": role, "content": tokenizer.decode(content)})
            if role == "assistant":
                return messages
        elif name:
            role, content = name, []
        else:
            content.append(token_id)
    return []
