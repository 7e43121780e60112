"""Tables from finished runs: the comparison of all arms, paired differences, and the paper's tables.

Each number comes with its interval and its cost. The paper's tables are written as CSV (numbers, run ids) and as
Markdown (for reading). Intervals and differences are those of :mod:`eef.analysis.statistics`: Student t over seeds,
with differences paired on equal seeds and test subtasks. ``p_holm`` adjusts for all differences of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from eef.analysis.arms import (
    GRADES,
    Arm,
    FigureError,
    arm_name,
    arm_names,
    arm_of,
    arm_table,
    by_arm,
    comparable,
    group_columns,
    is_ablation,
    most_common_experts,
    problem_columns,
    read_episodes,
    records,
    shown_groups,
    whole_numbers,
)
from eef.analysis.statistics import holm, interval, paired
from eef.files import disk_errors, read_json

_COST = ("episodes", "env_steps", "tokens")
_ON_GROUPS = ("difference", "low", "high", "pairs")  # columns of a difference on one group of subtasks
_DIFFERENCE = ("difference", "low", "high", "p", "gains", "common_seeds")


def results_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The comparison of all arms for reading: win rates in % with their intervals, and the cost. A row per arm.

    ``errors`` are test episodes and ``simulation errors`` simulations that ended in an error. ``experts dropped`` are
    expert trajectories from which nothing was learnt: they diverge from their replay, or the environment failed. All
    three are counts over all seeds.
    """
    arms = arm_table(comparable(runs)).sort_values(["episodes", "method"], ignore_index=True)
    each = [arm_of(row) for row in records(arms)]
    names = arm_names(each)
    shown = pd.DataFrame({"method": [names[arm] for arm in each], "experts": arms["experts"]})
    shown["seeds"] = arms["seeds"]
    for name in _COST:
        shown[name] = arms[name]
    shown["win %"] = [f"{100 * rate:.1f}" for rate in arms["win_rate"]]
    shown["95 % interval"] = [spread(*ends, ".1f", 100) for ends in zip(arms["win_low"], arms["win_high"], strict=True)]
    for name in group_columns(arms):
        rates = [f"{100 * rate:.1f}" if pd.notna(rate) else "" for rate in arms[name]]
        shown[name.removeprefix("win_rate_")] = rates
    shown["reward"] = [f"{reward:.3f}" if pd.notna(reward) else "" for reward in arms["mean_reward"]]
    counts = {"tasks": arms["n_test"], "errors": arms["errors"], "simulation errors": arms["simulation_errors"]}
    counts["experts dropped"] = arms[["expert_divergences", "expert_errors"]].sum(axis=1, min_count=1)
    for name, column in counts.items():
        shown[name] = column
    for name in (*_COST, *counts):
        shown[name] = ["" if pd.isna(value) else f"{float(value):.0f}" for value in shown[name]]
    return shown.fillna("")


def result_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """The result of one experiment (:func:`eef.experiment.experiment`) for reading, in one row."""
    win_rate, low, high = (
        "-" if result[name] is None else f"{100 * result[name]:.1f}" for name in ("win_rate", "win_low", "win_high")
    )
    reward = result["mean_reward"]
    row = {
        "method": arm_name(arm_of(result)),
        "win rate": f"{win_rate} %",
        "95 % interval over subtasks": f"{low} to {high} %",
        "mean reward": "-" if reward is None else f"{reward:.3f}",
        "test subtasks": result["n_test"],
        "simulated episodes": result["episodes"],
        "seconds": f"{result['seconds']:.0f}",
        "run": result["run_id"],
    }
    if errors := result.get("errors", 0) + result.get("simulation_errors", 0):
        row["errors"] = errors
    return pd.DataFrame([row]).set_index("run")  # pandas cuts long texts in columns, but not in the index


def paired_table(runs: pd.DataFrame, against: Any = None, out: str | Path | None = None) -> pd.DataFrame:
    """Differences of win rates on the same (seed, task) pairs, one row per pair of arms, by
    :func:`eef.analysis.statistics.paired`.

    ``against`` is a list of pairs of arms (first minus second), or one reference arm for all others; an arm is
    (method, experts, n, m, k), trailing None omitted. Default: EEF minus RFT, all minus behaviour cloning, each
    ablation of EEF minus EEF with the same numbers and experts. Arms with different seeds are compared on their common
    seeds. Columns: both arms (the second as ``against_...``), ``seeds``, ``pairs``, ``errors`` (excluded pairs),
    ``difference`` with ``low`` and ``high`` (fractions, 95 % over seeds; NaN for one seed), ``p`` (t-test over seeds),
    ``p_holm`` (adjusted for all rows of the table), ``gains`` (seeds with a positive difference), simulated
    ``episodes`` of both (means over the seeds), and ``hard_difference``, ``hard_low``, ``hard_high``, ``hard_pairs``:
    the same on the test subtasks of the group ``hard``, NaN where there is none. If the environment has other groups
    than easy, medium and hard, at most four, the table has these columns for each group instead. Written to
    ``out/paired.csv`` if ``out`` is given.

    :class:`FigureError` for runs that are not comparable, an unknown arm, and arms without a common seed.
    """
    groups = by_arm(comparable(runs))
    pairs = _pairs(list(groups), against)
    unknown = [arm for pair in pairs for arm in pair if arm not in groups]
    if unknown:
        raise FigureError(f"no runs of {tuple(unknown[0])}; there are {'; '.join(str(tuple(arm)) for arm in groups)}")
    if not pairs:
        names = ", ".join(arm_names(groups).values())
        raise FigureError(f"nothing to compare with these arms alone: {names}; against=(method, experts) names an arm")
    episodes = {arm: read_episodes(groups[arm]) for arm in groups if any(arm in pair for pair in pairs)}
    parts = compared_groups(episodes.values())
    table = _with_holm(whole_numbers(pd.DataFrame([_difference(a, b, groups, episodes, parts) for a, b in pairs])))
    for name in (f"{part}_pairs" for part in parts):
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    if out is not None:
        write_table(table, out, "paired")
    return table


def _pairs(arms: list[Arm], against: Any) -> list[tuple[Arm, Arm]]:
    if not against:
        pairs = [(a, b) for a in arms for b in arms if a.method == "eef" and b.method == "rft"]
        pairs += [(a, b) for a in arms for b in arms if a.method != "sft_pos" and b.method == "sft_pos"]
        ablations = [arm for arm in arms if is_ablation(arm.method)]
        return pairs + [(a, b) for a in ablations for b in arms if b == a._replace(method="eef")]
    if isinstance(against[0], str):
        return [(arm, Arm(*against)) for arm in arms if arm != Arm(*against)]
    return [(Arm(*a), Arm(*b)) for a, b in against]


def compared_groups(episodes: Iterable[pd.DataFrame]) -> list[str]:
    """The groups of test subtasks on which arms are compared: the environment's own, or the hard ones."""
    names = {str(name) for table in episodes if "group" in table for name in table["group"].dropna()}
    own = shown_groups(names)
    return own if set(own) - {*GRADES} else ["hard"]


def _difference(
    a: Arm, b: Arm, groups: dict[Arm, pd.DataFrame], episodes: dict[Arm, pd.DataFrame], parts: list[str]
) -> dict[str, Any]:
    names = f"{arm_name(a, True)} and {arm_name(b, True)}"
    seeds = set(groups[a]["seed"]) & set(groups[b]["seed"])
    if not seeds:
        raise FigureError(f"{names} have no seed in common: run both with the same seeds")
    first, second = (episodes[arm][episodes[arm]["seed"].isin(seeds)] for arm in (a, b))
    row: dict[str, Any] = {**a._asdict(), **{f"against_{name}": value for name, value in b._asdict().items()}}
    row["seeds"] = len(seeds)
    shared = [(f"{part}_", _in_group(first, part), _in_group(second, part)) for part in parts]
    for start, table_a, table_b in (("", first, second), *shared):
        difference: dict[str, Any] = dict.fromkeys(_ON_GROUPS)
        if not table_a.empty or not start:
            try:
                difference = paired(table_a, table_b)._asdict()
            except ValueError as error:
                raise FigureError(f"{names}: {error}") from None
        row |= {start + name: value for name, value in difference.items() if not start or name in _ON_GROUPS}
    for start, arm in (("", a), ("against_", b)):
        spent = groups[arm].loc[groups[arm]["seed"].isin(seeds), "episodes"]
        row[f"{start}episodes"] = float(pd.to_numeric(spent).mean())
    return row


def _in_group(episodes: pd.DataFrame, name: str) -> pd.DataFrame:
    return episodes[episodes["group"] == name] if "group" in episodes else episodes.iloc[:0]


def main_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """All methods against RFT with the largest n (paper, Table 1), written as ``main_table``; EEF with the largest m.

    A row per method: win rate and mean reward (fractions) with 95 % intervals, the mean of ``max_score`` where episodes
    have one, win rates by group, simulated episodes, environment steps, sampled tokens and seconds (means over seeds;
    the seconds of all stages, shared ones included), and its win rate minus RFT's: ``difference``, ``low``, ``high``,
    ``p``, ``p_holm`` and ``gains`` (of ``common_seeds``) as in :func:`paired_table`, empty without an RFT run.
    :class:`FigureError` for runs that are not comparable.
    """
    groups = by_arm(comparable(runs))
    best = _largest_eef(groups)
    usual = best.experts if best else most_common_experts(groups)
    arms = [arm for arm in groups if not is_ablation(arm.method) and _in_main_table(arm.experts, usual)]
    arms = [arm for arm in arms if arm.method != "eef" or best is None or arm.m == best.m]
    return _write(_compared(groups, arms or list(groups), _largest_rft(groups, usual)), out, "main_table")


def ablation_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """EEF with the largest m against EEF without one of its parts, with fewer states, and on other experts.

    Columns as in :func:`main_table`, differences from the complete EEF; written as ``ablation_table``.
    """
    groups = by_arm(comparable(runs))
    best = _largest_eef(groups)
    if best is None:
        raise FigureError("no finished EEF run: the ablation table compares it with its ablations")
    arms = [arm for arm in groups if arm.method == "eef" or is_ablation(arm.method)]
    arms += [arm for arm in groups if arm.method == "sft_pos" and arm.experts in {row.experts for row in arms}]
    return _write(_compared(groups, arms, best), out, "ablation_table")


def regime_table(runs: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """The methods for each number of training subtasks and each base policy, against RFT with the largest n there.

    Columns as in :func:`main_table`, with ``train`` and ``policy`` before them; written as ``regime_table``. Runs are
    compared only within a regime.
    """
    configs = pd.DataFrame([row["config"] for row in records(runs)], index=runs.index)
    tables = []
    for train, policy in sorted({(int(row["train"]), str(row["model"])) for row in records(configs)}):
        groups = by_arm(comparable(runs[(configs["train"] == train) & (configs["model"] == policy)]))
        table = _compared(groups, list(groups), _largest_rft(groups, most_common_experts(groups)))
        table.insert(0, "policy", Path(policy).name)
        table.insert(0, "train", train)
        tables.append(table)
    if not tables:
        raise FigureError("no finished runs: the regime table has no rows")
    whole = pd.concat(tables, ignore_index=True).drop(columns="p_holm")  # there it was for one regime
    return _write(_with_holm(whole), out, "regime_table")


def _largest_eef(groups: dict[Arm, pd.DataFrame]) -> Arm | None:
    """The complete EEF with the largest m and without k, on the most common experts; None if there is no EEF."""
    complete = [arm for arm in groups if arm.method == "eef"]
    usual = most_common_experts(groups)
    return max(complete, key=lambda arm: (arm.k is None, arm.m or 0, arm.experts == usual), default=None)


def _largest_rft(groups: dict[Arm, pd.DataFrame], experts: str) -> Arm | None:
    """RFT with the largest n, on ``experts`` if there are several; None if there is no RFT."""
    arms = [arm for arm in groups if arm.method == "rft"]
    return max(arms, key=lambda arm: (arm.n or 0, arm.experts == experts), default=None)


def _in_main_table(experts: str, usual: str) -> bool:
    """Whether the main table has rows of these experts: the usual ones, alone or with others, and perfect ones."""
    return experts in ("perfect", usual) or usual in experts.split("+")


def _compared(groups: dict[Arm, pd.DataFrame], arms: list[Arm], against: Arm | None) -> pd.DataFrame:
    """A row per arm, with its difference from ``against`` on their common seeds."""
    reference = read_episodes(groups[against]) if against else pd.DataFrame()
    rows = []
    for arm in arms:
        group, episodes = groups[arm], read_episodes(groups[arm])
        row: dict[str, Any] = {**arm._asdict(), "seeds": episodes.loc[~episodes["error"], "seed"].nunique()}
        for name, value in (("win_rate", "won"), ("reward", "reward")):
            mean, low, high = interval(episodes, value=value)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        if "max_score" in episodes:
            row["max_score"] = float(episodes.loc[~episodes["error"], "max_score"].mean())
        if "group" in episodes:
            rated = episodes[~episodes["error"]].groupby("group")
            groups_of_tasks = ((f"win_rate_{name}", part["won"].mean()) for name, part in rated)
            row |= {name: rate for name, rate in groups_of_tasks if name not in row}  # not the interval
        row |= {name: float(pd.to_numeric(group[name]).mean()) for name in _COST}
        seconds = [read_json(Path(folder) / "timing.json")["seconds"] for folder in group["folder"]]
        row |= {"seconds": sum(seconds) / len(group), "errors": int(pd.to_numeric(group["errors"]).sum())}
        row |= {name: int(pd.to_numeric(group[name]).sum()) for name in problem_columns(pd.concat(groups.values()))}
        row |= dict.fromkeys(_DIFFERENCE)
        if against and arm != against:
            if not (seeds := set(episodes["seed"]) & set(reference["seed"])):
                names = f"{arm_name(arm, True)} and {arm_name(against, True)}"
                raise FigureError(f"{names} have no seed in common: run both with the same seeds")
            first, second = (table[table["seed"].isin(seeds)] for table in (episodes, reference))
            values = paired(first, second)._asdict()
            row |= {name: values[name.removeprefix("common_")] for name in _DIFFERENCE}
        rows.append({**row, "run_ids": " ".join(sorted(group["run_id"]))})
    table = _with_holm(whole_numbers(pd.DataFrame(rows)))
    for name in ("gains", "common_seeds"):
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    return table


def _with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column ``p_holm`` after ``p``."""
    table["p"] = pd.to_numeric(table["p"])
    table.insert(list(table).index("p") + 1, "p_holm", holm(table["p"].tolist()))
    return table


def _write(table: pd.DataFrame, out: str | Path, stem: str) -> pd.DataFrame:
    write_table(table, out, stem)
    path = Path(out) / f"{stem}.md"
    with disk_errors(path):
        path.write_text(markdown(readable(table)) + "\n", encoding="utf-8")
    return table


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """One of the paper's tables for reading: percentages, points and intervals as text."""
    shown, compared = [], table["p_holm"].notna().sum()
    for row in records(table):
        arm = arm_of(row)
        line: dict[str, Any] = {name: row[name] for name in ("train", "policy") if name in row}
        line |= {"method": arm_name(arm), "experts": arm.experts}
        line["win %"] = _with_ends(row, "win_rate", "win_rate_low", "win_rate_high", ".1f", 100)
        line |= {name.removeprefix("win_rate_"): f"{100 * row[name]:.1f}" for name in group_columns(table)}
        line["reward"] = _with_ends(row, "reward", "reward_low", "reward_high", ".3f")
        line |= {"max score": f"{row['max_score']:.3f}"} if "max_score" in row else {}
        line |= {name: f"{row[name]:,.0f}" for name in (*_COST, "seconds")}
        line |= {name.replace("_", " "): f"{row[name]:.0f}" for name in problem_columns(table)}
        line |= {"difference": "", "seeds with a gain": "", f"p (Holm, {compared} differences)": ""}
        if pd.notna(row["difference"]):
            line["difference"] = _with_ends(row, "difference", "low", "high", "+.1f", 100)
            line["seeds with a gain"] = f"{row['gains']} of {row['common_seeds']}"
        if pd.notna(row["p_holm"]):
            line[f"p (Holm, {compared} differences)"] = f"{row['p_holm']:.4f}"
        shown.append(line)
    return pd.DataFrame(shown)


def _with_ends(row: dict[str, Any], mean: str, low: str, high: str, form: str, scale: float = 1) -> str:
    """A mean with its interval in brackets: ``70.5 (66.9 to 74.2)``."""
    ends = spread(row[low], row[high], form, scale)
    return number(scale * row[mean], form) + (f" ({ends})" if ends else "")


def spread(low: float, high: float, form: str, scale: float = 1) -> str:
    """The ends of an interval as text, empty where there is no interval."""
    return "" if pd.isna(low) else f"{number(scale * low, form)} to {number(scale * high, form)}"


def number(value: float, form: str) -> str:
    """A number as tables show it, with a minus sign and not a hyphen."""
    return f"{value:{form}}".replace("-", "−")


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table with aligned columns."""
    rows = [[str(name) for name in frame], *[[str(value) for value in row] for row in frame.to_numpy()]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def write_table(frame: pd.DataFrame, out: str | Path, stem: str) -> Path:
    """Write ``out/stem.csv``, floats rounded to six digits: equal runs give equal bytes."""
    path = Path(out) / f"{stem}.csv"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.round(6).to_csv(path, index=False, lineterminator="\n")
    return path
