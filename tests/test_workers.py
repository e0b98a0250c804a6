"""Two processes learn what one learns, each with the whole of what is trained or, sharded, with its part of it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import tiny_policy
from torch.distributed.tensor import DTensor

from simfarm.methods.config import DPOConfig, PPOConfig, QuarkConfig, REINFORCEConfig, RLOOConfig
from simfarm.methods.dpo import dpo
from simfarm.methods.ppo import ppo
from simfarm.methods.preferences import Preferences
from simfarm.methods.quark import quark
from simfarm.methods.reinforce import reinforce
from simfarm.methods.rloo import rloo
from simfarm.policies import workers
from simfarm.policies.split import SplitModel, Top, save_tensors
from simfarm.policies.training import METRICS, Setup, Trainer
from simfarm.policies.transformers import Response
from simfarm.rewards.model import RewardModel, Text

METHODS = "dpo", "rloo", "quark", "reinforce", "ppo", "ppo-shared", "lora"
TOP, POLICY = "top.safetensors", "policy.safetensors"


class CutError(Exception):
    """What ends a training in its middle."""


def by_length(responses: Sequence[Response], texts: Sequence[Text]) -> NDArray[np.float64]:
    return np.array([r.text.count("e") + len(r.tokens) / 10 for r in responses])


def tiny() -> tuple[SplitModel, list[str]]:
    split = SplitModel(tiny_policy(layers=3), 2, gradient_checkpointing=True)
    return split, [split.policy.render(p) for p in ("one", "two and more", "three")]


def keep(split: SplitModel, top: Top, folder: Path) -> None:
    """Save what was trained, and the policy as it answers."""
    save_tensors(top, folder / TOP)
    policy = split.with_top(top, "kept")
    if workers.rank() == 0:
        save_file({name: p.clone() for name, p in policy.model.named_parameters()}, folder / POLICY)


def learn(folder: Path) -> None:
    """A few steps of several methods."""
    split, prompts = tiny()
    words = [split.policy.encode_response(w) for w in ("abc", "de", "fghij", "k", "lm", "nop")]
    pairs = Preferences(prompts, words[:3], words[3:], np.array([1.0, 0.0, 0.8]))
    rl = split, prompts, by_length
    slow = {"learning_rate": 1e-3, "warmup_steps": 0}

    def shared(name: str) -> dict:
        return {"max_new_tokens": 5, "seed": 0, "setup": Setup(folder=folder / name, micro_batch=2)}

    def by_dpo(name: str, split: SplitModel) -> Top:
        # one pair a step: one of two processes has nothing
        setup = Setup(folder=folder / name, micro_batch=2)
        return dpo(split, pairs, DPOConfig(batch_size=1, learning_rate=1e-3), seed=0, setup=setup)

    tops: dict[str, Callable[[str], Top]] = {
        "dpo": lambda name: by_dpo(name, split),
        "rloo": lambda name: rloo(*rl, RLOOConfig(steps=2, prompts=3, samples=3, **slow), **shared(name)),
        "quark": lambda name: quark(*rl, QuarkConfig(steps=2, rollouts=9, **slow), **shared(name)),
        "reinforce": lambda name: reinforce(*rl, REINFORCEConfig(steps=2, rollouts=7, **slow), **shared(name)),
        "ppo": lambda name: by_ppo(folder / name),
        "ppo-shared": lambda name: by_ppo(folder / name, value_network="shared"),
        "lora": lambda name: by_dpo(name, split.with_lora_rank(2)),
    }
    for name in METHODS:
        keep(split, tops[name](name), folder / name)


def by_ppo(folder: Path, *, cut: bool = False, **settings: object) -> Top:
    """Learn from a reward model, where the value network starts; stop after the first step if asked to."""

    def progress(steps: int) -> None:
        if cut:
            raise CutError

    split, prompts = tiny()
    model = RewardModel(split)
    with torch.no_grad():
        model.score.weight.copy_(torch.linspace(-1, 1, split.hidden_size))
    config = PPOConfig(
        steps=2, rollouts=7, minibatch=4, checkpoint_every=1, learning_rate=1e-3, warmup_steps=0, **settings
    )
    top, _ = ppo(
        split,
        prompts,
        lambda _, texts: model.rewards_of_texts(texts, batch_size=3),
        config,
        max_new_tokens=5,
        seed=0,
        value_top=model.top,
        setup=Setup(folder=folder, micro_batch=2, progress=progress),
    )
    return top


def check_parts(folder: Path) -> None:
    """Train while noting what this process holds: about half of weights, gradients and moments."""
    seen: list[Trainer] = []
    record = Trainer.record

    def noted(trainer: Trainer, row: dict) -> None:
        seen.append(trainer)
        record(trainer, row)

    with patch.object(Trainer, "record", noted):
        by_ppo(folder)
    trainer = seen[0]
    split, _ = tiny()
    whole = 2 * sum(p.numel() for p in tiny_policy(layers=2).model.base_model.layers.parameters())
    parts = [p for p in trainer.trained if isinstance(p, DTensor)]
    assert [tuple(p.shape) for p in trainer.trained if not isinstance(p, DTensor)] == [(1, split.hidden_size), (1,)]
    for held in (
        [p.to_local() for p in parts],
        [p.grad.to_local() for p in parts],
        *([trainer.optimiser.state[p][key].to_local() for p in parts] for key in ("exp_avg", "exp_avg_sq")),
    ):
        memory = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in held)}
        assert sum(memory.values()) == pytest.approx(4 * whole / 2, rel=0.05)


def one_of_two(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    workers.join()
    assert (workers.rank(), workers.count(), workers.sharded()) == (rank, 2, False)
    learn(folder / "two")
    # what `accelerate launch --use_fsdp` sets
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    assert workers.sharded()
    learn(folder / "sharded")
    check_parts(folder / "noted")
    keep(tiny()[0], by_ppo(folder / "one, then sharded"), folder / "one, then sharded")
    with pytest.raises(CutError):
        by_ppo(folder / "sharded, then one", cut=True)
    workers.leave()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings by one process, by two, by two sharded ones, and by one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    learn(folder / "one")
    with pytest.raises(CutError):
        by_ppo(folder / "one, then sharded", cut=True)
    torch.multiprocessing.start_processes(one_of_two, (folder, port), nprocs=2, start_method="spawn")
    keep(tiny()[0], by_ppo(folder / "sharded, then one"), folder / "sharded, then one")
    return folder


def check_same(one: Path, other: Path) -> None:
    rows = [[json.loads(line) for line in (f / METRICS).read_text().splitlines()] for f in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 0
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), name
    for file in (TOP, POLICY):
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["two", "sharded"])
def test_two_processes_learn_what_one_learns(runs: Path, how: str, method: str) -> None:
    check_same(runs / "one" / method, runs / how / method)


@pytest.mark.parametrize("how", ["one, then sharded", "sharded, then one"])
def test_a_checkpoint_is_the_same_sharded_or_not(runs: Path, how: str) -> None:
    check_same(runs / "one" / "ppo", runs / how)
