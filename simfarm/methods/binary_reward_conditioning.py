"""Binary reward conditioning: learn from both responses, told apart by a marker; answer after the good one.

    loss = -mean over tokens of log π(token | marker, prompt, tokens before it),  marker = win or lose

(Keskar et al. 2019; Liu et al. 2023, "chain of hindsight"; AlpacaFarm.) AlpacaFarm's markers are new tokens; since
embeddings are frozen here, they are words before the prompt.
"""

from __future__ import annotations

from simfarm.methods.config import ConditioningConfig
from simfarm.methods.preferences import Preferences
from simfarm.methods.sft import fine_tune
from simfarm.policies.split import SplitModel, Top
from simfarm.policies.training import PLAIN, Setup


def binary_reward_conditioning(
    split: SplitModel, pairs: Preferences, config: ConditioningConfig, *, seed: int, setup: Setup = PLAIN
) -> Top:
    """Fit a policy to marked responses; arguments and errors as in `dpo`.

    Returns:
        The trained top; it is to answer prompts with `config.win` before them.
    """
    better, worse, prompts = pairs.better_and_worse()
    marked = [marker + prompt for marker in (config.win, config.lose) for prompt in prompts]
    return fine_tune(
        split,
        marked,
        [*better, *worse],
        config,
        seed=seed,
        setup=setup,
        method="binary_reward_conditioning",
        marker=config.win,
    )
