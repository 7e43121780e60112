"""Run the points of a sweep. Each point is one papermill execution of the notebook, in a process of its own.

Finished points are skipped, so the same command resumes an interrupted sweep.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eef.files import did_you_mean, disk_errors, link, read_json, write_json
from eef.processes import gpu_ids
from eef.sweeps.executors import Execution, Job, adopt, check_slurm, failure, stop, submit, warnings_of
from eef.sweeps.inputs import code_by_file
from eef.sweeps.points import (
    Point,
    current_hash,
    other_releases,
    plan,
    remarks,
    results_of,
    run_ids,
    sweep_label,
    why_again,
)
from eef.sweeps.progress import Screen
from eef.sweeps.spec import Spec, SweepError, read_spec, use_current_names
from eef.sweeps.strict_yaml import load_yaml
from eef.tracking.records import default_root

_LISTED = 10  # names in a message


def sweep(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    only: str | None = None,
    root: str | Path | None = None,
    executor: str = "local",
    out: str | Path | None = None,
) -> int:
    """Run the points that are not finished. Returns 0 on success, 1 if points failed, 130 if interrupted.

    ``executor`` is ``local`` (``jobs`` processes at a time, 2 by default; 1 if the GPUs are too few for two points) or
    ``slurm`` (an array of jobs, all at a time by default). Jobs that an interrupted sweep left in Slurm's queue
    continue, and the next sweep waits for them. ``out`` is the folder of the figures, which the command that repeats
    the sweep names.
    """
    spec = read_spec(path)
    overrides, notices = use_current_names(spec, overrides)
    for notice in (*spec.notices, *notices):
        print(notice)
    folder = Path(root).resolve() if root else default_root()
    if jobs is not None and jobs < 1:
        raise SweepError(f"--jobs must be at least 1, not {jobs}")
    if executor not in ("local", "slurm"):
        raise SweepError(f"unknown executor {executor!r}: use local or slurm")
    points = plan(spec, overrides, folder)
    chosen = [point for point in points if not only or only in point.label]
    if not chosen:
        names, more = [point.label for point in points], len(points) - _LISTED
        near = did_you_mean(only or "", names)
        listed = ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
        raise SweepError(f"no point's name contains {only!r}{near}; points: {listed}")
    todo = [point for point in chosen if point.state != "finished"]
    if slurm := executor == "slurm":
        check_slurm(spec.slurm)
    gpus = [] if slurm else gpu_ids()
    jobs_option, jobs = jobs, jobs or (max(1, len(todo)) if slurm else _default_jobs(todo, gpus))
    name = sweep_label(spec, overrides)
    print(f"sweep {name}: {len(chosen)} points of {spec.notebook.name}, {len(todo)} to do, {jobs} at a time; {folder}")
    if warning := other_releases([point for point in chosen if point.state == "finished"], folder):
        print(warning)
    for line in why_again(spec, chosen, folder):
        print(line)
    if dry_run:
        for point in chosen:
            print(f"  {point.state:9} {point.label}  {json.dumps(point.parameters)}")
        return 0
    with _locked(folder):
        try:
            _work(spec, name, todo, jobs, folder, slurm, gpus)
            code = int(any(point.state == "failed" for point in chosen))
        except KeyboardInterrupt:
            state = f"jobs keep running (scancel --name=eef-{name} ends them)" if slurm else "all processes were ended"
            print(f"interrupted: {state}; the same command resumes the sweep", flush=True)
            code = 130
        good = [point for point in points if point.state in ("finished", "done")]
        missing = [point.label for point in points if point not in good]
        runs = [run for point in good for run in run_ids(point)]
        whole = repeat_command(path, overrides, root, executor, out=out)  # the index covers all points
        index = {"run_ids": runs, "missing": missing, "command": whole}
        write_json(folder / "sweeps" / f"{name}.json", index)
    print("\n".join(_lines(chosen, folder)))
    print(f"to repeat: {repeat_command(path, overrides, root, executor, only, jobs_option, out)}", flush=True)
    return code


def repeat_command(
    path: str | Path,
    overrides: Mapping[str, Any] | None,
    root: str | Path | None,
    executor: str = "local",
    only: str | None = None,
    jobs: int | None = None,
    out: str | Path | None = None,
) -> str:
    """The command line that repeats a sweep, with the options that it was started with."""
    words = ["eef", "sweep", str(path)]
    for key, value in (overrides or {}).items():
        words += ["-p", f"{key}={value if _is_bare(value) else json.dumps(value, ensure_ascii=False)}"]
    options = {"--only": only, "--jobs": jobs, "--executor": executor if executor != "local" else None}
    for option, value in {**options, "--root": root, "--out": out}.items():
        words += [option, str(value)] if value else []
    return shlex.join(words)


def _is_bare(value: Any) -> bool:
    """Whether ``value`` is text that YAML reads as the same text without quotes (``1`` is not)."""
    try:
        return isinstance(value, str) and bool(load_yaml(value, "", command_line=True) == value)
    except ValueError:
        return False


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Lock the root against other sweeps, and treat SIGTERM as an interrupt, so that it also ends the processes."""
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".sweep.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise SweepError(f"another sweep is running in {root}: wait for it, or choose another --root") from None
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    finally:
        lock.release()
        if main:
            signal.signal(signal.SIGTERM, before)


def _default_jobs(points: list[Point], gpus: list[str]) -> int:
    """How many points run at a time on this machine: 2, or 1 if the GPUs are too few for two points."""
    needed = max((point.processes for point in points), default=1)
    return 1 if gpus and len(gpus) < 2 * needed else 2


def _gpus_of(point: Point, running: list[Point], gpus: list[str]) -> tuple[str, ...]:
    """The GPUs for a point, one for each of its processes: those that the fewest running points use."""
    users = Counter(gpu for other in running for gpu in other.gpus)
    return tuple(sorted(gpus, key=lambda gpu: users[gpu])[: point.processes])


def _work(spec: Spec, name: str, todo: list[Point], jobs: int, root: Path, slurm: bool, gpus: list[str]) -> None:
    """Run the points. A failed one does not stop the others. Slurm gets all at once, and runs ``jobs`` at a time."""
    waiting, running, shown = list(todo), list[Point](), set[str]()
    with Screen(todo, root) as screen:
        try:
            if slurm:
                running, waiting = _submit(spec, name, todo, jobs, root, screen), []
            while waiting or running:
                while waiting and len(running) < jobs:
                    point = waiting.pop(0)
                    point.gpus = _gpus_of(point, running, gpus)
                    execution = _execution(spec, name, point, root, jobs)
                    if len(gpus) > 1:
                        execution.env["CUDA_VISIBLE_DEVICES"] = ",".join(point.gpus)
                    point.work, point.state = execution.start(), "runs"
                    running.append(point)
                    screen.log(f"start   {point.label}  (log: {point.base}.log)")
                screen.update()
                time.sleep(0.2)
                for point in list(running):
                    code = point.work.poll() if point.work else 1
                    if code is not None:
                        running.remove(point)
                        text = _end(spec, point, code, root)
                        screen.log(f"{text}  [{screen.left()}]")
                        for warning in [text for text in warnings_of(point.base) if text not in shown]:
                            screen.log(f"        {warning}")
                            shown.add(warning)
                    elif point.state == "queued" and Path(f"{point.base}.log").is_file():
                        point.state, point.start = "runs", time.monotonic()
        finally:
            local = [point for point in running if isinstance(point.work, subprocess.Popen)]
            stop([point.work for point in local])  # type: ignore[misc]
            for point in local:
                point.state, point.seconds = "stopped", round(time.monotonic() - point.start, 1)


def _execution(spec: Spec, name: str, point: Point, root: Path, jobs: int) -> Execution:
    """The execution of a point, one of ``jobs`` on its machine. Files of an earlier attempt are removed."""
    with disk_errors(root):
        for suffix in (".runs", ".log"):
            Path(f"{point.base}{suffix}").unlink(missing_ok=True)
    point.start = time.monotonic()
    env = {"EEF_SWEEP": name, "EEF_RUN_IDS": f"{point.base}.runs", "EEF_JOBS": str(jobs)}
    return Execution(spec.notebook, point.base, point.parameters, root, env)


def _submit(spec: Spec, name: str, todo: list[Point], jobs: int, root: Path, screen: Screen) -> list[Point]:
    """Submit the points to Slurm, except those that an interrupted sweep has submitted."""
    for point in todo:
        point.work, point.start, point.state = adopt(point.base, root), time.monotonic(), "queued"
    new = [point for point in todo if point.work is None]
    if len(new) < len(todo):
        screen.log(f"{len(todo) - len(new)} points were submitted to Slurm before")
    if new:
        executions = [_execution(spec, name, point, root, jobs=1) for point in new]
        for point, job in zip(new, submit(executions, root, spec.slurm, f"eef-{name}", jobs), strict=True):
            point.work = job
        screen.log(f"submitted to Slurm: {len(new)} jobs, {new[0].work.id} to {new[-1].work.id}")  # type: ignore[union-attr]
    return list(todo)


def _changes(spec: Spec, point: Point) -> str | None:
    """A message if the point's code or files changed since it was planned, or None."""
    detail = ""
    try:
        if current_hash(spec, point) == point.mark.stem:
            return None
    except (ValueError, OSError, RuntimeError) as error:  # such as a missing file
        detail = f" ({error})"
    return f"its code or files changed while it ran{detail}: start the sweep again to repeat it"


def _end(spec: Spec, point: Point, code: int, root: Path) -> str:
    """Record the end of a point and return a message. Each of its runs gets a link to the executed notebook."""
    runs = Path(f"{point.base}.runs")
    ids = list(dict.fromkeys(runs.read_text().split())) if runs.exists() else []
    unfinished = [run for run in ids if not (root / run / "result.json").is_file()]
    point.seconds = round(time.monotonic() - point.start, 1)
    for run in ids if Path(f"{point.base}.ipynb").is_file() else []:
        link(root / run / "notebook.ipynb", Path("..") / "notebooks" / f"{Path(point.base).name}.ipynb")
    changes = _changes(spec, point) if code == 0 and not unfinished else None
    if code == 0 and not unfinished and not changes:
        point.state = "done"
        mark = {"label": point.label, "parameters": point.parameters, "run_ids": ids}
        mark["results"] = results_of(ids, root)
        write_json(point.mark, {**mark, "code": code_by_file(spec.notebook)})
        text = f"done    {point.label} in {point.seconds:.0f} s"
    else:
        point.state = "failed"
        reason = changes or f"the notebook ended before it finished {', '.join(unfinished)}"
        reason = failure(point.base, code) if code else reason
        text = f"FAILED  {point.label}: {reason}\n        ({point.base}.ipynb)"
    if isinstance(point.work, Job):
        point.work.forget()
    return text


def _lines(points: list[Point], root: Path) -> Iterator[str]:
    """The lines of the final table: point, state, seconds, win rate, run."""
    wide = max(len(point.label) for point in points)
    yield f"{'point':{wide}}  state     seconds  win rate  run"
    for point in points:
        runs = run_ids(point) if point.state in ("done", "finished") else []
        results = [read_json(root / run / "result.json") for run in runs]
        rates = [result.get("win_rate") for result in results]
        notes = "; ".join(filter(None, map(remarks, results)))
        rate = f"{100 * rates[0]:6.1f} %" if rates and isinstance(rates[0], (int, float)) else "       -"
        seconds = f"{point.seconds:7.0f}" if point.seconds else "      -"
        yield f"{point.label:{wide}}  {point.state:8}  {seconds}  {rate}  {' '.join(runs)}{notes and f'  ({notes})'}"
