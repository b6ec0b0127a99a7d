"""The routes under `/microgpt/v1`."""

import math
from contextlib import aclosing
from operator import attrgetter

import msgspec
from microgpt import LanguageModel
from starlette.requests import Request

from microgpt_serve.api.generation import (
    Generation,
    log_softmax,
    read_prompt,
    sampling_config,
    served_model,
    start_generation,
)
from microgpt_serve.api.http import cancel_on_disconnect
from microgpt_serve.api.schemas import (
    MAX_SAMPLES,
    ChatReplyBody,
    ChatRequest,
    GenerateRequest,
    GenerateResponse,
    ModelInfo,
    NextRequest,
    NextResponse,
    NextToken,
    TraceRequest,
    TraceResponse,
)

__all__ = ["chat", "describe_model", "generate", "show_next_tokens", "trace"]

# Multiplications, at most a quarter of a millisecond. The event loop itself generates texts that
# take no longer: a thread that returns from the engine waits until the event loop releases the
# interpreter lock, and the event loop waits for the thread, which halves the requests per second.
INLINE_WORK = 250_000
MAX_FIGURES = 8_000_000  # of a trace: 64 MB in memory, and as JSON at most that


async def generate(request: Request, body: GenerateRequest) -> GenerateResponse:
    """Generate documents."""
    pool = request.app.state.pool
    served = served_model(request, body.model)
    n_samples = min(body.num_samples, MAX_SAMPLES)
    prompt = await read_prompt(request, served.model, body.prompt)
    generation = start_generation(request, served, [prompt], sampling_config(body), n_samples)
    if _is_quick(generation):
        samples = pool.run_inline(generation.documents)
    else:
        samples = await cancel_on_disconnect(request, pool.run(generation.documents))
    max_tokens = generation.config.max_tokens
    return GenerateResponse(
        samples,
        MAX_SAMPLES if body.num_samples > MAX_SAMPLES else None,
        max_tokens if max_tokens != body.max_tokens else None,
    )


def _is_quick(generation: Generation) -> bool:
    model = generation.model
    n_tokens = max(model.config.block_size, generation.config.max_tokens or 0)
    n_multiplications = model.config.n_params * n_tokens * generation.n
    return model.engine.name == "native" and n_multiplications <= INLINE_WORK


async def chat(request: Request, body: ChatRequest) -> ChatReplyBody:
    """Generate the assistant's next turn."""
    served = served_model(request, body.model)
    prompt = await read_prompt(request, served.model, body.messages)
    generation = start_generation(request, served, [prompt], sampling_config(body))
    async with aclosing(generation.grown()) as texts:
        text = await cancel_on_disconnect(request, texts.__anext__())
    return ChatReplyBody(
        "assistant",
        text.piece,
        text.finish_reason or "stop",
        prompt.tokens_dropped,
        prompt.system_dropped,
        prompt.unknown,
    )


async def show_next_tokens(request: Request, body: NextRequest) -> NextResponse:
    """Return the probability of every next token."""
    state = request.app.state
    model = served_model(request, body.model).model
    source = body.prompt if body.messages is None else body.messages
    prompt = await read_prompt(request, model, source)
    work = state.pool.run(lambda _: model.logits(prompt.token_ids)[-1].tolist())
    log_probabilities = log_softmax(await cancel_on_disconnect(request, work))
    tokenizer = model.tokenizer
    tokens = [
        NextToken(tokenizer.token_text(i), math.exp(log_probability), i >= tokenizer.n_plain)
        for i, log_probability in enumerate(log_probabilities)
    ]
    tokens.sort(key=attrgetter("probability"), reverse=True)
    return NextResponse(tokens, prompt.tokens_dropped, prompt.system_dropped, prompt.unknown)


async def trace(request: Request, body: TraceRequest) -> TraceResponse:
    """Return what the model computes while it reads a text or a conversation."""
    state = request.app.state
    model = served_model(request, body.model).model
    work = state.pool.run(lambda _: _traced(model, body))
    return await cancel_on_disconnect(request, work)


def _traced(model: LanguageModel, body: TraceRequest) -> TraceResponse:
    source = body.prompt if body.messages is None else msgspec.to_builtins(body.messages)
    traced = model.trace(
        source, unknown="error" if body.messages is None else "skip", max_figures=MAX_FIGURES
    )
    content = traced.to_json(body.top, attention=body.attention)
    answer = msgspec.json.decode(content, type=TraceResponse)
    for name in ("tokens_dropped", "system_dropped", "unknown"):
        setattr(answer, name, getattr(traced.prompt, name))
    return answer


async def describe_model(request: Request) -> ModelInfo:
    """Return name, vocabulary and sizes of a model, by default the first."""
    served = served_model(request, request.query_params.get("model"))
    model = served.model
    config = model.config
    return ModelInfo(
        id=served.id,
        is_chat=model.tokenizer.is_chat,
        has_system=model.tokenizer.has_system,
        vocab_size=config.vocab_size,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
        block_size=config.block_size,
        n_params=config.n_params,
        chars="".join(model.tokenizer.chars),
    )
