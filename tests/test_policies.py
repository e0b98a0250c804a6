from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import LETTERS, save_tiny, tiny_policy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicLayer

from simfarm.errors import ConfigError, DataError, ModelError
from simfarm.policies.cache import RoomyLayer
from simfarm.policies.decoding import pad, read_prompts, sample_tokens
from simfarm.policies.split import SplitModel, load_tensors, save_tensors
from simfarm.policies.transformers import (
    TransformersPolicy,
    hidden_states,
    length_sorted_batches,
    token_log_probabilities,
)


def trunk(split: SplitModel, ids: torch.Tensor) -> torch.Tensor:
    return split.trunk_states(ids.tolist(), [[]] * len(ids))[0].unsqueeze(0)


PROMPTS = ["what is a cat", "say b", "tell me about the weather in a long sentence please", "c"]


@pytest.fixture(scope="module")
def policy() -> TransformersPolicy:
    return tiny_policy()


def test_the_sampler_draws_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1e4]])
    grid = (torch.arange(10_000) + 0.5) / 10_000
    drawn = sample_tokens(logits.expand(10_000, -1), grid, 0.5)
    expected = torch.softmax(logits[0] / 0.5, 0)
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 10_000, expected, atol=2e-4)
    assert sample_tokens(logits, torch.tensor([0.3]), 0).tolist() == [2]
    assert sample_tokens(logits, torch.tensor([np.nextafter(np.float32(1), np.float32(0))]), 1.0).tolist() == [2]


def test_a_row_does_not_depend_on_the_rows_beside_it(policy: TransformersPolicy) -> None:
    prompts = [policy.render(p) for p in PROMPTS]
    arguments = {"max_new_tokens": 12, "seed": 5, "temperature": 1.0}
    together = policy.sample(prompts, [0, 1, 2, 3], **arguments)
    for i, prompt in enumerate(prompts):
        assert policy.sample([prompt], [i], **arguments) == [together[i]]
    small = policy.sample(prompts[::-1], [3, 2, 1, 0], batch_size=2, **arguments)
    assert small[::-1] == together
    assert policy.sample(prompts, [9, 1, 2, 3], **arguments)[0] != together[0]


@pytest.mark.parametrize(("layers", "new_tokens"), [(1, 40), (2, 8), (3, 12)])
def test_the_states_that_sampling_keeps_are_the_trunks(
    policy: TransformersPolicy, layers: int, new_tokens: int
) -> None:
    split = SplitModel(policy, layers)
    writer = split.with_top(split.new_top(), "writer")
    prompts = [policy.render(p) for p in PROMPTS * 6]
    drawing = {"max_new_tokens": new_tokens, "seed": 1, "batch_size": 16}
    responses, states = writer.sample_with_states(prompts, list(range(24)), layers=layers, **drawing)
    assert responses == writer.sample(prompts, list(range(24)), **drawing)
    # some end, some do not
    assert len({len(r.tokens) for r in responses}) > 1 and {r.finished for r in responses} == {True, False}
    end = policy.tokenizer.eos_token_id
    texts = [[*r.tokens, *([] if r.finished else [end])] for r in responses]
    for kept, computed in zip(states, split.trunk_states([policy.encode(p) for p in prompts], texts), strict=True):
        torch.testing.assert_close(kept, computed, rtol=1e-4, atol=1e-5)


def test_reading_prompts_makes_no_copies_of_the_head() -> None:
    """PyTorch multiplies strided states by weights repeated for every row: more memory and time than all layers."""

    class Products(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.widths: list[int] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bmm.default:
                self.widths.append(args[1].shape[-1])
            return func(*args, **(kwargs or {}))

    frozen = tiny_policy()
    frozen.model.requires_grad_(False)
    with torch.no_grad(), Products() as products:
        read_prompts(frozen.model, [frozen.encode(frozen.render(p)) for p in "abcdefgh"], frozen.pad_id)
    assert frozen.model.config.vocab_size not in products.widths


def test_sampled_frequencies_match_log_probabilities(policy: TransformersPolicy) -> None:
    prompt = policy.render("hi")
    drawn = policy.sample([prompt] * 4000, list(range(4000)), max_new_tokens=1, seed=0, batch_size=1000)
    tokens = torch.tensor([r.tokens[0] for r in drawn])
    vocabulary = range(len(policy.tokenizer))
    log_p = policy.log_probabilities([prompt] * len(vocabulary), [[t] for t in vocabulary])
    expected = torch.tensor(np.exp(np.concatenate(log_p)))
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    seen = torch.bincount(tokens, minlength=len(vocabulary)) / 4000
    assert float((seen - expected).abs().max()) < 5 * float((expected / 4000).sqrt().max())


def test_log_probabilities_agree_with_the_plain_forward_pass(policy: TransformersPolicy) -> None:
    prompts = [policy.render(p) for p in PROMPTS]
    responses = [policy.encode("abc"), policy.encode("hello there"), [], policy.encode_response("x")]
    # a prompt of several responses is read once
    prompts, responses = [*prompts, *prompts], [*responses, *responses[::-1]]
    batched = policy.log_probabilities(prompts, responses, batch_size=3)
    contexts = [(policy.render(""), prompt) for prompt in prompts]
    together = [values[1] for values in policy.log_probabilities_in_contexts(contexts, responses)]
    for prompt, response, *found in zip(prompts, responses, batched, together, strict=True):
        before = policy.encode(prompt)
        logits = policy.model(torch.tensor([[*before, *response]])).logits[0].log_softmax(-1)
        expected = [float(logits[len(before) - 1 + t, token]) for t, token in enumerate(response)]
        assert [values == pytest.approx(expected, abs=1e-4) for values in found] == [True, True]


def test_log_probabilities_in_contexts_do_not_depend_on_the_texts_beside(policy: TransformersPolicy) -> None:
    contexts = [(policy.render(p), policy.render("")) for p in [*PROMPTS, *PROMPTS]]
    responses = [policy.encode_response(text) for text in ("abc", "hello there", "", "x", "no", "abc abc", "y", "z")]
    beside = policy.log_probabilities_in_contexts(contexts, responses)
    for both, response, values in zip(contexts, responses, beside, strict=True):
        assert policy.log_probabilities_in_contexts([both], [response])[0].tolist() == values.tolist()
        plain = policy.log_probabilities(both, [response] * 2)
        assert values == pytest.approx(np.stack(plain), abs=1e-4)


def test_a_cache_with_room_holds_what_one_without_holds() -> None:
    rng = np.random.default_rng(0)
    roomy, plain = RoomyLayer(), DynamicLayer()
    for _ in range(40):
        rows = 4 if not plain.get_seq_length() else plain.keys.shape[0]
        new = [torch.tensor(rng.normal(size=(rows, 2, rng.integers(1, 40), 3))) for _ in range(2)]
        new[1] = torch.tensor(rng.normal(size=new[0].shape))
        for layer in (roomy, plain):
            layer.update(*new)
        if rng.random() < 0.3:
            kept = torch.tensor(sorted(rng.choice(rows, max(1, rows - 1), replace=False)))
            for layer in (roomy, plain):
                layer.batch_select_indices(kept)
        if rng.random() < 0.3:
            for layer in (roomy, plain):
                layer.crop(-1)
        assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)


def test_the_end_of_turn_stops_a_response(policy: TransformersPolicy) -> None:
    drawn = policy.sample([policy.render("q")] * 300, list(range(300)), max_new_tokens=40, seed=1)
    finished = [r for r in drawn if r.finished]
    assert finished and len(finished) < 300
    for r in drawn:
        assert policy.end_ids[0] not in r.tokens[:-1]
        assert r.finished == (r.tokens[-1] in policy.end_ids)
        assert len(r.tokens) == 40 or r.finished
        assert "<end>" not in r.text


def test_hostile_text_is_encoded(policy: TransformersPolicy) -> None:
    assert policy.decode(policy.encode("\ud800ab")).endswith("ab")
    assert set(policy.decode(policy.encode(LETTERS))) <= set(LETTERS)


def test_what_does_not_fit_is_refused(policy: TransformersPolicy) -> None:
    with pytest.raises(DataError, match="context of 'tiny' holds 256"):
        policy.sample([policy.render("a" * 250)], [0], max_new_tokens=20, seed=0)
    with pytest.raises(DataError, match="prompt is empty"):
        policy.log_probabilities([""], [[1]])


def test_batches_are_sorted_and_whole() -> None:
    batches = list(length_sorted_batches([3, 9, 1, 9, 4], 2))
    assert batches == [[1, 3], [4, 0], [2]]


def test_padding_sides() -> None:
    left, mask = pad([[1, 2, 3], [4]], 0, side="left", device=torch.device("cpu"))
    assert left.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    right, mask = pad([[1, 2, 3], [4]], 0, side="right", device=torch.device("cpu"))
    assert right.tolist() == [[1, 2, 3], [4, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_chunks_do_not_change_token_log_probabilities() -> None:
    head, states, targets = torch.nn.Linear(8, 50), torch.randn(10, 8), torch.arange(10)
    whole = head(states).log_softmax(-1)[torch.arange(10), targets]
    assert torch.allclose(token_log_probabilities(head, states, targets, chunk=3), whole, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_cut_model_computes_what_the_whole_does(policy: TransformersPolicy, k: int) -> None:
    split = SplitModel(policy, k)
    top = split.new_top()
    ids = torch.tensor([[*policy.encode(policy.render("hello")), 5, 6, 7]])
    states = top(trunk(split, ids))[0, :-1]
    expected = policy.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    assert torch.allclose(split.log_probabilities(states, ids[0, 1:]), expected, atol=1e-4)
    prompts, arguments = [policy.render(p) for p in PROMPTS], {"max_new_tokens": 8, "seed": 1}
    assert split.with_top(top, "copy").sample(prompts, [0, 1, 2, 3], **arguments) == policy.sample(
        prompts, [0, 1, 2, 3], **arguments
    )


def test_filling_on_the_right_changes_nothing(policy: TransformersPolicy) -> None:
    split = SplitModel(policy, 1)
    texts = [policy.encode("abc"), policy.encode("a much longer text")]
    for text, states in zip(texts, split.trunk_states(texts, [[], []]), strict=True):
        assert torch.allclose(states, split.trunk_states([text], [[]])[0], atol=1e-5)


def test_a_shared_prompt_is_computed_once_and_the_same(policy: TransformersPolicy) -> None:
    prompts = [policy.encode(policy.render(p)) for p in ("short", "a longer question", "short", "short")] * 2
    responses = [policy.encode(r) for r in ("abc", "d", "", "efghijk", "l", "mn", "opq", "rstuv")]
    base = policy.model.base_model
    for p, r, states in zip(prompts, responses, hidden_states(base, prompts, responses, policy.pad_id), strict=True):
        (alone,) = hidden_states(base, [p], [r], policy.pad_id)
        assert states.shape == (len(p) + len(r), 32)
        assert torch.allclose(states, alone, atol=1e-4)


def test_training_a_top_leaves_the_policy_as_it_is(policy: TransformersPolicy) -> None:
    before = [p.clone() for p in policy.model.parameters()]
    split = SplitModel(policy, 2)
    top = split.new_top()
    trained = [p for p in top.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) < sum(p.numel() for p in policy.model.parameters())
    optimiser = torch.optim.SGD(trained, lr=1.0)
    ids = torch.tensor([policy.encode("abcdef")])
    top(trunk(split, ids)).pow(2).mean().backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert not any(p.requires_grad for p in policy.model.parameters())
    changed = split.with_top(top, "trained")
    assert changed.log_probabilities(["<u>q"], [[7]])[0] != pytest.approx(policy.log_probabilities(["<u>q"], [[7]])[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reference_shares_the_weights_of_the_model(tmp_path, dtype: str) -> None:
    save_tiny(tmp_path / "model")
    policy = TransformersPolicy.load(f"hf/{tmp_path}/model", device="cpu", dtype=dtype)
    split = SplitModel(policy, 2)
    (states,) = split.trunk_states([list(range(2, 10))], [[]])
    reference = split.initial_top()
    with torch.no_grad():
        assert torch.equal(reference(states.unsqueeze(0)), split.new_top()(states.unsqueeze(0)))
    own = {id(p) for p in policy.model.parameters()}
    assert all(id(p) in own and not p.requires_grad for p in reference.parameters())


def test_a_reference_with_layer_norms_computes_in_bfloat16() -> None:
    policy = tiny_policy()
    base = policy.model.base_model
    for holder, name in ((base, "norm"), *((layer, "input_layernorm") for layer in base.layers)):
        setattr(holder, name, torch.nn.LayerNorm(policy.model.config.hidden_size))
    policy.model.to(torch.bfloat16).requires_grad_(False)
    split = SplitModel(policy, 2)
    (states,) = split.trunk_states([list(range(2, 10))], [[]])
    reference = split.initial_top()
    with torch.no_grad():
        assert torch.equal(reference(states.unsqueeze(0)), split.new_top()(states.unsqueeze(0)))
    shared = {id(p) for p in policy.model.parameters()} & {id(p) for p in reference.parameters()}
    assert len(shared) > len(list(reference.parameters())) / 2


def test_trainable_layers_must_be_there(policy: TransformersPolicy) -> None:
    with pytest.raises(ConfigError, match="give 1 to 3"):
        SplitModel(policy, 4)


def test_a_model_that_does_more_than_run_its_layers_is_not_cut() -> None:
    odd = tiny_policy(seed=3)
    base = odd.model.base_model
    plain = type(base).forward

    class Odd(type(base)):
        def forward(self, *args, **kwargs):
            out = plain(self, *args, **kwargs)
            out.last_hidden_state = out.last_hidden_state + 1
            return out

    base.__class__ = Odd
    with pytest.raises(ModelError, match="cannot be cut"):
        SplitModel(odd, 1)


def test_weights_come_back_and_strangers_are_refused(policy: TransformersPolicy, tmp_path) -> None:
    split = SplitModel(policy, 1)
    top = split.new_top()
    with torch.no_grad():
        for p in top.parameters():
            if p.requires_grad:
                p.add_(0.1)
    save_tensors(top, tmp_path / "top.safetensors")
    other = split.new_top()
    load_tensors(other, tmp_path / "top.safetensors")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(other(trunk(split, ids)), top(trunk(split, ids)))
    with pytest.raises(ModelError, match="do not fit"):
        load_tensors(SplitModel(policy, 2).new_top(), tmp_path / "top.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tensors(other, tmp_path / "bad.safetensors")


def test_a_saved_folder_loads(tmp_path) -> None:
    loaded = TransformersPolicy.load(f"hf/{save_tiny(tmp_path / 'tiny')}", dtype="float32")
    mine = tiny_policy()
    prompts = [mine.render("hi")]
    assert loaded.sample(prompts, [0], max_new_tokens=5, seed=0) == mine.sample(prompts, [0], max_new_tokens=5, seed=0)
