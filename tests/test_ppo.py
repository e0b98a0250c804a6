"""PPO's pieces against values computed by hand, and PPO itself on a reward that can be learned."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tiny import tiny_policy

from simfarm.errors import DataError, RunError, TrainingError
from simfarm.methods.config import PPOConfig
from simfarm.methods.ppo import (
    gae,
    masked_mean,
    next_kl_coef,
    policy_loss,
    ppo,
    value_loss,
    whiten,
)
from simfarm.methods.rollouts import prompt_rows
from simfarm.policies.split import SplitModel
from simfarm.policies.training import CHECKPOINT, Setup

T = torch.tensor


def test_gae_by_hand() -> None:
    # δ = (0 + .9·.5 - .2, 1 + 0 - .5) = (.25, .5); A = (.25 + .9·.8·.5, .5)
    advantages, returns = gae(T([[0.0, 1.0, 7.0]]), T([[0.2, 0.5, 9.0]]), T([[1.0, 1.0, 0.0]]), gamma=0.9, lam=0.8)
    assert advantages[0].tolist() == pytest.approx([0.61, 0.5, 0.0])
    assert returns[0].tolist() == pytest.approx([0.81, 1.0, 0.0])


def test_gae_with_lambda_1_is_return_minus_value() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 6), torch.randn(4, 6)
    mask = (torch.arange(6) < T([[6], [3], [1], [4]])).float()
    advantages, returns = gae(rewards * mask, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns, to_go, atol=1e-5)
    assert torch.allclose(advantages, (to_go - values) * mask, atol=1e-5)


def test_what_stands_outside_the_mask_does_not_matter() -> None:
    mask = T([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    x = T([[1.0, 3.0, 99.0], [5.0, -99.0, 99.0]])
    assert float(masked_mean(x, mask)) == pytest.approx(3.0)
    white = whiten(x, mask)
    kept = white[mask.bool()]
    assert kept.tolist() == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)], abs=1e-5)
    assert white[0, 2] == 0
    scaled = whiten(x, mask, shift_mean=False)[mask.bool()]
    assert float(scaled.mean()) == pytest.approx(3.0, abs=1e-5)
    assert float(scaled.var(unbiased=False)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "binds"),
    [(1.5, 1.0, -1.2, 1), (0.5, 1.0, -0.5, 0), (1.5, -1.0, 1.5, 0), (0.5, -1.0, 0.8, 1), (1.0, 2.0, -2.0, 0)],
)
def test_clipped_policy_loss_by_hand(ratio: float, advantage: float, loss: float, binds: int) -> None:
    losses, clipped = policy_loss(T([math.log(ratio)]), T([0.0]), T([advantage]), 0.2)
    assert losses.item() == pytest.approx(loss, abs=1e-6)
    assert clipped.item() == binds


def test_clipped_value_loss_by_hand() -> None:
    # V = 1, V_old = 0, R = .5: free (.5)², clipped to .2: (.3)²; the larger counts
    assert value_loss(T([1.0]), T([0.0]), T([0.5]), 0.2).item() == pytest.approx(0.125)
    # V = .4 nearer to R = 1 than the clipped .2: the clipped counts
    assert value_loss(T([0.4]), T([0.0]), T([1.0]), 0.2).item() == pytest.approx(0.32)


def test_adaptive_kl_coefficient() -> None:
    assert next_kl_coef(0.1, 12.0, None) == 0.1
    assert next_kl_coef(0.1, 6.6, 6.0) == pytest.approx(0.1 * 1.01)
    assert next_kl_coef(0.1, 60.0, 6.0) == pytest.approx(0.1 * 1.02)
    assert next_kl_coef(0.1, 0.0, 6.0) == pytest.approx(0.1 * 0.98)


def test_every_prompt_comes_once_per_pass() -> None:
    rows = [i for step in range(6) for i in prompt_rows("ppo", 10, 5, step, seed=1)]
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    assert rows[:10] != rows[10:20]
    assert len(prompt_rows("ppo", 3, 8, 0, seed=1)) == 8


PROMPTS = ["hi", "what", "tell me", "go on please"]
FAST = PPOConfig(
    steps=30, rollouts=64, minibatch=32, epochs=2, learning_rate=1e-2, warmup_steps=2, kl_coef=0.0, checkpoint_every=5
)


def share_of_e(responses, texts) -> np.ndarray:
    return np.array([r.text.count("e") / 8 for r in responses])


@pytest.mark.parametrize("value_network", ["own", "shared"])
def test_ppo_learns_a_trivial_reward(value_network: str) -> None:
    """The reward is the share of the letter e among 8 characters: 1 at most, about 1/34 at the start."""
    split = SplitModel(tiny_policy(hidden=64), 2)
    prompts = [split.policy.render(p) for p in PROMPTS]
    config = FAST.model_copy(update={"value_network": value_network})
    _, history = ppo(split, prompts, share_of_e, config, max_new_tokens=8, seed=0)
    assert history[0]["reward"] < 0.1
    assert history[-1]["reward"] > 0.9
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert history[-1]["kl"] > 5
    assert history[-1]["entropy"] < history[0]["entropy"]


def test_a_kl_penalty_holds_the_policy_back() -> None:
    split = SplitModel(tiny_policy(), 1)
    prompts = [split.policy.render(p) for p in PROMPTS]
    configs = [FAST.model_copy(update={"steps": 8, "kl_coef": k}) for k in (0.0, 1.0)]
    ends = [ppo(split, prompts, share_of_e, config, max_new_tokens=8, seed=0)[1][-1] for config in configs]
    assert ends[1]["kl"] < 0.5 * ends[0]["kl"]


@pytest.mark.parametrize("value_network", ["own", "shared"])
def test_an_interrupted_ppo_ends_as_an_uninterrupted_one(value_network: str, tmp_path) -> None:
    config = FAST.model_copy(update={"steps": 5, "checkpoint_every": 2, "value_network": value_network})

    def run(folder, stop_after: int | None = None):
        split = SplitModel(tiny_policy(), 1)
        steps = 0

        def progress(done: int) -> None:
            nonlocal steps
            steps += done
            if steps == stop_after:
                raise KeyboardInterrupt

        prompts = [split.policy.render(p) for p in PROMPTS]
        setup = Setup(folder=folder, progress=progress)
        return ppo(split, prompts, share_of_e, config, max_new_tokens=6, seed=3, setup=setup)

    _, whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=3)
    _, resumed = run(tmp_path / "cut")

    def numbers(history):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history]

    assert numbers(resumed) == numbers(whole)
    on_disk = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert numbers(on_disk) == numbers(whole)


def test_bad_input_and_divergence_are_said(tmp_path) -> None:
    split = SplitModel(tiny_policy(), 1)
    with pytest.raises(DataError, match="PPO needs prompts"):
        ppo(split, [], share_of_e, FAST, max_new_tokens=4, seed=0)
    prompts = [split.policy.render("hi")]
    with pytest.raises(TrainingError, match="reward of a rollout is not finite"):
        ppo(split, prompts, lambda r, t: np.full(len(r), np.nan), FAST, max_new_tokens=4, seed=0)
    (tmp_path / CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(RunError, match="Delete it"):
        ppo(split, prompts, share_of_e, FAST, max_new_tokens=4, seed=0, setup=Setup(folder=tmp_path))
