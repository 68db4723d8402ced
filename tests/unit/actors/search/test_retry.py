import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.retry import wait_before
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import RetrySettings

SETTINGS = RetrySettings(retries=3, first_wait=1.0, longest_wait=5.0)


@given(st.integers(0, 2), st.integers(0, 2**32))
def test_waits_grow_with_jitter_between_half_and_all_of_the_exponential(attempt, seed):
    wait = wait_before(attempt, ProviderError(ErrorKind.TRANSIENT, ""), SETTINGS, random.Random(seed))
    assert wait is not None
    assert min(5.0, 2**attempt) / 2 <= wait <= min(5.0, 2**attempt)


@pytest.mark.parametrize("kind", [ErrorKind.BAD_KEY, ErrorKind.NO_CREDIT, ErrorKind.BAD_REQUEST, ErrorKind.SCHEMA])
def test_what_another_attempt_cannot_mend_is_not_tried_again(kind):
    assert wait_before(0, ProviderError(kind, ""), SETTINGS, random.Random(0)) is None


def test_attempts_end():
    assert wait_before(3, ProviderError(ErrorKind.RATE, ""), SETTINGS, random.Random(0)) is None


def test_a_retry_after_is_honoured_and_a_long_one_is_not_sat_out():
    rng = random.Random(0)
    assert wait_before(0, ProviderError(ErrorKind.RATE, "", 4.0), SETTINGS, rng) == 4.0
    assert wait_before(0, ProviderError(ErrorKind.RATE, "", 6.0), SETTINGS, rng) is None
