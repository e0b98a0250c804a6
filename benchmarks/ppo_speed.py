"""Response tokens a second and memory of a PPO step: ours beside TRL's, the last release that has PPO.

    python -m venv peer && peer/bin/pip install trl==1.12.0 'torch>=2.8,<2.14'
    python -m benchmarks.ppo_speed --peer-python peer/bin/python [--out benchmarks/results/ppo_speed.md]

The same model, prompts, number and length of responses on both sides, one pass over each batch, a reward model of the
policy's size with a random head. No response ends early: both learn from responses of one length. Every setting runs in
a process of its own, one after the other; the first step warms up and is not counted. Without --peer-python TRL is left
out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

WANTED_PROMPT = 38
"""Tokens of a prompt; the instructions nearest to it are taken."""

PEER = r"""
import json, resource, statistics, sys, time
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

folder, rollouts, new_tokens, steps = sys.argv[1], *map(int, sys.argv[2:5])
prompts = json.load(open(sys.argv[5]))
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = "<|pad|>" if "<|pad|>" in tokenizer.get_vocab() else tokenizer.unk_token or tokenizer.eos_token
dtype = torch.bfloat16
policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for _ in range(2))
reward, value = (
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1) for _ in range(2)
)
for model in (policy, reference):
    model.generation_config.eos_token_id = None
seconds = []

class Clock(TrainerCallback):
    def on_train_begin(self, *a, **k):
        self.begun = time.perf_counter()
    def on_step_end(self, *a, **k):
        seconds.append(time.perf_counter() - self.begun)
        self.begun = time.perf_counter()

config = PPOConfig(
    output_dir=folder + "/out", per_device_train_batch_size=rollouts, gradient_accumulation_steps=1, num_mini_batches=1,
    num_ppo_epochs=1, total_episodes=rollouts * steps, response_length=new_tokens, temperature=1.0, learning_rate=1e-5,
    local_rollout_forward_batch_size=rollouts, num_sample_generations=0, report_to=[], save_strategy="no", use_cpu=True,
    bf16=False, gradient_checkpointing=False, stop_token=None, seed=0,
)
data = Dataset.from_dict({"input_ids": prompts})
PPOTrainer(
    args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward, value_model=value,
    train_dataset=data, eval_dataset=data.select(range(2)), callbacks=[Clock()],
).train()
print(json.dumps({
    "seconds": statistics.median(seconds[1:]), "steps": seconds,
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


def prepare(model: str, rollouts: int, folder: Path) -> None:
    """Write the model as transformers reads it, in the dtype that we train it in, and the prompts' tokens."""
    from simfarm.evalsets import load_instructions
    from simfarm.policies.transformers import TransformersPolicy

    policy = TransformersPolicy.load(model)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    table = load_instructions("simfarm", split="unlabeled")
    texts = [policy.render(*pair) for pair in zip(table["instruction"], table["input"], strict=True)]
    texts.sort(key=lambda text: abs(len(policy.encode(text)) - WANTED_PROMPT))
    texts = [texts[i % len(texts)] for i in range(rollouts)]
    (folder / "prompts.json").write_text(json.dumps(texts), "utf-8")
    (folder / "prompt_tokens.json").write_text(json.dumps([policy.encode(text) for text in texts]), "utf-8")


def ours(folder: Path, value: str, layers: int, rollouts: int, new_tokens: int, steps: int, micro_batch: int) -> None:
    """Run our PPO in this process and print what it took."""
    import torch

    from simfarm.methods.config import PPOConfig
    from simfarm.methods.ppo import ppo
    from simfarm.policies.split import SplitModel
    from simfarm.policies.training import Setup
    from simfarm.policies.transformers import TransformersPolicy
    from simfarm.rewards.model import RewardModel

    policy = TransformersPolicy.load(str(folder))
    policy.end_ids = []
    policy.tokenizer.pad_token_id = int(policy.tokenizer.eos_token_id)
    split = SplitModel(policy, layers or int(policy.model.config.num_hidden_layers))
    reward = RewardModel(split)
    torch.manual_seed(0)
    torch.nn.init.normal_(reward.score.weight, std=split.hidden_size**-0.5)
    prompts = json.loads((folder / "prompts.json").read_text("utf-8"))[:rollouts]
    config = PPOConfig(
        steps=steps, rollouts=rollouts, minibatch=rollouts, epochs=1, learning_rate=1e-5,
        value_network="shared" if value == "shared" else "own",
    )  # fmt: skip
    _, history = ppo(
        split, prompts, lambda _, texts: reward.rewards_of_texts(texts), config, max_new_tokens=new_tokens, seed=0,
        value_top=reward.top, setup=Setup(batch_size=rollouts, micro_batch=micro_batch),
    )  # fmt: skip
    assert all(row["length"] == new_tokens for row in history)
    seconds = [row["seconds"] for row in history]
    print(
        json.dumps(
            {
                "seconds": float(np.median(seconds[1:])),
                "steps": seconds,
                "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


def measured(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure every setting and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hf/smollm2-135m")
    parser.add_argument("--rollouts", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4, help="Last layers trained in the quicker setting.")
    parser.add_argument("--peer-python", help="A Python that has trl 1.12.0.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--micro-batch", type=int, default=4, help="Rows with gradients at once, of ours.")
    parser.add_argument("--step", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        folder, value, *numbers = args.step
        ours(Path(folder), value, *map(int, numbers))
        return
    settings = [
        ("all layers, value a head on the policy", "shared", 0, 1),
        ("all layers, value a network of its own", "own", 0, 1),
        (f"last {args.layers} layers, value a head on the policy", "shared", args.layers, 4),
    ]
    lines = ["| | responses a step | seconds a step | response tokens/s | peak memory, GiB |", "|---|---|---|---|---|"]
    peer: dict[str, float] = {}

    def add(name: str, rollouts: int, found: dict[str, Any]) -> None:
        found["speed"] = rollouts * args.new_tokens / found["seconds"]
        cells = [f"{found[key]:.{digits}f}" for key, digits in (("speed", 0), ("gib", 1))]
        if peer:
            cells = [f"{cell} ({found[key] / peer[key]:.2f} x TRL)" for cell, key in zip(cells, peer, strict=True)]
        lines.append(f"| {name} | {rollouts} | {found['seconds']:.1f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder, small = Path(scratch), [str(args.new_tokens), str(args.steps)]
        prepare(args.model, args.rollouts * max(times for *_, times in settings), folder)
        if args.peer_python:
            tokens = json.loads((folder / "prompt_tokens.json").read_text("utf-8"))[: args.rollouts]
            (folder / "few.json").write_text(json.dumps(tokens), "utf-8")
            command = [args.peer_python, "-c", PEER, scratch, str(args.rollouts), *small, str(folder / "few.json")]
            found = measured(command)
            add("TRL 1.12.0 PPOTrainer, all layers", args.rollouts, found)
            peer.update(speed=found["speed"], gib=found["gib"])
        for name, value, layers, times in settings:
            rollouts = args.rollouts * times
            command = [
                sys.executable,
                "-m",
                "benchmarks.ppo_speed",
                "--step",
                scratch,
                value,
                str(layers),
                str(rollouts),
                *small,
                str(args.micro_batch),
            ]
            add(f"simfarm, {name}", rollouts, measured(command))
        encoded = json.loads((folder / "prompt_tokens.json").read_text("utf-8"))[: args.rollouts]
    text = "\n".join(
        [
            "# Speed of a PPO step\n",
            f"`python -m benchmarks.ppo_speed --peer-python … --out …`, {datetime.date.today()}, {platform.machine()}, "
            f"Python {platform.python_version()}. {args.model} in bfloat16, prompts of about "
            f"{np.mean([len(ids) for ids in encoded]):.0f} tokens, "
            f"{args.new_tokens} new tokens, one pass over each batch, median of {args.steps - 1} steps. One run, one "
            "setting after the other. TRL keeps its weights in bfloat16, simfarm what it trains in float32.\n",
            *lines,
            "",
        ]
    )
    print(text)
    if args.out:
        args.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
