"""The command line: it is fast to start, explains mistakes, and turns a sweep file into a figure."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from eef.cli import main, parse_overrides
from eef.tracking.runs import Run

BODY = """\
from eef.tracking.runs import Run
run = Run.open(None, "webshop", f"{method}-n{n}", seed, {"n": n}, {"hashes": {"catalogue": "c"}})
rate = 0.25 + n / 100
run.finish({"method": method, "n": n, "m": None, "experts": "strong", "seed": seed, "episodes": 100 * n,
            "env_steps": n, "tokens": n, "win_rate": rate, "win_low": rate - 0.1, "win_high": rate + 0.1,
            "mean_reward": rate, "n_test": 50, "errors": 0})
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("EEF_DEBUG", raising=False)


def write(folder: Path) -> Path:
    cells = [nbformat.v4.new_code_cell('method = "rft"\nn = 1\nseed = 0'), nbformat.v4.new_code_cell(BODY)]
    cells[0].metadata.tags = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, folder / "tiny.ipynb")
    spec = {"name": "demo", "notebook": "tiny.ipynb", "seeds": [0], "points": [{"n": 1}, {"n": 4}]}
    (folder / "demo.yaml").write_text(yaml.safe_dump(spec))
    return folder / "demo.yaml"


def test_help_is_fast_to_import() -> None:
    code = "import sys, eef.cli; sys.exit(bool({'torch', 'wandb', 'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_override_values_are_yaml() -> None:
    assert parse_overrides(["expert_noise={base: 1e-2, l: [-.5]}"]) == {"expert_noise": {"base": 1e-2, "l": [-0.5]}}
    arguments = ["n=4", "lr=1e-4", "data=a/b", "seeds=[0, 1]", "name=", "flag=true", "text=x=y", "version='1'"]
    assert parse_overrides(arguments) == {
        "n": 4, "lr": 1e-4, "data": "a/b", "seeds": [0, 1], "name": None, "flag": True, "text": "x=y", "version": "1",
    }  # fmt: skip
    for bad in ("n", "=3", "a b=3", "n=[1", "n=010", "n=2026-01-01", "n={a: 1, a: 2}", "n=.nan", "n=1:30"):
        with pytest.raises(ValueError, match="-p "):
            parse_overrides([bad])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "none.yaml"], "no sweep file at none.yaml"),
        (["sweep", "{file}", "-p", "nn=2"], "unknown parameter 'nn'"),
        (["sweep", "{file}", "-p", "nn"], "write key=value"),
        (["sweep", "{file}", "--jobs", "0"], "--jobs must be at least 1"),
        (["sweep", "{file}", "--only", "zzz"], "no point's name contains 'zzz'"),
        (["figures"], "no finished runs"),
        (["figures", "--sweep", "demo"], "no sweep 'demo'"),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = [word.format(file=write(tmp_path)) for word in arguments] + ["--root", str(tmp_path / "runs")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    monkeypatch.setenv("EEF_DEBUG", "1")
    with pytest.raises((ValueError, RuntimeError)):
        main(argv)


def test_unwritable_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["sweep", str(write(tmp_path)), "--root", str(tmp_path / "file" / "runs")]) == 2
    assert "cannot write at" in capsys.readouterr().err


def test_runs_lists_finished_unfinished_and_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = Run.open(tmp_path, "webshop", "rft-n4", 0, {}, {})
    unfinished = Run.open(tmp_path, "webshop", "eef-m5", 0, {}, {})
    finished.finish({"win_rate": 0.5})
    assert main(["runs", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(finished.run_id in line and "50.0 %" in line and "finished" in line for line in lines)
    assert any(unfinished.run_id in line and "unfinished" in line for line in lines)
    (finished.folder / "result.json").write_text("{")
    assert main(["runs", "--root", str(tmp_path)]) == 2
    assert "result.json: truncated or invalid JSON" in capsys.readouterr().err


def test_from_sweep_file_to_figure_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eef.sweeps.inputs.code_of", lambda notebook: {})  # edits while tests run must not count
    root, out = tmp_path / "runs", tmp_path / "figure"
    arguments = ["sweep", str(write(tmp_path)), "--root", str(root), "--out", str(out)]
    assert main([*arguments, "--only", "n1"]) == 0
    assert "1 points of demo are not finished: n4-s0" in capsys.readouterr().out and not out.exists()
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert (
        "2 points of tiny.ipynb, 1 to do" in output
        and "| rft" in output
        and f"to repeat: eef {shlex.join(arguments)}" in output
    )
    table = (out / "win_rate_vs_budget.csv").read_bytes()
    assert table.count(b"\n") == 3 and (out / "win_rate_vs_budget.png").is_file()
    assert main(["figures", "--root", str(root), "--sweep", "demo", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "win_rate_vs_budget.csv").read_bytes() == table
    assert os.listdir(root / "sweeps" / "demo")
    assert (
        f"report: {root}/reports/demo.html" in output and "data:image/png" in (root / "reports/demo.html").read_text()
    )


def test_a_failed_point_leaves_a_page_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, root = write(tmp_path), tmp_path / "runs"
    spec = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**spec, "points": [{"n": 1}, {"n": 0}]}))
    book = nbformat.read(tmp_path / "tiny.ipynb", 4)
    book.cells[1].source = "assert n\n" + book.cells[1].source
    nbformat.write(book, tmp_path / "tiny.ipynb")
    assert main(["sweep", str(path), "--root", str(root)]) == 1
    output = capsys.readouterr().out
    assert "FAILED  n0-s0: AssertionError" in output and "assert n" in output and "report: " in output
    assert "1 points are not finished: n0-s0" in (root / "reports" / "demo.html").read_text()


def test_a_figure_of_a_read_only_checkout_goes_to_the_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, root = tmp_path / "checkout", tmp_path / "runs"
    checkout.mkdir()
    (checkout / "figures").write_text("a file in the place of the folder")
    monkeypatch.setattr("eef.sweeps.results.repo_root", lambda: checkout)
    assert main(["sweep", str(write(tmp_path)), "--root", str(root)]) == 0
    output = capsys.readouterr().out
    assert f"{checkout}/figures/demo cannot be written: the figure goes to {root}/figures/demo" in output
    assert (root / "figures" / "demo" / "win_rate_vs_budget.png").is_file() and f"report: {root}/reports" in output
    assert main(["report", "--sweep", "demo", "--root", str(root)]) == 0
    assert "data:image/png" in (root / "reports" / "demo.html").read_text()


@pytest.mark.parametrize("command", ["sweep", "figures", "report"])
def test_an_unwritable_out_is_named_before_anything_starts(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = write(tmp_path), tmp_path / "runs"
    (tmp_path / "file").write_text("")
    if command != "sweep":
        Run.open(root, "webshop", "rft-n4", 0, {}, {}).finish({"win_rate": 0.5})
    monkeypatch.setattr("eef.sweeps.sweep._work", lambda *arguments: pytest.fail("started"))
    out = tmp_path / "file" / "figure" / "page.html"
    arguments = [command, str(path)] if command == "sweep" else [command]
    assert main([*arguments, "--root", str(root), "--out", str(out)]) == 2
    assert f"--out {out}" in capsys.readouterr().err
