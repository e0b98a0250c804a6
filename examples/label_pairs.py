"""Label pairs with a judge of my own: a pool is a folder with a pool.toml and its prompts."""

import tempfile
from pathlib import Path

from toy import outputs

import simfarm as sf
from simfarm import tables

PROMPT = """\
[user]
Which answer is better? End with a line "Choice: A" or "Choice: B".

Instruction: {instruction} {input}

Answer A: {output_1}

Answer B: {output_2}
"""
POOL = """\
name = "mine"
description = "One judge with a prompt of my own."

[models]
judge = "openai/gpt-5.4"

[[members]]
kind = "prompted"
name = "strict"
model = "judge"
prompt = "strict.txt"
parser = { kind = "choice", after = "Choice:" }
"""

folder = Path(tempfile.mkdtemp()) / "mine"
folder.mkdir()
(folder / "pool.toml").write_text(POOL)
(folder / "strict.txt").write_text(PROMPT)

pairs = sf.head_to_head(outputs("ppo"), outputs("baseline"))

# left out, `models` is what pool.toml names; a fake plays its part here, for nothing
assert sf.load_pool(folder).offline is False  # the prompt is read and checked; nobody is asked yet
pool = sf.load_pool(folder, models={"judge": "fake/oracle"})
labels = pool.annotate(pairs, seed=0, flip=0.25, orders="both")
print(labels[["preference", "preference_clean", "flipped", "annotator", "order", "pool"]].head())

# for TRL's trainers, and for alpaca_eval
trainer = tables.write_table(sf.to_trl(labels), folder / "preferences.jsonl")
annotations = tables.write_table(sf.to_alpaca_eval(labels), folder / "annotations.json")
print(f"{len(tables.read_table(trainer))} preferences for training, {len(tables.read_table(annotations))} annotations")
