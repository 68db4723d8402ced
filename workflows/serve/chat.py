"""OpenAI's chat request, as far as an agent that searches has a use for it, and the question in it.

    body (bytes) -> parsed -> ChatRequest -> asked -> Asked

Always true: what passes here is bounded in every direction (values, messages, characters, pictures, choices, stops);
whatever else comes is an `ApiError` that names the field. Fields of OpenAI's that have no meaning here are ignored,
those that ask for what cannot be done are refused by name (refusals.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from workflows.serve import conversation, errors
from workflows.serve.refusals import refuse_what_cannot_be_done
from workflows.serve.settings import RequestSettings

JSON_VALUES = 250_000  # of a body at most, by its commas and brackets: each costs memory when it is parsed
MAX_TOKENS = 2**31 - 1  # the agent's own bound is far lower; a greater number is a mistake
_STRICT = ConfigDict(strict=True, extra="ignore")


# with a bound on its length, pydantic takes no string with half a character (a lone surrogate) in it
Text = Annotated[str, Field(max_length=1_000_000)]
Name = Annotated[str, Field(max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Address = Annotated[str, Field(min_length=1, description="a data: URL, or http(s), which the service fetches itself")]


def _one_or_many(value: Any) -> str:
    return "many" if isinstance(value, list) else "one"


class ImageUrl(BaseModel):
    model_config = _STRICT
    url: Address
    detail: Literal["auto", "low", "high", "original"] | None = "auto"


class TextPart(BaseModel):
    model_config = _STRICT
    type: Literal["text"]
    text: Text


class ImagePart(BaseModel):
    model_config = _STRICT
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[
            Annotated[Text, Tag("one")] | Annotated[list[Part], Field(max_length=256), Tag("many")],
            Discriminator(_one_or_many),
        ]
        | None
    ) = None
    name: Name | None = None


class StreamOptions(BaseModel):
    model_config = _STRICT
    include_usage: bool | None = None


class AskedLimits(BaseModel):
    """An extension: bounds of this request; the service's own are never exceeded."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    turns: Annotated[int, Field(ge=1)] | None = None
    tool_calls: Annotated[int, Field(ge=0)] | None = None
    cost_usd: Annotated[float, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
    model: Name
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS, description="sampled in one turn of the agent")] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS, description="the same, as newer")] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: (
        Annotated[
            Annotated[Stop, Tag("one")] | Annotated[list[Stop], Field(max_length=4), Tag("many")],
            Discriminator(_one_or_many),
        ]
        | None
    ) = None
    user: Name | None = None
    tool_choice: Literal["auto", "none"] | None = None
    limits: AskedLimits | None = None
    include_thumbnails: Annotated[bool, Field(description="an extension: steps show what was found")] | None = None


@dataclass(frozen=True)
class Bounds:
    """Of one request. None: the protocol's own."""

    turns: int | None
    tool_calls: int | None
    cost_usd: float | None
    seconds: float


@dataclass(frozen=True)
class Asked:
    """What an agent is to do. `pictures`: URLs in the order in which the model is shown them, from number 1."""

    text: str
    pictures: tuple[str, ...]
    bounds: Bounds
    n: int = 1
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    search: bool = True
    thumbnails: bool = False


def parsed(body: bytes) -> ChatRequest:
    """Raises `ApiError` that names the field."""
    content = _read(body)
    if not isinstance(content, dict):
        raise errors.invalid("The body must be a JSON object with model and messages.")
    refuse_what_cannot_be_done(content)
    try:
        return ChatRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = _place(first["loc"], content, absent=first["type"] == "missing") or None
        raise errors.invalid(f"{where or 'The body'}: {first['msg']}.", where) from None


def asked(request: ChatRequest, model: str, settings: RequestSettings) -> Asked:
    """The question of a request. Raises `ApiError` for what is over a bound or cannot be done."""
    if request.model != model:
        raise errors.not_found(f"The model here is {model!r}.", "model", code="model_not_found")
    n = request.n or 1
    if n > settings.choices:
        raise errors.invalid(f"n is {n} and may be {settings.choices} at most.", "n")
    messages = [conversation.Said(message.role, _items(message.content)) for message in request.messages]
    stop = request.stop
    greedy = request.top_p == 0  # OpenAI's least; no sampler takes it
    return Asked(
        text=conversation.question(messages, settings),
        pictures=conversation.pictures(messages),
        bounds=_bounds(request.limits, settings),
        n=n,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=0.0 if greedy else request.temperature or 0.0,
        top_p=1.0 if greedy or request.top_p is None else request.top_p,
        seed=None if request.seed is None else request.seed % 2**31,
        search=request.tool_choice != "none",
        thumbnails=bool(request.include_thumbnails),
    )


def _items(content: str | Sequence[TextPart | ImagePart] | None) -> tuple[str | conversation.Shown, ...]:
    if content is None or isinstance(content, str):
        return (content,) if content else ()
    return tuple(
        part.text if isinstance(part, TextPart) else conversation.Shown(part.image_url.url) for part in content
    )


def _bounds(wanted: AskedLimits | None, settings: RequestSettings) -> Bounds:
    wanted = wanted or AskedLimits()
    return Bounds(
        turns=_least(wanted.turns, settings.turns),
        tool_calls=_least(wanted.tool_calls, settings.tool_calls),
        cost_usd=_least(wanted.cost_usd, settings.cost_usd),
        seconds=min(wanted.seconds or settings.seconds, settings.seconds),
    )


def _least(wanted: Any, most: Any) -> Any:
    given = [bound for bound in (wanted, most) if bound is not None]
    return min(given) if given else None


# --- JSON -----------------------------------------------------------------------------------------------------------


def _read(body: bytes) -> Any:
    """JSON as RFC 8259 has it, with each name once. Raises `ApiError`."""
    if sum(map(body.count, (b",", b"[", b"{"))) > JSON_VALUES:
        raise errors.too_large(f"The body holds more than {JSON_VALUES} JSON values.")
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise errors.invalid(f"The body is not UTF-8: see byte {error.start}.") from None
    except json.JSONDecodeError as error:
        raise errors.invalid(f"The body is not JSON: {error.msg}, at character {error.pos}.") from None
    except RecursionError:
        raise errors.invalid("The body is nested too deep.") from None
    except ValueError:
        raise errors.invalid("The body holds a number of too many digits.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise errors.invalid(f"An object of the body names {twice!r} twice.", twice)
    return known


def _no_number(name: str) -> Any:
    raise errors.invalid(f"The body holds {name}, which is no JSON number.")


def _place(location: Sequence[int | str], content: Any, *, absent: bool) -> str:
    """Where in the body, as `messages[0].content[1].image_url.url`, without pydantic's names of alternatives."""
    where = ""
    for step in location:
        if isinstance(content, list) and isinstance(step, int) and step < len(content):
            where, content = f"{where}[{step}]", content[step]
        elif isinstance(content, dict) and isinstance(step, str) and step in content:
            where, content = f"{where}.{step}", content[step]
    return (f"{where}.{location[-1]}" if absent else where).removeprefix(".")
