"""Sweeps: a YAML file names a notebook and its points; each point is one papermill execution in its own process.

``experiments/*.yaml`` is data: ``name``, ``notebook``, ``parameters`` (fixed), ``seeds``, ``points`` (a list of
parameter sets), ``grid`` (parameter: list of values, as a product), ``figure`` and ``slurm`` (resources of a job, under
submitit's names: ``time`` in minutes, ``mem``, ``cpus_per_task``, ``gres``, ``partition``, ...). What is finished is
skipped, so the same command goes on where it was.

Ambiguous YAML is refused (:mod:`eef.sweeps.strict_yaml`). The notebook declares which parameters name files or folders
(:mod:`eef.sweeps.inputs`); they are looked up beside the sweep file, in the checkout and in the current folder.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import json
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eef.files import digest, disk_errors, link, plain, read_json, write_json
from eef.sweeps import inputs, strict_yaml
from eef.sweeps.executors import Execution, Job, adopt, check_slurm, declared, failure, stop, submit
from eef.sweeps.progress import Screen
from eef.tracking.keys import LIBRARIES, library_version
from eef.tracking.runs import default_root, repo_root, shorten

_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    list: (list,),
    dict: (dict,),
}
_SEEDS = ("seed", "seeds")
_NO_LITERAL = object()


class SweepError(ValueError):
    """A sweep that cannot start; the message says what to change."""


@dataclass(frozen=True)
class Spec:
    """A sweep file, read and checked."""

    name: str
    file: Path
    notebook: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    points: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    grid: dict[str, list[Any]] = field(default_factory=dict)
    figure: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)

    @property
    def varying(self) -> list[str]:
        """The parameters that points and grid set, in order of appearance."""
        return list(dict.fromkeys([*itertools.chain.from_iterable(self.points), *self.grid]))


@dataclass
class Point:
    """One execution of the notebook. ``mark`` is the file that says it is finished, ``base`` how its outputs start."""

    label: str
    parameters: dict[str, Any]
    mark: Path
    base: str
    state: str = "waits"
    start: float = 0.0
    seconds: float = 0.0
    work: subprocess.Popen[bytes] | Job | None = None


def read_spec(path: str | Path) -> Spec:
    """Read a sweep file; anything amiss is a :class:`SweepError`."""
    file = Path(path)
    if not file.is_file():
        raise SweepError(f"no sweep file at {file}")
    try:
        raw = strict_yaml.load(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise SweepError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise SweepError(str(error)) from None
    if not isinstance(raw, dict) or "notebook" not in raw:
        raise SweepError(f"{file}: a sweep needs at least 'notebook'")
    kinds = {"parameters": dict, "seeds": list, "points": list, "grid": dict, "figure": dict, "slurm": dict}
    for key, value in raw.items():
        if key not in (*kinds, "name", "notebook"):
            raise SweepError(f"{file}: unknown key {key!r}{_closest(key, [*kinds, 'name', 'notebook'])}")
        if key in kinds and not isinstance(value, kinds[key]):
            raise SweepError(f"{file}: {key!r} must be a {kinds[key].__name__}, not {value!r}")
    raw["points"] = raw.get("points") or [{}]
    if not all(isinstance(point, dict) for point in raw["points"]):
        raise SweepError(f"{file}: each of 'points' is a set of parameters, such as {{method: rft, n: 4}}")
    if bad := [key for key, values in raw.get("grid", {}).items() if not isinstance(values, list)]:
        raise SweepError(f"{file}: grid: {bad[0]!r} needs a list of values")
    for where in ("parameters", "points", "grid"):
        for key in itertools.chain.from_iterable(raw["points"]) if where == "points" else raw.get(where, {}):
            if key in _SEEDS:
                raise SweepError(f"{file}: {where}: {key!r} is not a parameter here: use the top-level 'seeds: [...]'")
            if where == "grid" and any(key in point for point in raw["points"]):
                raise SweepError(f"{file}: {key!r} is in both 'points' and 'grid': keep one of the two")
    name = str(raw.pop("name", file.stem))
    if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > 60:
        raise SweepError(f"{file}: the name {name!r} becomes a folder: letters, digits, - and _ alone, at most 60")
    return Spec(name, file, find_notebook(file, raw.pop("notebook")), **raw)


def find_notebook(file: Path, notebook: str) -> Path:
    """A notebook's path is relative to the sweep file, the checkout or the current folder."""
    if not isinstance(notebook, str):
        raise SweepError(f"{file}: 'notebook' must be a path, not {notebook!r}")
    tried = [base / notebook for base in (file.parent, repo_root(), Path.cwd())]
    for path in tried:
        if path.is_file():
            try:
                inputs.read_notebook(path)
            except ValueError as error:
                raise SweepError(f"{file}: {error}") from None
            return path.resolve()
    raise SweepError(f"{file}: no notebook {notebook} (tried {', '.join(map(str, dict.fromkeys(tried)))})")


def expand(spec: Spec, overrides: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The parameters of each point, seeds innermost: points that share a stage do not all wait for one.

    ``overrides`` change fixed parameters; ``seed`` or ``seeds`` among them change the seeds.
    """
    given = dict(overrides or {})
    seeds = given.pop("seeds", given.pop("seed", spec.seeds))
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise SweepError(f"{spec.file}: seeds are whole numbers from 0 to {2**32 - 1}, at least one, not {seeds!r}")
    for key in given:
        if key in spec.varying:
            raise SweepError(f"{key!r} is set by the points of {spec.file}: pick points with --only, or edit the file")
    products = list(itertools.product(*spec.grid.values()))
    expanded = [
        {**spec.parameters, **given, **point, **dict(zip(spec.grid, values, strict=True)), "seed": seed}
        for point in spec.points
        for values in products
        for seed in seeds
    ]
    if not expanded:
        raise SweepError(f"{spec.file}: an empty list in 'grid' leaves no points")
    if len({digest(point) for point in expanded}) < len(expanded):
        raise SweepError(f"{spec.file}: the same point twice (in 'points', 'grid' or 'seeds')")
    return expanded


def label(spec: Spec, parameters: Mapping[str, Any]) -> str:
    """A short name for people, such as ``rft-n4-s0``; at most 100 bytes, since files are named after it."""
    parts = [
        str(parameters[key]) if key == "method" else f"{key}{parameters[key]}"
        for key in spec.varying
        if key in parameters
    ]
    return shorten(re.sub(r"[^\w.=-]+", "_", "-".join([*parts, f"s{parameters['seed']}"])), 100)


def check(spec: Spec, points: list[dict[str, Any]], overrides: Mapping[str, Any] | None = None) -> None:
    """Every parameter must be in the notebook's ``parameters`` cell, with a value of its default's kind.

    A comment ``# one of: a, b`` beside a parameter there limits its values.
    """
    known = declared(spec.notebook)
    if not known:
        raise SweepError(f"{spec.notebook}: no cell tagged 'parameters', or an empty one")
    for key, value in dict.fromkeys((k, json.dumps(plain(v))) for point in points for k, v in point.items()):
        where = "-p" if key in (overrides or {}) else str(spec.file)
        if key not in known:
            names = ", ".join(sorted(known))
            hint = _closest(key, list(known))
            raise SweepError(f"{where}: unknown parameter {key!r}{hint}; {spec.notebook.name} declares {names}")
        _check_value(where, key, json.loads(value), known[key])
    if "notebook" in spec.figure:
        drawing = find_notebook(spec.file, spec.figure["notebook"])
        known = {"notebook": {}, **declared(drawing)}
        if unknown := [key for key in spec.figure if key not in known]:
            hint = _closest(unknown[0], list(known))
            raise SweepError(f"{spec.file}: figure: {unknown[0]!r} is no parameter of {drawing.name}{hint}")
    elif unknown := [key for key in spec.figure if key != "draw"]:
        hint = _closest(unknown[0], ["notebook", "draw"])
        raise SweepError(
            f"{spec.file}: figure: {unknown[0]!r} needs a notebook that declares it: add 'notebook: ...'{hint}"
        )


def _check_value(where: str, key: str, value: Any, known: Mapping[str, str]) -> None:
    hint = " (YAML reads yes, no, on and off as true and false: put text in quotes)" if isinstance(value, bool) else ""
    default = _default(known)
    if value is None and default is not _NO_LITERAL:
        _check_kind(where, key, value, default)
        return
    if choices := re.search(r"one of:?\s*([^;]+)", known["help"]):
        words = [word.strip(" '\"`") for word in re.split(r"[,|]", choices.group(1))]
        if str(value) not in words:
            near = _closest(str(value), words)
            raise SweepError(f"{where}: unknown {key} {value!r}{near}; known: {', '.join(words)}{hint}")
    if default is not _NO_LITERAL:
        _check_kind(where, key, value, default, hint)


def _default(known: Mapping[str, str]) -> Any:
    """A parameter's default; ``_NO_LITERAL`` where it is an expression."""
    try:
        return ast.literal_eval(known["default"])
    except (ValueError, SyntaxError):
        return _NO_LITERAL


def _check_kind(where: str, key: str, value: Any, default: Any, hint: str = "") -> None:
    """The value must be of its default's kind; so must those below the keys of a dictionary that has defaults."""
    kind = type(default)
    fits = _KINDS.get(kind, (object,))
    if value is None and default is not None:
        text = ", or write '' for empty text" if isinstance(default, str) else ""
        raise SweepError(
            f"{where}: parameter {key!r} has no value (null): leave it out for the default, {default!r}{text}"
        )
    if value is not None and (not isinstance(value, fits) or (isinstance(value, bool) and kind in (int, float))):
        raise SweepError(f"{where}: parameter {key!r} is {kind.__name__} in the notebook, not {value!r}{hint}")
    if isinstance(default, dict) and isinstance(value, dict):
        for name in [name for name in default if name in value]:
            _check_kind(where, f"{key}.{name}", value[name], default[name])


def _closest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def sweep_label(spec: Spec, overrides: Mapping[str, Any] | None) -> str:
    """The sweep's name; with overrides also four digits of their hash, so that results lie side by side."""
    return f"{spec.name}-{digest(overrides, 4)}" if overrides else spec.name


def plan(spec: Spec, overrides: Mapping[str, Any] | None, root: Path) -> list[Point]:
    """The checked points, each with its state.

    A mark covers the notebook, its parameters, the code that it imports, and the contents of the files that parameters
    name, not their places: the same sweep from another folder has the same marks. A default counts the same whether it
    is written out or not.
    """
    points = expand(spec, overrides)
    check(spec, points, overrides)
    try:
        named = _on_files(spec, points, overrides or {})
        hashes = _hashes(spec, named)
    except (ValueError, FileNotFoundError) as error:
        raise SweepError(str(error)) from None
    labels = [label(spec, shown) for _, _, shown in named]
    planned = []
    for number, ((parameters, _, _), hashed, name) in enumerate(zip(named, hashes, labels, strict=True)):
        if (first := hashes.index(hashed)) < number:
            defaults = _defaults(spec)
            equal = _complete(parameters, defaults) == _complete(named[first][0], defaults)
            why = "their parameters are equal" if equal else "the files that they name have the same contents"
            raise SweepError(f"{spec.file}: the points {labels[first]} and {name} are the same: {why}; remove one")
        if labels.count(name) > 1:
            name = f"{name}-{hashed[:4]}"
        base = f"{root}/notebooks/{spec.name}__{name}__{hashed[:8]}"
        point = Point(name, parameters, root / "sweeps" / spec.name / f"{hashed}.json", base)
        if point.mark.is_file() and all((root / run / "result.json").is_file() for run in _run_ids(point)):
            point.state = "finished"
        planned.append(point)
    return planned


def _hashes(spec: Spec, named: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]) -> list[str]:
    """What the marks of points are named after, from the answer of :func:`_on_files`."""
    code, defaults = inputs.code_of(spec.notebook), _defaults(spec)
    return [digest({"parameters": _complete(contents, defaults), **code}) for _, contents, _ in named]


def _defaults(spec: Spec) -> dict[str, Any]:
    """The notebook's parameters whose defaults are literals, with these."""
    defaults = {key: _default(known) for key, known in declared(spec.notebook).items()}
    return {key: value for key, value in defaults.items() if value is not _NO_LITERAL}


def _complete(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` with the defaults of those left out; where the default is a float, numbers are floats."""
    return {**defaults, **{key: _as_default(value, defaults.get(key)) for key, value in parameters.items()}}


def _as_default(value: Any, default: Any) -> Any:
    if isinstance(value, dict) and isinstance(default, dict):
        return {key: _as_default(item, default.get(key)) for key, item in value.items()}
    return float(value) if isinstance(default, float) and type(value) is int else value


def _on_files(
    spec: Spec, points: list[dict[str, Any]], overrides: Mapping[str, Any]
) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each point's parameters with absolute paths (to pass on), with contents (the mark) and with stems (the label)."""
    known, defaults = declared(spec.notebook), _defaults(spec)
    declarations = {key: files for key in known if (files := inputs.declaration(known[key]["help"])) is not None}
    uses: list[Callable[[Path], str]] = [str, cache(inputs.content), lambda path: path.stem]
    named = []
    for parameters in points:
        versions = [dict(parameters) for _ in uses]
        for key, files in declarations.items():
            folders, where = [spec.file.resolve().parent, repo_root(), Path.cwd()], f"{spec.file}: {key}"
            if key in overrides:  # as the shell completes them
                folders, where = [folders[-1], *folders[:-1]], f"-p {key}"
            value = parameters.get(key, defaults.get(key))
            for version, use in zip(versions, uses, strict=True):
                changed = inputs.on_files(files, value, where, folders, use)
                if key in parameters or changed != value:  # a default may name a file, too
                    version[key] = changed
        named.append((versions[0], versions[1], versions[2]))
    return named


def _run_ids(point: Point) -> list[str]:
    return list(read_json(point.mark)["run_ids"]) if point.mark.is_file() else []


def sweep(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    only: str | None = None,
    root: str | Path | None = None,
    executor: str = "local",
) -> int:
    """Execute the points that are not finished. 0: all well, 1: points failed, 130: interrupted.

    ``executor`` is ``local`` (``jobs`` processes at a time, 2 by default) or ``slurm`` (an array of jobs, all at a
    time by default; what an interrupted sweep left in the queue goes on and is found again).
    """
    spec = read_spec(path)
    where = Path(root).resolve() if root else default_root()
    if jobs is not None and jobs < 1:
        raise SweepError(f"--jobs must be at least 1, not {jobs}")
    if executor not in ("local", "slurm"):
        raise SweepError(f"unknown executor {executor!r}: known are local and slurm")
    points = plan(spec, overrides, where)
    chosen = [point for point in points if not only or only in point.label]
    if not chosen:
        raise SweepError(f"no point's name contains {only!r}; points: {', '.join(p.label for p in points)}")
    todo = [point for point in chosen if point.state != "finished"]
    if slurm := executor == "slurm":
        check_slurm(spec.slurm)
    jobs = jobs or (max(1, len(todo)) if slurm else 2)
    named = sweep_label(spec, overrides)
    print(f"sweep {named}: {len(chosen)} points of {spec.notebook.name}, {len(todo)} to do, {jobs} at a time; {where}")
    if warning := _other_versions([point for point in chosen if point.state == "finished"], where):
        print(warning)
    if dry_run:
        for point in chosen:
            print(f"  {point.state:9} {point.label}  {json.dumps(point.parameters)}")
        return 0
    with _alone(where):
        try:
            _work(spec, named, todo, jobs, where, slurm)
            code = int(any(point.state == "failed" for point in chosen))
        except KeyboardInterrupt:
            ended = f"the jobs go on (scancel --name=eef-{named} ends them)" if slurm else "the children are ended"
            print(f"interrupted: {ended}; the same command goes on from here", flush=True)
            code = 130
        good = [point for point in points if point.state in ("finished", "done")]
        missing = [point.label for point in points if point not in good]
        runs = [run for point in good for run in _run_ids(point)]
        again = repeat_command(path, overrides, root, executor)
        index = {"run_ids": runs, "missing": missing, "command": again}
        write_json(where / "sweeps" / f"{named}.json", index)
    print("\n".join(_lines(chosen, where)))
    print(f"again: {again}", flush=True)
    return code


def _other_versions(finished: list[Point], root: Path) -> str | None:
    """One line about finished points that other releases of libraries made than those installed; else None."""
    seen: dict[tuple[str, str], list[Point]] = {}
    for point in finished:
        for run in _run_ids(point):
            stamp = root / run / "stamp.json"
            versions = (read_json(stamp).get("versions") or {}) if stamp.is_file() else {}
            for name in LIBRARIES:
                release = str(versions.get(name, "unknown")).partition("+")[0]
                if release not in ("unknown", library_version(name)):
                    seen.setdefault((name, release), []).append(point)
    if not seen:
        return None
    marks = sorted({str(point.mark.name) for points in seen.values() for point in points})
    which = f"{len(marks)} of {len(finished)} finished points"
    libraries = ", ".join(f"{name} {release} (installed: {library_version(name)})" for name, release in sorted(seen))
    folder = finished[0].mark.parent
    where = f"{folder}/{marks[0]}" if len(marks) == 1 else f"in {folder} {', '.join(marks)}"
    where = f"the folder {folder}" if len(marks) == len(list(folder.glob("*.json"))) else where
    return f"warning: {which} were made with {libraries}; to run them anew, delete {where}, or use another --root"


def repeat_command(
    path: str | Path, overrides: Mapping[str, Any] | None, root: str | Path | None, executor: str = "local"
) -> str:
    """The command line that repeats a sweep."""
    words = ["eef", "sweep", str(path)]
    for key, value in (overrides or {}).items():
        words += ["-p", f"{key}={value if _is_bare(value) else json.dumps(value, ensure_ascii=False)}"]
    words += ["--executor", executor] * (executor != "local")
    return shlex.join(words + (["--root", str(root)] if root else []))


def _is_bare(value: Any) -> bool:
    """Whether text needs no quotes to stay the same text: ``1`` does."""
    try:
        return isinstance(value, str) and bool(strict_yaml.load(value, "", command_line=True) == value)
    except ValueError:
        return False


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the root against a second sweep, and take SIGTERM as an interrupt, so that children are ended on either."""
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".sweep.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise SweepError(f"another sweep is at work in {root}: wait for it, or choose another --root") from None
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    finally:
        lock.release()
        if main:
            signal.signal(signal.SIGTERM, before)


def _work(spec: Spec, named: str, todo: list[Point], jobs: int, root: Path, slurm: bool) -> None:
    """Run the points; a failed one does not stop the others. Slurm is given all at once, and keeps to ``jobs``."""
    waiting, running = list(todo), list[Point]()
    with Screen(todo) as screen:
        try:
            if slurm:
                running, waiting = _submit(spec, named, todo, jobs, root, screen), []
            while waiting or running:
                while waiting and len(running) < jobs:
                    point = waiting.pop(0)
                    execution = _execution(spec, named, point, root)
                    point.work, point.state = execution.start(), "runs"
                    running.append(point)
                    screen.say(f"start   {point.label}  (log: {point.base}.log)")
                screen.show()
                time.sleep(0.2)
                for point in list(running):
                    code = point.work.poll() if point.work else 1
                    if code is not None:
                        running.remove(point)
                        text = _end(spec, point, code, root)
                        screen.say(f"{text}  [{screen.left()}]")
                    elif point.state == "queued" and Path(f"{point.base}.log").is_file():
                        point.state, point.start = "runs", time.monotonic()
        finally:
            stop([point.work for point in running if isinstance(point.work, subprocess.Popen)])


def _execution(spec: Spec, named: str, point: Point, root: Path) -> Execution:
    """The point as work to do; what an earlier attempt left beside its base is removed."""
    with disk_errors(root):
        for suffix in (".runs", ".log"):
            Path(f"{point.base}{suffix}").unlink(missing_ok=True)
    point.start = time.monotonic()
    env = {"EEF_SWEEP": named, "EEF_RUN_IDS": f"{point.base}.runs"}
    return Execution(spec.notebook, point.base, point.parameters, root, env)


def _submit(spec: Spec, named: str, todo: list[Point], jobs: int, root: Path, screen: Screen) -> list[Point]:
    """Give the points to Slurm, but for those that it has already from a sweep that was cut off."""
    for point in todo:
        point.work, point.start, point.state = adopt(point.base, root), time.monotonic(), "queued"
    new = [point for point in todo if point.work is None]
    if len(new) < len(todo):
        screen.say(f"{len(todo) - len(new)} points are with Slurm from before")
    if new:
        executions = [_execution(spec, named, point, root) for point in new]
        for point, job in zip(new, submit(executions, root, spec.slurm, f"eef-{named}", jobs), strict=True):
            point.work = job
        screen.say(f"given to Slurm: {len(new)} jobs, {new[0].work.id} to {new[-1].work.id}")  # type: ignore[union-attr]
    return list(todo)


def _changes(spec: Spec, point: Point) -> str | None:
    """A message where the point's code or files are no longer those that its mark is named after; else None."""
    detail = ""
    try:
        if _hashes(spec, _on_files(spec, [point.parameters], {})) == [point.mark.stem]:
            return None
    except (ValueError, OSError, RuntimeError) as error:  # such as a file that is no longer there
        detail = f" ({error})"
    return f"its code or files changed while it ran{detail}: start the sweep again to run it anew"


def _end(spec: Spec, point: Point, code: int, root: Path) -> str:
    """Mark a finished point, or say why it failed; each run gets a link to its executed notebook."""
    runs = Path(f"{point.base}.runs")
    made = list(dict.fromkeys(runs.read_text().split())) if runs.exists() else []
    open_ends = [run for run in made if not (root / run / "result.json").is_file()]
    point.seconds = round(time.monotonic() - point.start, 1)
    for run in made if Path(f"{point.base}.ipynb").is_file() else []:
        link(root / run / "notebook.ipynb", Path("..") / "notebooks" / f"{Path(point.base).name}.ipynb")
    changes = _changes(spec, point) if code == 0 and not open_ends else None
    if code == 0 and not open_ends and not changes:
        point.state = "done"
        write_json(point.mark, {"label": point.label, "parameters": point.parameters, "run_ids": made})
        text = f"done    {point.label} in {point.seconds:.0f} s"
    else:
        point.state = "failed"
        unfinished = f"the notebook ended without finishing {', '.join(open_ends)}"
        why = failure(point.base, code) if code else changes or unfinished
        text = f"FAILED  {point.label}: {why}\n        ({point.base}.ipynb)"
    if isinstance(point.work, Job):
        point.work.forget()
    return text


def _lines(points: list[Point], root: Path) -> Iterator[str]:
    """The closing table: point, state, seconds, win rate, run."""
    wide = max(len(point.label) for point in points)
    yield f"{'point':{wide}}  state     seconds  win rate  run"
    for point in points:
        runs = _run_ids(point) if point.state in ("done", "finished") else []
        rates = [read_json(root / run / "result.json").get("win_rate") for run in runs]
        rate = f"{100 * rates[0]:6.1f} %" if rates and isinstance(rates[0], (int, float)) else "       -"
        seconds = f"{point.seconds:7.0f}" if point.seconds else "      -"
        yield f"{point.label:{wide}}  {point.state:8}  {seconds}  {rate}  {' '.join(runs)}"
