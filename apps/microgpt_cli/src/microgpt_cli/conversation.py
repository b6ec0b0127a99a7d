"""A conversation with a chat model: its messages, its sampling options, and the `/` commands."""

import errno
import json
from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import microgpt

from microgpt_cli.errors import translated

__all__ = ["COMMANDS", "HELP", "Conversation"]

HELP = """\
/clear          start a new conversation
/system TEXT    instruct the assistant; without TEXT, no more
/regen          sample the latest reply again
/save FILE      write the conversation as one line of JSON
/set            show the sampling options
/set NAME VALUE change an option, for example /set temperature 0.8
/help           show these commands
/quit           leave, as Ctrl-D does
A message of several lines begins and ends with \"\"\".
Ctrl-C stops a reply; at the prompt it clears the line, and twice it leaves."""
COMMANDS = tuple(dict.fromkeys(line.split()[0] for line in HELP.splitlines() if line[0] == "/"))


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise microgpt.ConfigError(f"seed is {value}, expected at least 0")
    return value


def _number_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


PARSERS: dict[str, Callable[[str], Any]] = {  # of the fields of SamplingConfig
    "temperature": float,
    "top_k": _number_or_none,
    "top_p": float,
    "max_tokens": _number_or_none,
    "stop": lambda text: [] if text in {"", "none"} else [text],
    "seed": _natural,
}


class Conversation:
    """A conversation.

    Args:
        model: a chat model.
        config: sampling options; reply k is drawn with seed + k.
    """

    def __init__(self, model: microgpt.LanguageModel, config: microgpt.SamplingConfig) -> None:
        self.model = model
        self.messages: list[microgpt.Message] = []
        self._turns = microgpt.Turns(model.tokenizer)  # the same, encoded
        self._batch = model.batch(microgpt.PrefixCache())
        self._config = config
        self._n_replies = 0
        self._saved: set[Path] = set()

    def change(self, name: str, text: str) -> None:
        """Change a sampling option.

        Args:
            name: of a field of `SamplingConfig`.
            text: its value as a user types it.

        Raises:
            ConfigError: there is no such option, or the value is out of its domain.
        """
        if name not in PARSERS:
            raise microgpt.ConfigError(f"no option {name!r}, expected one of {', '.join(PARSERS)}")
        try:
            value = PARSERS[name](text)
        except microgpt.ConfigError:  # a ValueError too
            raise
        except ValueError as error:
            expected = "a number or none" if PARSERS[name] is _number_or_none else "a number"
            raise microgpt.ConfigError(f"{name} is {text!r}, expected {expected}") from error
        self._config = replace(self._config, **{name: value})

    def options(self) -> str:
        """Return a line for each sampling option."""
        return "\n".join(
            f"{name:<12}{'none' if value is None or value == [] else value}"
            for name, value in asdict(self._config).items()
        )

    def ask(self, text: str) -> int:
        """Add a user message; return the number of characters that the model does not know."""
        tokenizer = self.model.tokenizer
        known = tokenizer.decode(tokenizer.encode(text, unknown="skip"))
        self._add("user", known)
        return len(text) - len(known)

    def _add(self, role: str, content: str) -> None:
        self._turns.add(role, content)
        self.messages.append({"role": role, "content": content})

    def instruct(self, text: str) -> None:
        """Set the message of the system, which precedes all others; an empty one removes it.

        Raises:
            ConfigError: the model knows no such message.
        """
        if not self.model.tokenizer.has_system:
            raise microgpt.ConfigError(
                "the model was trained without messages of the system, expected one that knows them"
            )
        self._turns.instruct(text or None)
        del self.messages[: self._has_system]
        self.messages[:0] = [{"role": "system", "content": text}] if text else []

    @property
    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"

    def begin(self) -> microgpt.LiveText:
        """Return the next reply, to be read as `pieces`; `keep` its text afterwards."""
        prompt = self._turns.prompt(self.model.config.block_size, too_long="truncate")
        config = replace(self._config, seed=self._config.seed + self._n_replies)
        self._n_replies += 1
        return self._batch.add(prompt, config)

    def pieces(self, reply: microgpt.LiveText, n_tokens: int) -> Generator[str]:
        """Yield a reply in pieces of so many tokens, as it is generated; close to stop it.

        Raises:
            SamplingError: the model's logits are not finite.
        """
        try:
            while not reply.is_finished:
                self._batch.advance(n_tokens)
                yield reply.piece
            reply.reply()  # raises if logits have ended it
        finally:
            self._batch.remove(reply)

    def keep(self, content: str) -> None:
        """Add an assistant message."""
        self._add("assistant", content)

    def take_back(self) -> bool:
        """Remove the latest reply; return whether a user message is left to reply to."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            del self.messages[-1]
            self._turns.pop()
        return len(self.messages) > self._has_system

    def clear(self) -> None:
        """Remove all messages but that of the system."""
        del self.messages[self._has_system :]
        self._turns.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as one line of JSON, the format of the training data.

        Raises:
            MicrogptError: the file exists and is not of this conversation, or cannot be written.
        """
        line = json.dumps(self.messages, ensure_ascii=False) + "\n"
        with translated(f"cannot write {path}"):
            if path.exists() and path.absolute() not in self._saved:
                raise FileExistsError(errno.EEXIST, "it exists already; name another file")
        microgpt.write_file(path, line.encode("utf-8", "surrogatepass"))
        self._saved.add(path.absolute())
