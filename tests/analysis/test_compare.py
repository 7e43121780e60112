"""Showing one run, comparing two, and pruning that removes nothing that a run needs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from eef.analysis.compare import differences, find, prunable, prune, win_difference
from eef.cli import main
from eef.files import RunError
from eef.tracking.runs import Run


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def run(root: Path, method: str, wins: list[int], catalogue: str = "c1", **config: Any) -> Run:
    """A finished run whose ``bc`` stage is shared by all and whose ``eval`` stage is its own."""
    new_run = Run.open(
        root, "webshop", method, 0, {"lr": 0.1, **config}, {"commit": "a", "hashes": {"catalogue": catalogue}}
    )
    new_run.stage("bc", {}, lambda at: (at / "adapter.bin").write_text("weights"))
    rows = [f"t{i},{bool(won)},{float(won)},3,done,False" for i, won in enumerate(wins)]

    def test(at: Path) -> None:
        (at / "episodes.csv").write_text("\n".join(["task,won,reward,steps,outcome,error", *rows]) + "\n")

    new_run.stage("eval", {"method": method, "catalogue": catalogue, "rows": rows}, test)
    new_run.finish({"method": method, "win_rate": sum(wins) / len(wins)})
    return new_run


def age(path: Path) -> None:
    past = time.time() - 7200
    os.utime(path, (past, past), follow_symlinks=False)


def test_part_of_an_id_finds_the_run(tmp_path: Path) -> None:
    a, b = run(tmp_path, "rft-n1", [0, 1]), run(tmp_path, "rft-n10", [0, 1])
    assert find(tmp_path, a.run_id) == a.folder and find(tmp_path, "n10") == b.folder
    with pytest.raises(RunError, match=r"2 runs in .* contain 'rft': .*rft-n10__.*rft-n1__"):
        find(tmp_path, "rft")
    with pytest.raises(RunError, match="no runs in .* contain 'eto'"):
        find(tmp_path, "eto")


def test_what_differs_and_the_paired_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path, "eef", [1, 1, 1, 0] * 10, m=5), run(tmp_path, "rft", [1, 0, 0, 0] * 10, n=2)
    changes = differences(a.folder, b.folder)
    assert changes["config"] == {"config.m": (5, None), "method": ("eef", "rft"), "config.n": (None, 2)}
    assert changes["stamp"] == {} and changes["result"]["win_rate"] == (0.75, 0.25)
    wins = win_difference(a.folder, b.folder)
    assert wins.difference == pytest.approx(0.5) and 0.3 < wins.low < 0.5 < wins.high < 0.7 and wins.pairs == 40
    assert main(["runs", "compare", "eef", "rft", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "stamp: the same" in printed and "config.m" in printed and "win rate, a minus b: +50.0 points" in printed


def test_runs_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path, "eef", [1, 0], "c1"), run(tmp_path, "rft", [1, 0], "c2")
    assert main(["runs", "compare", "eef", "rft", "--root", str(tmp_path)]) == 0
    assert "hashes differ" in capsys.readouterr().out
    same = run(tmp_path, "nat", [1, 0], "c1")
    assert main(["runs", "compare", a.run_id, same.run_id, "--root", str(tmp_path)]) == 0
    assert "+0.0 points (no interval, since all differences are equal, 2 subtasks" in capsys.readouterr().out
    c = run(tmp_path, "eto", [1, 0, 0])
    with pytest.raises(RunError, match="cannot be paired: .*not run on the same"):
        win_difference(a.folder, c.folder)
    (b.folder / "eval").unlink()
    with pytest.raises(RunError, match="it was not tested"):
        win_difference(a.folder, b.folder)


def test_show_names_result_configuration_stamp_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = run(tmp_path, "eef", [1, 0])
    assert main(["runs", "show", "eef", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for part in (finished.run_id, "win_rate", "config.lr", "hashes.catalogue", "stages.bc", "eval/", "episodes.csv"):
        assert part in printed, part
    half = Run.open(tmp_path, "webshop", "half", 0, {}, {})
    assert main(["runs", "show", half.run_id, "--root", str(tmp_path)]) == 0
    assert "result: none yet" in capsys.readouterr().out


def test_prune_keeps_what_runs_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path, "eef", [1, 0]), run(tmp_path, "rft", [0, 0])
    half = Run.open(tmp_path, "webshop", "half", 0, {}, {})
    half.stage("states", {}, lambda at: (at / "x").write_text("x"))
    stages = tmp_path / "stages"
    for name in ("old-00", "new-00"):
        (stages / name).mkdir()
    age(stages / "old-00")
    (stages / ".dead-00.99999999").mkdir()
    (stages / ".busy-00.1").mkdir()
    with FileLock(stages / ".busy-00.lock"):
        unused = {path.name for path in prunable(tmp_path)}
        assert unused == {"old-00", ".dead-00.99999999"}
        assert half.folder not in prunable(tmp_path, unfinished=True), "it may be in progress"
        for path in (*half.folder.iterdir(), half.folder):
            age(path)
        chosen = {path.name for path in prunable(tmp_path, [a.folder], unfinished=True)}
    alone = {half.run_id, half.stages["states"].name, a.run_id, a.stages["eval"].name}
    assert chosen == unused | alone and a.stages["bc"].name not in chosen
    assert main(["runs", "prune", "eef", "--root", str(tmp_path)]) == 0
    assert "would be removed (--yes removes them)" in capsys.readouterr().out and a.folder.is_dir()
    with FileLock(tmp_path / ".sweep.lock"), pytest.raises(RunError, match="a sweep is running"):
        prune(tmp_path, [a.folder])
    assert main(["runs", "prune", "eef", "--yes", "--root", str(tmp_path)]) == 0
    assert not a.folder.exists() and not a.stages["eval"].exists() and half.folder.exists()
    assert (b.folder / "bc" / "adapter.bin").read_text() == "weights" and (b.folder / "eval" / "episodes.csv").is_file()


def test_prune_leaves_checkpoints_from_which_killed_stages_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = {"new": 0, "killed": 2, "older": 8 * 24}
    for name, since in hours.items():
        (tmp_path / "stages" / f".{name}-00.work" / "checkpoint-3").mkdir(parents=True)
        past = time.time() - 3600 * since
        for path in (tmp_path / "stages" / f".{name}-00.work").iterdir():
            os.utime(path, (past, past))
            os.utime(path.parent, (past, past))
    assert [path.name for path in prunable(tmp_path)] == [".older-00.work"]
    both = [".killed-00.work", ".older-00.work"]
    assert [path.name for path in prunable(tmp_path, unfinished=True)] == both
    with FileLock(tmp_path / "stages" / ".killed-00.lock"):
        assert [path.name for path in prunable(tmp_path, unfinished=True)] == [".older-00.work"]
    assert main(["runs", "prune", "--yes", "--root", str(tmp_path)]) == 0
    assert "checkpoints of 2 stages, 0 B, stay for a week, to resume from" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("stages/*.work")) == [".killed-00.work", ".new-00.work"]


def test_prune_keeps_notebooks_of_runs_sweeps_and_figures(tmp_path: Path) -> None:
    a = run(tmp_path, "eef", [1, 0])
    books = tmp_path / "notebooks"
    books.mkdir()
    for name in ("demo__a__00000001", "demo__b__00000002", "demo__c__00000003", "demo__figures", "demo__d__00000004"):
        (books / f"{name}.ipynb").write_text("{}")
        (books / f"{name}.log").write_text("")
        if not name.endswith("4"):
            age(books / f"{name}.ipynb")
    (a.folder / "notebook.ipynb").symlink_to(Path("..") / "notebooks" / "demo__a__00000001.ipynb")
    (tmp_path / "sweeps" / "demo").mkdir(parents=True)
    (tmp_path / "sweeps" / "demo" / "00000002ffffffff.json").write_text("{}")
    assert {path.name for path in prunable(tmp_path)} == {"demo__c__00000003.ipynb", "demo__c__00000003.log"}
