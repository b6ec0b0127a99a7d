"""Types of requests and responses: msgspec checks them, and `/openapi.json` describes them."""

from typing import Annotated, Any, Literal

import msgspec
from microgpt import SamplingConfig
from msgspec import Meta

__all__ = [
    "MAX_SAMPLES",
    "AssistantMessage",
    "ChatChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatReplyBody",
    "ChatRequest",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionRequest",
    "Delta",
    "ErrorBody",
    "GenerateRequest",
    "GenerateResponse",
    "Logprobs",
    "Model",
    "ModelInfo",
    "ModelList",
    "NextRequest",
    "NextResponse",
    "NextToken",
    "OpenAIErrorBody",
    "OpenAIErrorDetail",
    "OpenAITurn",
    "SamplingRequest",
    "StreamOptions",
    "TextPart",
    "TokenLogprob",
    "TopLogprob",
    "Turn",
    "Usage",
]

MAX_SAMPLES = 50
MAX_SEED = 2**63 - 1

Temperature = Annotated[
    float,
    Meta(ge=0, le=1e6, description="0 for the most likely token; higher is more random"),
]
Seed = Annotated[int, Meta(ge=0, le=MAX_SEED, description="seed of the random draws")]
MaxTokens = Annotated[
    int,
    Meta(
        ge=1,
        le=MAX_SEED,
        description="maximum number of tokens, beyond the model's block too; without it, a text "
        "ends at the block. The service has a limit of its own.",
    ),
]
TopK = Annotated[
    int, Meta(ge=1, le=MAX_SEED, description="sample from the k most likely tokens only")
]
TopP = Annotated[
    float,
    Meta(
        gt=0,
        le=1,
        description="sample from the most likely tokens that together have this probability",
    ),
]
StopText = Annotated[str, Meta(min_length=1, max_length=1000)]
StopTexts = Annotated[
    list[StopText], Meta(max_length=4, description="texts before which the reply is cut")
]
# The library checks roles and empty lists; its messages name what was received.
Role = Annotated[
    str, Meta(extra_json_schema={"enum": ["user", "assistant", "system", "developer"]})
]
AT_LEAST_ONE = Meta(extra_json_schema={"minItems": 1})


# ---------------------------------------------------------------- /microgpt/v1


class _SamplingOptions(msgspec.Struct, kw_only=True):
    temperature: Temperature = SamplingConfig.temperature
    seed: Seed = SamplingConfig.seed
    max_tokens: MaxTokens | None = None
    top_k: TopK | None = None
    top_p: TopP = SamplingConfig.top_p
    stop: StopText | StopTexts | None = None


class GenerateRequest(_SamplingOptions, kw_only=True):
    """A request for new documents."""

    num_samples: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_SEED,
            description=f"number of documents; at most {MAX_SAMPLES} are returned",
        ),
    ] = 1
    prompt: Annotated[str, Meta(description="beginning of every document")] = ""


class GenerateResponse(msgspec.Struct, omit_defaults=True):
    """New documents."""

    samples: list[str]
    num_samples_capped_at: int | None = None
    max_tokens_capped_at: int | None = None


class Turn(msgspec.Struct):
    """One turn of a conversation."""

    role: Role
    content: str


class ChatRequest(_SamplingOptions, kw_only=True):
    """A request for the assistant's next turn."""

    messages: Annotated[list[Turn], AT_LEAST_ONE]


class ChatReplyBody(msgspec.Struct, omit_defaults=True):
    """The assistant's turn; `system_dropped` where the model does not know the system's message."""

    role: Literal["assistant"]
    content: str
    finish_reason: Literal["stop", "length"]
    tokens_dropped: int
    system_dropped: bool = False


class NextRequest(msgspec.Struct):
    """A request for the next token's distribution, after a prompt or, for chat models, messages."""

    prompt: str = ""
    messages: Annotated[list[Turn], AT_LEAST_ONE] | None = None


class NextToken(msgspec.Struct):
    """A token and its probability."""

    token: str
    probability: float
    is_special: bool = False


class NextResponse(msgspec.Struct):
    """Every token of the vocabulary, the most likely first."""

    tokens: list[NextToken]


class ModelInfo(msgspec.Struct):
    """The served model: name, vocabulary and sizes."""

    id: str
    is_chat: bool
    vocab_size: int
    n_embd: int
    n_head: int
    n_layer: int
    block_size: int
    n_params: int
    chars: str


class ErrorBody(msgspec.Struct):
    """The reason why a request failed."""

    error: str


# ---------------------------------------------------------------- /v1, as OpenAI's clients expect


class TextPart(msgspec.Struct):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class OpenAITurn(msgspec.Struct):
    """One turn of a conversation."""

    role: Role
    content: str | list[TextPart]


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool | None = None


class SamplingRequest(msgspec.Struct, kw_only=True):
    """Fields of both kinds of requests; null counts as absent."""

    model: str | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] | None = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatCompletionRequest(SamplingRequest, kw_only=True):
    """A request for the assistant's next turn."""

    messages: Annotated[list[OpenAITurn], AT_LEAST_ONE]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionRequest(SamplingRequest, kw_only=True):
    """A request for the continuation of a text."""

    prompt: str | None = None
    logprobs: Any = None


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


class CompletionChoice(msgspec.Struct):
    """One of n texts, or a piece of it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """A response with n texts, or a chunk of a stream of them."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = ""
    usage: Usage | None = None


class Model(msgspec.Struct):
    """The served model."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "microgpt"


class ModelList(msgspec.Struct):
    """The list of served models, of length one."""

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
