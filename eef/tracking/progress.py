"""What a person sees of a stage while it runs: its name in plain words, a bar or lines, and how far it has come.

A row of progress has ``step`` of ``steps`` (training steps, or episodes), ``tokens_per_second``,
``tokens_per_cpu_second``, ``seconds_left`` (where they are known), and ``loss``, or ``episodes``, ``wins`` and
``win_rate``.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

REPORT_SECONDS = 1.0  # the least time between two reports of a rollout
LINE_SECONDS = 30.0  # the least time between two lines where there is no terminal
_IN_NOTEBOOK = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
_ROUNDED = ("tokens_per_second", "tokens_per_cpu_second", "seconds_left")
_SIZES = ("0 0 27em", "0 0 8em", "1 1 auto")  # of name, bar and text in a notebook: all bars are equally wide
_NAMES = {
    "experts": "expert trajectories",
    "demonstrations": "perfect demonstrations",
    "bc": "behaviour cloning",
    "ceiling": "SFT on perfect demonstrations",
    "sft-all": "SFT on all expert trajectories",
    "nat": "negative-aware training",
    "eval": "test results",
    "s0": "simulations from s0",
    "states": "simulations from expert states",
    "planned": "planned simulations",
    "sft": "SFT",
    "dpo": "DPO",
}


def stage_name(stage: str) -> str:
    """The name of a stage for people: ``SFT, iteration 1`` for ``sft-0``. Other stages keep their names."""
    if stage in _NAMES:
        return _NAMES[stage]
    if match := re.fullmatch(r"batch-(\d+)", stage):
        return f"{_NAMES['planned']}, batch {int(match[1]) + 1}"
    match = re.fullmatch(r"(s0|states|planned|sft|dpo)-(\d+)(?:-(\d+))?", stage)
    if not match:
        return stage
    kind = "batch" if match[1] == "planned" else "sample"
    sample = f", {kind} {int(match[3]) + 1}" if match[3] and (int(match[3]) or kind == "batch") else ""
    return f"{_NAMES[match[1]]}, iteration {int(match[2]) + 1}{sample}"


def clock(seconds: float) -> str:
    """A time such as ``40 s``, ``1:15`` or ``2:03:07``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = f"{whole // 60 % 60}:{whole % 60:02d}"
    return minutes if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def describe(row: Mapping[str, Any]) -> str:
    """A row of progress in words: ``120 of 300 steps, loss 0.412, 5,200 tokens/s, 40 s left``."""
    parts = [f"{row['step']} of {row['steps']} {'episodes' if 'episodes' in row else 'steps'}"]
    if "turns" in row:
        parts[0] += f" ({row['turns']} turns)"
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.3f}")
    if "wins" in row:
        parts.append(f"{row['wins']} won")
    if row.get("tokens_per_second"):
        per_cpu = f" ({row['tokens_per_cpu_second']:,.0f} per CPU s)" if row.get("tokens_per_cpu_second") else ""
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s{per_cpu}")
    if row.get("seconds_left"):
        parts.append(f"{clock(row['seconds_left'])} left")
    return ", ".join(parts)


def show(text: str) -> None:
    """Print a line without breaking a bar that is shown."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class Meter:
    """Shows the progress of one stage and passes it on; a context manager.

    In a notebook and on a terminal it draws a bar, elsewhere it prints a line every ``LINE_SECONDS``. :meth:`on_step`
    is for training; :meth:`on_turn` and :meth:`on_episodes` are for rollouts of ``total`` episodes of at most
    ``turns_per_episode`` turns, which this process's CPU plays if ``on_cpu``. ``report(row, logged)`` receives each
    training step, and the totals of a rollout at most once per ``REPORT_SECONDS`` and at the end. ``logged`` is False
    for a training step that carries the loss of an earlier one. No result depends on what is shown.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        report: Callable[[Mapping[str, Any], bool], None] | None = None,
        turns_per_episode: int = 0,
        on_cpu: bool = False,
    ) -> None:
        self.name, self.report, self.on_cpu = stage_name(stage), report, on_cpu
        self.total, self.turns_per_episode = total, turns_per_episode
        self.totals: dict[str, int] = {"episodes": 0, "wins": 0, "tokens": 0}
        self.turns = self.sampled = 0  # of all episodes, those in play included
        self.saved = {"episodes": 0, "tokens": 0}  # of a journal, reported before the first turn
        self.row: dict[str, Any] = {}
        self.start = self.printed = time.monotonic()
        self.cpu_start = time.process_time()
        self.reported = float("-inf")
        # disable=None: no bar where the output is neither a terminal nor a notebook
        self.bar: Any = tqdm(total=total or 1, bar_format=self._format(""), miniters=1, mininterval=0.5, disable=None)
        if hasattr(self.bar, "container"):
            self.bar.container.layout.flex_flow = "row wrap"  # a text that does not fit goes below its bar
            for part, size in zip(self.bar.container.children, _SIZES, strict=True):
                part.layout.width, part.layout.flex = "auto", size

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            if "episodes" in self.row:
                self._report(logged=True)
            row = {name: value for name, value in self.row.items() if name not in ("turns", "seconds_left")}
            took = f"{describe(row)}, took " if row else ""
            self.bar.bar_format = self._format(f"{took}{clock(time.monotonic() - self.start)}")
            self.bar.n = self.bar.total
            self.bar.refresh()
        self.bar.close()

    def on_step(self, step: int, steps: int, row: Mapping[str, float]) -> None:
        """Show a training step. ``row`` is what training logged at it, with its speed; the last loss stays shown."""
        last_loss: dict[str, Any] = {"loss": self.row["loss"]} if "loss" in self.row else {}
        rounded = {name: round(row[name], 1) for name in _ROUNDED if name in row}
        self.row = {"step": step, "steps": steps, **last_loss, **row, **rounded}
        self._report(logged="loss" in row)
        self._show()

    def on_turn(self, turns: int, tokens: int) -> None:
        """Show turns of episodes in play, and the tokens sampled for them, since the last call."""
        self.turns += turns
        self.sampled += tokens
        self.on_episodes(0, 0, 0)

    def on_episodes(self, episodes: int, wins: int, tokens: int) -> None:
        """Show the progress of a rollout. The arguments are what was added since the last call."""
        from_journal = self.turns_per_episode and not self.turns
        for name, count in (("episodes", episodes), ("wins", wins), ("tokens", tokens)):
            self.totals[name] += count
            if from_journal and name in self.saved:
                self.saved[name] += count
        now, ended = time.monotonic(), self.totals["episodes"]
        seconds, total = now - self.start, max(self.total or 0, ended)
        self.row = {"step": ended, "steps": total, **self.totals}
        if ended:
            self.row["win_rate"] = self.totals["wins"] / ended
        if self.turns:
            self.row["turns"] = self.turns
        if (tokens := max(self.sampled, self.totals["tokens"] - self.saved["tokens"])) and seconds:
            self.row["tokens_per_second"] = round(tokens / seconds, 1)
            if self.on_cpu and (cpu_seconds := time.process_time() - self.cpu_start):
                self.row["tokens_per_cpu_second"] = round(tokens / cpu_seconds, 1)
        to_play = total - self.saved["episodes"]
        done = (ended - self.saved["episodes"]) / max(1, to_play)
        if self.turns_per_episode and to_play:  # episodes that play at once end late, and then together
            done = max(done, min(0.99, self.turns / (to_play * self.turns_per_episode)))
        if done:
            self.row["seconds_left"] = round(seconds / done - seconds, 1)
        if now - self.reported >= REPORT_SECONDS:
            self._report(logged=True)
        self._show()

    def _report(self, logged: bool) -> None:
        self.reported = time.monotonic()
        if self.report:
            self.report(self.row, logged)

    def _show(self) -> None:
        if not self.bar.disable:
            if self.bar.total != self.row["steps"]:
                self.bar.reset(self.row["steps"])  # in a notebook, total alone does not change the bar
            self.bar.bar_format = self._format(describe(self.row))
            self.bar.update(self.row["step"] - self.bar.n)
        elif time.monotonic() - self.printed >= LINE_SECONDS:
            self.printed = time.monotonic()
            show(f"  {self.name}: {describe(self.row)}")

    def _format(self, text: str) -> str:
        name = self.name.replace("{", "{{").replace("}", "}}")
        if _IN_NOTEBOOK:
            return f"{name} {{percentage:3.0f}} %{{bar}} {text}"
        return f"{name:<44}{{percentage:3.0f}} % |{{bar:12}}| {text}"
