"""Documents and vocabularies in few words, for display."""

from itertools import groupby

from microgpt.data import BaseTokenizer
from microgpt.parameters import IntArray

__all__ = ["excerpt", "vocabulary_of"]

MAX_TOKENS, MAX_CHARS = 60, 80  # of an excerpt, of a list of characters


def vocabulary_of(tokenizer: BaseTokenizer) -> str:
    """Return the size of a vocabulary and its characters."""
    if not tokenizer.chars:
        return f"{tokenizer.vocab_size:,} tokens: subwords"
    return f"{tokenizer.vocab_size:,} tokens: {_cut(''.join(tokenizer.chars), MAX_CHARS)}"


def excerpt(token_ids: IntArray, tokenizer: BaseTokenizer) -> str:
    """Return the beginning of a document; the roles of a conversation stand in brackets."""
    parts = []
    shown, rest = token_ids[:MAX_TOKENS], token_ids[MAX_TOKENS:]
    for is_special, run in groupby(shown.tolist(), lambda token_id: token_id >= tokenizer.n_plain):
        if is_special:
            names = [tokenizer.token_text(token_id) for token_id in run]
            parts += [f" [{name}] " for name in names if name not in ("end_turn", "bos")]
        else:
            parts.append(tokenizer.decode(run))
    return "".join(parts).strip() + " …" * bool((rest != tokenizer.bos).any())


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + " …"
