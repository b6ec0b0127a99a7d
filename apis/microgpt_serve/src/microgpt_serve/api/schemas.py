"""What requests and responses hold; checked by msgspec, and the source of `/openapi.json`."""

from typing import Annotated, Any, Literal

import msgspec

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
    float, msgspec.Meta(ge=0, le=1e6, description="0 for the likeliest; higher is more surprising")
]
Seed = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED, description="of the draws")]
MaxTokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_SEED, description="longest text")]
TopK = Annotated[int, msgspec.Meta(ge=1, le=MAX_SEED, description="keep the k likeliest only")]
TopP = Annotated[
    float, msgspec.Meta(gt=0, le=1, description="keep the likeliest that reach this probability")
]
StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
StopTexts = Annotated[
    list[StopText], msgspec.Meta(max_length=4, description="texts that end the answer")
]
# Checked by the library, which says what is wrong in its own words.
Role = Annotated[str, msgspec.Meta(extra_json_schema={"enum": ["user", "assistant"]})]
AT_LEAST_ONE = msgspec.Meta(extra_json_schema={"minItems": 1})


# ---------------------------------------------------------------- /microgpt/v1


class GenerateRequest(msgspec.Struct):
    """Ask for new documents."""

    num_samples: Annotated[
        int,
        msgspec.Meta(ge=0, le=MAX_SEED, description=f"how many; {MAX_SAMPLES} are given at most"),
    ] = 1
    temperature: Temperature = 0.5
    seed: Seed = 42
    prompt: Annotated[str, msgspec.Meta(description="how every document begins")] = ""
    max_tokens: MaxTokens | None = None
    top_k: TopK | None = None
    top_p: TopP = 1.0
    stop: StopText | StopTexts | None = None


class GenerateResponse(msgspec.Struct, omit_defaults=True):
    """New documents."""

    samples: list[str]
    num_samples_capped_at: int | None = None


class Turn(msgspec.Struct):
    """One turn of a conversation."""

    role: Role
    content: str


class ChatRequest(msgspec.Struct):
    """Ask for the assistant's next turn."""

    messages: Annotated[list[Turn], AT_LEAST_ONE]
    temperature: Temperature = 0.5
    seed: Seed = 42
    max_tokens: MaxTokens | None = None
    top_k: TopK | None = None
    top_p: TopP = 1.0
    stop: StopText | StopTexts | None = None


class ChatReplyBody(msgspec.Struct):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    finish_reason: Literal["stop", "length"]
    tokens_dropped: int


class NextRequest(msgspec.Struct):
    """Ask what comes next, after a prompt or, for chat models, messages."""

    prompt: str = ""
    messages: Annotated[list[Turn], AT_LEAST_ONE] | None = None


class NextToken(msgspec.Struct):
    """A token and how likely it is."""

    token: str
    probability: float
    is_special: bool = False


class NextResponse(msgspec.Struct):
    """Every token, the likeliest first."""

    tokens: list[NextToken]


class ModelInfo(msgspec.Struct):
    """What is served."""

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
    """Why a request failed."""

    error: str


# ---------------------------------------------------------------- /v1, as OpenAI's clients speak


class TextPart(msgspec.Struct):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class OpenAITurn(msgspec.Struct):
    """One turn of a conversation."""

    role: Role
    content: str | list[TextPart]


class StreamOptions(msgspec.Struct):
    """What a stream tells besides text."""

    include_usage: bool | None = None


class SamplingRequest(msgspec.Struct, kw_only=True):
    """What both kinds of requests have; null counts as absent."""

    model: str | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)] | None = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # What follows is refused unless it changes nothing.
    frequency_penalty: Any = None
    logit_bias: Any = None
    presence_penalty: Any = None


class ChatCompletionRequest(SamplingRequest, kw_only=True):
    """Ask for the assistant's next turn."""

    messages: Annotated[list[OpenAITurn], AT_LEAST_ONE]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    function_call: Any = None
    functions: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None


class CompletionRequest(SamplingRequest, kw_only=True):
    """Ask how a text goes on."""

    prompt: str | None = None
    best_of: Any = None
    echo: Any = None
    logprobs: Any = None
    suffix: Any = None


class Usage(msgspec.Struct):
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct):
    """A token and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest ones."""

    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    """Of each token of a reply."""

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
    """Replies."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct):
    """What a chunk adds to one of n replies."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: Logprobs | None = None


class ChatCompletionChunk(msgspec.Struct, omit_defaults=True):
    """A part of a streamed reply."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str = ""
    usage: Usage | None = None


class CompletionChoice(msgspec.Struct):
    """One of n texts, or a part of it."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class Completion(msgspec.Struct, omit_defaults=True):
    """Texts, or parts of them."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = ""
    usage: Usage | None = None


class Model(msgspec.Struct):
    """A model that is served."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "microgpt"


class ModelList(msgspec.Struct):
    """Models that are served: one."""

    data: list[Model]
    object: Literal["list"] = "list"


class OpenAIErrorDetail(msgspec.Struct):
    """Why a request failed."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIErrorBody(msgspec.Struct):
    """Why a request failed."""

    error: OpenAIErrorDetail
