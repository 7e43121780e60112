"""Draws pictures again from a sweep's committed tables, for sweeps whose run folders no longer exist.

    python experiments/redraw_figures.py                    # all folders with such a table
    python experiments/redraw_figures.py figures/methods    # this one

These are win rate against budget, win rate over a parameter, and the map of differences. The tables are the same before
and after: only the pictures are written anew. The words at the axes are those of experiments/NAME.yaml, if it exists.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.difference_map import draw_map
from eef.analysis.figures import subtitle_of, win_rate_vs_budget
from eef.analysis.parameter_curve import draw_curve
from eef.sweeps.strict_yaml import load_yaml

ROOT = Path(__file__).parents[1]
DRAWN = ("win_rate_vs_budget", "win_rate_over_parameter", "difference_map")


def redraw(folder: Path, names: Sequence[str] = DRAWN) -> list[Path]:
    """Draw the pictures of the tables ``names`` in ``folder``, where it has them. ValueError if a table changes."""
    pictures = []
    for name in names:
        file = folder / f"{name}.csv"
        if not file.is_file():
            continue
        before = file.read_bytes()
        pictures.append(_draw(name, folder))
        if file.read_bytes() != before:
            file.write_bytes(before)
            raise ValueError(f"{file}: drawing it again changes the table; it was written back. Run the sweep again")
    return pictures


def _draw(name: str, folder: Path) -> Path:
    table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""])
    if name == "win_rate_vs_budget":
        return win_rate_vs_budget(_runs(table), folder)
    sweep = ROOT / "experiments" / f"{folder.resolve().name}.yaml"
    figure: dict[str, Any] = (
        load_yaml(sweep.read_text(encoding="utf-8"), str(sweep))["figure"] if sweep.is_file() else {}
    )
    words = {key: figure[key] for key in ("x_label", "y_label", "headline") if key in figure}
    if name == "difference_map":
        return draw_map(table, _runs(pd.read_csv(folder / "outcomes.csv")), folder, **words)
    return draw_curve(table, subtitle_of(_runs(table).assign(n_test=_tests(folder))), folder, **words)


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table with the columns of runs. The runs of one sweep were compared when they were drawn first."""
    return rows.assign(env=rows["run_id"].str.partition("__")[0], hashes=[{}] * len(rows))


def _tests(folder: Path) -> int:
    """How many test subtasks a run has; they are the same for all."""
    return len(pd.read_csv(folder / "subtasks.csv").query("test_set == 1"))


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:]]
    for folder in named or sorted({path.parent for name in DRAWN for path in ROOT.glob(f"figures/*/{name}.csv")}):
        print(*redraw(folder), sep="\n")
