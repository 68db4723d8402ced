"""Keeping freed memory is a switch of the C library, and can be taken back."""

import sys

import numpy as np
import psutil
import pytest

from cluster.allocator import freed_memory_kept

MIB = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switch")
def test_freed_memory_stays_within_and_goes_back_afterwards():
    process = psutil.Process()
    before = process.memory_info().rss
    with freed_memory_kept() as kept:
        assert kept
        block = np.ones(200 * MIB, dtype=np.uint8)
        del block
        assert process.memory_info().rss - before > 150 * MIB
    assert process.memory_info().rss - before < 100 * MIB
