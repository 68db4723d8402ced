"""Python's garbage collector in processes that must not pause.

A full collection goes through every object that lives, and by default comes again and again as objects are made: with
the libraries that a worker imports and a few thousand calls under way it stops the process for tenths of a second. A
provider's quota that goes unused in a pause is lost, and so is the latency of all who wait.
"""

from __future__ import annotations

import gc

# collections of the young, of the middle-aged, of all: the last after some 5 million new objects instead of 70,000
_THRESHOLDS = (10_000, 20, 25)


def collect_rarely() -> None:
    """Leave what lives now to the end of the process, and go through all that comes later only now and then.

    To be called once all is imported and made. What dies by its reference count is freed at once as ever; only cycles
    that have grown old wait longer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
