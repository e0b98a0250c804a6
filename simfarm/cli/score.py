"""`simfarm score`: what a reward model thinks of outputs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example: simfarm score outputs.json --reward reward --out scored.json")
@click.argument("outputs", type=click.Path(path_type=Path))
@click.option("--reward", type=click.Path(path_type=Path), required=True, help="Folder of a reward model or ensemble.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="OUTPUTS with a column `reward`.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True)
def score(outputs: Path, reward: Path, out: Path, device: str, dtype: str) -> None:
    """Score OUTPUTS (instruction, output) by a reward model; differences are log-odds of preference."""
    from simfarm.errors import require
    from simfarm.policies.split import SplitModel
    from simfarm.policies.transformers import TransformersPolicy
    from simfarm.progress import track
    from simfarm.rewards.ensemble import base_of, load_reward
    from simfarm.tables import OUTPUT_COLUMNS, read_table, with_input, write_table

    require("transformers", "local", "simfarm score")
    base, layers = base_of(reward)
    table = with_input(read_table(outputs, OUTPUT_COLUMNS[:2]))
    policy = TransformersPolicy.load(base, device=device, dtype=dtype)
    model = load_reward(SplitModel(policy, layers), reward)
    prompts = [policy.render(*pair) for pair in zip(table["instruction"], table["input"], strict=True)]
    with track("scoring", len(table), "outputs") as advance:
        rewards = model.rewards(prompts, list(table["output"]), progress=advance)
    write_table(table.assign(reward=rewards), out)
    click.echo(f"{len(table):,} rewards in {out}: mean {rewards.mean():.3f}, standard deviation {rewards.std():.3f}.")
