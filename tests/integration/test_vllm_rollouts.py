"""Rollouts through the real vLLM: it follows the weights that training changes, and a run repeats itself.

vLLM and simfarm must be in one environment: install_vllm.sh beside this file makes one, whose pytest runs this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest

from simfarm.methods.config import PPOConfig
from simfarm.methods.ppo import ppo
from simfarm.methods.rollouts import new_sampler
from simfarm.models import is_stored
from simfarm.policies.split import SplitModel
from simfarm.policies.training import PLAIN
from simfarm.policies.transformers import Response, TransformersPolicy

pytestmark = [
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed here: tests/integration/install_vllm.sh"
    ),
    pytest.mark.skipif(not is_stored("smollm2-135m"), reason="no model: simfarm models pull smollm2-135m"),
]

QUESTIONS = ["Name two animals.", "What is the capital of France?", "Write a line about rain.", "Count to five."]
NEW_TOKENS = 16


def few_words(responses: Sequence[Response], texts: object) -> np.ndarray:
    return np.array([-len(r.text.split()) for r in responses], dtype=float)


def test_the_sampler_follows_ppo_and_a_run_repeats_itself() -> None:
    # float32, so that what is left of the gap is not rounding
    split = SplitModel(TransformersPolicy.load("smollm2-135m", device="cpu", dtype="float32"), 4)
    prompts = [split.policy.render(q) for q in QUESTIONS]
    config = PPOConfig(steps=3, rollouts=8, minibatch=8, learning_rate=1e-3, warmup_steps=0, rollout="vllm")
    runs = [ppo(split, prompts, few_words, config, max_new_tokens=NEW_TOKENS, seed=0) for _ in range(2)]
    (top, history), (_, again) = runs
    for row in history:
        assert row["sampler_gap"] < 1e-3 and row["sampler_ratio"] == pytest.approx(1, abs=1e-3)
    assert [r | {"seconds": 0} for r in history] == [r | {"seconds": 0} for r in again]

    # without the update the gap is what three steps changed
    sampler = new_sampler("vllm", split, prompts, max_new_tokens=NEW_TOKENS, setup=PLAIN)
    assert sampler is not None
    trained = split.with_top(top, "trained")
    keys = [[0, i] for i in range(len(prompts))]

    def gap(policy: TransformersPolicy) -> float:
        expected = np.concatenate(policy.log_probabilities(prompts, [r.tokens for r in drawn]))
        return float(np.abs(expected - np.concatenate(logp)).mean())

    for policy, other in ((split.policy, trained), (trained, split.policy), (split.policy, trained)):
        drawn, logp = sampler.sample(policy, prompts, keys, max_new_tokens=NEW_TOKENS, seed=0)
        assert gap(policy) < 1e-3 < 0.1 < gap(other)
