"""A disk that is full, for real: the kernel refuses what this process writes beyond some bytes of a file."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Within, writing more into one file fails in its midst, as it does on a disk that is full (EFBIG for ENOSPC).

    Nothing may be printed within: the file that pytest captures it in is a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
