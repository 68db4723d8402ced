"""A provider that is always down, for a service that is to say so."""

from __future__ import annotations

from typing import Any

from actors.search.seams import ErrorKind, ProviderError


class BrokenSearch:
    """Of texts and of pictures. Its refusal is one that no further attempt mends, so that tests need not wait."""

    async def search(self, *_: Any) -> Any:
        raise ProviderError(ErrorKind.BAD_KEY, "out of order")
