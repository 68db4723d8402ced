"""The pictures of a request: bytes in it, or at an address that only the guarded fetcher opens.

Always true: what is not a whole, acceptable picture is refused before anything else is done with it; no address of
this network is reachable by asking for a picture there, and no refusal tells what a name stands for inside of it; two
pictures at most are decoded at a time, whatever is asked at once.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Sequence
from typing import Protocol

from actors.agent.seams import ImageRefused
from actors.search.seams import ErrorKind, ProviderError
from workflows.serve import errors
from workflows.serve.errors import ApiError
from workflows.serve.memory_images import MemoryImages
from workflows.serve.orders import Picture
from workflows.serve.settings import RequestSettings

FETCH_S = 15.0  # for all pictures of a request
DECODED_AT_ONCE = 2  # each takes four bytes a pixel meanwhile
_DATA = re.compile(r"data:(?P<type>[a-z0-9.+/-]{0,100})(?P<parameters>(?:;[^,;]{0,100}){0,4}),", re.IGNORECASE)
_TYPES = frozenset(f"image/{kind}" for kind in ("png", "jpeg", "jpg", "webp", "gif", "bmp", "tiff"))
_SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]{0,30}):")


class PictureReader(Protocol):
    """Fetches from the open web and from nowhere else: `actors.search.fetch.reader.DirectReader`."""

    async def fetch_image(self, url: str) -> bytes:
        """Raises ProviderError."""
        ...


class RequestPictures:
    """For one event loop. `reader`: None where pictures must come with the request."""

    def __init__(self, settings: RequestSettings, images: MemoryImages, reader: PictureReader | None) -> None:
        self._settings, self._images, self._reader = settings, images, reader
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    async def all_of(self, urls: Sequence[str], within_s: float = FETCH_S) -> tuple[Picture, ...]:
        """In order. Raises `ApiError` that says which one cannot be used, and why."""
        until = asyncio.get_running_loop().time() + min(within_s, FETCH_S)
        try:
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(number, url, until)) for number, url in enumerate(urls, start=1)]
        except TimeoutError:
            raise errors.unavailable("The pictures could not be read in time: ask again.", 2.0) from None
        except ExceptionGroup as failed:
            raise _first(failed) from None
        return tuple(task.result() for task in tasks)

    async def _one(self, number: int, url: str, until: float) -> Picture:
        scheme = _SCHEME.match(url)
        name = scheme[1].lower() if scheme else ""
        if name == "data":
            data = self._decoded(number, url)
        elif name in ("http", "https"):
            data = await self._fetched(number, url, until)
        else:
            what = f"an address of scheme {name}" if name else "no address"
            raise _refused(number, f"is {what}: send it as data:image/png;base64,DATA, or name it by http(s)")
        if len(data) > self._most:
            raise self._too_large(number)
        try:
            async with self._decoding:
                ref = await asyncio.to_thread(self._images.put, data)
        except ImageRefused as error:
            raise _refused(number, f"cannot be used: {error}", code="invalid_image") from error
        return ref, data

    @property
    def _most(self) -> int:
        """Bytes of one picture."""
        return int(self._settings.picture_mib * (1 << 20))

    def _decoded(self, number: int, url: str) -> bytes:
        head = _DATA.match(url)
        if head is None or not head["parameters"].lower().endswith(";base64"):
            raise _refused(number, "is no data URL of the form data:image/png;base64,DATA", code="invalid_image")
        if head["type"].lower() not in _TYPES:
            known = ", ".join(sorted(_TYPES))
            raise _refused(number, f"is of type {head['type']!r}, and may be {known}", code="invalid_image")
        if (len(url) - head.end()) * 3 // 4 > self._most + 2:  # of which the last two may be padding
            raise self._too_large(number)
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except ValueError:
            raise _refused(number, "is not base64 without line breaks", code="invalid_image") from None

    async def _fetched(self, number: int, url: str, until: float) -> bytes:
        if self._reader is None:
            raise _refused(number, "lies elsewhere, and this service fetches none: send it as a data URL")
        try:
            async with asyncio.timeout_at(until):
                return await self._reader.fetch_image(url)
        except TimeoutError:
            raise _refused(number, "could not be fetched in time: send it as a data URL") from None
        except ProviderError as error:
            raise _refused(number, _why(error)) from error

    def _too_large(self, number: int) -> ApiError:
        return errors.too_large(f"Picture {number} is over the {self._settings.picture_mib:g} MiB of one picture.")


def _why(error: ProviderError) -> str:
    """What a stranger may know of a fetch that failed: how an address is spelt, and not what stands behind a name."""
    # of fetch.connection.vet: whether there is such a name says something of this network, too
    inside = any(words in error.message for words in ("resolves to", "at an address", "no host"))
    if error.kind is not ErrorKind.BAD_REQUEST or inside:
        return "could not be fetched: send it as a data URL"
    return f"is not fetched: {error.message}"


def _refused(number: int, why: str, code: str = "invalid_image_url") -> ApiError:
    return errors.invalid(f"Picture {number} {why}.", "messages", code=code)


def _first(failed: ExceptionGroup) -> Exception:
    """A bug of ours before a refusal, so that none is hidden."""
    found = list(failed.exceptions)
    return next((error for error in found if not isinstance(error, ApiError)), found[0])
