"""The stages of a run: what is trained, simulated and tested, seeds, warnings, resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eef.agents.policy import Policy, load_chat
from eef.agents.rollout import Start
from eef.experiment import experiment
from eef.experts import expert_trajectories
from eef.files import digest, read_json
from eef.lab import Lab, make_chat
from eef.methods import wins
from eef.models.pretrain import make_model, save
from eef.settings import Settings
from eef.tracking.progress import Meter
from eef.tracking.runs import Run
from eef.tracking.stages import stage_key
from eef.training.ranks import world_size
from eef.trajectory import Trajectory, Turn, load
from eef.trajectory import save as save_trajectories


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


def make(base: str, shop, root: Path, **changes) -> Lab:
    settings = Settings(model=base, epochs=1, lora_r=4, lora_alpha=8, **changes)
    chat = load_chat(base)
    return Lab(Run.open(root, "webshop", "x", 0, {}, {"hashes": {}}), shop, settings, 0, shop.tasks("train"), [], chat)


def test_iterations_samples_and_seeds_use_different_random_streams(
    base: str, shop, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple] = []
    monkeypatch.setattr(
        Lab, "simulate", lambda self, name, adapter, starts, seed, _: seen.append((seed, {s.sample for s in starts}))
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


def test_a_method_that_keeps_no_example_is_told_what_there_was(base: str, shop, tmp_path) -> None:
    lab = make(base, shop, tmp_path)
    with pytest.raises(ValueError, match="no training example for SFT, iteration 1: .* none, since no stage has any"):
        lab.sft("sft-0", [])
    won = sum(item.won for item in lab.experts())
    with pytest.raises(ValueError) as caught:
        lab.sft("sft-0", [])
    assert f"kept 0 of these trajectories: expert trajectories, 20 of which {won} won" in str(caught.value)
    assert won and not lab.run.stages.get("sft-0")


def test_a_run_says_how_many_subtasks_have_an_expert_trajectory(
    base: str, shop, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make(base, shop, tmp_path)
    played = whole.experts()
    assert "have an expert trajectory" not in capsys.readouterr().out
    path = save_trajectories([*played[:3], played[0]], tmp_path / "mine.jsonl")
    lab = make(base, shop, tmp_path, experts=str(path))
    assert len(lab.experts()) == len(lab.experts()) == 4
    printed = capsys.readouterr().out
    line = "3 of 20 training subtasks have an expert trajectory; simulations also start from s0 of the other 17"
    assert printed.count(line) == 1, printed


def test_a_full_model_is_trained_simulated_and_tested_like_an_adapter(base: str, shop, tmp_path) -> None:
    settings = Settings(model=base, epochs=1, tune="full", lr=1e-3, iterations=2, restart="last", micro_batch_size=1)
    row = experiment(
        "rft", shop, settings, 0, options={"n": 1}, train_tasks=20, test_tasks=2, root=tmp_path, wandb="disabled"
    )
    folder = tmp_path / row["run_id"]
    config = read_json(folder / "config.json")["config"]
    assert {row[f"{start}{name}"] for start in ("", "simulation_") for name in ("no_action", "ambiguous", "cut")} == {0}
    assert (config["tune"], config["quantize"], config["artefact"]) == ("full", None, "full model")
    models = [folder / name / "model.safetensors" for name in ("bc", "sft-0", "sft-1")]
    assert len({path.read_bytes() for path in models}) == 3, "each starts from the previous one"
    assert read_json(folder / "bc" / "sft.json")["artefact"] == "full model"
    assert not (folder / "bc" / "adapter_config.json").exists()


def test_training_simulation_and_test_load_the_model_in_the_same_form(base: str, shop, tmp_path, monkeypatch) -> None:
    """All load it with the arguments of training, and no adapter is merged."""
    loads: list[dict] = []
    load = Policy.load

    def recorded(**arguments) -> Policy:
        loads.append(
            {name: value for name, value in arguments.items() if name in ("model", "quantize", "dtype", "context")}
        )
        policy = load(**arguments)
        if not arguments.get("trainable"):
            assert any("lora_A" in name for name, _ in policy.model.named_parameters())
        return policy

    monkeypatch.setattr(Policy, "load", recorded)
    settings = Settings(model=base, epochs=1, lora_r=4, lora_alpha=8)
    row = experiment("rft", shop, settings, 0, options={"n": 1}, test_tasks=2, root=tmp_path, wandb="disabled")
    assert len(loads) == 4 and all(each == loads[0] for each in loads)
    assert read_json(tmp_path / row["run_id"] / "config.json")["config"]["artefact"] == "adapter on the auto base model"


def test_a_context_that_is_too_small_is_a_visible_warning(base: str, shop, tmp_path, capsys) -> None:
    """Episodes that outgrow it are lost, and examples that exceed it are left out of training."""
    lab = make(base, shop, tmp_path)
    examples = wins(lab.demonstrations())
    sizes = sorted(len(lab.chat.render(each.trajectory, each.mask)[0]) for each in examples)
    middle = sizes[len(sizes) // 2]
    dropped = sum(size > middle for size in sizes)
    adapter = make(base, shop, tmp_path / "middle", max_new_tokens=16, context=middle).sft("bc", examples)
    words = f"warning: behaviour cloning: {dropped} examples exceed the context of {middle} tokens"
    assert dropped and words in capsys.readouterr().out
    played = make(base, shop, tmp_path / "least", max_new_tokens=16, context=sizes[0]).from_s0(adapter, 0, 0)
    lost = sum(each.outcome == "context_overflow" and each.failed for each in played)
    assert lost and f"{lost} of {len(played)} episodes outgrew the context of {sizes[0]}" in capsys.readouterr().out


def test_expert_states_whose_conversation_fills_the_context_are_reported(base: str, shop, tmp_path, capsys) -> None:
    """They give no label, so a context that is too small would turn EEF into simulation from s0."""
    lab = make(base, shop, tmp_path, max_new_tokens=16)
    experts = [each for each in lab.experts() if each.failed]
    adapter, starts = (
        lab.sft("bc", wins(lab.demonstrations())),
        [Start(e.task, e, i) for e in experts for i in range(len(e))],
    )
    sizes = sorted(len(lab.chat.render(each, [False] * len(each))[0]) for each in experts)
    small = make(base, shop, tmp_path, max_new_tokens=16, context=sizes[0])
    capsys.readouterr()
    played = small.simulate("states-1", adapter, starts, 0)
    unstarted = sum(each.outcome == "context_overflow" and len(each) == each.prefix for each in played)
    words = f"{unstarted} of {len(played)} episodes did not start: the conversation before their first answer fills the"
    assert unstarted and words in capsys.readouterr().out


def test_a_loss_that_rises_is_a_visible_warning(base: str, shop, tmp_path, capsys) -> None:
    lab = make(base, shop, tmp_path, tune="full", lr=100.0, batch_size=2)
    lab.sft("bc", wins(lab.demonstrations())[:6])
    assert "warning: behaviour cloning: the loss rose from" in capsys.readouterr().out


def test_answers_without_a_readable_action_are_shown(base: str, shop, tmp_path, capsys) -> None:
    lab = make(base, shop, tmp_path, constrained_decoding=False, max_new_tokens=2)
    lab.test = shop.tasks("test")[:2]
    adapter = lab.sft("bc", wins(lab.demonstrations())[:1])
    scores = lab.evaluate(adapter)
    (row,) = [row for row in lab.run.metrics if row["stage"] == "test"]
    counts = {name: row[name] for name in ("no_action", "ambiguous", "cut")}
    assert counts["cut"] > 0 and {name: scores[name] for name in counts} == counts
    assert scores["invalid"] >= sum(counts.values())
    line = f"test: {sum(counts.values())} of {row['env_steps']} answers had no readable action: "
    printed = capsys.readouterr().out
    assert line in printed
    assert f"{counts['cut']} cut at the token limit; max_new_tokens sets the limit" in printed


def test_an_unavailable_optimizer_stops_a_run_before_it_starts(base: str, shop, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings(model=base, optimizer="paged_adamw_8bit")
    with pytest.raises(ValueError, match="optimizer='paged_adamw_8bit'.*no GPU here"):
        experiment("sft_pos", shop, settings, 0, root=tmp_path, wandb="disabled")
    assert not list(tmp_path.iterdir())


def test_a_stage_that_was_killed_in_training_resumes(base: str, shop, tmp_path, monkeypatch) -> None:
    """Checkpoints outlive an incomplete stage and are removed with the complete one."""
    stages: dict[str, Path] = {}
    steps: list[int] = []

    class Killed(Exception):
        pass

    def killed_at(limit: int):
        def on_step(meter: Meter, step: int, *_) -> None:
            steps.append(step)
            if step == limit:
                raise Killed

        return on_step

    def run(root: Path) -> Path:
        lab = make(base, shop, root, checkpoint_minutes=0.0, batch_size=2)
        return lab.sft("bc", train_on)

    train_on = wins(make(base, shop, tmp_path / "whole").demonstrations())[:9]
    stages["whole"] = run(tmp_path / "whole")
    monkeypatch.setattr(Meter, "on_step", killed_at(4))
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    remaining = [path.name for path in (tmp_path / "killed" / "stages").glob(".bc-*") if path.is_dir()]
    assert remaining == [f".{stages['whole'].name}.work"]
    steps.clear()
    monkeypatch.setattr(Meter, "on_step", killed_at(-1))
    stages["killed"] = run(tmp_path / "killed")
    assert steps == [1, 2, 3, 4, 5], "first the rows of the checkpoint, then the steps after it"
    for name in ("adapter_model.safetensors", "metrics.jsonl", "sft.json", "examples.jsonl", "learn_from.json"):
        assert (stages["whole"] / name).read_bytes() == (stages["killed"] / name).read_bytes()
    assert not [path for path in (tmp_path / "killed" / "stages").glob(".bc-*") if path.is_dir()]
    assert {path.name for path in stages["whole"].iterdir()} == {path.name for path in stages["killed"].iterdir()}


@pytest.mark.slow
def test_a_run_by_two_processes_equals_a_run_by_one(base: str, shop, tmp_path) -> None:
    rows = []
    for processes in (1, 2):
        settings = Settings(model=base, epochs=2, lora_r=4, lora_alpha=8, processes=processes)
        rows.append(experiment("sft_pos", shop, settings, 0, root=tmp_path, wandb="disabled"))
    stages = [json.loads((tmp_path / row["run_id"] / "bc" / "stage.json").read_text()) for row in rows]
    assert [stage["key"]["inputs"]["training"]["processes"] for stage in stages] == [1, 2]
    assert rows[0]["win_rate"] == rows[1]["win_rate"] and rows[0]["mean_reward"] == rows[1]["mean_reward"]
    assert not (tmp_path / rows[1]["run_id"] / "bc" / "job.json").exists()
    assert world_size() == 1


@pytest.mark.parametrize("name", ["webshop", "library"])
def test_a_model_with_symbols_of_another_environment_is_reported(name: str, shop, capsys) -> None:
    world = SimpleNamespace(name=name)
    make_chat(Settings(), world, [])  # type: ignore[arg-type]
    warned = "reads words as the symbols of webshop, not of library" in capsys.readouterr().out
    assert warned == (name == "library")


@pytest.mark.parametrize(
    ("options", "prompt", "warns"),
    [({}, "", True), ({"instructions": "Answer with one action."}, "", False), ({"aliases": ""}, "", False),
     ({}, "react", False)],
)  # fmt: skip
def test_a_model_without_instructions_is_reported_when_the_chat_is_made(
    options: dict, prompt: str, warns: bool, base: str, shop, tmp_path, capsys
) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "chat.json").write_text(json.dumps(options))
    make_chat(Settings(model=str(folder), prompt=prompt, constrained_decoding=False), shop, [])
    printed = capsys.readouterr().out
    assert ("has no instructions" in printed and "Set prompt='react', or write a file chat.json" in printed) == warns


def test_with_constrained_decoding_an_expert_files_answers_are_its_actions(
    tokenizer, base: str, shop, tmp_path, monkeypatch, capsys
) -> None:
    """A policy that can say nothing else must neither learn nor read thoughts, and its stages depend on the choice."""
    torch.manual_seed(0)
    words = str(save(make_model(tokenizer, 32, 1, 2), tokenizer, tmp_path / "words", {"constrained_decoding": True}))
    sampled = (5, 6)
    plain = [item for item in expert_trajectories(shop, "strong", shop.tasks("train"), 0) if item.won][:3]
    said = [replace(turn, reply=f"Thought: so.\nAction: {turn.action}", ids=sampled, chat=load_chat(words).hash)
            for turn in plain[0].turns]  # fmt: skip
    mute = Turn("", "No action was found.", "Thought: hm.")
    experts = [replace(plain[0], turns=(mute, *said)), *plain[1:]]
    for name, items in (("thinks", experts), ("acts", [replace(plain[0], turns=(mute, *plain[0].turns)), *plain[1:]])):
        save_trajectories([replace(item, source="mine") for item in items], tmp_path / f"{name}.jsonl")
    keys: list[str] = []
    monkeypatch.setattr(
        Lab, "_train", lambda self, name, kind, body, inputs: keys.append(digest(stage_key(body, inputs)))
    )

    def experts_of(name: str, **changes) -> list[Trajectory]:
        lab = make(words, shop, tmp_path, experts=str(tmp_path / f"{name}.jsonl"), **changes)
        learnt = lab.experts()
        lab.sft("bc", wins(learnt))
        assert stored(lab) == learnt, "views and figures read the stage"
        return learnt

    def stored(lab: Lab) -> list[Trajectory]:
        return load(lab.run.stages["experts"] / "trajectories.jsonl")

    first = experts_of("thinks")[0]
    assert first.actions[1:] == plain[0].actions
    assert [(turn.reply, turn.ids, turn.learn) for turn in first.turns[1:]] == [("", (), True)] * len(plain[0])
    assert (first.turns[0].reply, first.turns[0].learn) == ("Thought: hm.", False), "it cannot say this either"
    printed = capsys.readouterr().out
    assert "the answers of 1 of 3 expert trajectories have thoughts, which constrained decoding cannot" in printed
    assert experts_of("acts")[0].turns == first.turns
    free = experts_of("thinks", constrained_decoding=False)[0]
    assert free.turns == experts[0].turns
    assert keys[0] == keys[1] != keys[2]


def test_with_constrained_decoding_a_text_model_learns_actions_as_they_are_available(
    tokenizer, base: str, shop, tmp_path, capsys
) -> None:
    """With aliases both forms are the same symbols, so nothing is replayed."""
    model = make_model(tokenizer, 32, 1, 2)
    words = str(save(model, tokenizer, tmp_path / "words", {"constrained_decoding": True}))
    plain = [item for item in expert_trajectories(shop, "strong", shop.tasks("train"), 0) if item.won][:2]
    shown = [
        replace(item, source="mine", turns=tuple(
            replace(turn, action=turn.action.replace("buy now", "Buy Now")) for turn in item.turns
        ))
        for item in plain
    ]  # fmt: skip
    path = str(save_trajectories(shown, tmp_path / "shown.jsonl"))
    learnt = make(words, shop, tmp_path, experts=path).experts()
    assert [item.actions for item in learnt] == [item.actions for item in plain]
    assert "2 expert actions are written as constrained decoding says them" in capsys.readouterr().out
    free = make(words, shop, tmp_path, experts=path, constrained_decoding=False).experts()
    symbols = make(base, shop, tmp_path, experts=path).experts()
    assert free == symbols == shown
