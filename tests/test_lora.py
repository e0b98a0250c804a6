"""LoRA and gradient checkpointing of tops: what is computed stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_policy

from simfarm.errors import ConfigError, RunError
from simfarm.methods.config import DPOConfig, PPOConfig
from simfarm.methods.dpo import dpo
from simfarm.methods.ppo import ppo
from simfarm.methods.preferences import Preferences
from simfarm.methods.sft import response_log_probabilities
from simfarm.policies.split import SplitModel, Top, load_tensors, save_tensors
from simfarm.policies.training import Setup
from simfarm.rewards.ensemble import load_reward
from simfarm.rewards.model import RewardModel

PROMPTS, RESPONSES = ["hi", "what is it", "tell me"], ["good day", "a thing.", "no"]


def loss_of(split: SplitModel, top: Top) -> torch.Tensor:
    """The negative log-likelihood of three responses."""
    prompts = [split.policy.encode(split.policy.render(p)) for p in PROMPTS]
    responses = [split.policy.encode_response(r) for r in RESPONSES]
    spans = [(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]
    states = split.trunk_states(prompts, responses)
    return -response_log_probabilities(split, top, states, spans, [t for r in responses for t in r]).mean()


def fill(top: Top) -> None:
    """Give the adapters values that are easily made again."""
    for name, p in sorted(top.named_parameters()):
        if p.requires_grad:
            with torch.no_grad():
                p.copy_(torch.sin(torch.arange(p.numel()).float() + len(name)).view(p.shape) / 10)


def names(top: Top) -> list[str]:
    return [name for name, p in top.named_parameters() if p.requires_grad]


def test_lora_starts_as_the_model_and_trains_adapters_only() -> None:
    policy = tiny_policy()
    plain, lora = SplitModel(policy, 2), SplitModel(policy, 2, lora_rank=4)
    top = lora.new_top()
    assert torch.equal(loss_of(lora, top), loss_of(plain, plain.new_top()))
    assert len(names(top)) == 2 * 7 * 2 and all(name.endswith((".a", ".b")) for name in names(top))
    loss_of(lora, top).backward()
    assert all(p.grad is None for p in policy.model.parameters())
    # the frozen layers are the model's own, in every top
    shared = {id(p) for p in policy.model.parameters()}
    assert sum(id(p) in shared for p in top.parameters()) >= 14


# loss, and norm of its gradient by A and B, of the batch above with the adapters of `fill`: peft 0.21.2,
# inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=all seven), …) on the last two layers
PEFT = (4.5114426612854, 0.6501607298851013)


def test_lora_is_that_of_peft() -> None:
    split = SplitModel(tiny_policy(), 2, lora_rank=4)
    top = split.new_top()
    fill(top)
    loss = loss_of(split, top)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in top.parameters() if p.grad is not None))
    assert (loss.item(), float(norm)) == pytest.approx(PEFT, rel=1e-4)


def test_merged_weights_compute_what_adapters_do() -> None:
    split = SplitModel(tiny_policy(), 2, lora_rank=4)
    top = split.new_top()
    fill(top)
    merged = split.with_top(top, "merged")
    prompts = [split.policy.render(p) for p in PROMPTS]
    tokens = [split.policy.encode_response(r) for r in RESPONSES]
    logp = np.concatenate(merged.log_probabilities(prompts, tokens))
    assert -logp.mean() == pytest.approx(loss_of(split, top).item(), rel=1e-5)
    assert abs(logp.mean() + loss_of(split, split.new_top()).item()) > 1e-3
    assert not any(".a" in name or "base" in name for name, _ in merged.model.base_model.layers.named_parameters())
    # a top that starts from another starts as that one does, whichever of the two has adapters
    for other in (split, SplitModel(split.policy, 2)):
        again = other.new_top(top)
        assert loss_of(other, again).item() == pytest.approx(loss_of(split, top).item(), rel=1e-5)
        assert (len(names(again)) == 28) == (other.lora_rank is not None)


def test_adapters_are_saved_alone(tmp_path: Path) -> None:
    split = SplitModel(tiny_policy(), 2, lora_rank=4)
    top, fresh = split.new_top(), split.new_top()
    fill(top)
    save_tensors(top, tmp_path / "top.safetensors")
    load_tensors(fresh, tmp_path / "top.safetensors")
    assert torch.equal(loss_of(split, fresh), loss_of(split, top))


def test_a_reward_with_adapters_serves_a_policy_without(tmp_path: Path) -> None:
    policy = tiny_policy()
    reward = RewardModel(SplitModel(policy, 2, lora_rank=2))
    fill(reward.top)
    torch.nn.init.ones_(reward.score.weight)
    reward.save(tmp_path)
    plain = SplitModel(policy, 2)
    loaded = load_reward(plain, tmp_path)
    assert loaded.rewards(PROMPTS, RESPONSES) == pytest.approx(reward.rewards(PROMPTS, RESPONSES))
    config = PPOConfig(steps=1, rollouts=4, minibatch=4, epochs=1, warmup_steps=0)

    def score(_, texts) -> np.ndarray:
        return loaded.rewards_of_texts(texts)

    top, _ = ppo(plain, PROMPTS, score, config, max_new_tokens=3, seed=0, value_top=loaded.top)
    assert len(names(top)) == 2 * 9 + 1


@pytest.mark.parametrize("rank", [None, 4])
def test_checkpointing_changes_no_gradient(rank: int | None) -> None:
    policy = tiny_policy()
    gradients, computed = [], []
    for checkpointing in (False, True):
        split = SplitModel(policy, 3, lora_rank=rank, gradient_checkpointing=checkpointing)
        top, calls = split.new_top(), []
        top.body.layers[1].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
        loss_of(split, top).backward()
        gradients.append([p.grad for p in top.parameters() if p.requires_grad])
        computed.append(len(calls))
    assert computed == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dpo_learns_with_adapters_and_another_kind_of_weights_is_refused(tmp_path: Path) -> None:
    policy = tiny_policy()
    tokens = [policy.encode_response(w) for w in ("good", "bad")]
    pairs = Preferences([policy.render(p) for p in PROMPTS], [tokens[0]] * 3, [tokens[1]] * 3, np.ones(3))
    config = DPOConfig(epochs=10, batch_size=3, learning_rate=1e-2)
    split = SplitModel(policy, 2, lora_rank=4, gradient_checkpointing=True)
    top = dpo(split, pairs, config, seed=0, setup=Setup(folder=tmp_path))
    prompts = list(pairs.prompts)
    first, second = (
        np.array([s.sum() for s in split.with_top(top, "t").log_probabilities(prompts, [t] * 3)])
        - np.array([s.sum() for s in policy.log_probabilities(prompts, [t] * 3)])
        for t in tokens
    )
    assert (first > second + 1).all()
    with pytest.raises(RunError, match="of other weights"):
        dpo(SplitModel(policy, 2), pairs, config, seed=0, setup=Setup(folder=tmp_path))
    with pytest.raises(ConfigError, match="lora_rank is 0"):
        SplitModel(policy, 2, lora_rank=0)
