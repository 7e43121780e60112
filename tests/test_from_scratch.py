"""`notebooks/eef_from_scratch.ipynb` is the method `eef` without stages: same examples, same adapters, same result."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from safetensors.torch import load_file

from eef import envs, trajectory
from eef.envs import EnvError, Step, TextEnv
from eef.envs.webshop import WebShop
from eef.experiment import experiment
from eef.models.pretrain import make_model, save
from eef.settings import Settings
from eef.trajectory import Trajectory, Turn

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "eef_from_scratch.ipynb"
WIN, LOSE, BREAK = "11", "12", "13"  # doors


class Corridor:
    """Six doors to choose. The fifth choice decides: ``WIN`` wins, any other door fails.

    A policy that chooses at random wins about as many simulations from each state, so that all patterns of outcomes
    occur. On odd subtasks, ``BREAK`` as the last choice breaks the environment.
    """

    name = "corridor"
    max_steps = 6

    def tasks(self, split: str) -> list[str]:
        return [str(number) for number in {"train": range(10), "eval": range(0), "test": range(10, 30)}[split]]

    def reset(self, task: str) -> str:
        self.task, self.chosen = task, ()
        return self.page()

    def page(self) -> str:
        return f"{self.task} {len(self.chosen)}"

    def available_actions(self) -> dict[str, list[str]]:
        return {"actions": [WIN, LOSE, BREAK]}

    def step(self, action: str) -> Step:
        self.chosen = (*self.chosen, action)
        done = len(self.chosen) == self.max_steps
        if done and action == BREAK and int(self.task) % 2:
            raise EnvError("the corridor is closed")
        won = done and self.chosen[-2] == WIN
        return Step(self.page(), float(won), done, info={"won": won})

    def fork(self) -> Corridor:
        return copy(self)

    def can_start_here(self, observation: str) -> bool:
        return not observation.endswith(" 3")

    def stamp(self) -> dict[str, str]:
        return {"corridor": "1"}

    def state_key(self) -> dict[str, Any]:
        return {}


def play_expert(env: TextEnv, task: str, doors: str, source: str) -> Trajectory:
    """An expert trajectory; ``doors`` are the last digits of its choices."""
    prompt, turns = env.reset(task), []
    for digit in doors:
        step = env.step(f"1{digit}")
        turns.append(Turn(f"1{digit}", step.observation))
    return Trajectory(task, prompt, tuple(turns), step.reward, bool(step.info["won"]), source)


@pytest.fixture(scope="module")
def corridor_experts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two failures on each subtask; on even ones all wins that begin as the first failure does, one of them twice."""
    env, experts = Corridor(), []
    for number, task in enumerate(env.tasks("train")):
        experts += [play_expert(env, task, "121221", "first"), play_expert(env, task, "121122", "second")]
        if number % 2 == 0:
            experts += [play_expert(env, task, f"12121{last}", "third") for last in (1, 2, 3)]
    experts += [play_expert(env, "0", "111111", "fourth"), play_expert(env, "0", "121212", "fifth")]
    return str(trajectory.save(experts, tmp_path_factory.mktemp("experts") / "experts.jsonl"))


@pytest.fixture(scope="module")
def base(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, {"constrained_decoding": True}))


def from_scratch(parameters: dict[str, Any]) -> dict[str, Any]:
    """The variables of the notebook after its last cell."""
    variables: dict[str, Any] = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), variables)
            if "parameters" in cell.metadata.get("tags", []):
                assert parameters.keys() <= variables.keys()
                variables |= parameters
    return variables


def compare(env: TextEnv, parameters: dict[str, Any], root: Path) -> dict[str, Any]:
    """Assert that the notebook and the method agree, in every stage of training; the notebook's variables."""
    names = ("model", "experts", "iterations", "epochs", "lr", "batch_size", "lora_r", "lora_alpha", "temperature")
    notebook = from_scratch({**parameters, "folder": str(root / "from_scratch")})
    row = experiment(
        "eef",
        env,
        Settings(**{name: notebook[name] for name in names}),
        notebook["seed"],
        options={"m": notebook["m"]},
        train_tasks=notebook["train_tasks"],
        test_tasks=notebook["test_tasks"],
        root=root / "runs",
        wandb="disabled",
    )
    run = root / "runs" / row["run_id"]
    stages = ["bc", *(f"sft-{iteration}" for iteration in range(notebook["iterations"]))]
    for stage in stages:
        mine, its = (load_file(at / stage / "adapter_model.safetensors") for at in (root / "from_scratch", run))
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in mine), stage
    examples = notebook["examples_X"]  # of the last iteration
    begins = json.loads((run / stages[-1] / "learn_from.json").read_text())["learn_from"]
    theirs = trajectory.load(run / stages[-1] / "examples.jsonl")
    assert [example.trajectory.task for example in examples] == [one.task for one in theirs]
    assert [example.learn_from for example in examples] == begins
    assert [example.trajectory.actions for example in examples] == [one.actions for one in theirs]
    assert [example.trajectory for example in examples] == theirs
    masks = [
        [turn.learn and i >= begin for i, turn in enumerate(one.turns)]
        for one, begin in zip(theirs, begins, strict=True)
    ]
    assert [list(example.mask) for example in examples] == masks
    assert notebook["tests"] == trajectory.load(run / "test" / "trajectories.jsonl")
    assert row["episodes"] == notebook["iterations"] * len(notebook["starts_S"])
    assert (row["win_rate"], row["n_test"]) == (notebook["win_rate"], len(notebook["counted"]))
    return notebook


@pytest.mark.parametrize(("m", "iterations", "seed"), [pytest.param(2, 1, 5, marks=pytest.mark.slow), (5, 2, 2)])
def test_the_flat_loop_is_the_method(
    m: int, iterations: int, seed: int, base: str, corridor_experts: str, tmp_path: Path, monkeypatch
) -> None:
    env = Corridor()
    monkeypatch.setattr(envs, "make_env", lambda name, **options: env)
    small = {"model": base, "experts": corridor_experts, "train_tasks": 8, "test_tasks": 20}
    training = {"epochs": 2.0, "lora_r": 4, "lora_alpha": 8}
    notebook = compare(env, {**small, **training, "m": m, "iterations": iterations, "seed": seed}, tmp_path)
    chosen = notebook["solutions_X"]
    assert any(example.learn_from == 0 < example.trajectory.prefix for example in chosen), "s0 by expert actions"
    assert any(example.learn_from > 0 for example in chosen), "a state that needs recovery"
    assert len(chosen) < len(notebook["selected"]), "two examples of one state"
    again = [x for x in notebook["selected"] if (x.trajectory.task, *x.trajectory.actions) in notebook["wins"]]
    assert any(example.learn_from == 0 for example in again), "a win that the expert has too"
    assert len(notebook["wins_X"]) < sum(expert.won for expert in notebook["experts_E"]), "equal wins"
    assert {simulation.outcome for simulation in notebook["simulations_S"]} == {"done", "env_error"}


@pytest.mark.slow
def test_the_flat_loop_is_the_method_on_the_embedded_shop(tmp_path: Path) -> None:
    notebook = compare(WebShop(max_steps=15), {"train_tasks": 60, "test_tasks": 40}, tmp_path)
    assert notebook["solutions_X"] and notebook["win_rate"] > 0
