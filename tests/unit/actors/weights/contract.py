"""What every transport promises, as tests: a test module imports them all and gives its own `way`.

Unit tests take the transports that need no server, integration tests those of Ray and S3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.weights.manifest import TornPublish, WeightMismatch, WeightsRefused, WeightTicket, weight_files
from actors.weights.receiver import Receiver
from actors.weights.transport import WeightTransport

BUCKET = 300 << 10  # bytes: the model below takes several


class Way(ABC):
    """A transport under test, and how to spoil what it holds."""

    transport: WeightTransport

    def __init__(self, landing: Path) -> None:
        landing.mkdir()
        self.landing, self.receiver = landing, Receiver(landing)

    def send(self, version: int, tensors: dict[str, torch.Tensor]) -> WeightTicket:
        return self.transport.send(version, tensors.items())

    def got(self, ticket: WeightTicket, expected: dict[str, tuple[int, ...]] | None = None) -> dict[str, torch.Tensor]:
        with self.receiver.opened(ticket, expected) as folder:
            return {name: tensor.clone() for file in weight_files(folder) for name, tensor in load_file(file).items()}

    @abstractmethod
    def spoilt(self, ticket: WeightTicket, number: int, change: Callable[[bytes], bytes]) -> WeightTicket:
        """The ticket when bucket `number` has become other bytes."""

    @abstractmethod
    def lost(self, ticket: WeightTicket, number: int) -> WeightTicket:
        """The ticket when bucket `number` is gone."""


def model(scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "model.embed.weight": torch.randn(300, 256, generator=generator) * scale,
        "model.norm.bias": (torch.randn(5, generator=generator) * scale).to(torch.bfloat16),
        "lm_head.weight": torch.randn(256, 300, generator=generator).T * scale,  # not contiguous
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def behind(ticket: WeightTicket, other: WeightTicket) -> WeightTicket:
    """The promise of one and the bytes of the other."""
    return replace(ticket, folder=other.folder, buckets=other.buckets)


def test_what_is_sent_is_what_is_opened(way: Way):
    for version in range(3):
        ticket = way.send(version, model(version + 1.0))
        assert ticket.version == version
        assert same(way.got(ticket), model(version + 1.0))
    last = way.send(3, model(4.0))
    assert same(way.got(last), model(4.0))
    assert same(way.got(last), model(4.0))  # as often as anybody asks: a sampler that joins late does


def test_weights_are_whole_only_until_the_next_one_is_asked_for(way: Way):
    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        """As under ZeRO-3, where the memory goes back after each bucket."""
        for name, tensor in model().items():
            lent = tensor.contiguous().clone()
            yield name, lent
            lent.zero_()

    assert same(way.got(way.transport.send(0, gathered())), model())


def test_who_sent_can_open_what_is_newest_too(way: Way):
    way.send(0, model())
    way.send(1, model(2.0))
    with way.transport.opened(1) as folder:
        assert weight_files(folder)
    with pytest.raises(TornPublish), way.transport.opened(7):
        pass


def test_a_version_sent_again_replaces_the_earlier_one(way: Way):
    way.send(1, model(1.0))
    new = way.send(1, model(2.0))
    assert same(way.got(new), model(2.0))


def test_a_version_that_is_being_read_stays_as_it_is_while_others_are_sent(way: Way):
    ticket = way.send(0, model(1.0))
    with way.receiver.opened(ticket) as folder:
        for version in range(1, 5):
            way.send(version, model(version + 1.0))
        read = {name: t.clone() for file in weight_files(folder) for name, t in load_file(file).items()}
    assert same(read, model(1.0))
    last = way.send(5, model(9.0))
    assert same(way.got(last), model(9.0))


def test_a_name_that_never_arrived_is_torn(way: Way):
    whole = way.send(0, model())
    partial = way.send(1, {name: tensor for name, tensor in model().items() if name != "scalar"})
    with pytest.raises(TornPublish, match="never arrived, first scalar"):
        way.got(behind(whole, partial))


@pytest.mark.parametrize(
    "change",
    [
        {"scalar": torch.zeros(2)},
        {"scalar": torch.tensor(3.0, dtype=torch.bfloat16)},
        {"surprise": torch.zeros(1)},
    ],
)
def test_another_shape_dtype_or_name_is_a_mismatch(way: Way, change: dict[str, torch.Tensor]):
    whole = way.send(0, model())
    other = way.send(1, model() | change)
    with pytest.raises(WeightMismatch, match=r"scalar|surprise"):
        way.got(behind(whole, other))


def test_weights_of_another_version_are_damaged_ones(way: Way):
    one, two = way.send(0, model()), way.send(1, model(2.0))
    with pytest.raises(TornPublish, match="damaged"):
        way.got(behind(one, two))


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_a_truncated_bucket_is_torn(way: Way, kept: int):
    ticket = way.send(0, model())
    with pytest.raises(TornPublish, match=r"truncated|damaged"):
        way.got(way.spoilt(ticket, 1, lambda data: data[:kept]))


def test_a_flipped_bit_is_torn_and_so_is_a_broken_header(way: Way):
    ticket = way.send(0, model())
    with pytest.raises(TornPublish, match=r"norm\.bias are damaged"):
        way.got(way.spoilt(ticket, 1, lambda data: data[:-1] + bytes([data[-1] ^ 1])))
    with pytest.raises(TornPublish, match="header"):
        way.got(way.spoilt(way.send(1, model()), 0, lambda data: data[:8] + b"\0" + data[9:]))


def test_a_bucket_that_is_gone_is_torn(way: Way):
    with pytest.raises(TornPublish):
        way.got(way.lost(way.send(0, model()), 1))


def test_a_forged_ticket_is_a_mismatch(way: Way):
    ticket = way.send(0, model())
    for forged in (replace(ticket, version=1), replace(ticket, manifest=ticket.manifest[1:])):
        with pytest.raises(WeightMismatch, match="own manifest"):
            way.got(forged)


def test_a_model_that_needs_something_else_refuses(way: Way):
    ticket = way.send(0, model())
    assert same(way.got(ticket, {"scalar": ()}), model())
    for expected, message in (({"model.other": (3,)}, "not published"), ({"model.norm.bias": (6,)}, "shape")):
        with pytest.raises(WeightMismatch, match=message):
            way.got(ticket, expected)


def test_after_a_refusal_nothing_is_left_and_the_next_version_is_opened(way: Way):
    way.got(way.send(0, model()))
    torn = way.spoilt(way.send(1, model(2.0)), 0, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(WeightsRefused):
        way.got(torn)
    assert not list(way.landing.glob("*/v000001"))
    assert same(way.got(way.send(2, model(3.0))), model(3.0))
    way.receiver.close()
    assert not list(way.landing.iterdir())


def test_a_sender_that_dies_leaves_the_last_version(way: Way):
    def dying() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(model(2.0).items())[:3]
        raise OSError("disk full")

    before = way.send(4, model())
    with pytest.raises(OSError, match="disk full"):
        way.transport.send(5, dying())
    assert same(way.got(before), model())
    with pytest.raises(TornPublish), way.transport.opened(5):
        pass


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([], "no weights"),
        ([("a", torch.zeros(1))] * 2, "twice"),
        ([("a", torch.zeros(1, dtype=torch.complex64))], "dtype"),
    ],
)
def test_what_cannot_be_published_is_refused(way: Way, sent: list, message: str):
    with pytest.raises(ValueError, match=message):
        way.transport.send(0, sent)
