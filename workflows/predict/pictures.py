"""The bytes of a row's pictures, wherever the row says that they are.

A row is others' text: a path leads nowhere but into the folder of the pictures, and an address of the web is read
through the guarded fetcher alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from actors.agent.seams import ImageMissing, ImageStore
from actors.agent.trajectory import ImageRef
from actors.model.images import MAX_BYTES
from actors.search.seams import ProviderError
from cluster.storage import Folder, leads_out


class BadPicture(ValueError):
    """A picture that there is not, or that may not be read: the row's fault."""


class PictureUnread(RuntimeError):
    """A picture that could not be read now: another try may."""


class Web(Protocol):
    """Reads pictures of the web (`actors.search.fetch.reader.DirectReader`)."""

    async def fetch_image(self, url: str) -> bytes:
        """Raise ProviderError."""
        ...


class PictureReader:
    """`folder`: what paths are relative to; `kept`: the run's pictures, by content."""

    def __init__(self, folder: Folder, kept: ImageStore, web: Web) -> None:
        self._folder, self._kept, self._web = folder, kept, web

    async def read(self, picture: Mapping[str, Any]) -> bytes:
        """The bytes of a picture of a row of `ASKED`. Raise `BadPicture` and `PictureUnread`."""
        where = picture["where"] or ""
        if picture["bytes"] is not None:
            return picture["bytes"]
        if picture["sha256"] is not None:
            return await asyncio.to_thread(self._from_blobs, picture)
        if where.lower().startswith(("http://", "https://")):
            return await self._from_web(where)
        return await asyncio.to_thread(self._from_folder, where)

    def _from_blobs(self, picture: Mapping[str, Any]) -> bytes:
        try:
            return self._kept.get(ImageRef(picture["sha256"], picture["width"], picture["height"]))
        except (ImageMissing, ValueError) as error:
            raise BadPicture(f"{error}: this run's blobs do not hold it") from error
        except OSError as error:
            raise PictureUnread(f"a picture of the run could not be read: {error}") from error

    async def _from_web(self, url: str) -> bytes:
        try:
            return await self._web.fetch_image(url)
        except ProviderError as error:
            kind = PictureUnread if error.kind.retryable else BadPicture
            raise kind(f"{url[:200]} could not be fetched: {error.message}") from error

    def _from_folder(self, where: str) -> bytes:
        name = where.removeprefix(f"{self._folder.address.partition('?')[0]}/")
        if "://" in name or leads_out(name) or "\0" in name:
            raise BadPicture(f"{where[:200]} is not in {self._folder}, where paths of pictures must lead")
        try:
            data = self._folder.read_bytes(name, 0, MAX_BYTES + 1)  # one more is enough to be refused
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BadPicture(f"there is no picture at {where[:200]}") from error
        except OSError as error:
            raise PictureUnread(f"{where[:200]} could not be read: {error}") from error
        return data
