"""The drawing of Figure 1: the turns of a failed expert trajectory, its states, and what carries loss."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from eef.analysis.drawing import percent
from eef.selection import Example, Outcomes, Segment
from eef.trajectory import Trajectory

KINDS = {  # colour, hatch and label of a segment; the colours are distinct for colour-blind readers
    "beneficial": ("#009E73", "", "beneficial: from a losing state to a winning one"),
    "harmful": ("#D55E00", "////", "harmful: from a winning state to a losing one"),
    "neutral": ("#B0B0B0", "", "neutral (learned if before a win)"),
}
_COLUMNS = 5.15  # inches from the left: the columns of examples
_MOST_EXAMPLES = 3
_LOSS = "#222222"
MARKS = {  # marker, colour and sign of a state whose simulation won or lost
    "won": ("o", "#009E73", "✓"),
    "lost": ("s", "#D55E00", "✗"),
}


def _rows(expert: Trajectory, outcomes: Outcomes) -> dict[tuple[str, int], float]:
    """The height of each state and turn in the picture, from the top; one row for each."""
    rows: dict[tuple[str, int], float] = {}
    for index in range(len(expert)):
        for kind in ["state"] * (index in outcomes) + ["turn"]:
            rows[kind, index] = len(rows) + 1.5
    return rows


def draw_trajectory(
    axes: Any,
    expert: Trajectory,
    outcomes: Outcomes,
    parts: list[Segment],
    recover: set[int],
    notes: Mapping[int, str],
    counts: Mapping[int, tuple[int, int]],
) -> None:
    """The turns and states of a failure, from the top, in axes whose x is in inches."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    places = _rows(expert, outcomes)
    end = len(places) + 1.5
    for part in parts:
        top, bottom = places["state", part.start], places.get(("state", part.stop), end)
        colour, hatch, _ = KINDS[part.kind]
        high = bottom - top
        axes.add_patch(Rectangle((0.05, top), 0.14, high, facecolor=colour, hatch=hatch, edgecolor="white"))
        axes.add_patch(Rectangle((0.19, top), _COLUMNS - 0.25, high, facecolor=colour, alpha=0.09, linewidth=0))
    for (kind, index), y in places.items():
        if kind == "turn":
            action = expert.turns[index].action
            axes.text(0.52, y, f"a{index}", fontsize=7, color="#777777", ha="right", va="center")
            words = textwrap.shorten(action, 70, placeholder=" …]" if action.endswith("]") else " …")
            written = axes.text(0.6, y, words, fontsize=7.5, family="DejaVu Sans Mono", va="center")
            room = int((_COLUMNS - 0.8 - 0.063 * len(words)) / 0.056)
            if notes[index] and room > 10:
                axes.annotate(
                    textwrap.shorten(notes[index], room, placeholder=" …"), (1, 0.5), xycoords=written, xytext=(6, 0),
                    textcoords="offset points", fontsize=7, color="#555555", va="center",
                )  # fmt: skip
            continue
        ended = "won" if outcomes[index] else "lost"
        marker, colour, sign = MARKS[ended]
        axes.plot([0.12], [y], marker, color=colour, markersize=10, markeredgecolor="white", zorder=4)
        axes.text(
            0.12, y, sign, color="white", fontsize=7.5, weight="bold", ha="center", va="center_baseline", zorder=5
        )
        note = f"the simulation from here {ended}"
        if index in counts:
            wins, simulations = counts[index]
            note = f"{wins} of {simulations} simulations from here won"
            _draw_win_rate(axes, 3.6, y, wins / simulations, colour)
        written = axes.text(
            0.27, y, f"$s_{{{index}}}$: {note}", fontsize=7.5, va="center", color="#222222", parse_math=True
        )
        if index in recover:
            axes.annotate(
                "▲ needs recovery", (1, 0.5), xycoords=written, xytext=(7, 0), textcoords="offset points",
                fontsize=7, weight="bold", color="#8a3d00", va="center",
            )  # fmt: skip
    over = {"done": "episode ended", "context_overflow": "out of context"}.get(expert.outcome, "out of steps")
    axes.plot([0.12], [end], "s", color="#222222", markersize=7.5, markeredgecolor="white", zorder=4)
    axes.text(0.27, end, f"end: {over}, reward {expert.reward:.2f}, failed", fontsize=7.5, weight="bold", va="center")
    handles: list[Any] = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=label) for colour, hatch, label in KINDS.values()
    ]
    for ended, (marker, colour, sign) in MARKS.items():
        label = f"state from which {'most simulations' if counts else 'the simulation'} {ended} ({sign})"
        handles.append(Line2D([], [], marker=marker, color=colour, linestyle="", markersize=7, label=label))
    handles.append(
        Line2D([], [], marker="^", color="#8a3d00", linestyle="", markersize=5, label="state that needs recovery")
    )
    handles += [
        Line2D([], [], marker="s", color=_LOSS, markerfacecolor=face, linestyle="", markersize=5, label=label)
        for face, label in ((_LOSS, "turn that carries loss"), ("white", "turn that is context"))
    ]
    axes.set_xlim(0, 6.59)  # inches
    axes.set_ylim(end + 0.7, 0)
    axes.axis("off")
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.005, 0), ncols=3, frameon=False, fontsize=7)


def _draw_win_rate(axes: Any, x: float, y: float, rate: float, colour: str) -> None:
    """A bar from 0 to 100 % with a mark at one half, and the rate."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y - 0.22), 1, 0.44, facecolor="white", edgecolor="#999999", linewidth=0.6))
    axes.add_patch(Rectangle((x, y - 0.22), rate, 0.44, facecolor=colour, linewidth=0))
    axes.plot([x + 0.5] * 2, [y - 0.36, y + 0.36], color="#222222", linewidth=0.8)
    axes.text(x + 1.05, y, percent(rate), fontsize=7, va="center")


def draw_examples(axes: Any, expert: Trajectory, outcomes: Outcomes, examples: list[Example]) -> None:
    """A column for each example: the expert's turns in it, then the turns of the simulation that won."""
    places = _rows(expert, outcomes)
    shown = examples[:_MOST_EXAMPLES]
    more = f" ({len(examples) - len(shown)} more)" if len(examples) > len(shown) else ""
    title = f"examples: what carries loss{more}" if shown else "no example: no win"
    axes.text(_COLUMNS, 0.15, title, fontsize=7, weight="bold", va="center")
    for number, example in enumerate(shown):
        x, start = _COLUMNS + 0.18 + 0.42 * number, example.trajectory.prefix
        axes.text(x, 0.8, f"{number + 1}", fontsize=7, weight="bold", ha="center", va="center")
        first = min(places.values())
        axes.plot([x, x], [first - 0.2, places["state", start]], color="#bbbbbb", linewidth=0.8, zorder=1)
        for index in range(start):
            face = _LOSS if example.mask[index] else "white"
            axes.plot([x], [places["turn", index]], "s", color=_LOSS, markerfacecolor=face, markersize=6, zorder=3)
        own = sum(example.mask[start:])
        box = {"boxstyle": "round,pad=0.25", "facecolor": _LOSS, "edgecolor": "none"}
        style: dict[str, Any] = {
            "fontsize": 7,
            "color": "white",
            "weight": "bold",
            "ha": "center",
            "va": "center",
            "bbox": box,
        }
        axes.text(x, places["state", start], f"+{own}", **style)
    if shown:
        note = "+k: the k turns of the\nsimulation that won\ncarry loss"
        axes.text(_COLUMNS, len(places) + 1.9, note, fontsize=6.5, color="#444444", va="bottom", linespacing=1.3)
