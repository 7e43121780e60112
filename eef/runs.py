"""What a run leaves behind: a folder per run, content-addressed stages that runs share, and W&B as a mirror.

``root/{run_id}/`` holds ``config.json``, ``stamp.json``, ``metrics.jsonl``, ``result.json``, ``timing.json`` and a
link to each stage; ``root/stages/{name}-{hash}/`` holds the stages. The folder is the record: figures read it alone.
"""

from __future__ import annotations

import hashlib
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

_CLOCK = re.compile(r"(^|_)(seconds|time)$")


def repo_root() -> Path:
    """The checkout that the package lies in, or the current folder where it is installed as a wheel."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()


def default_root() -> Path:
    """``EEF_ROOT`` (sweeps set it), else ``experiments/runs`` of the checkout."""
    return Path(os.environ.get("EEF_ROOT") or repo_root() / "experiments" / "runs").resolve()


def code_hash(*names: str) -> str:
    """Hash of the package's files (code and shipped data), or of the named files and folders (``"train.py"``)."""
    places = [PACKAGE / name for name in names] or [PACKAGE]
    found = [path for place in places for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()]
    kept = sorted(path for path in found if "__pycache__" not in path.parts and not path.name.startswith("."))
    return digest({str(path.relative_to(PACKAGE)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept})


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
    for name in ("eef", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "papermill", "wandb"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


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
    """One method, environment and seed under one configuration; :meth:`open` makes or finds its folder."""

    root: Path
    env: str
    method: str
    seed: int
    config: dict[str, Any]
    stamp: dict[str, Any]
    tags: tuple[str, ...] = ()
    group: str = ""
    stages: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def open(
        cls, root: str | Path | None, env: str, method: str, seed: int, config: Mapping[str, Any],
        stamp: Mapping[str, Any], tags: Iterable[str] = (), group: str | None = None,
    ) -> Run:  # fmt: skip
        """Make or find the run's folder. ``root`` None means :func:`default_root`; ``group`` is the sweep's name."""
        where = Path(root).resolve() if root else default_root()
        named = os.environ.get("EEF_SWEEP", "") if group is None else group
        run = cls(where, env, method, int(seed), plain(config), plain(stamp), tuple(tags), named)
        about = {"run_id": run.run_id, "env": env, "method": method, "seed": run.seed}
        write_json(run.folder / "config.json", {**about, "group": named, "tags": run.tags, "config": run.config})
        write_json(run.folder / "stamp.json", run.stamp)
        with disk_errors(where):
            (where / "stages").mkdir(exist_ok=True)
            _remove_stale(where / "stages")
            if ids := os.environ.get("EEF_RUN_IDS"):  # how a sweep learns which runs a point made
                with open(ids, "a", encoding="utf-8") as out:
                    out.write(run.run_id + "\n")
        return run

    @property
    def run_id(self) -> str:
        """Deterministic, so that starting again finds the same folder."""
        hashed = digest([self.config, self.stamp.get("hashes", {})], 8)
        env, method = (shorten(_safe(name), 80) for name in (self.env, self.method))
        return f"{env}__{method}__s{self.seed}__{hashed}"

    @property
    def folder(self) -> Path:
        return self.root / self.run_id

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def stage(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of a stage, made by ``make(folder)`` unless a run with the same name and key made it before.

        ``key`` holds all that the stage's content depends on (with :func:`code_hash` where code matters). The folder
        appears whole or not at all; of several processes one makes it and the others wait.
        """
        if _safe(name) != name or not name or "." in name:
            raise ValueError(f"stage name {name!r}: letters, digits, - and _ alone")
        label = f"{name}-{digest(key)}"
        stages = self.root / "stages"
        final = stages / label
        made = False
        if not _whole(final):
            with _lock(stages / f".{label}.lock", f"[{name}] waits for another process that makes {label}"):
                if made := not _whole(final):
                    self._make(name, key, final, make)
        if not made:
            print(f"[{name}] reused ({label})", flush=True)
        link(self.folder / name, Path("..") / "stages" / label)
        self.stages[name] = final
        return final

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
            made = {"versions": _versions(), "commit": self.stamp.get("commit", "unknown")}
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
        """Write metrics and result, then mirror them to W&B; returns the path of ``result.json``.

        Keys that end in ``seconds`` or ``time`` go to ``timing.json``: equal runs have equal results, byte for byte.
        """
        kept = {key: value for key, value in plain(result).items() if not _CLOCK.search(key)}
        clock = {key: value for key, value in plain(result).items() if _CLOCK.search(key)}
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.metrics]
        write_text(self.folder / "metrics.jsonl", "".join(lines))
        path = write_json(self.folder / "result.json", kept)
        timing = {
            **clock,
            "seconds": self.seconds(),
            "stages": {name: read_json(at / "stage.json")["seconds"] for name, at in self.stages.items()},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "wandb": wandb_mirror(self, wandb),
        }
        write_json(self.folder / "timing.json", timing)
        return path


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


def wandb_mirror(run: Run, mode: str = "offline") -> dict[str, Any]:
    """Mirror a finished run to W&B; ``WANDB_MODE`` goes before ``mode``. Returns what became of it, for timing.json.

    It runs in a process of its own, without a terminal and within a time limit: W&B can neither ask, hang nor fail a
    run. What goes wrong is one printed line and a field in the answer.
    """
    wanted = os.environ.get("WANDB_MODE") or mode
    state: dict[str, Any] = {"mode": wanted, "content": digest([run.config, read_json(run.folder / "result.json")])}
    before = run.folder / "timing.json"
    if before.exists() and {**state, "error": None}.items() <= (read_json(before).get("wandb") or {}).items():
        return read_json(before)["wandb"]
    error = None if wanted in ("offline", "online", "disabled") else f"W&B mode {wanted!r} is unknown: offline is used"
    mode = wanted if error is None else "offline"
    if mode != "disabled":
        failed = _mirror_apart(run.folder, mode)
        if failed and mode == "online":
            mode, error = "offline", failed
            failed = _mirror_apart(run.folder, mode)
        error = "; ".join(filter(None, (error, failed))) or None
    if error:
        print(f"warning: W&B {wanted} -> {mode}: {error}; the record in {run.folder.name} is complete", flush=True)
    return {**state, "used": mode, "error": error}


def _mirror_apart(folder: Path, mode: str) -> str | None:
    shutil.rmtree(folder / "wandb", ignore_errors=True)  # a mirror that was cut off
    return apart("from eef.mirror import mirror_folder; mirror_folder(*sys.argv[1:])", str(folder), mode)


def apart(code: str, *arguments: str, seconds: float = 180.0) -> str | None:
    """Run Python code in a process without a terminal, within a time limit; None, or its last words of trouble."""
    words = [sys.executable, "-P", "-c", f"import sys; {code}", *arguments]  # -P: not from the current folder
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {str(error)[-200:]}"
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    return None if done.returncode == 0 else f"exit {done.returncode}: {lines[-1][:200]}"
