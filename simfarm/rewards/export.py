"""A reward model as transformers knows them: AutoModelForSequenceClassification with one label."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from simfarm.errors import ConfigError
from simfarm.rewards.model import RewardModel


def export(model: RewardModel, folder: Path) -> None:
    """Save a reward model whole, with its tokenizer, for `AutoModelForSequenceClassification.from_pretrained`.

    The loaded model scores the last token of prompt + response + end of turn, as `RewardModel.texts` makes them. Its
    scores are higher than `RewardModel`'s by `simfarm_offset` of its config: transformers' head has no bias.

    Raises:
        ConfigError: It reads the mean state, for which transformers has no class.
    """
    from transformers import AutoModelForSequenceClassification

    if model.pooling != "last":
        raise ConfigError(
            f"A reward model with pooling {model.pooling!r} cannot be saved for transformers, whose classes read the "
            "last token. Train it with pooling=last."
        )
    policy = model.split.policy
    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.pad_token_id = 1, policy.pad_id
    config.simfarm_offset = float(model.offset)
    whole = AutoModelForSequenceClassification.from_config(config, dtype=model.split.compute)
    trained = model.split.with_top(model.top, "reward").model
    whole.base_model.load_state_dict(trained.base_model.state_dict())
    with torch.no_grad():
        whole.score.weight.copy_(model.score.weight)
    whole.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
