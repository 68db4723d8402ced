"""Keeping freed memory is a switch of the C library."""

import sys

from cluster.allocator import keep_freed_memory


def test_glibc_takes_all_three_settings():
    assert keep_freed_memory() == sys.platform.startswith("linux")
