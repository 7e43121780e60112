"""The committed outcomes of a sweep: written from run folders, and read back to the same rates and differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eef.analysis.arms import FigureError
from eef.analysis.outcomes import BUDGET, outcome_table, read_outcomes
from eef.analysis.statistics import interval, paired


def stage(folder: Path, kind: str, report: dict[str, Any], step: int, epoch: float) -> None:
    folder.mkdir()
    (folder / f"{kind}.json").write_text(json.dumps(report))
    rows = [{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": step, "epoch": epoch, "loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(at: Path, method: str, won: str, seed: int = 0, tasks: str = "abcd", **more: Any) -> dict[str, Any]:
    """A finished run; ``won`` has a character per subtask, as the table has it."""
    folder = at / f"{method}-{seed}-{more.get('train')}"
    (folder / "eval").mkdir(parents=True)
    table = pd.DataFrame({"task": list(tasks), "won": [c == "1" for c in won], "error": [c == "-" for c in won]})
    table.assign(group=["easy", *["hard"] * (len(won) - 1)]).to_csv(folder / "eval" / "episodes.csv", index=False)
    stage(folder / "bc", "sft", {"examples": 10, "learnt_tokens": 200}, 20, 3.0)
    (folder / "timing.json").write_text(json.dumps({"seconds": 12.34}))
    arm = {"n": None, "m": 5 if method == "eef" else None, "experts": "strong"}
    config = {"method": method, "train": more.get("train", 100), "noise": more.get("noise", {"late": 0.5})}
    cost = {"episodes": 30, "env_steps": 150, "tokens": 900, "prefilled_tokens": 7000} | more.get("cost", {})
    return {
        "run_id": folder.name,
        "method": method,
        "seed": seed,
        "folder": str(folder),
        "config": config,
        **arm,
        **cost,
    }


def test_the_outcomes_come_back_with_their_rates_and_differences(tmp_path: Path) -> None:
    rows = [
        run(tmp_path, "eef", "0111"),
        run(tmp_path, "eef", "11-1", 1),
        run(tmp_path, "rft", "0011"),
        run(tmp_path, "rft", "0000", 1),
    ]
    table = outcome_table(pd.DataFrame(rows).sample(frac=1, random_state=0), tmp_path / "out")
    assert table["outcomes"].tolist() == ["0111", "11-1", "0011", "0000"], "sorted, with leading zeros"
    seconds = pd.read_csv(tmp_path / "out" / "seconds.csv")
    assert seconds["seconds"].tolist() == [12.3] * 4 and seconds["run_id"].is_monotonic_increasing
    assert "seconds" not in table, "equal runs give equal tables"
    assert (tmp_path / "out" / "subtasks.csv").read_text().splitlines()[1:] == [
        "1,a,easy",
        "1,b,hard",
        "1,c,hard",
        "1,d,hard",
    ]
    back = read_outcomes(tmp_path / "out")
    arms = {method: part for method, part in back.groupby("method")}
    for method, part in arms.items():
        episodes = [
            pd.read_csv(Path(row["folder"]) / "eval" / "episodes.csv").assign(seed=row["seed"])
            for row in rows
            if row["method"] == method
        ]
        assert interval(part) == interval(pd.concat(episodes)), method
    got = paired(arms["eef"], arms["rft"])
    assert (got.pairs, got.errors, got.gains) == (7, 1, 2)
    assert back.loc[back["run_id"] == "eef-1-None", "error"].tolist() == [False, False, True, False]
    again = outcome_table(pd.DataFrame(rows), tmp_path / "again")
    assert (tmp_path / "out" / "outcomes.csv").read_bytes() == (tmp_path / "again" / "outcomes.csv").read_bytes()
    assert again[BUDGET].iloc[0].tolist() == [30, 150, 900, 7000, 10, 600, 20]


def test_the_budget_covers_all_trainings_and_is_empty_where_it_was_not_recorded(tmp_path: Path) -> None:
    row = run(tmp_path, "eto", "01", tasks="ab")
    stage(Path(row["folder"]) / "dpo-0", "dpo", {"pairs": 7, "learnt_tokens": 50}, 5, 1.0)
    old = run(tmp_path, "eto", "01", 1, tasks="ab") | {"prefilled_tokens": None}
    stage(Path(old["folder"]) / "dpo-0", "dpo", {"pairs": 7}, 5, 1.0)
    still = run(tmp_path, "bc", "01", tasks="ab") | {"episodes": 0, "prefilled_tokens": None}
    table = outcome_table(pd.DataFrame([row, old, still]), tmp_path).set_index(["method", "seed"])
    assert table.loc[("eto", 0), ["examples", "loss_tokens", "optimiser_steps"]].tolist() == [17, 650, 25]
    assert table.loc[("eto", 1), ["prefilled_tokens", "loss_tokens"]].isna().all()
    assert table.loc[("bc", 0), "prefilled_tokens"] == 0, "nothing was simulated"


def test_runs_of_several_regimes_keep_their_parameters_and_test_sets(tmp_path: Path) -> None:
    rows = [
        run(tmp_path, "eef", "01", tasks="ab", train=50),
        run(tmp_path, "eef", "011", tasks="abc", train=100, noise={"late": 0}),
    ]
    table = outcome_table(pd.DataFrame(rows), tmp_path)
    assert table[["train", "noise"]].to_numpy().tolist() == [["100", '{"late": 0}'], ["50", '{"late": 0.5}']]
    assert "method" in table and table["test_set"].tolist() == [1, 2]
    back = read_outcomes(tmp_path)
    assert back.groupby("test_set").size().tolist() == [3, 2]
    at = tmp_path / "outcomes.csv"
    at.write_text(at.read_text().replace(",011,", ",01,"))
    with pytest.raises(ValueError, match=r"eef-0-100: outcomes must be 3 characters 0, 1 or -, one for each row"):
        read_outcomes(tmp_path)


def test_runs_without_episodes_have_no_outcomes(tmp_path: Path) -> None:
    row = run(tmp_path, "eef", "01", tasks="ab")
    (Path(row["folder"]) / "eval" / "episodes.csv").unlink()
    with pytest.raises(FigureError, match="episodes.csv is missing"):
        outcome_table(pd.DataFrame([row]), tmp_path / "out")
    with pytest.raises(FigureError, match="no finished runs"):
        outcome_table(pd.DataFrame(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
