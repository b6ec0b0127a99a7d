"""A page of a trace: one file, without requests."""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

import microgpt

from microgpt_cli.explaining import looks_at, named

__all__ = ["page_of"]

MOST_CELLS = 6_000_000  # of all heads: a page of some 8 MB
N_NEXT = 10  # next tokens in the picture
TEMPERATURES = [step / 10 for step in range(1, 21)]  # of the slider, which begins with 0


def page_of(trace: microgpt.Trace) -> str:
    """Return the page as HTML; its policy lets it run and load nothing but what it holds.

    Raises:
        ConfigError: the text and the model are too large for a page.
    """
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    content = json.dumps(_content(trace), separators=(",", ":")).replace("<", r"\u003c")
    page = _file("page.html").replace("@POLICY@", policy).replace("@STYLE@", style)
    return page.replace("@SCRIPT@", script).replace("@DATA@", content)


def _file(name: str) -> str:
    return (files("microgpt_cli") / "page_files" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _content(trace: microgpt.Trace) -> dict[str, Any]:
    """Return what the script of the page shows."""
    n_layer, n_head, n_tokens, _ = trace.attention.shape
    n_cells = n_layer * n_head * n_tokens * (n_tokens + 1) // 2
    if n_cells > MOST_CELLS:
        raise microgpt.ConfigError(
            f"{n_tokens} tokens of {n_layer * n_head} heads make {n_cells:,} cells of attention, "
            f"expected at most {MOST_CELLS:,} for a page; shorten the text, or use --json"
        )
    figures = json.loads(trace.to_json(N_NEXT, attention=False))
    heads = [(i, j) for i in range(n_layer) for j in range(n_head)]
    logits = trace.logits
    return {
        "about": repr(trace)[1:-1].removeprefix("Trace: "),
        "tokens": [named(token) for token in figures["tokens"]],
        "ids": [token["id"] for token in figures["tokens"]],
        "special": ["special" in token for token in figures["tokens"]],
        "surprise": figures["surprise"],
        "heads": [
            {"title": f"block {i + 1}, head {j + 1}", "about": looks_at(trace.attention[i, j])}
            for i, j in heads
        ],
        "attention": base64.b64encode(
            b"".join(_bytes_of(trace.attention[i, j]) for i, j in heads)
        ).decode(),
        # After each token: the likeliest next tokens, the distance of their logits from the
        # largest, and the largest probability at each temperature.
        "next": [
            [
                (
                    named(each),
                    _finite(logits.item(t, each["id"]) - logits.item(t, row[0]["id"])),
                    each["id"],
                )
                for each in row
            ]
            for t, row in enumerate(figures["next"])
        ],
        "best": [
            [_finite(p) for p in row]
            for row in zip(
                *(trace.probs(degrees).max(axis=1).tolist() for degrees in TEMPERATURES),
                strict=True,
            )
        ],
        "lens": [
            [(named(each), each["probability"]) for each in stage] for stage in figures["lens"]
        ],
    }


def _bytes_of(head: Any) -> bytes:
    """Return the rows of a lower triangle one after another, a byte from 0 to 255 per cell."""
    scaled = (255 * head).round()
    scaled[scaled != scaled] = 0  # noqa: PLR0124 - NaN, of weights that are too large
    return b"".join(row[: i + 1].tobytes() for i, row in enumerate(scaled.astype("uint8")))


def _finite(figure: float) -> float | None:
    """Return a figure rounded for JSON; None for one that is no finite number."""
    return round(float(figure), 5) if abs(figure) < float("inf") else None
