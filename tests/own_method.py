"""A method of one's own: fine-tune on the shorter of two preferred responses, in 30 lines.

In the package's pyproject.toml:

    [project.entry-points."simfarm.methods"]
    shortest = "own_method:shortest"

and then: simfarm train shortest --data labels.json --out shortest --set epochs=1
"""

from __future__ import annotations

from simfarm.methods.config import SFTConfig
from simfarm.methods.registry import Task, Trained
from simfarm.methods.sft import fine_tune


def shortest(task: Task) -> Trained:
    """Learn, for each prompt of the labels, the shortest response that was preferred to another."""
    better, _, prompts = task.preferences.better_and_worse()
    best: dict[str, tuple[int, ...]] = {}
    for prompt, response in zip(prompts, better, strict=True):
        if prompt not in best or len(response) < len(best[prompt]):
            best[prompt] = tuple(response)
    top = fine_tune(
        task.split,
        list(best),
        list(best.values()),
        task.config(SFTConfig),
        seed=task.seed,
        setup=task.setup,
        method="shortest",
    )
    return Trained(top)
