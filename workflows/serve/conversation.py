"""A conversation as the one question that an episode begins with: policies are trained on single ones. Pure.

    Instructions: answer in French            <- system and developer
    The conversation so far:
    User: (image 1) Which bird is this?
    Assistant: A kingfisher.
    The question now:
    What does it eat?

Always true: a single message stays as it is; text of the conversation holds no tag, no image mark and no marker of
ours (`agent.untrusted`), and no line of it passes for another one's message. Pictures are numbered from 1 in the order
in which they came, which is the order in which the model is shown them, and where that alone does not say what they go
with, their number stands in their place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from actors.agent.untrusted import neutralise
from workflows.serve import errors
from workflows.serve.settings import RequestSettings

_RULES, _BEFORE, _NOW = "Instructions", "The conversation so far", "The question now"
_FORGED = re.compile(
    rf"^([^\S\n]*)({_RULES}|{_BEFORE}|{_NOW}|System|Developer|User|Assistant)([^\S\n]*):", re.MULTILINE | re.IGNORECASE
)


@dataclass(frozen=True)
class Shown:
    """A picture of a message, by its URL."""

    url: str


@dataclass(frozen=True)
class Said:
    """A message: texts and pictures as they stand in it."""

    role: str  # system | developer | user | assistant
    items: tuple[str | Shown, ...]

    @property
    def characters(self) -> int:
        return sum(len(item) for item in self.items if isinstance(item, str))

    @property
    def shown(self) -> list[Shown]:
        return [item for item in self.items if isinstance(item, Shown)]


def pictures(messages: Sequence[Said]) -> tuple[str, ...]:
    """URLs of all pictures, in order."""
    return tuple(item.url for message in messages for item in message.shown)


def question(messages: Sequence[Said], settings: RequestSettings) -> str:
    """The text of the question. Raises `ApiError` for a conversation that is over a bound, or that asks nothing."""
    _check(messages, settings)
    numbers = count(1)
    marked = _scattered(messages)
    said = [(message.role, _words(message, numbers, marked)) for message in messages]
    _, last = said.pop()
    before = [(role, words) for role, words in said if words]
    if not before:
        return last
    rules = [words for role, words in before if role in ("system", "developer")]
    talk = [f"{role.capitalize()}: {_plain(words)}" for role, words in before if role in ("user", "assistant")]
    lines = [f"{_RULES}: {' '.join(rules)}"] if rules else []
    if talk:
        lines += [f"{_BEFORE}:", *talk, f"{_NOW}:"]
    return "\n".join([*lines, _plain(last)])


def _check(messages: Sequence[Said], settings: RequestSettings) -> None:
    if len(messages) > settings.messages:
        raise errors.invalid(
            f"{len(messages)} messages are more than the {settings.messages} of a request: leave out the oldest.",
            "messages",
        )
    if sum(message.characters for message in messages) > settings.characters:
        raise errors.invalid(f"The texts have more than {settings.characters} characters.", "messages")
    for number, message in enumerate(messages):
        if message.shown and message.role != "user":
            raise errors.invalid(
                f"A picture stands in a message of the {message.role}: only the user's may have some.",
                f"messages[{number}].content",
            )
    shown = len(pictures(messages))
    if shown > settings.pictures:
        raise errors.invalid(f"{shown} pictures are more than the {settings.pictures} of a request.", "messages")
    last, where = messages[-1], f"messages[{len(messages) - 1}]"
    if last.role != "user":
        raise errors.invalid(
            f"The last message is of the {last.role}: the user's question must come last.", f"{where}.role"
        )
    if not any(neutralise(item).strip() for item in last.items if isinstance(item, str)):
        raise errors.invalid("The last message has no text: say what to ask.", f"{where}.content")


def _scattered(messages: Sequence[Said]) -> bool:
    """Whether pictures stand in earlier messages, or among the texts of the last one."""
    if any(message.shown for message in messages[:-1]):
        return True
    order = "".join("p" if isinstance(item, Shown) else "t" for item in messages[-1].items)
    return "pt" in order and "tp" in order


def _words(message: Said, numbers: count[int], marked: bool) -> str:
    words: list[str] = []
    for item in message.items:
        if isinstance(item, str):
            words.append(neutralise(item).strip())
        else:
            number = next(numbers)
            words.append(f"(image {number})" if marked else "")
    return "\n".join(word for word in words if word)


def _plain(words: str) -> str:
    """Words whose lines cannot be taken for somebody else's."""
    return _FORGED.sub(r"\1\2\3.", words)
