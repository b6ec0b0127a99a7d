"""The table of routes, from which the router and `/openapi.json` are made."""

from microgpt_serve.api.chats import complete_chat
from microgpt_serve.api.completions import complete_text
from microgpt_serve.api.docs import docs, openapi
from microgpt_serve.api.endpoint import Endpoint
from microgpt_serve.api.health import live, readiness, show_metrics
from microgpt_serve.api.microgpt import chat, describe_model, generate, show_next_tokens, trace
from microgpt_serve.api.models import list_models, show_model
from microgpt_serve.api.openai_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Model,
    ModelList,
)
from microgpt_serve.api.page import page, static
from microgpt_serve.api.schemas import (
    ChatReplyBody,
    ChatRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    GenerateRequest,
    GenerateResponse,
    ModelInfo,
    NextRequest,
    NextResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
    TraceRequest,
    TraceResponse,
)
from microgpt_serve.api.tokens import detokenize, show_tokenizer, tokenize

__all__ = ["ENDPOINTS"]

HELLO = [{"role": "user", "content": "hello"}]

ENDPOINTS = (  # in the order of the documentation
    Endpoint(
        "POST",
        "/microgpt/v1/generate",
        generate,
        "Generate documents",
        body=GenerateRequest,
        example={"num_samples": 3, "temperature": 0.5, "seed": 42},
        response=GenerateResponse,
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/microgpt/v1/chat",
        chat,
        "Chat",
        body=ChatRequest,
        example={"messages": HELLO, "temperature": 0.5},
        response=ChatReplyBody,
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/microgpt/v1/next",
        show_next_tokens,
        "Show next tokens",
        body=NextRequest,
        example={"prompt": ""},
        response=NextResponse,
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/microgpt/v1/trace",
        trace,
        "Trace a text",
        body=TraceRequest,
        example={"prompt": ""},
        response=TraceResponse,
        errors=(404,),
    ),
    Endpoint(
        "GET",
        "/microgpt/v1/model",
        describe_model,
        "Describe the model",
        query=("model",),
        response=ModelInfo,
        errors=(404, 503),
    ),
    Endpoint("GET", "/v1/models", list_models, "List models", response=ModelList),
    Endpoint(
        "GET", "/v1/models/{model}", show_model, "Show a model", response=Model, errors=(404,)
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        complete_chat,
        "Complete a chat",
        body=ChatCompletionRequest,
        example={"messages": HELLO, "max_tokens": 20},
        response=ChatCompletion,
        stream=ChatCompletionChunk,
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        complete_text,
        "Complete a text",
        body=CompletionRequest,
        example={"prompt": "", "max_tokens": 20, "n": 2},
        response=Completion,
        stream=Completion,
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/tokenize",
        tokenize,
        "Tokenize",
        body=TokenizeRequest,
        example={"prompt": ""},
        response=TokenizeResponse,
        errors=(404,),
    ),
    Endpoint(
        "POST",
        "/detokenize",
        detokenize,
        "Detokenize",
        body=DetokenizeRequest,
        example={"tokens": [0, 1, 2]},
        response=DetokenizeResponse,
        errors=(404,),
    ),
    Endpoint(
        "GET",
        "/tokenizer_info",
        show_tokenizer,
        "Describe the tokenizer",
        query=("model",),
        response=TokenizerInfo,
        errors=(404, 503),
    ),
    Endpoint("GET", "/livez", live, "Show life", is_probe=True),
    Endpoint("GET", "/readyz", readiness, "Show readiness", errors=(503,), is_probe=True),
    Endpoint("GET", "/health", live, "Show health", is_probe=True),
    Endpoint("GET", "/metrics", show_metrics, "Show metrics", enabled_by=("metrics",)),
    Endpoint("GET", "/openapi.json", openapi, enabled_by=("docs",)),
    Endpoint("GET", "/docs", docs, enabled_by=("docs",)),
    Endpoint("GET", "/", page, is_open=True, enabled_by=("page",)),
    Endpoint("GET", "/static/{name}", static, is_open=True, enabled_by=("docs", "page")),
)
