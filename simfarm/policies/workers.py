"""Several processes that train one model: each holds the model and every n-th row.

`accelerate launch` and `torchrun` start them and say in the environment who is who. Row i of a data set belongs to
process i mod n: only there are its states computed and its gradients taken. Gradients are added up over processes
before each optimiser step, so n processes learn what one learns, up to rounding. What each holds of what is trained is
all of it, or a part if training is sharded (see `sharding`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def join() -> None:
    """Join the other processes that a launcher started, if it started any; otherwise do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def wait() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Leave the group that `join` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sharded() -> bool:
    """Say whether several processes share one copy of what is trained: after `accelerate launch --use_fsdp`."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")


def own(rows: Iterable[int]) -> list[int]:
    """Return the rows that belong to this process, in the order given."""
    return [i for i in rows if i % count() == rank()]


def gather(mine: Sequence[T]) -> list[T]:
    """Put the rows of all processes together: given the own rows 0 … in order, return all rows in order."""
    if count() == 1:
        return list(mine)
    parts: list[list[T]] = [[] for _ in range(count())]
    dist.all_gather_object(parts, list(mine))
    return [row for group in itertools.zip_longest(*parts, fillvalue=None) for row in group if row is not None]


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
