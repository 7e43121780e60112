"""Views for notebooks: a trajectory, the selection of a run, a loss mask and any table, as HTML.

The HTML is self-contained: no network, no server, no extension. JupyterLab displays what a function returns; ``.data``
is the text, for a file. All contents of a trajectory are escaped. Segments have the colours of Figure 1
(:mod:`eef.analysis.failure_drawing`); all else follows the theme of JupyterLab, VS Code or the browser.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, Template
from markupsafe import Markup

from eef.agents.actions import EXPLANATIONS
from eef.agents.chat import Chat
from eef.analysis.arms import FigureError
from eef.analysis.failure_drawing import KINDS, MARKS
from eef.envs import TextEnv
from eef.envs.extras import extras_of
from eef.files import PACKAGE, read_json
from eef.selection import Example, Outcomes, Segment, important_states, segments, select
from eef.trajectory import Trajectory, load


def trajectory(
    one: Trajectory | Example,
    outcomes: Outcomes | None = None,
    env: TextEnv | str | None = None,
    loss: bool = True,
) -> HTML:
    """A trajectory for reading: folded observations, actions, reward, and whether and why each turn carries loss.

    A turn without a readable action shows the reason instead (:mod:`eef.agents.actions`). ``env``, the environment or
    its name, splits observations into parts (:class:`eef.envs.extras.Extras`); without it they are shown whole. Parts
    that repeat the first observation are dimmed. ``loss=False`` leaves out what carries loss: nothing learns from a
    test episode.

    ``outcomes`` (see :mod:`eef.selection`) says how simulations from the states of an expert's trajectory ended: its
    segments are coloured as in the paper's Figure 1, and the turns that :func:`eef.selection.select` learns from are
    marked. An :class:`~eef.selection.Example` is shown with its own mask. ValueError as in ``select``.
    """
    return HTML(style() + trajectory_element(one, outcomes, env, loss))


def trajectory_element(
    one: Trajectory | Example,
    outcomes: Outcomes | None = None,
    env: TextEnv | str | None = None,
    loss: bool = True,
) -> Markup:
    """As :func:`trajectory`, without the style sheet, for a page that has :func:`style` once."""
    shown = one.trajectory if isinstance(one, Example) else one
    outcomes = outcomes or {}
    parts = segments(shown, outcomes) if outcomes else []
    recover = set(important_states(shown, outcomes)) - {0} if outcomes else set()
    reasons = _example_reasons(one) if isinstance(one, Example) else _reasons(shown, outcomes, parts)
    split = extras_of(env or "").parts
    rows: list[dict[str, Any]] = []
    fill, in_prompt = "transparent", set(split(shown.prompt))
    for index in range(len(shown) + 1):
        lines = [(line, index == 0 or line not in in_prompt) for line in split(shown.state(index))]
        state: dict[str, Any] = {"state": True, "index": index, "parts": lines, "fill": fill}
        new = [line for line, is_new in lines if is_new] or [line for line, _ in lines]
        state["short"] = textwrap.shorten(" · ".join(new), 130, placeholder=" …")
        if index in outcomes:
            win = outcomes[index]
            state |= {"mark": MARKS["won" if win else "lost"][2], "win": win.actions[index:] if win else None}
            state["recover"] = index in recover
        fill = _fill(next((part.kind for part in parts if part.start <= index < part.stop), ""))
        rows.append({**state, "fill": fill if index < len(shown) else "transparent"})
        if index < len(shown):
            turn, (learn, why) = shown.turns[index], reasons[index]
            rows.append({"index": index, "action": turn.action, "reply": turn.reply, "learn": learn and loss})
            rows[-1] |= {"why": why, "fill": fill}
            rows[-1]["problem"] = "" if turn.action else _PROBLEMS.get(turn.observation, "no action")
    keys = [(_fill(kind), label) for kind, (_, _, label) in KINDS.items()] if parts else []
    count = sum(learn for learn, _ in reasons) if loss else None
    return _macro("trajectory", one=shown, rows=rows, keys=keys, ended=ended(shown), loss=count)


def ended(one: Trajectory) -> str:
    """How an episode ended, in words: won, failed, or the infrastructure error."""
    return "won" if one.won else "failed" if one.failed else one.outcome.replace("_", " ")


_PROBLEMS = {text: str(problem) for problem, text in EXPLANATIONS.items()}


def _fill(kind: str) -> str:
    """Figure 1's colour of a segment; harmful ones are hatched."""
    colour, hatch = KINDS[kind][:2] if kind else ("transparent", "")
    return f"repeating-linear-gradient(135deg, {colour} 0 4px, var(--page) 4px 6px)" if hatch else colour


_BARRED = "excluded in the trajectory itself (learn is false)"


def _is_segment(example: Example) -> bool:
    """Whether the example is a segment of the expert's actions alone: it has the expert's turns and no win."""
    return 0 < len(example.trajectory) == example.trajectory.prefix and not example.trajectory.won


def _example_reasons(example: Example) -> list[tuple[bool, str]]:
    """Whether each turn of a selected example carries loss, and why."""
    begin, prefix = example.learn_from, example.trajectory.prefix
    is_segment = _is_segment(example)
    reasons = []
    for index, learn in enumerate(example.mask):
        if index < begin:
            purpose = "at which the segment begins" if is_segment else "the state that this example solves"
            why = f"context: before s{begin}, {purpose}"
        elif not learn:
            why = _BARRED
        elif is_segment:
            why = "by the expert, in a segment of its own"
        elif index < prefix:
            why = f"by the expert, on the way to s{prefix}, from which the policy won"
        else:
            why = f"part of the win from s{prefix}"
        reasons.append((learn, why))
    return reasons


def _reasons(one: Trajectory, outcomes: Outcomes, parts: Sequence[Segment]) -> list[tuple[bool, str]]:
    """Whether EEF learns from each turn of an expert's trajectory, and why."""
    chosen = select(one, outcomes) if outcomes else []
    reasons = []
    for index, turn in enumerate(one.turns):
        part = next((part for part in parts if part.start <= index < part.stop), None)
        used = next((e for e in chosen if e.learn_from <= index < e.trajectory.prefix), None)
        if not turn.learn:
            reasons.append((False, _BARRED))
        elif one.won:
            reasons.append((True, "part of a win"))
        elif used:
            begin, stop = used.learn_from, used.trajectory.prefix
            reasons.append((True, f"on the way from s{begin}, which lost, to s{stop}, which won"))
        elif part and part.kind == "harmful":
            end = "the end" if part.stop == len(one) else f"s{part.stop}"
            reasons.append((False, f"harmful: from s{part.start}, which won, to {end}, which lost"))
        elif part:
            reasons.append((False, f"{part.kind}: not on a way from an important state to a win"))
        else:
            reasons.append((False, "part of a failure; no simulation started from this state or an earlier one"))
    return reasons


def loss_mask(chat: Chat, one: Trajectory | Example) -> HTML:
    """The conversation that a policy is trained on, token by token; tokens with loss are coloured (paper, section 3).

    ``chat`` is the policy's chat. In a trajectory every turn that may carry loss does; the observation after the last
    action is not part of the conversation.
    """
    shown = one.trajectory if isinstance(one, Example) else one
    ids, mask = chat.render(shown, one.mask if isinstance(one, Example) else [turn.learn for turn in shown.turns])
    lines: list[list[dict[str, Any]]] = []
    end = list(chat.end)
    for place, (token, learn) in enumerate(zip(ids, mask, strict=True)):
        if not lines or ids[max(0, place - len(end)) : place] == end:  # one line per observation and its answer
            lines.append([])
        text = chat.tokenizer.decode([token], skip_special_tokens=False)
        lines[-1].append({"tag": "b" if learn else "i", "place": place, "id": token, "text": text.replace("\n", "⏎")})
    return HTML(style() + _macro("tokens", lines=lines, trained=sum(mask), total=len(ids)))


def selected(folder: str | Path, stage: str | None = None) -> pd.DataFrame:
    """What the last SFT of the run in ``folder`` trained on, a row per example; ``stage`` chooses another SFT (``bc``).

    Columns: task, by (who played the win), kind, state (i of the state s_i that it solves: loss from turn i on),
    won_from (the simulated state that won), turns, loss_turns, expert_loss_turns, learnt (the actions that carry
    loss). :class:`~eef.analysis.arms.FigureError` if the run has no such stage.
    """
    paths = sorted(Path(folder).glob("sft-*/examples.jsonl"), key=lambda path: (len(path.parent.name), path))
    paths = paths or sorted(Path(folder).glob("*/examples.jsonl"))
    if stage:
        paths = [Path(folder) / stage / "examples.jsonl"]
    if not paths or not paths[-1].is_file():
        raise FigureError(
            f"{folder} has no {stage or 'SFT'} stage with examples: choose a run that trained (`eef runs`)"
        )
    starts = read_json(paths[-1].with_name("learn_from.json"))["learn_from"]
    return example_table([Example(one, start) for one, start in zip(load(paths[-1]), starts, strict=True)])


def example_table(examples: Sequence[Example]) -> pd.DataFrame:
    """Selected examples as a DataFrame; columns as in :func:`selected`."""
    rows = []
    for example in examples:
        one, mask = example.trajectory, example.mask
        kind = "win from s0"
        if _is_segment(example):
            kind = "segment of the expert's actions"
        elif one.prefix:
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
    """The selection of a run (its folder, or the examples themselves) as a table to sort and filter.

    Columns and errors as in :func:`selected`.
    """
    rows = selected(run, stage) if isinstance(run, (str, Path)) else example_table(run)
    sums = rows[["loss_turns", "expert_loss_turns"]].sum()
    later = int((rows["state"] > 0).sum())
    caption = f"{len(rows)} examples, {later} of them for states after s0; {sums.iloc[0]} turns carry loss, "
    return sortable_table(rows, caption + f"{sums.iloc[1]} of them by the expert, before the policy took over.")


def sortable_table(rows: pd.DataFrame, caption: str = "") -> HTML:
    """A DataFrame as a table that is sorted by a click on a column's name, with a filter below each name."""
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in rows.dtypes]
    cells = [["" if pd.isna(value) else str(value) for value in row] for row in rows.itertuples(index=False)]
    return HTML(style() + _macro("sortable_table", names=list(rows), rows=cells, numeric=numeric, caption=caption))


def style() -> Markup:
    """The style sheet of the views. Its colours follow JupyterLab's theme, VS Code's, or the browser's."""
    return _macro("style")


def folded(title: str, won: bool, body: Markup) -> Markup:
    """A view that opens by a click on its title."""
    return _macro("folded", title=title, won=won, body=body)


def page(title: str, body: Markup) -> str:
    """Views as one self-contained HTML page."""
    return str(_macro("page", title=title, body=body))


def _macro(name: str, **values: Any) -> Markup:
    text = getattr(_template().module, name)(**values)
    return Markup(text.encode("utf-8", "replace").decode())  # half of a surrogate pair cannot be written


@cache
def _template() -> Template:
    return Environment(autoescape=True).from_string((PACKAGE / "analysis" / "views.html").read_text(encoding="utf-8"))
