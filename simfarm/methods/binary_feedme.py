"""Binary FeedME: fine-tune on the preferred response of each pair (OpenAI's FeedME with binary feedback; AlpacaFarm).

It is SFT of the initial policy on those responses:

    loss = -mean over tokens of preferred responses of log π(token | prompt, tokens before it)
"""

from __future__ import annotations

from simfarm.methods.config import FeedMEConfig
from simfarm.methods.preferences import Preferences
from simfarm.methods.sft import fine_tune
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup


def binary_feedme(
    split: SplitModel, pairs: Preferences, config: FeedMEConfig, *, seed: int, setup: Setup = PLAIN
) -> Top:
    """Fit a policy to preferred responses; arguments and errors as in `dpo`."""
    better, _, prompts = pairs.better_and_worse()
    return fine_tune(split, prompts, better, config, seed=seed, setup=setup, method="binary_feedme")
