"""The finished episodes of a stage, saved as they end, so that a killed stage resumes after them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from eef.files import RunError, disk_errors
from eef.trajectory import Trajectory, from_dict, to_dict


@dataclass
class Journal:
    """A file of JSON Lines; without a ``path`` nothing is saved. ``episodes`` maps the number of a start to its
    trajectory. Several threads may append.
    """

    path: Path | None = None
    episodes: dict[int, Trajectory] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | None) -> Journal:
        """Read the journal at ``path``, if there is one. A last line that a killed process did not complete is removed.

        RunError for another line that is not valid.
        """
        journal = cls(path)
        if path is None:
            return journal
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
            if lines[-1]:
                os.truncate(path, path.stat().st_size - len(lines[-1]))
        for place, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                journal.episodes[row["number"]] = from_dict(row["trajectory"])
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(
                    f"{path}, line {place}: {error}; delete the file, its episodes are played again"
                ) from None
        return journal

    def missing(self, numbers: Iterable[int], on_progress: Callable[[int, int, int], None] | None) -> list[int]:
        """Those of ``numbers`` whose episodes are not saved.

        ``on_progress(1, 1 if it was won else 0, tokens)`` is called for each of the others.
        """
        missing = []
        for number in numbers:
            saved = self.episodes.get(number)
            if saved is None:
                missing.append(number)
            elif on_progress:
                on_progress(1, int(saved.won), int(saved.info.get("tokens", 0)))
        return missing

    def append(self, number: int, trajectory: Trajectory) -> None:
        """Save the episode of the start ``number``."""
        self.episodes[number] = trajectory
        if self.path is None:
            return
        line = (json.dumps({"number": number, "trajectory": to_dict(trajectory)}) + "\n").encode()
        with self._lock, disk_errors(self.path), open(self.path, "ab") as out:
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
