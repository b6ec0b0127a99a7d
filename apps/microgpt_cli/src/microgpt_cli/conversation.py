"""A conversation with a model: what was said, how replies are drawn, and the `/` commands."""

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import microgpt

from microgpt_cli.errors import translated
from microgpt_cli.writing import write_whole

__all__ = ["HELP", "Session", "Settings"]

HELP = """\
/clear          forget what was said
/regen          reply again, with other draws
/save FILE      write the conversation as one line of JSON
/set            show the settings
/set NAME VALUE change one, for instance /set temperature 0.8
/help           show this
/quit           leave (so does Ctrl-D)
Text over several lines stands between two lines that begin and end with \"\"\".
Ctrl-C stops a reply; at the prompt it clears the line, and twice it leaves."""


@dataclass
class Settings:
    """How replies are drawn; see `LanguageModel.chat`."""

    temperature: float = 0.5
    top_k: int | None = None
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    seed: int = 42

    def change(self, name: str, text: str) -> None:
        """Set one from what a user typed.

        Raises:
            ConfigError: there is no such setting, or the text is not in its domain.
        """
        parsers: dict[str, Callable[[str], Any]] = {
            "temperature": float,
            "top_k": lambda text: None if text == "none" else int(text),
            "top_p": float,
            "max_tokens": lambda text: None if text == "none" else int(text),
            "stop": lambda text: [] if text in {"", "none"} else [text],  # as it is shown
            "seed": int,
        }
        if name not in parsers:
            raise microgpt.ConfigError(f"no setting {name!r}, expected one of {', '.join(parsers)}")
        try:
            value = parsers[name](text)
        except ValueError as error:
            raise microgpt.ConfigError(f"{name} is {text!r}, expected a number") from error
        if name in {"temperature", "top_k", "top_p"}:
            microgpt.SamplingConfig(**{name: value})  # which checks it
        if name in {"max_tokens", "seed"} and value is not None and value < (name != "seed"):
            raise microgpt.ConfigError(
                f"{name} is {value}, expected at least {int(name != 'seed')}"
            )
        setattr(self, name, value)

    def __str__(self) -> str:
        """Return a line for each."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return "\n".join(
            f"{name:<12}{'none' if value in (None, []) else value}"
            for name, value in values.items()
        )


class Session:
    """One conversation.

    Args:
        model: a chat model.
        settings: how it replies; reply k is drawn with seed + k.
    """

    def __init__(self, model: microgpt.LanguageModel, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.messages: list[microgpt.Message] = []
        self.n_replies = 0
        self._saved: set[Path] = set()

    def ask(self, text: str) -> int:
        """Add what the user says; return how many of its characters the model does not know."""
        tokenizer = self.model.tokenizer
        known = tokenizer.decode(tokenizer.encode(text, unknown="skip"))
        self.messages.append({"role": "user", "content": known})
        return len(text) - len(known)

    def reply(self) -> microgpt.TextStream:
        """Return the next reply as it comes; `keep` it afterwards."""
        settings = self.settings
        stream = self.model.stream_chat(
            self.messages,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            seed=settings.seed + self.n_replies,
            too_long="truncate",
        )
        self.n_replies += 1
        return stream

    def keep(self, content: str) -> None:
        """Add what the assistant said."""
        self.messages.append({"role": "assistant", "content": content})

    def take_back(self) -> bool:
        """Remove the latest reply; return whether there is something to reply to."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            del self.messages[-1]
        return bool(self.messages)

    def clear(self) -> None:
        """Forget everything that was said."""
        self.messages.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as one line of JSON, as training reads it.

        Raises:
            MicrogptError: the file exists and is not of this session, or cannot be written.
        """
        line = json.dumps(self.messages, ensure_ascii=False) + "\n"
        with translated(f"cannot write {path}"):
            if path.exists() and path.absolute() not in self._saved:
                raise FileExistsError(errno.EEXIST, "it exists already; name another file")
        write_whole(path, line.encode("utf-8", "surrogatepass"))
        self._saved.add(path.absolute())
