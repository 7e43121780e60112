"""Run folders: stages are made once and completely, results are reproducible, and invalid files are named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from eef.files import RunError, digest, read_json, write_json, write_text
from eef.tracking import live
from eef.tracking import stamp as stamps
from eef.tracking.runs import Run, load_runs, log_metrics, stamp

STAMP = {"commit": "abc", "hashes": {"catalogue": "c1", "chat": "t1"}}


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("EEF_SWEEP", "EEF_RUN_IDS", "EEF_ROOT"):
        monkeypatch.delenv(name, raising=False)


def open_run(root: Path, method: str = "rft-n4", **config: Any) -> Run:
    return Run.open(root, "webshop", method, 0, {"lr": 0.1, **config}, STAMP)


def make(folder: Path) -> None:
    (folder / "adapter.bin").write_text("weights")
    log_metrics(folder, [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}])
    log_metrics(folder, {"step": 2, "loss": np.float32(0.25)})


def test_run_id_is_deterministic_and_covers_config_and_hashes(tmp_path: Path) -> None:
    first = open_run(tmp_path)
    assert first.run_id.startswith("webshop__rft-n4__s0__") and len(first.run_id.split("__")[-1]) == 8
    assert open_run(tmp_path).run_id == first.run_id
    assert open_run(tmp_path, lr=0.2).run_id != first.run_id
    other = {"commit": "abc", "hashes": {"catalogue": "c2", "chat": "t1"}}
    assert Run.open(tmp_path, "webshop", "rft-n4", 0, {"lr": 0.1}, other).run_id != first.run_id
    newer = {**STAMP, "commit": "def", "versions": {"torch": "9"}}
    assert Run.open(tmp_path, "webshop", "rft-n4", 0, {"lr": 0.1}, newer).run_id == first.run_id


def test_equal_content_has_one_hash() -> None:
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [np.int64(1), 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    with pytest.raises(TypeError, match="cannot be JSON"):
        digest({"a": object()})


def test_a_broken_character_has_a_hash_and_a_file(tmp_path: Path) -> None:
    """Half of a surrogate pair, as truncated texts of others contain it."""
    assert digest("a \ud83d") not in (digest("a \ud83e"), digest("a ?"))
    assert digest("é \U0001f600") == hashlib.sha256('"é \U0001f600"'.encode()).hexdigest()[:16], "other keys stay"
    value = {"page": 'a \ud83d "é" \\'}
    assert read_json(write_json(tmp_path / "a.json", value)) == value
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert write_text(tmp_path / "page.html", "a \ud83d", errors="replace").read_text() == "a ?"


def test_stage_is_made_once_and_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        make(folder)

    one, two = open_run(tmp_path), open_run(tmp_path, "eef-m5")
    at = one.stage("bc", {"seed": 0}, counted)
    assert two.stage("bc", {"seed": 0}, counted) == at and len(calls) == 1
    assert one.stage("bc", {"seed": 1}, counted) != at and len(calls) == 2
    assert at.parent == tmp_path / "stages" and (at / "adapter.bin").read_text() == "weights"
    about = json.loads((at / "stage.json").read_text())
    assert about["key"] == {"seed": 0} and about["seconds"] >= 0 and "torch" in about["versions"]
    link = two.folder / "bc"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link)) and link.resolve() == at
    assert "Reusing behaviour cloning from an earlier run." in capsys.readouterr().out


def test_failed_make_leaves_nothing(tmp_path: Path) -> None:
    run = open_run(tmp_path)

    def bad(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyError("boom")

    with pytest.raises(KeyError):
        run.stage("bc", {}, bad)
    assert [path for path in (tmp_path / "stages").iterdir() if path.suffix != ".lock"] == []
    assert (run.stage("bc", {}, make) / "stage.json").is_file()


@pytest.mark.parametrize("name", ["", "a/b", "../up", "result.json"])
def test_stage_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="stage name"):
        open_run(tmp_path).stage(name, {}, make)


def test_a_folder_without_stage_json_is_not_a_stage(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    at = run.stage("bc", {}, make)
    (at / "stage.json").unlink()
    (at / "adapter.bin").write_text("torn")
    assert (run.stage("bc", {}, make) / "adapter.bin").read_text() == "weights"


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from eef.tracking.runs import Run, log_metrics
    root, pause, commit = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    stamp = {"commit": commit, "hashes": {"catalogue": "c1", "chat": "t1"}}
    run = Run.open(root, "webshop", "rft-n4", 0, {"lr": 0.1}, stamp)
    def make(folder):
        with open(root / "calls", "a") as out:
            out.write("x")
        log_metrics(folder, {"step": 0})
        (folder / "half").write_text("half")
        time.sleep(pause)
        (folder / "half").write_text("whole")
    run.stage("bc", {"code": commit}, make)
    run.finish({"win_rate": 0.5 if commit == "abc" else 0.75})
    """
)


def start(root: Path, pause: float, commit: str = "abc") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(root), str(pause), commit]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_half(root: Path) -> None:
    limit = time.monotonic() + 60
    while not list(root.glob("stages/.bc-*/half")):
        assert time.monotonic() < limit, "the stage was not started"
        time.sleep(0.1)


def test_links_of_stages_that_a_run_no_longer_has_are_removed(tmp_path: Path) -> None:
    for stages in (("bc", "sft-0", "dpo-0"), ("bc", "sft-0")):  # the method was edited: the run keeps its folder
        run = Run.open(tmp_path, "webshop", "mine", 0, {}, {})
        for name in stages:
            run.stage(name, {}, lambda at: (at / "x").write_text("x"))
        run.finish({"win_rate": 0.5})
    assert {path.name for path in run.folder.iterdir() if path.is_symlink()} == {"bc", "sft-0"}


def test_a_finished_run_is_unfinished_while_a_stage_is_made_again(tmp_path: Path) -> None:
    assert start(tmp_path, 0).wait(60) == 0
    (folder,) = tmp_path.glob("webshop*")
    old = (folder / "result.json").read_bytes()
    second = start(tmp_path, 60, commit="def")
    try:
        wait_for_half(tmp_path)
    finally:
        second.kill()
        second.wait()
    frame = load_runs(tmp_path)
    assert frame.empty and frame.attrs["unfinished"] == [folder.name]
    assert (folder / "result.before.json").read_bytes() == old
    assert json.loads((folder / "stamp.json").read_text())["commit"] == "def"
    assert start(tmp_path, 0, commit="def").wait(60) == 0
    assert load_runs(tmp_path)["win_rate"].tolist() == [0.75] and not (folder / "result.before.json").exists()


def test_a_finished_run_is_unfinished_when_it_takes_another_stage_that_exists(tmp_path: Path) -> None:
    run, other = open_run(tmp_path), open_run(tmp_path, "eef-m5")
    run.stage("bc", {"code": 1}, make)
    run.finish({"win_rate": 0.5})
    other.stage("bc", {"code": 2}, make)
    again = open_run(tmp_path)
    again.stage("bc", {"code": 1}, make)
    assert again.done
    again.stage("bc", {"code": 2}, make)
    assert not again.done and run.run_id in load_runs(tmp_path).attrs["unfinished"]
    assert json.loads((again.folder / "result.before.json").read_text()) == {"win_rate": 0.5}


def test_a_result_keeps_its_stamp_until_there_is_another(tmp_path: Path) -> None:
    def opened(commit: str) -> Run:
        return Run.open(tmp_path, "webshop", "rft-n4", 0, {"lr": 0.1}, {**STAMP, "commit": commit})

    def commit() -> str:
        return json.loads((first.folder / "stamp.json").read_text())["commit"]

    first = opened("abc")
    first.stage("bc", {}, make)
    first.finish({"win_rate": 0.5})
    second = opened("def")
    second.stage("bc", {}, make)
    assert second.done and commit() == "abc"
    second.finish({"win_rate": 0.5})
    assert second.done and commit() == "def" and not (second.folder / "result.before.json").exists()


def test_killed_in_the_middle_then_the_same_result(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert start(whole, 0).wait(30) == 0
    first = start(cut, 60)
    for _ in range(300):
        if list(cut.glob("stages/.bc-*/half")):
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not list(cut.glob("stages/bc-*")) and list(cut.glob("stages/.bc-*/half"))
    assert load_runs(cut).attrs["unfinished"] == [path.name for path in cut.glob("webshop*")]
    assert start(cut, 0).wait(30) == 0
    for name in ("result.json", "metrics.jsonl", "bc/half", "bc/metrics.jsonl"):
        (a,), (b,) = whole.glob(f"webshop*/{name}"), cut.glob(f"webshop*/{name}")
        assert a.read_bytes() == b.read_bytes()
    assert (cut / "calls").read_text() == "xx" and not list(cut.glob("stages/.bc-*/half"))


def test_stale_folders_of_other_stages_are_removed_but_not_those_in_progress(tmp_path: Path) -> None:
    dead = tmp_path / "stages" / ".old-0123456789abcdef.99999999"
    dead.mkdir(parents=True)
    working = start(tmp_path, 60)
    try:
        while not list(tmp_path.glob("stages/.bc-*/half")):
            time.sleep(0.1)
        open_run(tmp_path, "other")
        assert not dead.exists() and list(tmp_path.glob("stages/.bc-*/half"))
    finally:
        working.kill()
        working.wait()


def test_two_processes_make_one_stage(tmp_path: Path) -> None:
    both = [start(tmp_path, 1.5), start(tmp_path, 1.5)]
    output = "".join(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"
    assert output.count("Starting behaviour cloning.") == 1
    assert "Waiting for behaviour cloning: another process is" in output or "Reusing behaviour cloning" in output


def test_another_process_may_make_the_run_unfinished_while_it_finishes(tmp_path: Path, monkeypatch) -> None:
    """Both computed the run: the second one renames the first one's result before the first has written its times."""
    first, second = open_run(tmp_path), open_run(tmp_path)
    for run in (first, second):
        run.stage("bc", {}, make)
    complete = Run._complete

    def late(run: Run, *arguments: Any) -> dict[str, Any]:
        if run is first:
            second._reopen()
            assert not first.done
        return complete(run, *arguments)

    monkeypatch.setattr(Run, "_complete", late)
    first.finish({"win_rate": 0.5})
    assert json.loads(second.finish({"win_rate": 0.5}).read_text()) == {"win_rate": 0.5}
    monkeypatch.setattr(Run, "done", True)  # as it was when the second process looked
    (first.folder / "result.json").unlink()
    first._reopen()


def test_finish_leaves_times_out_and_repeats_no_line(tmp_path: Path) -> None:
    result = {"method": "rft", "win_rate": np.float64(0.5), "gap": float("nan"), "train_seconds": 3.2, "time": 1}
    run = open_run(tmp_path)
    assert not run.done
    run.stage("bc", {}, make)
    path = run.finish(result)
    content = path.read_bytes()
    assert json.loads(content) == {"method": "rft", "win_rate": 0.5, "gap": None} and run.done
    timing = json.loads((run.folder / "timing.json").read_text())
    assert timing["train_seconds"] == 3.2 and timing["seconds"] == run.seconds() and "bc" in timing["stages"]
    again = open_run(tmp_path)
    again.stage("bc", {}, make)
    again.finish({**result, "train_seconds": 9})
    assert path.read_bytes() == content
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == again.metrics and [row["step"] for row in rows] == [0, 1, 2] and rows[0]["stage"] == "bc"


def test_load_runs_names_the_unfinished_and_limits(tmp_path: Path) -> None:
    assert load_runs(tmp_path).empty and load_runs(tmp_path / "nowhere").empty
    done, half = open_run(tmp_path), open_run(tmp_path, "eef-m5")
    done.finish({"method": "rft", "n": 4, "win_rate": 0.5})
    frame = load_runs(tmp_path)
    assert frame["run_id"].tolist() == [done.run_id] and frame.attrs["unfinished"] == [half.run_id]
    row = frame.iloc[0]
    assert (row["method"], row["label"], row["seed"], row["env"]) == ("rft", "rft-n4", 0, "webshop")
    assert row["hashes"] == STAMP["hashes"] and row["config"] == {"lr": 0.1}
    assert load_runs(tmp_path, ["gone"]).attrs["unfinished"] == ["gone"]


@pytest.mark.parametrize("text", ['{"win_rate": 0.', "", "[1]"])
def test_an_invalid_result_is_named(tmp_path: Path, text: str) -> None:
    run = open_run(tmp_path)
    run.finish({"win_rate": 0.5})
    (run.folder / "result.json").write_text(text)
    with pytest.raises(RunError, match=f"{run.run_id}/result.json"):
        load_runs(tmp_path)


def test_invalid_metrics_are_named(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    at = run.stage("bc", {}, make)
    with open(at / "metrics.jsonl", "a") as out:
        out.write('{"step": ')
    with pytest.raises(RunError, match=r"metrics.jsonl, line 4"):
        run.finish({})


def test_unwritable_root_and_full_disk_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write at .*--root"):
        open_run(tmp_path / "file" / "runs")

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model"))

    with pytest.raises(RunError, match=r"the disk is full at .*model"):
        open_run(tmp_path).stage("bc", {}, full)

    for error in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed"),
    ):

        def weights(folder: Path, error: Exception = error) -> None:
            raise error

        with pytest.raises(RunError, match=r"the disk is full at .*free some space"):
            open_run(tmp_path).stage("bc", {}, weights)

    def broken(folder: Path) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        open_run(tmp_path).stage("bc", {}, broken)

    def missing(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "data.json")

    with pytest.raises(PermissionError):  # an error of make, not of the run folder
        open_run(tmp_path).stage("bc", {}, missing)


def test_stamp_records_where_a_run_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    full = stamp({"catalogue": "c1", "goals": "g1"}, "t1")
    assert full["hashes"] == {"catalogue": "c1", "goals": "g1", "chat": "t1"}
    assert {"eef", "torch", "transformers", "peft", "python"} <= set(full["versions"])
    assert full["cpu"] and full["cpus"] >= 1 and full["memory_gb"] > 0 and isinstance(full["gpus"], list)
    json.dumps(full)
    monkeypatch.setattr(stamps, "_git", lambda *arguments: None)
    bare = stamp({}, "t1")
    assert bare["commit"] == "unknown" and bare["dirty"] is None


def test_environment_names_root_sweep_and_run_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EEF_ROOT", str(tmp_path / "here"))
    monkeypatch.setenv("EEF_SWEEP", "demo")
    monkeypatch.setenv("EEF_RUN_IDS", str(tmp_path / "ids"))
    run = Run.open(None, "webshop", "rft-n4", 0, {}, STAMP)
    assert run.folder.parent == tmp_path / "here" and run.group == "demo"
    assert (tmp_path / "ids").read_text().split() == [run.run_id]


def test_wandb_offline_folder_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    run = open_run(tmp_path)
    run.stage("bc", {}, make)
    run.finish({"win_rate": 0.5})
    (record,) = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    assert run.run_id.encode() in record.read_bytes() and b"train/loss" in record.read_bytes()
    state = json.loads((run.folder / "timing.json").read_text())["wandb"]
    assert state["used"] == "offline" and state["error"] is None
    run.finish({"win_rate": 0.5})
    assert list((run.folder / "wandb").glob("offline-run-*/*.wandb")) == [record]
    assert "warning" not in capsys.readouterr().out


def test_wandb_problems_are_one_line_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = "import sys; print('some log'); print('no space', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(live, "COMPANION", [sys.executable, "-c", broken])
    monkeypatch.setenv("WANDB_MODE", "online")
    run = open_run(tmp_path)
    run.finish({"win_rate": 0.5})
    assert run.done
    output = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: W&B")]
    assert len(output) == 1 and "ended with code 3: no space" in output[0]
    state = json.loads((run.folder / "timing.json").read_text())["wandb"]
    assert state["error"] in output[0] and (state["mode"], state["used"]) == ("online", "disabled")
    monkeypatch.setenv("WANDB_MODE", "onlin")
    run.finish({"win_rate": 0.5})
    assert "'onlin' is unknown" in capsys.readouterr().out
