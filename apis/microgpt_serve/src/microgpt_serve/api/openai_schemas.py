"""Types of requests and responses under `/v1`, as OpenAI's clients expect them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from microgpt_serve.api.schemas import (
    MAX_SAMPLES,
    MAX_SEED,
    MAX_TOKENS,
    MESSAGES,
    MaxTokens,
    ModelName,
    Role,
    Seed,
    StopText,
    StopTexts,
    Temperature,
    TopK,
    TopP,
)

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionRequest",
    "Delta",
    "Logprobs",
    "Model",
    "ModelList",
    "OpenAIErrorBody",
    "OpenAIErrorDetail",
    "OpenAITurn",
    "SamplingRequest",
    "StreamOptions",
    "TextLogprobs",
    "TextPart",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]


class TextPart(msgspec.Struct):
    """A part of a message; only text is supported."""

    type: Annotated[Literal["text"], Meta(description="kind of the part")]
    text: Annotated[str, Meta(description="text of the part; parts are joined")]


class OpenAITurn(msgspec.Struct):
    """One turn of a conversation."""

    role: Role
    content: Annotated[
        str | list[TextPart] | None,
        Meta(description="text of the message; null, for the assistant, is an empty one"),
    ] = None


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: (
        Annotated[bool, Meta(description="end with an event that has the numbers of tokens")] | None
    ) = None


class SamplingRequest(msgspec.Struct, kw_only=True):
    """Fields of both kinds of requests; null counts as absent."""

    model: ModelName | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    n: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=MAX_SAMPLES,
                description="number of texts for each prompt; text i has seed + i",
            ),
        ]
        | None
    ) = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    stream: Annotated[bool, Meta(description="send events while the text grows")] | None = None
    stream_options: Annotated[
        StreamOptions | None, Meta(description="of a stream: include_usage")
    ] = None


class ChatCompletionRequest(SamplingRequest, kw_only=True):
    """A request for the assistant's next turn."""

    messages: Annotated[list[OpenAITurn], MESSAGES]
    max_completion_tokens: MaxTokens | None = None
    logprobs: Annotated[bool, Meta(description="list the log-probability of each token")] | None = (
        None
    )
    top_logprobs: (
        Annotated[
            int,
            Meta(ge=0, le=20, description="number of most likely tokens to list for each token"),
        ]
        | None
    ) = None


class CompletionRequest(SamplingRequest, kw_only=True):
    """A request for the continuation of one text or several, given as text or as token ids."""

    prompt: Annotated[
        str | list[str | int | list[int]] | None,
        Meta(description="a text, texts, token ids, or a list of token ids for each text"),
    ] = None
    max_tokens: (
        Annotated[
            int,
            Meta(ge=0, le=MAX_SEED, description=f"{MAX_TOKENS} 0 generates nothing, for `echo`."),
        ]
        | None
    ) = None
    echo: Annotated[bool, Meta(description="begin each text with its prompt")] | None = None
    logprobs: (
        Annotated[
            int,
            Meta(ge=0, le=20, description="number of most likely tokens to list for each token"),
        ]
        | bool
        | None
    ) = None


class Usage(msgspec.Struct):
    """Numbers of tokens of the prompt and of the generated texts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The chosen token, and the most likely ones."""

    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    """Log-probabilities of each token of a reply."""

    content: list[TokenLogprob]


class AssistantMessage(msgspec.Struct):
    """The assistant's turn."""

    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(msgspec.Struct):
    """One of n replies."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct):
    """A response with n replies."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, omit_defaults=True):
    """Text that a chunk adds to a reply."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct):
    """One of n replies in a chunk."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: Logprobs | None = None


class ChatCompletionChunk(msgspec.Struct, omit_defaults=True):
    """A chunk of a streamed response."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str = ""
    usage: Usage | None = None


class TextLogprobs(msgspec.Struct):
    """The tokens of a text: log-probabilities, most likely tokens, offsets in characters.

    The first token of a text has no log-probability if no token precedes it. The token that ends a
    text is listed, too.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One of the texts, or a piece of it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: TextLogprobs | None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """A response with n texts per prompt, or a chunk of a stream of them."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = ""
    usage: Usage | None = None


class Model(msgspec.Struct):
    """A served model."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "microgpt"


class ModelList(msgspec.Struct):
    """The served models, the default first."""

    data: list[Model]
    object: Literal["list"] = "list"


class OpenAIErrorDetail(msgspec.Struct):
    """The reason why a request failed: message, kind, invalid field, identifier."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIErrorBody(msgspec.Struct):
    """The reason why a request failed."""

    error: OpenAIErrorDetail
