"""Kinds of training: all weights, optimizers, merged rows, flat batches, resuming from checkpoints."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from eef.agents.policy import Policy
from eef.experts import demonstrations
from eef.models.pretrain import make_model, save
from eef.selection import Example
from eef.training.checkpoints import Checkpoints
from eef.training.dpo import dpo
from eef.training.likelihoods import learnt_log_probabilities
from eef.training.precision import training_precision
from eef.training.rows import IGNORE, Row, collate, flatten, merge_prefix_rows, rows_of
from eef.training.sft import sft
from eef.trajectory import Trajectory, Turn

SETTINGS = {"epochs": 3, "lr": 5e-3, "batch_size": 4, "seed": 0}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.fixture(scope="module")
def examples(shop) -> list[Example]:
    return [Example(t, 0) for t in demonstrations(shop, shop.tasks("train")) if t.won][:11]


def trainable(base: str, **load) -> Policy:
    policy = Policy.load(base, **load)
    policy.new_adapter(seed=0, r=4, alpha=8)
    return policy


def steps_of(trajectory: Trajectory) -> list[Example]:
    """One example per step: only turn i carries loss, and nothing follows it."""
    return [Example(replace(trajectory, turns=trajectory.turns[: i + 1]), i) for i in range(len(trajectory))]


def in_float64(model):
    """A copy in double precision throughout: Llama's own norm computes in float32 for any input."""
    twin = copy.deepcopy(model).double()
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return twin


def gradients(model, batch) -> tuple[float, list[torch.Tensor]]:
    """Sum of the losses of the learnt tokens and its gradients, in the model's precision."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def items(rows: list[Row]) -> list[dict]:
    return [{"input_ids": row.ids, "mask": row.mask} for row in rows]


def equal(ours, theirs, atol: float) -> bool:
    return all(
        (a is None and b is None) or torch.allclose(a, b, atol=atol, rtol=0) for a, b in zip(ours, theirs, strict=True)
    )


def test_steps_of_one_trajectory_become_one_row_with_the_same_gradients_in_float64(policy: Policy, examples) -> None:
    steps = [row for example in examples[:3] for row in rows_of(policy, steps_of(example.trajectory))[0]]
    whole, _ = rows_of(policy, examples[:3])
    assert merge_prefix_rows(steps) == whole and len(steps) == sum(len(e.trajectory) for e in examples[:3])
    assert merge_prefix_rows(steps[::-1]) == whole[::-1], "a merged row takes the place of the first of its rows"
    model = in_float64(policy.model)
    merged_loss, merged_gradients = gradients(model, collate(items(whole), 0))
    steps_loss, steps_gradients = gradients(model, collate(items(steps), 0))
    assert merged_loss == pytest.approx(steps_loss, abs=1e-9) and merged_loss > 100
    assert equal(merged_gradients, steps_gradients, 1e-10)


def test_a_token_that_counts_twice_stays_in_two_rows(policy: Policy, examples) -> None:
    whole, late = examples[0], Example(examples[0].trajectory, 2)
    early = Example(replace(whole.trajectory, turns=whole.trajectory.turns[:1]), 0)
    rows, _ = rows_of(policy, [whole, late, early, whole])
    merged = merge_prefix_rows(rows)
    assert sum(sum(row.mask) for row in merged) == sum(sum(row.mask) for row in rows)
    assert [row.ids for row in merged] == [rows[0].ids] * 3
    assert [sum(row.mask) for row in merged] == [
        sum(rows[0].mask),
        sum(rows[1].mask) + sum(rows[2].mask),
        sum(rows[0].mask),
    ]


def test_a_common_prefix_is_merged_into_only_one_of_its_branches() -> None:
    stem = Row((1, 2, 3), (False, True, False))
    left, right = Row((1, 2, 3, 4), (False, False, False, True)), Row((1, 2, 3, 5), (False, False, False, True))
    merged = merge_prefix_rows([left, stem, right, Row((9, 9), (False, True))])
    assert [row.ids for row in merged] == [left.ids, right.ids, (9, 9)]
    assert sum(sum(row.mask) for row in merged) == 4 and sum(row.mask[1] for row in merged[:2]) == 1


def test_the_steps_of_a_trajectory_train_as_one_row(base: str, examples, tmp_path) -> None:
    report = sft(trainable(base), [e for one in examples[:2] for e in steps_of(one.trajectory)], tmp_path, **SETTINGS)
    assert report["rows"] == 2 and report["examples"] == sum(len(e.trajectory) for e in examples[:2])


def test_a_flat_batch_has_the_loss_and_gradients_of_a_padded_one_and_its_rows_are_independent(
    policy: Policy, examples
) -> None:
    model = in_float64(policy.model)
    assert model.config._attn_implementation == "sdpa"
    rows, _ = rows_of(policy, examples[:4])
    assert len({len(row.ids) for row in rows}) > 1
    batch = flatten(items(rows))
    assert batch["input_ids"].shape == (1, sum(len(row.ids) for row in rows)) and "attention_mask" not in batch
    padded, flat = gradients(model, collate(items(rows), 0)), gradients(model, batch)
    assert padded[0] == pytest.approx(flat[0], abs=1e-8)
    assert equal(padded[1], flat[1], 1e-9)
    leaking = gradients(model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
    assert abs(leaking[0] - flat[0]) > 1e-3, "this test detects rows that attend to each other"


def test_flat_batches_train_like_padded_ones(base: str, examples, tmp_path) -> None:
    weights = []
    for packing in ("padded", "flat"):
        policy = trainable(base)
        sft(policy, examples, tmp_path / packing, **SETTINGS, packing=packing)
        weights.append(torch.cat([w.flatten() for n, w in policy.model.named_parameters() if "lora_B" in n]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5) and weights[0].abs().max() > 1e-3


def killed_at(step: int):
    def on_step(now: int, steps: int, row: dict) -> None:
        if now == step:
            raise Killed

    return on_step


def pairs_of(examples) -> list[tuple[Trajectory, Trajectory]]:
    wins = [example.trajectory for example in examples]
    return [(w, Trajectory(w.task, w.prompt, (*w.turns[:1], Turn("click[buy now]", "")))) for w in wins]


@pytest.mark.parametrize(
    "kind", ["sft", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dpo", "full", "adamw_8bit"))]
)
def test_a_killed_training_resumes_to_equal_weights_and_losses(kind: str, base: str, examples, tmp_path) -> None:
    """3 epochs of 3 steps, killed in the middle of an epoch and right after the end of an epoch."""
    start = Policy.load if kind == "full" else trainable
    data = pairs_of(examples) if kind == "dpo" else examples
    more = {"optimizer": "adamw_8bit"} if kind == "adamw_8bit" else {}
    train = partial(dpo, beta=0.1) if kind == "dpo" else sft
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    whole = train(start(base), data, tmp_path / "whole", **SETTINGS, **more)
    work = {"work": tmp_path / "work", "checkpoint_minutes": 0.0}
    seen: list[int] = []
    for step in (3, 6, 8):  # each is reported before its checkpoint is written
        with pytest.raises(Killed):
            train(start(base), data, tmp_path / "killed", **SETTINGS, **more, **work, on_step=killed_at(step))
        saved = list((tmp_path / "work").glob("checkpoint-*"))
        assert [path.name for path in saved] == [f"checkpoint-{step - 1}"]
    (tmp_path / "work" / "checkpoint-8").mkdir()  # incomplete: it has no marker
    (tmp_path / "work" / "checkpoint-8" / "trainer_state.json").write_text("{")
    report = train(
        start(base), data, tmp_path / "killed", **SETTINGS, **more, **work, on_step=lambda now, *_: seen.append(now)
    )
    assert seen == list(range(1, 10)), "first the rows of the checkpoint, then the steps after it"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert report == whole
    assert not list((tmp_path / "work").glob("checkpoint-*"))


def test_short_trainings_write_no_checkpoint(base: str, examples, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Checkpoints, "on_save", lambda *_, **__: pytest.fail("a checkpoint was written"))
    sft(trainable(base), examples, tmp_path / "a", **SETTINGS, work=tmp_path / "work")
    assert not list((tmp_path / "work").glob("*"))


def test_full_tuning_moves_all_weights_and_loads_like_an_adapter(base: str, examples, tmp_path) -> None:
    policy = Policy.load(base)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    report = sft(policy, examples, tmp_path / "full", **{**SETTINGS, "epochs": 6})
    assert report["losses"][-1]["loss"] < report["losses"][0]["loss"] - 0.2
    assert all(not torch.equal(weight, before[name]) for name, weight in policy.model.named_parameters())
    again = Policy.load(base, tmp_path / "full")
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    assert again.constrained_decoding and again.chat.hash == policy.chat.hash
    with pytest.raises(ValueError, match="quantize='nf4'.*full model"):
        Policy.load(base, tmp_path / "full", quantize="nf4")
    with pytest.raises(ValueError, match="neither an adapter nor a model"):
        Policy.load(base, tmp_path)


def test_half_precision_is_trained_in_float32_and_saved_in_its_own_type(base: str, examples, tmp_path) -> None:
    policy = Policy.load(base, dtype="bfloat16")
    before, seen = policy.model.lm_head.weight.detach().clone(), set()

    def on_step(*_) -> None:
        seen.add(policy.model.lm_head.weight.dtype)

    report = sft(policy, examples, tmp_path / "half", **{**SETTINGS, "epochs": 6}, on_step=on_step)
    assert seen == {torch.float32} and before.dtype == torch.bfloat16 == policy.model.lm_head.weight.dtype
    assert report["losses"][-1]["loss"] < report["losses"][0]["loss"] - 0.2
    again = Policy.load(base, tmp_path / "half").model
    assert again.dtype == torch.bfloat16 and torch.equal(again.lm_head.weight, policy.model.lm_head.weight)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_trained_half_precision_model_is_freed_at_once(base: str, examples, tmp_path: Path, tune: str) -> None:
    """Its weights must not lie in memory beside those of the next stage until the garbage collector runs."""
    policy = Policy.load(base, dtype="bfloat16")
    if tune == "lora":
        policy.new_adapter(seed=0)
    sft(policy, examples, tmp_path / "trained", **{**SETTINGS, "epochs": 1})
    model = weakref.ref(policy.model)
    gc.collect()
    gc.disable()
    try:
        del policy
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_an_adapter_on_a_bfloat16_model_trains_in_mixed_precision_and_acts_in_bfloat16(
    base: str, examples, tmp_path, quantize: str | None
) -> None:
    policy = Policy.load(base, dtype="bfloat16", quantize=quantize)
    rest = {weight.dtype for name, weight in policy.model.named_parameters() if "proj" not in name}
    assert rest == {torch.bfloat16}, "4-bit layers leave all other weights as they are"
    policy.new_adapter(seed=0)
    first = next(module for module in policy.model.modules() if hasattr(module, "lora_A"))
    types = set()

    def on_forward(module, arguments, output) -> None:
        if module.training:
            types.update((arguments[0].dtype, output.dtype))

    first.lora_A.default.register_forward_hook(on_forward)
    report = sft(policy, examples, tmp_path / "adapter", **{**SETTINGS, "epochs": 6})
    assert types == {torch.bfloat16}
    adapter = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert report["losses"][-1]["loss"] < report["losses"][0]["loss"] - 0.2
    acting = Policy.load(base, tmp_path / "adapter", dtype="bfloat16", quantize=quantize).model
    assert {weight.dtype for name, weight in acting.named_parameters() if "lora_" in name} == {torch.bfloat16}
    again = Policy.load(base, tmp_path / "adapter", dtype="bfloat16", quantize=quantize, trainable=True).model
    for name, weight in again.named_parameters():
        assert "lora_" not in name or torch.equal(weight, adapter[name])


def test_an_adapter_on_a_float16_model_needs_the_loss_scaling_of_a_gpu(base: str, examples, tmp_path) -> None:
    """In float16 small gradients become zero."""
    policy = Policy.load(base, dtype="float16")
    policy.new_adapter(seed=0)
    if torch.cuda.is_available():
        losses = sft(policy, examples, tmp_path, **{**SETTINGS, "epochs": 6})["losses"]
        assert losses[-1]["loss"] < losses[0]["loss"] - 0.2
        return
    pairs = [(examples[0].trajectory, examples[1].trajectory)]
    for train in (sft, partial(dpo, beta=0.1)):
        with pytest.raises(ValueError, match=r"float16 model trains on a GPU alone: set dtype='bfloat16' or 'float32'"):
            train(policy, examples if train is sft else pairs, tmp_path, **SETTINGS)


def test_mixed_precision_gives_the_gradients_of_float32_adapters(base: str, examples) -> None:
    policy = Policy.load(base, dtype="bfloat16")
    policy.new_adapter(seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02, generator=generator)
    rows, _ = rows_of(policy, examples)
    batch = collate([{"input_ids": row.ids, "mask": row.mask} for row in rows[:2]], policy.pad)
    gradients = []
    for context in (training_precision(policy.model), nullcontext()):
        with context:
            loss = -learnt_log_probabilities(policy.model, batch).sum()
        loss.backward()
        weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
        policy.model.zero_grad()
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert 0 < difference < 0.01


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_first_loss_of_dpo_is_that_of_equal_policies_in_half_precision(base: str, shop, tmp_path, tune) -> None:
    """The reference is computed in the precision of training."""
    policy = Policy.load(base, dtype="bfloat16")
    if tune == "lora":
        policy.new_adapter(seed=0)
    wins = demonstrations(shop, shop.tasks("train")[:2])
    settings = {"updates": 1, "lr": 1e-9, "batch_size": 2, "seed": 0}
    losses = dpo(policy, [(wins[0], wins[1])] * 2, tmp_path, beta=0.5, **settings)["losses"]
    assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_gradient_checkpointing_changes_no_weight(base: str, examples, tmp_path) -> None:
    weights = []
    for checkpointing in (False, True):
        policy = trainable(base)
        sft(policy, examples, tmp_path / str(checkpointing), **SETTINGS, gradient_checkpointing=checkpointing)
        assert not policy.model.is_gradient_checkpointing
        weights.append((tmp_path / str(checkpointing) / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_invalid_options_are_named(base: str, examples, tmp_path) -> None:
    for wrong, words in (
        ({"optimizer": "sgd"}, "optimizer='sgd' must be one of 'adamw_torch', 'adamw_8bit', 'paged_adamw_8bit'"),
        ({"optimizer": "paged_adamw_8bit"}, "no GPU here: set optimizer='adamw_8bit' or 'adamw_torch'"),
        ({"packing": "packed"}, "packing='packed' must be one of 'auto', 'padded', 'flat'"),
        ({"micro_batch_size": 3}, "batch_size 4 is not a multiple of micro_batch_size 3"),
    ):
        if torch.cuda.is_available() and wrong == {"optimizer": "paged_adamw_8bit"}:
            continue
        with pytest.raises(ValueError, match=words):
            sft(trainable(base), examples, tmp_path, **SETTINGS, **wrong)
    with pytest.raises(ValueError, match="dtype='int8' must be one of 'auto', 'float32'"):
        Policy.load(base, dtype="int8")


def test_four_bit_training_resumes_from_a_checkpoint(tokenizer, examples, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = str(save(make_model(tokenizer, 64, 1, 2), tokenizer, tmp_path / "base", {"aliases": "webshop"}))
    settings = {**SETTINGS, "gradient_checkpointing": True, "optimizer": "adamw_8bit"}
    work = {"work": tmp_path / "work", "checkpoint_minutes": 0.0}
    sft(trainable(base, quantize="nf4"), examples, tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        sft(trainable(base, quantize="nf4"), examples, tmp_path / "b", **settings, **work, on_step=killed_at(6))
    sft(trainable(base, quantize="nf4"), examples, tmp_path / "b", **settings, **work)
    both = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "b")]
    assert both[0] == both[1]
