"""The companion process, which shows a run on Weights & Biases while it runs (see :mod:`eef.tracking.live`).

It reads the run's ``events.jsonl`` as the file grows. All arms share the charts of training and rollouts in progress:
``train/loss``, ``train/learning_rate`` and ``train/tokens_per_second`` over ``train/global_step``, and
``rollout/win_rate``, ``rollout/episodes``, ... over ``rollout/total_episodes``. These two axes count on from stage to
stage, and ``train/stage`` and ``rollout/stage`` name the stage. Expert trajectories have charts of their own,
``experts/...``. When the run finishes, ``test/...`` over ``budget/...``, tables of trajectories and the summary follow.
If the run fails or its process dies, the W&B run ends with exit code 1.

Offline, each start writes the whole history again and replaces an offline folder that was not synced. Online, a restart
resumes the same W&B run and sends only what is missing. Data that was sent cannot be changed, so a new W&B run,
``RUN_ID-2`` and so on, is opened in two cases: a stage that was sent now has another key, or the run was sent by
``eef wandb sync``. ``wandb/state.json`` in the run's folder records what was sent.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eef.files import digest, read_json, read_rows, write_json
from eef.tracking import mirror

EXPERTS = ("experts", "demonstrations")  # stages of expert trajectories
AXES = {"train": "global_step", "rollout": "total_episodes", "experts": "total_episodes"}
POLL_SECONDS = 0.2
LOCK_SECONDS = 60.0  # the companion of an earlier start may still be finishing


@dataclass
class State:
    """The contents of ``wandb/state.json``.

    ``sent`` maps the folder of a stage to the last step or episode that was sent, or to None if all were. ``used`` is
    the mode of the W&B run, ``disabled`` until it is opened.
    """

    used: str
    attempt: int = 1
    sent: dict[str, float | None] = field(default_factory=dict)
    content: str | None = None  # hash of the finished run
    error: str | None = None
    pid: int = 0

    def id_of(self, run_id: str) -> str:
        return f"{run_id}-{self.attempt}" if self.attempt > 1 else run_id


@dataclass
class Companion:
    """Sends one run to W&B. The W&B run is opened when there is something to send.

    ``labels`` and ``complete`` map a stage to its folder, ``sizes`` a chart to its complete stages with their numbers
    of steps or episodes.
    """

    folder: Path
    mode: str
    parent: int
    state: State
    run: Any = None
    labels: dict[str, str] = field(default_factory=dict)
    complete: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = field(default_factory=lambda: {chart: {} for chart in AXES})

    @classmethod
    def of(cls, folder: Path, mode: str, parent: int) -> Companion:
        path = folder / "wandb" / "state.json"
        before = State(**read_json(path)) if path.is_file() else State("disabled")
        state = State("disabled", before.attempt, pid=os.getpid())
        if mode == "online" and before.used == "online":
            state.used, state.sent, state.content = before.used, before.sent, before.content
        elif (before.used == "online" and before.sent) or synced(folder, before):
            state.attempt += 1
        return cls(folder, mode, parent, state)

    def save(self) -> None:
        write_json(self.folder / "wandb" / "state.json", asdict(self.state))

    def open(self) -> None:
        """Open the W&B run; offline if it cannot be opened online."""
        if self.run is not None:
            return
        for path in self.folder.glob("wandb/offline-run-*"):
            if not list(path.glob("*.synced")):
                shutil.rmtree(path)
        if self.mode == "online" and (error := mirror.account_problem() or self._init()):
            self.mode, self.state.used, self.state.error = "offline", "disabled", error
            if self.state.sent:
                self.renew()
                return
        if self.run is None and (error := self._init()):
            raise RuntimeError(error)

    def _init(self) -> str | None:
        import wandb  # takes seconds

        origin, stamp = read_json(self.folder / "config.json"), read_json(self.folder / "stamp.json")
        names = {"env": origin["env"], "arm": origin["method"], "seed": origin["seed"]}
        tags = [
            origin["env"],
            origin["method"],
            f"seed-{origin['seed']}",
            origin["config"].get("method"),
            *origin["tags"],
        ]
        earlier = set(self.folder.glob("wandb/run-*"))
        try:
            self.run = mirror.open_run(
                self.folder, self.state.id_of(origin["run_id"]), self.mode, pid=self.parent,
                group=origin["group"] or _group(origin, stamp), job_type=origin["method"],
                tags=[str(tag)[:64] for tag in dict.fromkeys(tags) if tag],
                config={**origin["config"], **names, "stamp": stamp},
            )  # fmt: skip
        except Exception as error:  # no permission, a broken service, a disk that is full
            wandb.teardown()  # otherwise the service keeps the run's id in use
            for path in set(self.folder.glob("wandb/run-*")) - earlier:
                shutil.rmtree(path, ignore_errors=True)
            lines = str(error).strip().splitlines() or [""]
            return f"{type(error).__name__}: {lines[0][:200]}"
        self.run.define_metric("test/*", step_metric="budget/episodes")
        for chart, axis in AXES.items():
            self.run.define_metric(f"{chart}/*", step_metric=f"{chart}/{axis}")
        self.state.used = self.mode
        self.save()
        return None

    def renew(self) -> None:
        """Send everything again, to a new W&B run. The earlier W&B run stays unchanged."""
        self.state = State("disabled", self.state.attempt + 1, error=self.state.error, pid=self.state.pid)
        self.open()
        for stage, label in self.complete.items():
            self.rows(stage, label)

    def handle(self, event: dict[str, Any]) -> int | None:
        """Send one event. Returns the exit code of the W&B run if this event ends it, else None."""
        match event["event"]:
            case "stage":
                self.stage(event["stage"], event["label"], event["status"])
            case "progress":
                self.log(event["stage"], self.labels.get(event["stage"], event["stage"]), event["row"])
            case "finish":
                self.finish(event["content"])
                return 0
            case "failed":
                self.end(event["message"])
                return 1
        return None

    def stage(self, stage: str, label: str, status: str) -> None:
        """Send the status of a stage, and the rows of a complete one."""
        earlier = [name for name in self.state.sent if name.rpartition("-")[0] == stage]
        if self.run is None and earlier and label not in earlier:
            self.renew()
        self.labels[stage] = label
        if status != "started":
            self.complete[stage] = label
            for row in self._made_rows(label):
                if (size := row.get(_step(row))) is not None:
                    self.sizes[_chart(stage, row)][stage] = size
        if self.state.sent.get(label, 0) is None:
            return
        self.open()
        if status == "started":
            self.run.summary.update({"stage": stage})
        else:
            self.rows(stage, label)

    def rows(self, stage: str, label: str) -> None:
        """Send the rows of a complete stage that were not sent while it was in progress."""
        for row in self._made_rows(label):
            self.log(stage, label, row, final=True)
        self.state.sent[label] = None

    def _made_rows(self, label: str) -> list[dict[str, Any]]:
        return read_rows(self.folder.parent / "stages" / label / "metrics.jsonl")

    def log(self, stage: str, label: str, row: dict[str, Any], final: bool = False) -> None:
        """Send a row, unless it was sent before. A ``final`` row without a step is the last row of its stage."""
        step, chart = _step(row), _chart(stage, row)
        last = self.state.sent.get(label, -1)
        if last is None or (step in row and row[step] <= last and not (final and step == "episodes")):
            return
        self.open()
        values: dict[str, Any] = {"stage": stage, **row}
        if step in row:
            earlier = takewhile(lambda name: name != stage, self.sizes[chart])
            values[AXES[chart]] = sum(self.sizes[chart][name] for name in earlier) + row[step]
        if row.get("episodes"):
            values["win_rate"] = row.get("wins", 0) / row["episodes"]
        left_out = {"seconds_left", *({"step", "steps"} if step == "episodes" else {})}
        self.run.log({f"{chart}/{key}": v for key, v in values.items() if v is not None and key not in left_out})
        self.state.sent[label] = row.get(step, last)

    def finish(self, content: str) -> None:
        """Complete the W&B run from the run's folder: test results, tables of trajectories, summary."""
        if self.run is None and self.state.content == content:
            return
        if self.run is None and self.state.content is not None:
            self.renew()
        import wandb

        self.open()
        result = read_json(self.folder / "result.json")
        axes = {f"budget/{key}": result.get(key) for key in mirror.BUDGET}
        test = [key for key in result if key in mirror.TEST or key.startswith("win_rate_")]  # also by group
        axes |= {f"test/{key}": result[key] for key in test}
        self.run.log({key: value for key, value in axes.items() if value is not None})
        for name, rows in mirror.trajectory_tables(self.folder).items():
            columns = list(mirror.TRAJECTORY)
            self.run.log({f"trajectories/{name}": wandb.Table(columns=columns, data=list(rows))})
        if (views := self.folder / mirror.VIEWS).is_file():
            self.run.log({"trajectories/views": wandb.Html(views.read_text(encoding="utf-8"), inject=False)})
        if (method := result.get("method")) and method not in self.run.tags:
            self.run.tags += (str(method)[:64],)
        self.run.summary.update({"stage": "finished", **result})
        self.run.finish(exit_code=0)
        self.state.content = content

    def end(self, message: str) -> None:
        """Mark the W&B run as failed, unless an earlier start finished it."""
        if self.run is None and self.state.content is None:
            self.open()
        if self.run is not None:
            self.run.summary.update({"error": message})
            self.run.finish(exit_code=1)


def _step(row: dict[str, Any]) -> str:
    """The column that counts within a stage."""
    return "episodes" if "episodes" in row else "step"


def _chart(stage: str, row: dict[str, Any]) -> str:
    """The first part of the names of a row's charts, one of ``AXES``."""
    return "train" if "episodes" not in row else "experts" if stage in EXPERTS else "rollout"


def _group(origin: dict[str, Any], stamp: dict[str, Any]) -> str:
    """The group of a run outside a sweep: runs with the same hashes may be compared."""
    return f"{origin['env']}-{digest(stamp.get('hashes', {}), 6)}"


def synced(folder: Path, state: State) -> bool:
    """Whether ``eef wandb sync`` sent the offline folder of the last start."""
    name = state.id_of(read_json(folder / "config.json")["run_id"])
    return any(list(path.glob("*.synced")) for path in folder.glob(f"wandb/offline-run-*-{name}"))


def follow(folder: str, mode: str, parent: str) -> int:
    """Send the events of a run until it ends; called with ``python -c``. Returns 0, or 1 if W&B failed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the companion ends with the run, not earlier
        signal.signal(number, signal.SIG_IGN)
    at, lock = Path(folder), FileLock(Path(folder) / "wandb" / mirror.LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        print("another process is sending this run to W&B", file=sys.stderr)
        return 1
    companion = Companion.of(at, mode, int(parent))
    companion.save()

    def alive() -> bool:
        return not select.select([sys.stdin], [], [], POLL_SECONDS)[0] and os.getppid() == int(parent)

    try:
        if not companion.state.sent:
            companion.open()
        code = None
        for batch in batches(at / "events.jsonl", alive):
            for event in batch:
                code = companion.handle(event) if code is None else code
            companion.save()
            if code is not None:
                break
        if code is None:
            companion.end("the run's process ended without a result")
    except Exception as error:
        companion.state.error = f"{type(error).__name__}: {str(error)[:300]}"
        raise
    finally:
        companion.save()
        lock.release()
    return 0


def batches(path: Path, alive: Callable[[], bool]) -> Iterator[list[dict[str, Any]]]:
    """Yield new events in batches until the run's process is gone. A truncated last line is ignored."""
    with open(path, encoding="utf-8") as lines:
        rest = ""
        while True:
            last = not alive()  # checked first, so that no event before the end is missed
            *complete, rest = (rest + lines.read()).split("\n")
            if complete:
                yield [json.loads(line) for line in complete]
            if last:
                return
