"""Runs as arms: what may be compared, what an arm is called, and the results of each.

An arm is a method with its experts and its budget; its runs differ in the seed alone. The frames come from
:func:`eef.tracking.runs.load_runs`. Nothing here trains or simulates: the run folders hold the results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from eef.analysis.statistics import over_seeds, read_by_task
from eef.files import digest
from eef.trajectory import Trajectory, load

RUN_COLUMNS = ["method", "m", "n", "experts", "seed", "episodes", "env_steps", "tokens"]
RUN_COLUMNS += ["win_rate", "win_low", "win_high", "win_rate_easy", "win_rate_medium", "win_rate_hard"]
RUN_COLUMNS += ["mean_reward", "n_test", "errors", "run_id"]
# Simulations that ended in an error, and expert trajectories from which nothing was learnt. Tables written as CSV have
# these columns only where one is not 0.
PROBLEM_COLUMNS = ["simulation_errors", "expert_divergences", "expert_errors"]
NUMBERS = ["n", "m", "k"]  # of simulations; part of an arm
ARM_COLUMNS = ["method", "experts", *NUMBERS]
NAMES = {  # of methods that have another name in figures; every other method is called by its own
    "sft_pos": "BC (SFT-pos)",
    "sft_all": "SFT-all",
    "nat": "NAT",
    "eto": "ETO",
    "rft": "RFT × N",
    "eef": "EEF, M states",
    "eef_adaptive": "EEF planned, M states",
    "eef_soft": "EEF soft, M states",
    "eef_pairs": "EEF with pairs, M states",
    "ceiling": "ceiling: SFT on perfect demonstrations",
}
_OPTION_NAMES = {  # of options in figures and tables; an option that is not here keeps its own
    "restart_only=True": "restart only",
    "random_segments=True": "random segments",
    "mask_harmful=False": "harmful actions carry loss",
    "recovery=False": "no recovery states",
    "one_per_state=False": "all solutions",
    "all_experts=True": "experts' wins too",
    "own_pairs=True": "own pairs",
    "adaptive=False": "evenly spaced states",
    "weighted=False": "all weights 1",
    "verified=False": "flips in doubt too",
}
_DEFAULTS = {("eto", "n"): 1}  # numbers that a name leaves out
GRADES = ("easy", "medium", "hard")
_GRADE_COLUMNS = [f"win_rate_{grade}" for grade in GRADES]
_MOST_GROUPS = 4  # that tables have columns for
_BEYOND = ["eef_adaptive", "eef_soft", "eef_pairs"]
_ORDER = ["sft_pos", "sft_all", "nat", "eto", "rft", "eef", *_BEYOND, "", "ceiling"]  # in lists; "" is any other


class FigureError(ValueError):
    """Runs that cannot be shown together; the message names them."""


class Arm(NamedTuple):
    """A method, its experts and its budget. An ablation is a method too: ``eef_recovery=False``."""

    method: str
    experts: str
    n: int | None = None
    m: int | None = None
    k: int | None = None  # None for 1


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, if they share the environment and all hashes (such as data, split, chat); else :class:`FigureError`."""
    if runs.empty:
        raise FigureError("no finished runs; `eef runs` lists all runs")
    facts = pd.DataFrame([{"env": row["env"], **row["hashes"]} for row in records(runs)], index=list(runs["run_id"]))
    for name in facts.columns:
        values = facts[name].fillna("none").astype(str)
        if values.nunique() > 1:
            by_value = values.groupby(values).groups.items()
            groups = [f"{str(value)[:16]} in {_first_three(list(ids))}" for value, ids in by_value]
            raise FigureError(f"these runs cannot be compared, their {name!r} differs: {'; '.join(groups)}")
    return runs


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def run_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run, sorted, floats rounded to six digits: equal runs give equal bytes.

    It has the columns ``win_rate_GROUP`` of :func:`group_columns`, or those of easy, medium and hard; ``k`` and
    ``mean_max_score`` where a run has them.
    """
    columns = [*RUN_COLUMNS[:-1], *problem_columns(runs), RUN_COLUMNS[-1]]
    if "k" in runs and runs["k"].notna().any():
        columns.insert(columns.index("experts"), "k")
    if "mean_max_score" in runs and runs["mean_max_score"].notna().any():
        columns.insert(columns.index("n_test"), "mean_max_score")
    if (groups := group_columns(runs)) and not {*groups} <= {*_GRADE_COLUMNS}:  # other groups than easy, medium, hard
        columns[columns.index(_GRADE_COLUMNS[0]) : columns.index(_GRADE_COLUMNS[-1]) + 1] = groups
    frame = runs.reindex(columns=columns)
    for name in columns:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if name not in ("method", "experts", "run_id"):
            whole = (numbers.dropna() % 1 == 0).all() and not name.startswith(("win_", "mean_"))
            frame[name] = numbers.astype("Int64") if whole else numbers.round(6)
    order = [name for name in ARM_COLUMNS if name in frame]
    return frame.sort_values([*order, "seed", "run_id"], na_position="first", ignore_index=True)


def whole_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of arms or of pairs of arms, with their numbers of simulations as integers.

    The columns of ``k`` are left out where no arm has it.
    """
    table = table.copy()
    for name in table:
        if str(name).removeprefix("against_") in NUMBERS:
            table[name] = pd.to_numeric(table[name]).astype("Int64")
    ks = [name for name in ("k", "against_k") if name in table]
    return table if table[ks].notna().any(axis=None) else table.drop(columns=ks)


def plain_eef(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of EEF with all its parts and one simulation per state."""
    frame = runs.reindex(columns=[*dict.fromkeys([*runs.columns, "method", "m", "k"])])
    return frame[(frame["method"] == "eef") & frame["m"].notna() & frame["k"].isna()]


def arm_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: means over seeds, sums of errors, and the 95 % interval of the win rate (NaN for one seed).

    ``seeds`` counts those with a win rate. :class:`FigureError` for several runs of one seed, or of other settings.
    """
    frame = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *RUN_COLUMNS, "k", *PROBLEM_COLUMNS])])
    more = [*PROBLEM_COLUMNS] + [name for name in group_columns(frame) if name not in RUN_COLUMNS]
    rows = []
    for key, group in frame.groupby(ARM_COLUMNS, dropna=False, sort=True):
        check_one_run_per_seed(group)
        rates = pd.to_numeric(group["win_rate"]).dropna()
        low, high = over_seeds(rates)[1:] if len(rates) else (math.nan, math.nan)
        means = group[[c for c in [*RUN_COLUMNS[5:-1], *more] if not c.startswith("win_l") and c != "win_high"]]
        numbers = means.apply(pd.to_numeric, errors="coerce")
        rows.append(
            {
                **dict(zip(ARM_COLUMNS, key, strict=True)),
                "seeds": len(rates),
                **{**numbers.mean(), **numbers[["errors", *PROBLEM_COLUMNS]].sum(min_count=1)},
                "win_low": low,
                "win_high": high,
            }
        )
    return whole_numbers(pd.DataFrame(rows))


def problem_columns(table: pd.DataFrame) -> list[str]:
    """Those of ``PROBLEM_COLUMNS`` that have a value other than 0."""
    known = [name for name in PROBLEM_COLUMNS if name in table]
    return [name for name in known if pd.to_numeric(table[name]).fillna(0).ne(0).any()]


def group_columns(table: pd.DataFrame) -> list[str]:
    """The columns ``win_rate_GROUP`` that have a value: first easy, medium, hard. None if there are more than four."""
    start = "win_rate_"
    filled = [str(name) for name in table if str(name).startswith(start) and table[name].notna().any()]
    ends = {"low", "high"} if "reward_low" in table else set()  # in the paper's tables: of the win rate's interval
    return [start + name for name in shown_groups({name.removeprefix(start) for name in filled} - ends)]


def shown_groups(names: Iterable[str]) -> list[str]:
    """Groups of subtasks in the order of columns: first easy, medium, hard. None if there are more than four."""
    order = sorted(names, key=lambda group: (GRADES.index(group) if group in GRADES else len(GRADES), group))
    return order if len(order) <= _MOST_GROUPS else []


def read_episodes(group: pd.DataFrame) -> pd.DataFrame:
    """The test episodes of one arm's runs: the rows of each ``eval/episodes.csv``, with ``seed`` and ``error``.

    :class:`FigureError` for several runs of one seed, and where a file is missing.
    """
    check_one_run_per_seed(group)
    tables = []
    for row in records(group):
        path = Path(row["folder"]) / "eval" / "episodes.csv"
        if not path.is_file():
            raise FigureError(f"{path} is missing: the figure needs the result of each test task; start the run again")
        tables.append(read_by_task(path).assign(seed=row["seed"]))
    episodes = pd.concat(tables, ignore_index=True)
    return episodes.assign(error=episodes.get("error", pd.Series(False, index=episodes.index)).astype(bool))


def check_one_run_per_seed(group: pd.DataFrame) -> None:
    """:class:`FigureError` if two of an arm's runs share a seed or differ in a setting."""
    settings = varying(group) if "config" in group else []
    if settings or len(group) != group["seed"].nunique():
        what = f"one arm differ in {', '.join(settings)}" if settings else "one method and seed"
        raise FigureError(
            f"several runs of {what} ({_first_three(list(group['run_id']))}): they differ in a parameter that the "
            "figure does not show; draw one sweep with --sweep, or choose another --root"
        )


def read_stage(row: dict[str, Any], name: str) -> list[Trajectory]:
    """The trajectories of a stage of the run ``row``. :class:`FigureError` where the run has no such stage."""
    path = Path(row["folder"]) / name / "trajectories.jsonl"
    if not path.is_file():
        raise FigureError(f"{path} is missing: the figure needs this stage of the run; start the run again")
    return load(path)


def reference_arm(arms: Iterable[Arm], experts: str) -> Arm | None:
    """What other arms are compared with: RFT with the largest n, else behaviour cloning; on ``experts`` if there are
    several. None if there is neither.
    """
    for method in ("rft", "sft_pos"):
        if own := [arm for arm in arms if arm.method == method]:
            return max(own, key=lambda arm: (arm.n or 0, arm.experts == experts, -len(arm.experts)))
    return None


def most_common_experts(groups: Mapping[Arm, pd.DataFrame]) -> str:
    """The experts of most runs but ceilings; empty where no run names its experts."""
    runs = pd.concat(groups.values())
    return str(next(iter(runs.loc[runs["method"] != "ceiling", "experts"].mode()), ""))


def by_arm(runs: pd.DataFrame) -> dict[Arm, pd.DataFrame]:
    """The runs of each arm, in display order: behaviour cloning, RFT by n, EEF by m, ablations, the ceiling."""
    frame = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *RUN_COLUMNS, "k"])])
    groups: list[tuple[Any, pd.DataFrame]] = list(frame.groupby(ARM_COLUMNS, dropna=False))
    arms = {arm_of(dict(zip(ARM_COLUMNS, key, strict=True))): group for key, group in groups}
    return {arm: arms[arm] for arm in sorted(arms, key=_place)}


def _place(arm: Arm) -> tuple[Any, ...]:
    place = _ORDER.index(arm.method if arm.method in _ORDER else "")
    return place, arm.method, arm.experts, arm.n or 0, arm.m or 0, arm.k or 0


def variant(method: str, options: Mapping[str, Any]) -> str:
    """The name that results have for a method with ``options``: ``eef_recovery=False``, or ``mine, size=3``.

    A comma separates the options of methods that are not in ``NAMES``, since their names may contain ``_``.
    """
    comma = "_" if method in NAMES else ", "
    return method + "".join(f"{comma}{name}={value}" for name, value in options.items())


def _parts(method: str) -> tuple[str, str]:
    """The inverse of :func:`variant`: the method and its options."""
    name, comma, options = method.partition(", ")
    if "=" in name and not comma:
        name = max((each for each in NAMES if method.startswith(f"{each}_")), key=len, default=method)
        options = method[len(name) + 1 :]
    return name, options


def _option_texts(method: str) -> list[str]:
    """The options in a method's name, each as ``name=value``."""
    name, options = _parts(method)
    ends = r"(?:_(?=[a-z]\w*=)|$)" if name in NAMES else r"(?:, |$)"
    return [text for text, _ in re.findall(rf"([a-z]\w*?=(.+?)){ends}", options)]


def method_options(method: str) -> tuple[str, list[str]]:
    """A method without its options, and their names: ``("eef", ["restart_only"])``."""
    return _parts(method)[0], [text.partition("=")[0] for text in _option_texts(method)]


def varying(runs: pd.DataFrame, all_names: bool = False) -> list[str]:
    """The keys of the configuration in which the runs differ, other than the seed.

    Those that an arm's name shows (method, budget, experts and the method's options) are left out unless ``all_names``.
    """
    configs = [dict(config or {}) for config in runs["config"]]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key != "seed"]
    keys = [key for key in keys if len({digest(config.get(key)) for config in configs}) > 1]
    options = {name for method in runs["method"] for name in method_options(str(method))[1]}
    return keys if all_names else [key for key in keys if key not in {*ARM_COLUMNS, *options}]


def as_text(value: Any) -> str:
    """A value of a configuration as text; lists and mappings as JSON."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def is_ablation(method: str) -> bool:
    """Whether this is EEF with another value of one of its options."""
    name, options = _parts(method)
    return name == "eef" and bool(options)


def method_name(method: str) -> str:
    """The display name of a method; the options of an ablation follow it."""
    name = _parts(method)[0]
    known = [_OPTION_NAMES.get(text, text) for text in _option_texts(method)]
    if name in NAMES:  # of others, the options stay as their author wrote them
        known = [text.replace("_", " ").replace("=", " ") for text in known]
    return ", ".join([NAMES.get(name, name), *known])


def line_name(arms: Sequence[Arm]) -> str:
    """The display name of a line of arms of one method: with its numbers of simulations where they do not vary."""
    method = arms[0].method
    name, shown = method_name(method), NAMES.get(_parts(method)[0], "")
    for letter, in_name in (("n", "× N"), ("m", "M states"), ("k", "K simulations")):
        values = {getattr(arm, letter) for arm in arms} - {_DEFAULTS.get((method, letter))}
        if len(values) == 1 and in_name not in shown and None not in values:
            name += f", {letter.upper()} = {values.pop()}"
    return name


def arm_name(arm: Arm, experts: bool = False) -> str:
    """The display name of an arm, ``RFT × 6`` or ``EEF, M = 5``; with its experts if ``experts`` is true."""
    name = line_name([arm]).split(":")[0]
    name = name.replace("× N", f"× {arm.n}" if arm.n else "").replace("M states", f"M = {arm.m}" if arm.m else "")
    name = name.strip(", ").replace(", ,", ",")
    return name + (f", experts: {arm.experts}" if experts and arm.method != "ceiling" else "")


def arm_names(arms: Iterable[Arm], usual: str | None = None) -> dict[Arm, str]:
    """The display names of arms that are shown together, with their experts where those of one method differ.

    With ``usual`` an arm is named with its experts where they are others than these.
    """
    arms = list(arms)
    experts: dict[str, set[str]] = {}
    for arm in arms:
        experts.setdefault(arm.method, set()).add(arm.experts)
    shown = {arm: arm.experts != usual if usual is not None else len(experts[arm.method]) > 1 for arm in arms}
    return {arm: arm_name(arm, shown[arm]) for arm in arms}


def arm_of(row: Mapping[str, Any], start: str = "") -> Arm:
    """The arm of a row of a table; ``start`` begins the names of its columns."""
    numbers = (row.get(start + name) for name in NUMBERS)
    n, m, k = (None if number is None or pd.isna(number) else int(number) for number in numbers)
    experts = row.get(start + "experts")
    return Arm(str(row[start + "method"]), "" if experts is None or pd.isna(experts) else str(experts), n, m, k)
