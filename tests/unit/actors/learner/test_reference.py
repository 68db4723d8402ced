"""Where the frozen reference stands between the steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actors.learner import reference
from actors.learner.reference import Reference

META = torch.device("meta")  # a device of its own to move to, which every machine has


class Untouched:
    """Stands for a batch."""

    def to(self, device: torch.device) -> Untouched:
        return self


@pytest.fixture
def seen(monkeypatch) -> list[set[str]]:
    """On which devices the weights stood in each scoring pass."""
    found: list[set[str]] = []

    def score(model: nn.Module, batch: Untouched, temperature: float) -> torch.Tensor:
        found.append({tensor.device.type for tensor in (*model.parameters(), *model.buffers())})
        assert not torch.is_grad_enabled()
        if len(found) > 2:
            raise MemoryError("no room")
        return torch.zeros(1)

    monkeypatch.setattr(reference, "token_logprobs", score)
    return found


def test_an_offloaded_reference_is_on_the_device_only_while_it_scores(seen):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 3))  # with parameters and buffers
    model[2].weight = model[1].weight  # tied
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    frozen = Reference(model, META, offload=True)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert len(frozen.logprobs([Untouched(), Untouched()], 1.0)) == 2
    assert seen == [{"meta"}] * 2
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    with pytest.raises(MemoryError):
        frozen.logprobs([Untouched()], 1.0)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


def test_without_offload_it_stays_on_the_device(seen):
    frozen = Reference(nn.BatchNorm1d(3), META, offload=False)
    frozen.logprobs([Untouched()], 1.0)
    assert seen == [{"meta"}]


def test_on_a_cpu_there_is_nothing_to_offload(seen):
    model = nn.Linear(2, 2)
    before = model.weight.data_ptr()
    Reference(model, torch.device("cpu"), offload=True).logprobs([Untouched()], 1.0)
    assert seen == [{"cpu"}]
    assert model.weight.data_ptr() == before
    assert not model.weight.requires_grad


@pytest.mark.gpu
def test_an_offloaded_reference_leaves_the_gpus_memory_as_it_was(monkeypatch):
    def score(model: nn.Module, batch: Untouched, temperature: float) -> torch.Tensor:
        return model(torch.ones(1, 1024, device="cuda")).sum().reshape(1)

    monkeypatch.setattr(reference, "token_logprobs", score)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    model = nn.Linear(1024, 1024, bias=False)
    expected = float(model.weight.detach().sum())
    frozen = Reference(model, torch.device("cuda", torch.cuda.current_device()), offload=True)
    assert model.weight.is_pinned()
    (found,) = frozen.logprobs([Untouched()], 1.0)
    assert float(found) == pytest.approx(expected, rel=1e-3, abs=1e-2)
    del found
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 4 * 1024 * 1024
