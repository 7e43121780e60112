"""The script that makes an expert whose failures nobody wrote."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eef.envs import make_env
from eef.experts.check import check_file
from eef.files import read_json, write_json
from eef.trajectory import Trajectory, Turn, load

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = {"seed": 100, "products": 600, "train": 10, "eval": 3, "test": 2}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return import_module("natural_expert")


def test_the_expert_is_trained_on_other_subtasks_than_it_plays(script: ModuleType) -> None:
    env = make_env("webshop", catalogue=CATALOGUE)
    played, trained_on = script.split_tasks(env, 4, 8)
    assert played == env.tasks("train")[:4]
    assert trained_on == env.tasks("train")[4:] + env.tasks("eval")[:2]
    with pytest.raises(ValueError, match="--train-subtasks=10 must be from 1 to 9"):
        script.split_tasks(env, 4, 10)
    with pytest.raises(ValueError, match="--tasks=11 must be from 1 to the number of training subtasks, 10"):
        script.split_tasks(env, 11, 1)


def test_the_file_of_trajectories_must_not_be_that_of_its_description(script: ModuleType, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        script.main(["--out", "expert.json"])
    assert "--out must end in .jsonl, not expert.json" in capsys.readouterr().err


def test_the_description_counts_skills_in_wins_and_failures_apart(script: ModuleType) -> None:
    env = make_env("webshop", catalogue=CATALOGUE)
    tasks = env.tasks("train")

    def episode(task: str, won: bool, outcome: str, *actions: str) -> Trajectory:
        return Trajectory(task, "", tuple(Turn(action, "") for action in actions), float(won), won, outcome=outcome)

    about = script.describe(
        env,
        [
            episode(tasks[0], True, "done", "search[a]", "click[buy now]"),
            episode(tasks[1], False, "done", "search[a]", "click[next >]", "click[buy now]"),
            episode(tasks[2], False, "max_steps", "search[a]", "click[back to search]"),
            episode(tasks[3], False, "env_error", "click[next >]"),
        ],
    )
    assert about["errors"] == 1
    assert about["win_rate"]["all"] == {"episodes": 3, "wins": 1, "rate": pytest.approx(1 / 3)}
    assert sum(row["episodes"] for name, row in about["win_rate"].items() if name != "all") == 3
    assert about["wins"] == {"episodes": 1, "next": 0.0, "prev": 0.0, "back": 0.0, "steps": 2.0}
    assert about["failures"] == {"episodes": 2, "next": 0.5, "prev": 0.0, "back": 0.5, "steps": 2.5}
    assert about["failures_end"] == {"done": 1, "max_steps": 1}
    assert "| failures | 2        | 50.0 | 0.0  | 50.0 | 2.5   |" in script.tables(about)


def test_the_file_replays_and_equal_arguments_give_equal_files(script: ModuleType, tmp_path: Path) -> None:
    words = [*"--max-steps 6 --tasks 3 --train-subtasks 2 --epochs 1 --seed 5 --catalogue".split(), str(CATALOGUE)]
    files = [tmp_path / name / "natural.jsonl" for name in ("first", "second")]
    for file in files:
        file.parent.mkdir()
        script.main([*words, "--root", str(file.parent / "runs"), "--out", str(file)])
    first, second = files
    assert first.read_bytes() == second.read_bytes()

    env = make_env("webshop", catalogue=CATALOGUE, max_steps=6)
    trajectories, about = load(first), read_json(first.with_suffix(".json"))
    assert [each.task for each in trajectories] == env.tasks("train")[:3] == about["played"]
    assert not set(about["played"]) & set(about["trained_on"])
    assert about["win_rate"]["all"]["wins"] == sum(each.won for each in trajectories)
    assert {each.source for each in trajectories} == {"natural"}
    report = check_file(str(first), env, "train")
    assert not report.failed and len(report.trajectories) == 3

    replayed = tmp_path / "third" / "natural.jsonl"
    replayed.parent.mkdir()
    script.main(["--replay", str(first.with_suffix(".json")), "--out", str(replayed)])
    assert replayed.read_bytes() == first.read_bytes()


def test_a_replay_in_another_environment_is_refused(script: ModuleType, tmp_path: Path) -> None:
    env = make_env("webshop", catalogue=CATALOGUE, max_steps=2)
    lost = Trajectory(env.tasks("train")[0], "", (Turn("search[a]", ""), Turn("click[buy now]", "")), outcome="done")
    about = {"env": "webshop", "catalogue": CATALOGUE, "max_steps": 2, "episodes": [script.without_pages(lost)]}
    about["episodes"][0].update(won=True, reward=1.0)
    write_json(tmp_path / "expert.json", about)
    with pytest.raises(SystemExit, match="was not recorded with this environment"):
        script.main(["--replay", str(tmp_path / "expert.json"), "--out", str(tmp_path / "natural.jsonl")])
    assert [path.name for path in tmp_path.iterdir()] == ["expert.json"]
    write_json(tmp_path / "expert.json", {key: about[key] for key in ("env", "catalogue", "max_steps")})
    with pytest.raises(SystemExit, match="expert.json has no actions: make the expert again"):
        script.main(["--replay", str(tmp_path / "expert.json"), "--out", str(tmp_path / "natural.jsonl")])
