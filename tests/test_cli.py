"""The command line: it is fast to start, explains mistakes, and turns a sweep file into a figure."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml

from eef.cli import main, parse_overrides
from eef.envs.webshop import WebShop
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


def test_bare_eef_lists_the_commands_with_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name in ("sweep", "figures", "report", "view", "runs", "wandb", "experts", "collect", "tasks", "webshop"):
        assert f"│ {name} " in text, name
    assert text.count("eef sweep demo") == text.count("eef runs --method eef") == text.count("eef view RUN") == 1
    assert main(["--help"]) == 0 and "--install-completion" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["eef", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("eef", run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out == f"eef {version('eef')}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["swep"], "No such command 'swep'. Did you mean 'sweep'?\n(eef --help"),
        (["sweep"], "Missing argument 'FILE'.\n(eef sweep --help"),
        (["sweep", "demo", "--drt-run"], "No such option: --drt-run"),
        (["sweep", "demo", "--executor", "cloud"], "'local', 'slurm'"),
        (["runs", "--state", "lost"], "'finished', 'unfinished'"),
        (
            ["runs", "--sweep", "demo", "list"],
            "--sweep has no effect before list: write eef runs --sweep ... without list",
        ),
        (
            ["tasks", "--env", "webshp"],
            "unknown environment 'webshp' (did you mean 'webshop'?): use 'webshop' or 'scienceworld'\n",
        ),
        (["tasks", "-p", "size=3"], "webshop has no option 'size'; its options are data, "),
    ],
)
def test_a_typo_is_one_message_without_a_hint_at_tracebacks(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    output = capsys.readouterr()
    assert output.err.startswith("eef: ") and message in output.err and output.out == ""
    assert "EEF_DEBUG" not in output.err and "Traceback" not in output.err


def test_an_unexpected_error_says_how_to_see_where_it_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eef.sweeps.results.draw_runs", lambda *arguments: json.loads("{"))
    assert main(["figures"]) == 2
    assert "(set EEF_DEBUG=1 for the traceback)" in capsys.readouterr().err


def test_an_interrupt_and_a_closed_pipe_end_quietly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eef.sweeps.results.draw_runs", stop)
    assert main(["figures"]) == 130 and capsys.readouterr().err == "interrupted\n"
    code = (
        "import eef.cli, eef.envs.tasks; eef.cli.environment = lambda *arguments: None; "
        "eef.envs.tasks.print_tasks = lambda *arguments: print('x\\n' * 100_000); eef.cli.main(['tasks'])"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


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


def test_runs_are_filtered_and_written_as_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"train": 250, "test": 300}
    for env, label, group, rate in (("webshop", "eef-m5", "demo", 2 / 3), ("kiosk", "rft-n1", "map", 0.5)):
        run = Run.open(tmp_path, env, label, 0, {**sizes, "method": label[:3]}, {}, group=group)
        run.finish({"win_rate": rate, "n_test": 299})
    Run.open(tmp_path, "webshop", "eef-m1", 0, {**sizes, "method": "eef", "m": 1}, {}, group="demo")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "both.json").write_text(json.dumps({"run_ids": [run.run_id]}))

    def listed(*words: str) -> list[str]:
        assert main(["runs", *words, "--root", str(tmp_path), "--csv", "-"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        return sorted(row["method"] for row in rows)

    assert listed() == listed("list") == ["eef-m1", "eef-m5", "rft-n1"]
    assert listed("--sweep", "demo") == listed("--method", "eef") == listed("--env", "webshop") == ["eef-m1", "eef-m5"]
    assert listed("--method", "eef-m5") == listed("--method", "eef", "--state", "finished") == ["eef-m5"]
    assert listed("--sweep", "map") == listed("--sweep", "both") == ["rft-n1"]
    assert listed("--state", "unfinished") == ["eef-m1"]
    capsys.readouterr()
    assert main(["runs", "--method", "eto", "--root", str(tmp_path)]) == 2
    assert "no run has method 'eto'; known: eef, eef-m1, eef-m5" in capsys.readouterr().err
    assert main(["runs", "--root", str(tmp_path), "--csv", str(tmp_path / "runs.csv")]) == 0
    rows = csv.DictReader((tmp_path / "runs.csv").read_text().splitlines())
    (row,) = [row for row in rows if row["method"] == "eef-m5"]
    today = time.strftime("%Y-%m-%d")
    assert row["date"].startswith(today) and (row["train"], row["test"], row["sweep"]) == ("250", "299", "demo")
    assert float(row["win_rate"]) == 2 / 3 and row["state"] == "finished"
    assert main(["runs", "--root", str(tmp_path)]) == 0
    head, *lines, count = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "date", "sweep", "method", "train", "test", "win", "rate", "state"]
    assert count == f"3 runs in {tmp_path}" and any("map, both" in line for line in lines)
    assert any(" EEF, M = 1  " in line and line.endswith("unfinished") for line in lines)
    assert listed("--method", "EEF, M = 1") == ["eef-m1"]
    assert any(line.split()[-7:] == ["demo", "eef-m5", "250", "299", "66.7", "%", "finished"] for line in lines)
    assert main(["runs", "show", "eef-m5", "--root", str(tmp_path)]) == 0
    assert "0.6667\n" in capsys.readouterr().out
    assert main(["runs", "--root", str(tmp_path), "show", "rft"]) == 0


def test_view_and_check_call_what_does_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class Report:
        failed = True

        def __str__(self) -> str:
            return "turn 3 differs"

    browser, check = ModuleType("browser"), ModuleType("check")
    vars(browser)["write_browser"] = lambda run, out: calls.append((run, out)) or Path("page.html")
    vars(check)["check_file"] = lambda path, env, split: calls.append((path, env, split)) or Report()
    monkeypatch.setattr("eef.commands.experts.environment", lambda name, options: (name, options))
    monkeypatch.setitem(sys.modules, "eef.analysis.browser", browser)
    monkeypatch.setitem(sys.modules, "eef.experts.check", check)
    run = Run.open(tmp_path, "webshop", "eef-m1", 0, {}, {})
    assert main(["view", "eef-m1", "--root", str(tmp_path)]) == 0 and "page.html" in capsys.readouterr().out
    assert main(["view", "eef-m1", "--root", str(tmp_path), "--out", "x.html"]) == 0
    words = ["experts", "check", "mine.jsonl", "--env", "webshop", "-p", "max_steps=7", "-p", "seed=1"]
    capsys.readouterr()
    assert main([*words, "--split", "train"]) == 1 and capsys.readouterr().out == "turn 3 differs\n"
    assert calls == [
        (run.folder, None),
        (run.folder, Path("x.html")),
        ("mine.jsonl", ("webshop", {"max_steps": 7, "seed": 1}), "train"),
    ]


def test_tasks_lists_ids_splits_and_goals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webshop", "tasks", "--split", "test", "--csv", str(tmp_path / "tasks.csv")]) == 0
    with open(tmp_path / "tasks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    env = WebShop()
    assert [row["id"] for row in rows] == env.tasks("test") and {row["split"] for row in rows} == {"test"}
    assert rows[0]["goal"] == env.shop.goals[int(rows[0]["id"])].instruction_text
    assert main(["tasks", "--env", "webshop"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [task, split] for split in ("train", "eval", "test") for task in env.tasks(split)
    ]


def test_a_sweep_is_found_from_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()  # a folder of that name is no sweep file
    monkeypatch.chdir(tmp_path)
    for word in ("demo", "demo.yaml", "experiments/demo.yaml"):
        assert main(["sweep", word, "--dry-run", "--root", "runs"]) == 0
        assert "sweep demo: 7 points of experiment.ipynb" in capsys.readouterr().out
    assert main(["sweep", "dem"]) == 2
    assert (
        "no sweep file at dem; in" in (error := capsys.readouterr().err)
        and "demo, disjoint_families, equal_steps" in error
    )


def test_one_seed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(write(tmp_path)), "--dry-run", "--root", str(tmp_path / "runs"), "-p"]
    assert main([*words, "seeds=1"]) == 0
    output = capsys.readouterr().out
    assert "-p seeds=1: one seed, number 1 (-p 'seeds=[0, 1, 2]' runs three)" in output
    assert output.count('"seed": 1}') == 2 and "2 points" in output
    assert main([*words, "seeds=[0, 1]"]) == 0 and "one seed" not in capsys.readouterr().out


def test_from_sweep_file_to_figure_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eef.sweeps.inputs.code_of", lambda notebook: {})  # edits while tests run must not count
    root, out = tmp_path / "runs", tmp_path / "figure"
    arguments = ["sweep", str(write(tmp_path)), "--root", str(root), "--out", str(out)]
    part = [*arguments[:2], "--only", "n1", "--jobs", "1", *arguments[2:]]
    assert main(part) == 0
    output = capsys.readouterr().out
    assert "1 points of demo are not finished: n4-s0" in output and not out.exists()
    assert f"to repeat: eef {shlex.join(part)}\n" in output and output.count("to repeat") == 1
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert (
        "2 points of tiny.ipynb, 1 to do" in output
        and "| RFT × 4" in output
        and f"to repeat: eef {shlex.join(arguments)}" in output
    )
    table = (out / "win_rate_vs_budget.csv").read_bytes()
    assert table.count(b"\n") == 3 and (out / "win_rate_vs_budget.png").is_file()
    assert "no outcomes.csv: " in output and "episodes.csv is missing" in output, "a notebook that plays no episodes"
    assert main(["figures", "--root", str(root), "--sweep", "demo", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "win_rate_vs_budget.csv").read_bytes() == table
    assert f"{tmp_path}/again/win_rate_vs_budget.pdf" in capsys.readouterr().out
    assert os.listdir(root / "sweeps" / "demo")
    assert (
        f"report: {root}/reports/demo.html" in output and "data:image/png" in (root / "reports/demo.html").read_text()
    )


@pytest.mark.slow
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


@pytest.mark.slow
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
