"""The run's side of Weights & Biases: events are appended to a file, and a companion process sends them.

The run never imports ``wandb``. It waits for W&B only at its end, within a time limit. The companion
(:mod:`eef.tracking.companion`) runs in a separate session. When the run's process dies, the companion's standard input
ends; it then marks the W&B run as crashed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from eef.files import PACKAGE

MODES = ("offline", "online", "disabled")
ALIASES = {"dryrun": "offline", "run": "online"}  # former names that wandb still accepts
FINISH_SECONDS = 90.0  # how long the end of a run waits for W&B
FAIL_SECONDS = 20.0  # how long a failed run waits; the companion then continues alone
ROLLOUT_SECONDS = 1.0  # the least time between two reports of a rollout
CODE = (
    "import sys; sys.path.append(sys.argv.pop(1)); from eef.tracking.companion import follow; "
    "sys.exit(follow(*sys.argv[1:]))"
)
COMPANION = [sys.executable, "-P", "-c", CODE, str(PACKAGE.parent)]  # -P: never a user's wandb.py


class Live:
    """Sends the events of one run to its companion process. No method raises.

    :meth:`start` starts the companion, which reads ``events.jsonl`` from the beginning: earlier events are not lost.
    """

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder = folder
        self.mode, error = wandb_mode(mode)
        self.wanted = (os.environ.get("WANDB_MODE") or mode) if error else self.mode
        self.errors: list[str] = [error] if error else []
        self.companion: subprocess.Popen[bytes] | None = None
        self._out: TextIO | None = None
        self._steps: dict[str, float] = {}  # stage -> last training step that was sent
        self._sent: dict[str, float] = {}  # stage -> when its rollout was last reported
        self._pending: dict[str, dict[str, Any]] = {}  # stage -> totals that wait for the next report

    def start(self) -> None:
        """Start the companion process if it was not started before."""
        if self.companion is not None or self.mode == "disabled":
            return
        env = wandb_environment(self.folder.parent)
        env.pop("WANDB_SERVICE", None)  # belongs to another process
        try:
            self._open()
            (self.folder / "wandb").mkdir(exist_ok=True)
            with open(self.folder / "wandb" / "companion.log", "w") as log:
                self.companion = subprocess.Popen(
                    [*COMPANION, str(self.folder), self.mode, str(os.getpid())],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                    env={**env, "WANDB_MODE": self.mode},
                )  # fmt: skip
        except OSError as error:
            self._note(error)

    def stage(self, stage: str, label: str, status: str) -> None:
        """Report the status of a stage: ``started``, ``made`` or ``reused``. ``label`` is the name of its folder."""
        self._flush(stage)
        self._send("stage", stage=stage, label=label, status=status)

    def progress(self, stage: str, row: Mapping[str, Any]) -> None:
        """Report a training step, or the totals of a rollout so far (``episodes`` in ``row``; sent once per second)."""
        try:
            if "episodes" not in row:
                if row["step"] > self._steps.get(stage, -1):
                    self._steps[stage] = row["step"]
                    self._send("progress", stage=stage, row=dict(row))
                return
            now = time.monotonic()
            self._pending[stage] = dict(row)
            if now - self._sent.get(stage, 0.0) >= ROLLOUT_SECONDS:
                self._sent[stage] = now
                self._flush(stage)
        except Exception as error:  # a report must not end a run, whatever the row contains
            self._note(error)

    def finish(self, content: str) -> tuple[str, str | None]:
        """Complete the W&B run from the run's folder and wait. Returns the mode that was used, and an error or None."""
        self.start()
        self._send("finish", content=content)
        running, state = self.companion, {}
        if running is not None:
            if not self._ended(running, FINISH_SECONDS):
                with contextlib.suppress(OSError):
                    os.killpg(running.pid, signal.SIGKILL)
                running.wait()
                self.errors.append(f"W&B did not finish within {FINISH_SECONDS:.0f} s and was stopped")
            state = self._state(running)
            if state.get("error"):
                self.errors.append(state["error"])
            elif running.returncode > 0:
                self.errors.append(f"the companion process ended with code {running.returncode}: {self._last_line()}")
        return state.get("used", "disabled"), "; ".join(self.errors) or None

    def fail(self, message: str) -> None:
        """Mark the W&B run as failed. If this exceeds the time limit, the companion continues alone."""
        for stage in list(self._pending):
            self._flush(stage)
        self._send("failed", message=message)
        if self.companion is not None:
            self._ended(self.companion, FAIL_SECONDS)

    def _ended(self, running: subprocess.Popen[bytes], seconds: float) -> bool:
        assert running.stdin is not None
        with contextlib.suppress(OSError):
            running.stdin.close()
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _state(self, running: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The state that the companion recorded, or nothing if it ended before."""
        try:
            state = json.loads((self.folder / "wandb" / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if state.get("pid") == running.pid else {}

    def _last_line(self) -> str:
        try:
            lines = (self.folder / "wandb" / "companion.log").read_text(errors="replace").strip().splitlines()
        except OSError as error:
            return f"its log cannot be read ({error})"
        return lines[-1][:200] if lines else "no message"

    def _flush(self, stage: str) -> None:
        if row := self._pending.pop(stage, None):
            self._send("progress", stage=stage, row=row)

    def _open(self) -> TextIO:
        if self._out is None:
            path = self.folder / "events.jsonl"
            path.unlink(missing_ok=True)  # an earlier companion may still read the old file
            self._out = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        return self._out

    def _send(self, event: str, **fields: Any) -> None:
        if self.mode == "disabled":
            return
        try:
            self._open().write(json.dumps({"event": event, **fields}) + "\n")
        except Exception as error:  # a full disk, or a value that is not JSON
            self._note(error)

    def _note(self, error: Exception) -> None:
        message = f"not all events could be sent to W&B ({type(error).__name__}: {error})"
        if message not in self.errors:
            self.errors.append(message)


def wandb_mode(default: str) -> tuple[str, str | None]:
    """The mode to use (one of ``MODES``), and an error message or None. An unknown mode is replaced by ``offline``.

    ``WANDB_MODE`` takes precedence over ``default``. Upper and lower case are equal.
    """
    wanted = os.environ.get("WANDB_MODE") or default
    mode = ALIASES.get(wanted.lower(), wanted.lower())
    if mode in MODES:
        return mode, None
    return "offline", f"W&B mode {wanted!r} is unknown: use one of {', '.join(MODES)}"


def wandb_environment(root: Path) -> dict[str, str]:
    """The environment of a process that uses W&B: ``WANDB_MODE`` as wandb accepts it, and :func:`writable_folders`."""
    env = {**os.environ, **writable_folders(root)}
    if env.get("WANDB_MODE"):
        env["WANDB_MODE"] = wandb_mode("")[0]
    return env


def writable_folders(root: Path) -> dict[str, str]:
    """Variables that move W&B's own folders to ``root/.wandb``, for those that cannot be written in the home folder."""
    home = Path("~").expanduser() if os.path.expanduser("~") != "~" else Path("/nonexistent")
    folders = {
        "WANDB_CONFIG_DIR": home / ".config" / "wandb",
        "WANDB_CACHE_DIR": home / ".cache" / "wandb",
        "WANDB_DATA_DIR": home / ".local" / "share" / "wandb",
    }
    moved = {}
    for name, folder in folders.items():
        settings = name == "WANDB_CONFIG_DIR" and folder.is_dir()  # W&B only reads it
        if name in os.environ or settings or _writable(folder):
            continue
        moved[name] = str(root / ".wandb" / name.split("_")[1].lower())
        _writable(Path(moved[name]))
    return moved


def _writable(folder: Path) -> bool:
    """Whether a folder can be written; a missing folder is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
