"""As much of the module vllm as a sampler uses: real sampling, by the weights that lie in the model's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    logprobs: int
    seed: int
    stop_token_ids: list[int]
    detokenize: bool


@dataclass
class FakeLLM:
    """`vllm.LLM` of the calls that were made; answers by one token after the other, without a cache."""

    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    enable_chunked_prefill: bool
    max_num_batched_tokens: int
    kv_cache_memory_bytes: int
    gpu_memory_utilization: float
    enforce_eager: bool
    disable_log_stats: bool
    calls: list[str] = field(default_factory=list)
    queue: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    stale: bool = False
    finish: str | None = None

    def __post_init__(self) -> None:
        self._read()
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: self.calls.append("shutdown")))

    def _read(self) -> None:
        self.weights = AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, self.dtype)).eval()

    def collective_rpc(self, method: str) -> list[None]:
        assert method == "reload_weights"
        self.calls.append(method)
        self._read()
        self.stale = True
        return [None]

    def reset_prefix_cache(self) -> bool:
        self.stale = False
        return not self.queue

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake_up {tags}")

    def enqueue(self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], use_tqdm: bool) -> None:
        assert not self.stale, "the cache is of other weights"
        self.calls.append(f"enqueue {len(prompts)}")
        self.queue += zip((p["prompt_token_ids"] for p in prompts), params, strict=True)

    @torch.no_grad()
    def wait_for_completion(self, use_tqdm: bool) -> list[Any]:
        queue, self.queue = self.queue, []
        return [SimpleNamespace(outputs=[self._answer(*row)]) for row in queue]

    def _answer(self, prompt: list[int], p: SamplingParams) -> Any:
        assert len(prompt) + p.max_tokens <= self.max_model_len
        generator, drawn, logprobs = torch.Generator().manual_seed(p.seed), list[int](), []
        while len(drawn) < p.max_tokens and not (drawn and drawn[-1] in p.stop_token_ids):
            logits = self.weights(torch.tensor([prompt + drawn])).logits[0, -1].float()
            token = int(torch.multinomial(torch.softmax(logits / p.temperature, -1), 1, generator=generator))
            drawn.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
        reason = self.finish or ("stop" if drawn[-1] in p.stop_token_ids else "length")
        return SimpleNamespace(token_ids=drawn, logprobs=logprobs, finish_reason=reason)
