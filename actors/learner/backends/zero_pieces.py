"""Where DeepSpeed keeps what is trained: the piece of every parameter that a rank holds, at each ZeRO stage.

    0, fp32    the parameter itself is the master; torch's optimizer has a state for each
    0, bf16    an fp32 copy of each parameter, in two lists of groups (FP16_UnfusedOptimizer)
    1, 2       one flat fp32 partition a group; `_hp_mapping` says which stretch of a parameter lies where in it
               (1 in bf16 is BF16_Optimizer, which has another name for the partitions)
    3          each parameter is cut into equal stretches, one a rank, the last one padded; a rank's stretches lie one
               after the other in flat fp32 tensors, of which `grad_position` knows the places

These are the engine's inner names, of the version that is pinned: nothing else in this project reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actors.learner.backends.trained_state import ADAMW_MOMENTS, MASTER, Piece

if TYPE_CHECKING:
    from actors.learner.backends.ranks import Ranks


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's own within what DeepSpeed made of it."""
    return getattr(optimizer, "optimizer", optimizer)


def masters_of(model: nn.Module, optimizer: Any, stage: int) -> list[Tensor]:
    """The tensors that torch's optimizer steps on, for which it has a state each."""
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if stage > 0:
        return _partitions(optimizer)
    return [master for _, _, master in _whole(model, optimizer)]


def pieces_of(model: nn.Module, optimizer: Any, stage: int, ranks: Ranks, steps: int) -> list[Piece]:
    """Of every trained parameter what this rank holds; before the first step (`steps` 0) there are no moments."""
    state = torch_optimizer(optimizer).state
    kinds = ADAMW_MOMENTS if steps else ()
    if stage == 0:
        return [
            Piece(name, tuple(parameter.shape), 0, _views(master, state, kinds, 0, master.numel()))
            for name, parameter, master in _whole(model, optimizer)
        ]
    one = _stretch if stage == 3 else _mapped
    return [one(name, parameter, optimizer, state, kinds, ranks) for name, parameter in _trained(model)]


@torch.no_grad()
def spread(model: nn.Module, optimizer: Any, stage: int) -> None:
    """Copy the masters into the parameters that passes are made with. All ranks together."""
    if stage == 3:
        for flat, master in zip(
            optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            flat.data.copy_(master.data)
    elif stage > 0:
        optimizer.update_lp_params()
    else:
        for _, parameter, master in _whole(model, optimizer):
            parameter.data.copy_(master.data)


def _trained(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _whole(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Of stage 0: names, parameters and their masters."""
    masters: dict[int, Any] = {}
    if hasattr(optimizer, "fp32_groups"):
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters |= {id(parameter): master for parameter, master in zip(low, high, strict=True)}
    for name, parameter in _trained(model):
        yield name, parameter, masters.get(id(parameter), parameter)


def _mapped(name: str, parameter: Any, optimizer: Any, state: Any, kinds: tuple[str, ...], ranks: Ranks) -> Piece:
    """Of stages 1 and 2, where a partition's border may go through a parameter."""
    shape, mapping = tuple(parameter.shape), parameter._hp_mapping
    if mapping is None:
        none = torch.zeros(0, device=parameter.device)
        return Piece(name, shape, 0, dict.fromkeys((MASTER, *kinds), none))
    flat = _partitions(optimizer)[mapping.param_group_index]
    there = mapping.get_hp_fragment_address()
    values = _views(flat, state, kinds, there.start, there.numel)
    return Piece(name, shape, mapping.lp_fragment_address.start, values)


def _partitions(optimizer: Any) -> list[Tensor]:
    name = "single_partition_of_fp32_groups"
    return list(getattr(optimizer, name if hasattr(optimizer, name) else "fp32_groups_flat_partition"))


def _stretch(name: str, parameter: Any, optimizer: Any, state: Any, kinds: tuple[str, ...], ranks: Ranks) -> Piece:
    """Of stage 3, without the padding."""
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = min(length * ranks.rank, parameter.ds_numel)
    inside = min(length, parameter.ds_numel - start)
    flat = optimizer.fp32_partitioned_groups_flat[group]
    return Piece(name, tuple(parameter.ds_shape), start, _views(flat, state, kinds, offset, inside))


def _views(
    flat: Tensor, state: Mapping[Tensor, Mapping[str, Tensor]], kinds: tuple[str, ...], start: int, length: int
) -> dict[str, Tensor]:
    """The master and its moments, [length]."""
    tensors = {MASTER: flat} | {kind: state[flat][kind] for kind in kinds}
    return {kind: tensor.detach().view(-1)[start : start + length] for kind, tensor in tensors.items()}
