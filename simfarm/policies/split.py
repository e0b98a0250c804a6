"""Train the last k layers only, on one frozen trunk that policy, reference, value and reward model share.

The trunk (embeddings and all layers but the last k) is computed once for a text, without gradients; each *top* (a copy
of the last k layers and the final norm) then costs k layers instead of all. With k equal to the number of layers the
trunk is the embedding alone. Embeddings and the language-model head are never trained.

With a LoRA rank, a top is the model's own last k layers, frozen and shared, and adapters that are trained.

Rows are filled on the right: under causal attention no token sees what stands after it, so no mask is needed.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from simfarm.errors import ConfigError, ModelError, suggest
from simfarm.policies import sharding, workers
from simfarm.policies.lora import LoRALinear, with_lora, without_lora
from simfarm.policies.transformers import (
    TransformersPolicy,
    hidden_states,
    prompt_sorted_batches,
    token_log_probabilities,
)


class Top(nn.Module):
    """The last k layers and the final norm of a model, in float32: (B, T, H) trunk states to (B, T, H) states."""

    def __init__(self, body: nn.Module, compute: torch.dtype) -> None:
        super().__init__()
        self.body = body
        self.compute = compute

    def forward(self, trunk: torch.Tensor) -> torch.Tensor:
        """Run the layers; matrix products in the dtype of the trunk's model."""
        with torch.autocast(trunk.device.type, self.compute, enabled=self.compute != torch.float32):
            return cast(torch.Tensor, self.body(inputs_embeds=trunk.float(), use_cache=False).last_hidden_state)

    def rows(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run B rows of trunk states, (T_b, H), filled on the right to (B, T, H).

        Without rows one position is computed and thrown away: if the top is sharded, other processes wait for it.
        """
        if states:
            return cast(torch.Tensor, self(nn.utils.rnn.pad_sequence(list(states), batch_first=True)))
        body: Any = self.body
        blank = torch.zeros(1, 1, body.config.hidden_size, device=next(self.parameters()).device)
        return cast(torch.Tensor, self(blank)[:0])


class SplitModel:
    """A causal language model cut below its last k layers."""

    def __init__(
        self,
        policy: TransformersPolicy,
        trainable_layers: int,
        *,
        lora_rank: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Cut the model of a policy, which stays as it is.

        Args:
            policy: The model.
            trainable_layers: k.
            lora_rank: Train adapters of this rank on the linear maps of the last k layers, not the layers themselves.
            gradient_checkpointing: Compute each layer's activations a second time for the gradient instead of keeping
                them: less memory, about a third more time, the same gradient.

        Raises:
            ConfigError: `trainable_layers` is not from 1 to the number of layers, or `lora_rank` is below 1.
            ModelError: The model has no `layers` and `norm`, or the two parts do not compute what the whole does.
        """
        base = policy.model.base_model
        if not isinstance(getattr(base, "layers", None), nn.ModuleList) or not hasattr(base, "norm"):
            raise ModelError(
                f"The model {policy.name!r} ({type(base).__name__}) has no layers and norm to cut between."
            )
        depth = len(base.layers)
        if not 1 <= trainable_layers <= depth:
            raise ConfigError(
                f"trainable_layers is {trainable_layers}; {policy.name!r} has {depth} layers: give 1 to {depth}."
            )
        if lora_rank is not None and lora_rank < 1:
            raise ConfigError(f"lora_rank is {lora_rank}; give 1 or more, or nothing to train the layers themselves.")
        self.policy = policy
        self.k = trainable_layers
        self.lora_rank = lora_rank
        self.gradient_checkpointing = gradient_checkpointing
        self.compute = cast(torch.dtype, policy.model.dtype)
        self._trunk = _view(base, base.layers[: depth - trainable_layers], nn.Identity())
        self._check()

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.policy.model.config.hidden_size)

    @cached_property
    def trunk_hash(self) -> str:
        """A hash of the first values of every parameter of the trunk, in bfloat16, whatever dtype it is loaded in."""
        found = hashlib.sha256()
        for name, p in sorted(self._trunk.named_parameters()):
            found.update(f"{name} {tuple(p.shape)}".encode())
            found.update(p.detach().flatten()[:256].bfloat16().view(torch.int16).cpu().numpy().tobytes())
        return found.hexdigest()

    def trunk_states(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, batch_size: int = 16
    ) -> list[torch.Tensor]:
        """Return the states below the top, without gradients, in the model's dtype.

        Args:
            prompts: n token lists, not empty.
            responses: n token lists.
            batch_size: Rows computed together.

        Returns:
            n tensors, (tokens of prompt and response, H), in the order given.
        """
        states: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        for rows in prompt_sorted_batches(prompts, batch_size):
            some = [prompts[i] for i in rows], [responses[i] for i in rows]
            for i, row in zip(rows, hidden_states(self._trunk, *some, self.policy.pad_id), strict=True):
                states[i] = row.clone()
        return states

    def new_top(self, start: Top | None = None) -> Top:
        """Return a trainable copy, in float32, of the model's last k layers and final norm, or of those of `start`.

        With a LoRA rank, the adapters are in float32 and the layers, frozen, are the model's own. Without, the copy is
        sharded if training is, layer by layer: no process ever holds all of it.
        """
        base: Any = self.policy.model.base_model
        layers, norm = base.layers[-self.k :], base.norm
        if self.lora_rank is None:
            layers = nn.ModuleList(
                sharding.shard(copy.deepcopy(layer).float().requires_grad_(True)) for layer in layers
            )
            norm = copy.deepcopy(norm).float().requires_grad_(True)
        elif start is not None:
            layers, norm = copy.deepcopy(layers).float(), copy.deepcopy(norm).float()
        if start is not None:
            _fill(nn.ModuleList([*layers, norm]), start)
        if self.lora_rank is not None:
            layers, norm = with_lora(layers, self.lora_rank), copy.deepcopy(norm).requires_grad_(False)
        body = _view(base, layers, norm)
        if self.gradient_checkpointing:
            # its name before transformers 5.20
            older: Any = getattr(body, "gradient_checkpointing_enable", None)
            getattr(body, "activation_checkpointing_enable", older)({"use_reentrant": False})
            for layer in layers:
                # transformers recomputes in training only; what is inside the layer stays as it is, without dropout
                layer.training = True
        top = Top(body, self.compute)
        return sharding.shard(top) if self.lora_rank is None else top

    def initial_top(self) -> Top:
        """Return the last k layers and final norm with the model's own weights, not to be trained: a reference's."""
        base: Any = self.policy.model.base_model
        parts = nn.ModuleList([base.norm, *base.layers[-self.k :]])
        # a LayerNorm takes no weights of another dtype than what it is given, which is float32: it alone is copied
        shared = {id(p): p for m in parts.modules() if not isinstance(m, nn.LayerNorm) for p in m._parameters.values()}
        norm, *layers = copy.deepcopy(parts, shared)
        for module in nn.ModuleList([norm, *layers]).modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
        return Top(_view(base, layers, norm), self.compute)

    def with_lora_rank(self, lora_rank: int | None) -> SplitModel:
        """Return the same model and cut, with tops of another kind."""
        twin = copy.copy(self)
        twin.lora_rank = lora_rank
        return twin

    def log_probabilities(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of tokens, (N,), from a top's states that predict them, (N, H)."""
        with torch.autocast(states.device.type, self.compute, enabled=self.compute != torch.float32):
            return token_log_probabilities(self.policy.model.get_output_embeddings(), states, targets)

    def with_top(self, top: Top, name: str) -> TransformersPolicy:
        """Return a policy that computes with a copy of `top`, LoRA merged, in the model's dtype and shares the rest.

        If the top is sharded, on all processes at once; the copy is whole on each.
        """
        model = self.policy.model
        own: Any = copy.deepcopy(nn.ModuleList([*model.base_model.layers[-self.k :], model.base_model.norm]))
        *layers, norm = own.requires_grad_(False)
        _fill(nn.ModuleList([*layers, norm]), top)
        base = _view(model.base_model, [*model.base_model.layers[: -self.k], *layers], norm)
        whole = _shallow(model)
        whole._modules[model.base_model_prefix] = base
        policy = TransformersPolicy(whole, self.policy.tokenizer, name=name)
        policy.end_ids = self.policy.end_ids
        return policy

    @torch.no_grad()
    def _check(self) -> None:
        probe = list(range(2, 10))
        (whole,) = hidden_states(self.policy.model.base_model, [probe], [[]], self.policy.pad_id)
        (trunk,) = self.trunk_states([probe], [[]])
        # in the model's own dtype: a top adds up in float32, which over thirty layers in bfloat16 is another number
        parts = self.initial_top().body(inputs_embeds=trunk.unsqueeze(0), use_cache=False).last_hidden_state[0].float()
        whole = whole.float()
        gap = float((whole - parts).norm() / whole.norm())
        if not gap < 0.05:
            raise ModelError(
                f"The model {self.policy.name!r} cannot be cut between its layers: trunk and top together differ "
                f"from the whole by {gap:.0%}. Its forward pass does more than run its layers in turn."
            )


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _view(base: Any, layers: Any, norm: nn.Module) -> Any:
    view = _shallow(base)
    view.config = copy.copy(base.config)
    view.config.num_hidden_layers = len(layers)
    view._modules["layers"] = nn.ModuleList(layers)
    view._modules["norm"] = norm
    return view


def _fill(parts: nn.ModuleList, top: Top) -> None:
    """Copy into k layers and a norm, whole or sharded, the weights of a top, LoRA merged."""
    body: Any = top.body
    layers = body.layers[-(len(parts) - 1) :]
    if any(isinstance(module, LoRALinear) for module in layers.modules()):
        layers = without_lora(layers)
    for own, given in zip(parts, [*layers, body.norm], strict=True):
        for p, q in zip(own.parameters(), given.parameters(), strict=True):
            sharding.put(p, q)


def save_tensors(module: nn.Module, path: Path, **metadata: str) -> None:
    """Save a module's trained tensors as safetensors; the file appears whole or not at all.

    If the module is sharded, on all processes at once; process 0 writes.
    """
    from safetensors.torch import save_file

    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    tensors = {name: sharding.at_first(p).detach().cpu().contiguous() for name, p in trained}
    if workers.rank() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def load_tensors(module: nn.Module, path: Path) -> None:
    """Load what `save_tensors` saved into a module of the same shape.

    Raises:
        ModelError: The file is missing, damaged, or of another module.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights {path} cannot be read: {error}") from error
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name in own.keys() ^ tensors.keys():
        raise ModelError(f"The weights {path} do not fit: {name!r} is not in both.{suggest(name, own)}")
    for name, p in own.items():
        if p.shape != tensors[name].shape:
            raise ModelError(
                f"The weights {path} do not fit: {name} is {tuple(tensors[name].shape)}, not {tuple(p.shape)}."
            )
        sharding.put(p, tensors[name])
