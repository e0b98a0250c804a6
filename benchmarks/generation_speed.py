"""Sampling beside transformers' `generate` and vLLM, and scoring beside a plain padded loop: tokens a second.

    python -m benchmarks.generation_speed [--vllm-python PATH] [--out benchmarks/results/generation_speed.md]

The same model, dtype, prompts and length, sampling at temperature 1. No row ends early: all write all tokens, so equal
work is compared. What runs here runs in turn, the first time uncounted; the ratio is that of the medians. vLLM comes
after them, with what it does by default but for its prefix cache, which would spare it the prompts of a repetition; it
needs an interpreter that has it: `python -m venv vllm`, vllm/bin/pip install vllm (CPU: see its documentation). Scoring
is of the responses just sampled: log-probabilities of their tokens, in batches of 16 rows both times.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simfarm import models
from simfarm.evalsets import load_instructions
from simfarm.policies.decoding import pad
from simfarm.policies.transformers import TransformersPolicy

SCORED_AT_ONCE = 16

VLLM = """
import json, sys, time
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    asked = json.load(open(sys.argv[1]))
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in asked["prompts"]]
    new = asked["new_tokens"]
    llm = LLM(
        model=asked["model"], dtype=asked["dtype"], max_model_len=max(map(len, asked["prompts"])) + new,
        max_num_seqs=len(prompts), enable_prefix_caching=False, disable_log_stats=True,
    )
    taken = []
    for repeat in range(asked["repeats"] + 1):
        sampling = SamplingParams(temperature=1.0, max_tokens=new, ignore_eos=True)
        start = time.perf_counter()
        found = llm.generate(prompts, sampling, use_tqdm=False)
        taken.append(time.perf_counter() - start)
        assert all(len(f.outputs[0].token_ids) == new for f in found)
    print(json.dumps(taken[1:]), flush=True)
"""


def main() -> None:
    """Measure every row of the table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hf/smollm2-135m")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm-python", help="A Python that has vLLM.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    policy, plain = _load(args.model)
    pad_id = int(policy.tokenizer.eos_token_id)
    table = load_instructions("simfarm", split="eval")
    asked = [policy.render(*pair) for pair in zip(table["instruction"], table["input"], strict=True)]
    prompts = [asked[i % len(asked)] for i in range(args.rows)]
    encoded = [policy.encode(prompt) for prompt in prompts]
    responses: list[tuple[int, ...]] = []

    def sample(seed: int) -> None:
        found = policy.sample(
            prompts, list(range(args.rows)), max_new_tokens=args.new_tokens, seed=seed, batch_size=args.rows
        )
        responses[:] = [r.tokens for r in found]
        assert all(len(tokens) == args.new_tokens for tokens in responses)

    @torch.inference_mode()
    def generate(seed: int) -> None:
        torch.manual_seed(seed)
        ids, mask = pad(encoded, pad_id, side="left", device=policy.device)
        found = plain.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=args.new_tokens, max_new_tokens=args.new_tokens, pad_token_id=pad_id,
        )  # fmt: skip
        assert found.shape[1] == ids.shape[1] + args.new_tokens

    def score(_: int) -> None:
        policy.log_probabilities(prompts, responses, batch_size=SCORED_AT_ONCE)

    @torch.inference_mode()
    def score_plainly(_: int) -> None:
        for start in range(0, args.rows, SCORED_AT_ONCE):
            rows = slice(start, start + SCORED_AT_ONCE)
            whole = [[*p, *r] for p, r in zip(encoded[rows], responses[rows], strict=True)]
            ids, mask = pad(whole, pad_id, side="right", device=policy.device)
            logp = plain(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
            logp.gather(2, ids[:, 1:, None])

    new, read = args.rows * args.new_tokens, args.rows * args.new_tokens + sum(map(len, encoded))
    lines = ["| | tokens | seconds (least to most) | tokens/s | × |", "|---|---:|---:|---:|---:|"]

    def add(name: str, tokens: int, taken: list[float], base: list[float]) -> None:
        middle = float(np.median(taken))
        lines.append(
            f"| {name} | {tokens} | {middle:.2f} ({min(taken):.2f} to {max(taken):.2f}) | {tokens / middle:.0f} "
            f"| {np.median(base) / middle:.2f} |"
        )
        print(lines[-1], flush=True)

    print("\n".join(lines), flush=True)
    ours, theirs = _in_turn(sample, generate, args.repeats)
    add("sampling: transformers `generate`", new, theirs, theirs)
    add("sampling: simfarm", new, ours, theirs)
    if args.vllm_python:
        facts = {
            "model": str(models.resolve(args.model)), "dtype": str(policy.model.dtype).removeprefix("torch."),
            "prompts": encoded, "new_tokens": args.new_tokens, "repeats": args.repeats,
        }  # fmt: skip
        add("sampling: vLLM", new, _vllm(args.vllm_python, facts), theirs)
    ours, theirs = _in_turn(score, score_plainly, args.repeats)
    add("scoring: plain padded loop", read, theirs, theirs)
    add("scoring: simfarm", read, ours, theirs)
    text = "\n".join(
        [
            "# Speed of sampling and scoring\n",
            f"`python -m benchmarks.generation_speed --vllm-python … --out …`, {datetime.date.today()}, "
            f"{platform.machine()}, Python {platform.python_version()}. {args.model}, {policy.model.dtype}, "
            f"{policy.device}, {torch.get_num_threads()} threads: {args.rows} rows of {len(set(prompts))} prompts of "
            f"{min(map(len, encoded))} to {max(map(len, encoded))} tokens, {args.new_tokens} new tokens each, at "
            f"temperature 1; median of {args.repeats}. × is beside the first row of its kind; scoring counts the "
            "prompts' tokens too.\n",
            *lines,
            "",
        ]
    )
    print(f"\n{text}")
    if args.out:
        args.out.write_text(text, "utf-8")


def _load(name: str) -> tuple[TransformersPolicy, Any]:
    """Return our policy, whose turns never end, and the same model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    policy = TransformersPolicy.load(name)
    policy.end_ids = []
    policy.tokenizer.pad_token_id = int(policy.tokenizer.eos_token_id)
    plain = AutoModelForCausalLM.from_pretrained(models.resolve(name), dtype=policy.model.dtype).to(policy.device)
    return policy, plain.eval()


def _in_turn(
    ours: Callable[[int], None], theirs: Callable[[int], None], repeats: int
) -> tuple[list[float], list[float]]:
    """Return the seconds that both took, one after the other, the first time left out."""
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for run, seconds in zip((ours, theirs), taken, strict=True):
            start = time.perf_counter()
            run(repeat)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return taken[0][1:], taken[1][1:]


def _vllm(python: str, facts: dict[str, Any]) -> list[float]:
    with tempfile.TemporaryDirectory() as scratch:
        script, asked = Path(scratch) / "sample.py", Path(scratch) / "asked.json"
        # a file, not -c: vLLM starts its engine in a process that reads the script again
        script.write_text(VLLM, "utf-8")
        asked.write_text(json.dumps(facts), "utf-8")
        # half a batch's keys and values would make it wait
        env = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR", **os.environ}
        done = subprocess.run([python, str(script), str(asked)], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"vLLM failed:\n{done.stderr[-3000:]}")
    taken: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return taken


if __name__ == "__main__":
    main()
