"""Fields of OpenAI's chat request that ask for what this service cannot do. Pure.

Always true: a field is refused for what it asks, not for being there, since clients send most of them with a value that
asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workflows.serve import errors

_OWN_TOOLS = (
    'the agent has searches of its own and calls no others; leave it out, or send tool_choice "none" for no search'
)
_NO_PENALTY = "tokens are sampled by temperature and top_p alone; leave it out"


def _other_than_text(value: Any) -> bool:
    return bool(value) and not (isinstance(value, dict) and value.get("type") == "text")


def _speaks(value: Any) -> bool:
    return bool(value) and value != ["text"]


def _names_one(value: Any) -> bool:
    return value not in (None, "none", "auto")


_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("tools", bool, _OWN_TOOLS),
    ("functions", bool, _OWN_TOOLS),
    ("function_call", _names_one, _OWN_TOOLS),
    ("tool_choice", _names_one, 'it may be "auto" or "none": the agent decides what it searches for'),
    ("response_format", _other_than_text, "an answer is text with citations; ask for a form in the question"),
    ("modalities", _speaks, 'answers are text; send ["text"] or leave it out'),
    ("audio", bool, "answers are text; leave it out"),
    ("logprobs", bool, "an answer is put together from turns, and has none; leave it out"),
    ("top_logprobs", bool, "an answer is put together from turns, and has none; leave it out"),
    ("frequency_penalty", bool, _NO_PENALTY),
    ("presence_penalty", bool, _NO_PENALTY),
    ("logit_bias", bool, _NO_PENALTY),
)


def refuse_what_cannot_be_done(body: Mapping[str, Any]) -> None:
    """Raises `ApiError` for the first of them."""
    for name, asks, why in _REFUSED:
        if asks(body.get(name)):
            raise errors.invalid(f"{name} cannot be done here: {why}.", name, code="unsupported_parameter")
