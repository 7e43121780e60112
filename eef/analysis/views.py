"""Views for notebooks: a trajectory, the selection of a run and a loss mask as HTML, learning curves as a picture.

The HTML stands alone: no network, no server, no extension. JupyterLab shows what a function returns; ``.data`` is the
text, for a file. All that a trajectory holds is escaped. Colours are those of Figure 1 (:mod:`eef.analysis.pictures`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML
from jinja2 import Environment

from eef.agents.actions import EXPLANATIONS
from eef.agents.chat import Chat
from eef.analysis.figures import FigureError, arm_name, by_arm, picture, records, write_table
from eef.analysis.pictures import KINDS, MARKS
from eef.files import PACKAGE, read_json, read_rows
from eef.selection import Example, Outcomes, Segment, important_states, segments, select
from eef.trajectory import Trajectory, load


def trajectory(one: Trajectory | Example, outcomes: Outcomes | None = None) -> HTML:
    """A trajectory to read: observations folded, actions, reward, and of each turn whether it carries loss and why.

    A turn without a readable action shows the reason in its place (:mod:`eef.agents.actions`).

    ``outcomes`` (see :mod:`eef.selection`) says how simulations from the states of an expert's ``one`` ended: its
    segments are coloured as in the paper's Figure 1, and the turns that :func:`eef.selection.select` learns from are
    marked. An :class:`~eef.selection.Example` is shown with its own mask. ValueError as in ``select``.
    """
    shown = one.trajectory if isinstance(one, Example) else one
    given = outcomes or {}
    parts = segments(shown, given) if given else []
    recover = set(important_states(shown, given)) - {0} if given else set()
    told = _example_turns(one) if isinstance(one, Example) else _turns(shown, given, parts)
    rows: list[dict[str, Any]] = []
    fill, told_before = "transparent", set(shown.prompt.split(" [SEP] "))
    for index in range(len(shown) + 1):
        text = shown.state(index)
        state: dict[str, Any] = {"state": True, "index": index, "text": text.replace(" [SEP] ", "\n"), "fill": fill}
        fresh = [part for part in text.split(" [SEP] ") if index == 0 or part not in told_before]
        state["short"] = textwrap.shorten(" · ".join(fresh or [text]), 130, placeholder=" …")
        if index in given:
            win = given[index]
            state |= {"mark": MARKS["won" if win else "lost"], "win": win.actions[index:] if win else None}
            state["recover"] = index in recover
        fill = _fill(next((part.kind for part in parts if part.start <= index < part.stop), ""))
        rows.append({**state, "fill": fill if index < len(shown) else "transparent"})
        if index < len(shown):
            turn, (learn, why) = shown.turns[index], told[index]
            rows.append({"index": index, "action": turn.action, "reply": turn.reply, "learn": learn, "why": why})
            rows[-1] |= {"fill": fill, "problem": "" if turn.action else _PROBLEMS.get(turn.observation, "no action")}
    ended = "won" if shown.won else "failed" if shown.failed else shown.outcome.replace("_", " ")
    keys = [(_fill(kind), label) for kind, (_, _, label) in KINDS.items()] if parts else []
    loss = sum(learn for learn, _ in told)
    return _html("trajectory", one=shown, rows=rows, keys=keys, ended=ended, loss=loss)


_PROBLEMS = {text: str(problem) for problem, text in EXPLANATIONS.items()}


def _fill(kind: str) -> str:
    """Figure 1's colour of a segment; harmful ones are hatched."""
    colour, hatch = KINDS[kind][:2] if kind else ("transparent", "")
    return f"repeating-linear-gradient(135deg, {colour} 0 4px, #fff 4px 6px)" if hatch else colour


def _example_turns(example: Example) -> list[tuple[bool, str]]:
    """Whether each turn of a selected example carries loss, and why."""
    begin, prefix = example.learn_from, example.trajectory.prefix
    told = []
    for index, learn in enumerate(example.mask):
        if index < begin:
            why = f"context: before s{begin}, the state that this example solves"
        elif not learn:
            why = "barred by the trajectory itself (learn is false)"
        elif index < prefix:
            why = f"the expert's, on the way to s{prefix}, from where the policy won"
        else:
            why = f"of the win from s{prefix}"
        told.append((learn, why))
    return told


def _turns(one: Trajectory, outcomes: Outcomes, parts: Sequence[Segment]) -> list[tuple[bool, str]]:
    """Whether EEF learns from each turn of an expert's trajectory, and why."""
    chosen = select(one, outcomes) if outcomes else []
    told = []
    for index, turn in enumerate(one.turns):
        part = next((part for part in parts if part.start <= index < part.stop), None)
        used = next((e for e in chosen if e.learn_from <= index < e.trajectory.prefix), None)
        if not turn.learn:
            told.append((False, "barred by the trajectory itself (learn is false)"))
        elif one.won:
            told.append((True, "of a win"))
        elif used:
            told.append(
                (True, f"on the way from s{used.learn_from}, which lost, to s{used.trajectory.prefix}, which won")
            )
        elif part and part.kind == "harmful":
            end = "the end" if part.stop == len(one) else f"s{part.stop}"
            told.append((False, f"harmful: from s{part.start}, which won, to {end}, which lost"))
        elif part:
            told.append((False, f"{part.kind}: on no way from an important state to a win"))
        else:
            told.append((False, "of a failure, from whose states nothing was simulated"))
    return told


def loss_mask(chat: Chat, one: Trajectory | Example) -> HTML:
    """The conversation that a policy is trained on, token by token; those that carry loss are coloured (section 3).

    ``chat`` is the policy's scaffold. A trajectory is shown as if every turn that may carry loss did; the observation
    after the last action is no part of a conversation.
    """
    shown = one.trajectory if isinstance(one, Example) else one
    ids, mask = chat.render(shown, one.mask if isinstance(one, Example) else [turn.learn for turn in shown.turns])
    lines: list[list[dict[str, Any]]] = []
    end = list(chat.end)
    for place, (token, learn) in enumerate(zip(ids, mask, strict=True)):
        if not lines or ids[max(0, place - len(end)) : place] == end:  # a line for each observation and its answer
            lines.append([])
        text = chat.tokenizer.decode([token], skip_special_tokens=False)
        lines[-1].append({"tag": "b" if learn else "i", "place": place, "id": token, "text": text.replace("\n", "⏎")})
    return _html("tokens", lines=lines, learnt=sum(mask), total=len(ids))


def selected(folder: str | Path, stage: str | None = None) -> pd.DataFrame:
    """What a run's last SFT trained on, a row per example; ``folder`` is the run's, ``stage`` another SFT's (``bc``).

    Columns: task, by (who played the win), kind, state (i of the state s_i that it solves: loss from turn i on),
    won_from (the simulated state that won), turns, loss_turns, expert_loss_turns, learnt (the actions that carry
    loss). :class:`~eef.analysis.figures.FigureError` where the run has no such stage.
    """
    found = sorted(Path(folder).glob("sft-*/examples.jsonl"), key=lambda path: (len(path.parent.name), path))
    found = (
        [Path(folder) / stage / "examples.jsonl"] if stage else found or sorted(Path(folder).glob("*/examples.jsonl"))
    )
    if not found or not found[-1].is_file():
        raise FigureError(
            f"{folder} has no {stage or 'SFT'} stage with examples: name a run that trained, see `eef runs`"
        )
    starts = read_json(found[-1].with_name("learn_from.json"))["learn_from"]
    return frame([Example(one, start) for one, start in zip(load(found[-1]), starts, strict=True)])


def frame(examples: Sequence[Example]) -> pd.DataFrame:
    """Selected examples as a DataFrame; columns as in :func:`selected`."""
    rows = []
    for example in examples:
        one, mask = example.trajectory, example.mask
        kind = "win from s0"
        if one.prefix:
            kind = "expert's actions, then a win" if any(mask[: one.prefix]) else "win from an expert state"
        rows.append(
            {
                "task": one.task,
                "by": one.source,
                "kind": kind,
                "state": example.learn_from,
                "won_from": one.prefix,
                "turns": len(one),
                "loss_turns": sum(mask),
                "expert_loss_turns": sum(mask[: one.prefix]),
                "learnt": "  ".join(action for action, learn in zip(one.actions, mask, strict=True) if learn),
            }
        )
    names = ["task", "by", "kind", "state", "won_from", "turns", "loss_turns", "expert_loss_turns", "learnt"]
    return pd.DataFrame(rows, columns=names)


def selection(run: str | Path | Sequence[Example], stage: str | None = None) -> HTML:
    """The selection of a whole run (its folder, or the examples themselves) as a table to sort and filter.

    Columns and errors as in :func:`selected`.
    """
    rows = selected(run, stage) if isinstance(run, (str, Path)) else frame(run)
    sums = rows[["loss_turns", "expert_loss_turns"]].sum()
    later = int((rows["state"] > 0).sum())
    caption = f"{len(rows)} examples, {later} of them for states after s0; {sums.iloc[0]} turns carry loss, "
    return table(rows, caption + f"{sums.iloc[1]} of them the expert's in simulations from its states.")


def table(rows: pd.DataFrame, caption: str = "") -> HTML:
    """A DataFrame as a table that sorts by a click on a column's name and filters by what is typed under it."""
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in rows.dtypes]
    cells = [["" if pd.isna(value) else str(value) for value in row] for row in rows.itertuples(index=False)]
    return _html("table", names=list(rows), rows=cells, numeric=numeric, caption=caption)


def learning_curves(runs: pd.DataFrame, out: str | Path) -> Path:
    """Training loss against steps, a line per training stage of each run, from the runs' ``metrics.jsonl``.

    ``runs`` comes from :func:`eef.tracking.runs.load_runs`. Runs that share a stage (behaviour cloning) share its line;
    colours are arms. Writes PNG, SVG and the table behind them into ``out`` (``learning_curves.csv``: arm, stage, seed,
    step, epoch, loss, run_id) and returns the PNG's path. :class:`~eef.analysis.figures.FigureError` where no run
    logged one.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    lines: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for arm, group in by_arm(runs).items():
        for row in records(group):
            folder = Path(row["folder"])
            for metric in read_rows(folder / "metrics.jsonl"):
                key = (folder / metric["stage"]).resolve()
                if metric.get("loss") is None or (key in seen and (key, row["run_id"]) not in seen):
                    continue
                seen |= {key, (key, row["run_id"])}
                name = "BC, shared" if metric["stage"] == "bc" else arm_name(arm, runs["experts"].nunique() > 2)
                about = {"arm": name, "stage": metric["stage"], "seed": row["seed"]}
                lines.append({**about, **{k: metric[k] for k in ("step", "epoch", "loss")}, "run_id": row["run_id"]})
    if not lines:
        raise FigureError("none of these runs logged a training loss in its metrics.jsonl: train one, see `eef runs`")
    found = pd.DataFrame(lines)
    path = write_table(found, out, "learning_curves")
    seeds = found["seed"].nunique()
    subtitle = f"{runs['env'].iloc[0]} · {seeds} seed{'s' * (seeds > 1)} · mean loss per learnt token"
    with picture(out, "learning_curves", (8, 5), "Learning curves", subtitle, (0.8, 0.12, 0.7, 0.6)) as axes:
        names = list(found["arm"].unique())
        for _, line in found.groupby(["arm", "stage", "seed", "run_id"], sort=False):
            name = line["arm"].iloc[0]
            axes.plot(line["step"], line["loss"], color=f"C{names.index(name) % 10}", linewidth=1.2, label=name)
        handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimisation step")
        axes.set_ylabel("loss")
        axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=8.5)
    return path.with_suffix(".png")


def _html(macro: str, **given: Any) -> HTML:
    template = Environment(autoescape=True).from_string(
        (PACKAGE / "analysis" / "views.html").read_text(encoding="utf-8")
    )
    return HTML(f"{getattr(template.module, macro)(**given)}")
