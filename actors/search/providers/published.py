"""Pictures that a provider fetches by itself: put into an object store, under an address that expires.

A published picture is named by its content, so that the same crop is stored once. Whoever has its address can read it
until it expires: the address goes to the provider and into no log. Nothing is deleted here; a lifecycle rule of the
bucket does that best.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Protocol

from actors.search.providers.shrink import media_type
from actors.search.seams import ErrorKind, ProviderError
from cluster.errors import UserError
from cluster.storage import Folder

MAX_SECONDS = 7 * 24 * 3600  # what S3 signs for at most


class Publisher(Protocol):
    async def publish(self, image: bytes) -> str:
        """An address from which anybody can fetch the picture for a while. Raises ProviderError."""
        ...


class PublishedImages:
    """A Publisher. Raises UserError for a `store` that cannot sign addresses, before anything is sent anywhere."""

    def __init__(self, store: str, seconds: int = 600) -> None:
        """`store`: s3://bucket/prefix; `seconds`: how long an address is good."""
        self._folder, self._seconds = Folder(store), seconds
        if self._folder.is_local:
            raise UserError("Pictures are published in a store with addresses on the web, such as s3://bucket/prefix.")
        if not 1 <= seconds <= MAX_SECONDS:
            raise UserError(f"An address is signed for 1 to {MAX_SECONDS} seconds, not for {seconds}.")

    async def publish(self, image: bytes) -> str:
        """The address of encoded picture `image`. Raises ProviderError when the store does not take it."""
        try:
            return await asyncio.to_thread(self._put, image)
        except (PermissionError, FileNotFoundError) as error:  # FileNotFoundError: no such bucket
            raise ProviderError(ErrorKind.BAD_KEY, f"the store of pictures: {error}") from error
        except OSError as error:
            raise ProviderError(ErrorKind.TRANSIENT, f"the store of pictures: {error}") from error
        except UserError as error:  # no credentials, an address that S3 does not have
            raise ProviderError(ErrorKind.BAD_KEY, f"the store of pictures: {error.message}") from error

    def _put(self, image: bytes) -> str:
        kind = media_type(image).partition("/")[2]
        if not kind:
            raise ProviderError(ErrorKind.BAD_REQUEST, "what is to be published is no JPEG, PNG or WebP")
        digest = hashlib.sha256(image).hexdigest()
        name = f"{digest[:2]}/{digest}.{kind}"
        self._folder.write_bytes(name, image)
        return self._folder.signed_url(name, self._seconds)
