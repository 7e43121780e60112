"""Runs on W&B: killed, failed, restarted and finished ones; without a network or HOME; with a hanging companion."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from test_mirror import KEY, played, read_back
from test_mirror import offline as offline

from eef import methods
from eef.analysis.browser import write_views
from eef.experiment import experiment
from eef.models.pretrain import make_model, save
from eef.settings import Settings
from eef.tracking import live, mirror
from eef.tracking.companion import Companion
from eef.tracking.live import Live
from eef.tracking.runs import Run, log_metrics, read_json, write_json
from eef.trajectory import save as save_trajectories

SCRIPT = """
import os, sys, time
from eef.tracking.runs import Run, log_metrics
root, wandb, steps, delay, crash = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
with Run.open(root, "webshop", "eef-m5", 3, {"method": "eef"}, {"hashes": {}}, group="demo", wandb=wandb) as run:
    def behaviour_cloning(at):
        log_metrics(at, [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}])

    def sft(at):
        rows = [{"step": step, "epoch": step / steps, "loss": 1 / (1 + step)} for step in range(steps)]
        for row in rows:
            run.progress("sft-0", {**row, "learning_rate": 0.1})
            print("step", row["step"], flush=True)
            time.sleep(delay)
            if row["step"] == crash:
                raise RuntimeError("out of memory")
        log_metrics(at, rows)

    if os.environ.get("FORK"):
        if (child := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        print("child", child, flush=True)
    run.stage("bc", {}, behaviour_cloning)
    run.stage("sft-0", {}, sft)
    run.finish({"method": "eef", "win_rate": 0.5, "episodes": 90})
"""


def command(root: Path, mode: str = "offline", steps: int = 40, delay: float = 0.0, crash: int = -1) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(SCRIPT), str(root), mode, str(steps), str(delay), str(crash)]


def folder_of(root: Path) -> Path:
    (folder,) = root.glob("webshop__eef-m5__*")
    return folder


def history(folder: Path, key: str, stage: str = "") -> list[Any]:
    """The values of ``key`` in the only offline folder of a run, in the order of logging; of one stage if given."""
    items = [record.history.item for record in read_back(folder) if record.HasField("history")]
    rows = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in items]
    return [row[key] for row in rows if key in row and (not stage or row[f"{key.split('/')[0]}/stage"] == stage)]


def exit_codes(folder: Path) -> list[int]:
    return [record.exit.exit_code for record in read_back(folder) if record.HasField("exit")]


def summary(folder: Path) -> dict[str, Any]:
    updates = [update for record in read_back(folder) if record.HasField("summary") for update in record.summary.update]
    return {update.key: json.loads(update.value_json) for update in updates if update.key}


@contextmanager
def training(root: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a run whose SFT reports 20 steps per second, and wait until W&B is open and has received some steps."""
    seen: list[int] = []
    with subprocess.Popen(command(root, steps=2000, delay=0.05), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        opened, limit = None, time.monotonic() + 60
        try:
            for line in running.stdout:
                assert time.monotonic() < limit, "W&B was not opened"
                if line.startswith("child "):
                    (root / "child").write_text(line.split()[1])
                if line.startswith("step "):
                    seen.append(int(line.split()[1]))
                    if opened is None and list(root.glob("*/wandb/offline-run-*/*.wandb")):
                        opened = len(seen)
                    if opened is not None and len(seen) > opened + 20:
                        break
            yield running, seen
        finally:
            running.kill()


def wait_for_companion(folder: Path) -> None:
    with FileLock(folder / "wandb" / ".lock", timeout=30):
        pass


def test_a_killed_run_keeps_its_curve_and_a_restart_has_one_history(tmp_path: Path, offline: None) -> None:
    with training(tmp_path) as (running, seen):
        assert mirror.unsynced(tmp_path) == [], "a run in progress is not synced"
        running.kill()
    folder = folder_of(tmp_path)
    wait_for_companion(folder)
    curve = history(folder, "train/step", "sft-0")
    assert curve == list(range(len(curve))) and len(seen) <= len(curve) <= len(seen) + 2
    assert history(folder, "train/loss", "sft-0") == [1 / (1 + step) for step in curve]
    assert set(history(folder, "train/learning_rate", "sft-0")) == {0.1} and history(folder, "train/loss", "bc") == [
        9.0,
        8.0,
    ]
    assert exit_codes(folder) == [1] and mirror.unsynced(tmp_path) == list(folder.glob("wandb/offline-run-*"))
    assert (summary(folder)["stage"], summary(folder)["error"]) == ("sft-0", "the run's process ended without a result")

    subprocess.run(command(tmp_path), check=True, timeout=120)
    assert history(folder, "train/step", "sft-0") == list(range(40)) and history(folder, "train/step", "bc") == [1, 2]
    assert exit_codes(folder) == [0] and history(folder, "test/win_rate") == [0.5]
    assert summary(folder)["stage"] == "finished"
    state = read_json(folder / "timing.json")["wandb"]
    assert (state["mode"], state["used"], state["error"]) == ("offline", "offline", None)


TRAINING = """
    import sys
    from eef.envs.webshop import WebShop
    from eef.experiment import experiment
    from eef.settings import Settings
    root, base = sys.argv[1:]
    catalogue = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}
    shop = WebShop(catalogue=catalogue, max_steps=15)
    settings = Settings(model=base, epochs=100, batch_size=2, lora_r=4, checkpoint_minutes=0.0)
    experiment("sft_pos", shop, settings, 0, test_tasks=4, root=root, wandb="offline")
"""


@pytest.mark.slow
def test_a_real_training_that_is_killed_and_its_restart(tmp_path: Path, tokenizer: Any, offline: None) -> None:
    torch.manual_seed(0)
    base = str(
        save(
            make_model(tokenizer, 32, 1, 2),
            tokenizer,
            tmp_path / "base",
            {"aliases": "webshop", "constrained_decoding": True},
        )
    )
    root = tmp_path / "runs"
    start = [sys.executable, "-c", textwrap.dedent(TRAINING), str(root), base]
    with subprocess.Popen(start) as running:
        limit, reported = time.monotonic() + 120, 0
        while reported < 10 or not list(root.glob("*/wandb/offline-run-*/*.wandb")):
            assert running.poll() is None and time.monotonic() < limit, "the training was not seen on W&B"
            time.sleep(0.05)
            reported = sum(path.read_text().count("learning_rate") for path in root.glob("*/events.jsonl"))
        running.kill()
    (folder,) = root.glob("webshop__sft_pos__*")
    wait_for_companion(folder)
    curve = history(folder, "train/step", "bc")
    assert len(curve) >= reported - 1 and curve == sorted(set(curve)) and exit_codes(folder) == [1]
    assert (
        all(isinstance(loss, float) for loss in history(folder, "train/loss", "bc"))
        and not (folder / "result.json").exists()
    )

    subprocess.run(start, check=True, timeout=300)
    rows = [json.loads(line) for line in (folder / "bc" / "metrics.jsonl").read_text().splitlines()]
    for name in ("step", "loss", "learning_rate"):
        values = [row[name] for row in rows]  # one complete curve, including the steps before the kill
        assert history(folder, f"train/{name}", "bc") == values
    assert len(rows) > len(curve) and exit_codes(folder) == [0] and summary(folder)["stage"] == "finished"


def test_a_forked_process_that_survives_does_not_keep_the_run_open(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORK", "1")
    with training(tmp_path) as (running, _):
        running.kill()
    try:
        wait_for_companion(folder_of(tmp_path))
        assert exit_codes(folder_of(tmp_path)) == [1]
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_after_the_death_of_all_processes_a_restart_writes_the_whole_history(tmp_path: Path, offline: None) -> None:
    with training(tmp_path) as (running, _):
        companion = read_json(folder_of(tmp_path) / "wandb" / "state.json")["pid"]
        os.killpg(companion, signal.SIGKILL)
        running.kill()
    subprocess.run(command(tmp_path), check=True, timeout=120)
    folder = folder_of(tmp_path)
    assert history(folder, "train/step", "sft-0") == list(range(40)) and history(folder, "train/step", "bc") == [1, 2]
    assert exit_codes(folder) == [0]


def test_an_exception_ends_the_run_as_failed_with_its_message(tmp_path: Path, offline: None) -> None:
    process = subprocess.run(command(tmp_path, crash=25), stderr=subprocess.PIPE, text=True, timeout=120)
    assert process.returncode == 1 and "RuntimeError: out of memory" in process.stderr
    folder = folder_of(tmp_path)
    assert exit_codes(folder) == [1] and summary(folder)["error"] == "RuntimeError: out of memory"
    assert history(folder, "train/step", "sft-0") == list(range(26))


def test_a_second_start_of_a_finished_run_opens_nothing(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(win_rate: float = 0.5) -> Run:
        run = Run.open(tmp_path, "webshop", "eef-m5", 3, {}, {"hashes": {}}, wandb="offline")
        run.stage("bc", {}, lambda at: log_metrics(at, {"step": 1, "loss": 1.0}))
        run.finish({"win_rate": win_rate})
        return run

    folder = start().folder
    sent = read_json(folder / "timing.json")["wandb"]
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    before = record.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(live, "COMPANION", [sys.executable, "-c", "raise SystemExit('started again')"])
        start()
    assert read_json(folder / "timing.json")["wandb"] == sent and sent["error"] is None
    assert list(folder.glob("wandb/offline-run-*/*.wandb")) == [record] and record.stat().st_mtime_ns == before
    run = start(win_rate=0.75)
    assert history(folder, "test/win_rate") == [0.75] and history(folder, "train/step", "bc") == [1]
    run.finish({"win_rate": 0.25})
    assert history(folder, "test/win_rate") == [0.25] and history(folder, "train/step", "bc") == [1]


def test_a_finished_run_with_a_new_stage_is_sent_whole_although_a_start_failed(tmp_path: Path, offline: None) -> None:
    def start(commit: str, loss: float | None) -> Path:
        def bc(at: Path) -> None:
            if loss is None:
                raise RuntimeError("out of memory")
            log_metrics(at, {"step": 1, "loss": loss})

        stamp = {"commit": commit, "hashes": {}}
        with Run.open(tmp_path, "webshop", "eef-m5", 3, {}, stamp, wandb="offline") as run:
            run.stage("bc", {"commit": commit}, bc)
            run.finish({"win_rate": 0.5})
        return run.folder

    folder = start("a", 1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        start("b", None)
    assert exit_codes(folder) == [1] and history(folder, "test/win_rate") == []
    assert not (folder / "result.json").exists() and (folder / "timing.json").is_file()
    start("b", 2.0)
    assert history(folder, "train/loss", "bc") == [2.0] and history(folder, "test/win_rate") == [0.5]
    assert exit_codes(folder) == [0]


@pytest.mark.parametrize(
    ("value", "mode"),
    [("Offline", "offline"), ("DRYRUN", "offline"), ("run", "online"), ("ONLINE", "online"), ("Disabled", "disabled")],
)
def test_modes_in_any_case_and_by_their_older_names(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, value: str, mode: str
) -> None:
    from_argument = Live(tmp_path, value)
    monkeypatch.setenv("WANDB_MODE", value)
    for reports in (from_argument, Live(tmp_path, "offline")):
        assert (reports.mode, reports.wanted, reports.errors) == (mode, mode, [])


UNKNOWN = "W&B mode 'onlin' is unknown: use one of offline, online, disabled"


@pytest.mark.parametrize(
    ("variable", "value", "used", "reason"),
    [
        ("WANDB_MODE", "Offline", "offline", None),
        ("WANDB_MODE", "onlin", "offline", UNKNOWN),
        ("WANDB_PROJECT", "a/b", "disabled", "Invalid project name 'a/b'"),
        ("WANDB_CONSOLE", "loud", "disabled", "invalid W&B settings: console: Input should be "),
    ],
)
def test_the_mode_that_was_used_and_the_reason(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    variable: str, value: str, used: str, reason: str | None,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    run = Run.open(tmp_path, "webshop", "eef-m5", 3, {}, {"hashes": {}}, wandb="offline")
    run.finish({"win_rate": 0.5})
    sent = read_json(run.folder / "timing.json")["wandb"]
    opened = list(run.folder.glob("wandb/offline-run-*/*.wandb"))
    assert sent["used"] == used and len(opened) == (used == "offline")
    if reason is None:
        assert sent["error"] is None and "warning" not in capsys.readouterr().out
    else:
        assert reason in sent["error"] and sent["error"] in capsys.readouterr().out


@pytest.mark.parametrize(("env", "reason"), [({}, "not logged in to W&B"), ({"WANDB_API_KEY": KEY}, "does not answer")])
def test_online_without_an_account_or_network_is_offline_with_the_reason(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], reason: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    process = subprocess.run(command(tmp_path, "online"), capture_output=True, text=True, timeout=120, check=True)
    assert time.monotonic() - started < 30
    (warning,) = [line for line in process.stdout.splitlines() if line.startswith("warning")]
    assert "W&B online -> offline" in warning and reason in warning
    folder = folder_of(tmp_path)
    assert history(folder, "train/step", "sft-0") == list(range(40)) and exit_codes(folder) == [0]
    state = read_json(folder / "timing.json")["wandb"]
    assert state["used"] == "offline" and reason in state["error"]


@pytest.mark.parametrize("home", ["/proc/nonexistent", "a file"])
def test_runs_work_without_a_writable_home(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    run = Run.open(tmp_path / "runs", "webshop", "eef-m5", 3, {}, {"hashes": {}}, wandb="offline")
    run.stage("test", {}, lambda at: save_trajectories([played("t1", True)], at / "trajectories.jsonl"))
    write_views(run.folder)
    run.finish({"win_rate": 1.0})
    assert read_json(run.folder / "timing.json")["wandb"]["error"] is None
    assert history(run.folder, "trajectories/test/_type") == ["table-file"]


def test_folders_are_moved_only_where_home_cannot_be_written(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert live.writable_folders(tmp_path) == {}
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    monkeypatch.setenv("WANDB_CACHE_DIR", "/mine")
    assert live.writable_folders(tmp_path) == {
        "WANDB_CONFIG_DIR": str(tmp_path / ".wandb" / "config"),
        "WANDB_DATA_DIR": str(tmp_path / ".wandb" / "data"),
    }


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    """Use a companion that does nothing, to test the events."""
    monkeypatch.setattr(live, "COMPANION", [sys.executable, "-c", "pass"])


def test_a_companion_that_hangs_does_not_delay_the_run(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "COMPANION", [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(live, "FINISH_SECONDS", 0.5)
    started = time.monotonic()
    run = Run.open(tmp_path, "webshop", "eef-m5", 3, {}, {"hashes": {}}, wandb="online")
    for step in range(5000):
        run.progress("bc", {"step": step, "loss": 1.0})
    assert run.live is not None and (companion := run.live.companion) is not None
    run.finish({"win_rate": 0.5})
    assert time.monotonic() - started < 5 and companion.poll() == -signal.SIGKILL
    assert "W&B did not finish within 0 s and was stopped" in capsys.readouterr().out


def test_steps_are_reported_once_and_rollouts_once_per_second(
    tmp_path: Path, ignored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    reports = Live(tmp_path, "offline")
    for step in (1, 2, 2, 1, 3):
        reports.progress("bc", {"step": step, "loss": 1.0})
    reports.stage("s0", "s0-1", "started")
    for number in range(1, 8):
        now += 0.4
        reports.progress("s0", {"episodes": number, "wins": 0, "tokens_per_second": 250.0})
    reports.stage("s0", "s0-1", "made")
    rows = [event["row"] for event in events(tmp_path) if event["event"] == "progress"]
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3]
    rollout = [row for row in rows if "episodes" in row]
    assert [row["episodes"] for row in rollout] == [1, 4, 7]
    assert {row["tokens_per_second"] for row in rollout} == {250.0}


def test_a_report_never_raises(tmp_path: Path, ignored: None) -> None:
    reports = Live(tmp_path, "offline")
    reports.progress("bc", {"step": "one"})
    reports.progress("bc", {"step": 1, "loss": object()})
    (tmp_path / "gone").mkdir()
    lost = Live(tmp_path / "gone", "offline")
    (tmp_path / "gone").rmdir()
    lost.start()
    lost.stage("bc", "bc-1", "started")
    used, error = lost.finish("content")
    assert used == "disabled" and error is not None and "FileNotFoundError" in error
    assert len(reports.errors) == 2 and all("could be sent to W&B" in error for error in reports.errors)


def test_a_module_of_the_current_folder_is_not_taken_for_wandb(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("raise SystemExit('this is not wandb')")
    monkeypatch.chdir(tmp_path)
    run = Run.open(tmp_path / "runs", "webshop", "eef-m5", 3, {}, {"hashes": {}})
    run.finish({"win_rate": 0.5}, wandb="offline")
    assert read_json(run.folder / "timing.json")["wandb"]["error"] is None
    assert history(run.folder, "test/win_rate") == [0.5]


def test_a_disabled_run_starts_no_companion(tmp_path: Path, ignored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = Run.open(tmp_path, "webshop", "eef-m5", 3, {}, {"hashes": {}}, wandb="online")
    run.progress("bc", {"step": 1})
    run.stage("bc", {}, lambda at: None)
    run.finish({})
    assert run.live is not None and run.live.companion is None
    assert not (run.folder / "events.jsonl").exists() and not (run.folder / "wandb").exists()
    assert read_json(run.folder / "timing.json")["wandb"]["used"] == "disabled"


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_an_experiment_reports_what_ended_it(
    tmp_path: Path, shop: Any, ignored: None, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(lab: Any) -> Path:
        raise error

    monkeypatch.setitem(methods.METHODS, "sft_pos", broken)
    with pytest.raises(type(error)):
        experiment("sft_pos", shop, Settings(), 0, root=tmp_path)
    (folder,) = tmp_path.glob("webshop__*")
    assert events(folder)[-1] == {"event": "failed", "message": f"{type(error).__name__}: {error}"}


def test_an_experiment_reports_stages_training_and_rollouts(
    tmp_path: Path, shop: Any, tokenizer: Any, ignored: None
) -> None:
    torch.manual_seed(0)
    base = str(
        save(
            make_model(tokenizer, 32, 1, 2),
            tokenizer,
            tmp_path / "base",
            {"aliases": "webshop", "constrained_decoding": True},
        )
    )
    settings = Settings(model=base, epochs=3, lora_r=4)
    row = experiment("sft_pos", shop, settings, 0, train_tasks=20, test_tasks=4, root=tmp_path)
    sent = events(tmp_path / row["run_id"])
    stages = [(event["stage"], event["status"]) for event in sent if event["event"] == "stage"]
    assert stages == [(name, status) for name in ("experts", "bc", "test", "eval") for status in ("started", "made")]
    rows = [event["row"] for event in sent if event["event"] == "progress" and event["stage"] == "bc"]
    written = [
        json.loads(line) for line in (tmp_path / row["run_id"] / "bc" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) >= 2 and [(row["step"], row["loss"]) for row in rows] == [
        (row["step"], row["loss"]) for row in written[: len(rows)]
    ]
    rollout = [event["row"]["episodes"] for event in sent if event["event"] == "progress" and event["stage"] == "test"]
    assert rollout[-1] == 4 and sent[-1]["event"] == "finish"


class Server:
    """A small W&B server: it stores the rows and exit codes of each run."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.exits: dict[str, list[int]] = {}
        self.reachable = True
        self.about: dict[str, Any] = {}

    def open(self, folder: Path, run_id: str, mode: str, **about: Any) -> Any:
        if mode == "online" and not self.reachable:
            raise ConnectionError("no answer")
        self.about = about
        name = run_id if mode == "online" else f"{run_id} offline"
        rows, exits = self.rows.setdefault(name, []), self.exits.setdefault(name, [])
        run = SimpleNamespace(tags=(), summary={}, define_metric=lambda *_, **__: None, log=rows.append)
        run.finish = lambda exit_code: exits.append(exit_code)
        return run

    def steps(self, run_id: str) -> list[int]:
        return [row["train/step"] for row in self.rows[run_id] if row.get("train/stage") == "sft"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Table=dict, teardown=lambda: None))  # type: ignore[arg-type]
    monkeypatch.setattr(mirror, "open_run", server.open)
    monkeypatch.setattr(mirror, "account_problem", lambda: None)
    return server


def send(folder: Path, *sent: dict[str, Any], mode: str = "online") -> None:
    """Send the events of one start of a run. A run that ends without ``finish`` counts as killed."""
    companion = Companion.of(folder, mode, 0)
    codes = [companion.handle(event) for event in sent]
    if not codes or codes[-1] is None:
        companion.end("killed")
    companion.save()


def stage(label: str, status: str) -> dict[str, Any]:
    return {"event": "stage", "stage": label.rpartition("-")[0], "label": label, "status": status}


def step(number: int) -> dict[str, Any]:
    return {"event": "progress", "stage": "sft", "row": {"step": number, "loss": 1.0}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    at = tmp_path / "run"
    about = {"run_id": "run", "env": "webshop", "method": "eef", "seed": 0, "tags": [], "group": "", "config": {}}
    write_json(at / "config.json", about)
    write_json(at / "stamp.json", {})
    write_json(at / "result.json", {"method": "eef", "win_rate": 0.5})
    for label in ("bc-1", "sft-1", "sft-2"):
        (tmp_path / "stages" / label).mkdir(parents=True)
        rows = [{"step": number, "loss": 1.0} for number in range(1, 6)]
        log_metrics(tmp_path / "stages" / label, rows if label != "bc-1" else {"episodes": 9, "wins": 4})
    return at


FINISH = {"event": "finish", "content": "c"}


@pytest.mark.parametrize(
    ("mode", "value", "disabled"),
    [("online", None, False), ("online", "true", True), ("offline", None, True), ("offline", "false", False)],
)
def test_system_metrics_are_of_the_run_and_online_unless_requested_otherwise(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, mode: str, value: str | None, disabled: bool
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_X_DISABLE_STATS", raising=False)
    if value is not None:
        monkeypatch.setenv("WANDB_X_DISABLE_STATS", value)
    monkeypatch.setattr(wandb, "init", lambda **options: options["settings"])
    settings = mirror.open_run(tmp_path, "run", mode, pid=123)
    assert (settings.x_disable_stats, settings.x_stats_pid) == (disabled, 123)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_charts_are_shared_by_arms_and_their_axes_grow_over_the_whole_run(
    folder: Path, server: Server, mode: str, killed: bool
) -> None:
    for label, row in (("experts-1", {"episodes": 20, "wins": 5}), ("test-1", {"episodes": 4, "wins": 1})):
        (folder.parent / "stages" / label).mkdir()
        log_metrics(folder.parent / "stages" / label, row)
    shutil.copytree(folder.parent / "stages" / "sft-1", folder.parent / "stages" / "dpo-1")
    written = [stage("experts-1", "made"), stage("dpo-1", "made"), stage("bc-1", "reused")]
    progress = [
        {"event": "progress", "stage": "sft", "row": {**step(2)["row"], "tokens_per_second": 7.0, "seconds_left": 1}}
    ]
    rollout = {"step": 2, "steps": 4, "episodes": 2, "wins": 2, "seconds_left": 1.0}
    progress += [{"event": "progress", "stage": "test", "row": rollout}]
    if killed:
        send(folder, *written, stage("sft-2", "started"), progress[0], mode=mode)
        server.rows.pop("run offline", None)
    send(folder, *written, stage("sft-2", "started"), progress[0], stage("sft-2", "made"), stage("test-1", "started"),
         progress[1], stage("test-1", "made"), FINISH, mode=mode)  # fmt: skip
    (rows,) = server.rows.values()
    training = [row for row in rows if "train/loss" in row]
    assert [row["train/global_step"] for row in training] == [1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert training[5]["train/tokens_per_second"] == 7.0 and "train/seconds_left" not in training[5]
    rollouts = [row for row in rows if "rollout/episodes" in row]
    assert [row["rollout/total_episodes"] for row in rollouts] == [9, 11, 13]
    assert [(row["rollout/stage"], row["rollout/win_rate"]) for row in rollouts] == [
        ("bc", 4 / 9), ("test", 1.0), ("test", 0.25),
    ]  # fmt: skip
    assert [row["experts/win_rate"] for row in rows if "experts/episodes" in row] == [0.25]
    assert not any("rollout/step" in row for row in rows) and sum("test/win_rate" in row for row in rows) == 1


def test_runs_outside_a_sweep_have_a_group_of_what_may_be_compared(folder: Path, server: Server) -> None:
    groups = []
    for hashes in ({"data": "a"}, {"data": "a"}, {"data": "b"}):
        write_json(folder / "stamp.json", {"hashes": hashes})
        send(folder, stage("bc-1", "reused"), mode="offline")
        groups.append(server.about["group"])
    assert groups[0] == groups[1] != groups[2] and groups[0].startswith("webshop-")


def test_online_a_restart_continues_the_same_history(folder: Path, server: Server) -> None:
    send(folder, stage("bc-1", "started"), stage("bc-1", "made"), stage("sft-1", "started"), step(1), step(2))
    assert server.exits == {"run": [1]}
    send(
        folder,
        stage("bc-1", "reused"),
        stage("sft-1", "started"),
        step(1),
        step(2),
        step(3),
        stage("sft-1", "made"),
        FINISH,
    )
    assert server.steps("run") == [1, 2, 3, 4, 5] and server.exits == {"run": [1, 0]}
    assert sum("rollout/episodes" in row for row in server.rows["run"]) == 1
    assert sum("test/win_rate" in row for row in server.rows["run"]) == 1


def test_online_a_finished_run_is_not_opened_again(folder: Path, server: Server) -> None:
    start = (stage("bc-1", "reused"), stage("sft-1", "reused"))
    send(folder, *start, FINISH)
    before = json.dumps([server.rows, server.exits])
    send(folder, *start, FINISH)
    send(folder, *start)
    send(folder, stage("bc-1", "reused"), stage("sft-1", "started"))
    assert json.dumps([server.rows, server.exits]) == before
    assert read_json(folder / "wandb" / "state.json")["used"] == "online"


def test_online_other_content_gets_a_run_of_its_own(folder: Path, server: Server) -> None:
    send(folder, stage("bc-1", "reused"), stage("sft-1", "reused"), FINISH)
    send(folder, stage("bc-1", "reused"), stage("sft-2", "started"), step(1), stage("sft-2", "made"), FINISH)
    assert server.steps("run-2") == server.steps("run") == [1, 2, 3, 4, 5]
    assert sum("rollout/episodes" in row for row in server.rows["run-2"]) == 1
    send(folder, stage("bc-1", "reused"), stage("sft-2", "reused"), {**FINISH, "content": "d"})
    assert server.steps("run-3") == [1, 2, 3, 4, 5] and server.exits == {"run": [0], "run-2": [0], "run-3": [0]}


def test_what_was_sent_online_is_complete_offline_when_the_network_is_gone(folder: Path, server: Server) -> None:
    send(folder, stage("bc-1", "reused"), stage("sft-1", "started"), step(1))
    server.reachable = False
    send(folder, stage("bc-1", "reused"), stage("sft-1", "started"), step(1), step(2), step(3))
    assert server.steps("run") == [1] and server.steps("run-2 offline") == [1, 2, 3]
    assert sum("rollout/episodes" in row for row in server.rows["run-2 offline"]) == 1
    state = read_json(folder / "wandb" / "state.json")
    assert (state["used"], state["error"]) == ("offline", "ConnectionError: no answer")


def test_offline_a_synced_folder_stays_and_a_restart_has_another_id(folder: Path, server: Server) -> None:
    for name in ("offline-run-1-run", "offline-run-2-run"):
        (folder / "wandb" / name).mkdir(parents=True)
    (folder / "wandb" / "offline-run-1-run" / "run.wandb.synced").touch()
    for content in ("c", "d"):  # the second one takes the place of the first, which was not synced
        send(folder, stage("sft-1", "reused"), {**FINISH, "content": content}, mode="offline")
    assert [path.name for path in folder.glob("wandb/offline-run-*")] == ["offline-run-1-run"]
    assert server.exits == {"run-2 offline": [0, 0]}
