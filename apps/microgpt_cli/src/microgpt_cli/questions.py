"""Questions for a chat model, such as those that it was trained on, and its answers."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import microgpt

__all__ = ["Answer", "ask_trained", "likeliest_replies"]

N_TOGETHER = 64  # texts that grow at a time


class Answer(NamedTuple):
    """A question of the training data, the reply to it, and whether it is the trained one.

    `system` is the message of the system with which it was asked; empty without one.
    """

    question: str
    reply: str
    is_right: bool
    system: str = ""


def likeliest_replies(
    model: microgpt.LanguageModel, prompts: Sequence[microgpt.Prompt | None]
) -> Iterator[str | None]:
    """Yield the likeliest reply to each prompt; None where there is no prompt."""
    asked = (prompt for prompt in prompts if prompt)
    config = microgpt.SamplingConfig(temperature=0)
    replies = model.batch(microgpt.PrefixCache()).replies(asked, repeat(config), N_TOGETHER)
    for prompt in prompts:
        yield next(replies).content if prompt else None


def ask_trained(
    model: microgpt.LanguageModel, trainer: microgpt.Trainer, n_questions: int
) -> list[Answer]:
    """Ask the first question of some conversations that were trained on; take likeliest replies.

    A question is asked after the messages before it, that of the system included.

    Args:
        model: a chat model.
        trainer: has its conversations; those without a whole answer that is learned are passed
            over.
        n_questions: the most to ask, spread over the conversations.
    """
    order, dataset = trainer.order, trainer.dataset
    n = min(n_questions, len(order))
    exchanges, prompts = [], list[microgpt.Prompt | None]()
    for index in (order[i * len(order) // n] for i in range(n)):
        start, length = int(dataset.starts[index]), int(dataset.lengths[index])
        end = start + length + 1
        counted = None if dataset.counted is None else dataset.counted[start:end].tolist()
        messages = _first_exchange(model.tokenizer, dataset.tokens[start:end].tolist(), counted)
        if not messages:
            continue
        exchanges.append(messages)
        try:
            prompts.append(model.prompt(messages[:-1]))
        except microgpt.ContextLengthError:  # the question leaves no room for an answer
            prompts.append(None)
    answers = []
    for messages, reply in zip(exchanges, likeliest_replies(model, prompts), strict=True):
        first, question, trained = messages[0], messages[-2], messages[-1]
        system = first["content"] if first["role"] == "system" else ""
        is_right = (reply or "") == trained["content"]
        answers.append(Answer(question["content"], reply or "", is_right, system))
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
