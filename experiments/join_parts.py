"""Joins the tables of a sweep that ran in parts, on several machines or with other seeds, and draws its pictures.

    eef sweep experiments/main_comparison.yaml -p "seeds=[317, 318, 319, 320]" --out part
    python experiments/join_parts.py figures/main_comparison part --out figures/main_comparison

Tables with a row per run are joined, sorted as one sweep sorts them: ``outcomes.csv`` and, where all parts have them,
``win_rate_vs_budget.csv``, ``win_rate_over_parameter.csv`` and ``seconds.csv``. The parts must have the same test
subtasks, the same settings of each arm (the last part of a run's name), and no arm with the same seed in two of them.
Other tables cannot be joined (``navigation.csv``, ``difference_map.csv``): the script names those in the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from redraw_figures import DRAWN, redraw

from eef.analysis.arms import ARM_COLUMNS, PROBLEM_COLUMNS
from eef.analysis.outcomes import BUDGET

KEYS = ["x", *ARM_COLUMNS, "seed", "run_id"]
JOINED = ("outcomes", "win_rate_vs_budget", "win_rate_over_parameter", "seconds")


def join(parts: list[Path], out: Path) -> list[Path]:
    """Join ``parts`` into ``out``; returns the pictures. ValueError if they are not parts of one sweep."""
    subtasks = {(part / "subtasks.csv").read_bytes() for part in parts}
    if len(subtasks) > 1:
        raise ValueError(f"{parts[0]} and {parts[1]}: subtasks.csv differs, so these are not parts of one sweep")
    tables = {}
    for name in JOINED:
        files = [part / f"{name}.csv" for part in parts]
        if missing := [file for file in files if not file.is_file()]:
            if name == "outcomes" or len(missing) < len(parts):
                raise ValueError(f"{missing[0]} is missing: draw that part again")
            continue
        frames = [pd.read_csv(file, dtype=str, keep_default_na=False) for file in files]
        problems = [each for each in PROBLEM_COLUMNS if any(each in frame for frame in frames)]
        frames = [_with_columns(frame, problems) for frame in frames]
        if len({tuple(frame) for frame in frames}) > 1:
            raise ValueError(f"{name}.csv has other columns in some parts: run them with the same code and parameters")
        table = pd.concat(frames)
        if len(twice := table[table.duplicated("run_id")]):
            raise ValueError(f"{name}.csv: the run {twice['run_id'].iloc[0]} is in two parts: leave one of them out")
        table = table.reset_index(drop=True)
        numbers = {key: pd.to_numeric(table[key]).fillna(-1) for key in ("x", "n", "m", "k", "seed") if key in table}
        keys = ["x", "run_id"] if name == "win_rate_over_parameter" else [key for key in KEYS if key in table]
        tables[name] = table.loc[table.assign(**numbers).sort_values(keys).index]
    _check_arms(tables["outcomes"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "subtasks.csv").write_bytes(subtasks.pop())
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
    for path in sorted(out.glob("*.csv")):
        if path.stem not in (*tables, "subtasks"):
            print(f"{path} was not joined: it is of one part alone or of an earlier join; draw it from all run folders")
    return redraw(out, [name for name in DRAWN if name in tables])


def _with_columns(table: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """``table`` with these counts of errors before its last column; a part leaves out those that are all 0."""
    *others, last = [name for name in table if name not in problems]
    return table.reindex(columns=[*others, *problems, last], fill_value="0")


def _check_arms(outcomes: pd.DataFrame) -> None:
    """ValueError where an arm has a seed twice, or other settings in another part. An arm includes its parameters."""
    arm = [name for name in outcomes if name not in ("seed", "test_set", "outcomes", "run_id", *BUDGET)]
    if len(twice := outcomes[outcomes.duplicated([*arm, "seed"])]):
        named = twice[[*arm, "seed"]].iloc[0].to_dict()
        raise ValueError(f"two parts have a run of {named}: leave one of them out")
    settings = outcomes["run_id"].str.rsplit("__", n=1).str[-1]
    for _, runs in outcomes.groupby(arm):
        if settings[runs.index].nunique() > 1:
            first = runs["run_id"].groupby(settings).first()
            raise ValueError(
                f"the parts ran one arm with other settings ({first.iloc[0]} and {first.iloc[1]}): compare the "
                "config.json of both, and run all seeds with the same"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=Path, nargs="+", metavar="FOLDER", help="figures of each part")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    print(*join(args.parts, args.out), sep="\n")


if __name__ == "__main__":
    main()
