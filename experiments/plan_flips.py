"""What a budget of simulations along expert failures gives: planned simulations beside evenly spaced states.

    python experiments/plan_flips.py                                               # synthetic failures
    python experiments/plan_flips.py --curves figures/plan_flips/states-100.csv    # measured by measure_states.py
    python experiments/plan_flips.py --curves figures/plan_flips/states-11?.csv --name fresh    # several seeds

It writes a table and draws a part of it. Give one file for each training seed: with several, the page and the picture
have means over the files with 95 % t-intervals, and the page has paired differences from EEF's states and labels.

Every state has a true win probability, and a simulation wins with it. A flip is a pair of neighbouring states of which
one wins at least half of the time and the other does not. The synthetic failures have several shapes. Their lost states
win .065 and their won ones .73 of the time on average, as measured with 40 simulations per state, and about a fifth of
their states are won. In a file each state has at least 20 simulations, and its win rate counts as the truth.

Ways to spend as many simulations: ``even`` (EEF: s0 and M evenly spaced states, ``k`` times each); ``planned`` (the
batches of eef_adaptive in eef/beyond.py, with the same policy in all); ``certain`` (those of eef_pairs). Two ways to
label a state: ``majority`` of its simulations (EEF) and ``model`` (the posterior mean of eef/planning.py).

Columns: curves (the source), shape, spend, label, m, k, simulations (per failure), solved (share of the failures with a
won state that give a win of such a state to learn from; with labels of the model, where no state is labelled won, it is
the state with a win and the largest estimate, as in eef/beyond.py), examples and wrong_examples (of important states,
per failure; an example is right if its win is from a won state and none of the expert's actions with loss is harmful),
flips (true ones per failure), hits (share of them inside a segment whose two ends were labelled so), per_simulation
(hits per simulation), right (share of the segments labelled beneficial or harmful that are), turns (mean length of a
segment with a hit), labels (share of the simulated states with a label whose label is right), rate_of_won and
rate_of_lost (true win probability of the states with that label, on average), error (mean absolute difference of the
estimated and the true win probability, over these states).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from eef.analysis.committed import with_ends
from eef.analysis.drawing import LOOKS, marker_style, picture
from eef.analysis.statistics import over_seeds
from eef.analysis.tables import markdown
from eef.beyond import without_solved
from eef.planning import Estimate, Line, estimate, fit, plan
from eef.selection import cut_points

LOST, WON, SHARE_WON = 0.065, 0.73, 0.2
SHAPES = {  # failures of each; a letter for each stretch of states: lost or won
    "never": (110, "L"), "always": (6, "W"), "rises": (20, "LW"), "falls": (20, "WL"), "rises and falls": (20, "LWL"),
    "falls and rises": (10, "WLW"), "no order": (14, "?"),
}  # fmt: skip
BUDGETS = ((1, 1), (2, 1), (5, 1), (10, 1), (5, 2), (5, 5))
ARMS = [("even", label, m, k) for label in ("majority", "model") for m, k in BUDGETS]
ARMS += [(spend, "model", m, k) for spend in ("planned", "certain") for m, k in BUDGETS]
ROUNDS = 3
ARM = ["spend", "label", "m", "k"]
METHODS = {  # whose simulations and labels these are, and how the picture calls it
    ("even", "majority"): ("eef", "EEF"),
    ("even", "model"): ("eef_soft", "EEF's states, labels of the model"),
    ("planned", "model"): ("eef_adaptive", "planned, as eef_adaptive"),
    ("certain", "model"): ("eef_pairs", "planned for certain labels, as eef_pairs"),
}


def synthetic(draw: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Shape and win probabilities of each failure. Around each mean the states vary (Beta of 15 or 7 counts)."""
    curves = []
    for shape, (count, stretches) in SHAPES.items():
        for _ in range(count):
            states = int(draw.integers(6, 16))
            if stretches == "?":
                won = draw.random(states) < SHARE_WON
            else:
                ends = np.sort(draw.choice(np.arange(1, states), len(stretches) - 1, replace=False))
                won = np.array([letter == "W" for letter in stretches])[np.searchsorted(ends, range(states), "right")]
            low, high = draw.beta(15 * LOST, 15 * (1 - LOST), states), draw.beta(7 * WON, 7 * (1 - WON), states)
            curves.append((shape, np.where(won, np.maximum(high, 0.5), np.minimum(low, 0.49))))
    return curves


def measured(path: Path) -> list[tuple[str, np.ndarray]]:
    """The win rates of a file. ValueError where a failure lacks a state or a state has fewer than 20 simulations."""
    frame = pd.read_csv(path, dtype={"task": str})
    curves = []
    for task, rows in frame.sort_values("state").groupby("task", sort=True):
        if rows["state"].tolist() != list(range(len(rows))):
            states = rows["state"].tolist()
            raise ValueError(f"{path}: the states of task {task} are {states}: give s_0 to s_(n-1), each once")
        if rows["simulations"].min() < 20:
            raise ValueError(f"{path}: task {task} has a state with fewer than 20 simulations: simulate it more often")
        curves.append(("measured", (rows["wins"] / rows["simulations"]).to_numpy()))
    return curves


def simulate(curves: list[np.ndarray], spend: str, m: int, k: int, draw: np.random.Generator) -> list[Line]:
    """The counts of each failure after the simulations of an arm."""
    wins = [np.zeros(len(curve), int) for curve in curves]
    counts = [np.zeros(len(curve), int) for curve in curves]

    def play(batch: list[tuple[int, int]]) -> None:
        for number, state in batch:
            counts[number][state] += 1
            wins[number][state] += draw.random() < curves[number][state]

    def lines() -> list[Line]:
        return [Line(tuple(map(int, w)), tuple(map(int, c))) for w, c in zip(wins, counts, strict=True)]

    def even(m: int) -> list[tuple[int, int]]:
        return [(number, state) for number, curve in enumerate(curves) for state in cut_points(len(curve), m)]

    s0 = [(number, 0) for number in range(len(curves))]
    if spend == "even":
        play((s0 + even(m)) * k)
        return lines()
    adaptive = spend == "planned"
    first = even(1) if adaptive else s0 + even(max(1, m - 1))
    play(first)
    left = k * len(s0 + even(m)) - len(first)
    rounds = ROUNDS - adaptive  # the middle states are a batch of eef_adaptive
    for batch in range(rounds):
        known = [without_solved(line) for line in lines()] if adaptive else lines()
        planned = plan(known, left // (rounds - batch), certainty=float(not adaptive))
        play(planned)
        left -= len(planned)
    return lines()


def by_majority(line: Line) -> Estimate:
    """A state has won if at least half of its simulations did, as in EEF with k simulations."""
    pairs = list(zip(line.wins, line.simulations, strict=True))
    rates = tuple(wins / simulations if simulations else float("nan") for wins, simulations in pairs)
    outcomes = tuple(2 * wins >= simulations if simulations else None for wins, simulations in pairs)
    return Estimate(rates, rates, outcomes)


def score(curve: np.ndarray, line: Line, labels: Estimate, fallback: bool) -> dict[str, float]:
    """The columns of one failure, as sums. ``fallback``: without a state labelled won, the likeliest one with a win is.

    The methods of eef/beyond.py do that, EEF does not.
    """
    won = curve >= 0.5
    flips = [state for state in range(len(won) - 1) if won[state] != won[state + 1]]
    claims = [part for part in labels.segments() if part.kind != "neutral"]
    right = [p for p in claims if (won[p.start], won[p.stop]) == (p.kind == "harmful", p.kind == "beneficial")]
    known = {state: outcome for state, outcome in enumerate(labels.outcomes) if outcome is not None}
    with_win = [state for state, wins in enumerate(line.wins) if wins]
    solved_by = dict(known)
    if fallback and with_win and not any(known.values()):
        solved_by[max(with_win, key=lambda state: labels.means[state])] = True
    solving = [state for state, outcome in solved_by.items() if outcome]
    important = [0, *(after for before, after in pairwise(solved_by) if solved_by[before] and not solved_by[after])]
    examples = [(state, min(later)) for state in important if (later := [other for other in solving if other >= state])]
    correct = [won[stop] and not any(start <= flip < stop and won[flip] for flip in flips) for start, stop in examples]
    by_label = {
        label: [curve[state] for state, outcome in known.items() if outcome is label] for label in (True, False)
    }
    return {
        "failures": 1, "simulations": sum(line.simulations), "flips": len(flips), "hits": len(right),
        "claims": len(claims), "turns": sum(p.stop - p.start for p in right), "known": len(known),
        "labels": sum(outcome == won[state] for state, outcome in known.items()), "examples": int(sum(correct)),
        "wrong_examples": len(correct) - int(sum(correct)), "solvable": bool(won.any()),
        "solved": bool(won[solving].any()), "labelled_won": len(by_label[True]), "rates_of_won": sum(by_label[True]),
        "rates_of_lost": sum(by_label[False]),
        "errors": sum(abs(labels.means[state] - curve[state]) for state in known),
    }  # fmt: skip


def table(groups: list[tuple[str, list[tuple[str, np.ndarray]]]]) -> pd.DataFrame:
    """The columns at the top, for each source of curves, each shape and all shapes.

    A group is the name of its source and failures that are planned together. Groups of one source are counted together.
    """
    rows = []
    for seed, (source, group) in enumerate(groups):
        for spend, label, m, k in ARMS:
            lines = simulate([curve for _, curve in group], spend, m, k, np.random.default_rng([seed, m, k]))
            model = fit(lines)
            for (shape, curve), line in zip(group, lines, strict=True):
                labels = by_majority(line) if label == "majority" else estimate(line, model)
                arm = {"curves": source, "shape": shape, "spend": spend, "label": label, "m": m, "k": k}
                rows.append(arm | score(curve, line, labels, label == "model"))
    frame = pd.DataFrame(rows)
    frame = pd.concat([frame, frame.assign(shape="all")]) if frame["shape"].nunique() > 1 else frame
    sums = frame.groupby(["curves", "shape", *ARM], sort=False).sum().reset_index()
    failures = sums["failures"]
    return sums[["curves", "shape", *ARM]].assign(
        simulations=sums["simulations"] / failures, solved=sums["solved"] / sums["solvable"],
        examples=sums["examples"] / failures, wrong_examples=sums["wrong_examples"] / failures,
        flips=sums["flips"] / failures, hits=sums["hits"] / sums["flips"],
        per_simulation=sums["hits"] / sums["simulations"], right=sums["hits"] / sums["claims"],
        turns=sums["turns"] / sums["hits"], labels=sums["labels"] / sums["known"],
        rate_of_won=sums["rates_of_won"] / sums["labelled_won"],
        rate_of_lost=sums["rates_of_lost"] / (sums["known"] - sums["labelled_won"]),
        error=sums["errors"] / sums["known"],
    )  # fmt: skip


def over_sources(result: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Means of the columns of each arm over the sources of curves, and the lower and upper ends of their intervals.
    All three are indexed by arm.
    """
    arms = result.drop(columns=["curves", "shape"]).groupby(ARM, sort=False)
    frames = [arms.agg(lambda values, part=part: over_seeds(values)[part]) for part in range(3)]
    return frames[0], frames[1], frames[2]


def differences(result: pd.DataFrame) -> pd.DataFrame:
    """Each other way to spend and label minus EEF's with the same ``m`` and ``k``, paired by source of curves, in
    points (hundredths).
    """
    columns = ["hits", "per_simulation", "solved", "right", "rate_of_won", "rate_of_lost", "error"]
    by_arm = {arm: rows.set_index("curves")[columns] for arm, rows in result.groupby(ARM, sort=False)}
    rows = []
    for (spend, label, m, k), own in by_arm.items():
        if (spend, label) != ARMS[0][:2]:
            gains = own - by_arm[*ARMS[0][:2], m, k]
            cells = {column: with_ends(100 * gains[column]).removesuffix(" ()") for column in columns}
            rows.append({"spend": spend, "label": label, "m": m, "k": k, **cells})
    return pd.DataFrame(rows)


def draw(result: pd.DataFrame, out: Path, name: str, about: str) -> None:
    """Draw, over the simulations per failure: the share of flips found, of failures solved, and win rates by label."""
    panels = {
        "flips found (%)": [("hits", "-")],
        "failures solved (%)": [("solved", "-")],
        "win rate of states by label (%)": [("rate_of_won", "-"), ("rate_of_lost", ":")],
    }
    means, lows, highs = over_sources(result)
    title, margins = "What simulations along a failure tell", (0.55, 0.1, 0.62, 0.85)
    with picture(out, name, 3.2, title, about, margins, (1, 1, 1), 0.6) as axes:
        for panel, (label, columns) in zip(axes, panels.items(), strict=True):
            for arm, (method, text) in METHODS.items():
                own = means[(means.index.droplevel(["m", "k"]) == arm)].sort_values("simulations").index
                mean, low, high = means.loc[own], lows.loc[own], highs.loc[own]
                for column, line in columns:
                    style = {**marker_style(LOOKS[method], 4.5), "linestyle": line, "linewidth": 1.2}
                    panel.plot(mean["simulations"], 100 * mean[column], label=text if line == "-" else None, **style)
                    if result["curves"].nunique() > 1:
                        ends = (mean["simulations"], 100 * low[column], 100 * high[column])
                        panel.vlines(*ends, color=style["color"], linewidth=0.7, alpha=0.7)
            panel.set(xlabel="simulations per failure", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes[0].legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(-0.1, -0.22))
        place = {"transform": axes[2].transAxes, "ha": "right", "va": "center", "fontsize": 7}
        axes[2].text(0.98, 0.5, "solid: labelled won\ndotted: labelled lost", **place)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    curves = "CSV of measured win counts: task,state,wins,simulations; a file for each seed"
    parser.add_argument("--curves", type=Path, nargs="+", default=[], metavar="FILE", help=curves)
    parser.add_argument("--repeats", type=int, help="how often all is simulated; default: 10 with --curves, else 3")
    parser.add_argument("--name", help="of the files: flips-NAME.csv; default: that of the only file, or synthetic")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures" / "plan_flips")
    args = parser.parse_args(words)
    if len(args.curves) > 1 and not args.name:
        parser.error("several files of --curves need a --name for the files to write")
    repeats = args.repeats or (10 if args.curves else 3)
    sources = {path.stem: measured(path) for path in args.curves}
    if len(sources) < len(args.curves):
        parser.error("the files of --curves need different names")
    if sources:
        groups = [(source, failures) for _ in range(repeats) for source, failures in sources.items()]
    else:
        groups = [("synthetic", synthetic(np.random.default_rng(seed))) for seed in range(repeats)]
    result = table(groups)
    summary = result[result["shape"] == result["shape"].iloc[-1]]
    name = f"flips-{args.name or next(iter(sources), 'synthetic')}"
    used = [curve for failures in sources.values() or [group for _, group in groups] for _, curve in failures]
    about = f"{len(used)} failures, of which {sum(bool((curve >= 0.5).any()) for curve in used)} have a won state"
    about += f", each simulated {repeats} times" if sources else ""
    about += (
        f"; means over {len(sources)} seeds with 95 % t-intervals."
        if len(sources) > 1
        else "; means, without intervals."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    result.round(3).to_csv(args.out / f"{name}.csv", index=False)
    text = f"{about} The columns are explained in `experiments/plan_flips.py`.\n\n"
    if len(sources) > 1:
        shown = over_sources(summary)
        text += (
            markdown(shown[0].round(3).reset_index())
            + "\n\nPaired differences in points from EEF, rows `even`, `majority`:\n\n"
        )
        text += markdown(differences(summary)) + "\n"
    else:
        text += markdown(summary.drop(columns=["curves", "shape"]).round(3)) + "\n"
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    draw(summary, args.out, name, about)
    print(text)


if __name__ == "__main__":
    main()
