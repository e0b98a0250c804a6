"""What every training loop shares: batches in parts, metrics, checkpoints, samples along the way, early stops.

A loop is `for step in trainer.steps(): …; trainer.record(row)`. Every draw inside a step is keyed by the step: a
checkpoint needs parameters, optimiser and metrics only, and an interrupted run ends as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import nn
from torch.distributed.tensor import DTensor

from simfarm import draws
from simfarm.errors import RunError, TrainingError
from simfarm.policies import sharding, workers
from simfarm.policies.trackers import Tracker
from simfarm.policies.transformers import TransformersPolicy
from simfarm.progress import Progress, no_progress, track

CHECKPOINT, METRICS, SAMPLES = "checkpoint.pt", "metrics.jsonl", "samples.jsonl"

Loss = Callable[[list[int]], tuple[torch.Tensor, Mapping[str, float]]]
"""Rows -> (loss summed over them, metrics summed over them).

In sharded training also called without rows, by a process that has fewer than others: it is to compute with the same
modules in the same order, as `Top.rows` lets it, and to return a sum over nothing.
"""

Gold = Callable[[Sequence[str]], NDArray[np.float64]]
"""n responses to the watched prompts -> (n,) scores by what is really wanted, such as a pool without noise."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What is looked at along training, and when it ends training before its last step."""

    prompts: Sequence[str] = ()
    """Rendered prompts answered at every look; responses and KL go to samples.jsonl."""
    every: int = 10
    """Steps between two looks."""
    max_new_tokens: int = 64
    gold: Gold | None = None
    """Scores the responses; their mean is the metric `gold`."""
    patience: int | None = None
    """Looks without a better gold after which training ends; the parameters of the best look are put back."""
    max_kl: float | None = None
    """KL to the initial policy, in nats per response, beyond which training ends."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a method is run. Nothing but `watch` changes what is learned, up to rounding."""

    folder: Path | None = None
    """Where checkpoint, metrics.jsonl and samples.jsonl go; a checkpoint found there is gone on from."""
    micro_batch: int = 16
    """Rows whose gradients are computed at once: halve it if memory runs out."""
    batch_size: int = 128
    """Rows decoded together."""
    checkpoint_every: int = 10
    """Steps between two checkpoints."""
    progress: Progress = no_progress
    """Called with the number of steps that became ready."""
    show: bool = False
    """Show the steps on standard error."""
    watch: Watch | None = None
    tracker: Tracker | None = None
    """Told the metrics of every step."""


PLAIN = Setup()
"""Nothing kept, nothing watched."""


class Trainer:
    """Steps of one method: gradients in parts, added up over parts and processes; what is kept of each step."""

    def __init__(
        self,
        method: str,
        config: BaseModel,
        modules: Mapping[str, nn.Module],
        *,
        steps: int,
        learning_rate: float,
        rate: Callable[[int], float],
        seed: int,
        setup: Setup,
        policy: Callable[[], TransformersPolicy],
        reference: TransformersPolicy,
        data: draws.Part,
        marker: str = "",
        weight_decay: float = 0.0,
        adam_eps: float = 1e-8,
        max_grad_norm: float = 1.0,
    ) -> None:
        """Make an optimiser (AdamW) over the trainable parameters of the modules.

        Args:
            method: Name, kept in checkpoints.
            config: Hyper-parameters, kept in checkpoints.
            modules: What is trained, by name.
            steps: How many there are.
            learning_rate: Peak.
            rate: Step -> factor of the learning rate.
            seed: Kept in checkpoints; and of the watched responses.
            setup: How to run.
            policy: Makes the present policy, to answer watched prompts.
            reference: The initial policy.
            data: What is learned from; its hash is kept in checkpoints.
            marker: What the policy finds before every prompt that is watched.
            weight_decay: Of AdamW.
            adam_eps: ε of Adam.
            max_grad_norm: Gradients are scaled down to this norm.
        """
        self.setup, self.policy, self.reference, self.marker, self.rate = setup, policy, reference, marker, rate
        self.modules, self.total_steps, self.seed, self.max_grad_norm = modules, steps, seed, max_grad_norm
        self.learning_rate = learning_rate
        facts = {"method": method, "seed": seed, "steps": steps, "data": draws.digest(data).hex()[:16]}
        self.identity: dict[str, Any] = {**facts, **config.model_dump()}
        self._younger = {"data": facts["data"], **type(config).model_construct().model_dump()}
        """What a checkpoint without a key counts as having: a config's defaults, and data that nobody hashed."""
        self.trained = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=learning_rate, weight_decay=weight_decay, eps=adam_eps)
        self.history: list[dict[str, float]] = []
        self.extra: dict[str, float] = {}
        """State of the method beside its parameters, kept in checkpoints."""
        self._best: tuple[float, int, list[torch.Tensor]] | None = None
        self.stopped = ""
        """Why training ended before its last step; empty if it did not."""

    def steps(self) -> Iterator[int]:
        """Yield the steps still to do, each with its learning rate set; the first after the checkpoint's last.

        Raises:
            RunError: The checkpoint is damaged, or of another method, seed or config.
        """
        if self.setup.folder is not None and (self.setup.folder / CHECKPOINT).is_file():
            self._restore(self.setup.folder / CHECKPOINT)
            self.setup.progress(len(self.history))
        visible = self.setup.show and workers.rank() == 0
        with track(self.identity["method"], self.total_steps if visible else 0, "steps") as advance:
            advance(len(self.history))
            for step in range(len(self.history), self.total_steps):
                if self.stopped:
                    break
                for group in self.optimiser.param_groups:
                    group["lr"] = self.learning_rate * self.rate(step)
                yield step
                advance(1)
        if self.stopped and visible:
            print(f"  {self.identity['method']}: {self.stopped}", file=sys.stderr, flush=True)

    def update(self, rows: Sequence[int], lengths: Sequence[int], total: float, loss: Loss) -> dict[str, float]:
        """Take one optimiser step on -gradient of (sum of the rows' losses) / total.

        Args:
            rows: The batch, on every process the same; each takes those that are its own.
            lengths: Tokens by row, to put rows of like length together.
            total: What the sum is divided by: rows or tokens of the whole batch.
            loss: The loss.

        Returns:
            loss (divided by total), and each metric of `loss` summed over the batch.

        Raises:
            TrainingError: Loss or gradient is not finite, or memory ran out. Parameters stay as they were.
        """
        # parts of like length: little filling; their sum is the same in any order
        mine = sorted(workers.own(rows), key=lambda i: lengths[i])
        self.optimiser.zero_grad()
        sums: dict[str, float] = {}
        starts = range(0, len(mine), self.setup.micro_batch)
        for some in sharding.in_step(mine[start : start + self.setup.micro_batch] for start in starts):
            try:
                part, metrics = loss(some)
                (part / total).backward()
            except (RuntimeError, MemoryError) as error:
                # on a CPU PyTorch says it in a RuntimeError like any other
                if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
                    raise
                raise TrainingError(
                    f"Memory ran out with {self.setup.micro_batch} rows at once. Set micro_batch to "
                    f"{max(1, self.setup.micro_batch // 2)}: it halves what a step needs and changes nothing else."
                ) from error
            for name, value in {"loss": float(part.detach()) / total, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        sums = self._over_processes(sums)
        norm = sharding.clip_gradients(self.trained, self.max_grad_norm)
        if not math.isfinite(sums["loss"]) or not math.isfinite(norm):
            kept = "the last checkpoint is kept" if self.setup.folder else "no folder was given to keep checkpoints in"
            raise TrainingError(
                f"{self.identity['method']}: the loss is not finite at step {len(self.history)} ({kept}). Lower "
                f"learning_rate, now {self.learning_rate:g}."
            )
        self.optimiser.step()
        return sums

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        """Add up sums and gradients over processes; a process without rows of a batch takes part with zeros."""
        if workers.count() == 1:
            return sums
        for p in self.trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        # gradients in parts are added up as they come
        workers.add_up(p.grad for p in self.trained if p.grad is not None and not isinstance(p, DTensor))
        parts = workers.gather([sums])
        return {name: sum(part.get(name, 0.0) for part in parts) for name in {k: 0 for part in parts for k in part}}

    def record(self, row: Mapping[str, float]) -> None:
        """End a step: keep its metrics, look if it is time, write a checkpoint if it is time, see whether to go on."""
        step = len(self.history)
        done = {"step": float(step), **row, "learning_rate": self.learning_rate * self.rate(step)}
        watch = self.setup.watch
        if watch is not None and watch.prompts and ((step + 1) % watch.every == 0 or step + 1 == self.total_steps):
            done |= self._look(watch, step)
        self.history.append(done)
        if watch is not None and watch.max_kl is not None:
            kl = max(done.get("kl", 0.0), done.get("watched_kl", 0.0))
            if kl > watch.max_kl:
                self.stopped = f"KL {kl:.3g} nats is beyond {watch.max_kl:g} after step {step}"
        folder = self.setup.folder
        if folder is not None:
            if workers.rank() == 0:
                write_jsonl(folder / METRICS, self.history)
            if (step + 1) % self.setup.checkpoint_every == 0 or step + 1 == self.total_steps or self.stopped:
                self._save(folder / CHECKPOINT)
        if self.setup.tracker is not None and workers.rank() == 0:
            self.setup.tracker.log(done, step=step)
        self.setup.progress(1)

    def _look(self, watch: Watch, step: int) -> dict[str, float]:
        policy = self.policy()
        asked = [self.marker + prompt for prompt in watch.prompts]
        responses = policy.sample(
            asked,
            [["watch", i] for i in range(len(asked))],
            max_new_tokens=watch.max_new_tokens,
            seed=self.seed,
            batch_size=self.setup.batch_size,
        )
        tokens = [r.tokens for r in responses]
        logp = policy.log_probabilities(asked, tokens)
        ref = self.reference.log_probabilities(watch.prompts, tokens)
        kl = [float((a - b).sum()) for a, b in zip(logp, ref, strict=True)]
        seen = {"watched_kl": float(np.mean(kl)), "watched_length": float(np.mean([len(t) for t in tokens]))}
        rows: list[dict[str, Any]] = [
            {"step": step, "prompt": prompt, "output": r.text, "kl": k}
            for prompt, r, k in zip(watch.prompts, responses, kl, strict=True)
        ]
        if watch.gold is not None:
            gold = watch.gold([r.text for r in responses])
            seen["gold"] = float(gold.mean())
            rows = [row | {"gold": float(g)} for row, g in zip(rows, gold, strict=True)]
            self._judge(seen["gold"], step, watch.patience)
        if self.setup.folder is not None and workers.rank() == 0:
            path = self.setup.folder / SAMPLES
            before = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
            write_jsonl(path, [*(row for row in before if row["step"] < step), *rows])
        return seen

    def _judge(self, gold: float, step: int, patience: int | None) -> None:
        if self._best is None or gold > self._best[0]:
            self._best = (gold, step, [p.detach().clone() for p in self.trained])
        elif patience is not None and self.setup.watch is not None:
            best, at, parameters = self._best
            if step - at >= patience * self.setup.watch.every:
                self.stopped = f"gold has not risen since step {at}, where it was {best:.3g}; that policy is kept"
                with torch.no_grad():
                    for p, kept in zip(self.trained, parameters, strict=True):
                        p.copy_(kept)

    def _save(self, path: Path) -> None:
        """Write a checkpoint, the same whether training is sharded or not; on all processes at once."""
        state = {
            "identity": self.identity,
            "modules": {name: _at_first(trained_tensors(module)) for name, module in self.modules.items()},
            "optimiser": {
                key: {i: _at_first(moments) for i, moments in value.items()} if key == "state" else value
                for key, value in self.optimiser.state_dict().items()
            },
            "history": self.history,
            "extra": self.extra,
            "best": self._best and (*self._best[:2], [sharding.at_first(p) for p in self._best[2]]),
            "stopped": self.stopped,
        }
        if workers.rank() != 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        torch.save(state, partial)
        partial.replace(path)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=workers.sharded())
            identity = {**self._younger, **state["identity"]}
            modules = state["modules"]
            tensors = {name: module.keys() for name, module in modules.items()}
        except (OSError, RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise RunError(f"The checkpoint {path} is damaged. Delete it to begin anew.") from error
        other = [key for key in self.identity if identity.get(key) != self.identity[key]]
        if other:
            key = other[0]
            raise RunError(
                f"The checkpoint {path} is of another training: {key} was {identity.get(key)!r} and is now "
                f"{self.identity[key]!r}. Give another folder, or delete it to begin anew."
            )
        if tensors != {name: trained_tensors(module).keys() for name, module in self.modules.items()}:
            raise RunError(
                f"The checkpoint {path} is of a training of other weights: another number of layers, or LoRA in one of "
                "them. Give another folder, or delete it to begin anew."
            )
        for name, module in self.modules.items():
            for key, p in trained_tensors(module).items():
                sharding.put(p, modules[name][key])
        optimiser, best = state["optimiser"], state["best"]
        moments = {
            i: {key: sharding.like(self.trained[i], value) for key, value in some.items()}
            for i, some in optimiser["state"].items()
        }
        self.optimiser.load_state_dict({**optimiser, "state": moments})
        self.history, self.extra, self.stopped = state["history"], state["extra"], state["stopped"]
        self._best = best and (*best[:2], list(map(sharding.like, self.trained, best[2])))


def trained_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trainable parameters by name, without their gradients."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def _at_first(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: sharding.at_first(tensor) for name, tensor in tensors.items()}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one object a line, the whole file or nothing; a number that is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    # JSON has no NaN
    clean = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    partial.write_text("".join(json.dumps(row) + "\n" for row in clean), "utf-8")
    partial.replace(path)


def epoch_batches(n: int, batch_size: int, epochs: int, order: Callable[[int], Sequence[int]]) -> list[list[int]]:
    """Deal rows out in batches, all n in a new order each epoch.

    Args:
        n: Rows.
        batch_size: Rows per batch; an epoch's last may be smaller.
        epochs: Passes.
        order: Epoch -> a permutation of range(n).
    """
    orders = [list(order(epoch)) for epoch in range(epochs)]
    return [rows[k : k + batch_size] for rows in orders for k in range(0, n, batch_size)]
