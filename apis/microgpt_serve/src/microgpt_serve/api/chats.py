"""`POST /v1/chat/completions`: replies to messages."""

from collections.abc import Sequence

from microgpt import ChosenToken
from starlette.requests import Request
from starlette.responses import Response

from microgpt_serve.api.answers import Answer, ListedToken, Piece, send
from microgpt_serve.api.generation import (
    RANDOM_SEED,
    read_prompt,
    sampling_config,
    served_model,
    start_generation,
)
from microgpt_serve.api.openai_schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChunkChoice,
    Delta,
    Logprobs,
)
from microgpt_serve.serving.errors import ApiError

__all__ = ["complete_chat"]

CHUNK = "chat.completion.chunk"


class _ChatAnswer(Answer[ChatCompletion]):
    id_prefix = "chatcmpl-"

    def response(self, texts: list[Piece]) -> ChatCompletion:
        """See `Answer`."""
        choices = [
            ChatChoice(
                text.index,
                AssistantMessage(text.text),
                text.finish_reason or "stop",
                self._logprobs(text.tokens),
            )
            for text in texts
        ]
        return ChatCompletion(*self.head, choices, self.generation.usage)

    def chunks(self, piece: Piece, *, is_first: bool) -> list[ChatCompletionChunk]:
        """See `Answer`."""
        delta = Delta(content=piece.text or None)
        logprobs = self._logprobs(piece.tokens) if piece.text else None
        choices = [ChunkChoice(piece.index, delta, piece.finish_reason, logprobs)]
        if is_first:
            choices.insert(0, ChunkChoice(piece.index, Delta("assistant", "")))
        return [ChatCompletionChunk(*self.head, [choice], CHUNK) for choice in choices]

    def usage_chunk(self) -> ChatCompletionChunk:
        """See `Answer`."""
        return ChatCompletionChunk(*self.head, [], CHUNK, self.generation.usage)

    def listed(self, token: ChosenToken) -> ListedToken | None:
        """See `Answer`; the token that ends a turn is not listed."""
        is_end = token.token_id == self.generation.prompts[0].stop_token
        return None if is_end else super().listed(token)

    def _logprobs(self, tokens: Sequence[ListedToken]) -> Logprobs | None:
        return None if self.n_top is None else Logprobs([each.token for each in tokens])


async def complete_chat(request: Request, body: ChatCompletionRequest) -> ChatCompletion | Response:
    """Reply to messages."""
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.max_completion_tokens is not None:
        body.max_tokens = body.max_completion_tokens
    served = served_model(request, body.model)
    config = sampling_config(body, seed=RANDOM_SEED)
    prompt = await read_prompt(request, served.model, body.messages)
    generation = start_generation(request, served, [prompt], config, body.n or 1)
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    return await send(request, _ChatAnswer(generation, n_top), body)
