"""Weights of examples in SFT, and the likelihood term of DPO: their losses, and that nothing changes without them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eef.agents.policy import Policy
from eef.experts import demonstrations
from eef.models.pretrain import save
from eef.selection import Example
from eef.settings import ModelSettings, PreferenceSettings, TrainingSettings
from eef.tracking.stages import key_of
from eef.training.dpo import dpo, preference_losses
from eef.training.likelihoods import log_likelihoods
from eef.training.rows import Row, collate, flatten, merge_prefix_rows, rows_of
from eef.training.sft import RowTrainer, sft
from eef.training.stages import FineTuning, PreferenceTuning, _main, fine_tune
from eef.trajectory import Trajectory, Turn


@pytest.fixture
def base(policy: Policy, tmp_path: Path) -> str:
    options = {"aliases": "webshop", "constrained_decoding": True}
    return str(save(policy.model, policy.tokenizer, tmp_path / "base", options))


@pytest.fixture(scope="module")
def examples(shop) -> list[Example]:
    return [Example(t, 0) for t in demonstrations(shop, shop.tasks("train")) if t.won][:6]


class Ranks:
    num_processes = 1


@pytest.mark.parametrize("layout", [flatten, lambda items: collate(items, pad=0)], ids=["flat", "padded"])
def test_the_loss_of_a_token_is_multiplied_by_its_weight_and_divided_by_the_number_of_tokens(
    policy: Policy, examples, layout: Any
) -> None:
    model = copy.deepcopy(policy.model).double()
    weighted = [replace(examples[0], weight=0.25), examples[1], replace(examples[2], weight=3.0)]
    rows, _ = rows_of(policy, weighted)
    trainer = RowTrainer.__new__(RowTrainer)
    trainer.accelerator = Ranks()  # type: ignore[assignment]
    tokens = sum(sum(row.mask) for row in rows)
    with torch.no_grad():
        sums = log_likelihoods(model, collate([row.item for row in rows], pad=0))
        loss = trainer.compute_loss(model, layout([row.item for row in rows]), num_items_in_batch=tokens)
    expected = -(0.25 * sums[0] + sums[1] + 3 * sums[2]) / tokens
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    plain = layout([replace(row, weights=()).item for row in rows])
    assert "weights" not in plain and "weights" in layout([row.item for row in rows])


def test_a_merged_row_has_the_weight_of_the_row_in_which_a_token_carries_loss() -> None:
    long = Row((1, 2, 3, 4, 5), (False, False, True, False, True), (0.5,) * 5)
    short, middle = Row((1, 2), (False, True), (0.2, 0.2)), Row((1, 2, 3, 4), (False, False, False, True))
    (merged,) = merge_prefix_rows([short, long, middle])
    assert (merged.ids, merged.mask) == ((1, 2, 3, 4, 5), (False, True, True, True, True))
    assert merged.weights[1:] == (0.2, 0.5, 1.0, 0.5)
    (unweighted,) = merge_prefix_rows([replace(row, weights=()) for row in (short, long, middle)])
    assert unweighted.weights == ()


def test_without_weights_and_likelihood_keys_and_files_are_as_before(policy: Policy, base: str, tmp_path: Path) -> None:
    won = Trajectory("1", "s0", (Turn("click[buy now]", "end"),), 1.0, True)
    assert set(key_of(Example(won, 0))) == {"trajectory", "learn_from"} == set(key_of(Example(won, 0, 1)))
    assert key_of(Example(won, 0, 0.5))["weight"] == 0.5
    assert set(key_of(PreferenceSettings())) == {"dpo_beta", "dpo_lr", "dpo_epochs"}
    assert key_of(PreferenceSettings(dpo_likelihood=0.1))["dpo_likelihood"] == 0.1
    model, training = ModelSettings(model=base), TrainingSettings(epochs=1.0)
    one, other = (FineTuning(model, policy.chat, training, [Example(won, 0, w)], None, 0) for w in (1.0, 0.5))
    assert key_of(one) != key_of(other)
    pairs = [(won, replace(won, won=False, reward=0.0))]
    keys = [
        key_of(PreferenceTuning(model, policy.chat, training, PreferenceSettings(dpo_likelihood=c), pairs, tmp_path, 0))
        for c in (0.0, 0.5)
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight: float, examples) -> None:
    with pytest.raises(ValueError, match="of an example must be a positive number: leave the example out"):
        replace(examples[0], weight=weight)


def test_weights_of_one_change_no_byte_and_others_reach_every_process(
    policy: Policy, base: str, examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingSettings(epochs=1.0, lora_r=4, lora_alpha=8, batch_size=2)
    adapters, files = {}, {}
    for name, weights in (("none", [1.0] * 6), ("some", [0.1, 1.0, 0.1, 1.0, 0.1, 1.0])):
        weighted = [replace(example, weight=weight) for example, weight in zip(examples, weights, strict=True)]
        inputs = FineTuning(ModelSettings(model=base), policy.chat, training, weighted, None, 0)
        folder = tmp_path / name
        fine_tune(inputs, folder, tmp_path / f"{name}-work", lambda *_: None)
        files[name] = (folder / "learn_from.json").read_text()
        adapters[name] = (folder / "adapter_model.safetensors").read_bytes()
    loaded = Policy.load(base)
    loaded.new_adapter(seed=0, r=4, alpha=8)
    sft(loaded, [Example(e.trajectory, 0) for e in examples], tmp_path / "direct", training, seed=0)
    assert (tmp_path / "direct" / "adapter_model.safetensors").read_bytes() == adapters["none"] != adapters["some"]
    assert "weights" not in files["none"] and '"weights"' in files["some"]
    read: list[Any] = []
    monkeypatch.setattr("eef.training.stages.run_job", lambda job, data, *_: read.extend(data) or {})
    (tmp_path / "some" / "job.json").write_text('{"kind": "sft"}')
    _main(tmp_path / "some")
    assert [example.weight for example in read] == [0.1, 1.0, 0.1, 1.0, 0.1, 1.0]


def test_the_likelihood_term_is_the_loss_per_token_of_wins(policy: Policy, examples) -> None:
    won, lost = (rows_of(policy, [example])[0][0] for example in examples[:2])
    batch = collate([won.item, lost.item], pad=policy.pad)
    with torch.no_grad():
        logs = log_likelihoods(policy.model, batch)
        batch["reference"] = logs.reshape(2, 1) - torch.tensor([[0.5], [-0.5]])
        plain, more = (preference_losses(policy.model, batch, 0.3, c) for c in (0.0, 0.7))
    assert float(plain[0]) == pytest.approx(float(torch.log1p(torch.exp(torch.tensor(-0.3)))), abs=1e-5)
    assert float(more[0] - plain[0]) == pytest.approx(-0.7 * float(logs[0]) / sum(won.mask), rel=1e-4)


def test_the_likelihood_term_keeps_wins_likely(base: str, examples, tmp_path: Path) -> None:
    wins = [example.trajectory for example in examples]
    pairs = [(w, Trajectory(w.task, w.prompt, (*w.turns[:1], Turn("click[buy now]", "")))) for w in wins]
    likelihoods = []
    for likelihood in (0.0, 2.0):
        policy = Policy.load(base)
        policy.new_adapter(seed=0, r=4, alpha=8)
        dpo(
            policy, pairs, tmp_path / str(likelihood), beta=0.1, likelihood=likelihood, epochs=4, lr=5e-3,
            batch_size=3, seed=0,
        )  # fmt: skip
        rows, _ = rows_of(policy, examples)
        with torch.no_grad():
            likelihoods.append(float(log_likelihoods(policy.model, collate([r.item for r in rows], 0)).mean()))
    assert likelihoods[1] > likelihoods[0] + 1
