"""`hf/…`: a transformers model in this process, with next-token logprobs. For small models and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simfarm import draws
from simfarm.errors import DataError
from simfarm.llm.backend import CallFailed, Rejected, defused
from simfarm.llm.request import Request, TokenProbability, completion
from simfarm.policies.decoding import pad, sample_tokens
from simfarm.policies.transformers import Response, TransformersPolicy, length_sorted_batches

BATCH = 32


class HFEngine:
    """One model. Sampling is keyed by the request, so an answer does not depend on the requests beside it."""

    def __init__(self, name: str) -> None:
        self._policy: TransformersPolicy | None = TransformersPolicy.load(name)

    def complete_many(self, requests: Sequence[Request]) -> list[dict[str, Any] | CallFailed]:
        """Answer; see `BatchBackend.complete_many`."""
        results: list[dict[str, Any] | CallFailed] = [CallFailed("not reached")] * len(requests)
        groups: dict[tuple[float, int, int | None], list[int]] = {}
        for i, request in enumerate(requests):
            temperature = 1.0 if request.temperature is None else request.temperature
            groups.setdefault((temperature, request.max_tokens or 512, request.top_logprobs), []).append(i)
        for (temperature, max_tokens, top), rows in groups.items():
            for i, result in zip(
                rows, self._group([requests[i] for i in rows], temperature, max_tokens, top), strict=True
            ):
                results[i] = result
        return results

    def unload(self) -> None:
        """Free the model's memory."""
        self._policy = None

    def _group(
        self, requests: list[Request], temperature: float, max_tokens: int, top: int | None
    ) -> list[dict[str, Any] | CallFailed]:
        policy = self._loaded
        prompts = [self._render(request) for request in requests]
        context: int | None = getattr(policy.model.config, "max_position_embeddings", None)
        results: list[dict[str, Any] | CallFailed] = []
        fit = []
        for i, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            size = len(policy.encode(prompt)) + max_tokens
            if request.top_p not in (None, 1.0):
                results.append(self._rejected(f"hf/ models sample without top_p, which is {request.top_p}"))
            elif context is not None and size > context:
                results.append(self._rejected(f"{size} tokens do not fit the model's context of {context}"))
            else:
                results.append(CallFailed("not reached"))
                fit.append(i)
        if top and max_tokens == 1:
            drawn, positions = self._next_token(
                [prompts[i] for i in fit], [requests[i].key for i in fit], temperature, top
            )
        else:
            drawn = policy.sample(
                [prompts[i] for i in fit],
                [requests[i].key for i in fit],
                max_new_tokens=max_tokens,
                seed=0,
                temperature=temperature,
                batch_size=BATCH,
            )
            positions = self._alternatives([prompts[i] for i in fit], drawn, top) if top else [[] for _ in fit]
        for i, response, places in zip(fit, drawn, positions, strict=True):
            text = response.text
            cut = min((at for stop in requests[i].stop if (at := text.find(stop)) >= 0), default=None)
            results[i] = completion(
                text if cut is None else text[:cut],
                finish_reason="stop" if response.finished or cut is not None else "length",
                input_tokens=len(policy.encode(prompts[i])),
                output_tokens=len(response.tokens),
                positions=places,
            )
        return results

    @property
    def _loaded(self) -> TransformersPolicy:
        if self._policy is None:
            raise DataError("the model has been unloaded")
        return self._policy

    @staticmethod
    def _rejected(message: str) -> Rejected:
        return Rejected(message, kind="request", whole_endpoint=False)

    def _render(self, request: Request) -> str:
        tags = self._loaded.tokenizer.all_special_tokens
        turns = [{"role": role, "content": defused(content, tags)} for role, content in request.messages]
        return str(self._loaded.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    @torch.inference_mode()
    def _next_token(
        self, prompts: list[str], keys: list[str], temperature: float, top: int
    ) -> tuple[list[Response], list[list[list[TokenProbability]]]]:
        """Draw one token per prompt and list the likeliest, in one forward pass."""
        policy = self._loaded
        encoded = [policy.encode(prompt) for prompt in prompts]
        responses: list[Response] = [Response("", (), False)] * len(prompts)
        positions: list[list[list[TokenProbability]]] = [[] for _ in prompts]
        for rows in length_sorted_batches([len(ids) for ids in encoded], BATCH):
            ids, mask = pad([encoded[i] for i in rows], policy.pad_id, side="left", device=policy.device)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            # an index, not a slice: see decoding.read_prompts
            last = torch.tensor([ids.shape[1] - 1], device=policy.device)
            out = policy.model(
                input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=last
            )
            logits = out.logits[:, -1].float()
            uniform = [float(np.random.default_rng(draws.seed_for(0, "sample", keys[i])).random()) for i in rows]
            chosen = sample_tokens(logits, torch.tensor(uniform, device=policy.device), temperature)
            for k, i in enumerate(rows):
                token = int(chosen[k])
                responses[i] = Response(policy.tokenizer.decode([token]), (token,), token in policy.end_ids)
                positions[i] = [self._top(logits[k], token, top)]
        return responses, positions

    @torch.inference_mode()
    def _alternatives(
        self, prompts: list[str], responses: list[Response], top: int
    ) -> list[list[list[TokenProbability]]]:
        """List the likeliest tokens at every position of the responses."""
        policy = self._loaded
        encoded = [policy.encode(prompt) for prompt in prompts]
        listed: list[list[list[TokenProbability]]] = [[] for _ in prompts]
        sizes = [len(ids) + len(r.tokens) for ids, r in zip(encoded, responses, strict=True)]
        for rows in length_sorted_batches(sizes, BATCH):
            ids, _ = pad(
                [[*encoded[i], *responses[i].tokens] for i in rows], policy.pad_id, side="right", device=policy.device
            )
            hidden = policy.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            head = policy.model.get_output_embeddings()
            for k, i in enumerate(rows):
                begin = len(encoded[i]) - 1
                for step, token in enumerate(responses[i].tokens):
                    listed[i].append(self._top(head(hidden[k, begin + step]).float(), token, top))
        return listed

    def _top(self, logits: torch.Tensor, token: int, top: int) -> list[TokenProbability]:
        # as servers do: the token that was drawn first, then the likeliest
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(min(top, len(logprobs))).indices.tolist()
        order = [token, *(i for i in best if i != token)]
        decode = self._loaded.tokenizer.decode
        return [TokenProbability(decode([i]), float(logprobs[i])) for i in order]
