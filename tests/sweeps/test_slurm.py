"""Sweeps on a real Slurm of one node, which the tests start (Debian: apt install slurm-wlm munge)."""

from __future__ import annotations

import getpass
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sweep import write

from eef.sweeps import executors as launch
from eef.sweeps.executors import Job, LaunchError, adopt, check_slurm, failure
from eef.sweeps.spec import SweepError, read_spec
from eef.sweeps.sweep import sweep

MISSING = [
    name
    for name in ("munged", "slurmctld", "slurmd", "srun", "squeue")
    if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
]
SWEEP = (
    "import sys; from eef.sweeps.sweep import sweep; sys.exit(sweep(sys.argv[1], root=sys.argv[2], executor='slurm'))"
)
CONF = """\
ClusterName=eef
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={at}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=500 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if MISSING:
        pytest.skip(f"no Slurm here ({', '.join(MISSING)} missing): apt install slurm-wlm munge")
    pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")
    at = tmp_path_factory.mktemp("slurm")
    for place in (at, *at.parents[:1]):
        place.chmod(0o755)  # munge refuses a socket in a folder that others cannot read
    (at / "state").mkdir()
    (at / "spool").mkdir()
    (at / "munge.key").write_bytes(os.urandom(128))
    (at / "munge.key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    conf = at / "slurm.conf"
    conf.write_text(CONF.format(host=host, user=getpass.getuser(), at=at, ports=free_ports(2), cpus=os.cpu_count()))
    env = {**os.environ, "SLURM_CONF": str(conf), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    options = [
        f"--{name}={at}/munge.{name.split('-')[0]}"
        for name in ("socket", "key-file", "log-file", "pid-file", "seed-file")
    ]
    daemons = [["munged", "--foreground", "--force", *options], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]]
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("WANDB_MODE", "disabled")
        try:
            for daemon in daemons:
                with open(at / f"{daemon[0]}.out", "wb") as log:
                    started.append(subprocess.Popen(daemon, env=env, stdout=log, stderr=subprocess.STDOUT))
                time.sleep(1)
            for _ in range(40):
                output = subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True)
                if output.stdout.strip() == "idle":
                    break
                time.sleep(0.5)
            else:
                logs = "\n".join(
                    path.read_text(errors="replace")[-800:] for path in [*at.glob("*.out"), *at.glob("*.log")]
                )
                pytest.fail(f"Slurm did not come up: {output.stdout}{output.stderr}\n{logs}")
            yield at
        finally:
            subprocess.run(["scancel", "--me"], env=env, capture_output=True)
            for _ in range(60):  # daemons must end after the jobs
                if not subprocess.run(["squeue", "-h"], env=env, capture_output=True).stdout.strip():
                    break
                time.sleep(0.5)
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()


@pytest.mark.slow
def test_a_sweep_on_slurm_and_again(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slurm = {"time": 5, "cpus_per_task": 1, "mem": "100MB"}
    points = [{"method": "bad", "n": 1}, {"method": "rft", "n": 1}]
    path, root = write(tmp_path, seeds=[0], points=points, slurm=slurm), tmp_path / "runs"
    assert sweep(path, root=root, executor="slurm") == 1
    output = capsys.readouterr().out
    assert "submitted to Slurm: 2 jobs" in output and "26.0 %" in output
    assert "FAILED  bad-n1-s0" in output and "RuntimeError: this one is bad" in output
    assert output.rstrip().endswith(f"to repeat: eef sweep {path} --executor slurm --root {root}")
    script = next((root / "slurm").glob("*submission.sh")).read_text()
    assert "--time=5" in script and "--mem=100MB" in script and "--array=0-1%2" in script
    assert sweep(path, root=root, executor="slurm", only="rft") == 0 and "0 to do" in capsys.readouterr().out
    assert not list((root / "notebooks").glob("*.job"))


@pytest.mark.slow
def test_jobs_outlive_a_killed_sweep_and_are_found_again(cluster: Path, tmp_path: Path) -> None:
    spec = {"seeds": [0, 1], "points": [{"n": 1}], "parameters": {"slow": 6.0}, "slurm": {"time": 5}}
    path, root = write(tmp_path, **spec), tmp_path / "runs"
    first = subprocess.Popen([sys.executable, "-c", SWEEP, str(path), str(root)], stdout=subprocess.PIPE, text=True)
    for _ in range(400):
        if (root / "calls").exists():
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(
        [sys.executable, "-c", SWEEP, str(path), str(root)], capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 points were submitted to Slurm before" in again.stdout
    assert "submitted to Slurm:" not in again.stdout and (root / "calls").read_text() == "xx"


@pytest.mark.slow
def test_a_cancelled_job_is_a_failed_point(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_LOST_SECONDS", 1.0)
    monkeypatch.setattr(launch, "_POLL_SECONDS", 0.5)
    spec = {"seeds": [0], "points": [{"n": 1}], "parameters": {"slow": 60.0}, "slurm": {"time": 5}}
    path, root = write(tmp_path, **spec), tmp_path / "runs"
    script = f"for i in $(seq 300); do [ -e {root}/calls ] && break; sleep 0.1; done; scancel --me"
    canceller = subprocess.Popen(["sh", "-c", script])
    assert sweep(path, root=root, executor="slurm") == 1
    canceller.wait()
    output = capsys.readouterr().out
    assert re.search(r"FAILED  n1-s0: .*", output)
    assert not list((root / "notebooks").glob("*.job"))


@pytest.mark.slow
def test_refused_resources_are_one_message(cluster: Path, tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[0], slurm={"partition": "nowhere", "time": 5})
    with pytest.raises(RuntimeError, match="Slurm refused the jobs: .*nvalid partition"):
        sweep(path, root=tmp_path / "runs", executor="slurm")


def test_without_slurm_or_with_unknown_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")
    with pytest.raises(LaunchError, match="unknown resource 'memory'; submitit knows .*mem"):
        check_slurm({"memory": "4GB"})
    with pytest.raises(LaunchError, match=r"^slurm: the time limit of a job is missing: .*slurm: \{time: 240\}"):
        check_slurm({"mem": "4GB"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match="srun is not available"):
        check_slurm({"mem": "4GB", "time": 5})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LaunchError, match=r"needs submitit: pip install -e '\.\[slurm\]'"):
        check_slurm({})
    with pytest.raises(SweepError, match="unknown executor 'cloud'"):
        sweep(write(tmp_path), root=tmp_path / "runs", executor="cloud")
    assert read_spec(write(tmp_path, slurm={"time": 5})).slurm == {"time": 5}


def test_a_job_that_left_the_queue_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue: list[set[str] | None] = [{"7_1"}]
    monkeypatch.setattr(launch, "queued", lambda: queue[0])
    monkeypatch.setattr(launch, "_LOST_SECONDS", 0.05)
    job = Job("7_1", str(tmp_path / "point"), tmp_path)
    assert job.poll() is None
    queue[0] = None  # Slurm does not answer: keep waiting
    assert job.poll() is None
    queue[0] = set()
    assert job.poll() is None  # the result may be late on a shared disk
    time.sleep(0.1)
    (tmp_path / "7_1_0_log.err").write_text("slurmstepd: error: Detected 1 oom_kill event")
    assert job.poll() == -9
    assert "oom_kill" in failure(job.base, -9) and "Slurm ended the job" in failure(job.base, -9)
    (tmp_path / "7_1_0_result.pkl").write_bytes(pickle.dumps(("error", "ModuleNotFoundError: eef")))
    assert job.poll() == 1 and "ModuleNotFoundError: eef" in failure(job.base, 1)
    (tmp_path / "7_1_0_result.pkl").write_bytes(b"torn")
    assert job.poll() == 1 and "cannot be read" in failure(job.base, 1)


def test_a_job_is_not_forgotten_while_slurm_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next sweep submits it again while it runs."""
    base, queue = str(tmp_path / "point"), [None]
    monkeypatch.setattr(launch, "queued", lambda: queue[0])
    Path(f"{base}.job").write_text("7_1\n")
    job = adopt(base, tmp_path)
    assert job is not None and job.id == "7_1" and job.poll() is None and Path(f"{base}.job").is_file()
    queue[0] = set()  # type: ignore[call-overload]
    assert adopt(base, tmp_path) is None and not Path(f"{base}.job").exists()


def test_a_query_that_fails_after_one_that_succeeded_is_no_missing_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[set[str] | None] = [{"7_1"}, None]
    monkeypatch.setattr(launch, "queued", lambda: answers.pop(0))
    job = Job("7_1", str(tmp_path / "point"), tmp_path)
    assert job.poll() is None and job.missing_since is None
