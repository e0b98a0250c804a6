"""Two processes learn what one learns."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_policy

from simfarm.methods.config import DPOConfig, PPOConfig, QuarkConfig, REINFORCEConfig, RLOOConfig
from simfarm.methods.dpo import dpo
from simfarm.methods.ppo import ppo
from simfarm.methods.preferences import Preferences
from simfarm.methods.quark import quark
from simfarm.methods.reinforce import reinforce
from simfarm.methods.rloo import rloo
from simfarm.policies import workers
from simfarm.policies.split import SplitModel
from simfarm.policies.training import METRICS, Setup


def by_length(responses, texts) -> np.ndarray:
    return np.array([r.text.count("e") + len(r.tokens) / 10 for r in responses])


def learn(folder: Path) -> None:
    """A few steps of several methods."""
    split = SplitModel(tiny_policy(layers=2), 1)
    prompts = [split.policy.render(p) for p in ("one", "two and more", "three")]
    words = [split.policy.encode_response(w) for w in ("abc", "de", "fghij", "k", "lm", "nop")]
    pairs = Preferences(prompts, words[:3], words[3:], np.array([1.0, 0.0, 0.5]))
    shared = {"max_new_tokens": 5, "seed": 0}
    slow = {"learning_rate": 1e-3, "warmup_steps": 0}
    dpo(split, pairs, DPOConfig(batch_size=3, learning_rate=1e-3), seed=0, setup=Setup(folder=folder / "dpo"))
    rl = split, prompts, by_length
    rloo(*rl, RLOOConfig(steps=2, prompts=3, samples=3, **slow), **shared, setup=Setup(folder=folder / "rloo"))
    quark(*rl, QuarkConfig(steps=2, rollouts=9, **slow), **shared, setup=Setup(folder=folder / "quark"))
    reinforce(*rl, REINFORCEConfig(steps=2, rollouts=7, **slow), **shared, setup=Setup(folder=folder / "reinforce"))
    ppo(*rl, PPOConfig(steps=2, rollouts=7, minibatch=4, **slow), **shared, setup=Setup(folder=folder / "ppo"))


def one_of_two(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    workers.join()
    assert (workers.rank(), workers.count()) == (rank, 2)
    learn(folder)
    workers.leave()


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    learn(tmp_path / "one")
    torch.multiprocessing.start_processes(one_of_two, (tmp_path / "two", port), nprocs=2, start_method="spawn")
    for method in ("dpo", "rloo", "quark", "reinforce", "ppo"):
        one, two = (
            [json.loads(line) for line in (tmp_path / n / method / METRICS).read_text().splitlines()]
            for n in ("one", "two")
        )
        assert len(one) == len(two) > 0
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {"seconds"}:
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), (method, name)
