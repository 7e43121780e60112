"""Executing a notebook: a papermill process on this machine, or a Slurm job (submitit)."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eef.files import PACKAGE, RunError, digest, disk_errors, plain, write_json, write_text
from eef.processes import end_with_parent
from eef.sweeps.inputs import last_on_path, read_notebook

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_POLL_SECONDS = 5.0  # between two queries of Slurm's queue
_LOST_SECONDS = 15.0  # how late the result of a job may appear after it left the queue (shared disks lag)


class LaunchError(ValueError):
    """Slurm or submitit cannot run the work as specified. The message says what to change."""


def start_notebook(
    notebook: Path, base: str, parameters: Mapping[str, Any], root: Path, **env: str
) -> subprocess.Popen[bytes]:
    """Start papermill on a notebook. It writes the executed copy to ``base.ipynb`` and its output to ``base.log``."""
    write_text(Path(f"{base}.yaml"), yaml.safe_dump(plain(parameters), sort_keys=True))
    paths = [_escape(str(notebook)), _escape(f"{base}.ipynb")]
    words = [sys.executable, "-m", "papermill", *paths, "-f", f"{base}.yaml"]
    words += ["-k", "python3", "--language", "python"]  # the metadata of the notebook need not name a kernel
    words += ["--no-progress-bar", "--log-level", "WARNING", "--stdout-file", "-", "--stderr-file", "-"]
    own = {"EEF_ROOT": str(root), **_own_kernel(notebook, root)}
    fixed = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", **dict.fromkeys(_THREADS, "1")}
    # without PYTHONSTARTUP: kernels would execute that file
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSTARTUP"}
    with disk_errors(Path(f"{base}.log")), open(f"{base}.log", "wb") as log:
        return subprocess.Popen(
            words,
            env={**inherited, **fixed, **own, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def _escape(path: str) -> str:
    """Double the braces of a path, since papermill formats its paths with the parameters."""
    return path.replace("{", "{{").replace("}", "}}")


def declared(notebook: Path) -> dict[str, dict[str, str]]:
    """The parameters that a notebook declares: name -> papermill's ``default`` and ``help`` (the comment)."""
    cells = [cell for cell in read_notebook(notebook).cells if "parameters" in cell.metadata.get("tags", [])]
    from papermill.translators import papermill_translators  # after nbformat, which it imports in a slow way

    translator = papermill_translators.find_translator("python3", "python")
    return {item.name: item._asdict() for cell in cells[:1] for item in translator.inspect(cell)}


def _own_kernel(notebook: Path, root: Path) -> dict[str, str]:
    """Environment variables that make this interpreter the kernel ``python3``, whatever else is installed.

    The folder of the notebook and the current folder come last on ``sys.path``: a notebook can import modules beside
    it, but these never hide a library or this package. The checkout is listed before them, since Python looks up
    editable installs only after all of ``sys.path``.
    """
    from ipykernel.kernelspec import get_kernel_dict

    kernels = root / ".jupyter" / digest(sys.executable, 8)
    if os.pathsep in str(kernels):  # it would split JUPYTER_PATH
        kernels = _private_folder(digest([str(root), sys.executable], 8))
    # not ipykernel_launcher: it removes the current folder from the path even if PYTHONPATH contains it
    argv = [sys.executable, "-m", "ipykernel", "-f", "{connection_file}"]
    write_json(kernels / "kernels" / "python3" / "kernel.json", {**get_kernel_dict(), "argv": argv})
    line = "__import__('sys').path.extend(__import__('json').loads(__import__('os').environ['EEF_LAST_ON_PATH']))"
    config = {"InteractiveShellApp": {"ignore_cwd": True, "exec_lines": [line]}}
    write_json(root / ".ipython" / "profile_default" / "ipython_config.json", config)
    return {
        "PYTHONSAFEPATH": "1",
        "IPYTHONDIR": str(root / ".ipython"),
        "JUPYTER_PATH": os.pathsep.join(filter(None, [str(kernels), os.environ.get("JUPYTER_PATH")])),
        "EEF_LAST_ON_PATH": json.dumps([str(folder) for folder in last_on_path(notebook)]),
    }


def _private_folder(name: str) -> Path:
    """A temporary folder that no other user can write."""
    folder = Path(tempfile.gettempdir()) / f"eef-{os.getuid()}-{name}"
    with disk_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise LaunchError(f"{folder} belongs to another user: set TMPDIR to a folder that you own")
    return folder


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes and all their descendants, including kernels, which run in separate sessions."""
    import psutil

    family = []
    for process in processes:
        try:
            family += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        process.terminate()
    for survivor in psutil.wait_procs(family, timeout=5)[1]:
        try:
            survivor.kill()
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        process.wait()


def failure(base: str, code: int) -> str:
    """The error of an executed notebook and the end of its traceback, or the end of its log if there is no error."""
    try:
        cells = json.loads(Path(f"{base}.ipynb").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        cells = []
    errors = [out for cell in cells for out in cell.get("outputs", []) if out["output_type"] == "error"]
    message, log = "", Path(f"{base}.log")
    if errors:
        text = "\n".join(errors[0]["traceback"])
        message = f"{errors[0]['ename']}: {errors[0]['evalue']}"
    else:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    if errors and os.environ.get("EEF_DEBUG") != "1":
        if advice := _memory_advice(message, text):
            return advice
        if _is_own_message(text):
            return str(errors[0]["evalue"])
    lines = text.removesuffix(message).strip().splitlines()[-15:]
    reason = {9: " (out of memory?)", 15: " (cancelled, or out of time?)"}.get(-code, "")
    killed = f"ended by signal {-code}{reason}" if code < 0 else f"exit {code}"
    if shutil.disk_usage(log.parent).free < 1_000_000:  # the error could then not be written
        killed = f"the disk is full at {log.parent}: free some space and start again; finished stages are kept"
    return "\n        ".join([message or killed, *lines])


def _memory_advice(message: str, traceback: str) -> str:
    """What to do about a GPU without free memory, by the place of the error; empty for another error."""
    match = re.search(r"CUDA (?:error: )?out of memory(?:\. Tried to allocate [\d.]+ \w+)?", message)
    if match is None:
        return ""
    in_training = f"{PACKAGE.name}/training/" in traceback
    use = "micro_batch_size=1, gradient_checkpointing=true, quantize=nf4" if in_training else "fewer slots"
    what = "training" if in_training else "the simulations"
    return f"the GPU's memory is too small for {what} ({match[0]}): set {use} or a smaller context, or use --jobs 1"


def _is_own_message(traceback: str) -> bool:
    """Whether IPython's traceback ends with a ``raise`` of this package, whose message says what to do."""
    files = re.findall(r"^File (\S.*?):\d+", traceback, re.MULTILINE)
    arrows = re.findall(r"^-+> +\d+ +(\S+)", traceback, re.MULTILINE)
    return bool(files and arrows) and Path(files[-1]).is_relative_to(PACKAGE) and arrows[-1] == "raise"


def last_line(base: str) -> str:
    """The last line that an execution printed, or ``starts``."""
    log = Path(f"{base}.log")
    text = log.read_bytes()[-2000:].decode(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() and "IPKernelApp" not in line]
    return lines[-1][:60] if lines else "starts"


def warnings_of(base: str) -> list[str]:
    """The different lines of an execution's log that begin with ``warning:``."""
    log = Path(f"{base}.log")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    return list(dict.fromkeys(line for line in lines if line.startswith("warning:")))


@dataclass
class Execution:
    """One notebook to execute. A Slurm job calls it on the node; it returns papermill's exit code."""

    notebook: Path
    base: str
    parameters: dict[str, Any]
    root: Path
    env: dict[str, str]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it on this machine."""
        return start_notebook(self.notebook, self.base, self.parameters, self.root, **self.env)

    def __call__(self) -> int:
        return self.start().wait()

    def checkpoint(self) -> Any:
        """What submitit queues after preemption or a time limit: the same execution, which reuses finished stages."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class Job:
    """An execution that was submitted to Slurm; :meth:`poll` works like that of a process."""

    id: str
    base: str
    folder: Path
    missing_since: float | None = None

    def poll(self) -> int | None:
        """The exit code; None while the job is queued or running, -9 if Slurm ended it without a result."""
        result = self.folder / f"{self.id}_0_result.pkl"
        if not result.is_file():
            if self.may_be_queued():
                self.missing_since = None
                return None
            self.missing_since = self.missing_since or time.monotonic()
            is_late = time.monotonic() - self.missing_since < _LOST_SECONDS
            return None if is_late else self._log(-9, "Slurm ended the job")
        import pickle

        try:
            state, value = pickle.loads(result.read_bytes())  # written by our own job, through submitit
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            return self._log(1, f"the result of the job, {result}, cannot be read: {error}")
        return int(value) if state == "success" else self._log(1, str(value))

    def may_be_queued(self) -> bool:
        """Whether the job is queued or running, as far as Slurm answers: a job of which nothing is known may be."""
        ids = queued()
        return ids is None or self.id in ids

    def _log(self, code: int, text: str) -> int:
        """Append Slurm's error to the point's log, since the notebook may not have started."""
        errors = self.folder / f"{self.id}_0_log.err"
        tail = errors.read_text(errors="replace")[-1500:] if errors.is_file() else ""
        with suppress(OSError), open(f"{self.base}.log", "a", encoding="utf-8") as out:
            out.write(f"\n{tail}\n{text} (job {self.id})\n")
        return code

    def forget(self) -> None:
        """Delete the file with the job's id, so that no later sweep looks for the job."""
        Path(f"{self.base}.job").unlink(missing_ok=True)


_seen: tuple[float, set[str] | None] = (float("-inf"), None)


def queued() -> set[str] | None:
    """The ids of this user's queued and running jobs, at most a few seconds old; None if Slurm does not answer.

    This uses ``squeue``, since ``sacct`` needs accounting, which not every cluster has.
    """
    global _seen
    if time.monotonic() - _seen[0] > _POLL_SECONDS:
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=60)
            ids = set(process.stdout.split()) if process.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            ids = None
        _seen = (time.monotonic(), ids)
    return _seen[1]


def check_slurm(resources: Mapping[str, Any]) -> None:
    """Raise :class:`LaunchError` unless submitit and Slurm are available, and ``resources`` are known to submitit and
    have a ``time``.
    """
    _executor(Path(os.devnull), resources)


def _executor(folder: Path, resources: Mapping[str, Any]) -> Any:
    try:
        import submitit
        from submitit.slurm.slurm import _make_sbatch_string
    except ImportError:
        raise LaunchError("--executor slurm needs submitit: pip install -e '.[slurm]'") from None
    known = set(inspect.signature(_make_sbatch_string).parameters) - {"command", "folder", "map_count"}
    if unknown := sorted(set(resources) - known):
        raise LaunchError(f"slurm: unknown resource {unknown[0]!r}; submitit knows {', '.join(sorted(known))}")
    if "time" not in resources:  # submitit's default ends jobs after 5 minutes
        raise LaunchError(
            "slurm: the time limit of a job is missing: add it in minutes to the sweep file, slurm: {time: 240}"
        )
    if submitit.SlurmExecutor.affinity() < 0:
        raise LaunchError("--executor slurm: srun is not available; start the sweep on a machine of the cluster")
    if folder == Path(os.devnull):
        return None
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**resources)
    return executor


def submit(executions: list[Execution], root: Path, resources: Mapping[str, Any], name: str, jobs: int) -> list[Job]:
    """Submit executions to Slurm as one array that runs at most ``jobs`` at a time. Ids are written to ``base.job``."""
    folder = root / "slurm"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    executor = _executor(folder, {"job_name": name, "array_parallelism": jobs, **resources})
    try:
        with executor.batch():
            submitted = [executor.submit(execution) for execution in executions]
    except (RuntimeError, subprocess.CalledProcessError) as error:
        raise RunError(f"Slurm refused the jobs: {str(error).strip()[-600:]}") from error
    result = []
    for job, execution in zip(submitted, executions, strict=True):
        write_text(Path(f"{execution.base}.job"), f"{job.job_id}\n")
        result.append(Job(job.job_id, execution.base, folder))
    return result


def adopt(base: str, root: Path) -> Job | None:
    """The job of an earlier sweep for ``base`` if it may still be queued or running, or has succeeded; else None."""
    file = Path(f"{base}.job")
    if not file.is_file():
        return None
    job = Job(file.read_text().strip(), base, root / "slurm")
    has_ended = (job.folder / f"{job.id}_0_result.pkl").is_file()
    if (job.poll() == 0) if has_ended else job.may_be_queued():
        return job
    job.forget()
    return None
