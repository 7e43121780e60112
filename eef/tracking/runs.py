"""The record of a run: one folder per run, stages that runs share, and a copy on W&B.

``root/RUN_ID/`` contains ``config.json``, ``stamp.json``, ``metrics.jsonl``, ``result.json``, ``timing.json`` and a
link to each stage. ``root/stages/NAME-HASH/`` contains the stages. Figures read nothing else. ``result.json`` was
computed from the stages linked beside it. When a stage of a finished run is replaced, the result is renamed to
``result.before.json``, and the run is unfinished until it has a new one. ``events.jsonl`` and ``wandb/`` are for W&B
(see :mod:`eef.tracking.live`).

While a run is in progress, ``metrics.jsonl`` grows by one line per training step and per report of a rollout, with the
time, the speed and the time left (:meth:`Run.progress`). At the end these lines move to ``progress.jsonl``, and
``metrics.jsonl`` is written from the stages, without times, so that equal runs have equal files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from eef.files import (
    FULL,
    digest,
    disk_errors,
    link,
    plain,
    read_json,
    read_rows,
    write_json,
    write_text,
)
from eef.tracking.live import Live
from eef.tracking.progress import show, stage_name
from eef.tracking.records import default_root, load_runs, remove_stale_links, repo_root
from eef.tracking.stamp import installed_versions, machine, stamp

__all__ = ["Run", "default_root", "load_runs", "log_metrics", "repo_root", "shorten", "stamp", "work_folder"]

_CLOCK = re.compile(r"(^|_)(seconds|time)$")


def log_metrics(path: Path, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
    """Append one or several rows to ``metrics.jsonl`` in the folder ``path`` of a stage."""
    rows = [rows] if isinstance(rows, Mapping) else rows
    with disk_errors(path), open(path / "metrics.jsonl", "a", encoding="utf-8") as out:
        out.writelines(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)


@dataclass
class Run:
    """One method, environment, seed and configuration; :meth:`open` creates or finds the run's folder.

    Used as a context manager, it marks the W&B run as failed if the block raises an exception.
    """

    root: Path
    env: str
    method: str
    seed: int
    config: dict[str, Any]
    stamp: dict[str, Any]
    identity: str
    tags: tuple[str, ...] = ()
    group: str = ""
    stages: dict[str, Path] = field(default_factory=dict)
    live: Live | None = None
    _out: TextIO | None = field(default=None, repr=False)  # metrics.jsonl while the run is in progress

    @classmethod
    def open(
        cls, root: str | Path | None, env: str, method: str, seed: int, config: Mapping[str, Any],
        stamp: Mapping[str, Any], tags: Iterable[str] = (), group: str | None = None, identity: Any = None,
        wandb: str | None = None,
    ) -> Run:  # fmt: skip
        """Create or find the run's folder. ``root`` None means :func:`default_root`; ``group`` is the sweep's name.

        ``identity`` distinguishes runs of one method and seed (None: the configuration and the stamp's hashes).
        ``wandb`` (``offline``, ``online`` or ``disabled``; ``WANDB_MODE`` takes precedence) shows the run on W&B while
        it runs. None leaves that to :meth:`finish`. A finished run is opened on W&B only for a new stage or result.
        """
        folder = Path(root).resolve() if root else default_root()
        group = os.environ.get("EEF_SWEEP", "") if group is None else group
        stamp = plain(stamp)
        identity = [plain(config), stamp.get("hashes", {})] if identity is None else identity
        run = cls(folder, env, method, int(seed), plain(config), dict(stamp), digest(identity, 8), tuple(tags), group)
        if not run.done:
            run._write_origin()
        with disk_errors(folder):
            (folder / "stages").mkdir(exist_ok=True)
            _remove_stale(folder / "stages")
            if path := os.environ.get("EEF_RUN_IDS"):  # where a sweep reads which runs a point belongs to
                with open(path, "a", encoding="utf-8") as out:
                    out.write(run.run_id + "\n")
        if wandb is not None:
            run.live = Live(run.folder, wandb)
            if not run.done:
                run.live.start()
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self.live is not None:
            self.live.fail(f"{type(error).__name__}: {error}")

    @property
    def run_id(self) -> str:
        """The name of the run's folder. It is deterministic, so a restart finds the same folder."""
        env, method = (shorten(_safe(name), 80) for name in (self.env, self.method))
        return f"{env}__{method}__s{self.seed}__{self.identity}"

    @property
    def folder(self) -> Path:
        return self.root / self.run_id

    @property
    def done(self) -> bool:
        """Whether the run has a result."""
        return (self.folder / "result.json").is_file()

    def stage(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a stage. ``make(folder)`` fills it, unless the stage exists under the same name and key.

        ``key`` covers everything that the stage's content depends on (:func:`eef.tracking.stages.stage_key`). The
        folder appears complete or not at all. If several processes need the stage, one makes it and the others wait. A
        finished run becomes unfinished if its result was computed from another version of the stage.
        """
        if _safe(name) != name or not name or "." in name:
            raise ValueError(f"stage name {name!r}: use only letters, digits, - and _")
        label = f"{name}-{digest(key)}"
        stages = self.root / "stages"
        final = stages / label
        if not _is_complete(final) or (self.folder / name).resolve() != final.resolve():
            self._reopen()
            if self.live is not None:
                self.live.start()
        is_new = False
        if not _is_complete(final):
            waits = f"Waiting for {stage_name(name)}: another process is computing it."
            with _lock(stages / f".{label}.lock", waits):
                if is_new := not _is_complete(final):
                    if self.live is not None:
                        self.live.stage(name, label, "started")
                    self._make(name, key, final, make)
        if not is_new and self.stages.get(name) != final:  # not a stage that this run has made or reused before
            show(f"Reusing {stage_name(name)} from an earlier run.")
            if self._out is not None:
                self._write(_rows(name, final))
        link(self.folder / name, Path("..") / "stages" / label)
        self.stages[name] = final
        if self.live is not None:
            self.live.stage(name, label, "made" if is_new else "reused")
        return final

    def _write_origin(self) -> None:
        """Write ``config.json`` and ``stamp.json``."""
        identity = {"run_id": self.run_id, "env": self.env, "method": self.method, "seed": self.seed}
        origin = {**identity, "group": self.group, "tags": self.tags, "config": self.config}
        write_json(self.folder / "config.json", origin)
        write_json(self.folder / "stamp.json", self.stamp)

    def _reopen(self) -> None:
        """Make a finished run unfinished: rename its result and write this start's configuration and stamp."""
        if self.done:
            with disk_errors(self.folder), suppress(FileNotFoundError):  # another process of this run may be first
                os.replace(self.folder / "result.json", self.folder / "result.before.json")
            self._write_origin()

    def progress(self, stage: str, row: Mapping[str, Any], logged: bool = True) -> None:
        """Report the progress of a stage to ``metrics.jsonl`` and, if ``logged``, to W&B. This never raises.

        ``row`` is a training step (``step``, ``epoch``, ``loss``, ``learning_rate``; W&B gets each step once) or the
        totals of a rollout so far (``episodes``, ``wins``, ``tokens``; W&B gets them at most once per second), with
        the columns of :mod:`eef.tracking.progress`.
        """
        self._write([{"time": round(time.time(), 3), "stage": stage, "kind": _kind(row), **row}])
        if self.live is not None and logged:
            self.live.progress(stage, row)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to ``metrics.jsonl``, which begins with those of the complete stages."""
        with suppress(Exception):  # a report must not end a run: a full disk, a value that is not JSON
            if self._out is None:
                self._out = open(self.folder / "metrics.jsonl", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
                rows = [*self.metrics, *rows]
            for row in rows:
                self._out.write(json.dumps(plain(row), ensure_ascii=False) + "\n")

    def _make(self, name: str, key: Mapping[str, Any], final: Path, make: Callable[[Path], None]) -> None:
        """Make a stage in a temporary folder, then rename the folder. The caller holds the stage's lock."""
        for stale in final.parent.glob(f".{final.name}.[0-9]*"):  # we hold the lock, so its process is dead
            shutil.rmtree(stale, ignore_errors=True)
        temporary = final.parent / f".{final.name}.{os.getpid()}"
        show(f"Starting {stage_name(name)}.")
        with disk_errors(final):
            temporary.mkdir()
        start = time.perf_counter()
        try:
            with disk_errors(final, FULL):  # explain a full disk; other errors of make pass unchanged
                make(temporary)
            seconds = round(time.perf_counter() - start, 3)
            origin = {"versions": installed_versions(), "commit": self.stamp.get("commit", "unknown"), **machine()}
            write_json(temporary / "stage.json", {"name": name, "key": plain(key), "seconds": seconds, **origin})
            with disk_errors(final):
                if final.exists():  # without stage.json it is not complete
                    shutil.rmtree(final)
                os.rename(temporary, final)
                shutil.rmtree(work_folder(temporary), ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        show(f"Finished {stage_name(name)} in {seconds:.1f} s.")

    def seconds(self) -> float:
        """The total time that the run's stages took to make, in this run or another."""
        return round(sum(read_json(path / "stage.json")["seconds"] for path in self.stages.values()), 3)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of all stages, in the order of the stages. Only complete stages are read, so no row is repeated."""
        return [row for name, at in self.stages.items() for row in _rows(name, at)]

    def finish(self, result: Mapping[str, Any], wandb: str = "offline") -> Path:
        """Write metrics and result, then complete the W&B run. Returns the path of ``result.json``.

        ``wandb`` is the W&B mode of a run that was opened without one; such a run is sent to W&B now.
        Keys that end in ``seconds`` or ``time`` go to ``timing.json``, so equal runs have identical result files.
        """
        remove_stale_links(self.folder, self.stages)
        reproducible = {key: value for key, value in plain(result).items() if not _CLOCK.search(key)}
        clock = {key: value for key, value in plain(result).items() if _CLOCK.search(key)}
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.metrics]
        self._reopen()
        if self._out is not None:
            with suppress(OSError):
                self._out.close()
                os.replace(self.folder / "metrics.jsonl", self.folder / "progress.jsonl")
            self._out = None
        write_text(self.folder / "metrics.jsonl", "".join(lines))
        path = write_json(self.folder / "result.json", reproducible)
        (self.folder / "result.before.json").unlink(missing_ok=True)
        timing = {
            **clock,
            "seconds": self.seconds(),
            "stages": {name: read_json(at / "stage.json")["seconds"] for name, at in self.stages.items()},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "wandb": self._complete(wandb, digest([self.config, reproducible])),
        }
        write_json(self.folder / "timing.json", timing)
        return path

    def _complete(self, mode: str, content: str) -> dict[str, Any]:
        """Complete the W&B run and return its state for ``timing.json``. Errors are printed in one line, not raised."""
        live = self.live or Live(self.folder, mode)
        sent = self._sent(live)
        if live.companion is None and sent is not None and sent["content"] == content:
            return sent
        used, error = "disabled", None
        if live.mode != "disabled":
            if live.companion is None:
                for name, at in self.stages.items():
                    live.stage(name, at.name, "reused")
            used, error = live.finish(content)
            if self.live is not None:
                self.live = Live(self.folder, live.wanted)  # a further result needs a new companion
        if error:
            print(
                f"warning: W&B {live.wanted} -> {used}: {error}; the record in {self.folder.name} is complete",
                flush=True,
            )
        return {"mode": live.wanted, "content": content, "used": used, "error": error}

    def _sent(self, live: Live) -> dict[str, Any] | None:
        """The W&B state in ``timing.json`` if the finished run was already sent in this mode, else None."""
        clock, state = self.folder / "timing.json", self.folder / "wandb" / "state.json"
        if not (self.done and clock.is_file() and state.is_file()):
            return None
        sent = read_json(clock).get("wandb") or {}
        complete = sent.get("mode") == live.wanted and sent.get("error") is None
        return sent if complete and read_json(state).get("content") == sent.get("content") else None


def work_folder(temporary: Path) -> Path:
    """Where a stage that is being made in the folder ``temporary`` may store checkpoints.

    A stage that is killed resumes from there. The folder is removed once the stage is complete.
    """
    return temporary.with_suffix(".work")


@contextmanager
def _lock(path: Path, message: str) -> Iterator[None]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            show(message)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def shorten(name: str, size: int) -> str:
    """A name of at most ``size`` bytes for a file: ``name``, or its beginning and a hash if it is longer."""
    encoded = name.encode()
    return name if len(encoded) <= size else f"{encoded[: size - 9].decode(errors='ignore')}-{digest(name, 8)}"


def _kind(row: Mapping[str, Any]) -> str:
    return "rollout" if "episodes" in row else "train"


def _rows(name: str, stage: Path) -> list[dict[str, Any]]:
    """The rows that a complete stage logged."""
    return [{"stage": name, "kind": _kind(row), **row} for row in read_rows(stage / "metrics.jsonl")]


def _is_complete(stage: Path) -> bool:
    return (stage / "stage.json").is_file()


def _remove_stale(stages: Path) -> None:
    """Remove unfinished stages of killed processes. A free lock proves that the process is dead, on any machine."""
    for temporary in stages.glob(".*-*.[0-9]*"):
        try:
            with FileLock(stages / f"{temporary.stem}.lock", timeout=0):
                shutil.rmtree(temporary, ignore_errors=True)
        except Timeout:
            continue
