"""Published weights arrive whole or are refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

from actors.weights.manifest import (
    INDEX_FILE,
    SINGLE_FILE,
    TornPublish,
    WeightMismatch,
    make_ticket,
    read_ticket,
    verify,
)
from actors.weights.transport import FolderTransport, write_weights


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "model.embed.weight": torch.randn(7, 4, generator=generator) * scale,
        "model.norm.bias": (torch.randn(5, generator=generator) * scale).to(torch.bfloat16),
        "lm_head.weight": torch.randn(4, 7, generator=generator).T * scale,  # not contiguous
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
    }


@pytest.fixture
def transport(tmp_path) -> FolderTransport:
    return FolderTransport(tmp_path / "weights")


def test_what_is_sent_is_what_is_received(transport):
    ticket = transport.send(3, weights().items())
    got = dict(transport.receive(ticket))
    assert got.keys() == weights().keys()
    for name, tensor in weights().items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
    assert ticket.version == 3
    assert ticket.parameters == 28 + 5 + 28 + 0 + 1


def test_safetensors_own_reader_agrees(transport):
    from safetensors.torch import load_file

    ticket = transport.send(0, weights().items())
    assert torch.equal(load_file(f"{ticket.folder}/{SINGLE_FILE}")["lm_head.weight"], weights()["lm_head.weight"])


def test_many_shards_are_one_model(tmp_path):
    transport = FolderTransport(tmp_path, shard_bytes=100)
    ticket = transport.send(0, weights().items())
    index = json.loads((transport.folder(0) / INDEX_FILE).read_text())
    assert set(index["weight_map"]) == set(weights())
    assert len(set(index["weight_map"].values())) == 4
    got = dict(transport.receive(ticket))
    assert all(torch.equal(got[name], tensor) for name, tensor in weights().items())


def test_the_last_two_versions_are_kept_and_close_removes_all(transport):
    for version in range(4):
        transport.send(version, weights(version).items())
    assert transport.versions() == [2, 3]
    transport.close()
    assert not transport.root.exists()


def test_a_version_sent_again_replaces_the_earlier_one(transport):
    old = transport.send(1, weights(1.0).items())
    new = transport.send(1, weights(2.0).items())
    verify(new)
    with pytest.raises(TornPublish, match="damaged"):
        verify(old)
    assert [path.name for path in transport.root.iterdir()] == ["v000001"]


def test_a_sender_that_dies_leaves_no_version(transport):
    def dying():
        yield from list(weights().items())[:2]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        transport.send(5, dying())
    assert transport.versions() == []
    assert list(transport.root.iterdir()) == []


def test_the_config_travels_with_the_weights(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    transport = FolderTransport(tmp_path / "weights", config_from=tmp_path / "model")
    ticket = transport.send(0, weights().items())
    assert (transport.folder(0) / "config.json").read_text() == "{}"
    assert read_ticket(transport.folder(0)) == ticket


def test_versions_left_by_a_killed_writer_do_not_displace_what_a_resumed_one_sends(transport):
    for version in (10, 11):
        transport.send(version, weights().items())
    resumed = FolderTransport(transport.root)
    for version in (8, 9, 10):
        ticket = resumed.send(version, weights(2.0).items())
        assert torch.equal(dict(resumed.receive(ticket))["scalar"], weights()["scalar"])
        assert max(resumed.versions()) == version
    assert resumed.versions() == [9, 10]


@pytest.mark.parametrize("keep_bytes", [0, 4, 30, -1])
def test_a_truncated_file_is_torn(transport, keep_bytes):
    ticket = transport.send(0, weights().items())
    file = transport.folder(0) / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:keep_bytes])
    with pytest.raises(TornPublish, match=r"truncated|damaged"):
        verify(ticket)


def test_a_flipped_bit_is_torn(transport):
    ticket = transport.send(0, weights().items())
    file = transport.folder(0) / SINGLE_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(TornPublish, match="damaged"):
        list(transport.receive(ticket))


def test_a_missing_folder_and_a_missing_shard_are_torn(tmp_path):
    transport = FolderTransport(tmp_path, shard_bytes=100)
    ticket = transport.send(0, weights().items())
    (transport.folder(0) / "model-00002.safetensors").unlink()
    with pytest.raises(TornPublish, match="model-00002"):
        verify(ticket)
    transport.close()
    with pytest.raises(TornPublish, match="has no"):
        verify(ticket)
    with pytest.raises(TornPublish, match="manifest"):
        read_ticket(transport.folder(0))


def test_a_name_that_never_arrived_is_torn(transport):
    whole = transport.send(0, weights().items())
    partial = {name: tensor for name, tensor in weights().items() if name != "lm_head.weight"}
    write_weights(partial.items(), transport.folder(0))
    with pytest.raises(TornPublish, match=r"never arrived, first lm_head\.weight"):
        verify(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"lm_head.weight": torch.zeros(4, 7)},
        {"lm_head.weight": torch.zeros(7, 4, dtype=torch.bfloat16)},
        {"surprise": torch.zeros(1)},
    ],
)
def test_another_shape_dtype_or_name_is_a_mismatch(transport, change):
    ticket = transport.send(0, weights().items())
    write_weights((weights() | change).items(), transport.folder(0))
    with pytest.raises(WeightMismatch, match=r"lm_head|surprise"):
        verify(ticket)


def test_a_forged_ticket_is_a_mismatch(transport):
    ticket = transport.send(0, weights().items())
    with pytest.raises(WeightMismatch, match="own manifest"):
        verify(replace(ticket, version=1))
    with pytest.raises(WeightMismatch, match="own manifest"):
        verify(replace(ticket, manifest=ticket.manifest[1:]))


def test_a_model_that_needs_more_refuses(transport):
    ticket = transport.send(0, weights().items())
    verify(ticket, {"scalar": ()})
    with pytest.raises(WeightMismatch, match="not published"):
        verify(ticket, {"model.other": (3,)})
    with pytest.raises(WeightMismatch, match="shape"):
        verify(ticket, {"model.norm.bias": (6,)})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([], "no weights"),
        ([("a", torch.zeros(1))] * 2, "twice"),
        ([("a", torch.zeros(1, dtype=torch.complex64))], "dtype"),
    ],
)
def test_what_cannot_be_published_is_refused(transport, sent, message):
    with pytest.raises(ValueError, match=message):
        transport.send(0, sent)


def test_a_small_model_is_published_and_verified_in_milliseconds(transport):
    model = {f"layer.{i}": torch.randn(120, 128) for i in range(100)}  # 6 MB
    transport.send(0, model.items())
    best = float("inf")
    for version in range(1, 6):
        started = time.perf_counter()
        verify(transport.send(version, model.items()))
        best = min(best, time.perf_counter() - started)
    assert best < 0.2  # about 0.01 on an idle machine


def test_a_ticket_is_independent_of_the_order_of_sending(transport, tmp_path):
    forward = write_weights(weights().items(), tmp_path)
    assert make_ticket(0, tmp_path, forward) == make_ticket(0, tmp_path, forward[::-1])
