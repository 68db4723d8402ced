"""Ctrl-C: heeded at the next good moment, and never forgotten."""

import signal

import pytest

from workflows.progress import stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_one_that_came_too_late_to_be_heeded_interrupts_at_the_end(number):
    before, reached = signal.getsignal(number), []

    def works_on():
        with stopped_by_signals() as stop:
            assert not stop
            signal.raise_signal(number)
            assert stop
            reached.append(stop.signal)

    with pytest.raises(KeyboardInterrupt):
        works_on()
    assert reached == [number]
    assert signal.getsignal(number) is before


def test_a_second_signal_interrupts_at_once():
    reached = []

    def works_on():
        with stopped_by_signals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            reached.append("too far")

    with pytest.raises(KeyboardInterrupt):
        works_on()
    assert not reached


def test_without_a_signal_nothing_is_raised():
    with stopped_by_signals() as stop:
        pass
    assert not stop
