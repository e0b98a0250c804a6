from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_policy

from simfarm.errors import ConfigError, DataError, ModelError, RunError
from simfarm.methods.best_of_n import choose
from simfarm.methods.config import ExpertIterationConfig, SFTConfig
from simfarm.methods.expert_iteration import expert_iteration
from simfarm.methods.sft import fine_tune
from simfarm.policies.optimise import cosine_with_warmup, linear_with_warmup
from simfarm.policies.split import SplitModel
from simfarm.policies.training import CHECKPOINT, METRICS, Setup
from simfarm.policies.transformers import Response
from simfarm.rewards.config import RewardConfig
from simfarm.rewards.ensemble import RewardEnsemble, resample, train_ensemble
from simfarm.rewards.losses import pairwise_loss, plackett_luce_loss
from simfarm.rewards.model import RewardModel
from simfarm.rewards.train import (
    Pairs,
    Rankings,
    accuracy,
    prompt_batches,
    reliability,
    train_on_rankings,
    train_reward_model,
)

T = torch.tensor


def test_pairwise_loss_golden_values() -> None:
    assert pairwise_loss(T([0.0]), T([0.0]), T([1.0])).item() == pytest.approx(math.log(2))
    assert pairwise_loss(T([2.0]), T([0.0]), T([1.0])).item() == pytest.approx(math.log(1 + math.exp(-2)))
    soft = pairwise_loss(T([2.0]), T([0.0]), T([0.3])).item()
    assert soft == pytest.approx(0.3 * math.log(1 + math.exp(-2)) + 0.7 * math.log(1 + math.exp(2)))


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 1)), min_size=1, max_size=9), st.floats(0, 2), st.floats(0, 0.49)
)
def test_pairwise_loss_against_numpy(rows: list[tuple[float, float]], margin: float, flip: float) -> None:
    gap, p = np.array(rows).T

    def q(g: np.ndarray) -> np.ndarray:
        right = 1 / (1 + np.exp(-(g - margin)))
        return (1 - flip) * right + flip * (1 - right)

    expected = -(p * np.log(q(gap)) + (1 - p) * np.log(q(-gap))).mean()
    loss = pairwise_loss(T(gap), torch.zeros(len(rows)).double(), T(p), margin=margin, flip=flip)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_a_known_flip_rate_gives_back_the_log_odds_before_the_flips() -> None:
    # of 100 labels 75 would prefer the first; a quarter turned round leaves .75 * .75 + .25 * .25 = .625
    gap = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([gap], max_iter=100)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = pairwise_loss(gap.unsqueeze(0), T([0.0]).double(), T([0.625]).double(), flip=0.25)
        loss.backward()
        return loss

    optimiser.step(step)
    assert gap.item() == pytest.approx(math.log(3), abs=1e-4)


def test_plackett_luce_golden_values() -> None:
    assert plackett_luce_loss([torch.zeros(7)]).item() == pytest.approx(8.525161, abs=1e-5)
    assert plackett_luce_loss([torch.zeros(2)]).item() == pytest.approx(math.log(2))
    ranked = T([0.0, -0.4, -1.2])
    assert plackett_luce_loss([ranked]).item() == pytest.approx(1.049903, abs=1e-5)
    assert plackett_luce_loss([ranked.flip(0)]).item() == pytest.approx(2.791817, abs=1e-5)
    assert plackett_luce_loss([ranked + 5]).item() == pytest.approx(1.049903, abs=1e-5)
    assert plackett_luce_loss([T([1.0, 0.0]), T([0.0, 3.0])]).item() == pytest.approx(
        pairwise_loss(T([1.0, 0.0]), T([0.0, 3.0]), T([1.0, 1.0])).item()
    )


def test_a_reward_model_learns_from_rankings() -> None:
    split, pairs, _ = planted(120)
    texts = [*pairs.outputs_1, *pairs.outputs_2]
    rows = [sorted(texts[k : k + 4], key=lambda t: -t.count("e")) for k in range(0, 160, 4)]
    config = RewardConfig(epochs=6, batch_size=8, learning_rate=3e-3, pooling="mean")
    model = train_on_rankings(split, Rankings([pairs.prompts[0]] * len(rows), rows), config, seed=0)
    rewards = model.rewards([pairs.prompts[0]] * 80, texts[160:])
    assert np.corrcoef(rewards, [t.count("e") for t in texts[160:]])[0, 1] > 0.8
    with pytest.raises(DataError, match="row 1 has 1"):
        train_on_rankings(split, Rankings(["p", "p"], [["a", "b"], ["a"]]), config, seed=0)
    with pytest.raises(ConfigError, match="are for pairs"):
        train_on_rankings(split, Rankings(["p"], [["a", "b"]]), RewardConfig(flip=0.1), seed=0)


def test_pairwise_loss_is_symmetric_under_swap() -> None:
    r1, r2, p = torch.randn(20), torch.randn(20), torch.rand(20)
    assert torch.allclose(pairwise_loss(r1, r2, p), pairwise_loss(r2, r1, 1 - p))
    assert torch.allclose(pairwise_loss(r1 + 5, r2 + 5, p), pairwise_loss(r1, r2, p), atol=1e-5)


def planted(n: int, flip: float = 0.0) -> tuple[SplitModel, Pairs, np.ndarray]:
    """Responses are better the more letters e they hold; labels may be flipped."""
    rng = np.random.default_rng(0)
    split = SplitModel(tiny_policy(), 2)
    texts = ["".join(rng.choice(list("abcde"), 8)) for _ in range(2 * n)]
    one, two = texts[:n], texts[n:]
    gap = np.array([a.count("e") - b.count("e") for a, b in zip(one, two, strict=True)])
    clean = np.where(gap == 0, 0.5, (gap > 0).astype(float))
    flipped = rng.random(n) < flip
    prompts = [split.policy.render("say it")] * n
    return split, Pairs(prompts, one, two, np.where(flipped, 1 - clean, clean)), 2 - clean


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_reward_model_learns_through_label_noise(tmp_path, pooling: str) -> None:
    split, pairs, clean = planted(500, flip=0.25)
    train = Pairs(pairs.prompts[:400], pairs.outputs_1[:400], pairs.outputs_2[:400], pairs.p_first[:400])
    config = RewardConfig(epochs=4, learning_rate=2e-3, pooling=pooling)
    model = train_reward_model(split, train, config, seed=0, setup=Setup(folder=tmp_path / "training"))
    r1, r2 = (model.rewards(pairs.prompts, side) for side in (pairs.outputs_1, pairs.outputs_2))
    assert accuracy(r1[400:], r2[400:], clean[400:]) > 0.9
    metrics = [json.loads(line) for line in (tmp_path / "training/metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    model.offset += 3.0
    model.save(tmp_path)
    again = RewardModel.load(split, tmp_path)
    assert again.rewards(pairs.prompts[:5], pairs.outputs_1[:5]) == pytest.approx(r1[:5] - 3.0, abs=1e-5)
    with pytest.raises(ModelError, match="not on the last 1 of 'tiny'"):
        RewardModel.load(SplitModel(split.policy, 1), tmp_path)
    # the same name, other weights
    other = copy.deepcopy(split.policy)
    with torch.no_grad():
        next(other.model.base_model.layers[0].parameters()).add_(1)
    with pytest.raises(ModelError, match="trained on other weights of"):
        RewardModel.load(SplitModel(other, split.k), tmp_path)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_score_reads_the_pooled_state(pooling: str) -> None:
    split, pairs, _ = planted(3)
    model = RewardModel(split, pooling)
    torch.nn.init.normal_(model.score.weight)
    prompt, response = split.policy.encode(pairs.prompts[0]), split.policy.encode_response(pairs.outputs_1[0])
    states = split.policy.model.base_model(torch.tensor([[*prompt, *response]])).last_hidden_state[0]
    pooled = states[-1] if pooling == "last" else states[len(prompt) :].mean(0)
    expected = model.score(pooled).item()
    # beside longer and shorter texts, the score is the same
    assert model.rewards(pairs.prompts, pairs.outputs_1)[0] == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_row_once_and_keep_a_prompt_together(prompts: list[str], size: int, epoch: int) -> None:
    batches = prompt_batches(prompts, size, 0, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(prompts)))
    for prompt in set(prompts):
        if prompts.count(prompt) <= size:
            assert sum(any(prompts[i] == prompt for i in batch) for batch in batches) == 1
    assert all(size <= len(batch) < 2 * size for batch in batches[:-1])


def test_reward_training_refuses_what_teaches_nothing() -> None:
    split, pairs, _ = planted(4)
    same = Pairs(pairs.prompts, pairs.outputs_1, pairs.outputs_2, np.ones(4))
    with pytest.raises(DataError, match="same side"):
        train_reward_model(split, same, RewardConfig(), seed=0)
    missing = Pairs(pairs.prompts, pairs.outputs_1, pairs.outputs_2, np.array([1, np.nan, 0, 0]))
    with pytest.raises(DataError, match="1 of 4 are missing"):
        train_reward_model(split, missing, RewardConfig(), seed=0)


def test_accuracy_counts_ties_fairly() -> None:
    r1, r2 = np.array([1.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, 0.0, 0.0])
    assert accuracy(r1, r2, np.array([1.0, 1.0, 2.0, 1.5])) == pytest.approx((1 + 0 + 0.5) / 3)
    with pytest.raises(DataError, match="tie or missing"):
        accuracy(r1, r2, np.full(4, 1.5))


def test_best_of_n_takes_the_best_of_the_first_n() -> None:
    rewards = np.array([[1.0, 5.0, 9.0], [2.0, 2.0, 0.0]])
    assert choose(rewards, 2).tolist() == [1, 0]
    assert choose(rewards, 3).tolist() == [2, 0]
    with pytest.raises(ConfigError, match="n = 4"):
        choose(rewards, 4)


def test_fine_tuning_teaches_the_response_and_the_end() -> None:
    split = SplitModel(tiny_policy(hidden=64), 3)
    prompts = [split.policy.render(p) for p in ("a", "b", "c", "d")] * 8
    target = split.policy.encode_response("yes")
    log: list[dict[str, float]] = []
    config = SFTConfig(epochs=30, batch_size=16, learning_rate=5e-3)
    top = fine_tune(split, prompts, [target] * 32, config, seed=0, log=log.append)
    # the first batch holds half of the rows: prompts a to d in some share
    losses = [-np.mean(values) for values in split.policy.log_probabilities(prompts[:4], [target] * 4)]
    assert min(losses) < log[0]["loss"] < max(losses)
    tuned = split.with_top(top, "tuned").sample(prompts[:4], [0, 1, 2, 3], max_new_tokens=8, seed=0, temperature=0)
    assert [(r.text, r.finished) for r in tuned] == [("yes", True)] * 4


def test_micro_batches_change_nothing() -> None:
    split = SplitModel(tiny_policy(), 1)
    prompts = [split.policy.render(p) for p in ("one", "two and more", "three")]
    responses = [split.policy.encode(t) for t in ("abc", "de", "fghij")]
    config = SFTConfig(epochs=2, batch_size=3, learning_rate=1e-3)
    tops = [fine_tune(split, prompts, responses, config, seed=0, setup=Setup(micro_batch=m)) for m in (1, 3)]
    for a, b in zip(*(dict(t.named_parameters()).values() for t in tops), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_expert_iteration_learns_from_the_best_only() -> None:
    split = SplitModel(tiny_policy(hidden=64), 3)
    prompts = [split.policy.render(p) for p in ("a", "b")] * 8
    good, bad = (Response(t, tuple(split.policy.encode_response(t)), True) for t in ("good", "bad"))
    rewards = np.tile([[0.0, 1.0], [1.0, 0.0]], (8, 1))
    responses = [[bad, good], [good, bad]] * 8
    config = ExpertIterationConfig(n=2, sft=SFTConfig(epochs=40, batch_size=16, learning_rate=5e-3))
    top = expert_iteration(split, prompts, responses, rewards, config, seed=0)
    policy = split.with_top(top, "ei")
    assert policy.sample(prompts[:1], [0], max_new_tokens=8, seed=0, temperature=0)[0].text == "good"


def test_nothing_to_learn_from_is_refused() -> None:
    split = SplitModel(tiny_policy(), 1)
    with pytest.raises(DataError, match="at least one token"):
        fine_tune(split, ["p"], [[]], SFTConfig(), seed=0)


def test_schedules() -> None:
    cosine = [cosine_with_warmup(100, 0.03)(s) for s in range(100)]
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and max(cosine) == 1 and cosine[-1] < 0.001
    linear = [linear_with_warmup(10, 2)(s) for s in range(10)]
    assert linear[:3] == pytest.approx([0.5, 1.0, 1.0]) and linear[-1] == pytest.approx(1 / 8)


def test_the_pairwise_loss_is_that_of_trl_by_hand() -> None:
    """trl 1.12.0, reward_trainer.py: -logsigmoid(chosen - rejected - margin).mean()."""
    chosen, rejected = T([1.0, -0.5, 0.2]), T([0.3, 0.4, 0.2])
    # gaps .7, -.9, 0: log(1 + e^-.7), log(1 + e^.9), log 2
    by_hand = (0.4031860 + 1.2411539 + 0.6931472) / 3
    assert pairwise_loss(chosen, rejected, torch.ones(3)).item() == pytest.approx(by_hand, abs=1e-6)
    # less a margin of .5: log(1 + e^-.2), log(1 + e^1.4), log(1 + e^.5)
    by_hand = (0.5981389 + 1.6204175 + 0.9740770) / 3
    assert pairwise_loss(chosen, rejected, torch.ones(3), margin=0.5).item() == pytest.approx(by_hand, abs=1e-6)


def test_reliability_recovers_a_planted_calibration() -> None:
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 2, 4000)
    p = 1 / (1 + np.exp(-gap / 2))  # the rewards claim twice the log-odds that are true
    preference = np.where(rng.random(4000) < p, 1.0, 2.0)
    groups = [f"i{k // 4}" for k in range(4000)]
    table = reliability(gap, np.zeros(4000), preference, groups)
    assert len(table) == 8 and table["n"].sum() == 4000
    true = 1 / (1 + np.exp(-np.log(table["predicted"] / (1 - table["predicted"])) / 2))
    assert ((table["ci_low"] - 0.03 < true) & (true < table["ci_high"] + 0.03)).all()
    assert table["observed"].iloc[-1] < table["predicted"].iloc[-1] - 0.05
    turned = reliability(np.zeros(4000), gap, 3 - preference, groups)
    assert turned.to_numpy() == pytest.approx(table.to_numpy())
    with pytest.raises(DataError, match="nothing to count"):
        reliability(gap[:2], gap[:2], np.full(2, np.nan), groups[:2])


def test_members_start_and_draw_apart() -> None:
    split, same, _ = planted(24)
    prompts = [split.policy.render(f"say {'abcdefgh'[i // 3]}") for i in range(24)]
    pairs = Pairs(prompts, same.outputs_1, same.outputs_2, same.p_first)
    config = RewardConfig(head="random", epochs=0)
    members = train_ensemble(split, pairs, config, members=3, seed=0).members
    weights = [member.score.weight.detach().numpy().ravel() for member in members]
    assert not np.allclose(weights[0], weights[1]) and not np.allclose(weights[1], weights[2])
    drawn = resample(pairs, 1)
    rows = set(zip(pairs.prompts, pairs.outputs_1, pairs.outputs_2, pairs.p_first.tolist(), strict=True))
    assert set(zip(drawn.prompts, drawn.outputs_1, drawn.outputs_2, drawn.p_first.tolist(), strict=True)) <= rows
    assert 1 < len(set(drawn.prompts)) < len(set(pairs.prompts))
    probe = RewardConfig(head="probe", epochs=0)
    apart = train_ensemble(split, pairs, probe, members=2, bootstrap=True, seed=0).members
    alone = train_reward_model(split, pairs, probe, seed=0)
    assert torch.equal(apart[0].score.weight, alone.score.weight)
    assert not torch.allclose(apart[0].score.weight, apart[1].score.weight, rtol=1e-3)


def test_an_interrupted_reward_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    split, pairs, _ = planted(60)
    config = RewardConfig(epochs=2, batch_size=8, learning_rate=2e-3, head="probe", pooling="mean")
    done = 0

    def stop(steps: int) -> None:
        nonlocal done
        done += steps
        if done == 10:
            raise KeyboardInterrupt

    def ensemble(setup: Setup) -> RewardEnsemble:
        return train_ensemble(split, pairs, config, members=2, seed=0, setup=setup)

    whole = ensemble(Setup(folder=tmp_path / "whole"))
    cut = Setup(folder=tmp_path / "cut", checkpoint_every=3, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        ensemble(cut)
    assert not (tmp_path / "cut/member-1").exists()
    done = 10
    resumed = ensemble(cut)
    for a, b in zip(whole.members, resumed.members, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    for i in range(2):
        name = f"member-{i}/{METRICS}"
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_checkpoint_of_other_labels_is_refused(tmp_path: Path) -> None:
    split, pairs, _ = planted(30)
    config, setup = RewardConfig(batch_size=8, learning_rate=2e-3), Setup(folder=tmp_path)
    train_reward_model(split, pairs, config, seed=0, setup=setup)
    turned = Pairs(pairs.prompts, pairs.outputs_1, pairs.outputs_2, 1 - np.asarray(pairs.p_first))
    with pytest.raises(RunError, match="of another training: data was"):
        train_reward_model(split, turned, config, seed=0, setup=setup)


def test_a_checkpoint_older_than_a_key_counts_as_having_its_default(tmp_path: Path) -> None:
    split, pairs, _ = planted(30)
    config, setup = RewardConfig(batch_size=8, learning_rate=2e-3), Setup(folder=tmp_path)
    train_reward_model(split, pairs, config, seed=0, setup=setup)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for key in ("data", "margin"):
        del state["identity"][key]
    torch.save(state, tmp_path / CHECKPOINT)
    train_reward_model(split, pairs, config, seed=0, setup=setup)
    with pytest.raises(RunError, match=r"margin was 0.0 and is now 0.5"):
        train_reward_model(split, pairs, config.model_copy(update={"margin": 0.5}), seed=0, setup=setup)


def test_rows_with_gradients_at_once_do_not_change_what_a_reward_model_learns() -> None:
    split, pairs, _ = planted(24)
    prompts = [split.policy.render(f"say {'abcdef'[i % 6]}") for i in range(24)]
    spread = Pairs(prompts, pairs.outputs_1, pairs.outputs_2, pairs.p_first)
    config = RewardConfig(batch_size=12, learning_rate=1e-3)
    models = [train_reward_model(split, spread, config, seed=0, setup=Setup(micro_batch=n)) for n in (1, 16)]
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(p, q, atol=1e-4)
