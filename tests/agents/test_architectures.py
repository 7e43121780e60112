"""Acting equals training for every architecture that is accepted; the others are refused with a message.

The models are tiny. Their random weights are large enough to make one next token clearly the most likely, and their
windows and chunks have a few tokens, so that a conversation spans several.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eef.agents import cached_engine
from eef.agents.attention_masks import attention_mask
from eef.agents.cached_engine import CachedEngine
from eef.agents.chat import Chat
from eef.agents.policy import Policy
from eef.envs.webshop.pretraining import vocabulary
from eef.lab import resolved
from eef.models.pretrain import word_tokenizer
from eef.settings import Settings
from eef.training.likelihoods import learnt_log_probabilities
from eef.training.rows import Row, collate, flatten
from eef.training.sft import fit

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ACCEPTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen2, windows": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {},
    "gemma2": {**MIXED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {**MIXED, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": 8, "pad_token_id": 0},
    "olmo2": {},
    "olmo3": MIXED,
    "cohere2": MIXED,
    "gpt_oss": {**MIXED, **EXPERTS},
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
    "gpt_neox": {},
    "llama4_text": {
        "attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0] * 2,
        "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2, **EXPERTS,
    },
    "qwen3_moe": {**EXPERTS, "mlp_only_layers": [], "decoder_sparse_step": 1},
    "mixtral": {**EXPERTS, "sliding_window": 8},
    "olmoe": {**EXPERTS, "pad_token_id": 0},
    "granite": {},
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
    "starcoder2": {"sliding_window": 8},
    "gpt2": {"n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "phi": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "deepseek_v3": {
        "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        **EXPERTS, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    },
    "glm4": {"partial_rotary_factor": 0.5, "pad_token_id": 0},
    "ministral": MIXED,
    "exaone4": {**MIXED, "sliding_window_pattern": 2},
}  # fmt: skip

SEEN_TOGETHER = {"falcon", "gpt_oss"}  # in a flat batch, their code lets rows attend to each other


@lru_cache
def words() -> tuple[Any, Chat]:
    tokenizer = word_tokenizer(vocabulary())
    return tokenizer, Chat.of(tokenizer, aliases="webshop")


def policy_of(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> Policy:
    tokenizer, chat = words()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.2, **SIZES, **ends}
    sizes = {**sizes, **ACCEPTED.get(name, {}), **more}
    config = AutoConfig.for_model(name.partition(",")[0], **{k: v for k, v in sizes.items() if v is not None})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name_, weight in model.named_parameters():
        if "sinks" in name_ or "bias" in name_:
            torch.nn.init.normal_(weight, std=0.5)
    return Policy(model, tokenizer, chat, name, 256, False, 6)


def greedy(policy: Policy, history: list[int]) -> list[int]:
    """The plain forward pass, which reads the whole conversation again for each token."""
    end, answer = list(policy.chat.end), []
    while len(answer) < policy.max_new_tokens:
        with torch.no_grad():
            answer.append(int(policy.model(input_ids=torch.tensor([history + answer])).logits[0, -1].argmax()))
        if answer[-len(end) :] == end:
            return answer
        if policy.ends(answer[-1]):
            return answer[:-1] + end
    return answer + end


def played(policy: Policy, compare: bool = True) -> tuple[list[list[int]], list[list[tuple[int, torch.Tensor]]]]:
    """Conversations of several turns and different lengths, one of which is replaced, and the log-probabilities.

    The latter are pairs of a place and the engine's log-probabilities of the token there.
    """
    rng = np.random.default_rng(1)
    new = lambda count: rng.integers(5, len(policy.tokenizer), count).tolist()  # noqa: E731
    engine = CachedEngine(policy, 3)
    history = {0: new(30), 1: new(4), 2: new(17)}
    seen: dict[int, list[tuple[int, torch.Tensor]]] = {slot: [] for slot in history}
    next_logits = engine.next_logits

    def watched(slots: list[int]) -> torch.Tensor:
        logits = next_logits(slots)
        for slot, row in zip(slots, logits, strict=True):
            seen[slot].append((len(engine.cached[slot]), row.log_softmax(-1)))
        return logits

    engine.next_logits = watched  # type: ignore[method-assign]
    finished = []
    engine.start({slot: list(ids) for slot, ids in history.items()})
    for turn in range(3):
        slots = [0, 2] if turn == 1 else list(history)
        answers = engine.generate(slots, {slot: (lambda: 0.0) for slot in slots}, 0.0)
        for slot in slots:
            if compare:
                assert answers[slot] == greedy(policy, history[slot])
            history[slot] += answers[slot]
        for slot in slots:
            if turn == 1 and slot == 0:
                finished.append((history[0], seen[0]))
                history[0], seen[0] = history[2][:20] + new(6), []
                engine.start({0: list(history[0])})
            else:
                more = new(int(rng.integers(1, 14)))
                engine.append(slot, more)
                history[slot] += more
    finished += [(history[slot], seen[slot]) for slot in history]
    return [ids for ids, _ in finished], [pairs for _, pairs in finished]


def trained(policy: Policy, rows: list[list[int]], flat: bool = False) -> list[torch.Tensor]:
    """Log-probabilities of the Trainer's forward pass over these rows, one tensor per row."""
    items = [{"input_ids": ids, "mask": [True] * len(ids)} for ids in rows]
    batch = flatten(items) if flat else collate(items, policy.pad)
    policy.model.train()
    with torch.no_grad():
        logs = policy.model(**batch).logits.float().log_softmax(-1)
    policy.model.eval()
    if not flat:
        return [logs[place, : len(ids)] for place, ids in enumerate(rows)]
    return list(logs[0].split([len(ids) for ids in rows]))


@pytest.mark.parametrize("name", ACCEPTED)
def test_acting_equals_training(name: str) -> None:
    policy = policy_of(name)
    rows, pairs = played(policy)
    for flat in (False, True)[: 1 if name in SEEN_TOGETHER else 2]:
        worst = 0.0
        for logs, seen in zip(trained(policy, rows, flat), pairs, strict=True):
            worst = max(worst, *(float((row - logs[place - 1]).abs().max()) for place, row in seen))
        assert worst < 1e-4, f"flat={flat}"


@pytest.mark.parametrize("name", ACCEPTED)
def test_training_computes_only_the_logits_of_learnt_tokens(name: str) -> None:
    policy = policy_of(name)
    items = [
        {"input_ids": list(range(5, 5 + size)), "mask": [place % 3 == 2 for place in range(size)]} for size in (40, 17)
    ]
    batch = collate(items, policy.pad)
    with torch.no_grad():
        logs = policy.model(**batch).logits.float().log_softmax(-1)
        learnt = learnt_log_probabilities(policy.model, batch)
    expected = [
        logs[row, place - 1, item["input_ids"][place]]
        for row, item in enumerate(items)
        for place in range(2, len(item["input_ids"]), 3)
    ]
    assert torch.allclose(learnt, torch.stack(expected), atol=1e-4)


@pytest.mark.parametrize("name", sorted(SEEN_TOGETHER))
def test_flat_batches_are_refused_where_rows_would_see_each_other(name: str, tmp_path: Path) -> None:
    policy = policy_of(name)
    rows = [Row(tuple(range(start, start + 8)), (True,) * 8) for start in (5, 20)]
    with pytest.raises(ValueError, match="set packing='padded'"):
        fit(
            policy.model, rows, pad=policy.pad, folder=tmp_path, epochs=1, lr=1e-3, batch_size=2, seed=0, packing="flat"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt_oss"])
def test_half_precision_acts_as_it_trains(name: str, dtype: torch.dtype) -> None:
    """Half the scale, so that rounding does not decide between the next tokens."""
    policy = policy_of(name, dtype, initializer_range=0.1)
    rows, pairs = played(policy, compare=False)
    differences = [
        float((row.exp() - logs[place - 1].exp()).abs().sum() / 2)
        for logs, seen in zip(trained(policy, rows), pairs, strict=True)
        for place, row in seen
    ]
    assert np.median(differences) < 0.05, "half the distance of the distributions of the next token"


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "llama4_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_that_acts_differently_is_refused(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows are longer than the conversations: the check shortens them and then restores them."""
    policy = policy_of(kind, dtype)
    config = policy.model.config
    size = "attention_chunk_size" if kind == "llama4_text" else "sliding_window"
    setattr(config, size, 100)
    monkeypatch.setattr(cached_engine, "attention_mask", lambda kind, *rest: attention_mask("full_attention", *rest))
    with pytest.raises(ValueError, match=f"model='{kind}': .*acts differently .* use vLLM: engine="):
        CachedEngine(policy, 2)
    monkeypatch.undo()
    assert getattr(config, size) == 100
    CachedEngine(policy, 2)
    assert getattr(config, size) == 100 and policy.checked is not None
    monkeypatch.setattr("eef.agents.cached_engine.check", lambda *inputs: pytest.fail("checked again"))
    CachedEngine(policy, 2)


REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {}, "mamba2": {}, "rwkv": {}, "jamba": {}, "bamba": {},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "falcon_h1": {}, "nemotron_h": {}, "qwen3_next": {}, "qwen3_5_text": {}, "recurrent_gemma": {}, "zamba2": {},
    "bloom": {}, "mpt": {}, "minimax": {},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_architecture_is_refused_before_weights_are_loaded(name: str, tmp_path: Path) -> None:
    AutoConfig.for_model(name, **REFUSED[name]).save_pretrained(tmp_path)
    settings = Settings(model=str(tmp_path), context=512)
    with pytest.raises(ValueError, match=r"model=.*(state that our engine cannot cache|position_ids).*engine="):
        resolved(settings)
    played_by_server = Settings(model=str(tmp_path), context=512, engine="http://localhost:8000")
    assert resolved(played_by_server).context == 512


def test_a_loaded_model_with_a_state_is_refused_too() -> None:
    tokenizer, chat = words()
    config = AutoConfig.for_model("mamba", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    policy = Policy(AutoModelForCausalLM.from_config(config), tokenizer, chat, "a mamba", 256)
    with pytest.raises(ValueError, match="model='a mamba': MambaForCausalLM has layers .*use vLLM"):
        CachedEngine(policy, 1)


def test_an_encoder_decoder_is_not_a_causal_language_model(tmp_path: Path) -> None:
    words()[0].save_pretrained(tmp_path)
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(t5\) is not a causal language model"):
        Policy.load(str(tmp_path))


def test_windows_that_the_configuration_names_but_the_code_ignores(tmp_path: Path) -> None:
    """Checkpoints converted from another architecture may have such entries."""
    policy = policy_of("llama", sliding_window=8)
    rows, pairs = played(policy)
    logs = trained(policy, rows)
    assert all(
        torch.allclose(row, logs[place][at - 1], atol=1e-4) for place, seen in enumerate(pairs) for at, row in seen
    )
