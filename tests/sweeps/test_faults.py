"""Sweeps that are killed ten times, and full or read-only disks, with real processes and real stages."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_sweep import write

import eef
from eef.analysis.arms import run_table
from eef.analysis.tables import paired_table, write_table
from eef.sweeps.sweep import sweep
from eef.tracking.mirror import run_separately
from eef.tracking.records import load_runs
from eef.training import stages as learning

CLI = [sys.executable, "-m", "eef.cli", "sweep"]
KILLS = 10
PAUSE = "2.5"  # seconds that a stage takes
PARAMETERS = 'method = "rft"\nn = None\nm = None\nseed = 0\n'
BODY = '''\
import os, random, time
from eef.envs import make_env
from eef.files import write_json
from eef.tracking.runs import Run, log_metrics
label = method + (f"-n{n}" if n else "") + (f"-m{m}" if m else "")
run = Run.open(None, "webshop", label, seed, {"method": method, "n": n, "m": m}, {"hashes": {"catalogue": "c"}})
pause = float(os.environ["EEF_TEST_PAUSE"])
draw = random.Random(f"{label} {seed}")  # seeded again in each stage: its content must not depend on earlier ones
rate = draw.uniform(0.3, 0.7)
def work(name, folder):
    """Write slowly, so that a kill leaves a stage incomplete."""
    with open(run.root / "calls", "a") as out:
        out.write(f"{folder.name[1:].rsplit('.', 1)[0]}\\n")
    numbers = [draw.random() for _ in range(5)]
    with open(folder / "draws.jsonl", "w") as out:
        for number in numbers:
            out.write(f"{number}\\n")
            out.flush()
            time.sleep(pause / 5)
    log_metrics(folder, [{"step": i, "loss": x} for i, x in enumerate(numbers)])
def java(folder):
    world = make_env("scienceworld")
    seen = [world.reset(world.tasks("train")[0])]
    for _ in range(3):
        time.sleep(pause / 2)
        seen.append(world.step("look around").observation)
    world.close()
    write_json(folder / "seen.json", {"seen": seen})
def test(folder):
    work("eval", folder)
    rows = [f"t{i},{draw.random() < rate},{draw.random():.3f},3,done,False" for i in range(60)]
    (folder / "episodes.csv").write_text("task,won,reward,steps,outcome,error\\n" + "\\n".join(rows) + "\\n")
draw.seed(f"bc {seed}")
run.stage("bc", {"seed": seed}, lambda folder: work("bc", folder))
if method == "eef":
    run.stage("science", {"seed": seed}, java)
for name in ("states", "sft"):
    draw.seed(f"{name} {label} {seed}")
    run.stage(name, {"label": label, "seed": seed}, lambda folder: work(name, folder))
draw.seed(f"eval {label} {seed}")
played = run.stage("eval", {"label": label, "seed": seed}, test)
won = (played / "episodes.csv").read_text().count("True") / 60
run.finish({"method": method, "n": n, "m": m, "experts": "strong", "seed": seed, "win_rate": won,
            "episodes": 100 * ((n or 0) + (m or 0)), "win_low": won - 0.1, "win_high": won + 0.1, "mean_reward": won,
            "n_test": 60, "errors": 0})
'''


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("EEF_TEST_PAUSE", "0")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


def start(path: Path, root: Path, **env: str) -> subprocess.Popen[str]:
    command = [*CLI, str(path), "--root", str(root), "--out", str(root.parent / f"{root.name}-figure")]
    with open(f"{root}.output", "a") as output:
        return subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=output, text=True)


def family(process: subprocess.Popen[str]) -> dict[str, list[psutil.Process]]:
    """The sweep, its papermill processes, their kernels, and the Java processes of these."""
    processes: dict[str, list[psutil.Process]] = {
        "parent": [psutil.Process(process.pid)],
        "worker": [],
        "kernel": [],
        "jvm": [],
    }
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            command = child.cmdline()
        except psutil.Error:
            continue
        if command and Path(command[0]).name == "java":
            processes["jvm"].append(child)
        elif "papermill" in command:
            processes["worker"].append(child)
        elif "ipykernel" in command:
            processes["kernel"].append(child)
    return processes


def complete(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each complete stage: they change if the stage is made again."""
    files = root.glob("stages/*/stage.json")
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files if path.parent.name[0] != "."
    }


def tables(root: Path, out: Path) -> dict[str, str]:
    """Hashes of the files that figures are drawn from, and of the tables."""
    index = json.loads((root / "sweeps" / "demo.json").read_text())
    runs = load_runs(root, index["run_ids"])
    write_table(run_table(runs), out, "runs")
    paired_table(runs, out=out)
    names = ("result.json", "config.json", "metrics.jsonl", "*/draws.jsonl", "*/episodes.csv", "*/seen.json")
    files = [path for name in names for path in root.glob(f"*__*/{name}")]
    by_name = {str(path.relative_to(root)): path for path in files} | {path.name: path for path in out.glob("*.csv")}
    assert index["missing"] == [] and len(runs) == 8 and len(by_name) > 60
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(by_name.items())}


@pytest.mark.slow
def test_killed_ten_times_then_the_same_tables(tmp_path: Path) -> None:
    points = [{"method": "sft_pos"}, {"method": "rft", "n": 1}, {"method": "eef", "m": 1}, {"method": "eef", "m": 5}]
    path = write(tmp_path, cell=PARAMETERS, body=BODY, parameters={}, seeds=[0, 1], points=points)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(path, whole).wait(300) == 0, Path(f"{whole}.output").read_text()
    draw = random.Random(int(os.environ.get("EEF_TEST_SEED", "8")))
    order = ["parent"] * 3 + ["worker"] * 3 + ["kernel"] * 3
    draw.shuffle(order)
    victims: Counter[str] = Counter()
    snapshots: dict[str, tuple[int, int]] = {}
    began, process = time.monotonic(), start(path, cut, EEF_TEST_PAUSE=PAUSE)
    try:
        while victims.total() < KILLS:
            alive = family(process) if process.poll() is None else {"kernel": []}
            while process.poll() is None and not alive["kernel"]:  # a point is running once it has a kernel
                time.sleep(0.1)
                alive = family(process)
            time.sleep(draw.uniform(0.5, 7.0))
            if process.poll() is not None:  # the point of a killed worker is not finished
                assert process.returncode == 1, "the sweep ended before ten kills: make its stages slower"
                process = start(path, cut, EEF_TEST_PAUSE=PAUSE)
                continue
            alive = family(process)
            kind = "jvm" if alive["jvm"] and not victims["jvm"] else order[0] if order else "jvm"
            if not alive[kind]:
                continue
            with suppress(psutil.NoSuchProcess):
                draw.choice(alive[kind]).send_signal(signal.SIGKILL)
                victims[kind] += 1
                if kind != "jvm":
                    order.pop(0)
            if kind == "parent":
                process.wait()
                process = start(path, cut, EEF_TEST_PAUSE=PAUSE)
            for stage, identity in complete(cut).items():
                assert snapshots.setdefault(stage, identity) == identity, f"{stage} was complete and was made again"
        for _ in range(3):  # repeat what the last kills interrupted
            code = process.wait(300)
            if code == 0:
                break
            process = start(path, cut)
    finally:
        process.kill()
    assert code == 0, Path(f"{cut}.output").read_text()[-3000:]
    seconds = time.monotonic() - began
    print(f"killed: {dict(victims)} in {seconds:.0f} s; {len(snapshots)} stages were complete before the last kill")
    assert victims["parent"] and victims["worker"] + victims["kernel"] and victims["jvm"]
    final = complete(cut)
    assert {stage: final[stage] for stage in snapshots} == snapshots
    assert tables(cut, tmp_path / "a") == tables(whole, tmp_path / "b")
    figures = [tmp_path / f"{root.name}-figure" / "win_rate_vs_budget.csv" for root in (cut, whole)]
    assert figures[0].read_bytes() == figures[1].read_bytes()
    calls = Counter((cut / "calls").read_text().split())
    assert set(calls) == {name for name in final if not name.startswith("science")}
    assert not [path for path in cut.glob("stages/.*-*.[0-9]*") if path.is_dir()]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB, which only root can mount."""
    folder = Path(tempfile.mkdtemp())
    mounted = (
        shutil.which("mount")
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "eef", str(folder)], capture_output=True
        ).returncode
        == 0
    )
    if not mounted:
        folder.rmdir()
        pytest.skip("no small file system can be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


FILL = """\
from eef.tracking.runs import Run
run = Run.open(None, "webshop", f"{method}-n{n}", seed, {"n": n}, {"hashes": {}})
run.stage(f"{method}{n}", {"seed": seed}, lambda at: (at / "adapter.bin").write_bytes(bytes(n * 1_000_000)))
run.finish({"method": method, "n": n, "win_rate": 0.5})
"""


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_other_runs_are_kept(tmp_path: Path, small_disk: Path) -> None:
    points = [{"n": 1}, {"n": 5}]
    path = write(tmp_path, body=FILL, parameters={}, seeds=[0], points=points)
    command = [*CLI, str(path), "--jobs", "1", "--root", str(small_disk / "runs"), "--out", str(tmp_path / "figure")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    output = process.stdout + process.stderr
    assert process.returncode in (1, 2) and "Traceback" not in process.stderr, output
    assert "the disk is full at" in output and "free some space and start again" in output, output
    (result,) = (small_disk / "runs").glob("*__rft-n1__*/result.json")
    assert json.loads(result.read_text())["win_rate"] == 0.5
    assert len(list((small_disk / "runs").glob("stages/*/adapter.bin"))) == 1
    write(tmp_path, body=FILL, parameters={}, seeds=[0], points=points[:1])
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "0 to do" in process.stdout


def test_a_disk_that_fills_while_the_sweep_writes(tmp_path: Path, small_disk: Path) -> None:
    path = write(tmp_path, body=FILL, parameters={}, seeds=[0], points=[{"n": 1}])
    (small_disk / "runs" / "notebooks").mkdir(parents=True)
    with suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as out:
        while out.write(bytes(4096)):
            pass
    command = [*CLI, str(path), "--root", str(small_disk / "runs"), "--out", str(tmp_path / "figure")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    output = process.stdout + process.stderr
    assert process.returncode in (1, 2) and "Traceback" not in process.stderr and "disk is full" in output, output


def test_an_unwritable_folder(tmp_path: Path) -> None:
    path = write(tmp_path, body=FILL, parameters={}, seeds=[0], points=[{"n": 1}])
    root = tmp_path / "runs"
    root.mkdir()
    root.chmod(0o500)
    command = [*CLI, str(path), "--root", str(root)]
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "eef", str(root)]  # for root, any other folder is writable
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root writes anywhere, and no read-only file system can be mounted here")
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(root)], check=True)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert f"cannot write at {root}" in process.stderr and "--root" in process.stderr


PRINTS = """\
import random, sys
from pathlib import Path
import eef
from eef.tracking.runs import Run
run = Run.open(None, "webshop", f"{method}-n{n}", seed, {"n": n}, {"hashes": {}})
about = {"eef": eef.__file__, "random": random.__file__, "python": sys.executable, "path": sys.path}
run.finish({"method": method, "n": n, "win_rate": 0.5, **about})
"""


def result(root: Path) -> dict[str, Any]:
    """The result of the only run."""
    (path,) = root.glob("*__*/result.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_modules_of_the_current_folder_hide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a clone in a folder named ``eef``, nor modules with the names of libraries, hide the real ones."""
    for name in ("random", "eef", "papermill", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a module of the current folder was imported')\n")
    (tmp_path / "parent" / "eef" / "eef").mkdir(parents=True)
    for number, folder in enumerate((tmp_path, tmp_path / "parent")):
        path = write(folder, body=PRINTS, parameters={}, seeds=[0], points=[{"n": 1}])
        monkeypatch.chdir(folder)
        root = tmp_path / f"runs{number}"
        assert sweep(path, root=root) == 0
        printed = result(root)
        assert printed["eef"] == eef.__file__ and printed["random"] == random.__file__
        assert printed["path"].index(str(folder)) > printed["path"].index(str(Path(random.__file__).parent))


def test_other_processes_ignore_the_current_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('a module of the current folder was imported')\n")
    monkeypatch.chdir(tmp_path)
    assert run_separately(tmp_path, "import random") is None
    code = "import sys; assert sys.flags.safe_path; sys.exit(3)"
    commands: list[list[str]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, arguments: list[str], **settings: Any) -> None:
            commands.append(arguments)
            super().__init__([sys.executable, "-c", code], **settings)

    monkeypatch.setattr(learning.subprocess, "Popen", Popen)
    monkeypatch.setattr(learning, "check_gpu_count", lambda processes: None)
    with pytest.raises(RuntimeError, match="failed: $"):  # without an AssertionError
        learning.run_job_distributed({}, tmp_path, 2)
    assert "accelerate.commands.launch" in commands[0]


def test_a_notebook_imports_a_module_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "beside.py").write_text("N = 3\n")
    (tmp_path / "elsewhere" / "here.py").write_text("N = 4\n")
    body = PRINTS + "import beside, here\nassert (beside.N, here.N) == (3, 4)\n"
    path = write(tmp_path, body=body, parameters={}, seeds=[0], points=[{"n": 1}])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sweep(path, root=tmp_path / "runs") == 0


@pytest.mark.slow
def test_an_environment_of_ones_own_in_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Path(__file__).resolve().parents[2] / "notebooks" / "own_environment.ipynb"
    small = "{train_tasks: 40, test_tasks: 10, methods: [sft_pos], epochs: 1.0}"
    (tmp_path / "own.yaml").write_text(f"notebook: '{notebook}'\nparameters: {small}\n")
    monkeypatch.chdir(tmp_path)
    assert sweep("own.yaml", root=tmp_path / "runs") == 0
    assert result(tmp_path / "runs")["n_test"] == 10


def test_braces_and_separators_in_paths_and_settings_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is this interpreter, and modules beside the notebook are imported.

    JUPYTER_PATH and the user's folder have another kernel named ``python3``, and the user's startup file ends Python.
    """
    folder, tmp = tmp_path / f"a{os.pathsep}b {{n}} {{0}}", tmp_path / "tmp"
    folder.mkdir()
    tmp.mkdir()
    (folder / "beside.py").write_text("N = 3\n")
    for name in ("path", "user"):
        kernel = tmp_path / name / "kernels" / "python3"
        kernel.mkdir(parents=True)
        spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Other", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))
    (tmp_path / "startup.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "path"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp))
    path = write(folder, body=f"import beside\n{PRINTS}", parameters={}, seeds=[0], points=[{"n": 1}])
    root = folder / "runs {x}"
    assert sweep(path, root=root) == 0
    assert result(root)["win_rate"] == 0.5 and result(root)["python"] == sys.executable
    (book,) = (root / "notebooks").glob("demo__*.ipynb")
    assert json.loads(book.read_text())["metadata"]["kernelspec"]["name"] == "python3"
    (folder,) = tmp.glob(f"eef-{os.getuid()}-*")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_notebook_whose_metadata_name_no_kernel_and_long_values(tmp_path: Path) -> None:
    """The notebook runs, and the names of its files are short."""
    cell = 'method = "rft"\nn = 1\nnote = ""\nseed = 0\n'
    body = PRINTS.replace('f"{method}-n{n}"', 'f"{method}-{note}"')
    path = write(tmp_path, cell=cell, body=body, parameters={}, seeds=[0], points=[{"note": "long " * 100}])
    book = json.loads((tmp_path / "tiny.ipynb").read_text())
    (tmp_path / "tiny.ipynb").write_text(json.dumps(book | {"metadata": {}}))
    assert sweep(path, root=tmp_path / "runs") == 0
    assert result(tmp_path / "runs")["win_rate"] == 0.5 and result(tmp_path / "runs")["python"] == sys.executable
