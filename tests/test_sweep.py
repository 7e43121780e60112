"""Sweeps: points from a file, checks before anything starts, and executions that survive failures and restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml
from filelock import FileLock

from eef import launch
from eef import sweep as module
from eef.launch import failure
from eef.sweep import SweepError, check, expand, label, plan, read_spec, repeat_command, sweep, sweep_label

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
from eef.runs import Run
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
    """A sweep file beside a notebook of two cells."""
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
    ("changes", "overrides", "says"),
    [
        ({}, {"n": 3}, "'n' is set by the points"),
        ({}, {"seed": "x"}, "seeds are whole numbers"),
        ({"seeds": []}, {}, "seeds are whole numbers"),
        ({"seeds": [1, 1]}, {}, "the same point twice"),
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
def test_bad_sweep_files(tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any], says: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(SweepError, match=says):
        expand(read_spec(path), overrides)


def test_bad_yaml_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("points: [{method: rft")
    with pytest.raises(SweepError, match=r"torn.yaml is not valid YAML, line 1"):
        read_spec(tmp_path / "torn.yaml")
    with pytest.raises(SweepError, match="no sweep file"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"metod": "rft"}, "unknown parameter 'metod'.*did you mean 'method'.*declares"),
        ({"method": "rtf"}, "unknown method 'rtf'.*did you mean 'rft'.*known: rft, eef, bad"),
        ({"n": "many"}, "'n' is int in the notebook"),
        ({"n": True}, "'n' is int in the notebook"),
        ({"n": 1.5}, "'n' is int in the notebook"),
        ({"lr": "1e-3"}, "'lr' is float in the notebook"),
    ],
)
def test_parameters_are_checked_against_the_notebook(tmp_path: Path, parameters: dict[str, Any], says: str) -> None:
    spec = read_spec(write(tmp_path))
    check(spec, [{"method": "eef", "n": 2, "lr": 1, "data": "anything", "slow": 0, "seed": 1}])
    with pytest.raises(SweepError, match=says):
        check(spec, [parameters])


def test_parameters_of_the_figure_are_checked_too(tmp_path: Path) -> None:
    figure = {"notebook": "tiny.ipynb", "lr": 1.0}
    check(read_spec(write(tmp_path, figure=figure)), [])
    with pytest.raises(SweepError, match="figure: 'lrr' is no parameter of tiny.ipynb.*did you mean 'lr'"):
        check(read_spec(write(tmp_path, figure=figure | {"lrr": 1.0})), [])


def test_mistakes_stop_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_work", lambda *given: pytest.fail("started"))
    path, root = write(tmp_path), tmp_path / "runs"
    for overrides, words in (({"nn": 1}, {}), ({}, {"jobs": 0}), ({}, {"only": "no such"})):
        with pytest.raises(SweepError):
            sweep(path, overrides, root=root, **words)  # type: ignore[arg-type]
    assert not root.exists()


def test_dry_run_lists_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(write(tmp_path), dry_run=True, only="n2", root=tmp_path / "runs") == 0
    said = capsys.readouterr().out
    assert "rft-n2-s0" in said and "rft-n2-s1" in said and "rft-n1" not in said
    assert not (tmp_path / "runs").exists()


def test_a_mark_without_its_run_is_not_finished(tmp_path: Path) -> None:
    spec, root = read_spec(write(tmp_path)), tmp_path / "runs"
    point = plan(spec, {}, root)[0]
    point.mark.parent.mkdir(parents=True)
    point.mark.write_text(json.dumps({"run_ids": ["webshop__x"]}))
    assert plan(spec, {}, root)[0].state == "waits"
    (root / "webshop__x").mkdir()
    (root / "webshop__x" / "result.json").write_text("{}")
    assert plan(spec, {}, root)[0].state == "finished"


def test_two_sweeps_in_one_folder(tmp_path: Path) -> None:
    path, root = write(tmp_path), tmp_path / "runs"
    root.mkdir()
    with FileLock(root / ".sweep.lock"), pytest.raises(SweepError, match="another sweep is at work"):
        sweep(path, root=root)


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


def test_a_failed_point_stops_no_other_and_restarts_do_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(module.inputs, "code_of", lambda notebook: {})  # an edit while tests run would start all anew
    root = tmp_path / "runs"
    path = write(tmp_path, seeds=[0], points=[{"method": "bad", "n": 1}, {"method": "rft", "n": 1}])
    assert sweep(path, jobs=2, root=root) == 1
    said = capsys.readouterr().out
    assert "FAILED  bad-n1-s0" in said and "RuntimeError: this one is bad" in said and "26.0 %" in said
    assert said.rstrip().endswith(f"again: eef sweep {path} --root {root}")
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
    code = "import sys; from eef.sweep import sweep; sys.exit(sweep(sys.argv[1], root=sys.argv[2]))"
    words = [sys.executable, "-c", code, str(path), str(tmp_path / "runs")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            if beside := list(tmp_path.glob("runs/stages/.bc-*.[0-9]*")):
                break
            time.sleep(0.1)
        kernel = int(beside[0].name.rsplit(".", 1)[1])
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "goes on from here" in said
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
