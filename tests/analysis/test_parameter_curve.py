"""Win rates over a parameter: the values of each run, paired on seeds at each value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eef.analysis.arms import FigureError
from eef.analysis.parameter_curve import win_rate_over_parameter


def frame(values: tuple[Any, ...] = (0.0, 0.5)) -> pd.DataFrame:
    """RFT wins 40, 50 % on two seeds; EEF 10 points more at the first value and 30 more at the second."""
    rows = []
    for place, value in enumerate(values):
        for method, more in (("rft", 0.0), ("eef", 0.1 + 0.2 * place), ("eef_restart_only=True", 0.01)):
            for seed in (0, 1):
                row = {"run_id": f"{method}-{value}-{seed}", "env": "webshop", "method": method, "experts": "strong"}
                row |= {"n": 6 if method == "rft" else None, "m": None if method == "rft" else 5, "seed": seed}
                row |= {"win_rate": 0.4 + 0.1 * seed + more, "n_test": 20, "hashes": {"catalogue": "c"}}
                rows.append({**row, "config": {"expert_noise": {"late": value}}})
    return pd.DataFrame(rows)


def test_each_run_is_compared_with_the_reference_of_its_seed_and_value(tmp_path: Path) -> None:
    path = win_rate_over_parameter(frame().sample(frac=1, random_state=0), "expert_noise.late", tmp_path, "how late")
    assert all(path.with_suffix(f".{kind}").stat().st_size > 5_000 for kind in ("png", "svg", "pdf"))
    table = pd.read_csv(path.with_suffix(".csv"))
    assert len(table) == 12 and set(table["x_name"]) == {"expert_noise.late"}
    eef = table[table["method"] == "eef"].set_index(["x", "seed"])["difference"].round(6).to_dict()
    assert eef == {(0.0, 0): 0.1, (0.0, 1): 0.1, (0.5, 0): 0.3, (0.5, 1): 0.3}
    assert table.loc[table["method"] == "rft", "difference"].isna().all()
    text = path.with_suffix(".svg").read_text()
    assert "how late" in text and "minus RFT × 6, points" in text and "EEF, M = 5, restart only" in text


def test_one_seed_has_no_intervals_and_one_arm_no_differences(tmp_path: Path) -> None:
    runs = frame()
    win_rate_over_parameter(runs[runs["seed"] == 0], "expert_noise.late", tmp_path)
    path = win_rate_over_parameter(runs[runs["method"] == "rft"], "expert_noise.late", tmp_path)
    assert "difference" not in pd.read_csv(path.with_suffix(".csv"))


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="'expert_noise.late' has values that are not numbers"):
        win_rate_over_parameter(frame(("a", "b")), "expert_noise.late", tmp_path)


def test_all_values_have_one_reference_and_one_run_per_seed(tmp_path: Path) -> None:
    runs = frame()
    without = runs[(runs["method"] != "rft") | runs["run_id"].str.contains("-0.0-")]
    other = runs[(runs["method"] == "rft") & runs["run_id"].str.contains("-0.5-")].assign(n=2)
    with pytest.raises(FigureError, match=r"expert_noise.late = 0.5 has no run of RFT × 6"):
        win_rate_over_parameter(pd.concat([without, other]), "expert_noise.late", tmp_path)
    doubled = pd.concat([runs, runs.iloc[[2]].assign(run_id="with another lr")])
    with pytest.raises(FigureError, match=r"several runs of one method and seed .*with another lr"):
        win_rate_over_parameter(doubled, "expert_noise.late", tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_arm_can_be_seen_at_equal_points(tmp_path: Path, drawn: list[Any]) -> None:
    runs = pd.concat(
        [frame(), frame()[lambda rows: rows["seed"] == 0].assign(seed=2, run_id=lambda r: r["run_id"] + "c")]
    )
    win_rate_over_parameter(runs, "expert_noise.late", tmp_path)
    left = drawn[-1].axes[0]
    sizes = [line.get_markersize() for line in left.lines if len(line.get_xdata()) == 2 and line.get_marker() in "so^"]
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert 0 < left.get_ylim()[0] < 40, "the axis begins near the smallest win rate"
    assert drawn[-1].get_suptitle() == "Test win rate over expert noise: late"


def test_two_seeds_have_no_interval(tmp_path: Path, drawn: list[Any]) -> None:
    win_rate_over_parameter(frame(), "expert_noise.late", tmp_path)
    assert all(group.get_gid() == "runs" for axes in drawn[-1].axes for group in axes.collections)


def test_an_arm_at_one_temperature_is_compared_with_the_reference_at_all(tmp_path: Path, drawn: list[Any]) -> None:
    runs = frame()
    runs = runs[(runs["method"] == "rft") | runs["run_id"].str.startswith("eef-0.5")]
    win_rate_over_parameter(runs, "expert_noise.late", tmp_path / "expert")
    means = [line for line in drawn[-1].axes[1].lines if list(line.get_xdata()) == [0.0, 0.5]]
    assert not means, "another expert is another task"
    hot = runs.assign(config=[{"temperature": config["expert_noise"]["late"]} for config in runs["config"]])
    path = win_rate_over_parameter(hot, "temperature", tmp_path)
    assert pd.read_csv(path.with_suffix(".csv")).query("method == 'eef'")["x"].tolist() == [0.5, 0.5]
    rates, differences = drawn[-1].axes
    assert [75, 75] in [pytest.approx(list(line.get_ydata())) for line in rates.lines], "a level of the whole width"
    means = [list(line.get_ydata()) for line in differences.lines if list(line.get_xdata()) == [0.0, 0.5]]
    assert means == [pytest.approx([30, 30])]
