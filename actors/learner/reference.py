"""The frozen copy of the policy that a KL term measures the divergence from.

It is the model as training began, on every rank whole, never changed. Offloaded, it stands in the host's memory and its
weights are on the accelerator only while it scores; nothing is copied back, as the host's copy stayed true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.learner.backends import suit_machine
from actors.learner.settings import BackendSettings
from actors.model.batch import TokenBatch
from actors.model.forward import token_logprobs
from actors.model.load import load_policy


class Reference:
    """Log-probs under a frozen model."""

    def __init__(self, model: Any, device: torch.device, *, offload: bool) -> None:
        """`model` is on the CPU. With `offload` it stays there between calls; on a CPU that changes nothing."""
        self._model: Any = model.requires_grad_(False).eval()
        self._device = device
        self._at_home = offload and device.type != "cpu"
        if not self._at_home:
            self._model.to(device)
        elif device.type == "cuda":
            for _, _, tensor in _slots(self._model):
                if not tensor.is_pinned():  # from pageable memory the driver would copy twice
                    tensor.data = tensor.data.pin_memory()

    @classmethod
    def load(cls, source: Path, settings: BackendSettings, device: torch.device, *, offload: bool) -> Reference:
        """A second copy of a model folder, as the policy was when it was loaded from there."""
        model = load_policy(source, "float32" if settings.precision == "fp32" else "bfloat16")
        suit_machine(model, settings)
        return cls(model, device, offload=offload)

    def logprobs(self, micro_batches: Sequence[TokenBatch], temperature: float) -> list[Tensor]:
        """Of the trained tokens of each micro-batch: float32[n], in the row-major order of its `loss_mask`."""
        with torch.no_grad(), self._on_device():
            return [token_logprobs(self._model, batch.to(self._device), temperature) for batch in micro_batches]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        if not self._at_home:
            yield
            return
        home = list(_slots(self._model))
        moved: dict[int, Tensor] = {}  # a tied head is the embedding, here and there
        try:
            for module, name, tensor in home:
                if id(tensor) not in moved:
                    there = tensor.detach().to(self._device, non_blocking=True)
                    weight = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = nn.Parameter(there, requires_grad=False) if weight else there
                setattr(module, name, moved[id(tensor)])
            yield
        finally:
            for module, name, tensor in home:
                setattr(module, name, tensor)


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Where each parameter and buffer hangs: (module, attribute, tensor)."""
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield module, name, tensor
