"""Rollouts through vLLM: weights follow the policy, the difference of log-probabilities is measured, errors are clear.

vLLM is a fake here that reads weights from the folder as vLLM does; tests/integration has the real one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_vllm import FakeLLM, SamplingParams
from tiny import tiny_policy

from simfarm.errors import ConfigError, DataError, MissingExtraError, ModelError
from simfarm.methods.config import (
    ExpertIterationConfig,
    PPOConfig,
    QuarkConfig,
    REINFORCEConfig,
    RLOOConfig,
    SFTConfig,
)
from simfarm.methods.expert_iteration import rounds
from simfarm.methods.ppo import ppo
from simfarm.methods.quark import quark
from simfarm.methods.reinforce import reinforce
from simfarm.methods.rloo import rloo
from simfarm.methods.rollouts import Rollouts, new_sampler
from simfarm.policies import workers
from simfarm.policies.split import SplitModel
from simfarm.policies.training import METRICS, PLAIN, Setup
from simfarm.policies.vllm_sampler import VLLMSampler

PROMPTS = ["hi", "what is it", "tell me"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """The fake vLLMs that were started, in order."""
    found: list[FakeLLM] = []

    def start(**options: Any) -> FakeLLM:
        found.append(FakeLLM(**options))
        return found[-1]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start, SamplingParams=SamplingParams))
    return found


def high_tokens(responses, texts) -> np.ndarray:
    return np.array([np.mean(r.tokens) / 34 for r in responses])


def setting() -> tuple[SplitModel, list[str]]:
    split = SplitModel(tiny_policy(), 1)
    return split, [split.policy.render(p) for p in PROMPTS]


def shifted(split: SplitModel) -> Any:
    """Another policy: the initial one with noise on its top."""
    top, generator = split.new_top(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in top.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return split.with_top(top, "shifted")


def test_responses_and_log_probabilities_are_those_of_the_policy_of_the_moment(started: list[FakeLLM]) -> None:
    split, prompts = setting()
    sampler = VLLMSampler(split.policy, context=40, rows=4)
    keys = [[0, i] for i in range(3)]
    for policy in (split.policy, shifted(split), split.policy):
        drawn, logp = sampler.sample(policy, prompts, keys, max_new_tokens=6, seed=5)
        expected = policy.log_probabilities(prompts, [r.tokens for r in drawn])
        assert np.concatenate(logp) == pytest.approx(np.concatenate(expected), abs=1e-4)
        assert [r.text for r in drawn] == [policy.decode(r.tokens) for r in drawn]
        assert [r.finished for r in drawn] == [r.tokens[-1] in policy.end_ids for r in drawn]
    first, _ = sampler.sample(split.policy, prompts, keys, max_new_tokens=6, seed=5)
    assert first == drawn, "the same seed, keys and weights draw the same"
    other, _ = sampler.sample(split.policy, prompts, keys, max_new_tokens=6, seed=6)
    assert other != drawn
    # all requests are there before the first is begun
    asking = ["sleep 0", "enqueue 3", "wake_up ['scheduling']"]
    assert started[0].calls == [*asking, *["reload_weights", *asking] * 4]


def test_what_the_sampler_made_goes_with_it(started: list[FakeLLM]) -> None:
    split, prompts = setting()
    sampler = VLLMSampler(split.policy, context=40, rows=4)
    assert not started, "a training that is finished needs no vLLM"
    sampler.sample(split.policy, prompts, [0, 1, 2], max_new_tokens=2, seed=0)
    folder = Path(started[0].model)
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()
    del sampler
    assert started[0].calls[-1] == "shutdown" and not folder.exists()


def test_gap_and_ratio_by_hand() -> None:
    t = torch.tensor
    rollouts = Rollouts(
        [], [(1, 2), (1, 1)], [(5, 6), (7,)], [t([-1.0, -2.0]), t([-3.0])], [t([-1.0, -2.0]), t([-3.0])],
        np.zeros(2), [True, False], [t([-1.1, -2.0]), t([-2.8])],
    )  # fmt: skip
    metrics = rollouts.metrics()
    assert metrics["sampler_gap"] == pytest.approx((0.1 + 0.0 + 0.2) / 3, abs=1e-6)
    assert metrics["sampler_ratio"] == pytest.approx((np.exp(0.1) + 1 + np.exp(-0.2)) / 3, abs=1e-6)


SMALL: dict[str, Any] = {"steps": 3, "rollouts": 6, "learning_rate": 1e-2, "warmup_steps": 0}
METHODS: dict[str, tuple[Any, Any]] = {
    "ppo": (ppo, PPOConfig(**SMALL, minibatch=6, rollout="vllm")),
    "reinforce": (reinforce, REINFORCEConfig(**SMALL, rollout="vllm")),
    "quark": (quark, QuarkConfig(**SMALL, minibatch=6, quantiles=2, train_on="all", rollout="vllm")),
    "rloo": (rloo, RLOOConfig(steps=3, prompts=3, samples=2, learning_rate=1e-2, warmup_steps=0, rollout="vllm")),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_through_it_and_reports_the_gap(
    name: str, started: list[FakeLLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, config = METHODS[name]

    def run(folder: Path) -> list[dict[str, float]]:
        split, prompts = setting()
        method(split, prompts, high_tokens, config, max_new_tokens=4, seed=0, setup=Setup(folder=folder))
        rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    rows = run(tmp_path / "followed")
    assert [call for call in started[0].calls if call.startswith("enqueue")] == ["enqueue 6"] * 3
    assert started[0].calls[-1] == "shutdown", "it ends with the training"
    assert all(0 <= row["sampler_gap"] < 1e-4 and row["sampler_ratio"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert run(tmp_path / "again") == rows
    # a sampler that keeps its first weights is told from one that follows
    monkeypatch.setattr(FakeLLM, "collective_rpc", lambda self, method: [None])
    rows = run(tmp_path / "stuck")
    assert rows[0]["sampler_gap"] < 1e-4 and rows[-1]["sampler_gap"] > 1e-3


def test_ppo_takes_the_trainers_log_probabilities_for_the_old_policy(
    started: list[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that misstates its log-probabilities changes what is reported, and nothing that is learned."""
    config = PPOConfig(**SMALL, minibatch=6, rollout="vllm")
    ends = []
    for error in (0.0, 0.5):
        honest = VLLMSampler.sample

        def sample(self, *args, error: float = error, honest: Any = honest, **options):
            drawn, logp = honest(self, *args, **options)
            return drawn, [row + error for row in logp]

        split, prompts = setting()
        with monkeypatch.context() as patch:
            patch.setattr(VLLMSampler, "sample", sample)
            top, history = ppo(split, prompts, high_tokens, config, max_new_tokens=4, seed=0)
        ends.append((history, [p.detach().clone() for p in top.parameters()]))
        assert history[0]["sampler_gap"] == pytest.approx(error, abs=1e-4)
        assert history[0]["sampler_ratio"] == pytest.approx(np.exp(-error), abs=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def test_expert_iteration_reports_each_round(started: list[FakeLLM], tmp_path: Path) -> None:
    split, prompts = setting()
    config = ExpertIterationConfig(
        n=2, rounds=2, rollout="vllm", sft=SFTConfig(epochs=2, batch_size=3, learning_rate=1e-2)
    )
    rounds(split, prompts, high_tokens, config, max_new_tokens=4, seed=0, setup=Setup(folder=tmp_path))
    for number in (1, 2):
        (row,) = [
            json.loads(line) for line in (tmp_path / f"round-{number}" / "rollouts.jsonl").read_text().splitlines()
        ]
        assert row["sampler_gap"] < 1e-4
    assert len(started) == 1


def test_the_policys_own_sampler_reports_no_gap(tmp_path: Path) -> None:
    split, prompts = setting()
    _, history = ppo(split, prompts, high_tokens, PPOConfig(**SMALL, minibatch=6), max_new_tokens=4, seed=0)
    assert not [key for key in history[0] if key.startswith("sampler")]


def test_without_vllm_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    split, prompts = setting()
    with pytest.raises(MissingExtraError, match=r"rollout = \"vllm\".*pip install 'simfarm\[vllm\]'"):
        rloo(split, prompts, high_tokens, RLOOConfig(rollout="vllm"), max_new_tokens=4, seed=0)


def test_what_cannot_work_is_refused(started: list[FakeLLM], monkeypatch: pytest.MonkeyPatch) -> None:
    split, prompts = setting()
    with pytest.raises(DataError, match="the context of 'tiny' holds 256"):
        new_sampler("vllm", split, prompts, max_new_tokens=300, setup=PLAIN)
    sampler = new_sampler("vllm", split, prompts, max_new_tokens=4, setup=PLAIN)
    assert sampler is not None
    sampler.sample(split.policy, prompts, [0, 1, 2], max_new_tokens=4, seed=0)
    started[-1].finish = "abort"
    with pytest.raises(ModelError, match=r"3 responses to 3 prompts, which ended by .'abort'."):
        sampler.sample(split.policy, prompts, [0, 1, 2], max_new_tokens=4, seed=0)
    monkeypatch.setattr(FakeLLM, "reset_prefix_cache", lambda self: False)
    with pytest.raises(ModelError, match="did not forget"):
        sampler.sample(split.policy, prompts, [0, 1, 2], max_new_tokens=4, seed=0)

    def refuse(**options: Any) -> None:
        raise ValueError("no memory left")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    another = new_sampler("vllm", split, prompts, max_new_tokens=4, setup=PLAIN)
    assert another is not None
    with pytest.raises(ModelError, match="vLLM cannot load 'tiny': no memory left"):
        another.sample(split.policy, prompts, [0, 1, 2], max_new_tokens=4, seed=0)
    monkeypatch.setattr(workers, "count", lambda: 2)
    with pytest.raises(ConfigError, match="2 are at work here"):
        new_sampler("vllm", split, prompts, max_new_tokens=4, setup=PLAIN)
