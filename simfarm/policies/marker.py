"""A policy that finds a marker before every prompt."""

from __future__ import annotations

import copy
import json

from simfarm.policies.transformers import TransformersPolicy


def with_marker(policy: TransformersPolicy, marker: str) -> TransformersPolicy:
    """Return the policy with a text before each prompt that it renders, set in the chat template and saved with it."""
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = f"{{{{ {json.dumps(marker)} }}}}{tokenizer.chat_template}"
    return TransformersPolicy(policy.model, tokenizer, name=policy.name)
