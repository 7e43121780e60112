from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma3Config

from eef.agents.cached_engine import CachedEngine
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.experts import demonstrations
from eef.models.pretrain import make_model, save
from eef.selection import Example
from eef.training.rows import collate, rows_of
from eef.training.sft import sft

DRAW = {slot: (lambda: 0.0) for slot in range(16)}


def uncached(policy: Policy, history: list[int]) -> list[int]:
    """Greedy decoding of one conversation that reads everything again for each token. A control token is the end."""
    answer: list[int] = []
    end = list(policy.chat.end)
    while answer[-len(end) :] != end:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([history + answer])).logits[0, -1]
        answer.append(int(logits.argmax()))
        if answer[-len(end) :] != end and policy.ends(answer[-1]):
            return answer[:-1] + end
        if len(answer) == policy.max_new_tokens and answer[-len(end) :] != end:
            answer += end
    return answer


@pytest.fixture(scope="module")
def greedy_policy(tokenizer, chat) -> Policy:
    torch.manual_seed(1)
    return Policy(make_model(tokenizer, 32, 2, 2).eval(), tokenizer, chat, "random", 2048, False, 6)


@given(data=st.data())
@settings(max_examples=25)
def test_greedy_answers_equal_uncached_decoding(data: st.DataObject, greedy_policy: Policy, tokenizer) -> None:
    policy = greedy_policy
    numbers = st.integers(5, len(tokenizer) - 1)
    shared = data.draw(st.lists(numbers, min_size=0, max_size=40))
    slots = data.draw(st.integers(1, 5))
    history = {slot: shared + data.draw(st.lists(numbers, min_size=2, max_size=40)) for slot in range(slots)}
    engine = CachedEngine(policy, slots)
    engine.start({slot: list(ids) for slot, ids in history.items()})
    for turn in range(3):
        answers = engine.generate(list(history), DRAW, temperature=0.0)
        for slot in list(history):
            assert answers[slot] == uncached(policy, history[slot])
            history[slot] += answers[slot]
        for slot in list(history):
            new = data.draw(st.lists(numbers, min_size=1, max_size=30))
            if turn == 1 and slot == 0:  # replace a finished conversation by one that shares a prefix with another
                history[slot] = history[slots - 1][:20] + new
                engine.start({slot: list(history[slot])})
            else:
                engine.append(slot, new)
                history[slot] += new


def test_a_common_prefix_is_read_once(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    prefix = [int(token) for token in rng.integers(5, 400, size=200)]
    engine = CachedEngine(policy, 6)
    prompts = {slot: prefix[: 100 + 20 * slot] for slot in range(6)}
    engine.start({slot: list(ids) for slot, ids in prompts.items()})
    policy.constrained_decoding = False
    engine.generate(list(prompts), DRAW, 0.0)
    rest = engine.read_tokens - len(prefix)
    assert rest < 6 * (policy.max_new_tokens + 2), "six prefixes of one text cost as much as one"


def test_the_states_of_each_expert_share_a_prefix_beyond_the_common_prompt(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    opening = [int(token) for token in rng.integers(5, 400, size=20)]
    experts = [opening + [int(token) for token in rng.integers(5, 400, size=180)] for _ in range(3)]
    engine = CachedEngine(policy, 12)
    engine.start({4 * one + part: ids[: 50 * (part + 1)] for one, ids in enumerate(experts) for part in range(4)})
    unread = sum(map(len, engine.pending))
    assert engine.read_tokens + unread <= 20 + 3 * 180 + 12, "each token once, and the last one of each conversation"
    engine.start({0: [*experts[2][:150], 3, 4]})  # it copies from a conversation that was started earlier
    assert engine.cached[0] == experts[2][:150]


def test_a_policy_saves_and_loads_its_adapter(policy: Policy, tmp_path) -> None:
    base = save(policy.model, policy.tokenizer, tmp_path / "base", {"aliases": "webshop", "constrained_decoding": True})
    loaded = Policy.load(str(base))
    assert loaded.constrained_decoding and loaded.chat.aliases and loaded.chat.hash == policy.chat.hash
    loaded.new_adapter(seed=3, r=4, alpha=8)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    loaded.save_adapter(tmp_path / "adapter")
    again = Policy.load(str(base), tmp_path / "adapter")
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, loaded.model.eval()(input_ids=ids).logits)
        assert not torch.equal(again.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    with pytest.raises(ValueError, match="already has an adapter"):
        loaded.new_adapter(seed=0)


def test_the_four_bit_path_trains_and_acts_on_cpu(tokenizer, shop, tmp_path) -> None:
    torch.manual_seed(0)
    base = str(
        save(
            make_model(tokenizer, 64, 1, 2),
            tokenizer,
            tmp_path / "base",
            {"aliases": "webshop", "constrained_decoding": True},
        )
    )
    policy = Policy.load(base, quantize="nf4")
    policy.new_adapter(seed=0, r=4, alpha=8)
    examples = [Example(t, 0) for t in demonstrations(shop, shop.tasks("train")[:8])]
    report = sft(policy, examples, tmp_path / "adapter", epochs=6, lr=1e-2, batch_size=4, seed=0)
    assert report["losses"][-1]["loss"] < report["losses"][0]["loss"]
    again = Policy.load(base, tmp_path / "adapter", quantize="nf4")
    played = simulate(again, shop, [Start(task) for task in shop.tasks("test")[:4]])
    assert all(t.outcome in ("done", "max_steps") for t in played)


def test_an_adapter_leaves_the_layers_that_read_images(policy: Policy) -> None:
    """They get no gradient, which stops a training in several processes."""
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    images = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**images, "image_size": 28, "patch_size": 14})
    both = replace(policy, model=AutoModelForCausalLM.from_config(config))
    both.new_adapter(seed=0, r=2)
    names = [name for name, weight in both.model.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 7 * 2 and all(".language_model.layers." in name for name in names)


def test_gradients_through_four_bit_weights_equal_those_of_a_dense_twin(tokenizer, shop, tmp_path) -> None:
    """The twin has the dequantised weights. Acting (``eval``) must not change the gradients."""
    torch.manual_seed(0)
    base = str(
        save(
            make_model(tokenizer, 64, 2, 2),
            tokenizer,
            tmp_path / "base",
            {"aliases": "webshop", "constrained_decoding": True},
        )
    )
    four, dense = Policy.load(base, quantize="nf4", dtype="float32"), Policy.load(base)
    linears = {name: module for name, module in four.model.named_modules() if isinstance(module, Linear4bit)}
    assert len(linears) == 2 * 7 and not any(isinstance(module, Linear4bit) for module in dense.model.modules())
    for name, module in linears.items():
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert not torch.equal(weight, dense.model.get_submodule(name).weight)
        dense.model.get_submodule(name).weight.data = weight.to(torch.float32)
    simulate(four, shop, [Start(task) for task in shop.tasks("test")[:1]])
    rows, _ = rows_of(four, [Example(t, 0) for t in demonstrations(shop, shop.tasks("train")[:4])])
    batch = collate([{"input_ids": row.ids, "mask": row.mask} for row in rows], four.pad)
    losses, gradients = [], []
    for policy in (four, dense):
        policy.new_adapter(seed=0, r=4, alpha=8)
        torch.manual_seed(1)
        trainable = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
        for name, weight in trainable.items():
            if "lora_B" in name:  # initially zero, which would make the gradient of every A zero too
                torch.nn.init.normal_(weight, std=0.1)
        policy.model.eval()
        policy.model.train()
        loss = policy.model(**batch, use_cache=False).loss
        losses.append(float(loss.detach()))
        gradients.append(dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * 2 * 7
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


def test_adapters_of_one_seed_are_equal(policy: Policy, tmp_path) -> None:
    base = str(save(policy.model, policy.tokenizer, tmp_path, {"aliases": "webshop"}))
    weights = []
    for seed in (1, 1, 2):
        loaded = Policy.load(base)
        loaded.new_adapter(seed)
        weights.append(torch.cat([w.flatten() for name, w in loaded.model.named_parameters() if "lora_A" in name]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_an_unknown_model_or_quantisation_is_named(tmp_path) -> None:
    with pytest.raises(OSError, match="no model"):
        Policy.load(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nf4"):
        Policy.load(quantize="int3")
