"""experiments/decisions.py and experiments/learnt.py: which stage of a run they read, and in which environment."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from eef.trajectory import Trajectory, Turn, save

ROOT = Path(__file__).resolve().parents[1]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return import_module(name)


def test_decisions_are_those_of_the_tested_adapter_in_the_environment_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "webshop__eto-n1__s0__1"
    config = {
        "model": "embedded",
        "max_steps": 4,
        "catalogue": {"seed": 5},
        "data": "",
        "env_options": {"observation": "text_rich"},
    }
    (run / "bc").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"env": "webshop", "config": config}))
    (run / "test").mkdir()
    (run / "test" / "stage.json").write_text(json.dumps({"key": {"inputs": {"adapter": "dpo-0__abc"}}}))
    (tmp_path / "stages" / "dpo-0__abc").mkdir(parents=True)
    (tmp_path / "stages" / "dpo-0__abc" / "adapter_model.safetensors").touch()
    seen: dict[str, Any] = {}

    def demonstrations(env: Any, tasks: list[str]) -> list[Trajectory]:
        seen["env"] = env
        return [Trajectory(tasks[0], "", (Turn("search[x]", ""),), 1.0, True)]

    def load(model: str, adapter: Path) -> None:
        seen["adapter"] = adapter

    decisions: Any = script("decisions", monkeypatch)
    monkeypatch.setattr(decisions.Policy, "load", load)
    monkeypatch.setattr(decisions, "demonstrations", demonstrations)
    monkeypatch.setattr(decisions, "simulate", lambda *a, **k: demonstrations(seen["env"], ["t"]))
    assert decisions.decisions(run, 1)["right"].tolist() == [True]
    assert seen["adapter"].name == "dpo-0__abc", "not the behaviour clone that DPO starts from"
    state = seen["env"].state_key()
    assert seen["env"].max_steps == 4 and "text_rich" in json.dumps(state, default=str)


def learnt_rows(root: Path, stages: dict[str, int], groups: list[str] | None, env: str) -> pd.DataFrame:
    """A run whose stages have so many examples; its two test episodes are in ``groups``."""
    folder = root / "run"
    (folder / "eval").mkdir(parents=True)
    for name, count in stages.items():
        stage = root / "stages" / name
        save(
            [Trajectory(str(i), "", (Turn("click[next >]", ""),), 1.0, True) for i in range(count)],
            stage / "examples.jsonl",
        )
        (stage / "learn_from.json").write_text(json.dumps({"learn_from": [0] * count}))
        (folder / name).symlink_to(stage)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"stage": name}) + "\n" for name in stages))
    table = pd.DataFrame({"task": ["a", "b"], "won": True, "next": [True, False], "outcome": ["done", "max_steps"]})
    table.assign(error=False, **({"group": groups} if groups else {})).to_csv(
        folder / "eval" / "episodes.csv", index=False
    )
    row = {"run_id": "r", "env": env, "method": "eef", "experts": "strong", "m": 5, "seed": 0, "folder": str(folder)}
    return pd.DataFrame([row])


def test_the_last_sft_counts_also_after_ten_iterations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    learnt: Any = script("learnt", monkeypatch)
    runs = learnt_rows(tmp_path, {"bc": 1, "sft-9": 2, "sft-10": 3}, ["easy", "hard"], "webshop")
    (row,) = learnt.learnt(runs)
    assert row["examples"] == "3" and row["hard: use Next %"] == "0" and row["hard: out of steps %"] == "100"


def test_an_environment_without_skills_and_grades_has_rows_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    learnt: Any = script("learnt", monkeypatch)
    (row,) = learnt.learnt(learnt_rows(tmp_path, {"bc": 1}, ["plant", "animal"], "scienceworld"))
    assert row == {"arm": "EEF, M = 5, experts: strong", "examples": "1", "expert turns": "0",
                   "animal: out of steps %": "100", "plant: out of steps %": "0"}  # fmt: skip
    (tmp_path / "more").mkdir()
    (row,) = learnt.learnt(learnt_rows(tmp_path / "more", {"bc": 1}, None, "webshop"))
    assert row["use Next %"] == "50" and row["out of steps %"] == "50"
