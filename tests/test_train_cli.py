"""simfarm train, score and evaluate, on a tiny model: from labels to a policy to win rates."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from tiny import save_tiny

from simfarm.cli import cli
from simfarm.cli.train import parse_settings
from simfarm.errors import ConfigError, DataError, ModelError, RunError, UnknownNameError
from simfarm.experiments.config import load_experiment
from simfarm.experiments.runner import plan, run_experiment
from simfarm.experiments.stages import BY_TASK, STAGES, Run
from simfarm.methods.registry import BUILTIN
from simfarm.policies.split import SplitModel
from simfarm.policies.training import Trainer
from simfarm.policies.transformers import TransformersPolicy
from simfarm.rewards.ensemble import RewardEnsemble, combine, load_reward

WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "tan"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model, labels (the more e, the better), outputs, and a reward model trained on the labels."""
    folder = tmp_path_factory.mktemp("train")
    save_tiny(folder / "model")
    rng = np.random.default_rng(0)

    def text() -> str:
        return "".join(rng.choice(list("abcde"), 6))

    rows = [{"instruction": f"say {w}", "output_1": text(), "output_2": text()} for w in WORDS for _ in range(8)]
    for row in rows:
        gap = row["output_1"].count("e") - row["output_2"].count("e")
        row["preference"] = 1.5 - 0.5 * np.sign(gap)
    (folder / "labels.json").write_text(json.dumps(rows))
    outputs = [{"instruction": f"say {w}", "output": text()} for w in WORDS]
    (folder / "outputs.json").write_text(json.dumps(outputs))
    made = train(folder, "reward", "labels.json", "reward", "--set", "epochs=3", "--set", "learning_rate=2e-3")
    assert "agrees with" in made.output
    return folder


def train(folder: Path, method: str, data: str, out: str, *options: str) -> Result:
    arguments = ["train", method, "--policy", f"hf/{folder}/model", "--data", str(folder / data)]
    fixed = ["--out", str(folder / out), "--layers", "2", "--max-new-tokens", "6"]
    result = CliRunner().invoke(cli, [*arguments, *fixed, *options], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_reward_loads_as_a_sequence_classifier(home: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    policy = TransformersPolicy.load(f"hf/{home}/model")
    reward = load_reward(SplitModel(policy, 2), home / "reward")
    prompt, texts = policy.render("say red"), ["abcde", "eee", "b"]
    model = AutoModelForSequenceClassification.from_pretrained(home / "reward", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(home / "reward")
    whole = [prompt + text + tokenizer.eos_token for text in texts]
    batch = tokenizer(whole, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        scores = model(**batch).logits.squeeze(-1).double().numpy() - model.config.simfarm_offset
    assert scores == pytest.approx(reward.rewards([prompt] * 3, texts), abs=0.02)


def test_score(home: Path) -> None:
    arguments = ["score", str(home / "outputs.json"), "--reward", str(home / "reward")]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(home / "scored.json")])
    assert result.exit_code == 0, result.output
    scored = pd.read_json(home / "scored.json")
    policy = TransformersPolicy.load(f"hf/{home}/model")
    reward = load_reward(SplitModel(policy, 2), home / "reward")
    prompts = [policy.render(instruction) for instruction in scored["instruction"]]
    assert scored["reward"].tolist() == pytest.approx(
        reward.rewards(prompts, list(scored["output"])).tolist(), abs=1e-5
    )


FEW = ("--set", "steps=2", "--set", "rollouts=8", "--set", "warmup_steps=0")
ONCE = ("--set", "epochs=1", "--set", "batch_size=16")


@pytest.mark.parametrize(
    ("method", "data", "options"),
    [
        ("sft", "outputs.json", ONCE),
        ("binary_feedme", "labels.json", ONCE),
        ("binary_reward_conditioning", "labels.json", ONCE),
        ("dpo", "labels.json", ONCE),
        ("expert_iteration", "outputs.json", ("--set", "n=2", "--set", "rounds=2", "--set", "sft.epochs=1")),
        ("ppo", "outputs.json", (*FEW, "--set", "minibatch=4")),
        ("quark", "outputs.json", FEW),
        ("reinforce", "outputs.json", FEW),
        ("rloo", "outputs.json", ("--set", "steps=2", "--set", "prompts=4", "--set", "samples=2")),
    ],
)
def test_every_method_runs_alone_and_leaves_a_model(home: Path, method: str, data: str, options: tuple) -> None:
    reward = () if data == "labels.json" or method == "sft" else ("--reward", str(home / "reward"))
    train(home, method, data, method, *options, *reward)
    assert list((home / method).rglob("metrics.jsonl"))
    policy = TransformersPolicy.load(f"hf/{home}/{method}/policy")
    prompt = policy.render("say red")
    assert prompt.startswith("Preferred response.") == (method == "binary_reward_conditioning")
    assert len(policy.sample([prompt], [0], max_new_tokens=4, seed=0)) == 1
    before = TransformersPolicy.load(f"hf/{home}/model").model.state_dict()
    changed = {name for name, p in policy.model.state_dict().items() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm")) for name in changed)


def test_best_of_n_writes_outputs_and_evaluate_compares_them(home: Path) -> None:
    train(home, "best_of_n", "outputs.json", "bon", "--set", "n=4", "--reward", str(home / "reward"))
    train(home, "best_of_n", "outputs.json", "one", "--set", "n=1", "--reward", str(home / "reward"))
    arguments = ["evaluate", str(home / "bon/outputs.json"), str(home / "outputs.json")]
    fixed = ["--baseline", str(home / "one/outputs.json"), "--pool", "fake-biased"]
    result = CliRunner().invoke(cli, [*arguments, *fixed, "--out", str(home / "judged.json"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output[result.output.index("{") :])
    assert {row["generator"] for row in found["win_rates"]} == {"best_of_4", "outputs"}
    assert all(0 <= row["ci_low"] <= row["win_rate"] <= row["ci_high"] <= 100 for row in found["win_rates"])
    assert "preference" in pd.read_json(home / "judged.json")
    again = CliRunner().invoke(cli, [*arguments, str(home / "outputs.json"), *fixed])
    assert isinstance(again.exception, DataError) and "comes twice" in str(again.exception)


def test_best_of_n_by_a_judge(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    member = '[[members]]\nkind = "fake"\nname = "long-lover"\nmodel = "fake/biased"\nlength_taste = 5\n'
    (folder / "pool.toml").write_text(f'name = "long"\ndescription = "Likes long ones."\n{member}', "utf-8")
    judge = ("--judge", str(folder))
    train(home, "best_of_n", "outputs.json", "judged", "--set", "n=6", *judge)
    train(home, "best_of_n", "outputs.json", "unjudged", "--set", "n=1", *judge)
    chosen, first = (pd.read_json(home / name / "outputs.json")["output"].str.len() for name in ("judged", "unjudged"))
    assert (chosen >= first).all() and chosen.mean() > first.mean()
    with pytest.raises(ConfigError, match="in place of --reward"):
        train(home, "dpo", "labels.json", "no", *judge)


def test_watching_with_gold(home: Path) -> None:
    watch = ("--watch", str(home / "outputs.json"), "--watch-every", "1", "--gold", "fake-biased")
    train(home, "dpo", "labels.json", "watched", *ONCE, *watch)
    rows = [json.loads(line) for line in (home / "watched/samples.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "output", "kl", "gold"} <= rows[0].keys()
    metrics = [json.loads(line) for line in (home / "watched/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * len(metrics) and all(0 <= row["gold"] <= 1 for row in metrics)


def test_an_ensemble_is_trained_saved_and_used(home: Path) -> None:
    options = ("--members", "2", "--combine", "wco", "--set", "learning_rate=2e-3")
    train(home, "reward", "labels.json", "ensemble", *options)
    split = SplitModel(TransformersPolicy.load(f"hf/{home}/model"), 2)
    ensemble = load_reward(split, home / "ensemble")
    assert isinstance(ensemble, RewardEnsemble) and ensemble.rule == "wco"
    prompts, texts = [split.policy.render("say red")] * 2, ["abc", "eee"]
    each = np.stack([member.rewards(prompts, texts) for member in ensemble.members])
    assert not np.allclose(each[0], each[1])
    assert ensemble.rewards(prompts, texts) == pytest.approx(each.min(0))
    train(home, "rloo", "outputs.json", "rloo-2", "--set", "steps=1", "--set", "prompts=2", "--set", "samples=2",
          "--reward", str(home / "ensemble"))  # fmt: skip


def test_rules_of_ensembles_by_hand() -> None:
    rewards = np.array([[1.0, 2.0], [3.0, 2.0]])
    assert combine(rewards, "mean", 0.5) == pytest.approx([2.0, 2.0])
    assert combine(rewards, "wco", 0.5) == pytest.approx([1.0, 2.0])
    assert combine(2 * rewards, "uwo", 0.5) == pytest.approx([4 - 0.5 * 4, 4.0])
    assert combine(2 * rewards, "lcb", 0.5) == pytest.approx([4 - 0.5 * 2, 4.0])
    with pytest.raises(ConfigError, match="one member or more"):
        RewardEnsemble([])


def test_a_killed_reward_training_ends_as_an_uninterrupted_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--set", "epochs=3", "--set", "learning_rate=2e-3", "--checkpoint-every", "2")
    record = Trainer.record

    def cut(self: Trainer, row: dict[str, float]) -> None:
        record(self, row)
        if len(self.history) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(Trainer, "record", cut)
        train(home, "reward", "labels.json", "cut", *options)
    assert (home / "cut/checkpoint.pt").is_file() and not (home / "cut/reward.safetensors").exists()
    train(home, "reward", "labels.json", "cut", *options)
    assert not (home / "cut/checkpoint.pt").exists()
    for name in ("reward.safetensors", "model.safetensors"):
        assert (home / "cut" / name).read_bytes() == (home / "reward" / name).read_bytes()
    assert len((home / "cut/metrics.jsonl").read_text().splitlines()) > 5
    with pytest.raises(ConfigError, match="--watch and --max-kl look at a policy"):
        train(home, "reward", "labels.json", "watched", "--max-kl", "3")


def test_the_same_command_goes_on_and_another_is_refused(home: Path) -> None:
    first = train(home, "dpo", "labels.json", "twice", *ONCE)
    assert train(home, "dpo", "labels.json", "twice", *ONCE).output == first.output
    with pytest.raises(RunError, match="method was 'dpo' and is now 'binary_feedme'"):
        train(home, "binary_feedme", "labels.json", "twice", *ONCE)
    (home / "full").mkdir()
    (home / "full/note.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and holds no training"):
        train(home, "dpo", "labels.json", "full", *ONCE)


def test_trainers_data_are_read_and_sides_drawn(home: Path) -> None:
    rows = [{"prompt": f"say {w}", "chosen": "eee", "rejected": c} for w in WORDS for c in ("a", "b", "c")]
    (home / "trl.json").write_text(json.dumps(rows))
    train(home, "reward", "trl.json", "trl", "--set", "learning_rate=2e-3")
    assert json.loads((home / "trl/accuracy.json").read_text())["train_pairs"] > 10


def test_bad_input(home: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'rloo'"):
        train(home, "rlooo", "labels.json", "bad1")
    with pytest.raises(ConfigError, match=r"unknown key 'learning_rat'. Did you mean 'learning_rate'"):
        train(home, "dpo", "labels.json", "bad2", "--set", "learning_rat=1")
    with pytest.raises(ConfigError, match="needs a reward model: give one with --reward"):
        train(home, "rloo", "outputs.json", "bad3")
    with pytest.raises(DataError, match="labels, has no column 'output_1'"):
        train(home, "dpo", "outputs.json", "bad4")
    with pytest.raises(ModelError, match=r"holds no reward model. Make one: simfarm train reward"):
        train(home, "rloo", "outputs.json", "bad5", "--reward", str(home / "model"))
    with pytest.raises(ConfigError, match="--gold compares"):
        train(home, "dpo", "labels.json", "bad6", "--gold", "fake-biased")
    with pytest.raises(ModelError, match="not on the last 1 of"):
        train(home, "rloo", "outputs.json", "bad7", "--reward", str(home / "reward"), "--layers", "1")
    (home / "long.json").write_text(json.dumps([{"instruction": "a" * 300, "output": "b"}]))
    with pytest.raises(DataError, match=r"Row 0 takes 30. tokens with its response"):
        train(home, "sft", "long.json", "bad8")
    row = {"instruction": "a", "output_1": "", "output_2": "b", "preference": 1, "finished_1": False}
    (home / "empty.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="empty response"):
        train(home, "dpo", "empty.json", "bad9")
    assert parse_settings(("a.b=1e-5", "c=word")) == {"a": {"b": 1e-5}, "c": "word"}
    with pytest.raises(ConfigError, match="takes key=value"):
        parse_settings(("a",))


def test_a_method_of_another_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("shortest", "own_method:shortest", "simfarm.methods")
    broken = importlib.metadata.EntryPoint("broken", "own_method:gone", "simfarm.methods")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point, broken])
    train(home, "shortest", "labels.json", "shortest", "--set", "epochs=1")
    assert TransformersPolicy.load(f"hf/{home}/shortest/policy").render("say red")
    with pytest.raises(ConfigError, match=r"own_method:gone.* cannot be imported"):
        train(home, "broken", "labels.json", "broken")


EXPERIMENT = """
name = "methods"
methods = ["sft", "dpo", "binary_feedme", "binary_reward_conditioning", "quark", "reinforce", "rloo"]
[data]
preference = "{home}/outputs.json"
unlabeled = "{home}/outputs.json"
eval = "{home}/outputs.json"
[policy]
model = "hf/{home}/model"
trainable_layers = 2
max_new_tokens = 6
[annotation]
pool = "fake-biased"
replicates = 2
held_out = 0.25
[checkpoints]
mine = "hf/{home}/model"
[quark]
steps = 1
rollouts = 8
[reinforce]
steps = 1
rollouts = 4
[rloo]
steps = 1
prompts = 2
[evaluation]
pool = "fake-biased"
"""


def test_every_method_and_a_checkpoint_in_an_experiment(home: Path) -> None:
    (home / "methods.toml").write_text(EXPERIMENT.format(home=home))
    config = load_experiment(str(home / "methods.toml"))
    planned = plan(config).set_index("stage")
    assert planned.loc["rloo", "count"] == 8 and planned.loc["outputs", "count"] == 7 * 8
    run = run_experiment(config, home / "run", track="tensorboard").path
    assert {p.parent.name for p in run.rglob("tensorboard")} == {"reward", *({*config.methods} & {"ppo", *BY_TASK})}
    rates = pd.read_csv(run / "evaluation/win_rates.csv")
    assert set(rates["generator"]) == {*config.methods, "mine"}
    marker = json.loads((run / "methods/binary_reward_conditioning/marker.json").read_text())
    assert marker == config.binary_reward_conditioning.win
    assert not list(run.rglob("checkpoint.pt"))
    with pytest.raises(ConfigError, match="checkpoints names dpo, which the experiment makes itself"):
        load_experiment(str(home / "methods.toml"), ["checkpoints.dpo=hf/x"])


def test_the_experiment_methods_starts_resumes_and_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["epochs=1", "batch_size=16"]
    settings = [
        f"policy.model=hf/{home}/model", "policy.trainable_layers=2", "policy.max_new_tokens=6", "policy.lora_rank=2",
        *(f"data.{split}={home}/outputs.json" for split in ("preference", "unlabeled", "eval")),
        "annotation.pool=fake-biased", "evaluation.pool=fake-biased", "annotation.replicates=2", "best_of_n.n=2",
        "evaluation.replicates=1", "annotation.held_out=0.25", "expert_iteration.sft.epochs=1", "rloo.steps=1",
        *(f"{m}.{key}" for m in ("dpo", "binary_feedme", "binary_reward_conditioning") for key in short),
        *(f"{m}.{key}" for m in ("ppo", "quark", "reinforce") for key in ("steps=1", "rollouts=4")),
    ]  # fmt: skip
    config = load_experiment("methods", settings)
    assert {*config.methods} == {*BUILTIN, "best_of_n"}

    def cut(run: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cutting:
        cutting.setitem(STAGES, "rloo", cut)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, home / "methods")
    run = run_experiment(config, home / "methods").path
    rates = pd.read_csv(run / "evaluation/win_rates.csv")
    assert {*rates["generator"]} == {*config.methods} and (run / "report.html").is_file()


def test_metrics_go_to_a_tracker_too(home: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(home, "sft", "outputs.json", "tracked", "--set", "epochs=2", "--track", "tensorboard")
    found = EventAccumulator(str(home / "tracked/tensorboard")).Reload().Scalars("loss")
    kept = [json.loads(line) for line in (home / "tracked/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [(e.step, e.value) for e in found] == [(row["step"], pytest.approx(row["loss"])) for row in kept]
