"""Our sampler beside transformers' `generate`: the same model, prompts and length, sampling at temperature 1.

    python benchmarks/generation_speed.py [--out benchmarks/results/generation_speed.md]

No row ends early on either side: both write all tokens, so equal work is compared. The two run in
turn; the ratio printed is that of the medians.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import torch

from simfarm.evalsets import load_instructions
from simfarm.policies.transformers import TransformersPolicy, pad


def main() -> None:
    """Print tokens a second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hf/smollm2-135m")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    policy = TransformersPolicy.load(args.model)
    # no end of turn: all rows are as long on both sides
    policy.end_ids = []
    pad_id = int(policy.tokenizer.eos_token_id)
    policy.tokenizer.pad_token_id = pad_id
    table = load_instructions("simfarm", split="eval")
    asked = [policy.render(*pair) for pair in zip(table["instruction"], table["input"], strict=True)]
    prompts = [asked[i % len(asked)] for i in range(args.rows)]

    def ours(seed: int) -> None:
        found = policy.sample(
            prompts, list(range(args.rows)), max_new_tokens=args.new_tokens, seed=seed, batch_size=args.rows
        )
        assert all(len(r.tokens) == args.new_tokens for r in found)

    @torch.inference_mode()
    def theirs(seed: int) -> None:
        torch.manual_seed(seed)
        ids, mask = pad([policy.encode(p) for p in prompts], pad_id, side="left", device=policy.device)
        found = policy.model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=args.new_tokens, max_new_tokens=args.new_tokens, pad_token_id=pad_id,
        )  # fmt: skip
        assert found.shape[1] == ids.shape[1] + args.new_tokens

    seconds: dict[str, list[float]] = {"simfarm": [], "transformers generate": []}
    for repeat in range(args.repeats + 1):
        for name, run in (("simfarm", ours), ("transformers generate", theirs)):
            start = time.perf_counter()
            run(repeat)
            # the first of each warms up
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    tokens, middle = args.rows * args.new_tokens, {name: statistics.median(taken) for name, taken in seconds.items()}
    text = "\n".join(
        [
            "# Speed of sampling\n",
            f"`python benchmarks/generation_speed.py --out …`, {datetime.date.today()}, {platform.machine()}, Python "
            f"{platform.python_version()}. {args.model}, {policy.model.dtype}, {policy.device}, "
            f"{torch.get_num_threads()} threads: {args.rows} rows of {len(set(prompts))} prompts, {args.new_tokens} "
            f"new tokens each, at temperature 1; median of {args.repeats}, in turn.\n",
            "| | seconds (least to most) | tokens/s |",
            "|---|---|---|",
            *(
                f"| {name} | {middle[name]:.2f} ({min(taken):.2f} to {max(taken):.2f}) | {tokens / middle[name]:.0f} |"
                for name, taken in seconds.items()
            ),
            f"\nsimfarm samples {middle['transformers generate'] / middle['simfarm']:.2f} x as fast.",
            "",
        ]
    )
    print(text)
    if args.out:
        args.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
