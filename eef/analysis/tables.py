"""The paper's tables from finished runs: main, ablations, regimes. Each number with its interval and its cost.

A table is written as CSV (numbers, run ids) and as Markdown (for people). Intervals and differences are those of
:mod:`eef.analysis.evaluate`: bootstraps over seeds and test subtasks, paired on the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.evaluate import interval, paired
from eef.analysis.figures import (
    Arm,
    FigureError,
    arm_name,
    by_arm,
    comparable,
    markdown,
    read_episodes,
    records,
    write_table,
)
from eef.files import disk_errors, read_json

_COST = ("episodes", "env_steps", "tokens")


def main_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """All methods beside RFT with the largest n (paper, Table 1): written as ``main_table``; EEF with the largest m.

    A row per method: win rate and mean reward (fractions) with 95 % intervals, in ScienceWorld the mean of the best
    score of each episode (``max_score``, ETO's reward), win rates by group, simulated episodes,
    environment steps, sampled tokens and seconds (means over seeds; the seconds of all stages, those that runs share
    included), and its win rate less RFT's with interval and p-value (of one comparison, not adjusted for many).
    :class:`FigureError` where there is no RFT or no EEF run, and for runs that are not comparable.
    """
    groups = by_arm(comparable(runs))
    best = _eef(groups)
    reference = _rft(groups, best.experts)
    if reference is None:
        raise FigureError("no finished RFT run to compare with: the main table needs one")
    rows = [arm for arm in groups if not arm.method.startswith("eef_") and _alike(arm.experts, best.experts)]
    return _write(_compared(groups, [arm for arm in rows if arm.m in (None, best.m)], reference), out, "main_table")


def ablation_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """EEF with the largest m beside EEF without one of its parts, with fewer states, and on other experts.

    Columns as in :func:`main_table`, the differences from EEF whole; written as ``ablation_table``.
    """
    groups = by_arm(comparable(runs))
    best = _eef(groups)
    rows = [arm for arm in groups if arm.method.startswith("eef")]
    rows += [arm for arm in groups if arm.method == "sft_pos" and arm.experts in {row.experts for row in rows}]
    return _write(_compared(groups, rows, best), out, "ablation_table")


def regime_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """The methods at each number of training subtasks and for each base policy, beside RFT with the largest n there.

    Columns as in :func:`main_table`, with ``train`` and ``policy`` before them; written as ``regime_table``. Runs are
    compared within a regime alone.
    """
    configs = pd.DataFrame([row["config"] for row in records(runs)], index=runs.index)
    tables = []
    for train, policy in sorted({(int(one["train"]), str(one["model"])) for one in records(configs)}):
        groups = by_arm(comparable(runs[(configs["train"] == train) & (configs["model"] == policy)]))
        found = _compared(groups, list(groups), _rft(groups, _usual(groups)))
        found.insert(0, "policy", Path(policy).name)
        found.insert(0, "train", train)
        tables.append(found)
    if not tables:
        raise FigureError("no finished runs to tell regimes of")
    return _write(pd.concat(tables, ignore_index=True), out, "regime_table")


def _eef(groups: dict[Arm, pd.DataFrame]) -> Arm:
    """EEF whole, with the largest m, on the experts that most runs have."""
    whole = [arm for arm in groups if arm.method == "eef"]
    if not whole:
        raise FigureError("no finished EEF run: the table compares it")
    usual = _usual(groups)
    return max(whole, key=lambda arm: (arm.m or 0, arm.experts == usual))


def _rft(groups: dict[Arm, pd.DataFrame], experts: str) -> Arm | None:
    """RFT with the largest n, on ``experts`` where there are several; None without one."""
    known = [arm for arm in groups if arm.method == "rft"]
    return max(known, key=lambda arm: (arm.n or 0, arm.experts == experts), default=None)


def _usual(groups: dict[Arm, pd.DataFrame]) -> str:
    """The experts that most runs have."""
    return str(pd.concat(groups.values())["experts"].mode()[0])


def _alike(experts: str, usual: str) -> bool:
    """Whether a row belongs to the main table: the usual experts, more beside them, or perfect ones."""
    return experts == "perfect" or usual in experts.split("+")


def _compared(groups: dict[Arm, pd.DataFrame], arms: list[Arm], against: Arm | None) -> pd.DataFrame:
    """A row per arm, the differences from ``against`` on the seeds that both have."""
    reference = read_episodes(groups[against]) if against else pd.DataFrame()
    rows = []
    for arm in arms:
        group, episodes = groups[arm], read_episodes(groups[arm])
        row: dict[str, Any] = {**arm._asdict(), "seeds": group["seed"].nunique()}
        for name, value in (("win_rate", "won"), ("reward", "reward")):
            found = interval(episodes, value=value)
            row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        if "max_score" in episodes:
            row["max_score"] = float(episodes.loc[~episodes["error"], "max_score"].mean())
        if "group" in episodes:
            row |= {f"win_rate_{name}": part["won"].mean() for name, part in episodes.groupby("group")}
        row |= {name: float(pd.to_numeric(group[name]).mean()) for name in _COST}
        row["seconds"] = sum(read_json(Path(folder) / "timing.json")["seconds"] for folder in group["folder"]) / len(
            group
        )
        row |= {
            "errors": int(pd.to_numeric(group["errors"]).sum()),
            "difference": None,
            "low": None,
            "high": None,
            "p": None,
        }
        if against and arm != against:
            seeds = set(episodes["seed"]) & set(reference["seed"])
            one, two = (table[table["seed"].isin(seeds)] for table in (episodes, reference))
            row |= {k: v for k, v in paired(one, two)._asdict().items() if k in ("difference", "low", "high", "p")}
        rows.append({**row, "run_ids": " ".join(sorted(group["run_id"]))})
    table = pd.DataFrame(rows)
    for name in ("n", "m"):
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    return table


def _write(table: pd.DataFrame, out: str | Path, stem: str) -> pd.DataFrame:
    write_table(table, out, stem)
    path = Path(out) / f"{stem}.md"
    with disk_errors(path):
        path.write_text(markdown(readable(table)) + "\n", encoding="utf-8")
    return table


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The same for people: percentages, points and intervals as text."""
    shown = []
    for row in records(table):
        arm = Arm(row["method"], row["experts"], *(None if pd.isna(row[x]) else int(row[x]) for x in ("n", "m")))
        line: dict[str, Any] = {name: row[name] for name in ("train", "policy") if name in row}
        line |= {"method": arm_name(arm), "experts": arm.experts}
        line["win %"] = (
            f"{100 * row['win_rate']:.1f} ({100 * row['win_rate_low']:.1f} to {100 * row['win_rate_high']:.1f})"
        )
        line |= {
            name.removeprefix("win_rate_"): f"{100 * row[name]:.1f}"
            for name in _grades(table)
        }  # fmt: skip
        line["reward"] = f"{row['reward']:.3f} ({row['reward_low']:.3f} to {row['reward_high']:.3f})"
        line |= {"max score": f"{row['max_score']:.3f}"} if "max_score" in row else {}
        line |= {name: f"{row[name]:,.0f}" for name in (*_COST, "seconds")}
        told = pd.notna(row["difference"])
        line["difference"] = (
            f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})" if told else ""
        )
        line["p"] = f"{row['p']:.4f}" if told else ""
        shown.append(line)
    return pd.DataFrame(shown)


def _grades(table: pd.DataFrame) -> list[str]:
    known = ["win_rate_easy", "win_rate_medium", "win_rate_hard"]
    return [name for name in known if name in table]
