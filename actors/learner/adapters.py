"""LoRA: low-rank adapters (peft) beside the linear layers of the language model.

Always true: with adapters everything else is frozen; the layers are changed in place, so the model keeps its class;
whoever asks for weights gets the base model's names, shapes and dtype, each adapted one computed as
`base + alpha / rank * B A` into memory of its own, so that reading changes nothing of what is trained. Without its
adapters the model is the one that training began with: the reference of a KL term costs no second copy.

In bf16 a published weight is rounded after the sum, while the learner adds the adapter's output unrounded: sampler and
learner differ by that rounding, and the off-policy correction sees it (`mismatch_kl` among the metrics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actors.learner.parts import language_model
from actors.learner.settings import LoraSettings
from cluster.errors import UserError

ADAPTER = "default"  # peft can hold several by name; here there is one


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight as the base model names it. Under ZeRO-3 `parts` must be gathered before it is read."""

    name: str
    parts: tuple[nn.Parameter, ...]  # what it is made of: itself, or a frozen weight and its adapter
    read: Callable[[], Tensor]


def add_adapters(model: Any, settings: LoraSettings) -> None:
    """Put an adapter beside each target and freeze everything else. Raise UserError for a target that is not there.

    The adapters begin with no effect (B is zero), and alike on all ranks.
    """
    from peft import LoraConfig
    from peft.functional import inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] (said to be an int, and only divided)
        lora_dropout=settings.dropout,
        target_modules=_targets(model, settings.targets),
    )
    with torch.random.fork_rng(devices=[]):  # adapters are made on the CPU, where the model still is
        torch.manual_seed(settings.seed)
        inject_adapter_in_model(config, model, ADAPTER)


def adapted(model: Any) -> bool:
    """Whether `add_adapters` was called on this model."""
    return hasattr(model, "peft_config")


def base_weights(model: nn.Module) -> list[Weight]:
    """Every weight of the base model, in its order, adapters merged into those that have one."""
    layers = {id(layer.base_layer.weight): layer for layer in _adapted_layers(model)}
    adapters = {id(parameter) for layer in layers.values() for parameter in _adapter_of(layer)}
    found = []
    for name, parameter in model.named_parameters():
        if id(parameter) in adapters:
            continue
        layer = layers.get(id(parameter))
        if layer is None:
            found.append(Weight(name.replace(".base_layer.", "."), (parameter,), partial(_data, parameter)))
        else:
            parts = (parameter, *_adapter_of(layer))
            found.append(Weight(name.replace(".base_layer.", "."), parts, partial(_merged, layer)))
    return found


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within, the model is the one that training began with. For passes without gradient alone."""
    layers = _adapted_layers(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _targets(model: Any, names: list[str]) -> list[str]:
    """Full names of the linear layers of the language model that are called so; of all when there are no names."""
    language = language_model(model)
    (prefix,) = (name for name, module in model.named_modules() if module is language)
    linear = [name for name, module in language.named_modules() if isinstance(module, nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"lora.targets names {', '.join(unknown)}; the linear layers of the language model of "
            f"{type(model).__name__} are {', '.join(known)}."
        )
    return [f"{prefix}.{name}" for name in linear if not names or name.rpartition(".")[2] in names]


def _adapted_layers(model: nn.Module) -> list[Any]:
    if not adapted(model):  # without adapters peft, which takes seconds to import, is not needed
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _adapter_of(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _data(parameter: nn.Parameter) -> Tensor:
    return parameter.data


def _merged(layer: Any) -> Tensor:
    """Base plus adapter, added in fp32, in the base weight's dtype."""
    base = layer.base_layer.weight.data
    with torch.no_grad():
        return (base.float() + layer.get_delta_weight(ADAPTER).float()).to(base.dtype)
