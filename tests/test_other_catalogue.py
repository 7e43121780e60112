"""experiments/other_catalogue.py: the results of an evaluation take the place of a run's own, its budget stays."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_a_run_keeps_its_budget_and_gets_the_results_of_its_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script: Any = import_module("other_catalogue")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.json").write_text('{"run_ids": ["a", "b", "c"]}')
    labels = {"a": "rft-n6", "b": "eef-m5", "c": "eef-m1"}
    runs = [
        {"run_id": name, "label": label, "folder": name, "episodes": 1500, "win_rate": 0.1, "hashes": {"env": "x"}}
        for name, label in labels.items()
    ]
    evaluated: list[tuple[str, str]] = []

    def evaluate(what: str, protocol: str, options: Any, root: Path, wandb: str) -> Path:
        evaluated.append((what, protocol))
        folder = tmp_path / "evaluations" / what
        (folder / "eval").mkdir(parents=True)
        (folder / "eval" / "summary.json").write_text(json.dumps({"episodes": 500, "win_rate": 0.7}))
        return folder

    monkeypatch.setattr(script, "load_runs", lambda root, ids: pd.DataFrame([r for r in runs if r["run_id"] in ids]))
    monkeypatch.setattr(script, "evaluate", evaluate)
    table = script.evaluated(tmp_path, "mine", "some-protocol", ["eef-m5", "rft-n6"])
    assert evaluated == [("a", "some-protocol"), ("b", "some-protocol")], "not the third arm"
    assert table["win_rate"].tolist() == [0.7, 0.7] and table["episodes"].tolist() == [1500, 1500]
    assert table["folder"].tolist() == [str(tmp_path / "evaluations" / name) for name in "ab"]
