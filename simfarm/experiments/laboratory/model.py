"""The small world's language model: a transformer of about 130,000 weights, trained from scratch on its writers."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simfarm import draws
from simfarm.experiments.laboratory import grammar
from simfarm.experiments.laboratory.config import ModelConfig
from simfarm.policies.decoding import pad
from simfarm.policies.optimise import cosine_with_warmup
from simfarm.policies.transformers import TransformersPolicy

TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<answer> ' }}{{ m['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)


def new_policy(config: ModelConfig, *, seed: int) -> TransformersPolicy:
    """Make the model with random weights."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<end>", "<user>", "<answer>", *grammar.VOCABULARY))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<answer>"],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(draws.seed_for(seed, "laboratory weights"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=config.hidden_size,
            intermediate_size=2 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=vocabulary["<end>"],
            pad_token_id=vocabulary["<pad>"],
            tie_word_embeddings=False,
        )
    )
    return TransformersPolicy(model.requires_grad_(False), tokenizer, name="laboratory")


def pretrain(policy: TransformersPolicy, config: ModelConfig, *, seed: int) -> float:
    """Teach the model to write as the world's writers do; returns the last loss, nats per token."""
    rng = np.random.default_rng(draws.seed_for(seed, "laboratory writers"))
    prompts = grammar.instructions()
    starts = {prompt: policy.encode(policy.render(prompt)) for prompt in prompts}
    model = policy.model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine_with_warmup(config.steps, 0.05))
    loss = torch.zeros(())
    for _ in range(config.steps):
        chosen = [str(p) for p in rng.choice(prompts, config.batch_size)]
        texts = [starts[p] + policy.encode_response(grammar.write(p, rng)) for p in chosen]
        tokens, mask = pad(texts, policy.pad_id, side="right", device=policy.device)
        mask[:, : len(starts[chosen[0]])] = 0
        logits = model(input_ids=tokens, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        kept = mask[:, 1:].flatten()
        loss = (losses * kept).sum() / kept.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval().requires_grad_(False)
    return float(loss.detach())
