"""Types of requests and responses: msgspec checks them, and `/openapi.json` describes them.

Those under `/v1` are in `openai_schemas`.
"""

from typing import Annotated, Literal

import msgspec
from microgpt import SamplingConfig
from msgspec import Meta

__all__ = [
    "MAX_SAMPLES",
    "MAX_SEED",
    "MAX_TOKENS",
    "MESSAGES",
    "ChatReplyBody",
    "ChatRequest",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "ErrorBody",
    "GenerateRequest",
    "GenerateResponse",
    "MaxTokens",
    "ModelInfo",
    "ModelName",
    "NextRequest",
    "NextResponse",
    "NextToken",
    "Role",
    "Seed",
    "StopText",
    "StopTexts",
    "Temperature",
    "TokenizeRequest",
    "TokenizeResponse",
    "TokenizerInfo",
    "TopK",
    "TopP",
    "TraceRequest",
    "TraceResponse",
    "TracedToken",
    "Turn",
]

MAX_SAMPLES = 50
MAX_SEED = 2**63 - 1

Temperature = Annotated[
    float,
    Meta(ge=0, le=1e6, description="0 for the most likely token; higher is more random"),
]
ModelName = Annotated[str, Meta(description="name of a served model; by default the first")]
Seed = Annotated[
    int, Meta(ge=-1, le=MAX_SEED, description="seed of the random draws; -1 for a random one")
]
MAX_TOKENS = (
    "maximum number of tokens, beyond the model's block too; without it, a text ends at the block. "
    "The service has a limit of its own."
)
MaxTokens = Annotated[int, Meta(ge=1, le=MAX_SEED, description=MAX_TOKENS)]
TopK = Annotated[
    int,
    Meta(
        ge=-1,
        le=MAX_SEED,
        description="sample from the k most likely tokens only; 0 or -1 for all",
    ),
]
TopP = Annotated[
    float,
    Meta(
        ge=0,
        le=1,
        description="sample from the most likely tokens that together have this probability; "
        "0 for the most likely token",
    ),
]
StopText = Annotated[str, Meta(max_length=1000)]
StopTexts = Annotated[
    list[StopText],
    Meta(max_length=16, description="texts before which the reply is cut; an empty one is ignored"),
]
# The library checks roles and empty lists; its messages name what was received.
Role = Annotated[
    str,
    Meta(
        description="who speaks; developer is another name of system",
        extra_json_schema={"enum": ["user", "assistant", "system", "developer"]},
    ),
]
MESSAGES = Meta(
    description="a conversation: messages with role and content, at least one",
    extra_json_schema={"minItems": 1},
)
Source = Annotated[str, Meta(description="text to read, in place of messages")]
ATTENTION = {  # sent as the library encodes it: it may be a million numbers
    "type": ["array", "null"],
    "items": {
        "type": "array",
        "items": {
            "type": "array",
            "items": {"type": "array", "items": {"type": ["number", "null"]}},
        },
    },
}


# ---------------------------------------------------------------- /microgpt/v1


class _SamplingOptions(msgspec.Struct, kw_only=True):
    model: ModelName | None = None
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
    content: Annotated[str, Meta(description="text of the message")]


class ChatRequest(_SamplingOptions, kw_only=True):
    """A request for the assistant's next turn."""

    messages: Annotated[list[Turn], MESSAGES]


class ChatReplyBody(msgspec.Struct, omit_defaults=True):
    """The assistant's turn, and what the model did not read.

    Tokens of the oldest turns that did not fit; whether the message of the system was dropped; the
    distinct characters that the model does not know.
    """

    role: Literal["assistant"]
    content: str
    finish_reason: Literal["stop", "length"]
    tokens_dropped: int
    system_dropped: bool = False
    unknown: str = ""


class NextRequest(msgspec.Struct):
    """A request for the next token's distribution, after a prompt or, for chat models, messages."""

    prompt: Source = ""
    messages: Annotated[list[Turn], MESSAGES] | None = None
    model: ModelName | None = None


class NextToken(msgspec.Struct):
    """A token and its probability."""

    token: str
    probability: float
    is_special: bool = False


class NextResponse(msgspec.Struct, omit_defaults=True):
    """Every token of the vocabulary, the most likely first; see `ChatReplyBody` for the others."""

    tokens: list[NextToken]
    tokens_dropped: int = 0
    system_dropped: bool = False
    unknown: str = ""


class TraceRequest(msgspec.Struct):
    """A request to look inside while the model reads a prompt or, for chat models, messages."""

    prompt: Source = ""
    messages: Annotated[list[Turn], MESSAGES] | None = None
    top: Annotated[int, Meta(ge=1, le=100, description="number of likeliest next tokens")] = 10
    attention: Annotated[bool, Meta(description="whether to return attention, most of a trace")] = (
        True
    )
    model: ModelName | None = None


class TracedToken(msgspec.Struct, omit_defaults=True):
    """A token of a trace; `special` if it stands for no text; a next token has a probability."""

    id: int
    text: str
    special: bool = False
    probability: float | None = None


class TraceResponse(msgspec.Struct, omit_defaults=True):
    """The trace of a text, with nats of each token; a figure that is not finite is null.

    After each token: the likeliest next tokens (`next`), and the likeliest next token by each stage
    of the residual stream (`lens`). Root mean squares of the stages, and of each block's output;
    the share of active hidden units. For each block, head and token: its attention to the tokens up
    to itself. See `ChatReplyBody` for the other fields.
    """

    tokens: list[TracedToken]
    loss: float | None
    surprise: list[float | None]
    next: list[list[TracedToken]]
    lens: list[list[TracedToken]]
    residual: list[list[float | None]]
    from_attn: list[list[float | None]]
    from_mlp: list[list[float | None]]
    active: list[list[float | None]]
    attention: Annotated[msgspec.Raw, Meta(extra_json_schema=ATTENTION)] = msgspec.field(
        default_factory=lambda: msgspec.Raw(b"null")
    )
    tokens_dropped: int = 0
    system_dropped: bool = False
    unknown: str = ""


class ModelInfo(msgspec.Struct):
    """A served model: name, vocabulary and sizes."""

    id: str
    is_chat: bool
    has_system: Annotated[bool, Meta(description="whether it reads messages of the system")]
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


# ---------------------------------------------------------------- /tokenize, as harnesses expect


class TokenizeRequest(msgspec.Struct):
    """A text to encode."""

    prompt: Annotated[
        str, Meta(description='the text; the name of a special token, as "<|bos|>", is this token')
    ]
    add_special_tokens: Annotated[bool, Meta(description="put BOS in front")] = True
    model: ModelName | None = None


class TokenizeResponse(msgspec.Struct, omit_defaults=True):
    """Token ids of a text, without the distinct characters in `unknown`."""

    tokens: list[int]
    count: int
    max_model_len: int
    unknown: str = ""


class DetokenizeRequest(msgspec.Struct):
    """Token ids to decode."""

    tokens: Annotated[list[int], Meta(description="the token ids")]
    model: ModelName | None = None


class DetokenizeResponse(msgspec.Struct):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(msgspec.Struct):
    """Kind and special tokens of a tokenizer; BOS marks beginning and end of a text."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str
    eos_token: str
