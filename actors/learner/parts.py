"""The parts of a vision-language model, found in its own module structure, and how to leave one untrained.

A frozen part has no gradients and is in no optimizer. Pictures need no gradient themselves, so a frozen vision tower
keeps no activations at all; the projector behind it may still be trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cluster.errors import UserError

# The names that transformers' models give to what lies between the vision tower and the language model, which is
# inside the tower (Qwen: merger, and one for each of Qwen3's deep layers) or beside it (LLaVA and its relatives).
PROJECTORS = ("merger", "deepstack_merger_list", "multi_modal_projector", "connector", "projector")


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Turn off the gradients of these parts (vision, projector). Raise UserError when the model has no such part."""
    for part in parts:
        for parameter in part_parameters(model, part):
            parameter.requires_grad_(False)


def part_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The parameters of a part: `vision` is the tower without its projector. Raise UserError when there is none."""
    tower = vision_tower(model)
    inner = getattr(model, "base_model", model)
    projectors = [child for parent in (tower, inner) for name, child in parent.named_children() if name in PROJECTORS]
    if part == "vision":
        others = {id(parameter) for module in projectors for parameter in module.parameters()}
        return [parameter for parameter in tower.parameters() if id(parameter) not in others]
    if part != "projector":
        raise ValueError(f"unknown part {part!r}; accepted: vision, projector")
    if not projectors:
        raise UserError(
            f"{type(model).__name__} has no projector: none of {', '.join(PROJECTORS)} is among the modules of its "
            f"vision tower ({_children(tower)}), nor beside it ({_children(inner)})."
        )
    return [parameter for module in projectors for parameter in module.parameters()]


def vision_tower(model: Any) -> nn.Module:
    """The module that sees pictures, its projector included where that is inside. Raise UserError without one."""
    tower = model.get_encoder("image")
    if tower is model or tower is model.base_model:
        raise UserError(f"{type(model).__name__} has no vision tower; its modules are {_children(model.base_model)}.")
    return tower


def language_model(model: Any) -> nn.Module:
    """The text decoder, without its head. Raise UserError without one."""
    decoder = model.get_decoder()
    if decoder is model:
        raise UserError(f"{type(model).__name__} has no language model; its modules are {_children(model)}.")
    return decoder


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "none"
