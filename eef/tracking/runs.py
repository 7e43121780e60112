"""What a run leaves behind: a folder per run, content-addressed stages that runs share, and a copy on W&B.

``root/{run_id}/`` holds ``config.json``, ``stamp.json``, ``metrics.jsonl``, ``result.json``, ``timing.json`` and a
link to each stage; ``root/stages/{name}-{hash}/`` holds the stages. The folder is the record: figures read it alone.
``result.json`` belongs to the stamp and the stages beside it. When a stage of a finished run is replaced, the result
becomes ``result.before.json`` and the run is unfinished until there is a new one.
``events.jsonl`` and ``wandb/`` are W&B's (see :mod:`eef.tracking.live`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from eef.files import (
    FULL,
    PACKAGE,
    digest,
    disk_errors,
    link,
    plain,
    read_json,
    read_rows,
    write_json,
    write_text,
)
from eef.tracking.keys import LIBRARIES
from eef.tracking.live import Live, wandb_environment

_CLOCK = re.compile(r"(^|_)(seconds|time)$")


def repo_root() -> Path:
    """The checkout that the package lies in, or the current folder where it is installed as a wheel."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()


def default_root() -> Path:
    """``EEF_ROOT`` (sweeps set it), else ``experiments/runs`` of the checkout."""
    return Path(os.environ.get("EEF_ROOT") or repo_root() / "experiments" / "runs").resolve()


def log_metrics(path: Path, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
    """Append one row, or many, to ``metrics.jsonl`` in a stage's folder."""
    many = [rows] if isinstance(rows, Mapping) else rows
    with disk_errors(path), open(path / "metrics.jsonl", "a", encoding="utf-8") as out:
        out.writelines(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in many)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("eef", *LIBRARIES, "papermill", "wandb"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _machine() -> dict[str, Any]:
    """The device and the number of threads: they change the last bits of sums, and are no part of a stage's key."""
    torch = sys.modules.get("torch")  # no stage without it computes on a device
    if torch is None:
        return {}
    return {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads()}


@cache
def _cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def stamp(env_stamp: Mapping[str, Any], chat_hash: str) -> dict[str, Any]:
    """Where a run came from: commit, versions, machine, and the hashes that decide which runs may be compared."""
    top = _git("rev-parse", "--show-toplevel")
    ours = top is not None and Path(top).resolve() == PACKAGE.parent  # not some other repository around a venv
    changes = _git("status", "--porcelain") if ours else None
    torch = sys.modules.get("torch")  # a stamp is no reason to import it
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch else []
    return {
        "commit": (_git("rev-parse", "HEAD") if ours else None) or "unknown",
        "dirty": None if changes is None else bool(changes),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpus[0].name if gpus else None,
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda if torch and gpus else None,
        "hashes": {**plain(env_stamp), "chat": chat_hash},
    }


@dataclass
class Run:
    """One method, environment and seed under one configuration; :meth:`open` makes or finds its folder.

    As a context manager, it ends the W&B run as failed when an exception leaves the block.
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

    @classmethod
    def open(
        cls, root: str | Path | None, env: str, method: str, seed: int, config: Mapping[str, Any],
        stamp: Mapping[str, Any], tags: Iterable[str] = (), group: str | None = None, identity: Any = None,
        wandb: str | None = None,
    ) -> Run:  # fmt: skip
        """Make or find the run's folder. ``root`` None means :func:`default_root`; ``group`` is the sweep's name.

        ``identity`` is what distinguishes runs of one method and seed; None: the configuration and the stamp's hashes.
        ``wandb`` (``offline``, ``online`` or ``disabled``; ``WANDB_MODE`` goes before it) shows the run on W&B while it
        runs. None leaves that to :meth:`finish`. A finished run is opened on W&B only for a new stage or result.
        """
        where = Path(root).resolve() if root else default_root()
        named = os.environ.get("EEF_SWEEP", "") if group is None else group
        made = plain(stamp)
        identity = [plain(config), made.get("hashes", {})] if identity is None else identity
        run = cls(where, env, method, int(seed), plain(config), made, digest(identity, 8), tuple(tags), named)
        if not run.done:
            run._write_origin()
        with disk_errors(where):
            (where / "stages").mkdir(exist_ok=True)
            _remove_stale(where / "stages")
            if ids := os.environ.get("EEF_RUN_IDS"):  # how a sweep learns which runs a point made
                with open(ids, "a", encoding="utf-8") as out:
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
        """Deterministic, so that starting again finds the same folder."""
        env, method = (shorten(_safe(name), 80) for name in (self.env, self.method))
        return f"{env}__{method}__s{self.seed}__{self.identity}"

    @property
    def folder(self) -> Path:
        return self.root / self.run_id

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def stage(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a stage, made by ``make(folder)`` unless a run with the same name and key made it before.

        ``key`` holds all that the stage's content depends on (:func:`eef.tracking.stages.stage_key`). The folder
        appears whole or not at all; of several processes one makes it and the others wait. A finished run becomes
        unfinished when the stage is not the one that its result was computed from.
        """
        if _safe(name) != name or not name or "." in name:
            raise ValueError(f"stage name {name!r}: letters, digits, - and _ alone")
        label = f"{name}-{digest(key)}"
        stages = self.root / "stages"
        final = stages / label
        if not _whole(final) or (self.folder / name).resolve() != final.resolve():
            self._reopen()
            if self.live is not None:
                self.live.start()
        made = False
        if not _whole(final):
            with _lock(stages / f".{label}.lock", f"[{name}] waits for another process that makes {label}"):
                if made := not _whole(final):
                    if self.live is not None:
                        self.live.stage(name, label, "started")
                    self._make(name, key, final, make)
        if not made:
            print(f"[{name}] reused ({label})", flush=True)
        link(self.folder / name, Path("..") / "stages" / label)
        self.stages[name] = final
        if self.live is not None:
            self.live.stage(name, label, "made" if made else "reused")
        return final

    def _write_origin(self) -> None:
        """Write ``config.json`` and ``stamp.json``."""
        named = {"run_id": self.run_id, "env": self.env, "method": self.method, "seed": self.seed}
        about = {**named, "group": self.group, "tags": self.tags, "config": self.config}
        write_json(self.folder / "config.json", about)
        write_json(self.folder / "stamp.json", self.stamp)

    def _reopen(self) -> None:
        """Make a finished run unfinished: rename its result, then write the configuration and stamp of this start."""
        if self.done:
            with disk_errors(self.folder):
                os.replace(self.folder / "result.json", self.folder / "result.before.json")
            self._write_origin()

    def progress(self, stage: str, row: Mapping[str, Any]) -> None:
        """Show how far a stage is, on W&B. It never waits and never raises.

        ``row`` is a training step (``step``, ``epoch``, ``loss``, ``learning_rate``; a step that was reported is left
        out) or the totals of a rollout so far (``episodes``, ``wins``, ``tokens``; sent at most once per second).
        """
        if self.live is not None:
            self.live.progress(stage, row)

    def _make(self, name: str, key: Mapping[str, Any], final: Path, make: Callable[[Path], None]) -> None:
        """Make a stage beside its place, then rename; the caller holds the stage's lock."""
        for stale in final.parent.glob(f".{final.name}.[0-9]*"):  # we hold the lock, so its maker is dead
            shutil.rmtree(stale, ignore_errors=True)
        beside = final.parent / f".{final.name}.{os.getpid()}"
        print(f"[{name}] starts ({final.name})", flush=True)
        with disk_errors(final):
            beside.mkdir()
        start = time.perf_counter()
        try:
            with disk_errors(final, FULL):  # of make's own errors only a full disk is ours to explain
                make(beside)
            seconds = round(time.perf_counter() - start, 3)
            made = {"versions": _versions(), "commit": self.stamp.get("commit", "unknown"), **_machine()}
            write_json(beside / "stage.json", {"name": name, "key": plain(key), "seconds": seconds, **made})
            with disk_errors(final):
                if final.exists():  # a copy without stage.json is no stage
                    shutil.rmtree(final)
                os.rename(beside, final)
                shutil.rmtree(work_folder(beside), ignore_errors=True)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        print(f"[{name}] made in {seconds:.1f} s", flush=True)

    def seconds(self) -> float:
        """What the run's stages took when they were made, by this run or another."""
        return round(sum(read_json(path / "stage.json")["seconds"] for path in self.stages.values()), 3)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The stages' rows in order of the stages; made from whole stages, so resuming never doubles a line."""
        return [{"stage": name, **row} for name, at in self.stages.items() for row in read_rows(at / "metrics.jsonl")]

    def finish(self, result: Mapping[str, Any], wandb: str = "offline") -> Path:
        """Write metrics and result, then complete the W&B run; returns the path of ``result.json``.

        ``wandb`` is the mode of a run that was opened without one: it is sent to W&B now, as a whole.
        Keys that end in ``seconds`` or ``time`` go to ``timing.json``: equal runs have equal results, byte for byte.
        """
        kept = {key: value for key, value in plain(result).items() if not _CLOCK.search(key)}
        clock = {key: value for key, value in plain(result).items() if _CLOCK.search(key)}
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.metrics]
        self._reopen()
        write_text(self.folder / "metrics.jsonl", "".join(lines))
        path = write_json(self.folder / "result.json", kept)
        (self.folder / "result.before.json").unlink(missing_ok=True)
        timing = {
            **clock,
            "seconds": self.seconds(),
            "stages": {name: read_json(at / "stage.json")["seconds"] for name, at in self.stages.items()},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "wandb": self._complete(wandb),
        }
        write_json(self.folder / "timing.json", timing)
        return path

    def _complete(self, mode: str) -> dict[str, Any]:
        """Complete the W&B run; what became of it, for ``timing.json``. An error is one printed line and a field."""
        live = self.live or Live(self.folder, mode)
        content = digest([self.config, read_json(self.folder / "result.json")])
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
                self.live = Live(self.folder, live.wanted)  # another result is sent by another companion
        if error:
            print(
                f"warning: W&B {live.wanted} -> {used}: {error}; the record in {self.folder.name} is complete",
                flush=True,
            )
        return {"mode": live.wanted, "content": content, "used": used, "error": error}

    def _sent(self, live: Live) -> dict[str, Any] | None:
        """``wandb`` in ``timing.json`` where an earlier start sent the finished run in this mode, else None."""
        clock, state = self.folder / "timing.json", self.folder / "wandb" / "state.json"
        if not (self.done and clock.is_file() and state.is_file()):
            return None
        sent = read_json(clock).get("wandb") or {}
        complete = sent.get("mode") == live.wanted and sent.get("error") is None
        return sent if complete and read_json(state).get("content") == sent.get("content") else None


def work_folder(beside: Path) -> Path:
    """Where the maker of a stage, in the folder ``beside``, may keep what the next one goes on from if it is killed.

    It is removed when the stage is made.
    """
    return beside.with_suffix(".work")


@contextmanager
def _lock(path: Path, waits: str) -> Iterator[None]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(waits, flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def shorten(name: str, size: int) -> str:
    """The name, or its beginning and a hash where it takes more than ``size`` bytes: part of a file's name."""
    encoded = name.encode()
    return name if len(encoded) <= size else f"{encoded[: size - 9].decode(errors='ignore')}-{digest(name, 8)}"


def _whole(stage: Path) -> bool:
    return (stage / "stage.json").is_file()


def _remove_stale(stages: Path) -> None:
    """Remove what killed processes left half made. A free lock proves the death, on whatever machine it was."""
    for beside in stages.glob(".*-*.[0-9]*"):
        try:
            with FileLock(stages / f"{beside.stem}.lock", timeout=0):
                shutil.rmtree(beside, ignore_errors=True)
        except Timeout:
            continue


def load_runs(root: str | Path, run_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per finished run: run_id, env, seed, the result's fields, label, config, hashes, folder.

    ``frame.attrs["unfinished"]`` names the runs that have a folder and no result. ``run_ids`` limits to those.
    """
    wanted = None if run_ids is None else set(run_ids)
    rows, unfinished = [], []
    for folder in sorted(path.parent for path in Path(root).glob("*__*/config.json")):
        if wanted is not None and folder.name not in wanted:
            continue
        if not (folder / "result.json").exists():
            unfinished.append(folder.name)
            continue
        about, result = read_json(folder / "config.json"), read_json(folder / "result.json")
        named = {"run_id": folder.name, **{key: about.get(key) for key in ("env", "method", "seed")}}
        hashes = read_json(folder / "stamp.json").get("hashes", {})
        more = {"label": about.get("method"), "config": about.get("config"), "hashes": hashes, "folder": str(folder)}
        rows.append({**named, **result, **more})
    frame = pd.DataFrame(rows)
    frame.attrs["unfinished"] = unfinished + sorted((wanted or set()) - {r["run_id"] for r in rows} - set(unfinished))
    return frame


def apart(root: Path, code: str, *arguments: str, seconds: float = 180.0) -> str | None:
    """Run Python code that uses W&B in a process without a terminal, within a time limit; its error in a line, or None.

    See :func:`eef.tracking.live.wandb_environment` for where W&B keeps its own files.
    """
    path = "import sys; sys.path.append(sys.argv.pop(1))"  # -P: never a module of the current folder
    words = [sys.executable, "-P", "-c", f"{path}; {code}", str(PACKAGE.parent), *arguments]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
            env=wandb_environment(root),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {str(error)[-200:]}"
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    return None if done.returncode == 0 else f"exit {done.returncode}: {lines[-1][:200]}"
