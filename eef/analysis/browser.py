"""All trajectories of a run on one page, and some of them for reports and W&B, in the view of a notebook."""

from __future__ import annotations

import base64
import gzip
import json
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from eef.analysis import views
from eef.analysis.arms import FigureError
from eef.analysis.failed_trajectory import outcomes_of
from eef.envs.extras import extras_of
from eef.files import PACKAGE, read_json, write_json, write_text
from eef.selection import Example, Outcomes
from eef.tracking.mirror import TABLES, VIEWS
from eef.trajectory import Trajectory, load

_ROWS = 40  # of each stage in VIEWS and TABLES; at most half of them won
_TEXT = 20_000  # characters of a trajectory in TABLES
_KINDS = {  # of stages, by the beginning of their names, in the order of the page
    "test": "test episodes",
    "sft": "examples of the SFT",
    "states": "simulations from expert states",
    "s0": "simulations",
    "bc": "examples of behaviour cloning",
    "experts": "expert trajectories",
    "demonstrations": "perfect demonstrations",
}


@dataclass(frozen=True)
class Entry:
    """A trajectory of a run. ``outcomes`` are those of simulations from an expert's states. The view shows what carries
    loss if ``loss``.
    """

    stage: str
    one: Trajectory | Example
    outcomes: Outcomes
    env: str
    loss: bool = False

    @property
    def trajectory(self) -> Trajectory:
        return self.one.trajectory if isinstance(self.one, Example) else self.one

    @property
    def title(self) -> str:
        one = self.trajectory
        words = f"{one.task} · reward {one.reward:.2f} · {len(one)} turns · {views.ended(one)}"
        start = self.one.learn_from if isinstance(self.one, Example) else 0
        return words + (f" · selected: loss from turn {start + 1}" if start else "")

    def row(self) -> list[Any]:
        """The columns ``TRAJECTORY`` of :mod:`eef.tracking.mirror`. In the text each part of a page has a line."""
        one, split = self.trajectory, extras_of(self.env).parts
        lines = [*split(one.prompt)]
        for turn in one.turns:
            lines += [f"> {turn.answer}", *split(turn.observation)]
        start = self.one.learn_from if isinstance(self.one, Example) else None
        text = "\n".join(lines).rstrip()
        return [one.task, bool(one.won), float(one.reward), len(one), one.outcome, start, text[:_TEXT]]

    def element(self) -> Markup:
        """The HTML of the trajectory."""
        return views.trajectory_element(self.one, self.outcomes, self.env, loss=self.loss)


def stages_of(run: Path) -> list[str]:
    """The stages of a run that hold trajectories or examples: test first, then examples, simulations, experts."""
    files = [path for kind in ("trajectories", "examples") for path in Path(run).glob(f"*/{kind}.jsonl")]
    order = list(_KINDS)
    return sorted({path.parent.name for path in files}, key=lambda stage: (order.index(_kind(run, stage)), stage))


def _kind(run: Path, stage: str) -> str:
    start = stage.split("-")[0]
    if (run / stage / "examples.jsonl").is_file():
        return start if start == "bc" else "sft"
    return start if start in _KINDS else "s0"


def label_of(run: Path, stage: str) -> str:
    """What a stage holds, in words."""
    return f"{_KINDS[_kind(run, stage)]} ({stage})"


def read_stage(run: Path, stage: str) -> list[Entry]:
    """The trajectories of one stage of a run, in their order.

    Examples show what carries loss. So do expert trajectories of methods that select as the paper does: EEF without
    other options than M, with its segments and outcomes, and those that learn the expert's wins alone.
    """
    origin = read_json(run / "config.json")
    env, config = origin["env"], origin.get("config", {})
    eef = origin["method"].startswith("eef-m") and "k" not in config  # the name has other options before m
    if (file := run / stage / "examples.jsonl").is_file():
        starts = read_json(file.with_name("learn_from.json"))["learn_from"]
        return [Entry(stage, Example(t, start), {}, env, True) for t, start in zip(load(file), starts, strict=True)]
    trajectories = load(run / stage / "trajectories.jsonl")
    simulated = _from_expert_states(run) if stage == "experts" and eef else {}
    loss = stage == "experts" and (eef or config.get("method") in ("sft_pos", "rft", "eto"))
    return [
        Entry(stage, t, outcomes_of(t, simulated.get(t.task, [])) if t.failed and simulated else {}, env, loss)
        for t in trajectories
    ]


def _from_expert_states(run: Path) -> dict[str, list[Trajectory]]:
    """The first iteration's simulations by subtask, if the run explored expert states."""
    files = [run / stage / "trajectories.jsonl" for stage in ("s0-0-0", "states-0")]
    by_task: dict[str, list[Trajectory]] = defaultdict(list)
    if all(file.is_file() for file in files):
        for simulation in (one for file in files for one in load(file)):
            by_task[simulation.task].append(simulation)
    return by_task


def some(run: Path, test: int, chosen: int) -> dict[str, list[Entry]]:
    """At most ``test`` test episodes, half of them lost if there are as many, and ``chosen`` examples of the last SFT,
    those that start at a later turn first."""
    shown: dict[str, list[Entry]] = {}
    names = stages_of(run)
    if "test" in names:
        entries = read_stage(run, "test")
        lost, won = ([e for e in entries if e.trajectory.won is is_won] for is_won in (False, True))
        half = max(test // 2, test - len(won)), max(test // 2, test - len(lost))
        shown["test"] = (lost[: half[0]] + won[: half[1]])[:test]
    if learnt := [name for name in names if (run / name / "examples.jsonl").is_file()]:
        last = max(learnt, key=lambda name: (name.startswith("sft-"), len(name), name))
        entries = read_stage(run, last)
        shown[last] = sorted(entries, key=lambda e: not (isinstance(e.one, Example) and e.one.learn_from))[:chosen]
    return shown


def folded(entries: Sequence[Entry]) -> Markup:
    """The views of some trajectories, each below its title; a click opens one. Needs no JavaScript."""
    return Markup("").join(views.folded(e.title, e.trajectory.won, e.element()) for e in entries)


def write_views(run: Path) -> Path:
    """Write some trajectories of a run for reading, which W&B shows: views to ``trajectories.html`` in its folder, rows
    of tables to ``trajectories.json``. Returns the path of the views.

    Programs read the stages' ``trajectories.jsonl`` instead, whose texts are those of the environment.
    """
    shown = some(run, _ROWS, _ROWS)
    tables = {"test" if name == "test" else "selected": [e.row() for e in entries] for name, entries in shown.items()}
    write_json(run / TABLES, tables)
    body = Markup("").join(
        Markup("<h2>{}</h2>{}").format(label_of(run, stage), folded(entries)) for stage, entries in shown.items()
    )
    return write_text(run / VIEWS, views.page(f"{run.name}: trajectories", body))


def write_browser(run: Path, out: Path | None = None) -> Path:
    """Write all trajectories of a run to one self-contained HTML page, and return its path.

    The page needs no network. It lists trajectories by stage, and filters them by result, by recovery (a start from an
    expert state) and by text. ``out`` is the file; None: ``browser.html`` in the run's folder.
    :class:`~eef.analysis.arms.FigureError` if the folder is not a run, or has no trajectories.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise FigureError(f"{run} is not the folder of a run, it has no config.json: `eef runs` lists the runs")
    entries = [entry for stage in stages_of(run) for entry in read_stage(run, stage)]
    if not entries:
        raise FigureError(f"{run} has no trajectories: choose a run that played episodes (`eef runs`)")
    elements = json.dumps([str(entry.element()) for entry in entries], ensure_ascii=False)
    packed = base64.b64encode(gzip.compress(elements.encode(), 6, mtime=0)).decode()
    template = Environment(autoescape=True).from_string(
        (PACKAGE / "analysis" / "browser.html").read_text(encoding="utf-8")
    )
    text = template.render(
        name=run.name, style=views.style(), rows=_script(rows_of(entries)), packed=packed,
        labels={stage: label_of(run, stage) for stage in stages_of(run)},
    )  # fmt: skip
    return write_text(Path(out) if out else run / "browser.html", text + "\n", errors="replace")


def rows_of(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What the page lists and filters by, one row per trajectory.

    ``ended`` is ``won``, ``lost`` or ``error`` (an infrastructure error); ``recovery``: it starts from an expert state.
    """
    rows = []
    for entry in entries:
        one = entry.trajectory
        result = "won" if one.won else "lost" if one.failed else "error"
        goal = textwrap.shorten(extras_of(entry.env).goal(one.prompt), 110, placeholder=" …")
        rows.append({"stage": entry.stage, "ended": result, "recovery": one.prefix > 0, "task": one.task})
        rows[-1] |= {"reward": round(one.reward, 2), "turns": len(one), "goal": goal}
    return rows


def _script(data: Any) -> Markup:
    """JSON for a script element: no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
