"""`simfarm train`: a method, or a reward model, by itself."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd

from simfarm.errors import ConfigError, RunError
from simfarm.policies.trackers import TRACKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from simfarm.methods.registry import Task
    from simfarm.policies.split import SplitModel
    from simfarm.policies.training import Setup, Watch

REWARD, BEST_OF_N = "reward", "best_of_n"
RECORD = "train.json"

EXAMPLES = """\b
simfarm train reward --data labels.json --out reward
simfarm train dpo --data labels.json --out dpo --set beta=0.1 --set learning_rate=1e-5
simfarm train rloo --data simfarm/unlabeled --reward reward --out rloo --watch simfarm/eval --max-kl 10
"""


@click.command(epilog=EXAMPLES)
@click.argument("method")
@click.option("--data", required=True, metavar="FILE|SET/SPLIT", help="What it learns from; see above.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for all it makes.")
@click.option("--policy", "model", default="hf/smollm2-135m", show_default=True, help="The initial policy.")
@click.option("--reward", type=click.Path(path_type=Path), help="Folder of a reward model or an ensemble.")
@click.option("--judge", metavar="POOL", help="best_of_n: a pool, without noise, chooses instead of a reward.")
@click.option("--layers", default="4", show_default=True, help="Train the last so many layers, or `all`.")
@click.option("--lora", type=click.IntRange(1), metavar="RANK", help="Train LoRA adapters of this rank on the layers.")
@click.option("--gradient-checkpointing", is_flag=True, help="Keep fewer activations: less memory, more time.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A hyper-parameter: learning_rate=1e-5.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=300, show_default=True)
@click.option("--temperature", default=0.7, show_default=True, help="best_of_n: of its responses.")
@click.option("--members", type=click.IntRange(1), default=1, show_default=True, help="reward: size of the ensemble.")
@click.option("--combine", type=click.Choice(["mean", "wco", "uwo", "lcb"]), default="mean", show_default=True,
              help="reward: how members are put together.")  # fmt: skip
@click.option("--penalty", default=0.5, show_default=True, help="reward: λ of uwo and lcb.")
@click.option("--bootstrap", is_flag=True, help="reward: members learn from prompts drawn anew, but the first.")
@click.option("--micro-batch", type=click.IntRange(1), default=16, show_default=True,
              help="Rows with gradients at once: halve it if memory runs out.")  # fmt: skip
@click.option("--decode-batch", type=click.IntRange(1), default=128, show_default=True, help="Rows decoded at once.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=10, show_default=True, help="Steps.")
@click.option("--watch", metavar="FILE|SET/SPLIT", help="Instructions to answer along training: samples.jsonl.")
@click.option("--watch-every", type=click.IntRange(1), default=10, show_default=True, help="Steps.")
@click.option("--gold", metavar="POOL", help="A pool, without noise, to compare watched answers with the initial ones.")
@click.option("--patience", type=click.IntRange(1), help="Stop after so many looks without a better gold.")
@click.option("--max-kl", type=float, help="Stop beyond this KL to the initial policy, in nats per response.")
@click.option("--track", "tracker", type=click.Choice(TRACKERS), help="Send metrics there as well.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True)
def train(
    method: str,
    data: str,
    out: Path,
    model: str,
    reward: Path | None,
    judge: str | None,
    layers: str,
    lora: int | None,
    gradient_checkpointing: bool,
    settings: tuple[str, ...],
    seed: int,
    max_new_tokens: int,
    temperature: float,
    members: int,
    combine: Any,
    penalty: float,
    bootstrap: bool,
    micro_batch: int,
    decode_batch: int,
    checkpoint_every: int,
    watch: str | None,
    watch_every: int,
    gold: str | None,
    patience: int | None,
    max_kl: float | None,
    tracker: str | None,
    device: str,
    dtype: str,
) -> None:
    """Train by METHOD from the initial policy, or train a `reward` model.

    DATA holds labels (instruction, output_1, output_2, preference; or prompt, chosen, rejected) for reward, dpo,
    binary_feedme and binary_reward_conditioning; outputs (instruction, output) for sft; instructions for best_of_n,
    expert_iteration, ppo, quark, reinforce and rloo, which need --reward. The same command again goes on where it was
    interrupted. OUT/policy is a model that `--set policy.model=hf/OUT/policy` of an experiment takes, and transformers
    loads; best_of_n writes OUT/outputs.json. With `accelerate launch -m simfarm train …` several processes share the
    work; with `--use_fsdp` also the weights, gradients and moments.
    """
    from simfarm.errors import require
    from simfarm.methods.registry import Task, load_method
    from simfarm.policies import workers
    from simfarm.policies.marker import with_marker
    from simfarm.policies.split import SplitModel
    from simfarm.policies.trackers import open_tracker
    from simfarm.policies.training import CHECKPOINT, Setup
    from simfarm.policies.transformers import TransformersPolicy
    from simfarm.rewards.ensemble import base_of, load_reward

    require("transformers", "local", "simfarm train")
    chosen = None if method in (REWARD, BEST_OF_N) else load_method(method)
    values = parse_settings(settings)
    if gold is not None and watch is None:
        raise ConfigError("--gold compares the answers to watched instructions: give --watch too.")
    if method == REWARD and (watch is not None or max_kl is not None):
        raise ConfigError("--watch and --max-kl look at a policy's answers; a reward model gives none.")
    if judge is not None and (method != BEST_OF_N or reward is not None):
        raise ConfigError("--judge chooses among responses of best_of_n, in place of --reward; other methods learn.")
    record = {"method": method, "data": data, "policy": model, "layers": layers, "settings": values, "seed": seed}
    if lora is not None:
        record["lora"] = lora
    if reward is not None:
        base_of(reward)
        record |= {"reward": str(reward)}
    if judge is not None:
        record |= {"judge": judge}
    if members > 1:
        record |= {"members": members, "bootstrap": bootstrap}
    workers.join()
    if chosen is None and workers.count() > 1:
        raise ConfigError(f"{method} runs in one process: start it without accelerate or torchrun.")
    if workers.rank() == 0:
        _claim(out, record)
    workers.wait()
    table = read_data(data)
    policy = TransformersPolicy.load(model, device=device, dtype=dtype)
    depth = int(policy.model.config.num_hidden_layers)
    split = SplitModel(
        policy,
        depth if layers == "all" else _whole(layers),
        lora_rank=lora,
        gradient_checkpointing=gradient_checkpointing,
    )
    setup = Setup(
        folder=out,
        micro_batch=micro_batch,
        batch_size=decode_batch,
        checkpoint_every=checkpoint_every,
        show=True,
        watch=_watch(split, watch, watch_every, gold, patience, max_kl, max_new_tokens, seed),
        tracker=open_tracker(tracker, out, record) if tracker and workers.rank() == 0 else None,
    )
    if method == REWARD:
        _reward(split, table, values, setup, out, members, combine, penalty, bootstrap, seed)
        if setup.tracker is not None:
            setup.tracker.finish()
        return
    task = Task(
        split, table, None if reward is None else load_reward(split, reward), values, seed, max_new_tokens, setup
    )
    if chosen is None:
        _best_of_n(task, judge, temperature, out)
        return
    trained = chosen(task)
    if setup.tracker is not None:
        setup.tracker.finish()
    final = split.with_top(trained.top, method)
    if workers.rank() == 0:
        final = with_marker(final, trained.marker) if trained.marker else final
        final.model.save_pretrained(out / "policy")
        final.tokenizer.save_pretrained(out / "policy")
        (out / CHECKPOINT).unlink(missing_ok=True)
        click.echo(f"The policy is in {out / 'policy'}; metrics of every step in {out / 'metrics.jsonl'}.")
    workers.leave()


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Read `key=value` with dotted keys; a value is TOML, a bare word a text.

    Raises:
        ConfigError: One is not of this form.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes key=value, such as --set learning_rate=1e-5; given: {setting!r}.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *path, last = key.split(".")
        inner = values
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


def read_data(name: str) -> pd.DataFrame:
    """Read a file of labels, outputs or instructions, or a split of an instruction set.

    Preference data of trainers (prompt, chosen, rejected) become labels, the chosen response in output_1 or output_2 by
    a draw keyed by the row.
    """
    from simfarm import draws
    from simfarm.annotators.inputs import read_given
    from simfarm.experiments.stages import instructions_named
    from simfarm.tables import read_table

    if not Path(name).is_file():
        return instructions_named(name)
    table = read_table(name)
    if not {"prompt", "chosen", "rejected"} <= set(table.columns):
        return table
    pairs = read_given(name).table
    texts = list(zip(pairs["instruction"], pairs["output_1"], pairs["output_2"], strict=True))
    first = [draws.coin(0.5, 0, "side of the chosen response", *row) for row in texts]
    return pd.DataFrame(
        {
            "instruction": pairs["instruction"],
            "output_1": [a if here else b for (_, a, b), here in zip(texts, first, strict=True)],
            "output_2": [b if here else a for (_, a, b), here in zip(texts, first, strict=True)],
            "preference": [1.0 if here else 2.0 for here in first],
        }
    )


def _whole(layers: str) -> int:
    try:
        return int(layers)
    except ValueError as error:
        raise ConfigError(f"--layers takes a whole number or `all`; given: {layers!r}.") from error


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Make the folder, or check that it holds this very training.

    Raises:
        RunError: It holds something else, or cannot be written.
    """
    try:
        if (out / RECORD).is_file():
            held = json.loads((out / RECORD).read_text("utf-8"))
            other = [key for key in {**held, **record} if held.get(key) != record.get(key)]
            if other:
                key = other[0]
                raise RunError(
                    f"{out} holds another training: {key} was {held.get(key)!r} and is now {record.get(key)!r}. Give "
                    "another folder with --out."
                )
            return
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise RunError(f"{out} is not empty and holds no training. Give an empty or new folder with --out.")
        (out / RECORD).write_text(json.dumps(record, indent=1), "utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"The folder {out} cannot be used: {error}. Give another with --out.") from error


def _watch(
    split: SplitModel,
    watch: str | None,
    every: int,
    gold: str | None,
    patience: int | None,
    max_kl: float | None,
    max_new_tokens: int,
    seed: int,
) -> Watch | None:
    from simfarm import draws
    from simfarm.policies.training import Watch

    if watch is None:
        return None if max_kl is None else Watch(max_kl=max_kl)
    table = read_data(watch)
    inputs = list(table["input"]) if "input" in table.columns else [""] * len(table)
    prompts = [split.policy.render(*pair) for pair in zip(table["instruction"], inputs, strict=True)]
    score: Callable[[Sequence[str]], NDArray[np.float64]] | None = None
    if gold is not None:
        from simfarm.annotators.pool import load_pool
        from simfarm.experiments.judging import gold_scores

        pool = load_pool(gold)
        keys: list[draws.Part] = [["watch baseline", i] for i in range(len(prompts))]
        first = split.policy.sample(prompts, keys, max_new_tokens=max_new_tokens, seed=seed)

        def score(texts: Sequence[str]) -> NDArray[np.float64]:
            pairs = table[["instruction"]].assign(input=inputs, output_1=[r.text for r in first], output_2=list(texts))
            return gold_scores(pool, pairs, seed=seed, orders="random").to_numpy(float)

    return Watch(prompts, every, max_new_tokens, score, patience, max_kl)


def _reward(
    split: SplitModel,
    table: pd.DataFrame,
    values: dict[str, Any],
    setup: Setup,
    out: Path,
    members: int,
    rule: Any,
    penalty: float,
    bootstrap: bool,
    seed: int,
) -> None:
    """Train a reward model or an ensemble, and say how good it is on a tenth of the instructions kept apart."""
    from pydantic import ValidationError

    from simfarm import draws
    from simfarm.config_errors import explain
    from simfarm.policies.training import CHECKPOINT
    from simfarm.progress import track
    from simfarm.records import probability_from_preference
    from simfarm.rewards.config import RewardConfig
    from simfarm.rewards.ensemble import member_folder, train_ensemble
    from simfarm.rewards.export import export
    from simfarm.rewards.train import Pairs, accuracy, reliability
    from simfarm.tables import check_labels, write_table

    try:
        config = RewardConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RewardConfig, "--set")) from error
    labels = check_labels(table)
    labels = labels[labels["preference"].notna() & (labels["output_1"] != labels["output_2"])]
    held = {i for i in set(labels["instruction"]) if draws.coin(0.1, seed, "held-out instructions", i)}
    test = labels["instruction"].isin(held).to_numpy()
    prompts = [split.policy.render(*pair) for pair in zip(labels["instruction"], labels["input"], strict=True)]

    def pairs(rows: NDArray[np.bool_]) -> Pairs:
        some = labels[rows]
        p_first = some["preference"].map(probability_from_preference).to_numpy(float)
        kept = [p for p, here in zip(prompts, rows, strict=True) if here]
        return Pairs(kept, list(some["output_1"]), list(some["output_2"]), p_first)

    train_part, test_part = pairs(~test), pairs(test)
    with track("training the reward", len(train_part.prompts) * config.epochs * members, "pairs") as advance:
        ensemble = train_ensemble(
            split, train_part, config, members=members, rule=rule, penalty=penalty, bootstrap=bootstrap, seed=seed,
            setup=replace(setup, show=False), progress=advance,
        )  # fmt: skip
    model = ensemble if members > 1 else ensemble.members[0]
    model.save(out)
    if members == 1 and config.pooling == "last":
        export(ensemble.members[0], out)
    facts: dict[str, float] = {"train_pairs": len(train_part.prompts), "test_pairs": len(test_part.prompts)}
    if (test_part.p_first != 0.5).any():
        r1, r2 = (model.rewards(test_part.prompts, side) for side in (test_part.outputs_1, test_part.outputs_2))
        facts["test_accuracy"] = accuracy(r1, r2, 2 - test_part.p_first)
        write_table(reliability(r1, r2, 2 - test_part.p_first, test_part.prompts), out / "calibration.csv")
    (out / "accuracy.json").write_text(json.dumps(facts, indent=1), "utf-8")
    for checkpoint in [out / CHECKPOINT, *(out / member_folder(i) / CHECKPOINT for i in range(members))]:
        checkpoint.unlink(missing_ok=True)
    share = f"{facts['test_accuracy']:.1%} of" if "test_accuracy" in facts else "no decided label among"
    click.echo(f"The reward is in {out}; it agrees with {share} {len(test_part.prompts)} labels it has not seen.")


def _best_of_n(task: Task, judge: str | None, temperature: float, out: Path) -> None:
    """Draw n responses to each instruction and keep the best by the reward, or by a judge.

    A judge compares each with the first drawn: n - 1 comparisons, where all pairs would be n (n - 1) / 2.
    """
    import numpy as np

    from simfarm.annotators.pool import load_pool
    from simfarm.experiments.judging import gold_scores
    from simfarm.methods.best_of_n import choose
    from simfarm.methods.config import BestOfNConfig
    from simfarm.progress import track
    from simfarm.tables import with_input, write_table

    n, model, given = task.config(BestOfNConfig).n, task.reward_model, with_input(task.data)[["instruction", "input"]]
    asked = [prompt for prompt in task.prompts for _ in range(n)]
    score: Callable[[list[str]], NDArray[np.float64]]
    if judge is not None:
        pool = load_pool(judge)

        def score(texts: list[str]) -> NDArray[np.float64]:
            rows = given.loc[given.index.repeat(n)].reset_index(drop=True)
            pairs = rows.assign(output_1=[texts[i // n * n] for i in range(len(texts))], output_2=texts)
            won = gold_scores(pool, pairs, seed=task.seed, orders="random")
            if missing := int(won.isna().sum()):
                click.echo(f"{missing} of {len(won)} comparisons brought no verdict: these responses are not chosen.")
            return np.asarray(won.fillna(-1.0), float)

    elif model is not None:

        def score(texts: list[str]) -> NDArray[np.float64]:
            return model.rewards(asked, texts)

    else:
        raise ConfigError(
            "best_of_n needs who chooses: a reward model with --reward FOLDER (simfarm train reward), or a pool with "
            "--judge POOL."
        )
    with track("best of n", len(asked), "responses") as advance:
        drawn = task.split.policy.sample(
            asked,
            [["best_of_n", i // n, i % n] for i in range(len(asked))],
            max_new_tokens=task.max_new_tokens,
            seed=task.seed,
            temperature=temperature,
            batch_size=task.setup.batch_size,
            progress=advance,
        )
    texts = [r.text for r in drawn]
    best = choose(score(texts).reshape(-1, n), n)
    table = given.assign(output=[texts[i * n + k] for i, k in enumerate(best)], generator=f"best_of_{n}")
    click.echo(
        f"The best of {n} responses to {len(table)} instructions are in {write_table(table, out / 'outputs.json')}."
    )
