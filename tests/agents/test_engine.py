"""The cached engine: ends of answers, limits of models, and a cache that stays within memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from eef.agents import cached_engine
from eef.agents.attention_masks import attention_mask
from eef.agents.cached_engine import CachedEngine
from eef.agents.model_files import context_of
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.agents.vllm import ServedPolicy, VllmEngine, served
from eef.experts import expert_trajectories
from eef.lab import resolved
from eef.models.pretrain import make_model, save
from eef.settings import Settings
from eef.training.rows import Row
from eef.training.sft import fit
from eef.trajectory import Trajectory

DRAWS = {slot: (lambda: 0.0) for slot in range(8)}


def script(engine: CachedEngine, tokens: list[int]) -> None:
    """Make the model generate ``tokens``, one after the other."""
    next_logits, remaining = engine.next_logits, list(tokens)

    def scripted(slots: list[int]) -> torch.Tensor:
        logits = torch.full_like(next_logits(slots), -1.0)
        logits[:, remaining.pop(0)] = 1.0
        return logits

    engine.next_logits = scripted  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["generation config", "config", "special token", "beyond the tokenizer"])
def test_whatever_ends_an_answer_is_replaced_by_the_end_of_the_scaffold(kind: str, tokenizer, chat) -> None:
    torch.manual_seed(0)
    model = make_model(tokenizer, width=32, layers=1, heads=2).eval()
    model.resize_token_embeddings(len(tokenizer) + 8)
    last = {"config": 40, "generation config": 41, "special token": tokenizer.bos_token_id}.get(
        kind, len(tokenizer) + 3
    )
    if kind == "config":
        model.config.eos_token_id = 40
    elif kind == "generation config":
        model.generation_config = GenerationConfig(eos_token_id=[42, 41])
    policy = Policy(model, tokenizer, chat, "ends", 256, False, 6)
    engine = CachedEngine(policy, 1)
    engine.start({0: [5, 6, 7]})
    script(engine, [30, 31, last, 32, 33, 34])
    answer = engine.generate([0], DRAWS, 0.0)[0]
    assert answer == [30, 31, *chat.end]
    assert engine.cached[0] + engine.pending[0] == [5, 6, 7, *answer], "the conversation has the ids of the answer"


def test_a_server_is_sent_the_ends_of_the_model_and_its_answers_end_there_too(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    base = str(save(make_model(tokenizer, 32, 1, 2), tokenizer, tmp_path, {"aliases": "webshop"}))
    GenerationConfig(eos_token_id=[41, 42]).save_pretrained(base)
    bodies: list[dict[str, Any]] = []
    answers = [[30, 41], [31, tokenizer.bos_token_id, 32], [33, len(tokenizer) + 1], [34, 35, 36, 37]]

    class Answer:
        status_code = 200

        def __init__(self, body: dict[str, Any]) -> None:
            bodies.append(body)

        def json(self) -> dict[str, Any]:
            return {"choices": [{"token_ids": answers.pop(0), "prompt_token_ids": bodies[-1]["prompt"]}]}

    card = {"id": base, "root": base, "max_model_len": 2048}
    version = type("Version", (), {"status_code": 404})()
    monkeypatch.setattr("eef.agents.vllm.Server.models", lambda self: [card])
    monkeypatch.setattr(
        "eef.agents.vllm.Server.request", lambda self, path, body=None: Answer(body) if body else version
    )
    with served("http://localhost:1", base, max_new_tokens=4) as policy:
        assert isinstance(policy, ServedPolicy)
        end = list(policy.chat.end)
        for expected in ([30], [31], [33], [34, 35, 36, 37]):
            engine = VllmEngine(policy, 1)
            engine.start({0: [5, 6]})
            assert engine.generate([0], DRAWS, 0.0)[0] == [*expected, *end]
    assert set(bodies[0]["stop_token_ids"]) == {41, 42, end[-1], tokenizer.eos_token_id}


def test_a_token_for_padding_may_lie_beyond_the_model(tokenizer, chat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(tokenizer, width=32, layers=1, heads=2).eval()
    added = type(tokenizer).from_pretrained(_saved(tokenizer, tmp_path / "tokenizer"))
    added.add_special_tokens({"pad_token": "<padding>"})
    assert added.pad_token_id == len(tokenizer) == model.get_input_embeddings().num_embeddings
    base = str(save(model, added, tmp_path / "pad", {"aliases": "webshop"}))
    policy = Policy.load(base, constrained_decoding=False, max_new_tokens=4)
    assert policy.pad < len(tokenizer)
    engine = CachedEngine(policy, 2)
    engine.start({0: list(range(5, 40)), 1: list(range(5, 9))})  # two lengths: the shorter one is padded
    assert set(engine.generate([0, 1], DRAWS, 0.0)) == {0, 1}
    model.resize_token_embeddings(len(tokenizer) - 1)
    (word,) = (word for word, place in tokenizer.get_vocab().items() if place == len(tokenizer) - 1)
    small = str(save(model, tokenizer, tmp_path / "small", {"aliases": "webshop"}))
    with pytest.raises(ValueError, match=rf"embedding has \d+ rows, so it does not know '{re.escape(word)}'"):
        Policy.load(small)


def _saved(tokenizer: Any, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "more", "context"),
    [
        ("llama", {"max_position_embeddings": 777}, 777),
        ("gpt2", {"n_positions": 333}, 333),
        ("mpt", {"max_seq_len": 444}, 444),
        ("gemma3", {"text_config": {"model_type": "gemma3_text", "max_position_embeddings": 555}}, 555),
        ("bloom", {}, 888),  # the tokenizer's
        ("phi3", {"max_position_embeddings": 9000, "original_max_position_embeddings": 1000, "pad_token_id": 0,
                  "hidden_size": 32, "num_attention_heads": 2,
                  "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}, 1000),
    ],
)  # fmt: skip
def test_the_longest_conversation_is_the_one_that_a_models_files_name(
    kind: str, more: dict[str, Any], context: int, tokenizer, tmp_path: Path
) -> None:
    AutoConfig.for_model(kind, **more).save_pretrained(tmp_path)
    _saved(tokenizer, tmp_path / "tokenizer")
    own = type(tokenizer).from_pretrained(tmp_path / "tokenizer", model_max_length=888)
    _saved(own, tmp_path)
    assert resolved(Settings(model=str(tmp_path), engine="http://localhost:1")).context == context
    if kind == "bloom":
        own.model_max_length = 10**30
        _saved(own, tmp_path)
        with pytest.raises(ValueError, match="gives no maximum length: set context="):
            context_of(str(tmp_path))
        assert context_of(str(tmp_path), context=100) == 100
    if kind == "phi3":
        with pytest.raises(ValueError, match=r"context=2000 .* set context to at most 1000"):
            context_of(str(tmp_path), context=2000)


def test_a_model_with_a_nested_configuration_is_played(tokenizer, chat) -> None:
    """Gemma 3 as it comes: the text model lies inside one that sees, and its configuration inside that one's."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "initializer_range": 0.2,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "image_size": 28})
    torch.manual_seed(0)
    policy = Policy(AutoModelForCausalLM.from_config(config).eval(), tokenizer, chat, "nested", 256, False, 5)
    engine = CachedEngine(policy, 2)
    history = {0: list(range(5, 45)), 1: list(range(60, 75))}
    engine.start({slot: list(ids) for slot, ids in history.items()})
    for slot, answer in engine.generate([0, 1], DRAWS, 0.0).items():
        expected = list(history[slot])
        for token in answer[: -len(chat.end)]:
            with torch.no_grad():
                assert policy.model(input_ids=torch.tensor([expected])).logits[0, -1].argmax() == token
            expected.append(token)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype: torch.dtype, policy: Policy, tmp_path: Path) -> None:
    model = policy.model.to(dtype)
    rows = [Row(tuple(range(5, 25)), (True,) * 20)] * 2
    losses = fit(model, rows, pad=policy.pad, folder=tmp_path, epochs=3, lr=1e-2, batch_size=2, seed=0)
    assert losses[-1]["loss"] < losses[0]["loss"] and model.dtype == dtype
    assert CachedEngine(policy, 1).memory > 0


# Memory


class Watched(CachedEngine):
    """Checks that the cache stays within memory, and counts the tokens that are read."""

    read = 0

    def _pass(self, slots: list[int], most: int | None = None) -> torch.Tensor:
        before = self.read_tokens
        logits = super()._pass(slots, most)
        tensors = [tensor for layer in self.layers for tensor in (layer.keys, layer.values)]
        assert sum(tensor.nbytes for tensor in tensors if tensor is not None) <= self.memory
        Watched.read += self.read_tokens - before
        return logits


def test_memory_changes_no_result(shop, policy: Policy, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With room for two conversations, or for one, the others wait and are read again."""
    expert = next(
        t for t in expert_trajectories(shop, "strong", shop.tasks("train"), seed=0) if t.failed and len(t) > 2
    )
    starts = [Start(task) for task in shop.tasks("train")[:5]] + [Start(expert.task, expert, index) for index in (1, 2)]

    def run() -> list[Trajectory]:
        Watched.read = 0
        return simulate(policy, shop, starts, seed=3, max_steps=7)

    monkeypatch.setattr(Policy, "engine", lambda self, slots: Watched(self, slots))
    expected, read = run(), [Watched.read]
    assert "slots" not in capsys.readouterr().out
    each = CachedEngine(policy, 1).token_bytes
    longest = max(len(policy.chat.render(t, [True] * len(t))[0]) for t in expected) + 100
    for conversations in (2, 1):
        monkeypatch.setattr(
            cached_engine, "available_memory", lambda device, tokens=conversations * longest: tokens * each
        )
        assert run() == expected
        assert f"slots={len(starts)}: the cache has room for " in capsys.readouterr().out
        read.append(Watched.read)
    assert max(read[1:]) > read[0], f"the waiting conversations are read again: {read}"
    monkeypatch.setattr(cached_engine, "available_memory", lambda device: 50 * each)
    with pytest.raises(ValueError, match=r"context=2048: a conversation of \d+ tokens .*slots="):
        run()


def test_rooms_grow_in_steps_and_only_as_far_as_needed(policy: Policy) -> None:
    engine = CachedEngine(replace(policy, constrained_decoding=False), 2)
    engine.start({0: [5] * 1500, 1: [6] * 20})
    engine.generate([0, 1], DRAWS, 0.0)
    assert 1500 < engine.plan.room <= 1500 + 256 + 32
    engine.append(0, [7] * 300)
    engine.generate([0], DRAWS, 0.0)
    assert 1800 < engine.plan.room < 2 * 1500, "rooms do not double"


def test_long_readings_come_in_pieces(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = replace(policy, constrained_decoding=False)
    prompts = {0: [5 + place % 90 for place in range(300)], 1: [7 + place % 80 for place in range(280)]}
    expected, widest = [], []
    for cells in (1 << 26, 300 * 40):
        monkeypatch.setattr(cached_engine, "_CELLS", cells)
        engine = CachedEngine(policy, 2)
        sizes: list[int] = []

        def watched(kind: str, config: Any, position: torch.Tensor, seen: int, dtype: torch.dtype, sizes=sizes) -> Any:
            sizes.append(position.numel() * seen)
            return attention_mask(kind, config, position, seen, dtype)

        monkeypatch.setattr(cached_engine, "attention_mask", watched)
        engine.start(prompts)
        expected.append(engine.generate([0, 1], DRAWS, 0.0))
        widest.append(max(sizes))
    assert expected[0] == expected[1] and widest[1] <= 300 * 40 < widest[0]


def test_a_large_output_layer_is_not_copied_for_each_row(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.model.requires_grad_(False)  # as under an adapter: PyTorch copies frozen weights only

    def first_pass() -> tuple[torch.Tensor, int]:
        engine = CachedEngine(policy, 3)
        engine.start({0: [5, 6, 7, 8], 1: [6, 7, 8], 2: [7, 8, 9, 10]})
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            logits = engine.next_logits([0, 1, 2])
        return logits, sum(event.count for event in profile.key_averages() if event.key == "aten::bmm")

    copied, products = first_pass()
    monkeypatch.setattr(cached_engine, "_LARGE_OUTPUT", 0)
    logits, fewer_products = first_pass()
    torch.testing.assert_close(logits, copied)
    assert fewer_products < products
