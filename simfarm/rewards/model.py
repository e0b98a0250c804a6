"""A reward model: a trained top on the shared trunk, and a linear score of the last token's state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from simfarm.errors import ModelError
from simfarm.policies import sharding
from simfarm.policies.split import SplitModel, load_tensors, save_tensors
from simfarm.policies.transformers import length_sorted_batches
from simfarm.progress import Progress, no_progress
from simfarm.rewards.config import Pooling

FILE = "reward.safetensors"
CHUNK = 512
"""Texts whose trunk states are held at once when scoring."""


@dataclass(frozen=True, slots=True)
class Text:
    """Trunk states of a prompt, a response and an end of turn, (tokens, H); and how many tokens are the prompt's."""

    states: torch.Tensor
    prompt: int


class RewardModel(nn.Module):
    """r(prompt, response) = w · pooled(h) - offset.

    The text scored is prompt + response + end of turn, so that it ends in the same token whether the response was cut
    off or not (AlpacaFarm scores the last token of the text, without an end). Pooling "last" takes the state of the
    end (Stiennon et al. 2020), "mean" the mean state over response and end. `offset` is the mean on reference
    responses, set after training: rewards of the initial policy have mean 0.
    """

    offset: torch.Tensor

    def __init__(self, split: SplitModel, pooling: Pooling = "last") -> None:
        super().__init__()
        self.split = split
        self.pooling = pooling
        self.top = split.new_top()
        self.score = nn.Linear(split.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)
        self.register_buffer("offset", torch.zeros(()))
        self.to(split.policy.device)

    def forward(self, texts: Sequence[Text]) -> torch.Tensor:
        """Score B texts; returns (B,) in float32."""
        return torch.as_tensor(self.score(self.pooled(texts)).squeeze(-1) - self.offset)

    def pooled(self, texts: Sequence[Text]) -> torch.Tensor:
        """Return what the score reads of B texts: (B, H) in float32."""
        hidden = self.top.rows([text.states for text in texts])
        first = {"last": [len(t.states) - 1 for t in texts], "mean": [t.prompt for t in texts]}[self.pooling]
        means = [hidden[i, a : len(t.states)].mean(0) for i, (a, t) in enumerate(zip(first, texts, strict=True))]
        return torch.stack(means).float() if means else hidden[:, 0].float()

    @torch.no_grad()
    def rewards_of_texts(self, texts: Sequence[Text], *, batch_size: int = 16) -> NDArray[np.float64]:
        """Score texts whose trunk states are known; returns (n,)."""
        scores = np.zeros(len(texts))
        for rows in sharding.in_step(length_sorted_batches([len(text.states) for text in texts], batch_size)):
            scores[rows] = self([texts[i] for i in rows]).double().cpu().numpy()
        return scores

    def texts(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Text]:
        """Compute the trunk states of n prompts with their responses and ends of turn."""
        policy = self.split.policy
        before, after = [policy.encode(p) for p in prompts], [policy.encode_response(r) for r in responses]
        states = self.split.trunk_states(before, after)
        return [Text(s, len(p)) for s, p in zip(states, before, strict=True)]

    def rewards(
        self, prompts: Sequence[str], responses: Sequence[str], *, progress: Progress = no_progress
    ) -> NDArray[np.float64]:
        """Score responses.

        Args:
            prompts: n rendered prompts.
            responses: n texts.
            progress: Called with the number of responses scored.

        Returns:
            (n,) rewards; differences are log-odds of preference.
        """
        parts = []
        for start in range(0, len(prompts), CHUNK):
            part = slice(start, start + CHUNK)
            parts.append(self.rewards_of_texts(self.texts(prompts[part], responses[part])))
            progress(len(parts[-1]))
        return np.concatenate([np.zeros(0), *parts])

    def save(self, folder: Path) -> None:
        """Save what was trained; the trunk is named, not copied."""
        save_tensors(self, folder / FILE)
        facts = {
            "base": self.split.policy.name,
            "trunk": self.split.trunk_hash,
            "trainable_layers": self.split.k,
            "lora_rank": self.split.lora_rank,
            "pooling": self.pooling,
            "offset": float(self.offset),
        }
        (folder / "reward.json").write_text(json.dumps(facts, indent=1), "utf-8")

    @classmethod
    def load(cls, split: SplitModel, folder: Path) -> RewardModel:
        """Load a reward model saved on the same trunk.

        Raises:
            ModelError: It was trained on another model or cut, or the files are damaged.
        """
        try:
            facts = json.loads((folder / "reward.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} holds no readable reward.json: {error}") from error
        if (facts["base"], facts["trainable_layers"]) != (split.policy.name, split.k):
            raise ModelError(
                f"The reward model in {folder} was trained on the last {facts['trainable_layers']} layers of "
                f"{facts['base']!r}, not on the last {split.k} of {split.policy.name!r}. Tokens and states of one mean "
                f"nothing to the other: give that policy and number of layers, or train a reward on these (simfarm "
                f"train reward --policy {split.policy.name} --layers {split.k})."
            )
        if facts.get("trunk", split.trunk_hash) != split.trunk_hash:
            raise ModelError(
                f"The reward model in {folder} was trained on other weights of {split.policy.name!r} than it now has: "
                f"its scores would mean nothing. Train it anew: simfarm train reward --policy {split.policy.name}."
            )
        model = cls(split.with_lora_rank(facts.get("lora_rank")), facts["pooling"])
        load_tensors(model, folder / FILE)
        model.offset.fill_(facts["offset"])
        return model
