"""Plain products give what PyTorch's attention gives, as near as bfloat16 allows, and its gradient."""

from __future__ import annotations

import pytest
import torch
from tiny import save_tiny
from torch.nn.functional import scaled_dot_product_attention

from simfarm.policies.attention import NAME, SHORT, attend
from simfarm.policies.transformers import TransformersPolicy


class Layer(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def tensors(batch: int, length: int, seen: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = (batch, 6, length, 16), (batch, 2, seen, 16), (batch, 2, seen, 16)
    return tuple(torch.randn(shape) for shape in shapes)


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **options) -> torch.Tensor:
    k, v = (x.repeat_interleave(3, 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).transpose(1, 2)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach().float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("added", [False, True])
def test_one_query_with_filling_on_the_left(added: bool) -> None:
    q, k, v = tensors(4, 1, 20)
    mask = torch.ones(4, 1, 1, 20, dtype=torch.bool)
    mask[1, ..., :7] = False
    given = torch.zeros(4, 1, 1, 20).masked_fill(~mask, -1e9).bfloat16() if added else mask
    found, _ = attend(Layer(), q.bfloat16(), k.bfloat16(), v.bfloat16(), given)
    assert found.dtype == torch.bfloat16
    assert off(found, exact(q, k, v, mask)) < 0.02


@pytest.mark.parametrize("length", [5, SHORT, SHORT + 1])
@pytest.mark.parametrize("scaling", [None, 0.1])
def test_gradients(length: int, scaling: float | None) -> None:
    parts = tensors(2, length, length)
    rounded = [x.bfloat16().requires_grad_() for x in parts]
    whole = [x.clone().requires_grad_() for x in parts]
    found, _ = attend(Layer(), *rounded, None, scaling=scaling)
    wanted = exact(*whole, None, is_causal=True, scale=scaling)
    assert off(found, wanted.detach()) < 0.02
    direction = torch.randn_like(wanted)
    found.backward(direction.bfloat16())
    wanted.backward(direction)
    for a, b in zip(rounded, whole, strict=True):
        assert a.grad is not None and b.grad is not None and off(a.grad, b.grad) < 0.02


def test_values_may_be_narrower_than_keys() -> None:
    q, k, v = tensors(2, 1, 6)
    v = v[..., : v.shape[-1] // 2]
    found, _ = attend(Layer(), q.bfloat16(), k.bfloat16(), v.bfloat16(), None)
    assert off(found, exact(q, k, v, None)) < 0.02


def test_a_query_that_may_look_nowhere_is_no_nan() -> None:
    q, k, v = (x.bfloat16() for x in tensors(1, 1, 4))
    found, _ = attend(Layer(), q, k, v, torch.zeros(1, 1, 1, 4, dtype=torch.bool))
    assert found.isfinite().all()


def test_a_model_in_bfloat16_uses_it_and_is_saved_without_it(tmp_path) -> None:
    save_tiny(tmp_path / "model")
    policy = TransformersPolicy.load(f"hf/{tmp_path}/model", device="cpu", dtype="bfloat16")
    assert policy.model.config._attn_implementation == NAME
    policy.model.save_pretrained(tmp_path / "again")
    assert NAME not in (tmp_path / "again" / "config.json").read_text("utf-8")
    plain = TransformersPolicy.load(f"hf/{tmp_path}/model", device="cpu", dtype="float32")
    assert plain.model.config._attn_implementation == "sdpa"
    prompt = policy.render("say red")
    (response,) = policy.sample([prompt], [0], max_new_tokens=8, seed=0)
    ours, exactly = (p.log_probabilities([prompt], [response.tokens])[0] for p in (policy, plain))
    assert ours == pytest.approx(exactly, abs=0.05)
