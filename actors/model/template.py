"""A model's own chat template, cut at the places where texts and pictures go.

The template is rendered once with words that stand for texts; what lies between them is how this model writes a
conversation, its default system message included where it has one. A piece is a list of special tokens (by id) and of
plain text, which is tokenised together with what stands beside it, as it would be in the whole rendering.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Piece = tuple[int | str, ...]  # ids of special tokens, and plain text

_SYSTEM, _FIRST, _REPLY, _SECOND = "system-goes-here", "first-goes-here", "reply-goes-here", "second-goes-here"


@dataclass(frozen=True)
class ChatTemplate:
    """How a model writes a conversation of a user, who may show pictures, and itself.

    opening   user's first text   asking   | reply of the model, end of turn |   between   user's text   asking   | ...
    """

    opening: Piece  # all that stands before the first text of the user
    asking: Piece  # from behind a text of the user to where the model begins to write
    end_of_turn: int  # ends what the model writes
    between: Piece  # from behind the model's end of turn to the next text of the user
    picture: Piece  # what stands for one picture

    @property
    def special(self) -> frozenset[int]:
        """Every special token that it writes."""
        pieces = (*self.opening, *self.asking, *self.between, *self.picture, self.end_of_turn)
        return frozenset(item for item in pieces if isinstance(item, int))


def read_template(tokenizer: Any, template: str | None = None, system: str = "") -> ChatTemplate:
    """Of a tokenizer, or the `template` (Jinja) that is given; `system` is an optional system message.

    Raise `ValueError` for a tokenizer without a template, and for a template that does not write each text once.
    """
    if not (template or tokenizer.chat_template):
        raise ValueError("the tokenizer has no chat template")
    started: list[dict[str, Any]] = [{"role": "system", "content": _SYSTEM}] if system else []
    started.append({"role": "user", "content": _FIRST})
    answered = [{"role": "assistant", "content": _REPLY}, {"role": "user", "content": _SECOND}]
    shown = [{"type": "text", "text": _FIRST}, {"type": "image"}, {"type": "text", "text": _SECOND}]
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def rendered(messages: Sequence[Mapping[str, Any]]) -> str:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )

    opening, asking = _around(rendered(started), _FIRST)
    _, rest = _around(rendered([*started, *answered]), _REPLY)
    between, _ = _around(rest, _SECOND)
    _, rest = _around(rendered([{"role": "user", "content": shown}]), _FIRST)
    picture, _ = _around(rest, _SECOND)
    end_of_turn, *behind = _cut(between, special)
    if not isinstance(end_of_turn, int):
        raise ValueError(f"the chat template ends a turn with {between!r}, which begins with no special token")
    return ChatTemplate(
        tuple(item if isinstance(item, int) else item.replace(_SYSTEM, system) for item in _cut(opening, special)),
        _cut(asking, special),
        end_of_turn,
        tuple(behind),
        _cut(picture, special),
    )


def _around(text: str, word: str) -> tuple[str, str]:
    before, *after = text.split(word)
    if len(after) != 1:
        raise ValueError(f"the chat template writes a text {len(after)} times instead of once")
    return before, after[0]


def _cut(text: str, special: Mapping[str, int]) -> Piece:
    """Special tokens and what stands between them, without empty text."""
    if not special:
        return (text,) if text else ()
    parts = re.split("(" + "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)) + ")", text)
    return tuple(special.get(part, part) for part in parts if part)
