"""Responses from vLLM, by the weights that a policy has at the moment.

vLLM runs beside the policy, on the same device, as a copy of the model. Before each sampling the policy's weights are
saved to a folder and the copy reloads them in place, by vLLM's own road for it (the worker's `reload_weights`, called
through `LLM.collective_rpc`). It works on any device and for any number of vLLM's worker processes; set TMPDIR to a
folder in memory, such as /dev/shm, where writing a model to disk takes too long.

Random numbers are vLLM's, seeded by row. Requests are queued while the scheduler is paused: which rows are computed
together, and with it the rounding, does not depend on when a request arrives.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simfarm import draws
from simfarm.errors import ModelError, require
from simfarm.policies.transformers import Response, TransformersPolicy

KV_CACHE = 2 * 2**30
"""Bytes for vLLM's cache of keys and values. Its own default is most of the device, where the trainer has to live too;
what does not fit waits for its turn. On a CPU the environment variable VLLM_CPU_KVCACHE_SPACE (GiB) goes first."""
BATCHED_TOKENS = 4096
"""Tokens of prompts that vLLM reads at once, or one prompt if that is longer."""


class VLLMSampler:
    """A copy of a policy's model in vLLM. It ends, and its folder goes, when the object does."""

    def __init__(self, policy: TransformersPolicy, *, context: int, rows: int) -> None:
        """Check that vLLM can be had; it starts with the first sampling, which a finished training never comes to.

        Args:
            policy: The model, in the dtype that vLLM computes in.
            context: Tokens of the longest prompt with its response.
            rows: Responses decoded together.

        Raises:
            DataError: The model's context is shorter.
            MissingExtraError: vLLM is not installed.
        """
        self._vllm: Any = require("vllm", "vllm", 'rollout = "vllm"')
        policy.check_lengths([context])
        self._context, self._rows = context, rows
        self._llm: Any = None
        self._folder = Path(tempfile.mkdtemp(prefix="simfarm-vllm-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def sample(
        self,
        policy: TransformersPolicy,
        prompts: Sequence[str],
        keys: Sequence[draws.Part],
        *,
        max_new_tokens: int,
        seed: int,
        temperature: float = 1.0,
    ) -> tuple[list[Response], list[NDArray[np.float64]]]:
        """Sample one response per prompt by the weights of `policy`; arguments as in `TransformersPolicy.sample`.

        Returns:
            n responses, and vLLM's own log-probability of each of their tokens, in nats, at temperature 1.

        Raises:
            ModelError: vLLM cannot load the model, gave up a response, or keeps what it computed with other weights.
        """
        self._load(policy)
        parameters = [
            self._vllm.SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                logprobs=0,
                seed=draws.seed_for(seed, "sample", key),
                stop_token_ids=policy.end_ids,
                detokenize=False,
            )
            for key in keys
        ]
        self._llm.sleep(level=0)
        self._llm.enqueue([{"prompt_token_ids": policy.encode(p)} for p in prompts], parameters, use_tqdm=False)
        self._llm.wake_up(tags=["scheduling"])
        drawn = [output.outputs[0] for output in self._llm.wait_for_completion(use_tqdm=False)]
        ends = {sample.finish_reason for sample in drawn}
        if len(drawn) != len(prompts) or not ends <= {"stop", "length"}:
            raise ModelError(
                f"vLLM gave {len(drawn)} responses to {len(prompts)} prompts, which ended by {sorted(map(str, ends))}; "
                'expected one each, ended by "stop" or "length". Look at its log above.'
            )
        responses = [Response(policy.decode(s.token_ids), tuple(s.token_ids), s.finish_reason == "stop") for s in drawn]
        return responses, [
            np.array([places[token].logprob for token, places in zip(s.token_ids, s.logprobs, strict=True)])
            for s in drawn
        ]

    def _load(self, policy: TransformersPolicy) -> None:
        policy.model.save_pretrained(self._folder)
        if self._llm is None:
            policy.tokenizer.save_pretrained(self._folder)
            self._llm = self._start(policy)
            # left to the collector of garbage, its processes would live on beside those of the next training
            weakref.finalize(self, self._llm.llm_engine.engine_core.shutdown)
            return
        self._llm.collective_rpc("reload_weights")
        # vLLM keeps keys and values of prompts it has read; those are of the weights before
        if not self._llm.reset_prefix_cache():
            raise ModelError("vLLM did not forget what it computed with the weights before: a request still runs.")

    def _start(self, policy: TransformersPolicy) -> Any:
        try:
            return self._vllm.LLM(
                model=str(self._folder),
                dtype=str(policy.model.dtype).removeprefix("torch."),
                max_model_len=self._context,
                max_num_seqs=self._rows,
                # reading a prompt in parts winds its row's generator back, which a CPU's generator cannot do
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(self._context, BATCHED_TOKENS),
                kv_cache_memory_bytes=KV_CACHE,
                # with the cache's size given, vLLM only checks that this share of the device is free when it starts
                gpu_memory_utilization=0.1,
                # compiling for a CPU takes minutes, more than it saves in a short training
                enforce_eager=policy.device.type == "cpu",
                disable_log_stats=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"vLLM cannot load {policy.name!r}: {error}") from error
