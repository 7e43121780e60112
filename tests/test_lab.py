"""Settings are checked when they are written down; a run's stages of training with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eef import lab as lab_module
from eef.agents.policy import Policy, load_chat
from eef.files import read_json
from eef.lab import Lab
from eef.methods import experiment, wins
from eef.models.pretrain import make_model, save
from eef.settings import Settings
from eef.tracking.runs import Run
from eef.training import trainer as train


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tune": "lorra"}, "tune='lorra': known are 'lora', 'full'"),
        ({"quantize": "int3"}, "quantize='int3': known are None, 'nf4'"),
        ({"dtype": "half"}, "dtype='half': known are 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"optimizer": "sgd"}, "optimizer='sgd': known are 'adamw_torch', 'adamw_8bit', 'paged_adamw_8bit'"),
        ({"packing": "packed"}, "packing='packed': known are 'auto', 'padded', 'flat'"),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing='yes': known are False, True"),
        ({"restart": "best"}, "restart='best': known are 'base', 'last'"),
        ({"micro_batch_size": 0}, "micro_batch_size=0 must be a positive integer"),
        ({"processes": 1.5}, "processes=1.5 must be a positive integer"),
        ({"batch_size": 8, "processes": 3}, "batch_size=8 must be a multiple of processes x micro_batch_size: 3 x 1"),
        (
            {"batch_size": 8, "micro_batch_size": 3},
            "batch_size=8 must be a multiple of processes x micro_batch_size: 1 x 3",
        ),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes=-1.0 must be a finite number of at least 0"),
        ({"epochs": 0}, "epochs=0 trains nothing: it must be positive"),
        ({"lr": float("nan")}, "lr=nan must be a finite number"),
        ({"temperature": "1"}, "temperature='1' must be a finite number"),
        ({"constrained_decoding": 1}, "constrained_decoding=1: known are None, False, True"),
        ({"tune": "full", "quantize": "nf4"}, "tune='full' with quantize='nf4'"),
        ({"tune": "full", "engine": "http://x"}, "tune='full' with engine="),
    ],
)
def test_a_setting_that_is_not_known_is_named_at_once(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**wrong)


def make(base: str, shop, root: Path, **changes) -> Lab:
    settings = Settings(model=base, epochs=1, lora_r=4, lora_alpha=8, **changes)
    chat = load_chat(base)
    return Lab(Run.open(root, "webshop", "x", 0, {}, {"hashes": {}}), shop, settings, 0, shop.tasks("train"), [], chat)


def test_iterations_samples_and_seeds_draw_from_streams_of_their_own(
    base: str, shop, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(
        Lab, "simulate", lambda self, name, adapter, starts, seed: seen.append((seed, {s.sample for s in starts}))
    )
    labs = [make(base, shop, tmp_path) for _ in range(2)]
    labs[1].seed = 1
    for lab in labs:
        for iteration in range(2):
            for sample in range(2):
                lab.from_s0(Path("bc"), iteration, sample)
            assert lab.sampling_seed(iteration) == seen[-1][0], "expert states are simulated with the seed of s0"
    assert [samples for _, samples in seen] == [{0}, {1}] * 4
    seeds = [seed for seed, _ in seen[::2]]
    assert len(set(seeds)) == 4


def test_a_full_model_is_trained_simulated_and_tested_like_an_adapter(base: str, shop, tmp_path) -> None:
    settings = Settings(model=base, epochs=2, tune="full", lr=1e-3, iterations=2, restart="last", micro_batch_size=1)
    row = experiment(
        "rft", shop, settings, 0, options={"n": 1}, train_tasks=20, test_tasks=4, root=tmp_path, wandb="disabled"
    )
    folder = tmp_path / row["run_id"]
    config = read_json(folder / "config.json")["config"]
    assert {row[f"{start}{name}"] for start in ("", "simulation_") for name in ("no_action", "ambiguous", "cut")} == {0}
    assert (config["tune"], config["quantize"], config["artefact"]) == ("full", None, "full model")
    models = [folder / name / "model.safetensors" for name in ("bc", "sft-0", "sft-1")]
    assert len({path.read_bytes() for path in models}) == 3, "each goes on from the one before"
    assert read_json(folder / "bc" / "sft.json")["artefact"] == "full model"
    assert not (folder / "bc" / "adapter_config.json").exists()


def test_every_method_trains_and_acts_on_one_form_of_artefact(base: str, shop, tmp_path, monkeypatch) -> None:
    """What is simulated and tested was loaded with the very arguments of training, and never merged."""
    loads: list[dict] = []
    load = Policy.load

    def noted(**given) -> Policy:
        loads.append(
            {name: value for name, value in given.items() if name in ("model", "quantize", "dtype", "context")}
        )
        policy = load(**given)
        if not given.get("trainable"):
            assert any("lora_A" in name for name, _ in policy.model.named_parameters())
        return policy

    monkeypatch.setattr(Policy, "load", noted)
    settings = Settings(model=base, epochs=1, lora_r=4, lora_alpha=8)
    row = experiment("rft", shop, settings, 0, test_tasks=2, root=tmp_path, wandb="disabled")
    assert len(loads) == 4 and all(one == loads[0] for one in loads)
    assert read_json(tmp_path / row["run_id"] / "config.json")["config"]["artefact"] == "adapter on the auto base model"


def test_a_loss_that_rises_is_a_visible_warning(base: str, shop, tmp_path, capsys) -> None:
    lab = make(base, shop, tmp_path, tune="full", lr=100.0, batch_size=2)
    lab.sft("bc", wins(lab.demonstrations())[:6])
    assert "warning: [bc] the loss rose from" in capsys.readouterr().out


def test_answers_without_a_readable_action_are_shown(base: str, shop, tmp_path, capsys) -> None:
    lab = make(base, shop, tmp_path, constrained_decoding=False, max_new_tokens=2)
    lab.test = shop.tasks("test")[:2]
    adapter = lab.sft("bc", wins(lab.demonstrations())[:1])
    scores = lab.evaluate(adapter)
    (row,) = [row for row in lab.run.metrics if row["stage"] == "test"]
    counts = {name: row[name] for name in ("no_action", "ambiguous", "cut")}
    assert counts["cut"] > 0 and {name: scores[name] for name in counts} == counts
    assert scores["invalid"] >= sum(counts.values())
    line = f"[test] {sum(counts.values())} of {row['env_steps']} answers had no readable action: "
    said = capsys.readouterr().out
    assert line in said and f"{counts['cut']} cut at the token limit; max_new_tokens sets the limit" in said


def test_an_optimizer_that_the_machine_lacks_stops_a_run_before_it_starts(
    base: str, shop, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings(model=base, optimizer="paged_adamw_8bit")
    with pytest.raises(ValueError, match="optimizer='paged_adamw_8bit'.*no GPU here"):
        experiment("sft_pos", shop, settings, 0, root=tmp_path, wandb="disabled")
    assert not list(tmp_path.iterdir())


def test_a_stage_that_was_killed_in_training_goes_on_in_the_next_start(base: str, shop, tmp_path, monkeypatch) -> None:
    """Checkpoints outlive the half made stage, and are gone with the whole one."""
    made: dict[str, Path] = {}
    steps: list[int] = []

    class Killed(Exception):
        pass

    def watched(limit: int):
        def steps_of(*_):
            def on_step(step: int, *_) -> None:
                steps.append(step)
                if step == limit:
                    raise Killed

            return on_step

        return steps_of

    def run(root: Path) -> Path:
        lab = make(base, shop, root, checkpoint_minutes=0.0, batch_size=2)
        return lab.sft("bc", train_on)

    train_on = wins(make(base, shop, tmp_path / "whole").demonstrations())[:9]
    made["whole"] = run(tmp_path / "whole")
    monkeypatch.setattr(lab_module, "_steps", watched(4))
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    left = [path.name for path in (tmp_path / "killed" / "stages").glob(".bc-*") if path.is_dir()]
    assert left == [f".{made['whole'].name}.work"]
    steps.clear()
    monkeypatch.setattr(lab_module, "_steps", watched(-1))
    made["killed"] = run(tmp_path / "killed")
    assert steps == [1, 2, 3, 4, 5], "the rows of the checkpoint, then the steps after it"
    for name in ("adapter_model.safetensors", "metrics.jsonl", "sft.json", "examples.jsonl", "learn_from.json"):
        assert (made["whole"] / name).read_bytes() == (made["killed"] / name).read_bytes()
    assert not [path for path in (tmp_path / "killed" / "stages").glob(".bc-*") if path.is_dir()]
    assert {path.name for path in made["whole"].iterdir()} == {path.name for path in made["killed"].iterdir()}


@pytest.mark.slow
def test_a_run_by_two_processes_ends_like_one_by_one(base: str, shop, tmp_path) -> None:
    rows = []
    for processes in (1, 2):
        settings = Settings(model=base, epochs=2, lora_r=4, lora_alpha=8, processes=processes)
        rows.append(experiment("sft_pos", shop, settings, 0, root=tmp_path, wandb="disabled"))
    stages = [json.loads((tmp_path / row["run_id"] / "bc" / "stage.json").read_text()) for row in rows]
    assert [stage["key"]["inputs"]["training"]["processes"] for stage in stages] == [1, 2]
    assert rows[0]["win_rate"] == rows[1]["win_rate"] and rows[0]["mean_reward"] == rows[1]["mean_reward"]
    assert not (tmp_path / rows[1]["run_id"] / "bc" / "job.json").exists()
    assert train.processes() == 1
