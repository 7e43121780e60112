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
