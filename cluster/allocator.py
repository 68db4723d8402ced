"""Memory that stays with the process.

glibc gives large blocks back to the kernel as soon as they are freed, and a training step asks for the same ones
again: every page is then faulted in anew. Where faults are dear (virtual machines without huge pages) that is half
the time of a step of a small model on a CPU.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_KEEPING = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 256 << 20}
_USUAL = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 << 10, _M_TOP_PAD: 128 << 10}  # glibc's defaults


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, from here on, in this process. False where the C library has no such switch.

    The process then holds its peak for as long as it lives: for trainers, not for services.
    """
    return _set(_KEEPING)


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """The same for a while: afterwards, what is free goes back to the kernel."""
    kept = keep_freed_memory()
    try:
        yield kept
    finally:
        if kept:
            gc.collect()
            _set(_USUAL)
            ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    return mallopt is not None and all([mallopt(name, value) == 1 for name, value in values.items()])
