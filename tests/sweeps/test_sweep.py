"""Sweeps: points from a file, checks before anything starts, and executions that survive failures and restarts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml
from filelock import FileLock
from forgetful import Forgetful
from hypothesis import given
from hypothesis import strategies as st

from eef.cli import main, parse_overrides
from eef.envs import ENVIRONMENTS
from eef.files import digest
from eef.model_names import EMBEDDED_MODELS, PACKAGED_MODELS
from eef.processes import gpu_ids
from eef.settings import RENAMED
from eef.sweeps import executors as launch
from eef.sweeps import inputs
from eef.sweeps import sweep as module
from eef.sweeps.executors import Execution, failure
from eef.sweeps.points import Point, expand, label, plan, sweep_label, why_again
from eef.sweeps.spec import Spec, SweepError, check, read_spec, use_current_names
from eef.sweeps.sweep import repeat_command, sweep
from eef.tracking import keys

EXPERIMENTS = keys.PACKAGE.parent / "experiments"
PARAMETERS = """\
method = "rft"  # one of: rft, eef, bad
n = 1
lr = 1e-3
data = None
slow = 0.0
seed = 0
"""
BODY = """\
import time
from eef.tracking.runs import Run
run = Run.open(None, "webshop", f"{method}-n{n}", seed, {"n": n, "lr": lr}, {"hashes": {"catalogue": "c"}})
def make(folder):
    with open(run.root / "calls", "a") as out:
        out.write("x")
    time.sleep(slow)
run.stage("bc", {"seed": seed}, make)
if method == "bad":
    raise RuntimeError("this one is bad")
run.finish({"method": method, "n": n, "win_rate": 0.25 + n / 100})
"""


def write(folder: Path, **changes: Any) -> Path:
    """Write a sweep file and a notebook of two cells."""
    sources = (changes.pop("cell", PARAMETERS), changes.pop("body", BODY))
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata.tags = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, folder / "tiny.ipynb")
    spec: dict[str, Any] = {"name": "demo", "notebook": "tiny.ipynb", "parameters": {"lr": 0.01}, "seeds": [0, 1]}
    spec |= {"points": [{"method": "rft", "n": 1}, {"method": "rft", "n": 2}], **changes}
    (folder / "demo.yaml").write_text(yaml.safe_dump({k: v for k, v in spec.items() if v is not None}))
    return folder / "demo.yaml"


def test_expand_lists_points_then_grid_then_seeds(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, grid={"slow": [0.1, 0.2]}))
    points = expand(spec, {"data": "folder"})
    assert len(points) == 8 and points[0] == {
        "lr": 0.01, "data": "folder", "method": "rft", "n": 1, "slow": 0.1, "seed": 0,
    }  # fmt: skip
    assert [(p["n"], p["slow"], p["seed"]) for p in points[:3]] == [(1, 0.1, 0), (1, 0.1, 1), (1, 0.2, 0)]
    assert [p["seed"] for p in expand(spec, {"seed": 7})] == [7] * 4
    assert {p["seed"] for p in expand(spec, {"seeds": [3, 4]})} == {3, 4}
    assert label(spec, points[0]) == "rft-n1-slow0.1-s0"
    assert len({label(spec, p) for p in points}) == 8


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({}, {"n": 3}, "'n' is set by the points"),
        ({}, {"seed": "x"}, "seeds must be integers"),
        ({"seeds": []}, {}, "seeds must be integers"),
        ({"seeds": [-1]}, {}, "demo.yaml: seeds must be integers from 0 to 4294967295"),
        ({"seeds": [2**32]}, {}, "seeds must be integers from 0 to 4294967295"),
        ({}, {"seed": 2**32}, "seeds must be integers from 0 to 4294967295"),
        ({"seeds": [1, 1]}, {}, "a point is duplicated"),
        ({"grid": {"slow": []}}, {}, "leaves no points"),
        ({"grid": {"slow": 3}}, {}, "needs a list"),
        ({"seeds": 3}, {}, "'seeds' must be a list"),
        ({"points": ["rft"]}, {}, "a set of parameters"),
        ({"seed": [1]}, {}, "unknown key 'seed'.*did you mean 'seeds'"),
        ({"notebook": "other.ipynb"}, {}, "no notebook other.ipynb"),
        ({"notebook": None}, {}, "at least 'notebook'"),
        ({"name": "a/b"}, {}, "becomes a folder"),
    ],
)
def test_bad_sweep_files(tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(SweepError, match=message):
        expand(read_spec(path), overrides)


def test_bad_yaml_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("points: [{method: rft")
    with pytest.raises(SweepError, match=r"torn.yaml is not valid YAML, line 1"):
        read_spec(tmp_path / "torn.yaml")
    with pytest.raises(SweepError, match="no sweep file"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("parameters: {seed: 3}", "parameters: 'seed' is not a parameter: use the top-level 'seeds: "),
        ("parameters: {seeds: [3]}", "parameters: 'seeds' is not a parameter"),
        ("points: [{n: 1}, {n: 2, seed: 3}]", "points: 'seed' is not a parameter"),
        ("grid: {seed: [1, 2]}", "grid: 'seed' is not a parameter"),
        ("points: [{n: 1}]\ngrid: {n: [2]}", "'n' is in both 'points' and 'grid'"),
        ("parameters: {n: 1}\nparameters: {n: 2}", "line 3: parameters: the key is duplicated"),
        ("parameters:\n  n: 1\n  n: 2", r"line 4: parameters\.n: the key is duplicated"),
        ("parameters: {n: 010}", r"line 2: parameters\.n: 010 has a leading zero"),
        ("parameters: {n: 0o10}", r"parameters\.n: 0o10 has a leading zero"),
        ("parameters: {n: 09}", r"parameters\.n: 09 has a leading zero"),
        ("points: [{n: 1:30}]", r"points\[0\]\.n: 1:30 is read as a base-60 number"),
        ("parameters: {data: 2026-01-01}", r"parameters\.data: 2026-01-01 is read as a date: put it in quotes"),
        ("grid: {lr: [1.0, .nan]}", r"grid\.lr\[1\]: \.nan is not a finite number"),
        ("parameters: {lr: -.inf}", r"-\.inf is not a finite number"),
        ("parameters: {lr: 1.0e+999}", r"1\.0e\+999 is not a finite number"),
        ("parameters: {1: 2}", "parameters: the key 1 is not text: put it in quotes"),
        ("parameters: {on: 2}", "parameters: the key on is not text"),
        ("parameters:\n\tn: 1", "not valid YAML, line 3: .*indent with spaces, not tabs"),
        ("points: [&one {n: 1}, {<<: *one, n: 2}]", r"points\[1\]\.n: the key is duplicated"),
        ("points: &a [*a]", "an alias refers to the value that it is part of"),
        ("parameters: {data: !!binary aGk=}", "the tag .*binary is not supported"),
        ("parameters: {data: " + 101 * "[" + 101 * "]" + "}", "values are nested more than 100 levels deep"),
        ("parameters: {data: " + 10_000 * "[" + 10_000 * "]" + "}", "values are nested more than 100 levels deep"),
        ("name: " + "x" * 61, "at most 60 letters"),
    ],
)
def test_ambiguous_yaml_is_one_message(tmp_path: Path, lines: str, message: str) -> None:
    write(tmp_path)
    (tmp_path / "other.yaml").write_text(f"notebook: tiny.ipynb\n{lines}\n")
    with pytest.raises(SweepError, match=rf"other\.yaml.*{message}") as caught:
        read_spec(tmp_path / "other.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["1e-3", "1E-2", "2e+1", "1.5e3", "-.5e1", "1e0", "1.0e-3"])
def test_a_number_in_a_file_is_the_number_of_the_command_line(tmp_path: Path, number: str) -> None:
    """YAML 1.1 reads some of them as text."""
    path = write(tmp_path)
    path.write_text(
        f"notebook: tiny.ipynb\nparameters: {{data: '{number}', lr: {number}}}\npoints: [{{slow: {number}}}]\n"
        f"grid: {{n: [1, {number}]}}\n"
    )
    spec = read_spec(path)
    assert spec.parameters == {"data": number, "lr": float(number)} and spec.points == [{"slow": float(number)}]
    assert spec.grid == {"n": [1, float(number)]} and parse_overrides([f"lr={number}"]) == {"lr": float(number)}


def test_a_sweep_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SweepError, match="bytes.yaml is not UTF-8 text"):
        read_spec(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"expert_noise": 3}, "'expert_noise' must be dict, as in the notebook, not 3"),
        ({"expert_noise": {"base": "much"}}, r"'expert_noise\.base' must be float, as in the notebook, not 'much'"),
        ({"expert_noise": {"base": True}}, r"'expert_noise\.base' must be float"),
        ({"data": False}, "'data' must be str, as in the notebook, not False.*yes, no, on and off.*quotes"),
        ({"method": True}, "unknown method True.*yes, no, on and off"),
        (
            {"expert_noise": {"base": None}},
            r"demo\.yaml: parameter 'expert_noise\.base' has no value \(null\).*default, 0\.1",
        ),
        ({"experts": None}, r"demo\.yaml: parameter 'experts' has no value .*default, 'strong', or write '' for empty"),
        ({"method": None}, "'method' has no value"),
    ],
)
def test_kinds_are_checked_below_dictionaries(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    spec = read_spec(write(tmp_path, cell=FILES))
    check(spec, [{"expert_noise": {"base": 1, "late": "x"}}])
    with pytest.raises(SweepError, match=message):
        check(spec, [parameters])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé😀:#{}[]&*!|>'\"%@`,0123456789.-+e_~=<? \t\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1:", min_size=1), inner, max_size=3),
    max_leaves=5,
)


@given(VALUES)
def test_the_command_that_repeats_has_the_same_values(value: Any) -> None:
    command = shlex.split(repeat_command("demo.yaml", {"v": value}, None))
    assert command[:4] == ["eef", "sweep", "demo.yaml", "-p"] and parse_overrides(command[4:]) == {"v": value}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"metod": "rft"}, "unknown parameter 'metod'.*did you mean 'method'.*tagged 'parameters' lists all"),
        ({"method": "rtf"}, "unknown method 'rtf'.*did you mean 'rft'.*known: rft, eef, bad"),
        ({"n": "many"}, "'n' must be int, as in the notebook"),
        ({"n": True}, "'n' must be int, as in the notebook"),
        ({"n": 1.5}, "'n' must be int, as in the notebook"),
        ({"lr": "1e-3"}, "'lr' must be float, as in the notebook"),
        ({"lr": None}, "'lr' has no value"),
    ],
)
def test_parameters_are_checked_against_the_notebook(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    spec = read_spec(write(tmp_path))
    check(spec, [{"method": "eef", "n": 2, "lr": 1, "data": "anything", "slow": 0, "seed": 1}, {"data": None}])
    with pytest.raises(SweepError, match=message):
        check(spec, [parameters])


def test_parameters_of_the_figure_are_checked_too(tmp_path: Path) -> None:
    figure = {"notebook": "tiny.ipynb", "lr": 1.0}
    check(read_spec(write(tmp_path, figure=figure)), [])
    with pytest.raises(SweepError, match="figure: 'lrr' is not a parameter of tiny.ipynb.*did you mean 'lr'"):
        check(read_spec(write(tmp_path, figure=figure | {"lrr": 1.0})), [])
    check(read_spec(write(tmp_path, figure={"draw": ["win_rate_vs_budget"]})), [])
    with pytest.raises(SweepError, match="demo.yaml: figure: 'lr' needs a notebook"):
        check(read_spec(write(tmp_path, figure={"lr": 1})), [])


RENAMED_CELL = (
    PARAMETERS
    + """\
constrained_decoding = None
micro_batch_size = 0
packing = "auto"  # one of: auto, padded, flat
expert_noise = {}
"""
)
FIGURE_CELL = 'draw = ["difference_map"]\nx = ""\ny = ""\npacking = ""\n'
OLD_SWEEP = """\
name: old
notebook: tiny.ipynb
seeds: [0]
parameters: {lr: 0.01, limited: true}
points: [{method: rft, micro: 1}, {method: eef, micro: 2}]
grid:
  slips: [{late: 0.4}, {late: 0.8}]
figure: {notebook: figures.ipynb, draw: [difference_map], x: slips.late, y: micro, batches: flat}
"""


def in_current_names(text: str) -> str:
    for former, current in RENAMED.items():
        text = re.sub(rf"\b{former}\b", current, text)
    return text


@pytest.fixture
def old_sweep(tmp_path: Path) -> Path:
    """A sweep file in former names, whose notebooks declare the current ones."""
    write(tmp_path, cell=FIGURE_CELL)
    (tmp_path / "tiny.ipynb").rename(tmp_path / "figures.ipynb")
    write(tmp_path, cell=RENAMED_CELL)
    (tmp_path / "old.yaml").write_text(OLD_SWEEP)
    return tmp_path / "old.yaml"


def test_a_sweep_file_with_former_names_has_the_points_of_one_with_current_names(old_sweep: Path) -> None:
    root = old_sweep.parent / "runs"
    former = read_spec(old_sweep)
    old_sweep.write_text(in_current_names(OLD_SWEEP))
    current = read_spec(old_sweep)
    assert current.notices == () and replace(former, notices=()) == current
    assert current.figure["x"] == "expert_noise.late" and current.figure["packing"] == "flat"
    points, expected = plan(former, {}, root), plan(current, {}, root)
    assert len(points) == 4 and points == expected
    assert points[0].parameters["constrained_decoding"] is True and points[0].label.startswith("rft-micro_batch_size1-")


def test_each_former_name_is_reported_once(
    old_sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old_sweep.parent)
    expected = {"limited": "old.yaml", "micro": "old.yaml", "slips": "old.yaml", "batches": "old.yaml"}
    assert main(["sweep", "old.yaml", "--dry-run", "--root", "runs"]) == 0
    former_lines = capsys.readouterr().out.splitlines()
    notices = [line for line in former_lines if "is now called" in line]
    assert sorted(notices) == sorted(
        f"{where}: parameter {name!r} is now called {RENAMED[name]!r}; the former name still works in this version"
        for name, where in expected.items()
    )
    old_sweep.write_text(in_current_names(OLD_SWEEP))
    assert main(["sweep", "old.yaml", "--dry-run", "--root", "runs"]) == 0
    assert capsys.readouterr().out.splitlines() == [line for line in former_lines if line not in notices]


def test_former_names_work_on_the_command_line(old_sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old_sweep.parent / "one.yaml").write_text("{notebook: tiny.ipynb, points: [{n: 1}, {n: 2}]}")
    outputs = []
    for name in ("packing", "batches"):
        command = ["sweep", str(old_sweep.parent / "one.yaml"), "-p", f"{name}=flat"]
        assert main([*command, "--dry-run", "--root", str(old_sweep.parent / "runs")]) == 0
        outputs.append(capsys.readouterr().out)
    notice, _, rest = outputs[1].partition("\n")
    assert notice == "-p: parameter 'batches' is now called 'packing'; the former name still works in this version"
    assert rest == outputs[0] and '"packing": "flat"' in rest
    spec = read_spec(old_sweep.parent / "one.yaml")
    assert use_current_names(spec, {"batches": "flat", "n": 1})[0] == {"packing": "flat", "n": 1}


@pytest.mark.parametrize(
    "lines",
    [
        "parameters: {slips: {}, expert_noise: {}}",
        "points: [{n: 1}, {slips: {}, expert_noise: {}}]",
        "grid: {expert_noise: [{}], slips: [{}]}",
    ],
)
def test_a_parameter_under_both_names_is_an_error(old_sweep: Path, lines: str) -> None:
    old_sweep.write_text(f"notebook: tiny.ipynb\n{lines}\n")
    message = r"'slips' is the former name of 'expert_noise', and both are set: keep 'expert_noise'"
    with pytest.raises(SweepError, match=rf"old\.yaml: \w+: {message}"):
        read_spec(old_sweep)
    old_sweep.write_text("notebook: tiny.ipynb\npoints: [{slips: {}}]\ngrid: {expert_noise: [{}]}\n")
    with pytest.raises(SweepError, match="'expert_noise' is in both 'points' and 'grid'"):
        read_spec(old_sweep)
    spec = read_spec(write(old_sweep.parent, cell=RENAMED_CELL))
    with pytest.raises(SweepError, match=f"-p: {message}"):
        use_current_names(spec, {"slips": {}, "expert_noise": {}})


@pytest.mark.parametrize("cell", ["slips = {}\nmicro = 0\n", RENAMED_CELL + "slips = {}\nmicro = 0\n"])
def test_a_notebook_that_declares_a_former_name_keeps_it(tmp_path: Path, cell: str) -> None:
    points = [{"slips": {"late": 0.4}}, {"slips": {"late": 0.8}}]
    spec = read_spec(write(tmp_path, cell=cell, parameters={"micro": 2}, points=points, figure={"x": "slips.late"}))
    assert (spec.parameters, spec.points, spec.figure) == ({"micro": 2}, points, {"x": "slips.late"})
    assert spec.notices == () and use_current_names(spec, {"micro": 1}) == ({"micro": 1}, ())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "# A page\n", '{"nbformat": 4, "metadata": {}, "cells": [3]}'])
def test_a_file_that_is_no_notebook_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(SweepError, match=r"demo\.yaml: .*page\.md is not a Jupyter notebook") as caught:
        read_spec(write(tmp_path, notebook="page.md"))
    assert "\n" not in str(caught.value)
    with pytest.raises(SweepError, match=r"demo\.yaml: .*page\.md is not a Jupyter notebook"):
        check(read_spec(write(tmp_path, figure={"notebook": "page.md"})), [])


def test_mistakes_stop_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_work", lambda *arguments: pytest.fail("started"))
    path, root = write(tmp_path), tmp_path / "runs"
    for overrides, options in (({"nn": 1}, {}), ({}, {"jobs": 0}), ({}, {"only": "no such"})):
        with pytest.raises(SweepError):
            sweep(path, overrides, root=root, **options)  # type: ignore[arg-type]
    assert not root.exists()


def test_the_folder_of_the_runs_is_no_parameter(tmp_path: Path) -> None:
    path, root = write(tmp_path, cell=f'{PARAMETERS}root = ""  # folder of the runs\n'), tmp_path / "runs"
    with pytest.raises(SweepError, match="^-p: 'root' cannot be a parameter of a sweep: use --root DIR"):
        sweep(path, {"root": str(tmp_path / "others")}, root=root)
    assert sweep(path, {"root": ""}, root=root, dry_run=True) == 0


@pytest.mark.parametrize(
    ("gpus", "processes", "jobs", "default", "visible"),
    [
        ("", 1, None, 2, [None] * 4),
        ("0", 1, None, 1, [None] * 4),
        ("0", 1, 3, 1, [None] * 4),
        ("0,1", 1, 2, 2, ["0", "1", "0", "1"]),
        ("4,5", 1, 4, 2, ["4", "5", "4", "5"]),
        ("0,1,2", 2, None, 1, ["0,1"] * 4),
        ("0,1,2,3", 2, None, 2, ["0,1", "2,3", "0,1", "2,3"]),
    ],
)
def test_points_have_gpus_of_their_own(
    gpus: str, processes: int, jobs: int | None, default: int, visible: list[str | None],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root, seen, ends = tmp_path / "runs", list[str | None](), iter(range(100))
    (root / "notebooks").mkdir(parents=True)

    def start(execution: Execution) -> Any:
        seen.append(execution.env.get("CUDA_VISIBLE_DEVICES"))
        first = next(ends)  # points end in the order of their starts
        return SimpleNamespace(poll=lambda: 1 if len(seen) in (first + at_a_time, 4) else None)

    at_a_time = jobs or default
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(Execution, "start", start)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    path = write(tmp_path, cell=f"{PARAMETERS}processes = {processes}\n")
    points = plan(read_spec(path), {}, root)
    assert module._default_jobs(points, gpu_ids()) == default
    assert sweep(path, jobs=jobs, root=root) == 1 and seen == visible


def test_dry_run_lists_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(write(tmp_path), dry_run=True, only="n2", root=tmp_path / "runs") == 0
    output = capsys.readouterr().out
    assert "rft-n2-s0" in output and "rft-n2-s1" in output and "rft-n1" not in output
    assert not (tmp_path / "runs").exists()


def marks(file: Path, **overrides: Any) -> list[str]:
    return [point.mark.name for point in plan(read_spec(file), overrides, file.parent / "runs")]


FILES = """\
method = "rft"  # one of: rft, eef, bad
n = 1
data = ""  # file or folder: the shop; empty: none
experts = "strong"  # names or files, joined by +: strong, weak
model = "embedded"  # name or folder: embedded; or a name of the hub
options = {}  # may name files: split (or official), lists; keywords
expert_noise = {"base": 0.1}
note = ""
seed = 0
"""


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of one point whose notebook declares files, in a folder with a data folder and two expert files."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.json").write_text("[]")
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, cell=FILES, parameters={}, points=[{"n": 1}], seeds=[0])


def test_a_mark_follows_notebook_and_parameters(tmp_path: Path) -> None:
    file = write(tmp_path)
    first = marks(file)
    assert marks(file) == first and len(set(first)) == 4
    assert not set(marks(file, slow=0.5)) & set(first)
    write(tmp_path, body=BODY + "print(1)\n")
    assert not set(marks(file)) & set(first)
    write(tmp_path)
    assert marks(file) == first


def test_a_mark_follows_the_code_that_the_notebook_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that the notebook does not import, docstrings and page templates are ignored."""
    package = tmp_path / "copy" / "eef"
    copy_package(package, monkeypatch)
    file = write(tmp_path, body="%matplotlib inline\nfrom eef.tracking.runs import Run\nimport helper\n")
    (tmp_path / "helper.py").write_text("X = 1\n")
    runs = package / "tracking" / "runs.py"
    first = marks(file)
    (package / "analysis" / "views.py").write_text("changed = True\n")
    (package / "analysis" / "report.html").write_text("changed")
    (package / "tracking" / "__pycache__").mkdir()
    (package / "tracking" / "__pycache__" / "runs.pyc").write_bytes(b"x")
    runs.write_text(runs.read_text().replace('"""What a run', '"""Whatever a run'))
    assert marks(file) == first
    for changed, line in (
        (runs, "x = 1\n"),
        (package / "files.py", "x = 1\n"),  # an import of runs.py
        (package / "envs" / "webshop" / "reward.py", "x = 1\n"),
        (package / "envs" / "webshop" / "instructions.txt", "more\n"),
        (tmp_path / "helper.py", "Y = 1\n"),
    ):
        before = changed.read_text()
        changed.write_text(before + line)
        assert marks(file) != first, changed
        changed.write_text(before)
        assert marks(file) == first


def copy_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy this package, without weights, and compute marks from the files of the copy."""
    shutil.copytree(keys.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for copied in (keys, inputs):
        monkeypatch.setattr(copied, "PACKAGE", package)
    monkeypatch.setattr(keys, "_first_seen", Forgetful())


def test_a_mark_follows_no_stray_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "copy" / "eef"
    copy_package(package, monkeypatch)
    file = write(tmp_path)
    first = marks(file)
    for name in ("nohup.out", "notes.txt", "train.py.bak", "Untitled.ipynb", "envs/webshop/.instructions.txt.swp"):
        (package / name).write_text("x")
        assert marks(file) == first, name
    (package / "models" / "embedded" / "model.safetensors").write_text("weights")
    assert marks(file) != first


@pytest.mark.parametrize("place", [".", "here"], ids=["beside the notebook", "in the current folder"])
def test_a_mark_follows_packages_of_the_user(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, docstrings, modules that are not imported, and modules that a library hides are ignored."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / place
    sources = {
        "mypack/__init__.py": "Z = 0\n",
        "mypack/sub.py": "from . import deep\nfrom .deep import inner\nX = 1\n",
        "mypack/deep/__init__.py": "V = 0\n",
        "mypack/deep/inner.py": "import flat\n",
        "flat.py": "Y = 1\n",
        "plain_folder/part.py": "W = 1\n",
    }
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    file = write(tmp_path, body="from mypack.sub import X\nimport plain_folder.part, random, yaml\n")
    first = marks(file)
    for name, text in sources.items():
        (folder / name).write_text(f'"""About this."""\n# a comment\n{text}')
        assert marks(file) == first, name
        (folder / name).write_text(f"{text}CHANGED = 1\n")
        assert marks(file) != first, name
        (folder / name).write_text(text)
    for name in ("random.py", "yaml.py", "mypack/other.py"):
        (folder / name).write_text("X = 1\n")
    assert marks(file) == first


def test_a_module_of_the_user_that_is_not_python(tmp_path: Path) -> None:
    file = write(tmp_path, body="import helper\n")
    (tmp_path / "helper.py").write_text("X = (\n")
    with pytest.raises(SweepError, match=r"tiny\.ipynb: .*helper\.py"):
        marks(file)


def test_a_default_counts_the_same_whether_it_is_written_out_or_not(tmp_path: Path) -> None:
    first = marks(write(tmp_path, cell=FILES, parameters={}))
    same = {"note": "", "experts": "strong", "expert_noise": {"base": 0.1}}
    assert marks(write(tmp_path, cell=FILES, parameters=same)) == first
    assert not set(marks(write(tmp_path, cell=FILES, parameters={"note": "x"}))) & set(first)
    whole, point = [marks(write(tmp_path, parameters={"lr": lr, "slow": 0})) for lr in (1, 1.0)]
    assert whole == point


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"points": [{}], "grid": {"lr": [1, 1.0]}}, "lr1-s0 and lr1.0-s0"),
        ({"points": [{"n": 2}, {"n": 1}, {}]}, "n1-s0 and s0"),
    ],
)
def test_points_of_equal_parameters_are_refused(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    file = write(tmp_path, parameters={}, seeds=[0], **changes)
    with pytest.raises(SweepError, match=f"demo.yaml: the points {names} are the same: their parameters are equal"):
        marks(file)


def ended(spec: Spec, point: Point, root: Path, run: str = "") -> str:
    """The message of a sweep about a point whose notebook succeeded with this run, or with none."""
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    Path(f"{point.base}.runs").write_text(run)
    return module._end(spec, point, 0, root)


@pytest.mark.parametrize("changed", ["helper.py", "a.jsonl", "tiny.ipynb"])
def test_a_point_whose_code_or_files_change_while_it_runs_is_not_finished(declared: Path, changed: str) -> None:
    here, root = declared.parent, declared.parent / "runs"
    (here / "helper.py").write_text("X = 1\n")
    write(here, cell=FILES, body="import helper\n", parameters={"experts": "a.jsonl"}, points=[{"n": 1}], seeds=[0])
    spec = read_spec(declared)
    (point,) = plan(spec, {}, root)
    assert "done" in ended(spec, point, root) and point.mark.is_file()
    if changed == "tiny.ipynb":
        write(here, cell=FILES, body="import helper\nprint(1)\n", points=[{"n": 1}], seeds=[0])
    else:
        (here / changed).write_text("X = 2\n")
    point.mark.unlink()
    text = ended(spec, point, root)
    assert point.state == "failed" and not point.mark.exists()
    assert "code or files changed while it ran: start the sweep again to repeat it" in text


@pytest.mark.parametrize("error", [RuntimeError("eef/training/trainer.py was edited"), FileNotFoundError("no a.jsonl")])
def test_a_point_whose_code_cannot_be_checked_is_not_finished(
    declared: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(notebook: Path) -> dict[str, Any]:
        raise error

    spec, root = read_spec(declared), declared.parent / "runs"
    (point,) = plan(spec, {}, root)
    monkeypatch.setattr(inputs, "code_of", refuse)
    assert f"changed while it ran ({error}): start the sweep again" in ended(spec, point, root)
    assert point.state == "failed" and not point.mark.exists()


@pytest.mark.slow
def test_a_sweep_notices_an_edit_of_a_module_while_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real execution: the notebook edits a module that it has imported, once."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "helper.py").write_text("N = 1\n")
    edit = f"import helper\nopen({str(tmp_path / 'helper.py')!r}, 'w').write('N = 2\\n')\n"
    file, root = write(tmp_path, body=edit + BODY, points=[{"n": 1}], seeds=[0]), tmp_path / "runs"
    assert sweep(file, root=root) == 1
    assert "FAILED  n1-s0: its code or files changed while it ran" in capsys.readouterr().out
    assert sweep(file, root=root) == 0 and "1 to do" in capsys.readouterr().out
    assert sweep(file, root=root) == 0 and "0 to do" in capsys.readouterr().out


def test_names_of_methods_and_the_like_are_checked_before_anything_starts() -> None:
    spec = read_spec(keys.PACKAGE.parent / "experiments" / "demo.yaml")
    known = {
        "tune": "lora, full",
        "dtype": "auto, float32, bfloat16, float16",
        "optimizer": "adamw_torch, adamw_8bit, paged_adamw_8bit",
        "env": ", ".join(ENVIRONMENTS),
    }
    for key, names in known.items():
        check(spec, [{key: name} for name in names.split(", ")])
        with pytest.raises(SweepError, match=f"unknown {key} 'other'; known: {names}$"):
            check(spec, [{key: "other"}])


def test_a_parameter_that_merely_is_a_path_is_text(declared: Path) -> None:
    """``eef`` is a method, ``strong`` an expert and ``embedded`` a model, even if folders have these names."""
    first = marks(declared, method="eef", note="data")
    for name in ("eef", "strong", "embedded", "official"):
        (declared.parent / name).mkdir()
        (declared.parent / name / "file").write_text("x")
    (declared.parent / "data" / "new.json").write_text("x")
    assert marks(declared, method="eef", note="data") == first
    (point,) = plan(read_spec(declared), {"options": {"split": "official"}}, declared.parent)
    assert point.parameters["options"] == {"split": "official"}


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"data": "data"}, "data/items.json"),
        ({"experts": "a.jsonl"}, "a.jsonl"),
        ({"experts": "a.jsonl+b.jsonl"}, "b.jsonl"),
        ({"experts": "strong+b.jsonl"}, "b.jsonl"),
        ({"model": "./data"}, "data/items.json"),
        ({"options": {"split": "data"}}, "data/items.json"),
        ({"options": {"split": {"train": "a.jsonl", "test": [1]}}}, "a.jsonl"),
    ],
)
def test_a_mark_follows_the_contents_of_declared_files(
    declared: Path, overrides: dict[str, Any], changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = marks(declared, **overrides)
    (declared.parent / "data" / "__pycache__").mkdir()
    (declared.parent / "data" / "__pycache__" / "x.pyc").write_bytes(b"x")
    os.utime(declared.parent / changed, (1, 1))
    monkeypatch.chdir(declared.parent / "elsewhere")
    assert marks(declared, **overrides) == first
    (declared.parent / changed).write_text("changed")
    assert marks(declared, **overrides) != first


def test_paths_are_passed_on_as_absolute_paths(declared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = declared.parent
    (here / "c+d").mkdir()
    (here / "c+d" / "e.jsonl").write_text("e")
    parameters = {"data": "data", "experts": "strong+c+d/e.jsonl", "options": {"split": "data", "n": 1}, "note": "data"}
    write(here, cell=FILES, parameters=parameters, points=[{"n": 1}], seeds=[0])
    monkeypatch.chdir(here / "elsewhere")
    (point,) = plan(read_spec(declared), {}, here / "runs")
    assert point.parameters["data"] == f"{here}/data" and point.parameters["note"] == "data"
    assert point.parameters["experts"] == f"strong+{here}/c+d/e.jsonl"
    assert point.parameters["options"] == {"split": f"{here}/data", "n": 1}
    first = point.mark
    write(here, cell=FILES, parameters={**parameters, "data": f"{here}/./data"}, points=[{"n": 1}], seeds=[0])
    assert plan(read_spec(declared), {}, here / "runs")[0].mark == first


def test_the_current_folder_comes_first_for_an_override(declared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (declared.parent / "elsewhere" / "data").mkdir()
    monkeypatch.chdir(declared.parent / "elsewhere")
    (point,) = plan(read_spec(declared), {"data": "data"}, declared.parent)
    assert point.parameters["data"] == f"{declared.parent}/elsewhere/data"


def test_a_default_that_names_a_file_counts(declared: Path) -> None:
    cell = FILES.replace('data = ""', 'data = "data"')
    write(declared.parent, cell=cell, parameters={}, points=[{"n": 1}], seeds=[0])
    first = marks(declared)
    (declared.parent / "data" / "items.json").write_text("[1]")
    assert marks(declared) != first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": "shop"}, r"^-p data: no file or folder shop \(tried .*/shop, "),
        ({"experts": "c.jsonl"}, r"^-p experts: no file c.jsonl \(tried .*/c.jsonl"),
        ({"experts": "strong+my/c"}, "experts: no file or folder my/c"),
        ({"model": "./mine"}, "model: no file or folder ./mine"),
        ({"model": "mine.gguf"}, "model: no file mine.gguf"),
        ({"options": {"split": "my/split"}}, "options.split: no file or folder my/split"),
    ],
)
def test_a_missing_file_stops_before_anything_starts(
    declared: Path, overrides: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_work", lambda *arguments: pytest.fail("started"))
    with pytest.raises(SweepError, match=message):
        sweep(declared, overrides, root=declared.parent / "runs")
    assert not (declared.parent / "runs").exists()


def test_the_notebooks_of_this_repository_declare_their_files() -> None:
    """The comments list exactly the names that the code knows."""
    from eef.envs.extras import extras_of

    known = launch.declared(EXPERIMENTS.parent / "notebooks" / "experiment.ipynb")
    files = {key: files for key in known if (files := inputs.declaration(known[key]["help"])) is not None}
    assert set(files) == {"data", "experts", "model", "env_options"} and set(files["env_options"]) == {"split"}
    assert files["data"] == inputs.Files()
    assert files["experts"] == inputs.Files(tuple(extras_of("webshop").experts.noise), joined=True)
    assert files["model"].hub and set(files["model"].names) == {*EMBEDDED_MODELS, *PACKAGED_MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_file_of_this_repository_can_be_planned(path: Path, tmp_path: Path) -> None:
    spec = read_spec(path)
    overrides = {}
    if str(spec.parameters.get("experts", "")).startswith("experiments/runs/"):
        overrides["experts"] = "strong"  # experiments/natural_expert.py writes this file before the sweep
    if spec.parameters.get("model") in PACKAGED_MODELS:
        overrides["model"] = "embedded"  # `eef model` downloads the model before the sweep
    assert plan(spec, overrides, tmp_path / "runs")


def test_names_that_are_not_files_pass(declared: Path) -> None:
    overrides = {"experts": "strong+gpt", "model": "org/model-0.5B", "options": {"split": "ratio"}}
    (point,) = plan(read_spec(declared), overrides, declared.parent)
    assert overrides.items() <= point.parameters.items()
    (point,) = plan(read_spec(declared), {"model": "Qwen2.5-0.5B", "experts": ""}, declared.parent)
    assert point.parameters["model"] == "Qwen2.5-0.5B"


def test_two_files_with_the_same_contents_are_one_point(declared: Path) -> None:
    shutil.copy(declared.parent / "a.jsonl", declared.parent / "elsewhere")
    points = [{"experts": "a.jsonl"}, {"experts": "elsewhere/a.jsonl"}]
    write(declared.parent, cell=FILES, parameters={}, points=points, seeds=[0])
    with pytest.raises(SweepError, match="are the same: the files that they name have the same contents"):
        plan(read_spec(declared), {}, declared.parent)


def test_labels_are_short_and_name_files_by_their_stems(declared: Path) -> None:
    (declared.parent / "elsewhere" / "a.jsonl").write_text("another")
    experts = ["a.jsonl", "elsewhere/a.jsonl", "strong+b.jsonl"]
    points = [{"experts": value} for value in experts] + [{"note": "x" * 300}, {"note": "x" * 300 + "y"}]
    write(declared.parent, cell=FILES, parameters={}, points=points, seeds=[0])
    planned = plan(read_spec(declared), {}, declared.parent / "runs")
    labels = [point.label for point in planned]
    assert len(set(labels)) == 5 and all(name.startswith("expertsa-") for name in labels[:2])
    assert labels[2] == "expertsstrong_b-s0"
    assert all(len(os.path.basename(point.base).encode()) < 140 for point in planned)


@given(st.lists(st.text().map(lambda text: 20 * text), min_size=1, max_size=3))
def test_any_label_is_a_short_file_name(values: list[str]) -> None:
    spec = Spec("demo", Path("demo.yaml"), Path("x.ipynb"), points=[{f"p{i}": v for i, v in enumerate(values)}])
    name = label(spec, {**spec.points[0], "seed": 0})
    assert re.fullmatch(r"[\w.=-]+", name) and len(name.encode()) <= 100


def test_finished_points_of_other_releases_are_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, root = write(tmp_path, points=[{"n": 1}], seeds=[0, 1]), tmp_path / "runs"
    versions = [{"torch": "1.0+cpu", "numpy": keys.library_version("numpy")}, {"torch": keys.library_version("torch")}]
    for number, point in enumerate(plan(read_spec(file), {}, root)):
        (root / f"r{number}").mkdir(parents=True)
        (root / f"r{number}" / "result.json").write_text("{}")
        (root / f"r{number}" / "stamp.json").write_text(json.dumps({"versions": versions[number]}))
        point.mark.parent.mkdir(parents=True, exist_ok=True)
        point.mark.write_text(json.dumps({"run_ids": [f"r{number}"]}))
    planned = plan(read_spec(file), {}, root)
    assert [point.state for point in planned] == ["finished", "finished"]
    assert sweep(file, dry_run=True, root=root) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"1 of 2 finished points were made with torch 1.0 (installed: {keys.library_version('torch')})" in line
    assert f"delete {planned[0].mark}, or use another --root" in line and "numpy" not in line
    assert sweep(file, dry_run=True, root=root, only="s1") == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_sweep_from_another_folder_has_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real executions. A changed expert file repeats the points that name it, and no others."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    root = tmp_path / "runs"
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(name)
    for name in ("eef", "elsewhere"):
        (tmp_path / name).mkdir()
    body = (
        "from eef.tracking.runs import Run\n"
        'read = [open(name).read() for name in experts.split("+") if name != "strong"]\n'
        'run = Run.open(None, "webshop", method, seed, {"read": read}, {})\n'
        'run.finish({"method": method, "win_rate": 0.5})\n'
    )
    points = [{"method": "eef", "experts": "a.jsonl+b.jsonl"}, {"method": "rft", "experts": "strong+c.jsonl"}]
    file = write(tmp_path, cell=FILES, body=body, parameters={}, points=points, seeds=[0])
    monkeypatch.chdir(tmp_path)
    assert sweep("demo.yaml", root=root) == 0 and "2 to do" in capsys.readouterr().out
    (tmp_path / "eef" / "new").write_text("x")
    assert sweep("demo.yaml", root=root) == 0 and "0 to do" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sweep(file, root=root) == 0 and "0 to do" in capsys.readouterr().out
    (tmp_path / "b.jsonl").write_text("changed")
    assert sweep(file, root=root, dry_run=True) == 0
    output = capsys.readouterr().out
    assert (
        "1 to do" in output and re.search(r"waits +\S+-eef-s0", output) and re.search(r"finished +\S+-rft-s0", output)
    )
    assert re.search(r"\S+-eef-s0 ran before and will run again: the contents of a file changed\n", output)
    write(tmp_path, cell=FILES, body=f"{body}\n1", parameters={}, points=points, seeds=[0])
    assert sweep(file, root=root, dry_run=True, only="rft") == 0
    assert "-rft-s0 ran before and will run again: tiny.ipynb changed\n" in capsys.readouterr().out


def test_a_mark_without_its_run_is_not_finished(tmp_path: Path) -> None:
    spec, root = read_spec(write(tmp_path)), tmp_path / "runs"
    point = plan(spec, {}, root)[0]
    point.mark.parent.mkdir(parents=True)
    point.mark.write_text(json.dumps({"run_ids": ["webshop__x"]}))
    assert plan(spec, {}, root)[0].state == "waits"
    (root / "webshop__x").mkdir()
    (root / "webshop__x" / "result.json").write_text("{}")
    assert plan(spec, {}, root)[0].state == "finished"


@pytest.mark.parametrize("replaced", ["result.json", "eval"])
def test_a_point_whose_result_was_replaced_runs_again(tmp_path: Path, replaced: str) -> None:
    """Other code, or another sweep, finishes the run of the same id: the mark remains, but its result is gone."""
    spec, root = read_spec(write(tmp_path, points=[{"n": 1}], seeds=[0])), tmp_path / "runs"
    run = root / "webshop__x"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"win_rate": 0.5}')
    (run / "eval").symlink_to("../stages/eval-1")
    (point,) = plan(spec, {}, root)
    assert "done" in ended(spec, point, root, run.name) and plan(spec, {}, root)[0].state == "finished"
    (run / replaced).unlink()
    if replaced == "eval":
        (run / "eval").symlink_to("../stages/eval-2")
    else:
        (run / "result.json").write_text('{"win_rate": 0.6}')
    (point,) = plan(spec, {}, root)
    assert point.state == "waits"
    why = "its result was replaced by other code or another sweep"
    assert why_again(spec, [point], root) == [f"n1-s0 ran before and will run again: {why}"]
    mark = json.loads(point.mark.read_text())
    point.mark.write_text(json.dumps({key: value for key, value in mark.items() if key != "results"}))
    assert plan(spec, {}, root)[0].state == "finished", "marks of earlier versions count as before"


def test_two_sweeps_in_one_folder(tmp_path: Path) -> None:
    path, root = write(tmp_path), tmp_path / "runs"
    root.mkdir()
    with FileLock(root / ".sweep.lock"), pytest.raises(SweepError, match="another sweep is running"):
        sweep(path, root=root)


def test_a_name_follows_the_contents_of_files(declared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = declared.parent
    (here / "elsewhere" / "a.jsonl").write_text("other")
    write(here, cell=FILES, parameters={"experts": "b.jsonl", "data": "lost"}, points=[{"n": 1}], seeds=[0])
    spec = read_spec(declared)
    names = {sweep_label(spec, {"experts": path}) for path in ("a.jsonl", "./a.jsonl", f"{here}/a.jsonl")}
    assert sweep_label(spec, {"experts": "b.jsonl"}) == sweep_label(spec, {"experts": "./b.jsonl"}) == "demo"
    names.add(sweep_label(spec, {"data": "data"}))
    monkeypatch.chdir(here / "elsewhere")
    names.add(sweep_label(spec, {"experts": "a.jsonl"}))
    assert len(names) == 3 and sweep_label(spec, {"experts": "b.jsonl"}) == "demo"
    assert sweep_label(spec, {"experts": "weak", "note": "x"}) == f"demo-{digest({'experts': 'weak', 'note': 'x'}, 4)}"


def test_names_and_the_command_that_repeats(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path))
    assert sweep_label(spec, {}) == "demo" and sweep_label(spec, {"data": "x"}).startswith("demo-")
    assert repeat_command("demo.yaml", {"data": "a b", "n": [1, 2], "v": "1"}, "r") == (
        "eef sweep demo.yaml -p 'data=a b' -p 'n=[1, 2]' -p 'v=\"1\"' --root r"
    )


def test_failure_without_a_notebook_shows_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "point.log").write_text("first\nout of luck\n")
    base = str(tmp_path / "point")
    assert "signal 9 (out of memory?)" in failure(base, -9) and "out of luck" in failure(base, -9)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert failure(base, 1).startswith(f"the disk is full at {tmp_path}")


@pytest.mark.parametrize(
    ("raised_in", "error", "advice"),
    [
        ("training/trainer.py", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
         "the GPU's memory is too small for training (CUDA out of memory. Tried to allocate 2.00 GiB): set "
         "micro_batch_size=1, gradient_checkpointing=true, quantize=nf4 or a smaller context, or use --jobs 1"),
        ("agents/engine.py", "rollout worker 0 of 2: OutOfMemoryError: CUDA out of memory.",
         "the GPU's memory is too small for the simulations (CUDA out of memory): set fewer slots or a smaller "
         "context, or use --jobs 1"),
    ],
)  # fmt: skip
def test_too_little_memory_of_a_gpu_is_one_message_with_advice(
    raised_in: str, error: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traceback = [f"File {keys.PACKAGE}/{raised_in}:9, in step()", "----> 9 model(batch)", f"OutOfMemoryError: {error}"]
    output = {"output_type": "error", "ename": "OutOfMemoryError", "evalue": error, "traceback": traceback}
    (tmp_path / "point.ipynb").write_text(json.dumps({"cells": [{"outputs": [output]}]}))
    assert failure(str(tmp_path / "point"), 1) == advice
    monkeypatch.setenv("EEF_DEBUG", "1")
    assert "----> 9 model(batch)" in failure(str(tmp_path / "point"), 1)


def test_a_failed_point_stops_no_other_and_restarts_do_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(inputs, "code_of", lambda notebook: {})  # edits while tests run must not count
    root = tmp_path / "runs"
    path = write(tmp_path, seeds=[0], points=[{"method": "bad", "n": 1}, {"method": "rft", "n": 1}])
    assert sweep(path, jobs=2, root=root) == 1
    output = capsys.readouterr().out
    assert "FAILED  bad-n1-s0" in output and "RuntimeError: this one is bad" in output and "26.0 %" in output
    assert output.rstrip().endswith(f"to repeat: eef sweep {path} --jobs 2 --root {root}")
    index = json.loads((root / "sweeps" / "demo.json").read_text())
    assert index["missing"] == ["bad-n1-s0"] and len(index["run_ids"]) == 1
    run = root / index["run_ids"][0]
    assert json.loads((run / "config.json").read_text())["group"] == "demo"
    assert (root / "calls").read_text() == "x"  # both points share the stage
    assert len(list((root / "notebooks").glob("demo__*.ipynb"))) == 2
    books = [json.loads((at / "notebook.ipynb").read_text()) for at in (run, *root.glob("*__bad-*"))]
    assert [book["metadata"]["papermill"]["exception"] for book in books] == [None, True]
    before = (run / "result.json").stat().st_mtime_ns
    assert sweep(path, only="rft", root=root) == 0
    assert (run / "result.json").stat().st_mtime_ns == before and "0 to do" in capsys.readouterr().out


def test_an_interrupt_ends_the_children(tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[0], points=[{"n": 1}], parameters={"slow": 60.0})
    code = "import sys; from eef.sweeps.sweep import sweep; sys.exit(sweep(sys.argv[1], root=sys.argv[2]))"
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            if beside := list(tmp_path.glob("runs/stages/.bc-*.[0-9]*")):
                break
            time.sleep(0.1)
        kernel = int(beside[0].name.rsplit(".", 1)[1])
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "the same command resumes the sweep" in output
    table = output[output.index("the same command resumes the sweep") :]
    assert " stopped " in table and " runs " not in table
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
