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
        trainer: has its conversations; those without a whole answer that is learned are passed
            over.
        n_questions: the most to ask, spread over the conversations.
    """
    order, dataset = trainer.order, trainer.dataset
    n = min(n_questions, len(order))
    config = microgpt.SamplingConfig(temperature=0)
    answers = []
    for index in (order[i * len(order) // n] for i in range(n)):
        start, length = int(dataset.starts[index]), int(dataset.lengths[index])
        end = start + length + 1
        counted = None if dataset.counted is None else dataset.counted[start:end].tolist()
        messages = _first_exchange(model.tokenizer, dataset.tokens[start:end].tolist(), counted)
        if not messages:
            continue
        *asked, answer = messages
        try:
            reply = model.reply(model.prompt(asked), config).content
        except microgpt.ContextLengthError:  # the question leaves no room for an answer
            reply = ""
        answers.append(Answer(asked[-1]["content"], reply, reply == answer["content"]))
    return answers


def _first_exchange(
    tokenizer: microgpt.BaseTokenizer, ids: list[int], counted: list[bool] | None
) -> list[microgpt.Message]:
    """Return the messages up to the first answer to a user that is learned; none without one."""
    roles = {tokenizer.special_id(name): name for name in tokenizer.special_tokens}
    messages: list[microgpt.Message] = []
    role, content = "", list[int]()
    for place, token_id in enumerate(ids):
        name = roles.get(token_id)
        if name == "end_turn" and role:
            messages.append({"role": role, "content": tokenizer.decode(content)})
            is_learned = role == "assistant" and (counted is None or counted[place])
            if is_learned and messages[-2:-1] and messages[-2]["role"] == "user":
                return messages
        elif name:
            role, content = name, []
        elif token_id != tokenizer.bos:
            content.append(token_id)
    return []
