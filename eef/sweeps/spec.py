"""The sweep file: reading it, and checking every parameter against the notebook before anything starts.

A sweep file (``experiments/*.yaml``) has ``name``, ``notebook``, ``parameters`` (fixed), ``seeds``, ``points`` (a list
of parameter sets), ``grid`` (parameter: list of values, as a product), ``figure`` and ``slurm`` (resources of a job,
under submitit's names: ``time`` in minutes (needed), ``mem``, ``cpus_per_task``, ``gres``, ``partition``, ...).

Ambiguous YAML is refused (:mod:`eef.sweeps.strict_yaml`). Former names of parameters still work
(:mod:`eef.sweeps.renamed`).
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eef.envs import ENVIRONMENTS
from eef.files import did_you_mean, plain
from eef.sweeps import options, renamed
from eef.sweeps.executors import declared
from eef.sweeps.inputs import read_notebook
from eef.sweeps.strict_yaml import load_yaml
from eef.tracking.records import repo_root

_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    list: (list,),
    dict: (dict,),
}
_SECTIONS = {"parameters": dict, "seeds": list, "points": list, "grid": dict, "figure": dict, "slurm": dict}
_SEEDS = ("seed", "seeds")
_NAMES_OF_PARAMETERS = ("x", "y")  # keys of 'figure' whose values are (dotted) names of the sweep's parameters
NO_LITERAL = object()  # in place of a default that is not a literal


class SweepError(ValueError):
    """A sweep that cannot start. The message says what to change."""


@dataclass(frozen=True)
class Spec:
    """A sweep file that was read and checked. ``notices`` are messages for the user, about renamed parameters."""

    name: str
    file: Path
    notebook: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    points: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    grid: dict[str, list[Any]] = field(default_factory=dict)
    figure: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def varying(self) -> list[str]:
        """The parameters that ``points`` and ``grid`` set, in order of appearance."""
        return list(dict.fromkeys([*itertools.chain.from_iterable(self.points), *self.grid]))


def read_spec(path: str | Path) -> Spec:
    """Read a sweep file. Raises :class:`SweepError` for any mistake in it."""
    file = Path(path)
    if not file.is_file():
        raise SweepError(f"no sweep file at {file}")
    try:
        raw = load_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise SweepError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise SweepError(str(error)) from None
    if not isinstance(raw, dict) or "notebook" not in raw:
        raise SweepError(f"{file}: a sweep needs at least 'notebook'")
    for key, value in raw.items():
        if key not in (*_SECTIONS, "name", "notebook"):
            raise SweepError(f"{file}: unknown key {key!r}{did_you_mean(key, [*_SECTIONS, 'name', 'notebook'])}")
        if key in _SECTIONS and not isinstance(value, _SECTIONS[key]):
            raise SweepError(f"{file}: {key!r} must be a {_SECTIONS[key].__name__}, not {value!r}")
    raw["points"] = raw.get("points") or [{}]
    if not all(isinstance(point, dict) for point in raw["points"]):
        raise SweepError(f"{file}: each of 'points' is a set of parameters, such as {{method: rft, n: 4}}")
    raw["notebook"] = find_notebook(file, raw["notebook"])
    try:
        notices = _use_current_names(raw, file)
    except ValueError as error:
        raise SweepError(str(error)) from None
    _check_sections(raw, file)
    name = str(raw.pop("name", file.stem))
    if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > 60:
        raise SweepError(f"{file}: the name {name!r} becomes a folder: use at most 60 letters, digits, - and _")
    return Spec(name, file, raw.pop("notebook"), **raw, notices=notices)


def _use_current_names(raw: dict[str, Any], file: Path) -> tuple[str, ...]:
    """Replace former names of parameters in a sweep file, in place. Returns one message for each of them."""
    figure, where = raw.get("figure", {}), str(file)
    messages: list[str] = []
    paths = [figure[key] for key in _NAMES_OF_PARAMETERS if isinstance(figure.get(key), str)]
    names = [*raw.get("parameters", {}), *itertools.chain.from_iterable(raw["points"]), *raw.get("grid", {}), *paths]
    if renamed.former_names(names):
        current = renamed.replacements(declared(raw["notebook"]))
        messages += renamed.notices(names, current, where)
        for section in ("parameters", "grid"):
            if section in raw:
                raw[section] = renamed.rename_keys(raw[section], current, f"{where}: {section}")
        raw["points"] = [renamed.rename_keys(point, current, f"{where}: points") for point in raw["points"]]
        figure = {
            key: renamed.rename_path(value, current) if key in _NAMES_OF_PARAMETERS and value in paths else value
            for key, value in figure.items()
        }
    if "notebook" in figure and renamed.former_names(figure):
        current = renamed.replacements(declared(find_notebook(file, figure["notebook"])))
        messages += renamed.notices(figure, current, where)
        figure = renamed.rename_keys(figure, current, f"{where}: figure")
    if figure:
        raw["figure"] = figure
    return tuple(dict.fromkeys(messages))


def use_current_names(spec: Spec, overrides: Mapping[str, Any] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The overrides (``-p``) of a sweep under current names, and one message for each former name."""
    overrides = dict(overrides or {})
    if not renamed.former_names(overrides):
        return overrides, ()
    current = renamed.replacements(declared(spec.notebook))
    try:
        return renamed.rename_keys(overrides, current, "-p"), renamed.notices(overrides, current, "-p")
    except ValueError as error:
        raise SweepError(str(error)) from None


def _check_sections(raw: dict[str, Any], file: Path) -> None:
    if bad := [key for key, values in raw.get("grid", {}).items() if not isinstance(values, list)]:
        raise SweepError(f"{file}: grid: {bad[0]!r} needs a list of values")
    for section in ("parameters", "points", "grid"):
        keys = itertools.chain.from_iterable(raw["points"]) if section == "points" else raw.get(section, {})
        for key in keys:
            if key in _SEEDS:
                raise SweepError(f"{file}: {section}: {key!r} is not a parameter: use the top-level 'seeds: [...]'")
            if section == "grid" and any(key in point for point in raw["points"]):
                raise SweepError(f"{file}: {key!r} is in both 'points' and 'grid': remove one of the two")


def find_notebook(file: Path, notebook: str) -> Path:
    """Find a notebook by its path relative to the sweep file, the checkout or the current folder."""
    if not isinstance(notebook, str):
        raise SweepError(f"{file}: 'notebook' must be a path, not {notebook!r}")
    tried = [base / notebook for base in (file.parent, repo_root(), Path.cwd())]
    for path in tried:
        if path.is_file():
            try:
                read_notebook(path)
            except ValueError as error:
                raise SweepError(f"{file}: {error}") from None
            return path.resolve()
    raise SweepError(f"{file}: no notebook {notebook} (tried {', '.join(map(str, dict.fromkeys(tried)))})")


def check(spec: Spec, points: list[dict[str, Any]], overrides: Mapping[str, Any] | None = None) -> None:
    """Check the parameters of all points, and those of the figure. Raises :class:`SweepError`.

    The notebook's ``parameters`` cell must declare each parameter with a default of the same type, except the options
    of methods (:mod:`eef.sweeps.options`). A comment ``# one of: a, b`` beside a parameter limits its values, ``# name
    of an environment`` to those of ``ENVIRONMENTS``, and ``# name of a method`` to those of ``METHODS``.
    """
    known = declared(spec.notebook)
    if not known:
        raise SweepError(f"{spec.notebook}: there is no cell tagged 'parameters', or it is empty")
    known |= options.undeclared(known)
    for key, value in dict.fromkeys((k, json.dumps(plain(v))) for point in points for k, v in point.items()):
        where = "-p" if key in (overrides or {}) else str(spec.file)
        if key not in known:
            hint = did_you_mean(key, list(known))
            listed = f"the first code cell of {spec.notebook} tagged 'parameters' lists all of them"
            raise SweepError(f"{where}: unknown parameter {key!r}{hint}; {listed}")
        if key == "root" and json.loads(value):
            raise SweepError(
                f"{where}: 'root' cannot be a parameter of a sweep: use --root DIR for the folder of its runs"
            )
        _check_value(where, key, json.loads(value), known[key])
    if "notebook" in spec.figure:
        drawing = find_notebook(spec.file, spec.figure["notebook"])
        known = {"notebook": {}, **declared(drawing)}
        if unknown := [key for key in spec.figure if key not in known]:
            hint = did_you_mean(unknown[0], list(known))
            raise SweepError(f"{spec.file}: figure: {unknown[0]!r} is not a parameter of {drawing.name}{hint}")
        for key, values in spec.figure.items():
            words = _choices(known[key].get("help", ""), "any of")
            for value in values if words and isinstance(values, list) else []:
                if value not in words:
                    near = did_you_mean(str(value), words)
                    raise SweepError(f"{spec.file}: figure: unknown {key} {value!r}{near}; known: {', '.join(words)}")
    elif spec.figure.get("draw", ["win_rate_vs_budget"]) != ["win_rate_vs_budget"]:
        raise SweepError(
            f"{spec.file}: figure: without a notebook only draw: [win_rate_vs_budget] is drawn: "
            "add 'notebook: notebooks/figures.ipynb'"
        )
    elif unknown := [key for key in spec.figure if key != "draw"]:
        hint = did_you_mean(unknown[0], ["notebook", "draw"])
        raise SweepError(
            f"{spec.file}: figure: {unknown[0]!r} needs a notebook that declares it: add 'notebook: ...'{hint}"
        )


def _check_value(where: str, key: str, value: Any, known: Mapping[str, str]) -> None:
    hint = " (YAML reads yes, no, on and off as true and false: put text in quotes)" if isinstance(value, bool) else ""
    default = default_of(known)
    if value is None and default is not NO_LITERAL:
        _check_kind(where, key, value, default)
        return
    words = _choices(known["help"])
    if words and str(value) not in words:
        near = did_you_mean(str(value), words)
        raise SweepError(f"{where}: unknown {key} {value!r}{near}; known: {', '.join(words)}{hint}")
    if default is not NO_LITERAL:
        _check_kind(where, key, value, default, hint)


def _choices(comment: str, start: str = "one of") -> list[str]:
    """The values that a parameter's comment allows; empty for any value."""
    if re.match(r"name of an environment\b", comment.strip()):
        return list(ENVIRONMENTS)
    if re.match(r"name of a method\b", comment.strip()):
        from eef.methods import METHODS

        return list(METHODS)
    choices = re.search(rf"{start}:?\s*([^;]+)", comment)
    return [word.strip(" '\"`") for word in re.split(r"[,|]", choices.group(1))] if choices else []


def default_of(known: Mapping[str, str]) -> Any:
    """The default of a parameter, or ``NO_LITERAL`` if it is an expression."""
    try:
        return ast.literal_eval(known["default"])
    except (ValueError, SyntaxError):
        return NO_LITERAL


def _check_kind(where: str, key: str, value: Any, default: Any, hint: str = "") -> None:
    """A value must be of the type of its default. The values of a dictionary are checked in the same way."""
    kind = type(default)
    fits = _KINDS.get(kind, (object,))
    if value is None and default is not None:
        text = ", or write '' for empty text" if isinstance(default, str) else ""
        raise SweepError(
            f"{where}: parameter {key!r} has no value (null): leave it out for the default, {default!r}{text}"
        )
    if value is not None and (not isinstance(value, fits) or (isinstance(value, bool) and kind in (int, float))):
        raise SweepError(f"{where}: parameter {key!r} must be {kind.__name__}, as in the notebook, not {value!r}{hint}")
    if isinstance(default, dict) and isinstance(value, dict):
        for name in [name for name in default if name in value]:
            _check_kind(where, f"{key}.{name}", value[name], default[name])
