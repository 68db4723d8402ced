"""What the publish bench makes of its measurements."""

from __future__ import annotations

import pytest
from rich.console import Console

from actors.weights.manifest import WeightsRefused
from cluster.errors import UserError
from workflows.bench.publish import TRANSPORTS, PublishLoad, Sent, decoder, document_of, show, transports_named
from workflows.bench.publish_pause import Clock, Turns
from workflows.bench.publish_pause import document_of as pause_document
from workflows.bench.ratios import Spread


def test_rates_are_bytes_a_second_and_the_share_is_taken_between_neighbours():
    later = [Sent(write=1.0, total=2.0, copy=0.5), Sent(write=4.0, total=5.0, copy=2.0), Sent(1.0, 2.0, 0.9)]
    found = document_of(100, Sent(10.0, 20.0, 1.0), later)
    assert found["write"]["median"] == 100
    assert found["end_to_end"] == {"median": 50.0, "low": 20.0, "high": 50.0, "n": 3}
    assert found["write_of_copy"]["median"] == 0.5
    assert (found["first_write"], found["first_end_to_end"]) == (10.0, 5.0)


def test_gaps_of_a_time_are_those_that_reach_into_it():
    clock = Clock([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
    assert clock.gaps() == [1.0, 1.0, 3.0, 1.0, 1.0]
    assert max(clock.gaps(2.5, 4.0)) == 3.0
    assert clock.gaps(2.5, 4.0) == [3.0]
    assert clock.gaps(5.5, 6.5) == [1.0, 1.0]


@pytest.mark.parametrize(("pause", "word"), [(0.049, "reached"), (0.051, "missed")])
def test_two_steps_and_twenty_milliseconds_are_allowed(pause, word, capsys):
    found = pause_document(128, Spread(0.015, 0.01, 0.02, 9), [pause] * 3, [0.06], [120], Turns(ended=500, across=20))
    assert found["allowed_ms"] == pytest.approx(50)
    show({"pause": found}, Console(width=120))
    said = capsys.readouterr().out
    assert word in said
    assert "500 / 20" in said


@pytest.mark.parametrize(("write", "total", "words"), [(1.9, 0.2, "reached, reached"), (2.1, 0.6, "missed, missed")])
def test_the_targets_are_those_of_shared_memory(write, total, words, capsys):
    n_bytes = 1_000_000_000
    later = [Sent(write=write, total=total, copy=1.0)] * 3
    show({"transports": {"shared_memory": document_of(n_bytes, later[0], later)}}, Console(width=120))
    assert words in capsys.readouterr().out


def test_the_made_up_decoder_has_about_the_bytes_that_were_asked_for():
    layer = sum(tensor.nbytes for tensor in decoder(1).values())
    assert sum(tensor.nbytes for tensor in decoder(3 * layer + 5).values()) == 3 * layer


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (PublishLoad(parts=("all",)), "--part is 'all' and must be transports or pause"),
        (PublishLoad(requests=1), "--requests at least 2"),
    ],
)
def test_what_cannot_be_asked_is_said(load, message):
    with pytest.raises(UserError, match=message):
        load.check()


def test_transports_are_those_that_are_named_or_all():
    assert transports_named([]) == TRANSPORTS
    assert transports_named(["storage", "shared_memory"]) == ("storage", "shared_memory")
    with pytest.raises(UserError, match="--transport is 'pigeon' and must be shared_memory, object_store or storage"):
        transports_named(["storage", "pigeon"])


def test_a_reader_that_got_other_bytes_says_so():
    import torch

    from actors.weights.manifest import WeightEntry, digest_of, make_ticket
    from workflows.bench.publish import Reader

    reader = Reader()
    reader._tensors = {"a": torch.zeros(3)}
    honest = WeightEntry("a", "F32", (3,), digest_of(torch.zeros(3).numpy()))
    reader.check(make_ticket(0, "", [honest]))
    with pytest.raises(WeightsRefused, match="a did not arrive"):
        reader.check(make_ticket(0, "", [WeightEntry("a", "F32", (3,), digest_of(torch.ones(3).numpy()))]))
