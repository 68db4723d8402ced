"""Memory that stays with the process.

glibc gives large blocks back to the kernel as soon as they are freed, and a training step asks for the same ones
again: every page is then faulted in anew. Where faults are dear (virtual machines without huge pages) that is half
the time of a step of a small model on a CPU.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_TRIM_BYTES = 2**31 - 1  # mallopt takes an int
_PAD_BYTES = 256 << 20


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, from here on, in this process. False where the C library has no such switch.

    The process then holds its peak for as long as it lives: for trainers, not for services.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _TRIM_BYTES), (_M_TOP_PAD, _PAD_BYTES))
    return all([mallopt(name, value) == 1 for name, value in wanted])
