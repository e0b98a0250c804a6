"""A policy on a transformers causal language model: batched sampling and log-probabilities on CPU, CUDA or MPS.

Random numbers: one uniform number per row and step, drawn from a stream keyed by (seed, the row's key). They depend on
nothing else, so a row's sample does not depend on the rows beside it, up to rounding: matrix products of another batch
shape differ in the last bits, which in bfloat16 changes a token now and then. Equal batches give equal tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from simfarm import draws, models
from simfarm.errors import DataError, ModelError
from simfarm.policies.attention import use_plain_products
from simfarm.policies.decoding import decode, pad, read_prompts
from simfarm.progress import Progress, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response. `tokens` ends with the end-of-turn token if the model ended its turn (`finished`)."""

    text: str
    tokens: tuple[int, ...]
    finished: bool


def best_device() -> torch.device:
    """Return CUDA or MPS if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32
    return torch.float32


class TransformersPolicy:
    """A causal language model with a chat template. Prompts are rendered texts: see `render`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        ends = model.generation_config.eos_token_id if model.generation_config else None
        listed = ends if isinstance(ends, list) else [ends]
        self.end_ids = sorted({i for i in [*listed, tokenizer.eos_token_id] if i is not None})
        """Tokens that end a turn."""

    @classmethod
    def load(cls, name: str, *, device: str = "auto", dtype: str = "auto") -> TransformersPolicy:
        """Load a model.

        Args:
            name: A built-in name, a folder or a hub id; `hf/` may stand before it.
            device: "auto", or what torch calls it.
            dtype: "auto" (bfloat16 where the device has it), "bfloat16" or "float32".

        Raises:
            ModelError: There is no such model, or it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        source = models.resolve(name)
        where = best_device() if device == "auto" else torch.device(device)
        what = best_dtype(where) if dtype == "auto" else getattr(torch, dtype)
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=what).to(where).requires_grad_(False)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"The model {name!r} cannot be loaded: {first} Give a built-in name ({', '.join(models.BUILTIN)}), the "
                "folder of a saved model, or a hub id with the network at hand."
            ) from error
        use_plain_products(model)
        return cls(model, tokenizer, name=name)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return torch.device(self.model.device)

    @property
    def pad_id(self) -> int:
        """A token to fill rows with; it is masked wherever it stands."""
        given = self.tokenizer.pad_token_id
        return int(self.end_ids[0] if given is None else given)

    def render(self, instruction: str, input: str = "") -> str:
        """Return the text of a prompt: one user turn (instruction, blank line, input) by the chat template."""
        content = f"{instruction}\n\n{input}" if input else instruction
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"The tokenizer of {self.name!r} has no chat template; simfarm needs an instruction-tuned model."
            )
        turns = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """Turn text into tokens, adding none; broken Unicode is replaced, since tokenizers refuse it."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return list(self.tokenizer(clean, add_special_tokens=False)["input_ids"])

    def encode_response(self, text: str) -> list[int]:
        """Turn the text of a finished response into tokens, with the end of turn."""
        return [*self.encode(text), int(self.tokenizer.eos_token_id)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn response tokens into text, without end-of-turn and other special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        keys: Sequence[draws.Part],
        *,
        max_new_tokens: int,
        seed: int,
        temperature: float = 1.0,
        batch_size: int = 128,
        progress: Progress = no_progress,
    ) -> list[Response]:
        """Sample one response per prompt.

        Args:
            prompts: Rendered prompts, n of them.
            keys: n keys of the random streams; two rows with equal key and prompt get equal responses.
            max_new_tokens: Length limit, in tokens, the end of turn included.
            seed: With the key, the seed of a row's stream.
            temperature: Divides the logits; 0 takes the most likely token.
            batch_size: Rows decoded together.
            progress: Called with the number of responses that became ready.

        Returns:
            n responses, in the order of the prompts.

        Raises:
            DataError: A prompt with its response would not fit the model's context.
        """
        return self._sample(prompts, keys, None, max_new_tokens, seed, temperature, batch_size, progress)[0]

    @torch.no_grad()
    def sample_with_states(
        self,
        prompts: Sequence[str],
        keys: Sequence[draws.Part],
        *,
        layers: int,
        max_new_tokens: int,
        seed: int,
        temperature: float = 1.0,
        batch_size: int = 128,
    ) -> tuple[list[Response], list[torch.Tensor]]:
        """Sample as `sample` does, and keep the states that enter the last layers, which sampling computes anyway.

        Args:
            prompts: See `sample`.
            keys: See `sample`.
            layers: How many last layers.
            max_new_tokens: See `sample`.
            seed: See `sample`.
            temperature: See `sample`.
            batch_size: See `sample`.

        Returns:
            n responses, and n tensors, (tokens, H), over prompt, response, and an end of turn where the response has
            none: what `SplitModel.trunk_states` computes anew, up to rounding.
        """
        return self._sample(prompts, keys, layers, max_new_tokens, seed, temperature, batch_size, no_progress)

    def _sample(
        self,
        prompts: Sequence[str],
        keys: Sequence[draws.Part],
        layers: int | None,
        max_new_tokens: int,
        seed: int,
        temperature: float,
        batch_size: int,
        progress: Progress,
    ) -> tuple[list[Response], list[torch.Tensor]]:
        encoded = [self.encode(prompt) for prompt in prompts]
        self.check_lengths([len(ids) + max_new_tokens for ids in encoded])
        responses, states = [Response("", (), False)] * len(prompts), [torch.empty(0)] * len(prompts)
        for rows in prompt_sorted_batches(encoded, batch_size):
            noise = np.stack(
                [np.random.default_rng(draws.seed_for(seed, "sample", keys[i])).random(max_new_tokens) for i in rows]
            )
            written, kept = decode(
                self.model,
                [encoded[i] for i in rows],
                # float32 holds every uniform number below 1 that matters here, and MPS has no float64
                torch.tensor(noise, dtype=torch.float32, device=self.device),
                temperature=temperature,
                ends=self.end_ids,
                pad_id=self.pad_id,
                end_of_text=int(self.tokenizer.eos_token_id),
                layers=layers,
            )
            for i, tokens in zip(rows, written, strict=True):
                responses[i] = Response(self.decode(tokens), tuple(tokens), bool(tokens) and tokens[-1] in self.end_ids)
            for i, state in zip(rows, kept, strict=layers is not None):
                states[i] = state
            progress(len(rows))
        return responses, states

    @torch.inference_mode()
    def log_probabilities(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[int]],
        *,
        batch_size: int = 64,
        progress: Progress = no_progress,
    ) -> list[NDArray[np.float64]]:
        """Return log π(token | prompt, tokens before it) of every response token, in nats.

        Args:
            prompts: Rendered prompts, n of them, not empty.
            responses: n responses as tokens (`encode`, `encode_response`, or `Response.tokens`).
            batch_size: Rows computed together.
            progress: Called with the number of responses that became ready.

        Returns:
            n arrays, one number per token of the response.

        Raises:
            DataError: A prompt with its response does not fit the model's context, or a prompt is empty.
        """
        encoded = self._encode_for_scores(prompts, responses)
        scores: list[NDArray[np.float64]] = [np.zeros(0)] * len(encoded)
        for rows in prompt_sorted_batches(encoded, batch_size):
            states = hidden_states(
                self.model.base_model, [encoded[i] for i in rows], [responses[i] for i in rows], self.pad_id
            )
            # the state before a token predicts it
            before = torch.cat([s[len(encoded[i]) - 1 : -1] for i, s in zip(rows, states, strict=True)])
            targets = torch.tensor([token for i in rows for token in responses[i]], device=self.device)
            values = token_log_probabilities(self.model.get_output_embeddings(), before, targets)
            for i, part in zip(rows, values.double().cpu().split([len(responses[i]) for i in rows]), strict=True):
                scores[i] = part.numpy()
            progress(len(rows))
        return scores

    @torch.inference_mode()
    def log_probabilities_in_contexts(
        self, contexts: Sequence[Sequence[str]], responses: Sequence[Sequence[int]], *, progress: Progress = no_progress
    ) -> list[NDArray[np.float64]]:
        """Return what `log_probabilities` does for each response after each of its contexts, in one pass per response.

        In bfloat16 a batch's shape moves a log-likelihood by tenths of a nat. Here a value depends on the response and
        its own contexts only, not on the texts that happen to be beside it. Contexts are read once for all responses
        that share them.

        Args:
            contexts: n lists of k rendered prompts.
            responses: n responses as tokens.
            progress: Called with 1 after each response.

        Returns:
            n arrays, (k, tokens of the response), in nats.

        Raises:
            DataError: A prompt with its response does not fit the model's context, or a prompt is empty.
        """
        encoded = [self._encode_for_scores(some, [r] * len(some)) for some, r in zip(contexts, responses, strict=True)]
        scores: list[NDArray[np.float64]] = [np.zeros((0, 0))] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: (encoded[i], i))
        for prompts, rows in itertools.groupby(order, key=encoded.__getitem__):
            by_length = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))
            logits, mask, cache = read_prompts(self.model, [prompts[k] for k in by_length], self.pad_id)
            start, before = logits.float().log_softmax(-1), mask.sum(1, keepdim=True)
            for i in rows:
                ids = torch.tensor([list(responses[i])] * len(prompts), dtype=torch.long, device=self.device)
                values = start[:, ids[0, :1]]
                if (length := ids.shape[1]) > 1:
                    states = self.model.base_model(
                        input_ids=ids,
                        attention_mask=torch.cat([mask, mask.new_ones(ids.shape)], 1),
                        position_ids=before + torch.arange(length, device=self.device),
                        past_key_values=cache,
                        use_cache=True,
                    ).last_hidden_state[:, :-1]
                    cache.crop(-length)
                    after = token_log_probabilities(
                        self.model.get_output_embeddings(), states.flatten(0, 1), ids[:, 1:].flatten()
                    )
                    values = torch.cat([values, after.view(len(prompts), -1)], 1)
                scores[i] = np.empty(values.shape)
                scores[i][by_length] = values.double().cpu().numpy()
                progress(1)
        return scores

    def _encode_for_scores(self, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> list[list[int]]:
        encoded = [self.encode(prompt) for prompt in prompts]
        if not all(encoded):
            raise DataError("A prompt is empty: the first token of a response needs something before it.")
        self.check_lengths([len(p) + len(r) for p, r in zip(encoded, responses, strict=True)])
        return encoded

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """Check that texts of so many tokens fit the model's context.

        Raises:
            DataError: One does not.
        """
        limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and lengths and max(lengths) > limit:
            row = int(np.argmax(lengths))
            raise DataError(
                f"Row {row} takes {lengths[row]} tokens with its response; the context of {self.name!r} holds {limit}. "
                "Shorten the prompt or lower max_new_tokens."
            )


def token_log_probabilities(
    head: Any, states: torch.Tensor, targets: torch.Tensor, *, chunk: int = 1024
) -> torch.Tensor:
    """Return log-probabilities of target tokens from hidden states, a chunk at a time: (N, V) logits never exist whole.

    Args:
        head: The language-model head, (N, H) -> (N, V).
        states: (N, H), the states that predict the targets.
        targets: (N,).
        chunk: Rows whose logits are held at once.

    Returns:
        (N,) in float32.
    """
    parts = []
    for s, t in zip(states.split(chunk), targets.split(chunk), strict=True):
        logits = head(s).float()
        parts.append(logits.gather(1, t.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def hidden_states(
    base: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> list[torch.Tensor]:
    """Return the last hidden states of prompts with their responses; a prompt of several rows is computed once.

    Args:
        base: A model body: tokens to states.
        prompts: B token lists, not empty.
        responses: B token lists.
        pad_id: A token to fill rows with.

    Returns:
        B tensors, (tokens of prompt and response, H).
    """
    device = next(base.parameters()).device
    different = sorted({tuple(prompt) for prompt in prompts})
    if len(different) > 0.7 * len(prompts) or not any(responses):
        # filled on the right, no token sees what stands after it: causal attention needs no mask
        whole = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        input_ids, _ = pad(whole, pad_id, side="right", device=device)
        states = base(input_ids=input_ids, use_cache=False).last_hidden_state
        return [row[: len(text)] for row, text in zip(states, whole, strict=True)]
    from transformers import DynamicCache

    copies = torch.tensor([different.index(tuple(prompt)) for prompt in prompts], device=device)
    cache = DynamicCache(config=base.config)
    input_ids, mask = pad(different, pad_id, side="left", device=device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    first = base(
        input_ids=input_ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
    ).last_hidden_state[copies]
    cache.batch_select_indices(copies)
    input_ids, fresh = pad(responses, pad_id, side="right", device=device)
    position = mask[copies].sum(1, keepdim=True) + torch.arange(input_ids.shape[1], device=device)
    second = base(
        input_ids=input_ids,
        attention_mask=torch.cat([mask[copies], fresh], 1),
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return [
        torch.cat([a[len(a) - len(p) :], b[: len(r)]])
        for a, b, p, r in zip(first, second, prompts, responses, strict=True)
    ]


def prompt_sorted_batches(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of rows in batches, the longest prompts first, rows of one prompt together."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), tuple(prompts[i]), i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of rows in batches of similar length, the longest first, so that padding stays small."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
