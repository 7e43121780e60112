from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from eef.agents.policy import Policy
from eef.experts import demonstrations
from eef.models.pretrain import save
from eef.selection import Example
from eef.settings import ModelSettings, PreferenceSettings, TrainingSettings
from eef.training import likelihoods
from eef.training.dpo import dpo, preference_losses
from eef.training.likelihoods import learnt_log_probabilities, log_likelihoods
from eef.training.rows import IGNORE, Row, collate, flatten, rows_of
from eef.training.sft import fit, sft
from eef.training.stages import FineTuning, PreferenceTuning, _dpo_training
from eef.trajectory import Trajectory, Turn, without_loss

SETTINGS = {"epochs": 2, "lr": 5e-3, "batch_size": 4, "seed": 0}


@pytest.fixture
def trainable(policy: Policy, tmp_path) -> Policy:
    base = save(policy.model, policy.tokenizer, tmp_path / "base", {"aliases": "webshop", "constrained_decoding": True})
    loaded = Policy.load(str(base))
    loaded.new_adapter(seed=0, r=4, alpha=8)
    return loaded


@pytest.fixture(scope="module")
def examples(shop) -> list[Example]:
    return [Example(t, 0) for t in demonstrations(shop, shop.tasks("train")) if t.won]


def test_labels_are_the_masked_tokens_and_padding_is_ignored() -> None:
    rows = [Row((5, 6, 7), (False, True, True)), Row((8, 9), (False, True))]
    batch = collate([{"input_ids": row.ids, "mask": row.mask} for row in rows], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [IGNORE, 9, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_the_loss_is_the_mean_over_the_learnt_tokens_only(policy: Policy, examples) -> None:
    rows, _ = rows_of(policy, [Example(examples[0].trajectory, 2)])
    batch = collate([{"input_ids": rows[0].ids, "mask": rows[0].mask}], pad=policy.pad)
    with torch.no_grad():
        output = policy.model(**batch)
        logs = output.logits[0].log_softmax(-1)
    expected = [
        -logs[place - 1, token] for place, (token, m) in enumerate(zip(rows[0].ids, rows[0].mask, strict=True)) if m
    ]
    assert torch.isclose(output.loss, torch.stack(expected).mean(), atol=1e-6)
    learnt = policy.tokenizer.decode([t for t, m in zip(rows[0].ids, rows[0].mask, strict=True) if m])
    assert learnt.count("<end>") == len(examples[0].trajectory) - 2


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("keeps", [False, True], ids=["all logits", "kept logits"])
def test_logits_of_learnt_tokens_alone_give_the_same_loss_and_gradients(
    policy: Policy, examples, flat: bool, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(policy.model).double()
    for weight in model.parameters():
        weight.requires_grad_(True)
    rows, _ = rows_of(policy, [examples[0], Example(examples[1].trajectory, 2), examples[2]])
    items = [{"input_ids": row.ids, "mask": row.mask} for row in rows]
    batch = flatten(items) if flat else collate(items, pad=policy.pad)
    targets = batch["labels"][:, 1:].flatten()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = torch.nn.functional.cross_entropy(model(**inputs).logits[:, :-1].flatten(0, 1), targets)
    expected.backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    shapes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:-1])))
    monkeypatch.setattr(likelihoods, "_can_keep_logits", lambda _: keeps)
    loss = -learnt_log_probabilities(model, batch).mean()
    loss.backward()
    learnt = sum(map(sum, (row.mask for row in rows)))
    assert shapes == [(learnt,) if keeps else tuple(batch["input_ids"].shape)]
    assert torch.isclose(loss, expected, atol=1e-9)
    ours = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(ours) == len(gradients) > 10
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(ours, gradients, strict=True))


def test_training_lowers_the_loss_changes_only_the_adapter_and_is_reproducible(
    policy: Policy, examples, tmp_path
) -> None:
    base = save(policy.model, policy.tokenizer, tmp_path / "base", {"aliases": "webshop", "constrained_decoding": True})
    examples, weights, losses = examples[:8], [], []
    for name in ("a", "b"):
        loaded = Policy.load(str(base))
        loaded.new_adapter(seed=0, r=4, alpha=8)
        before = {n: w.clone() for n, w in loaded.model.named_parameters() if "lora" not in n}
        report = sft(loaded, examples, tmp_path / name, **{**SETTINGS, "epochs": 6})
        assert all(torch.equal(w, before[n]) for n, w in loaded.model.named_parameters() if "lora" not in n)
        weights.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
        losses = report["losses"]
        assert report["examples"] == len(examples) and report["dropped"] == 0
        assert report["learnt_tokens"] < report["tokens"]
    assert weights[0] == weights[1]
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.2


def test_updates_count_optimiser_steps_instead_of_epochs(policy: Policy, tmp_path, examples) -> None:
    """As many updates as the epochs have give the same weights; the schedule spans the updates."""
    base = save(policy.model, policy.tokenizer, tmp_path / "base", {"aliases": "webshop"})
    weights, losses = [], []
    for length in ({"epochs": 3}, {"updates": 6}, {"updates": 10, "warmup_ratio": 0.5}):
        loaded = Policy.load(str(base))
        loaded.new_adapter(seed=0, r=4, alpha=8)
        rows, _ = rows_of(loaded, examples[:8])
        losses.append(fit(loaded.model, rows, pad=0, folder=tmp_path, **{**SETTINGS, **length}))
        weights.append(torch.cat([w.flatten() for n, w in loaded.model.named_parameters() if "lora_B" in n]))
    assert torch.equal(weights[0], weights[1]) and losses[0] == losses[1] and losses[0][-1]["step"] == 6
    rates = [row["learning_rate"] for row in losses[2]]
    assert len(rates) == 10 and rates.index(max(rates)) == 5 and 0 < rates[-1] < 0.1 * rates[5]


def test_dpo_has_epochs_of_its_own_and_no_updates() -> None:
    settings = TrainingSettings(updates=7), PreferenceSettings(dpo_epochs=2, dpo_lr=1e-5)
    inputs = PreferenceTuning(ModelSettings(), None, *settings, [], Path(), 0)
    training = _dpo_training(inputs)
    assert (training.epochs, training.updates, training.lr) == (2.0, None, 1e-5) and "0 pairs, 2 epochs" in inputs.size
    assert "3 examples, 7 updates, 8 a step" in FineTuning(ModelSettings(), None, settings[0], [1, 2, 3], None, 0).size


def test_accumulated_batches_train_like_undivided_ones(policy: Policy, tmp_path, examples) -> None:
    base = save(policy.model, policy.tokenizer, tmp_path / "base", {"aliases": "webshop"})
    weights = []
    for micro_batch_size in (8, 2):
        loaded = Policy.load(str(base))
        loaded.new_adapter(seed=0, r=4, alpha=8)
        rows, _ = rows_of(loaded, examples[:8])
        fit(
            loaded.model,
            rows,
            pad=0,
            folder=tmp_path,
            epochs=1,
            lr=1e-3,
            batch_size=8,
            micro_batch_size=micro_batch_size,
            seed=0,
        )
        weights.append(torch.cat([w.flatten() for n, w in loaded.model.named_parameters() if "lora_B" in n]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_nothing_to_learn_is_an_error(trainable: Policy, examples, tmp_path) -> None:
    with pytest.raises(ValueError, match="no training example"):
        sft(trainable, [], tmp_path, **SETTINGS)
    masked = Example(without_loss(examples[0].trajectory, range(99)), 0)
    with pytest.raises(ValueError, match="no token carries loss in 1 training examples: "):
        sft(trainable, [masked], tmp_path, **SETTINGS)
    long = Example(Trajectory("0", "word " * 3000, (Turn("click[buy now]", ""),), 1.0, True), 0)
    with pytest.raises(ValueError, match="no token carries loss in 2 training examples, of which 1 exceed the context"):
        sft(trainable, [masked, long], tmp_path, **SETTINGS)


def test_examples_beyond_the_context_are_dropped_and_counted(trainable: Policy, examples, tmp_path) -> None:
    long = Trajectory("0", "word " * 3000, (Turn("click[buy now]", ""),), 1.0, True)
    report = sft(trainable, [*examples[:3], Example(long, 0)], tmp_path, **SETTINGS)
    assert report["dropped"] == 1 and report["examples"] == 3
    with pytest.raises(ValueError, match="all 1 examples exceed the context"):
        sft(trainable, [Example(long, 0)], tmp_path, **SETTINGS)


def test_log_likelihoods_are_sums_over_the_learnt_tokens(policy: Policy, examples) -> None:
    rows, _ = rows_of(policy, [Example(examples[0].trajectory, 2), examples[1]])
    batch = collate([{"input_ids": row.ids, "mask": row.mask} for row in rows], pad=policy.pad)
    with torch.no_grad():
        both = log_likelihoods(policy.model, batch)
        for row, value in zip(rows, both, strict=True):
            logs = policy.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            expected = sum(
                logs[at - 1, token] for at, (token, m) in enumerate(zip(row.ids, row.mask, strict=True)) if m
            )
            assert torch.isclose(value, torch.as_tensor(expected), atol=1e-3)


def test_dpo_equals_its_formula_on_two_pairs_in_float64(policy: Policy, examples) -> None:
    """Value and gradient of -log sigmoid(beta ((log pi - log ref)(won) - (log pi - log ref)(lost))), token by token."""
    model, reference = (copy.deepcopy(policy.model).double() for _ in range(2))
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    wins = [Row(row.ids[:150], row.mask[:150]) for row in rows_of(policy, examples[:2])[0]]
    losses = [Row(row.ids[:90], row.mask[:90]) for row in rows_of(policy, examples[2:4])[0]]

    def log_likelihood(of, row: Row) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        logits = of(input_ids=torch.tensor([row.ids])).logits[0]
        for place in range(1, len(row.ids)):
            if row.mask[place]:
                total = total + logits[place - 1, row.ids[place]] - torch.logsumexp(logits[place - 1], -1)
        return total

    expected = torch.zeros((), dtype=torch.float64)
    for won, lost in zip(wins, losses, strict=True):
        gains = [log_likelihood(model, row) - log_likelihood(reference, row).detach() for row in (won, lost)]
        expected = expected + torch.log1p(torch.exp(-0.3 * (gains[0] - gains[1]))) / 2
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)

    batch = collate([{"input_ids": row.ids, "mask": row.mask} for row in (*wins, *losses)], pad=policy.pad)
    with torch.no_grad():
        batch["reference"] = log_likelihoods(reference, batch).reshape(2, 2)
    loss = preference_losses(model, batch, 0.3).mean()
    assert (
        loss.dtype == torch.float64
        and abs(float((loss - expected).detach())) < 1e-10
        and float(loss.detach()) != pytest.approx(0.6931, abs=1e-3)
    )
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), gradients, strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_dpo_starts_at_log_two_and_prefers_wins(trainable: Policy, examples, tmp_path) -> None:
    wins = [example.trajectory for example in examples[:8]]
    pairs = [(w, Trajectory(w.task, w.prompt, (*w.turns[:1], Turn("click[buy now]", "")))) for w in wins]
    report = dpo(trainable, pairs, tmp_path, beta=0.1, epochs=8, lr=5e-3, batch_size=4, seed=0)
    losses = [row["loss"] for row in report["losses"]]
    assert losses[0] == pytest.approx(0.6931, abs=2e-3) and losses[-1] < 0.5
    assert report["pairs"] == 8 and report["dropped"] == 0 and report["ordered"] == 1.0
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_pairs_beyond_the_context_are_dropped_and_no_pair_is_an_error(trainable: Policy, examples, tmp_path) -> None:
    won = examples[0].trajectory
    long = Trajectory(won.task, "word " * 3000, (Turn("click[buy now]", ""),))
    with pytest.raises(ValueError, match="no pair to learn from .1 exceed the context"):
        dpo(trainable, [(won, long)], tmp_path, beta=0.1, epochs=1, lr=1e-3, batch_size=4, seed=0)
