"""A training that diverges stops with one message and saves nothing; each step is reported once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from eef import trajectory
from eef.agents.policy import Policy
from eef.experts import demonstrations
from eef.models.pretrain import make_model, save
from eef.selection import Example
from eef.tracking.runs import write_json
from eef.training import sft as sft_module
from eef.training import trainer
from eef.training.dpo import dpo
from eef.training.rows import rows_of
from eef.training.sft import RowTrainer, fit, sft
from eef.training.stages import run_job_distributed
from eef.trajectory import Trajectory, Turn

SETTINGS = {"epochs": 4, "lr": 5e-3, "batch_size": 2, "seed": 0}
MANY = {**SETTINGS, "epochs": 101}  # one step each on two examples; every second step and the last are logged


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 16, 1, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.fixture(scope="module")
def examples(shop) -> list[Example]:
    wins = [t for t in demonstrations(shop, shop.tasks("train")) if t.won]
    return [Example(t, 0) for t in sorted(wins, key=len)[:4]]


def trainable(base: str, **load) -> Policy:
    policy = Policy.load(base, **load)
    policy.new_adapter(seed=0, r=4, alpha=8)
    return policy


def pairs_of(examples: list[Example]) -> list[tuple[Trajectory, Trajectory]]:
    wins = [example.trajectory for example in examples]
    return [(w, Trajectory(w.task, w.prompt, (*w.turns[:1], Turn("click[buy now]", "")))) for w in wins]


def complete_checkpoints(work: Path) -> list[str]:
    return sorted(path.parent.name for path in work.glob("checkpoint-*/whole.pt"))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("lr", "epochs", "words"),
    [
        (1e30, 4, r"the loss at step 2 of 8 is nan"),
        (1e30, 0.5, r"the .*log-likelihood.* after the last step is nan"),  # a single step: no loss sees its weights
    ],
)
def test_a_learning_rate_that_is_far_too_high_saves_nothing(
    kind: str, lr: float, epochs: float, words: str, base: str, examples, tmp_path: Path
) -> None:
    run = sft if kind == "sft" else partial(dpo, beta=0.1)
    data = examples if kind == "sft" else pairs_of(examples)
    settings = {**SETTINGS, "lr": lr, "epochs": epochs, "work": tmp_path / "work", "checkpoint_minutes": 0.0}
    with pytest.raises(FloatingPointError, match=rf"training diverged: {words}.*Lower the learning rate \(lr=1e\+30\)"):
        run(trainable(base), data, tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob("*"))
    for name in complete_checkpoints(tmp_path / "work"):
        weights = load_file(tmp_path / "work" / name / "adapter_model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())


def test_half_precision_diverges_with_the_same_message(base: str, examples, tmp_path: Path) -> None:
    policy = Policy.load(base, dtype="bfloat16")
    with pytest.raises(
        FloatingPointError, match=r"training diverged: the (loss|gradient norm) at step 2 of 8 is nan.*check dtype"
    ):
        sft(policy, examples, tmp_path / "out", **{**SETTINGS, "lr": 1e30})
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("step", "named"), [(51, 52), (101, 101)])
def test_a_loss_that_is_not_finite_between_two_logged_steps_is_detected(
    step: int, named: int, base: str, examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients are finite, so only the loss shows it."""
    calls, compute = count(1), RowTrainer.compute_loss

    def poisoned(self, *args, **more):
        loss = compute(self, *args, **more)
        return loss + float("nan") * loss.detach() if next(calls) == step else loss

    monkeypatch.setattr(RowTrainer, "compute_loss", poisoned)
    with pytest.raises(FloatingPointError, match=f"the loss at step {named} of 101 is nan"):
        sft(trainable(base), examples[:2], tmp_path / "out", **MANY)
    assert not list((tmp_path / "out").glob("*"))


def test_weights_are_checked_before_they_are_saved(base: str, examples, tmp_path: Path) -> None:
    policy = trainable(base)

    def broken(step: int, steps: int, row: dict[str, float]) -> None:
        if step == steps:
            weight = next(weight for weight in policy.model.parameters() if weight.requires_grad)
            weight.data.view(-1)[3] = float("nan")

    with pytest.raises(FloatingPointError, match="weight '.*lora_A.*' after the last step is nan"):
        sft(policy, examples, tmp_path / "out", **SETTINGS, on_step=broken)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("gradient", "the gradient norm at step 3 of 8 is nan"),
        ("weight", "weight '.*lora_B.*' after step 3 of 8 is nan"),
    ],
)
def test_no_checkpoint_has_broken_weights_and_a_restart_equals_an_undisturbed_training(
    broken: str, words: str, base: str, examples, tmp_path: Path
) -> None:
    """A gradient is not finite, or an update overflows; the loss of that step is finite."""
    work = {"work": tmp_path / "work", "checkpoint_minutes": 0.0}
    policy, calls = trainable(base), count(1)
    weight = next(weight for name, weight in policy.model.named_parameters() if "lora_B" in name)

    def poison(*_) -> None:
        if next(calls) == 3:
            (weight.grad if broken == "gradient" else weight.data).view(-1)[3] = float("nan")

    register = weight.register_post_accumulate_grad_hook if broken == "gradient" else register_optimizer_step_post_hook
    handle = register(poison)
    try:
        with pytest.raises(FloatingPointError, match=words):
            sft(policy, examples, tmp_path / "broken", **SETTINGS, **work)
    finally:
        handle.remove()
    assert complete_checkpoints(tmp_path / "work") == ["checkpoint-2"]
    assert not (tmp_path / "work" / "checkpoint-3").exists()

    rows: list[dict[str, float]] = []
    whole = sft(trainable(base), examples, tmp_path / "whole", **SETTINGS)
    again = sft(
        trainable(base), examples, tmp_path / "again", **SETTINGS, **work, on_step=lambda *state: rows.append(state[2])
    )
    assert again == whole and logged(rows) == whole["losses"], "the rows of the checkpoint come first"
    assert ["seconds_left" in row for row in rows] == [False] * 2 + [True] * (len(rows) - 2)
    both = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "again")]
    assert both[0] == both[1]


def logged(rows: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    """The logged rows of a training without their speed."""
    speed = ("tokens_per_second", "tokens_per_cpu_second", "seconds_left")
    return [{name: value for name, value in row.items() if name not in speed} for row in rows if "step" in row]


@pytest.mark.slow
def test_all_processes_stop_with_one_message(base: str, examples, tmp_path: Path) -> None:
    trajectory.save((e.trajectory for e in examples), tmp_path / "examples.jsonl")
    write_json(tmp_path / "learn_from.json", {"learn_from": [0] * len(examples)})
    settings = {**SETTINGS, "lr": 1e30, "work": str(tmp_path / "work"), "checkpoint_minutes": 0.0}
    job = {"kind": "sft", "policy": {"model": base}, "new_adapter": {"seed": 0, "r": 4}, "settings": settings}
    with pytest.raises(RuntimeError, match="by 2 processes failed: FloatingPointError: training diverged: the loss"):
        run_job_distributed(job, tmp_path, 2)
    assert not list(tmp_path.glob("adapter*"))


def test_each_step_is_reported_once_with_its_logged_row(base: str, examples, tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    report = sft(trainable(base), examples[:2], tmp_path, **MANY, on_step=lambda *state: seen.append(state))
    assert [(step, steps) for step, steps, _ in seen] == [(step, 101) for step in range(1, 102)]
    assert logged(row for _, _, row in seen) == report["losses"]
    assert all(row["step"] == step for step, _, row in seen if "step" in row)
    assert [step for step, _, row in seen if "step" in row] == [*range(2, 101, 2), 101]
    assert all(row["tokens_per_second"] > 0 for _, _, row in seen) and seen[-1][2]["seconds_left"] == 0
    assert all(row["tokens_per_cpu_second"] > 0 for _, _, row in seen)
    assert seen[0][2]["seconds_left"] > seen[90][2]["seconds_left"] > 0
    assert set(report["losses"][0]) == {"step", "epoch", "loss", "learning_rate"}


def test_the_learning_rate_warms_up_and_falls(base: str, examples, tmp_path: Path) -> None:
    rates = []
    for warmup in (0.5, 0.0):
        report = sft(trainable(base), examples, tmp_path / str(warmup), **SETTINGS, warmup_ratio=warmup)
        rates.append([row["learning_rate"] / SETTINGS["lr"] for row in report["losses"]])
    assert rates[0][:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert rates[1][0] == 1.0
    assert all(before > after for some in (rates[0][4:], rates[1]) for before, after in pairwise(some))


@pytest.mark.parametrize(("limit", "batch_size", "most"), [(10**9, 4, 2), (10**9, 3, 1), (1000, 4, 1)])
def test_rows_at_a_time_on_a_cpu_follow_the_size_of_the_model(
    limit: int, batch_size: int, most: int, base: str, examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, collate = [], sft_module.collate

    def counted(items, pad):
        sizes.append(len(items))
        return collate(items, pad)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sft_module, "collate", counted)
    monkeypatch.setattr(trainer, "SMALL_MODEL", limit)
    policy = trainable(base)
    rows, _ = rows_of(policy, examples)
    settings = {**SETTINGS, "batch_size": batch_size, "epochs": 1}
    fit(policy.model, rows, pad=policy.pad, folder=tmp_path, **settings)
    assert max(sizes) == most and sum(sizes) == len(examples)


def test_the_embedded_models_are_small_and_those_of_the_hub_are_not() -> None:
    assert 5_000_000 < trainer.SMALL_MODEL < 135_000_000
