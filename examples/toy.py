"""Stand-ins for your own data, so that the examples run anywhere in seconds: put your own files in their place."""

import numpy as np
import pandas as pd

import simfarm as sf

INSTRUCTIONS = sf.load_instructions("simfarm", split="eval")[["id", "instruction", "input"]].head(40)
SKILL = {"baseline": 0.35, "sft": 0.35, "best_of_n": 0.5, "ppo": 0.6}
"""Share of the instruction's words that a method's answer takes up; the fake annotators like that."""


def answer(instruction: str, skill: float, rng: np.random.Generator) -> str:
    """Say some words of the instruction, and some others."""
    words = instruction.split()
    return " ".join(word if rng.random() < skill else "hm" for word in words)


def outputs(generator: str, seed: int = 0) -> pd.DataFrame:
    """Answer all instructions: instruction, input, output, generator."""
    rng = np.random.default_rng([seed, list(SKILL).index(generator)])
    said = [answer(text, SKILL[generator], rng) for text in INSTRUCTIONS["instruction"]]
    return INSTRUCTIONS.drop(columns="id").assign(output=said, generator=generator)


def human_labels(pairs: pd.DataFrame, people: int = 3, seed: int = 1) -> pd.DataFrame:
    """Have three people, who err, compare pairs: one row per person and pair."""
    pool = sf.load_pool("fake-biased")
    rows = [pool.annotate(pairs, seed=seed + k, flip=0.15).assign(annotator=f"person {k}") for k in range(people)]
    kept = [*pairs.columns, "preference", "annotator"]
    return pd.concat(rows, ignore_index=True)[kept]
