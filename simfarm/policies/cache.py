"""A cache of keys and values that is appended to in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens that room is kept for beyond those that are there."""


class RoomyLayer(DynamicLayer):
    """A layer's cache in which a new token is written beside the others; DynamicLayer copies all of them each time."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._room: list[torch.Tensor] = []
        self._shown: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return all keys and values; see DynamicLayer."""
        before = self.get_seq_length()
        if not before:
            self.lazy_initialization(key_states, value_states)
        after = before + key_states.shape[-2]
        # rows selected or tokens cropped: `keys` is no longer what was shown of the room
        if not self._room or self.keys is not self._shown or self._room[0].shape[-2] < after:
            self._room = [s.new_empty(*s.shape[:2], after + ROOM, s.shape[-1]) for s in (key_states, value_states)]
            if before:
                for room, known in zip(self._room, (self.keys, self.values), strict=True):
                    room[:, :, :before] = known
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, before:after] = new
        self.keys, self.values = keys, values = [room[:, :, :after] for room in self._room]
        self._shown = keys
        return keys, values


def roomy_cache(config: Any) -> DynamicCache:
    """Return an empty cache for a model; layers of other kinds (sliding windows) stay as transformers makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
