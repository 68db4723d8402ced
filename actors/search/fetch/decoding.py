"""Bodies decompressed while they arrive, never further than a bound.

Always true: however small the input, `feed` holds at most `max_bytes` plus one byte of output; an encoding that
cannot be bounded so is refused before a byte of it is read.
"""

from __future__ import annotations

import zlib

from actors.search.fetch.urls import refused
from actors.search.seams import ErrorKind, ProviderError

ACCEPTED = "gzip, deflate"  # what is asked for; anything else that comes is refused
_MAX_MEMBERS = 64  # of a gzip body; each costs a copy of what follows it


class BodyTooLong(ProviderError):
    """The body is longer than its bound. `kept`: what of it was within."""

    def __init__(self, message: str, kept: bytes) -> None:
        super().__init__(ErrorKind.BAD_REQUEST, message)
        self.kept = kept


class BoundedBody:
    """One body: `feed` it as it arrives, then `end`. Raises BodyTooLong, ProviderError."""

    def __init__(self, encoding: str, max_bytes: int, max_body_bytes: int) -> None:
        """`encoding`: the Content-Encoding header; `max_bytes` as it travels, `max_body_bytes` decompressed."""
        self._encoding = encoding.strip().lower()
        if self._encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise refused(f"content encoding {self._encoding[:40]!r} was not asked for")
        self._plain = self._encoding in ("", "identity")
        self._max_bytes, self._max_body_bytes = max_bytes, max_body_bytes
        self._travelled = 0
        self._members = 0
        self._parts: list[bytes] = []
        self._length = 0
        self._inflate = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes as they came."""
        self._travelled += len(chunk)
        if self._plain:
            self._keep(chunk)
        else:
            self._decompress(chunk)
        if self._travelled > self._max_bytes:
            raise BodyTooLong(f"a body of more than {self._max_bytes} bytes", b"".join(self._parts))

    def end(self) -> bytes:
        """The whole body. Raises ProviderError(TRANSIENT) where its compressed form breaks off."""
        if not self._plain and self._travelled and not (self._inflate is None or self._inflate.eof):
            raise ProviderError(ErrorKind.TRANSIENT, "a compressed body broke off")
        return b"".join(self._parts)

    def _keep(self, data: bytes) -> None:
        room = self._max_body_bytes - self._length
        self._parts.append(data[:room])
        self._length += min(len(data), room)
        if len(data) > room:
            raise BodyTooLong(f"a body of more than {self._max_body_bytes} bytes", b"".join(self._parts))

    def _decompress(self, data: bytes) -> None:
        while data:
            if self._inflate is None:
                self._inflate = self._member(data)
            elif self._inflate.eof:
                if self._encoding == "deflate" or not data.startswith(b"\x1f"):
                    return  # padding after the end; browsers do not read it either
                self._inflate = self._member(data)
            try:
                out = self._inflate.decompress(data, self._max_body_bytes - self._length + 1)
            except zlib.error as error:
                raise ProviderError(ErrorKind.SCHEMA, "a body that does not decompress") from error
            self._keep(out)
            # The bound on output is above what is left, so nothing can wait in `unconsumed_tail`.
            data = self._inflate.unused_data

    def _member(self, data: bytes):
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise refused(f"a body compressed in more than {_MAX_MEMBERS} pieces")
        if self._encoding != "deflate":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        if data[0] & 0x0F == 8:  # the zlib header that the standard asks for
            return zlib.decompressobj(wbits=zlib.MAX_WBITS)
        return zlib.decompressobj(wbits=-zlib.MAX_WBITS)  # many servers send it bare
