"""The linear probe that a reward model's head may start from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from simfarm.policies.split import SplitModel
from simfarm.rewards.config import RewardConfig
from simfarm.rewards.probe import fit_probe
from simfarm.rewards.train import Pairs, accuracy, train_reward_model
from tests.tiny import tiny_policy

Planted = tuple[np.ndarray, list[int], list[int], np.ndarray, np.ndarray]


def planted(labels: int, *, sharpness: float, seed: int = 0) -> Planted:
    rng = np.random.default_rng(seed)
    # states of very different size: the penalty must not depend on it
    states = rng.normal(size=(400, 12)) * np.geomspace(0.01, 100, 12)
    truth = sharpness * rng.normal(size=12) / np.geomspace(0.01, 100, 12)
    first, second = rng.integers(0, 400, (2, labels))
    p = expit((states[first] - states[second]) @ truth)
    return states, list(first), list(second), (rng.random(labels) < p).astype(float), truth


def test_it_recovers_planted_weights() -> None:
    states, first, second, p_first, truth = planted(6000, sharpness=0.5)
    w = fit_probe(states, first, second, p_first, [str(i % 60) for i in range(6000)], seed=0)
    assert np.corrcoef(states @ w, states @ truth)[0, 1] > 0.99
    assert float((states @ w).std() / (states @ truth).std()) == pytest.approx(1, abs=0.1)


def test_labels_without_a_signal_are_shrunk_to_nothing() -> None:
    states, first, second, _, truth = planted(600, sharpness=0.5)
    noise = (np.random.default_rng(1).random(600) < 0.5).astype(float)
    w = fit_probe(states, first, second, noise, [str(i % 60) for i in range(600)], seed=0)
    assert float((states @ w).std()) < 0.1 * float((states @ truth).std())


def test_repeated_labels_of_a_pair_are_their_mean() -> None:
    states, first, second, p_first, _ = planted(300, sharpness=0.5)
    names = [str(i % 30) for i in range(300)]
    once = fit_probe(states, first, second, p_first, names, seed=0)
    thrice = fit_probe(states, first * 3, second * 3, np.tile(p_first, 3), names * 3, seed=0)
    assert thrice == pytest.approx(once, rel=1e-3, abs=1e-6)


def test_a_reward_model_may_be_the_probe_alone() -> None:
    split = SplitModel(tiny_policy(), 1)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), 8)) for _ in range(80)]
    # what is liked: the share of the letter a
    liked = np.array([text.count("a") for text in texts], float)
    first, second = rng.integers(0, 80, (2, 400))
    kept = liked[first] != liked[second]
    first, second = first[kept], second[kept]
    prompts = [split.policy.render(f"q{i % 9}") for i in range(len(first))]
    p_first = (liked[first] > liked[second]).astype(float)
    pairs = Pairs(prompts, [texts[i] for i in first], [texts[i] for i in second], p_first)
    model = train_reward_model(split, pairs, RewardConfig(pooling="mean", head="probe", epochs=0), seed=0)
    rewards = model.rewards([split.policy.render("q")] * 80, texts)
    assert accuracy(rewards[first], rewards[second], 2 - p_first) > 0.85
