"""Texts and token ids: the routes that evaluation harnesses ask, and prompts of completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from microgpt import BaseTokenizer, ContextLengthError, LanguageModel, Prompt
from starlette.requests import Request

from microgpt_serve.api.generation import read_prompt, served_model
from microgpt_serve.api.schemas import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)

__all__ = ["Source", "detokenize", "name_of", "read_source", "show_tokenizer", "tokenize"]


def name_of(token_id: int, tokenizer: BaseTokenizer) -> str:
    """Return the text of a token, and of a special token its name, such as "<|bos|>"."""
    text = tokenizer.token_text(token_id)
    return text if token_id < tokenizer.n_plain else f"<|{text}|>"


# ---------------------------------------------------------------- prompts of completions


@dataclass(frozen=True)
class Source:
    """A prompt as it was sent.

    Args:
        text: the prompt as text.
        token_ids: its tokens, with BOS in front unless the model reads none.
        n_hidden: 1 if this BOS was not sent, else 0.
        is_named: whether it was sent by name, as the beginning of a text.
        prompt: the tokens that a text continues: all of them, or those of the block.
    """

    text: str
    token_ids: list[int]
    n_hidden: int
    is_named: bool
    prompt: Prompt


async def read_source(
    request: Request, model: LanguageModel, given: str | Sequence[int], *, is_echo: bool
) -> Source:
    """Return a prompt given as text, which may begin with the name of BOS, or as token ids.

    Args:
        request: for long texts.
        model: of the prompt.
        given: the prompt.
        is_echo: accept one token more than the block has: the last one need not be read.

    Raises:
        MicrogptError: a character or token id is unknown, or there are too many tokens.
    """
    tokenizer, block_size = model.tokenizer, model.config.block_size
    bos = tokenizer.bos
    if isinstance(given, str):
        plain = given.removeprefix(name_of(bos, tokenizer))
        prompt = await read_prompt(request, model, plain)
        has_bos, text = plain != given, given
        ids = prompt.token_ids
        if has_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
    else:
        prompt, text = model.prompt(""), tokenizer.decode(given)
        has_bos = given[:1] == [bos]
        needs_bos = not (has_bos or (given and model.windows))
        ids = [*prompt.token_ids, *given] if needs_bos else list(given)
    read, longest = ids, block_size + is_echo
    if len(ids) > longest:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, BOS included, expected at most {longest} "
            f"of block_size={block_size}; send parts of the text"
        )
    if len(ids) > block_size:
        n_first = len(prompt.first)
        read = [*prompt.first, *ids[n_first + 1 :]]
    n_hidden = int(ids[:1] == [bos] and not has_bos)
    is_named = has_bos and isinstance(given, str)
    return Source(text, ids, n_hidden, is_named, replace(prompt, token_ids=read))


# ---------------------------------------------------------------- routes


async def tokenize(request: Request, body: TokenizeRequest) -> TokenizeResponse:
    """Return the token ids of a text."""
    model = served_model(request, body.model).model
    tokenizer = model.tokenizer
    special = {name_of(i, tokenizer): i for i in range(tokenizer.n_plain, tokenizer.vocab_size)}
    if body.prompt in special:
        ids, unknown = [special[body.prompt]], ""
    else:
        prompt = await read_prompt(request, model, body.prompt, unknown="skip")
        ids, unknown = [each for each in prompt.token_ids if each != tokenizer.bos], prompt.unknown
        if body.add_special_tokens and not model.windows:
            ids = [tokenizer.bos, *ids]
    return TokenizeResponse(ids, len(ids), model.config.block_size, unknown)


async def detokenize(request: Request, body: DetokenizeRequest) -> DetokenizeResponse:
    """Return the text of token ids; special tokens appear as their names."""
    tokenizer = served_model(request, body.model).model.tokenizer
    parts = groupby(body.tokens, lambda token_id: token_id >= tokenizer.n_plain)
    return DetokenizeResponse(
        "".join(
            "".join(name_of(each, tokenizer) for each in ids)
            if is_special
            else tokenizer.decode(ids)
            for is_special, ids in parts
        )
    )


async def show_tokenizer(request: Request) -> TokenizerInfo:
    """Return kind and special tokens of a model's tokenizer, by default of the first model."""
    model = served_model(request, request.query_params.get("model")).model
    tokenizer = model.tokenizer
    bos = name_of(tokenizer.bos, tokenizer)
    return TokenizerInfo(type(tokenizer).__name__, tokenizer.vocab_size, bos, bos)
