from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from hypothesis import given, settings
from hypothesis import strategies as st

from eef.agents.engine import Actor
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.experts import demonstrations
from eef.models.pretrain import make_model, save
from eef.selection import Example
from eef.training.rows import collate, rows_of
from eef.training.sft import sft

DRAW = {slot: (lambda: 0.0) for slot in range(16)}


def uncached(policy: Policy, history: list[int]) -> list[int]:
    """Greedy, one conversation at a time, everything read anew for each token."""
    said: list[int] = []
    end = list(policy.chat.end)
    while said[-len(end) :] != end:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([history + said])).logits[0, -1]
        said.append(int(logits.argmax()))
        if len(said) == policy.max_new_tokens and said[-len(end) :] != end:
            said += end
    return said


@given(data=st.data())
@settings(max_examples=25)
def test_greedy_utterances_equal_uncached_decoding(data: st.DataObject, tokenizer, chat) -> None:
    torch.manual_seed(1)
    policy = Policy(make_model(tokenizer, 32, 2, 2).eval(), tokenizer, chat, "random", 2048, False, 6)
    numbers = st.integers(5, len(tokenizer) - 1)
    shared = data.draw(st.lists(numbers, min_size=0, max_size=40))
    slots = data.draw(st.integers(1, 5))
    history = {slot: shared + data.draw(st.lists(numbers, min_size=2, max_size=40)) for slot in range(slots)}
    actor = Actor(policy, slots)
    actor.open({slot: list(ids) for slot, ids in history.items()})
    for turn in range(3):
        said = actor.act(list(history), DRAW, temperature=0.0)
        for slot in list(history):
            assert said[slot] == uncached(policy, history[slot])
            history[slot] += said[slot]
        for slot in list(history):
            new = data.draw(st.lists(numbers, min_size=1, max_size=30))
            if turn == 1 and slot == 0:  # a finished conversation is replaced by one that begins like another
                history[slot] = history[slots - 1][:20] + new
                actor.open({slot: list(history[slot])})
            else:
                actor.hear(slot, new)
                history[slot] += new


def test_a_common_beginning_is_read_once(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    prefix = [int(token) for token in rng.integers(5, 400, size=200)]
    actor = Actor(policy, 6)
    prompts = {slot: prefix[: 100 + 20 * slot] for slot in range(6)}
    actor.open({slot: list(ids) for slot, ids in prompts.items()})
    policy.constrained_decoding = False
    actor.act(list(prompts), DRAW, 0.0)
    spoken = actor.read_tokens - len(prefix)
    assert spoken < 6 * (policy.max_new_tokens + 2), "six beginnings of one text cost as much as one"


def test_the_states_of_each_expert_share_though_all_begin_alike(policy: Policy) -> None:
    """What all have in common (a prompt) hides nothing of what the states of one expert have in common."""
    rng = np.random.default_rng(0)
    opening = [int(token) for token in rng.integers(5, 400, size=20)]
    experts = [opening + [int(token) for token in rng.integers(5, 400, size=180)] for _ in range(3)]
    actor = Actor(policy, 12)
    actor.open({4 * one + part: ids[: 50 * (part + 1)] for one, ids in enumerate(experts) for part in range(4)})
    left = sum(map(len, actor.waiting))
    assert actor.read_tokens + left <= 20 + 3 * 180 + 12, "each token once, and the last one of each conversation"
    actor.open({0: [*experts[2][:150], 3, 4]})  # a later one takes over from a conversation that is open
    assert actor.held[0] == experts[2][:150]


def test_a_policy_saves_and_loads_its_adapter(policy: Policy, tmp_path) -> None:
    base = save(policy.model, policy.tokenizer, tmp_path / "base", {"aliases": True, "constrained_decoding": True})
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
    with pytest.raises(ValueError, match="has an adapter already"):
        loaded.new_adapter(seed=0)


def test_the_four_bit_path_trains_and_acts_on_cpu(tokenizer, shop, tmp_path) -> None:
    torch.manual_seed(0)
    base = str(
        save(
            make_model(tokenizer, 64, 1, 2),
            tokenizer,
            tmp_path / "base",
            {"aliases": True, "constrained_decoding": True},
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


def test_gradients_through_four_bit_weights_equal_those_of_a_dense_twin(tokenizer, shop, tmp_path) -> None:
    """The twin holds the weights that NF4 stands for; what acting does to the model (``eval``) must leave no trace."""
    torch.manual_seed(0)
    base = str(
        save(
            make_model(tokenizer, 64, 2, 2),
            tokenizer,
            tmp_path / "base",
            {"aliases": True, "constrained_decoding": True},
        )
    )
    four, dense = Policy.load(base, quantize="nf4"), Policy.load(base)
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
        learnt = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
        for name, weight in learnt.items():
            if "lora_B" in name:  # zero at first, and then the gradient of every A would be, too
                torch.nn.init.normal_(weight, std=0.1)
        policy.model.eval()
        policy.model.train()
        loss = policy.model(**batch, use_cache=False).loss
        losses.append(float(loss.detach()))
        gradients.append(dict(zip(learnt, torch.autograd.grad(loss, list(learnt.values())), strict=True)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * 2 * 7
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


def test_adapters_of_one_seed_are_equal(policy: Policy, tmp_path) -> None:
    base = str(save(policy.model, policy.tokenizer, tmp_path, {"aliases": True}))
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
