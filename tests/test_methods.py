"""The methods that learn from preferences or from their own responses: losses against other implementations, policies
against theory, and what every training shares."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_policy

from simfarm.errors import ConfigError, DataError, RunError, TrainingError
from simfarm.methods.binary_feedme import binary_feedme
from simfarm.methods.binary_reward_conditioning import binary_reward_conditioning
from simfarm.methods.config import (
    ConditioningConfig,
    DPOConfig,
    FeedMEConfig,
    PPOConfig,
    QuarkConfig,
    REINFORCEConfig,
    RLOOConfig,
)
from simfarm.methods.dpo import dpo, dpo_loss, sequence_log_probabilities
from simfarm.methods.ppo import ppo
from simfarm.methods.preferences import Preferences
from simfarm.methods.quark import groups, marker, quark
from simfarm.methods.reinforce import reinforce
from simfarm.methods.rloo import leave_one_out, rloo
from simfarm.methods.rollouts import prompt_rows
from simfarm.methods.sft import response_log_probabilities
from simfarm.policies.marker import with_marker
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import CHECKPOINT, METRICS, SAMPLES, Setup, Trainer, Watch, epoch_batches

T = torch.tensor

# loss and norm of its gradient (layers and final norm) by trl 1.12.0's DPOTrainer and SFTTrainer in float32 on the
# batch below: policy and reference differ in their layers, β = 0.3, ε = 0.2
TRL = {
    "sigmoid": (0.38455846905708313, 8.551833152770996),
    "ipo": (0.5001317858695984, 17.050729751586914),
    "robust": (-0.221681609749794, 14.265463829040527),
    "sft": (3.6969902515411377, 7.024266719818115),
}
PROMPTS, CHOSEN, REJECTED = ["hi", "what is it", "tell me"], ["good day", "a thing.", "no"], ["bad", "it", "yes we do"]


def batch() -> tuple[SplitModel, Top, list[torch.Tensor], list[tuple[int, int]], list[list[int]]]:
    """The initial model, another top, and the states, spans and tokens of chosen and rejected responses."""
    split = SplitModel(tiny_policy(seed=0), 3)
    top = SplitModel(tiny_policy(seed=1), 3).new_top()
    prompts = [split.policy.encode(split.policy.render(p)) for p in PROMPTS] * 2
    responses = [split.policy.encode_response(r) for r in (*CHOSEN, *REJECTED)]
    spans = [(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]
    return split, top, split.trunk_states(prompts, responses), spans, responses


def gradient_norm(top: Top) -> float:
    return float(torch.sqrt(sum((p.grad**2).sum() for p in top.parameters() if p.grad is not None)))


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "robust"])
def test_dpo_losses_and_gradients_are_those_of_trl(name: str) -> None:
    split, top, states, spans, responses = batch()
    config = DPOConfig(loss=name, beta=0.3, flip=0.2 if name == "robust" else 0.0)
    new, old = (
        sequence_log_probabilities(split, t, states, spans, responses, mean=name == "ipo")
        for t in (top, split.new_top())
    )
    chosen, rejected = (new - old.detach()).chunk(2)
    loss = dpo_loss(chosen - rejected, torch.ones(3), config).mean()
    loss.backward()
    assert loss.item() == pytest.approx(TRL[name][0], rel=1e-4)
    assert gradient_norm(top) == pytest.approx(TRL[name][1], rel=1e-4)


def test_sft_loss_and_gradient_are_those_of_trl() -> None:
    split, top, states, spans, responses = batch()
    logp = response_log_probabilities(split, top, states[:3], spans[:3], [t for r in responses[:3] for t in r])
    (-logp.mean()).backward()
    assert -logp.mean().item() == pytest.approx(TRL["sft"][0], rel=1e-4)
    assert gradient_norm(top) == pytest.approx(TRL["sft"][1], rel=1e-4)


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0.01, 2))
def test_dpo_losses_against_numpy(rows: list[tuple[float, float]], beta: float) -> None:
    h, p = np.array(rows).T
    first, second = np.logaddexp(0, -beta * h), np.logaddexp(0, beta * h)
    plain = p * first + (1 - p) * second
    turned = (1 - p) * first + p * second
    expected = {
        "sigmoid": plain,
        "robust": (0.75 * plain - 0.25 * turned) / 0.5,
        "ipo": p * (h - 0.5 / beta) ** 2 + (1 - p) * (h + 0.5 / beta) ** 2,
    }
    for name, value in expected.items():
        config = DPOConfig(loss=name, beta=beta, flip=0.25)
        assert dpo_loss(T(h), T(p), config).numpy() == pytest.approx(value, rel=1e-9, abs=1e-9)
        # exchanging the two responses changes nothing
        assert dpo_loss(T(-h), T(1 - p), config).numpy() == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_the_robust_loss_is_unbiased_under_flips() -> None:
    h, config = T([-2.0, 0.5, 3.0]), DPOConfig(loss="robust", flip=0.25)
    noisy = 0.75 * dpo_loss(h, T([1.0] * 3), config) + 0.25 * dpo_loss(h, T([0.0] * 3), config)
    assert noisy.tolist() == pytest.approx(dpo_loss(h, T([1.0] * 3), DPOConfig()).tolist())


def test_leave_one_out_by_hand() -> None:
    assert leave_one_out(np.array([[1.0, 2.0, 6.0]])) == pytest.approx(np.array([[-3.0, -1.5, 4.5]]))


def test_quantile_groups() -> None:
    assert groups(np.array([0.1, 5.0, 3.0, 4.0, -1.0]), 2) == [[1, 3], [2, 0, 4]]
    with pytest.raises(ConfigError, match="raise rollouts"):
        quark(SplitModel(tiny_policy(), 1), ["p"], by_letter, QuarkConfig(rollouts=2), max_new_tokens=1, seed=0)


# A bandit: one token is the whole response. Its rewards are known, so is the best policy under a KL penalty.
VALUES = np.random.default_rng(1).random(34) * 2.5
BETA = 0.5
WIDE = Setup(micro_batch=256, batch_size=256)


def by_letter(responses, texts) -> np.ndarray:
    return np.array([VALUES[r.tokens[0]] for r in responses])


def bandit(layers: int = 1) -> tuple[SplitModel, list[str], np.ndarray]:
    """The model, its one prompt, and log π_ref of the 34 tokens."""
    split = SplitModel(tiny_policy(layers=layers, hidden=64), layers)
    prompt = split.policy.render("choose")
    return split, [prompt], log_policy(split, split.new_top(), prompt)


def log_policy(split: SplitModel, top: Top, prompt: str) -> np.ndarray:
    policy = split.with_top(top, "trained")
    return np.concatenate(policy.log_probabilities([prompt] * len(VALUES), [[t] for t in range(len(VALUES))]))


def tilted(log_ref: np.ndarray, scale: float) -> np.ndarray:
    """π_ref exp(scale · r) / Z."""
    weights = np.exp(log_ref + scale * VALUES)
    return weights / weights.sum()


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation."""
    return float(np.abs(p - q).sum() / 2)


def test_rloo_reaches_the_optimum_of_theory() -> None:
    split, prompts, log_ref = bandit()
    best = tilted(log_ref, 1 / BETA)
    config = RLOOConfig(steps=40, prompts=64, samples=4, learning_rate=1e-2, warmup_steps=2, kl_coef=BETA)
    top = rloo(split, prompts, by_letter, config, max_new_tokens=1, seed=0, setup=WIDE)
    assert distance(np.exp(log_ref), best) > 0.3
    assert distance(np.exp(log_policy(split, top, prompts[0])), best) < 0.1


def test_reinforce_reaches_the_optimum_of_theory() -> None:
    split, prompts, log_ref = bandit()
    beta = BETA / (1 + BETA)  # so that (1 - β)/β = 1/BETA
    best = tilted(log_ref, 1 / BETA)
    config = REINFORCEConfig(steps=60, rollouts=256, learning_rate=5e-3, warmup_steps=5, kl_coef=beta, temperature=1.0)
    top = reinforce(split, prompts, by_letter, config, max_new_tokens=1, seed=0, setup=WIDE)
    assert distance(np.exp(log_policy(split, top, prompts[0])), best) < 0.1


def test_ppo_reaches_the_optimum_of_theory() -> None:
    """Scaling r - β log(π/π_ref) to unit variance and whitening advantages leave the optimum where it is."""
    split, prompts, log_ref = bandit()
    best = tilted(log_ref, 1 / BETA)
    config = PPOConfig(
        steps=60, rollouts=256, minibatch=256, epochs=1, learning_rate=5e-3, warmup_steps=2, kl_coef=BETA,
        checkpoint_every=60,
    )  # fmt: skip
    top, _ = ppo(split, prompts, by_letter, config, max_new_tokens=1, seed=0, setup=WIDE)
    assert distance(np.exp(log_policy(split, top, prompts[0])), best) < 0.1


def test_dpo_reaches_the_optimum_of_theory() -> None:
    split, prompts, log_ref = bandit()
    rng = np.random.default_rng(0)
    pairs = rng.choice(34, (1000, 2), p=np.exp(log_ref) / np.exp(log_ref).sum())
    p_first = 1 / (1 + np.exp(VALUES[pairs[:, 1]] - VALUES[pairs[:, 0]]))
    data = Preferences(prompts * 1000, [[int(a)] for a in pairs[:, 0]], [[int(b)] for b in pairs[:, 1]], p_first)
    config = DPOConfig(beta=BETA, epochs=4, batch_size=100, learning_rate=1e-2)
    top = dpo(split, data, config, seed=0, setup=WIDE)
    assert distance(np.exp(log_policy(split, top, prompts[0])), tilted(log_ref, 1 / BETA)) < 0.1


@pytest.mark.parametrize("train_on", ["best", "all"])
def test_quark_reaches_the_best_quantile(train_on: str) -> None:
    """After one round without a penalty it is π_ref cut to its best quarter; the groups' markers are obeyed."""
    split, prompts, log_ref = bandit(layers=2)
    config = QuarkConfig(
        steps=1, rollouts=256, minibatch=256, updates=40, train_on=train_on,
        learning_rate=5e-3, warmup_steps=0, kl_coef=0.0,
    )  # fmt: skip
    top = quark(split, prompts, by_letter, config, max_new_tokens=1, seed=0, setup=WIDE)
    drawn = np.exp(log_policy(split, top, marker(config) + prompts[0]))
    order = np.argsort(-VALUES)
    mass = np.cumsum(np.exp(log_ref)[order])
    best_quarter = np.zeros(34)
    best_quarter[order] = np.diff(np.minimum(mass, 0.25), prepend=0) / 0.25
    # a quarter of the rows drawn, not of the true mass
    assert distance(drawn, best_quarter) < 0.25
    if train_on == "all":
        means = [np.exp(log_policy(split, top, marker(config, g) + prompts[0])) @ VALUES for g in range(4)]
        assert means[0] > means[1] > means[2] > means[3]


def test_feedme_learns_the_preferred_and_conditioning_tells_them_apart() -> None:
    split = SplitModel(tiny_policy(layers=2, hidden=64), 2)
    good, bad = (split.policy.encode_response(t) for t in ("good", "bad"))
    prompts = [split.policy.render(p) for p in ("a", "b")] * 8
    pairs = Preferences(prompts, [good, bad] * 8, [bad, good] * 8, np.array([1.0, 0.0] * 8))

    def answer(top: Top, marker: str = "") -> str:
        policy = split.with_top(top, "trained")
        return policy.sample([marker + prompts[0]], [0], max_new_tokens=8, seed=0, temperature=0)[0].text

    recipe = {"epochs": 30, "batch_size": 16, "learning_rate": 1e-2}
    assert answer(binary_feedme(split, pairs, FeedMEConfig(**recipe), seed=0)) == "good"
    config = ConditioningConfig(**recipe, win="better. ", lose="worse. ")
    top = binary_reward_conditioning(split, pairs, config, seed=0)
    assert answer(top, config.win) == "good" and answer(top, config.lose) == "bad"


def test_a_marker_stands_before_every_prompt(tmp_path: Path) -> None:
    policy = tiny_policy()
    marked = with_marker(policy, 'a "b"\n')
    assert marked.render("hi") == 'a "b"\n' + policy.render("hi")


def preferences(n: int = 24) -> tuple[SplitModel, Preferences]:
    rng = np.random.default_rng(0)
    split = SplitModel(tiny_policy(), 1)
    words = ["".join(rng.choice(list("abcde"), rng.integers(1, 9))) for _ in range(2 * n)]
    tokens = [split.policy.encode_response(w) for w in words]
    prompts = [split.policy.render(p) for p in ("one", "two and more", "three")] * (n // 3)
    return split, Preferences(prompts, tokens[:n], tokens[n:], rng.integers(0, 2, n).astype(float))


DPO = DPOConfig(batch_size=8, epochs=2, learning_rate=1e-3)


def rows_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / METRICS).read_text().splitlines()]


def test_dpo_starts_at_log_2_and_accumulation_changes_nothing(tmp_path: Path) -> None:
    split, pairs = preferences()
    tops = [dpo(split, pairs, DPO, seed=0, setup=Setup(folder=tmp_path / str(m), micro_batch=m)) for m in (1, 3, 8)]
    assert rows_of(tmp_path / "8")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows_of(tmp_path / "8")[-1]["margin"] > 0
    for top in tops[1:]:
        for a, b in zip(tops[0].parameters(), top.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    split, pairs = preferences()
    watch = Watch(prompts=list(pairs.prompts[:2]), every=2, max_new_tokens=4)
    done = 0

    def stop(steps: int) -> None:
        nonlocal done
        done += steps
        if done == 4:
            raise KeyboardInterrupt

    whole = dpo(split, pairs, DPO, seed=0, setup=Setup(folder=tmp_path / "whole", watch=watch))
    cut = Setup(folder=tmp_path / "cut", checkpoint_every=3, watch=watch, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        dpo(split, pairs, DPO, seed=0, setup=cut)
    done = 10
    resumed = dpo(split, pairs, DPO, seed=0, setup=cut)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for name in (METRICS, SAMPLES):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    with pytest.raises(RunError, match=r"learning_rate was 0.001 and is now 0.002"):
        dpo(split, pairs, DPO.model_copy(update={"learning_rate": 0.002}), seed=0, setup=cut)
    with pytest.raises(RunError, match="method was 'dpo' and is now 'rloo'"):
        rloo(split, pairs.prompts, by_letter, RLOOConfig(), max_new_tokens=1, seed=0, setup=cut)
    (tmp_path / "cut" / CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(RunError, match="Delete it"):
        dpo(split, pairs, DPO, seed=0, setup=cut)


def test_training_stops_on_kl_and_on_gold_and_keeps_the_best(tmp_path: Path) -> None:
    split, prompts, _ = bandit()
    config = RLOOConfig(steps=30, prompts=32, samples=2, learning_rate=1e-2, warmup_steps=0, kl_coef=0.0)
    setup = Setup(folder=tmp_path / "kl", watch=Watch(max_kl=0.5))
    rloo(split, prompts, by_letter, config, max_new_tokens=1, seed=0, setup=setup)
    history = rows_of(tmp_path / "kl")
    assert len(history) < 30 and history[-1]["kl"] > 0.5 and all(row["kl"] <= 0.5 for row in history[:-1])
    looks = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    watch = Watch(prompts=prompts, every=2, max_new_tokens=1, gold=lambda texts: np.array([next(looks)]), patience=2)
    top = rloo(
        split, prompts, by_letter, config, max_new_tokens=1, seed=0, setup=Setup(folder=tmp_path / "gold", watch=watch)
    )
    assert len(rows_of(tmp_path / "gold")) == 8
    # the policy kept is that of the second look, after four steps
    history = rows_of(tmp_path / "gold")
    assert history[3]["gold"] == 3.0
    samples = [json.loads(line) for line in (tmp_path / "gold" / SAMPLES).read_text().splitlines()]
    kl = [row["kl"] for row in samples if row["step"] == 3]
    drawn = split.with_top(top, "kept").sample(prompts, [["watch", 0]], max_new_tokens=1, seed=0)
    logs = log_policy(split, top, prompts[0]) - log_policy(split, split.new_top(), prompts[0])
    assert kl == pytest.approx([logs[drawn[0].tokens[0]]], abs=1e-4)


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    split, prompts, _ = bandit()
    calls = 0

    def reward(responses, texts) -> np.ndarray:
        nonlocal calls
        calls += 1
        return by_letter(responses, texts) * (1e30 if calls == 3 else 1) * (1e30 if calls == 3 else 1)

    config = RLOOConfig(steps=5, prompts=4, samples=2, warmup_steps=0)
    setup = Setup(folder=tmp_path, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"not finite at step 2 .the last checkpoint is kept.. Lower learning_rate"):
        rloo(split, prompts, reward, config, max_new_tokens=1, seed=0, setup=setup)
    assert len(torch.load(tmp_path / CHECKPOINT)["history"]) == 2


def test_memory_that_runs_out_names_the_setting(tmp_path: Path) -> None:
    split, _, _ = bandit()
    trainer = Trainer(
        "m", DPO, {"policy": split.new_top()}, steps=1, learning_rate=1e-3, rate=lambda _: 1.0, seed=0,
        setup=Setup(micro_batch=8), policy=lambda: split.policy, reference=split.policy, data=[],
    )  # fmt: skip

    def loss(rows: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        raise torch.OutOfMemoryError

    with pytest.raises(TrainingError, match="Set micro_batch to 4"):
        trainer.update([0], [1], 1, loss)


def test_bad_preferences_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 are missing"):
        Preferences(["p", "p"], [[5], [5]], [[6], [6]], np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="empty response, the first in row 1"):
        Preferences(["p", "p"], [[5], []], [[6], [6]], np.array([1.0, 0.0]))
    with pytest.raises(DataError, match="ties"):
        Preferences(["p"], [[5]], [[6]], np.array([0.5])).better_and_worse()
    with pytest.raises(DataError, match="needs prompts"):
        rloo(SplitModel(tiny_policy(), 1), [], by_letter, RLOOConfig(), max_new_tokens=1, seed=0)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 5))
def test_every_prompt_comes_as_often_as_any_other(n: int, size: int, seed: int) -> None:
    rows = [i for step in range(n) for i in prompt_rows("rloo", n, size, step, seed)]
    assert sorted(rows) == sorted([*range(n)] * size)


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 3))
def test_batches_hold_every_row_once_an_epoch(n: int, size: int, epochs: int) -> None:
    batches = epoch_batches(n, size, epochs, lambda epoch: range(n))
    assert sorted(i for b in batches for i in b) == sorted([*range(n)] * epochs)
    assert all(len(b) <= size for b in batches)
