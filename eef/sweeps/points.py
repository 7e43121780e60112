"""The points of a sweep: their parameters, labels and marks. A mark is a file that says that a point is finished."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from eef.files import digest, read_json
from eef.settings import Settings
from eef.sweeps import inputs, options
from eef.sweeps.executors import Job, declared
from eef.sweeps.spec import NO_LITERAL, Spec, SweepError, check, default_of
from eef.sweeps.values import check_values
from eef.tracking.keys import LIBRARIES, library_version
from eef.tracking.records import repo_root
from eef.tracking.runs import shorten


@dataclass
class Point:
    """One execution of the notebook. Its output files are named ``base`` plus a suffix.

    ``state`` is ``waits``, ``queued``, ``runs``, ``done``, ``failed``, ``stopped`` (interrupted), or ``finished`` (by
    an earlier sweep).
    """

    label: str
    parameters: dict[str, Any]
    mark: Path
    base: str
    state: str = "waits"
    start: float = 0.0
    seconds: float = 0.0
    work: subprocess.Popen[bytes] | Job | None = None
    processes: int = 1
    gpus: tuple[str, ...] = ()


def expand(spec: Spec, overrides: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The parameters of each point. Seeds vary fastest, so that points which share a stage do not all start together.

    Options that a point's method lacks are left out or refused (:mod:`eef.sweeps.options`).

    ``overrides`` change fixed parameters; ``seed`` or ``seeds`` among them change the seeds.
    """
    fixed = dict(overrides or {})
    seeds = fixed.pop("seeds", fixed.pop("seed", spec.seeds))
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise SweepError(f"{spec.file}: seeds must be integers from 0 to {2**32 - 1}, at least one, not {seeds!r}")
    for key in fixed:
        if key in spec.varying:
            raise SweepError(f"{key!r} is set by the points of {spec.file}: pick points with --only, or edit the file")
    products = list(itertools.product(*spec.grid.values()))
    own = [
        {**point, **dict(zip(spec.grid, values, strict=True)), "seed": seed}
        for point in spec.points
        for values in products
        for seed in seeds
    ]
    known = declared(spec.notebook)
    default = default_of(known["method"]) if "method" in known else None
    try:
        expanded = options.for_points(known, default, [({**spec.parameters, **fixed}, point) for point in own])
    except ValueError as error:
        raise SweepError(f"{spec.file}: {error}") from None
    if not expanded:
        raise SweepError(f"{spec.file}: an empty list in 'grid' leaves no points")
    if len({digest(point) for point in expanded}) < len(expanded):
        raise SweepError(f"{spec.file}: a point is duplicated (in 'points', 'grid' or 'seeds')")
    return expanded


def label(spec: Spec, parameters: Mapping[str, Any]) -> str:
    """A short readable name, such as ``rft-n4-s0``: at most 100 bytes, since files are named after it."""
    parts = [
        str(parameters[key]) if key == "method" else f"{key}{parameters[key]}"
        for key in spec.varying
        if key in parameters
    ]
    return shorten(re.sub(r"[^\w.=-]+", "_", "-".join([*parts, f"s{parameters['seed']}"])), 100)


def sweep_label(spec: Spec, overrides: Mapping[str, Any] | None) -> str:
    """The sweep's name. With overrides that may change a result, a short hash of them is added, so that results do not
    replace each other. Files count by their contents.
    """
    if not overrides:
        return spec.name
    same = {**spec.parameters, "seeds": spec.seeds, **dict.fromkeys(_without_result(spec))}
    overrides = dict(overrides)
    seed = overrides.pop("seed", None)  # expand reads it where there are no seeds
    if (seeds := overrides.get("seeds", seed)) is not None:
        overrides["seeds"] = seeds if isinstance(seeds, list) else [seeds]
    same = _keyed(spec, _contents(spec, {key: same[key] for key in overrides if key in same}, {}))
    overrides, without = _keyed(spec, _contents(spec, overrides, overrides)), _without_result(spec)
    overrides = {key: value for key, value in overrides.items() if key not in without and same.get(key, ...) != value}
    return f"{spec.name}-{digest(overrides, 4)}" if overrides else spec.name


def _contents(spec: Spec, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with hashes of files in place of their paths. A path that does not exist stays: :func:`plan` says so.

    ``overrides`` are those whose paths are relative to the current folder.
    """
    contents, no_defaults = dict(values), dict.fromkeys(declared(spec.notebook))
    for key, value in values.items():
        try:
            contents[key] = _resolve_files(spec, [{**no_defaults, key: value}], overrides)[0][1][key]
        except (ValueError, FileNotFoundError):
            continue
    return contents


def _without_result(spec: Spec) -> set[str]:
    """The parameters whose comment says that ``no result depends on it``: no part of names and marks."""
    return {key for key, known in declared(spec.notebook).items() if "no result depends on it" in known["help"]}


def _keyed(spec: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as the keys of stages have them: the address of a vLLM server becomes ``vllm``.

    This applies to settings that the notebook declares, except files (:func:`_resolve_files`).
    """
    known, result = declared(spec.notebook), dict(values)
    for each in fields(Settings):
        key, help = each.metadata.get("key"), each.metadata["help"]
        is_declared = known.get(each.name, {}).get("help", "").endswith(help) and inputs.declaration(help) is None
        if key and is_declared and each.name in values:
            result[each.name] = key(values[each.name])
    return result


def plan(spec: Spec, overrides: Mapping[str, Any] | None, root: Path) -> list[Point]:
    """Check the points of a sweep and find out which are finished. Raises :class:`SweepError`.

    A mark covers the notebook, its parameters, the code that it imports, and the contents of the files that parameters
    name. The paths of these files do not matter: the same sweep in another folder has the same marks. It makes no
    difference whether a default is written out, and parameters on which no result depends are left out. The values of
    unfinished points are checked (:mod:`eef.sweeps.values`).
    """
    points = expand(spec, overrides)
    check(spec, points, overrides)
    try:
        resolved = _resolve_files(spec, points, overrides or {})
        hashes = _hashes(spec, resolved)
    except (ValueError, FileNotFoundError) as error:
        raise SweepError(str(error)) from None
    labels = [label(spec, shown) for _, _, shown in resolved]
    planned, defaults = [], _defaults(spec)
    for number, ((parameters, _, _), hashed, name) in enumerate(zip(resolved, hashes, labels, strict=True)):
        if (first := hashes.index(hashed)) < number:
            equal = _marked(spec, parameters, defaults) == _marked(spec, resolved[first][0], defaults)
            why = "their parameters are equal" if equal else "the files that they name have the same contents"
            raise SweepError(f"{spec.file}: the points {labels[first]} and {name} are the same: {why}; remove one")
        if labels.count(name) > 1:
            name = f"{name}-{hashed[:4]}"
        base = f"{root}/notebooks/{spec.name}__{name}__{hashed[:8]}"
        point = Point(name, parameters, root / "sweeps" / spec.name / f"{hashed}.json", base)
        processes = _complete(parameters, defaults).get("processes")
        point.processes = processes if type(processes) is int else 1
        if point.mark.is_file() and _holds(read_json(point.mark), root):
            point.state = "finished"
        planned.append(point)
    todo = [_complete(point.parameters, defaults) for point in planned if point.state != "finished"]
    for notice in check_values(declared(spec.notebook), todo, f"sweep {spec.name}"):
        print(notice)
    return planned


def current_hash(spec: Spec, point: Point) -> str:
    """The hash that the mark of a point would be named after if it were planned now."""
    return _hashes(spec, _resolve_files(spec, [point.parameters], {}))[0]


def _hashes(spec: Spec, resolved: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]) -> list[str]:
    """The hashes that the marks of points are named after. ``resolved`` comes from :func:`_resolve_files`."""
    code, defaults = inputs.code_of(spec.notebook), _defaults(spec)
    return [digest({"parameters": _marked(spec, contents, defaults), **code}) for _, contents, _ in resolved]


def _marked(spec: Spec, parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a mark covers, with the defaults of all others."""
    without, values = _without_result(spec), _keyed(spec, _complete(parameters, defaults))
    return {key: value for key, value in values.items() if key not in without}


def _defaults(spec: Spec) -> dict[str, Any]:
    """The notebook's parameters and their defaults, as far as these are literals."""
    defaults = {key: default_of(known) for key, known in declared(spec.notebook).items()}
    return {key: value for key, value in defaults.items() if value is not NO_LITERAL}


def _complete(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` and the defaults of all others. Numbers whose default is a float become floats."""
    return {**defaults, **{key: _like_default(value, defaults.get(key)) for key, value in parameters.items()}}


def _like_default(value: Any, default: Any) -> Any:
    if isinstance(value, dict) and isinstance(default, dict):
        return {key: _like_default(item, default.get(key)) for key, item in value.items()}
    return float(value) if isinstance(default, float) and type(value) is int else value


def _resolve_files(
    spec: Spec, points: list[dict[str, Any]], overrides: Mapping[str, Any]
) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The parameters of each point in three versions: with absolute paths, with hashes of contents, and with stems.

    The first is passed to the notebook, the second enters the mark, and the third enters the label.
    """
    known, defaults = declared(spec.notebook), _defaults(spec)
    declarations = {key: files for key in known if (files := inputs.declaration(known[key]["help"])) is not None}
    uses: list[Callable[[Path], str]] = [str, cache(inputs.content), lambda path: path.stem]
    resolved = []
    for parameters in points:
        versions = [dict(parameters) for _ in uses]
        for key, files in declarations.items():
            folders, where = [spec.file.resolve().parent, repo_root(), Path.cwd()], f"{spec.file}: {key}"
            if key in overrides:  # as the shell completes paths
                folders, where = [folders[-1], *folders[:-1]], f"-p {key}"
            value = parameters.get(key, defaults.get(key))
            for version, use in zip(versions, uses, strict=True):
                changed = inputs.on_files(files, value, where, folders, use)
                if key in parameters or changed != value:  # a default may name a file too
                    version[key] = changed
        resolved.append((versions[0], versions[1], versions[2]))
    return resolved


def _has_results(runs: list[str], root: Path) -> bool:
    return all((root / run / "result.json").is_file() for run in runs)


def results_of(runs: list[str], root: Path) -> dict[str, str]:
    """A hash of each run's result and of the names of the stages that it was computed from."""
    hashes = {}
    for run in runs:
        links = sorted(str(path.readlink()) for path in (root / run).iterdir() if path.is_symlink())
        stages = [link for link in links if Path(link).parts[:2] == ("..", "stages")]
        hashes[run] = digest([(root / run / "result.json").read_bytes().hex(), stages])
    return hashes


def _holds(mark: Mapping[str, Any], root: Path) -> bool:
    """Whether the runs of a mark still have its results: a run's id does not cover code, so others may replace them."""
    runs = list(mark["run_ids"])  # marks of earlier versions have no results to compare
    return _has_results(runs, root) and mark.get("results") in (None, results_of(runs, root))


def run_ids(point: Point) -> list[str]:
    return list(read_json(point.mark)["run_ids"]) if point.mark.is_file() else []


def why_again(spec: Spec, points: list[Point], root: Path) -> list[str]:
    """A line for each reason for which points wait although a point of the same name has finished runs.

    The reason is what differs from the most similar of these (settings, code, or the contents of files), or that the
    point's own result was replaced.
    """
    paths = sorted((root / "sweeps" / spec.name).glob("*.json"), key=lambda path: -path.stat().st_mtime_ns)
    marks = [mark for mark in map(read_json, paths) if _holds(mark, root)]
    former = {point.label: [mark for mark in marks if mark.get("label") == point.label] for point in points}
    waits = [point for point in points if point.state == "waits"]
    replaced = [point for point in waits if point.mark.is_file() and _has_results(run_ids(point), root)]
    waiting = [point for point in waits if point not in replaced and former[point.label]]
    code = inputs.code_by_file(spec.notebook) if waiting else {}
    reasons = {"its result was replaced by other code or another sweep": [each.label for each in replaced]}
    reasons = {reason: labels for reason, labels in reasons.items() if labels}
    for point in waiting:
        differences = [_differences(spec, mark, point, code) for mark in former[point.label]]
        fewest: list[str] = min(differences, key=len)
        more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
        reasons.setdefault(", ".join(fewest[:3]) + more, []).append(point.label)
    others = {reason: f" and {len(labels) - 1} more" if labels[1:] else "" for reason, labels in reasons.items()}
    return [f"{reasons[reason][0]}{more} ran before and will run again: {reason}" for reason, more in others.items()]


def _differences(spec: Spec, mark: Mapping[str, Any], point: Point, code: Mapping[str, str]) -> list[str]:
    """What differs between a finished point, by its mark, and ``point`` with the code ``code``: at least one text."""
    before, now = (_marked(spec, each, _defaults(spec)) for each in (mark["parameters"], point.parameters))
    texts = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if digest([before.get(key)]) != digest([now.get(key)])
    ]
    recorded: Mapping[str, str] = mark.get("code") or {}  # marks of earlier versions have none
    names = sorted({*code, *recorded}) if recorded else []
    texts += [f"{name} changed" for name in names if code.get(name) != recorded.get(name)]
    return texts or ["the contents of a file changed" if recorded else "code or the contents of files changed"]


def remarks(result: Mapping[str, Any]) -> str:
    """What the line of a finished point says about errors in its run; empty if there were none."""
    dropped = (result.get("expert_divergences") or 0) + (result.get("expert_errors") or 0)
    counts = {
        "test errors": result.get("errors") or 0,
        "simulation errors": result.get("simulation_errors") or 0,
        "experts dropped": dropped,
        "experts not replayed": result.get("experts_not_replayed") or 0,
    }
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count)


def other_releases(finished: list[Point], root: Path) -> str | None:
    """A warning about finished points that were made with other releases than the installed ones, or None."""
    seen: dict[tuple[str, str], list[Point]] = {}
    for point in finished:
        for run in run_ids(point):
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
    files = f"{folder}/{marks[0]}" if len(marks) == 1 else f"in {folder} {', '.join(marks)}"
    files = f"the folder {folder}" if len(marks) == len(list(folder.glob("*.json"))) else files
    return f"warning: {which} were made with {libraries}; to run them again, delete {files}, or use another --root"
