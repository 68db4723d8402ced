"""A call and its answer as bytes: what the shared cache keeps and the cassette records.

Always true: bytes are canonical JSON, never pickle, and the same value gives the same bytes; `from_answer` gives back
exactly what `to_answer` was given, or raises `Unreadable`. Thumbnails travel as blobs beside the JSON, by their sha256.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from actors.agent.seams import ImageRefused, ImageStore
from actors.agent.trajectory import Evidence, ImageRef
from actors.agent.untrusted import neutralise, one_line
from actors.search.cache import request_key
from actors.search.seams import ErrorKind, Page, ProviderError, ScoredBox

T = TypeVar("T")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Unreadable(ValueError):
    """Bytes that are no answer of ours: another version wrote them, or they are damaged or forged."""


def canonical(value: Any) -> str:
    """The one JSON text of a JSON value: sorted keys, no blanks, readable letters, valid UTF-8.

    Raises ValueError for what JSON does not hold, NaN and infinities included.
    """
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(str(error)) from error
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# --- calls --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a tool by what decides its answer; independent of who asks and when."""

    tool: str
    arguments: Mapping[str, Any]  # JSON values, normalised; a picture stands by its sha256
    providers: tuple[str, ...] = ()  # names, in the order in which they are asked
    locale: str = ""
    version: str = ""  # of all else that shapes the answer, such as the bounds on retrieved text

    @property
    def key(self) -> str:
        """sha256 in hex."""
        return request_key(**self._parts())

    @property
    def text(self) -> str:
        """Canonical JSON, for people and for `parse`."""
        return canonical(self._parts())

    @classmethod
    def parse(cls, text: str) -> Call:
        """What `text` gave. Raises Unreadable."""
        raw = _fields(_json(text), {"tool": str, "arguments": dict, "providers": list, "locale": str, "version": str})
        return _made(cls, {**raw, "providers": tuple(_text(name) for name in raw.get("providers", ()))})

    def short(self, max_chars: int = 200) -> str:
        """Tool and arguments on one line, for messages; `max_chars` of the line at most."""
        line = one_line(f"{self.tool} {canonical(dict(self.arguments))}")
        return line if len(line) <= max_chars else line[: max_chars - 1] + "…"

    def _parts(self) -> dict[str, Any]:
        return {
            "tool": self.tool,
            "arguments": dict(self.arguments),
            "providers": list(self.providers),
            "locale": self.locale,
            "version": self.version,
        }


# --- answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What one search gave, as it is remembered: independent of who asks."""

    evidence: tuple[Evidence, ...]
    provider: str
    passing: bool = field(default=False, compare=False)  # a later try may find more: kept briefly, and not stored


Remembered = Found | tuple[ScoredBox, ...] | Page | str | ProviderError


class Kind(StrEnum):
    """What an answer's bytes hold."""

    FOUND = "found"
    BOXES = "boxes"
    PAGE = "page"
    TEXT = "text"  # a summary, a digest
    ERROR = "error"


@dataclass(frozen=True)
class Answer:
    """What is stored. `body`: canonical JSON in UTF-8; `blobs`: encoded pictures by sha256, in hex."""

    kind: Kind
    body: bytes
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    provider: str = ""
    at: float = 0.0  # unix seconds
    cost_usd: float = 0.0  # paid for it when it was asked
    latency_s: float = 0.0  # of that request

    @property
    def size(self) -> int:
        """Bytes of body and blobs."""
        return len(self.body) + sum(len(data) for data in self.blobs.values())


def found_nothing(value: Remembered) -> bool:
    """Whether the answer is of short validity: a genuine "nothing", or one that was spoilt by what passes."""
    return not value.evidence or value.passing if isinstance(value, Found) else value in ((), "")


def to_answer(value: Remembered) -> Answer:
    """The value alone; blobs and circumstances are for `replace`. Raises ValueError for what JSON does not hold."""
    match value:
        case Found():
            kind, raw = Kind.FOUND, {"evidence": [asdict(item) for item in value.evidence], "provider": value.provider}
        case Page():
            kind, raw = Kind.PAGE, asdict(value)
        case str():
            kind, raw = Kind.TEXT, value
        case ProviderError():
            kind = Kind.ERROR
            raw = {"kind": value.kind.value, "message": value.message, "retry_after": value.retry_after}
        case tuple() if all(isinstance(box, ScoredBox) for box in value):
            kind, raw = Kind.BOXES, [asdict(box) for box in value]
        case _:
            raise ValueError(f"a {type(value).__name__} is no answer that can be kept")
    return Answer(kind, canonical(raw).encode(), provider=value.provider if isinstance(value, Found) else "")


def from_answer(answer: Answer) -> Remembered:
    """What `to_answer` was given. Raises Unreadable."""
    raw = _json(answer.body)
    match answer.kind:
        case Kind.FOUND:
            whole = _fields(raw, {"evidence": list, "provider": str})
            evidence = tuple(_evidence(item) for item in whole.get("evidence", ()))
            return _made(Found, {**whole, "evidence": evidence})
        case Kind.BOXES:
            return tuple(_box(item) for item in _list(raw))
        case Kind.PAGE:
            return _made(Page, _fields(raw, {"url": str, "title": str, "text": str, "fetched_at": _NUMBER}))
        case Kind.TEXT:
            return _text(raw)
        case Kind.ERROR:
            return _error(raw)
    raise Unreadable(f"{answer.kind!r} is no kind of answer")


class Codec:
    """Between what the gateway works with and what is stored; the thumbnails' bytes are in `images`."""

    def __init__(self, images: ImageStore | None = None) -> None:
        self._images = images

    def encode(self, value: Remembered, *, at: float, cost_usd: float = 0.0, latency_s: float = 0.0) -> Answer:
        """Reads the thumbnails' bytes. Raises ValueError for what cannot be stored, and ImageMissing."""
        blobs: dict[str, bytes] = {}
        if isinstance(value, Found) and self._images is not None:
            blobs = {
                item.thumbnail.sha256: self._images.get(item.thumbnail) for item in value.evidence if item.thumbnail
            }
        return replace(to_answer(value), blobs=blobs, at=at, cost_usd=cost_usd, latency_s=latency_s)

    def decode(self, answer: Answer, *, ours: bool = False) -> Remembered:
        """Puts the thumbnails into the store and gives the value. Raises Unreadable.

        What is not certainly `ours` may come from strangers: its text is neutralised again, which changes nothing in
        what this project has written. A thumbnail whose bytes are not what its name says, or no acceptable picture, is
        left out.
        """
        value = from_answer(answer)
        if not isinstance(value, Found):
            return value
        evidence = value.evidence if ours else map(_neutralised, value.evidence)
        kept = (replace(item, thumbnail=self._kept(item.thumbnail, answer.blobs)) for item in evidence)
        return replace(value, evidence=tuple(kept))

    def _kept(self, thumbnail: ImageRef | None, blobs: Mapping[str, bytes]) -> ImageRef | None:
        if thumbnail is None or self._images is None:
            return thumbnail
        data = blobs.get(thumbnail.sha256)
        if data is None or hashlib.sha256(data).hexdigest() != thumbnail.sha256:
            return None
        try:
            return self._images.put(data)
        except ImageRefused:
            return None


def _neutralised(item: Evidence) -> Evidence:
    return replace(item, title=one_line(item.title), text=neutralise(item.text), url=one_line(item.url))


# --- reading, with every type checked -----------------------------------------------------------------------

_NUMBER = (int, float)
_EVIDENCE: dict[str, type | tuple[type, ...]] = {
    "number": int,
    "title": str,
    "text": str,
    "url": str,
    "provider": str,
    "retrieved_at": _NUMBER,
    "content_sha256": str,
    "crop_box": (list, type(None)),
    "turn": int,
    "thumbnail": (dict, type(None)),
    "image_number": int,
}


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no number that JSON holds")
    return value


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error


def _fields(raw: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """`raw` as a dict with none but these fields, each of its kind; those that are missing are left to defaults."""
    if not isinstance(raw, dict) or not raw.keys() <= kinds.keys():
        raise Unreadable(f"expected the fields {', '.join(kinds)}")
    for name, value in raw.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise Unreadable(f"{name} is a {type(value).__name__}")
    return raw


def _made(kind: Callable[..., T], values: Mapping[str, Any]) -> T:
    try:
        return kind(**values)
    except TypeError as error:  # a field without default is missing
        raise Unreadable(str(error)) from error


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise Unreadable(f"expected text, not a {type(raw).__name__}")
    return raw


def _list(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise Unreadable(f"expected a list, not a {type(raw).__name__}")
    return raw


def _four(raw: Any, kinds: type | tuple[type, ...]) -> tuple[Any, ...]:
    values = tuple(_list(raw))
    if len(values) != 4 or any(not isinstance(value, kinds) or isinstance(value, bool) for value in values):
        raise Unreadable("a box has four numbers")
    return values


def _evidence(raw: Any) -> Evidence:
    values = dict(_fields(raw, _EVIDENCE))
    if values.get("crop_box") is not None:
        values["crop_box"] = _four(values["crop_box"], int)
    if values.get("thumbnail") is not None:
        sizes = _fields(values["thumbnail"], {"sha256": str, "width": int, "height": int})
        values["thumbnail"] = _made(ImageRef, sizes)
    return _made(Evidence, values)


def _box(raw: Any) -> ScoredBox:
    values = _fields(raw, {"box": list, "score": _NUMBER})
    return _made(ScoredBox, {**values, "box": _four(values.get("box"), _NUMBER)})


def _error(raw: Any) -> ProviderError:
    values = _fields(raw, {"kind": str, "message": str, "retry_after": (*_NUMBER, type(None))})
    try:
        return _made(ProviderError, {**values, "kind": ErrorKind(values.get("kind", ""))})
    except ValueError as error:
        raise Unreadable(str(error)) from error
