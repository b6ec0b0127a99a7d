"""`POST /v1/completions`: texts that continue prompts, and log-probabilities of the prompts."""

import asyncio
import codecs
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from microgpt import ChosenToken, MicrogptError, StopSignal
from starlette.requests import Request
from starlette.responses import Response

from microgpt_serve.api.answers import Answer, ListedToken, Piece, send
from microgpt_serve.api.generation import (
    RANDOM_SEED,
    Generation,
    sampling_config,
    served_model,
    start_generation,
)
from microgpt_serve.api.http import as_api_error, cancel_on_disconnect
from microgpt_serve.api.openai_schemas import (
    Completion,
    CompletionChoice,
    CompletionRequest,
    TextLogprobs,
)
from microgpt_serve.api.tokens import Source, name_of, read_source
from microgpt_serve.serving.errors import ApiError

__all__ = ["complete_text"]

MAX_TEXTS = 2048  # of one request
MAX_LISTED = 200_000  # log-probabilities of an echo: some five megabytes
TEXT = "text_completion"


class _TextAnswer(Answer[Completion]):
    """Texts, each of which may begin with its prompt.

    Args:
        generation: generates the texts.
        n_top: see `Answer`.
        sources: the prompts.
        is_echo: whether each text begins with its prompt.
        generates: whether a text follows the prompt.
    """

    id_prefix = "cmpl-"

    def __init__(
        self,
        generation: Generation,
        n_top: int | None,
        sources: Sequence[Source],
        *,
        is_echo: bool,
        generates: bool,
    ) -> None:
        super().__init__(generation, n_top)
        self._sources, self._is_echo, self._generates = sources, is_echo, generates
        self._listed: list[Sequence[ListedToken]] = [()] * len(sources)
        n_before = [0 if is_echo else len(source.text) for source in sources]
        decoder = codecs.getincrementaldecoder("utf-8")
        # Of each text: where the next token begins, and the decoder that knows half characters.
        self._ends = [(n, decoder("replace")) for n in n_before for _ in range(generation.n)]

    def list_prompts(self, signal: StopSignal) -> None:
        """Compute log-probabilities of the tokens of prompts; takes a pass of the model for each.

        Args:
            signal: ends the work.
        """
        model = self.generation.model
        mark = name_of(model.tokenizer.bos, model.tokenizer)
        for i, source in enumerate(self._sources):
            if signal.is_set:
                return
            ids = source.token_ids
            rows = model.logits(ids[:-1]).tolist() if len(ids) > 1 else []
            tokens = list(map(ChosenToken, ids, [[], *rows]))[source.n_hidden :]
            listed = [each for token in tokens if (each := self.listed(token))]
            if source.is_named:
                listed[0] = listed[0]._replace(content=mark.encode())
            self._listed[i] = listed

    async def pieces(self, *, whole: bool = False) -> AsyncGenerator[Piece]:
        """See `Answer`."""
        reason: Literal["length"] | None = None if self._generates else "length"
        async with aclosing(super().pieces(whole=whole)) as pieces:
            # Awaited before the echo, so that a full queue has a status of its own.
            piece = await anext(pieces) if self._generates else None
            for index in range(len(self._ends) if self._is_echo or reason else 0):
                source = index // self.generation.n
                text = self._sources[source].text if self._is_echo else ""
                yield Piece(index, text, self._listed[source], reason)
            while piece:
                yield piece
                piece = await anext(pieces, None)

    def response(self, texts: list[Piece]) -> Completion:
        """See `Answer`."""
        choices = [
            CompletionChoice(text.index, text.text, text.finish_reason, self._logprobs(text))
            for text in texts
        ]
        return Completion(*self.head, choices, TEXT, self.generation.usage)

    def chunks(self, piece: Piece, *, is_first: bool) -> list[Completion]:  # noqa: ARG002
        """See `Answer`."""
        logprobs = self._logprobs(piece) if piece.tokens else None
        choice = CompletionChoice(piece.index, piece.text, piece.finish_reason, logprobs)
        return [Completion(*self.head, [choice], TEXT)]

    def usage_chunk(self) -> Completion:
        """See `Answer`."""
        return Completion(*self.head, [], TEXT, self.generation.usage)

    def _logprobs(self, piece: Piece) -> TextLogprobs | None:
        if self.n_top is None:
            return None
        logprobs = TextLogprobs([], [], [], [])
        end, utf8 = self._ends[piece.index]
        for token, content in piece.tokens:
            is_known = not math.isnan(token.logprob)
            top = {each.token: each.logprob for each in reversed(token.top_logprobs)}
            logprobs.tokens.append(token.token)
            logprobs.token_logprobs.append(token.logprob if is_known else None)
            logprobs.top_logprobs.append({token.token: token.logprob} | top if is_known else None)
            logprobs.text_offset.append(end)
            end += len(utf8.decode(content))
        self._ends[piece.index] = end, utf8
        return logprobs


async def complete_text(request: Request, body: CompletionRequest) -> Completion | Response:
    """Continue a text, or each of several."""
    served = served_model(request, body.model)
    prompts = _prompts(body.prompt)
    n = body.n or 1
    if len(prompts) * n > MAX_TEXTS:
        raise ApiError(
            400,
            f"the request asks for {len(prompts) * n:,} texts, {n} for each of {len(prompts):,} "
            f"prompts, expected at most {MAX_TEXTS:,}; send several requests",
            param="prompt",
        )
    is_echo, generates = bool(body.echo), body.max_tokens != 0
    sources: list[Source] = []
    for i, prompt in enumerate(prompts):
        if sources:
            await asyncio.sleep(0)  # each may take milliseconds: others have their turn
        try:
            sources.append(await read_source(request, served.model, prompt, is_echo=is_echo))
        except MicrogptError as error:
            if len(prompts) == 1:
                raise
            sent = as_api_error(error)
            message, reason = f"prompt[{i}]: {sent.message}", f"prompt[{i}]: {sent.reason}"
            raise ApiError(sent.status, message, param="prompt", reason=reason) from error
    body.max_tokens = body.max_tokens or None
    config = sampling_config(body, seed=RANDOM_SEED)
    read, n_tokens = [each.prompt for each in sources], sum(len(each.token_ids) for each in sources)
    generation = start_generation(request, served, read, config, n, n_tokens)
    n_top = None if body.logprobs is None or body.logprobs is False else int(body.logprobs)
    answer = _TextAnswer(generation, n_top, sources, is_echo=is_echo, generates=generates)
    if is_echo and n_top is not None:
        _check_listed(n_tokens * n, n_top)
        await cancel_on_disconnect(request, request.app.state.pool.run(answer.list_prompts))
    return await send(request, answer, body)


def _check_listed(n_tokens: int, n_top: int) -> None:
    """Raise if an answer would list so much that it holds other requests up."""
    n_listed = n_tokens * (n_top + 1)
    if n_listed > MAX_LISTED:
        raise ApiError(
            400,
            f"the echo lists {n_listed:,} log-probabilities, {n_top + 1} of each of {n_tokens:,} "
            f"tokens, expected at most {MAX_LISTED:,}; send several requests",
            param="prompt",
        )


def _prompts(given: str | Sequence[Any] | None) -> Sequence[str | Sequence[int]]:
    """Return the texts of a request, each as text or as token ids."""
    if given is None or isinstance(given, str):
        return [given or ""]
    kinds = {type(each) for each in given}
    if kinds <= {int}:
        return [list(given)]
    if len(kinds) > 1:
        raise ApiError(
            400,
            "prompt mixes kinds, expected texts, token ids, or lists of token ids",
            param="prompt",
        )
    return list(given)
