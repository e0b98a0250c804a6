"""Low-rank adaptation (Hu et al. 2021, section 4.1): beside each frozen linear map W two small trained ones.

    y = W x + B A x,   A (r, in) uniform in ±1/√in,  B (out, r) zero: at the start y = W x

peft with α = r computes the same, which the tests check against its numbers. What is needed of it is the one module
below, on frozen weights that several tops of one model share.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

from simfarm import draws


class LoRALinear(nn.Module):
    """A frozen linear map and its adapter, in float32."""

    def __init__(self, base: nn.Linear, rank: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.base = base
        bound, device = base.in_features**-0.5, base.weight.device
        start = rng.uniform(-bound, bound, (rank, base.in_features))
        self.a = nn.Parameter(torch.tensor(start, dtype=torch.float32, device=device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (…, in) to (…, out)."""
        return torch.as_tensor(self.base(x) + linear(linear(x, self.a), self.b))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return W + B A as one linear map, in float32."""
        whole = copy.deepcopy(self.base).float()
        whole.weight += self.b @ self.a
        return whole


def with_lora(module: nn.Module, rank: int) -> nn.Module:
    """Return the module with an adapter on each of its linear maps; its own weights are shared, not copied."""
    twin = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    for name, child in list(twin.named_modules()):
        if isinstance(child, nn.Linear):
            _replace(twin, name, LoRALinear(child, rank, np.random.default_rng(draws.seed_for(0, "lora", name))))
    return twin


def without_lora(module: nn.Module) -> nn.Module:
    """Return a copy of the module with its adapters merged, if it has any."""
    twin = copy.deepcopy(module)
    for name, child in list(twin.named_modules()):
        if isinstance(child, LoRALinear):
            _replace(twin, name, child.merged())
    return twin


def _replace(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)
