"""Collections that come rarely."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from cluster.collector import collect_rarely


class Knot:
    """Holds itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def usual_collections() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_lives_is_no_longer_gone_through() -> None:
    collect_rarely()
    assert gc.get_freeze_count() > 1000
    assert len(gc.get_objects()) < gc.get_freeze_count()


def test_full_collections_come_after_far_more_objects_than_by_default() -> None:
    young, middle, old = gc.get_threshold()
    collect_rarely()
    rarely = gc.get_threshold()
    assert rarely[0] * rarely[1] * rarely[2] > 10 * young * middle * old


def test_cycles_that_die_afterwards_are_still_freed() -> None:
    collect_rarely()
    knot = weakref.ref(Knot())
    gc.collect()
    assert knot() is None
