"""Sharded training (FSDP): every process keeps a part of the trained weights, of their gradients and of Adam's moments.

torch's `fully_shard` (Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023) cuts every tensor along its first
dimension. A layer's weights are put together before the layer is computed and dropped after it; gradients are added up
over processes, each of which keeps its part. A call of a sharded module is thus a call on every process: `in_step`
gives processes the same number of them.

Sharded is what `SplitModel.new_top` makes, tops that are trained and those of a reward model. Adapters (LoRA) and a
value's head are small and stay whole, as in training by several processes without sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from simfarm.policies import workers

Module = TypeVar("Module", bound=nn.Module)


def shard(module: Module) -> Module:
    """Cut the trainable parameters of a module that are not cut yet, if training is sharded; return the module."""
    if workers.sharded():
        parameters = list(module.parameters())
        state = fully_shard(
            module,
            mesh=init_device_mesh(parameters[0].device.type, (workers.count(),)),
            reshard_after_forward=True,
            ignored_params={p for p in parameters if not p.requires_grad},
        )
        # a sum, not a mean: the trainer divides by the batch's total. Gloo has no sum with a factor
        state.set_gradient_divide_factor(1.0)
        state.set_force_sum_reduction_for_comms(True)
    return module


def in_step(parts: Iterable[list[int]]) -> list[list[int]]:
    """Return the parts of this process and, if training is sharded, empty ones up to the most that any process has."""
    mine = list(parts)
    most = max(workers.gather([len(mine)])) if workers.sharded() else len(mine)
    return mine + [[]] * (most - len(mine))


@torch.no_grad()
def put(own: torch.Tensor, given: torch.Tensor) -> None:
    """Copy a tensor into another of the same shape, each whole or in parts; on all processes at once."""
    if not isinstance(own, DTensor) and isinstance(given, DTensor):
        given = given.full_tensor()
    own.copy_(like(own, given))


def like(own: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor if `own`, of the same shape, is in parts; else what is given."""
    if not isinstance(own, DTensor) or isinstance(given, DTensor) or own.shape != given.shape:
        return given
    return distribute_tensor(given.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def at_first(tensor: torch.Tensor) -> torch.Tensor:
    """Put the parts of a tensor together on process 0, in its CPU's memory; others get an empty one.

    On all processes at once. A whole tensor is returned as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor().detach()
    return whole.cpu() if workers.rank() == 0 else torch.empty(0)


@torch.no_grad()
def clip_gradients(parameters: Sequence[torch.Tensor], max_norm: float) -> float:
    """Scale gradients down to a norm, over all parameters and their parts everywhere; return the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    if not parts:
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    squares = nn.utils.get_total_norm(parts) ** 2
    workers.add_up([squares])
    norm = float((squares + nn.utils.get_total_norm(whole).to(squares.device) ** 2).sqrt())
    for gradient in [*parts, *whole]:
        # as in torch's clip_grad_norm_
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm
