"""Copies on W&B: what they contain, and that nothing hangs, asks or fails without a network or an account."""

from __future__ import annotations

import http.server
import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eef.analysis.browser import write_views
from eef.cli import main
from eef.files import RunError, write_json
from eef.tracking import mirror
from eef.tracking.mirror import run_separately
from eef.tracking.runs import Run, log_metrics
from eef.trajectory import Trajectory, Turn, save

KEY = "a" * 40
RESULT = {"method": "eef", "m": 5, "n": None, "experts": "strong", "seed": 3, "win_rate": 0.5, "win_low": 0.4}
RESULT |= {"win_high": 0.6, "mean_reward": 0.7, "episodes": 900, "env_steps": 5000, "tokens": 20000, "errors": 0}


def played(task: str, won: bool) -> Trajectory:
    turns = (Turn("search[mug]", "results [SEP] Next >"), Turn("click[b01]", "page", reply="I think\nclick[b01]"))
    return Trajectory(task, "find a mug", turns, float(won), won)


def finished(root: Path, wandb: str = "offline", wins: int = 30, losses: int = 50) -> Run:
    config = {"method": "eef", "m": 5, "lr": 0.1}
    run = Run.open(root, "webshop", "eef-m5", 3, config, {"commit": "abc", "hashes": {"catalogue": "c"}}, group="demo")

    def sft(at: Path) -> None:
        log_metrics(at, [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}])
        save([played("t1", True), played("t2", True)], at / "examples.jsonl")
        write_json(at / "learn_from.json", {"learn_from": [0, 1]})

    def test(at: Path) -> None:
        save([played(f"t{i}", i < wins) for i in range(wins + losses)], at / "trajectories.jsonl")

    run.stage("sft-0", {}, sft)
    run.stage("test", {"wins": wins}, test)
    write_views(run.folder)
    run.finish(RESULT, wandb=wandb)
    return run


def read_back(folder: Path) -> list[Any]:
    """The records of an offline folder: W&B's own messages in a LevelDB log (blocks of 32 KiB, header of 7 bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, parts, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            record = Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account and no network for any process of the test."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT", "EEF_SWEEP", "EEF_RUN_IDS"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def test_the_offline_record_has_what_a_comparison_needs(tmp_path: Path, offline: None) -> None:
    run = finished(tmp_path)
    records = read_back(run.folder)
    (about,) = [record.run for record in records if record.HasField("run")]
    assert (about.run_group, about.job_type, about.project) == ("demo", "eef-m5", "eef")
    assert {"webshop", "eef", "eef-m5", "seed-3"} <= set(about.tags)
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert (config["env"], config["arm"], config["method"], config["seed"], config["m"]) == (
        "webshop", "eef-m5", "eef", 3, 5,
    )  # fmt: skip
    assert config["stamp"]["hashes"] == {"catalogue": "c"}
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["train/stage"], row["train/loss"]) for row in rows if "train/loss" in row] == [
        ("sft-0", 2.0),
        ("sft-0", 1.0),
    ]
    (axes,) = [row for row in rows if "test/win_rate" in row]
    assert (axes["budget/episodes"], axes["test/win_rate"], axes["test/win_low"]) == (900, 0.5, 0.4)
    steps = {(r.metric.name or r.metric.glob_name): r.metric.step_metric for r in records if r.HasField("metric")}
    assert steps["test/*"] == "budget/episodes" and steps["train/*"] == "train/global_step"
    kinds = {key: value for row in rows for key, value in row.items() if key.endswith("/_type")}
    tables = {f"trajectories/{name}/_type": "table-file" for name in ("test", "selected")}
    assert kinds == {**tables, "trajectories/views/_type": "html-file"}
    (views,) = run.folder.glob("wandb/offline-run-*/files/media/html/trajectories/views_*.html")
    assert views.read_text() == (run.folder / mirror.VIEWS).read_text()
    assert "<script" not in views.read_text() and views.read_text().count('class="eef eef-view"') == 40 + 2
    (table,) = run.folder.glob("wandb/offline-run-*/files/media/table/trajectories/test_*.json")
    shown = json.loads(table.read_text())
    assert len(shown["data"]) == 40 and sum(row[1] for row in shown["data"]) == 20
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, run.folder.glob("wandb/offline-run-*"))]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Would sync 1 run" in listed.stdout + listed.stderr


def test_tables_show_both_sides_and_recoveries_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tables = mirror.trajectory_tables(finished(tmp_path, wins=2, losses=100).folder)
    assert len(tables["test"]) == 40 and sum(row[1] for row in tables["test"]) == 2
    assert [(row[0], row[5]) for row in tables["selected"]] == [("t2", 1), ("t1", 0)]
    shown = "find a mug\n> search[mug]\nresults\nNext >\n> I think\nclick[b01]\npage"
    assert tables["test"][0][6] == shown, "parts of a page stand on lines of their own"
    assert mirror.trajectory_tables(tmp_path) == {}


def test_the_figure_is_mirrored_once(tmp_path: Path, offline: None) -> None:
    from matplotlib.figure import Figure

    files = [tmp_path / "rates.png", tmp_path / "rates.csv", tmp_path / "none.png"]
    Figure((1, 1)).savefig(files[0])
    files[1].write_text("n,rate\n1,0.5\n")
    assert mirror.send_figure(tmp_path, "demo", files) is None
    folder = tmp_path / "sweeps" / "demo.wandb"
    records = read_back(folder)
    (about,) = [record.run for record in records if record.HasField("run")]
    assert (about.run_group, about.job_type) == ("demo", "figure")
    keys = {item.key or "/".join(item.nested_key) for r in records if r.HasField("history") for item in r.history.item}
    assert {"figure/rates/_type", "table/rates/_type"} <= keys
    assert mirror.send_figure(tmp_path, "demo", files) is None and len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert mirror.unsynced(tmp_path) == list(folder.glob("wandb/offline-run-*"))


def test_online_without_an_account_falls_back_at_once(
    tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    run = finished(tmp_path, wandb="online")
    assert time.monotonic() - began < 60 and len(read_back(run.folder)) > 5
    assert "warning: W&B online -> offline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "not logged in to W&B"),
        ({"WANDB_API_KEY": "short"}, "cannot be used: "),
        ({"WANDB_API_KEY": KEY}, "does not answer"),
        ({"WANDB_MODE": "offline"}, "WANDB_MODE is offline"),
        ({"WANDB_MODE": "DryRun"}, "WANDB_MODE is DryRun"),
        ({"WANDB_MODE": "Online"}, "not logged in to W&B"),
        ({"WANDB_MODE": "onlin"}, "W&B mode 'onlin' is unknown"),
        ({"WANDB_CONSOLE": "loud"}, "cannot be used: invalid W&B settings: console: "),
    ],
)
def test_sync_and_report_without_an_account_or_network(
    tmp_path: Path, offline: None, env: dict[str, str], message: str
) -> None:
    folder = tmp_path / "runs" / "a__b" / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    (folder / "run.wandb").write_bytes(b"x")
    command = [sys.executable, "-m", "eef.cli", "wandb", "sync", "--root", str(tmp_path / "runs")]
    process = subprocess.run(
        command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 2 and message in process.stderr and "1 offline runs in" in process.stderr
    assert "Traceback" not in process.stderr


class Refusing(http.server.BaseHTTPRequestHandler):
    """A W&B server that answers and refuses everything."""

    def answer(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD = answer

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield
    server.shutdown()


def test_a_server_that_refuses_everything_is_one_message(tmp_path: Path, offline: None, refusing: None) -> None:
    run = finished(tmp_path)
    command = [sys.executable, "-m", "eef.cli", "wandb", "sync", "--root", str(tmp_path)]
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert process.returncode == 2 and "W&B accepted none of 1 offline runs" in process.stderr
    assert len(read_back(run.folder)) > 5 and mirror.unsynced(tmp_path)


def test_sync_ignores_a_module_of_the_current_folder(
    tmp_path: Path, offline: None, refusing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "env__run" / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    (folder / "run.wandb").write_bytes(b"x")
    (tmp_path / "wandb.py").write_text("raise SystemExit('this is not wandb')")
    monkeypatch.setattr(mirror, "account_problem", lambda: None)
    with pytest.raises(RunError, match="W&B accepted none of 1 offline runs") as caught:
        mirror.sync(tmp_path)
    assert "this is not wandb" not in str(caught.value)


@pytest.mark.parametrize(("value", "mode"), [("Offline", "offline"), ("RUN", "online"), ("onlin", "offline")])
def test_figures_and_other_processes_get_a_mode_that_wandb_accepts(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, value: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    code = "import os; print(os.environ['WANDB_MODE'], file=sys.stderr); sys.exit(3)"
    assert run_separately(tmp_path, code) == f"exit 3: {mode}"
    modes = []
    monkeypatch.setattr(mirror, "run_separately", lambda root, code, folder, name, mode, *files: modes.append(mode))
    (tmp_path / "rates.csv").write_text("n,rate\n1,0.5\n")
    assert mirror.send_figure(tmp_path, "demo", [tmp_path / "rates.csv"]) is None and modes == [mode]


def test_sync_counts_what_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / f"env__run{i}" / "wandb" / f"offline-run-{i:02d}" for i in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run.wandb").write_bytes(b"x")

    def sent(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        for path in command[command.index("sync") + 1 :]:
            if not path.endswith("11"):
                (Path(path) / "run.wandb.synced").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(mirror, "account_problem", lambda: None)
    monkeypatch.setattr(mirror.subprocess, "run", sent)
    (folders[10] / "run.wandb.synced").touch()
    with pytest.raises(RunError, match="accepted none of 1 offline runs"):
        mirror.sync(tmp_path)
    assert "synced 10 of 11" in capsys.readouterr().out and mirror.unsynced(tmp_path) == [folders[11]]
    (folders[11] / "run.wandb.synced").touch()
    assert mirror.sync(tmp_path) == (0, []) and main(["wandb", "sync", "--root", str(tmp_path)]) == 0


def test_the_report_compares_method_environment_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    wr = pytest.importorskip("wandb_workspaces.reports.v2.interface", reason="the extra 'report' is not installed")
    monkeypatch.setattr(wr, "_get_api", lambda: None)
    monkeypatch.setattr(wr, "execute_graphql", lambda *arguments, **options: {"project": {"internalId": "1"}})
    monkeypatch.setenv("WANDB_ENTITY", "me")
    report = mirror.report("demo", [Path("rates.png")], "about", save=False)
    spec = report._to_model().spec.model_dump_json(exclude_none=True, by_alias=True)
    for part in (
        '"xAxis":"summary:budget/episodes","yAxis":"summary:test/win_rate"',
        '{"key":{"section":"run","name":"group"},"op":"=","value":"demo","disabled":false}',
        '"mediaKeys":["figure/rates"]', '"name":"arm.value"', '"name":"env.value"', '"name":"seed.value"',
        "trajectories/test", "trajectories/selected", ".*/loss", '"mediaKeys":["trajectories/views"]',
    ):  # fmt: skip
        assert part in spec, part


def test_a_report_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(RunError, match=r"pip install -e '\.\[report\]'"):
        mirror.report("demo", [], "about", save=False)


def test_a_report_is_saved_in_a_subprocess_and_its_error_is_one_line(
    tmp_path: Path, offline: None, refusing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra 'report' is not installed")
    output = mirror.save_report(tmp_path, "demo", [], "about")
    assert output.startswith("none: exit 1: ") and "\n" not in output and "credentials" in output

    def saved(root: Path, code: str, file: str, name: str, *rest: str) -> None:
        Path(file).write_text(f"address of {name}")

    monkeypatch.setattr(mirror, "run_separately", saved)
    assert mirror.save_report(tmp_path, "demo", [], "about") == "address of demo"
