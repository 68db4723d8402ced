"""What storage refuses while a run goes on: told in one sentence, and whose turn it is then.

A disk that is full or may not be written to is for a person to mend: `UserError`, exit code 2, and nothing is started
again by itself. A server or a device that answers errors may do better the next time: `RunBroken`, exit code 1, and
`--restarts` begins again. A missing file is neither: it is a bug, and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.drives import S3Failed
from cluster.errors import RunBroken, UserError

FOR_A_PERSON = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
MAY_PASS = {errno.EIO, errno.EBUSY, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED}
TRIES = 3  # in a row, of one thing that a run can do without for a while


def reason_of(error: OSError) -> str:
    """The reason alone, in one line without a full stop; from another process Ray wraps it."""
    inner = getattr(error, "cause", None) or error
    told = getattr(inner, "message", "") or getattr(inner, "strerror", None) or str(inner)
    return " ".join(str(told).split()).rstrip(".") or type(inner).__name__


def for_a_person(error: BaseException) -> bool:
    """Whether every other try is in vain until a person has mended something; from another process Ray wraps it."""
    inner = getattr(error, "cause", None) or error
    return getattr(inner, "errno", None) in FOR_A_PERSON or (isinstance(inner, UserError) and not _passing(inner))


def storage_failed(what: str, error: OSError) -> UserError | RunBroken:
    """The sentence that ends a run: `what` could not be done, and why. Never an OSError itself."""
    told = f"{what}: {reason_of(error)}"
    if for_a_person(error):
        return UserError(f"{told}. Mend that; the same command goes on from the newest checkpoint.")
    return RunBroken(f"{told}; the same command goes on from the newest checkpoint")


@contextmanager
def storage_told(what: str) -> Iterator[None]:
    """Within, what storage refuses ends in a sentence; any other error stays what it is."""
    try:
        yield
    except OSError as error:
        inner = getattr(error, "cause", None) or error
        known = getattr(inner, "errno", None) in FOR_A_PERSON | MAY_PASS
        if not (known or isinstance(inner, UserError)):
            raise
        raise storage_failed(what, error) from error


class Patience:
    """Bears `TRIES - 1` failures in a row of one thing, saying each; the next one ends the run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._in_vain = 0

    def worked(self) -> None:
        """It was done."""
        self._in_vain = 0

    def failed(self, what: str, error: OSError, then: str) -> None:
        """`what` could not be done, and `then` says what comes of it. Raise `UserError` or `RunBroken` at the last."""
        self._in_vain += 1
        if self._in_vain >= TRIES:
            raise storage_failed(f"{what}, {TRIES} times in a row", error) from error
        self._say(f"{what}: {reason_of(error)}; {then} ({self._in_vain} of {TRIES})")


def _passing(error: UserError) -> bool:
    """S3 that cannot be reached: when a run begins a wrong address, later on an outage."""
    return isinstance(error, S3Failed)
