"""The scripts that measure win rates of states, and that compare ways to spend simulations on them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from eef.analysis.committed import with_ends
from eef.analysis.pages import tables
from eef.planning import Line
from eef.selection import cut_points
from eef.trajectory import Trajectory, Turn

ROOT = Path(__file__).resolve().parents[1]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return import_module(name)


def test_counts_are_of_valid_simulations_in_the_order_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(task: str, won: bool, outcome: str = "done") -> Trajectory:
        return Trajectory(task, "", (Turn("a", ""),), float(won), won, outcome=outcome)

    states = [[ended("7", True), ended("7", False)], [ended("7", True), ended("7", False, "env_error")]]
    table = script("measure_states", monkeypatch).counts([states, [[ended("3", False)] * 2]])
    assert table.values.tolist() == [["7", 0, 1, 2], ["7", 1, 1, 1], ["3", 0, 0, 2]]


def test_too_few_simulations_per_state_are_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script("measure_states", monkeypatch).main(["--simulations", "19"])
    assert "--simulations=19 must be at least 20" in capsys.readouterr().err


def test_each_arm_spends_the_budget_of_evenly_spaced_states(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_flips = script("plan_flips", monkeypatch)
    curves = [np.array([0.1] * 4 + [0.7] * 4)] * 10
    for m, k in ((1, 1), (2, 1), (5, 2)):
        for spend in ("even", "planned", "certain"):
            lines = plan_flips.simulate(curves, spend, m, k, np.random.default_rng(0))
            spent, budget = sum(sum(line.simulations) for line in lines), 10 * k * (1 + len(cut_points(8, m)))
            assert spent <= budget
            if spend == "planned":
                assert spent == budget or all(any(line.wins) for line in lines), "less only where all have a win"
            else:
                assert spent == budget and all(line.simulations[0] for line in lines), "s0 is simulated"


def test_batches_are_asked_for_as_by_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_flips, calls = script("plan_flips", monkeypatch), []

    def plan(lines: list[Line], budget: int, certainty: float) -> list[tuple[int, int]]:
        calls.append((budget, certainty, lines[0].simulations[0], {any(line.can_simulate) for line in lines}))
        return []

    monkeypatch.setattr(plan_flips, "plan", plan)
    curves = [np.zeros(8)] * 9 + [np.ones(8)]
    plan_flips.simulate(curves, "planned", 5, 1, np.random.default_rng(0))
    assert [budget for budget, *_ in calls] == [50 // 2, 50], "rounds=3 with the middle states, as in eef_adaptive"
    assert {call[1:3] for call in calls} == {(0.0, 1)}, "the failure itself is a loss from s0"
    assert all(call[3] == {True, False} for call in calls), "a failure with a win is left out"
    calls.clear()
    plan_flips.simulate(curves, "certain", 5, 2, np.random.default_rng(0))
    assert [call[:3] for call in calls] == [(70 // 3, 1.0, 1), (70 // 2, 1.0, 1), (70, 1.0, 1)], "as in eef_pairs"


def test_scores_follow_the_selection_of_eef(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_flips = script("plan_flips", monkeypatch)

    def score(wins: tuple[int, ...], simulations: tuple[int, ...], fallback: bool = False) -> dict[str, float]:
        line = Line(wins, simulations)
        labels = plan_flips.by_majority(line)
        return plan_flips.score(np.array([0.1, 0.9, 0.1, 0.1, 0.9]), line, labels, fallback)

    assert plan_flips.by_majority(Line((1, 1, 0), (2, 3, 0))).outcomes == (True, False, None), (
        "half is enough, as in EEF"
    )
    perfect = score((0, 1, 0, 0, 1), (1, 1, 1, 1, 1))
    assert perfect["flips"] == perfect["hits"] == perfect["claims"] == 3
    assert (perfect["examples"], perfect["wrong_examples"], perfect["solved"], perfect["labels"]) == (2, 0, True, 5)
    assert (perfect["labelled_won"], perfect["rates_of_won"]) == (2, 1.8) and round(perfect["errors"], 6) == 0.5
    across = score((0, 0, 0, 0, 1), (1, 1, 0, 1, 1))
    assert (across["examples"], across["wrong_examples"]) == (0, 1), "loss on the harmful action from s_1"
    lucky = score((0, 0, 0, 1, 0), (1, 0, 0, 1, 0))
    assert (lucky["examples"], lucky["wrong_examples"], lucky["solved"]) == (0, 1, False), "s_3 is lost"
    assert not score((0, 1, 0, 0, 0), (1, 3, 1, 1, 1))["solved"], "EEF learns nothing from it"
    fallback = score((0, 1, 0, 0, 0), (1, 3, 1, 1, 1), fallback=True)
    assert fallback["solved"] and fallback["examples"] == 1, "no state is labelled won, but s_1 has a win"


def test_measured_curves_give_a_table_a_page_and_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_flips = script("plan_flips", monkeypatch)
    rows = [(task, state, wins, 20) for task in "ab" for state, wins in enumerate([1, 2, 16, 18, 3, 0])]
    file = tmp_path / "tiny.csv"
    pd.DataFrame(rows, columns=["task", "state", "wins", "simulations"]).to_csv(file, index=False)
    monkeypatch.setattr(plan_flips, "ARMS", [("even", "majority", 2, 1), ("planned", "model", 2, 1)])
    plan_flips.main(["--curves", str(file), "--repeats", "2", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "flips-tiny.csv")
    assert table["spend"].tolist() == ["even", "planned"] and table["simulations"].tolist() == [3.0, 1.5]
    assert table["flips"].tolist() == [2.0, 2.0] and table["solved"].between(0, 1).all()
    page = (tmp_path / "flips-tiny.md").read_text(encoding="utf-8")
    assert (
        page.startswith("2 failures, of which 2 have a won state, each simulated 2 times; means, without")
        and page in capsys.readouterr().out
    )
    picture = (tmp_path / "flips-tiny.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in picture for text in ("EEF", "planned, as eef_adaptive", "failures solved (%)"))


def test_several_seeds_give_means_intervals_and_paired_differences(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan_flips = script("plan_flips", monkeypatch)
    curves = {"first": [1, 2, 16, 18, 3, 0], "second": [0, 1, 1, 17, 19, 2]}
    for name, wins in curves.items():
        rows = [("a", state, count, 20) for state, count in enumerate(wins)]
        pd.DataFrame(rows, columns=["task", "state", "wins", "simulations"]).to_csv(tmp_path / f"{name}.csv")
    monkeypatch.setattr(plan_flips, "ARMS", [("even", "majority", 2, 1), ("certain", "model", 2, 1)])
    files = [str(tmp_path / f"{name}.csv") for name in curves]
    plan_flips.main(["--curves", *files, "--repeats", "4", "--name", "both", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "flips-both.csv")
    assert table["curves"].tolist() == ["first", "first", "second", "second"] and set(table["flips"]) == {2.0}
    page = (tmp_path / "flips-both.md").read_text(encoding="utf-8")
    assert page.startswith(
        "2 failures, of which 2 have a won state, each simulated 4 times; means over 2 seeds with 95 %"
    )
    exact = plan_flips.table([(name, plan_flips.measured(tmp_path / f"{name}.csv")) for name in [*curves] * 4])
    mine, of_eef = (exact[exact["spend"] == spend]["error"].to_numpy() for spend in ("certain", "even"))
    assert f"| {of_eef.mean():.3f}" in page and with_ends(100 * (mine - of_eef)) in page
    assert table["per_simulation"].tolist() == pytest.approx(
        (table["hits"] * table["flips"] / table["simulations"]).tolist(), abs=1e-3
    )
    with pytest.raises(SystemExit):
        plan_flips.main(["--curves", *files, "--out", str(tmp_path)])


def test_the_table_of_flips_and_labels_is_that_of_the_committed_file(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_flips = script("plan_flips", monkeypatch)
    means, lows, highs = plan_flips.over_sources(pd.read_csv(ROOT / "figures" / "plan_flips" / "flips-fresh.csv"))
    methods = dict(zip(["EEF", "EEF soft", "EEF planned", "EEF with pairs"], plan_flips.METHODS, strict=True))
    columns = {"flips found %": "hits", "right segments %": "right", "failures solved %": "solved"}
    columns |= {"labelled won, %": "rate_of_won", "labelled lost, %": "rate_of_lost"}
    page = (ROOT / "docs" / "results" / "beyond.md").read_text(encoding="utf-8")
    rows = [row for table in tables(page) for row in table if "flips found %" in row]
    assert len(rows) == 12
    for row in rows:
        arm = (*methods[row["states and labels of"]], int(row["M"]), 1)
        assert row["per failure"] == f"{means.loc[arm, 'simulations']:.1f}"
        assert row["per simulation"] == f"{means.loc[arm, 'per_simulation']:.3f}".lstrip("0")
        for name, column in columns.items():
            mean, low, high = (f"{100 * part.loc[arm, column]:.0f}".replace("-", "−") for part in (means, lows, highs))
            assert row[name] == f"{mean} ({low} to {high})", (row, name)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", 0, 1, 20), ("a", 2, 1, 20)], r"the states of task a are \[0, 2\]: give s_0 to s_\(n-1\), each once"),
        ([("a", 0, 1, 20), ("a", 1, 1, 19)], "task a has a state with fewer than 20 simulations"),
    ],
)
def test_an_incomplete_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[tuple[str, int, int, int]], words: str
) -> None:
    file = tmp_path / "curves.csv"
    pd.DataFrame(rows, columns=["task", "state", "wins", "simulations"]).to_csv(file, index=False)
    with pytest.raises(ValueError, match=words):
        script("plan_flips", monkeypatch).measured(file)


def test_the_documented_command_simulates_ten_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan_flips = script("plan_flips", monkeypatch)
    file = tmp_path / "tiny.csv"
    file.write_text("task,state,wins,simulations\na,0,1,20\na,1,18,20\n")
    monkeypatch.setattr(plan_flips, "ARMS", [("even", "majority", 1, 1)])
    plan_flips.main(["--curves", str(file), "--out", str(tmp_path)])
    assert "each simulated 10 times" in (tmp_path / "flips-tiny.md").read_text(encoding="utf-8")
    about = (ROOT / "figures" / "plan_flips" / "flips-states-100.md").read_text(encoding="utf-8")
    assert about.startswith("40 failures, of which 14 have a won state, each simulated 10 times;")
