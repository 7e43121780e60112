"""Which variations of ScienceWorld's tasks form train, eval and test, and how many steps an episode has."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

_INDEX_FILES = {"train": "train", "eval": "dev", "test": "test"}


def read_index_files(
    folder: Path, names: Sequence[str], task_name: Callable[[str], str], check: Callable[[str], object]
) -> dict[str, list[str]]:
    """The split in ETO's index files (``sciworld_train_indices.json``, ...), limited to the tasks ``names``.

    ``task_name`` turns a name of ETO into the simulator's, ``check`` raises ValueError for a variation that does not
    exist. ValueError for a missing folder, an unusable file, and a train or test file with items of other tasks alone.
    """
    if not folder.is_dir():
        raise ValueError(f"split {str(folder)!r} is neither 'simulator' nor a folder with ETO's index files")
    split: dict[str, list[str]] = {}
    for part, word in _INDEX_FILES.items():
        path = folder / f"sciworld_{word}_indices.json"
        try:
            pairs = [(task_name(str(name)), int(variation)) for name, variation in json.loads(path.read_text("utf-8"))]
            split[part] = list(dict.fromkeys(f"{name}/{variation}" for name, variation in pairs if name in names))
            for task in split[part]:
                check(task)
        except OSError as error:
            raise ValueError(f"cannot read the index file {path} ({error.strerror})") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"index file {path}: {error}; it must contain [task name, variation] pairs") from None
        if pairs and not split[part] and part != "eval":
            others = ", ".join(sorted({name for name, _ in pairs}))
            raise ValueError(
                f"index file {path} has items of {others} alone, and the option tasks has only {', '.join(names)}: "
                "tasks=all reads the others"
            )
    return split


def step_limits(
    max_steps: int | dict[str, int] | None, split: str | Path, names: Sequence[str], task_name: Callable[[str], str]
) -> dict[str, int]:
    """The steps per episode of each task in ``names``; ``max_steps`` and ``split`` are options of ScienceWorld.

    ValueError, with the option or the file, for a limit that is not an integer of at least 1 and an unknown task.
    """
    where, by_name = "max_steps", max_steps if isinstance(max_steps, dict) else {}
    path = Path(split) / "sciworld_max_steps.json"
    if max_steps is None and split != "simulator" and path.is_file():
        where, by_name = str(path), _limits_of_file(path)
    try:
        by_name = {task_name(str(name)): steps for name, steps in by_name.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    default = 30 if max_steps is None or isinstance(max_steps, dict) else max_steps
    limits = {name: by_name.get(name, default) for name in names}
    for name, steps in limits.items():
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            at = where if where == "max_steps" else f"{where}: a limit"
            raise ValueError(f"{at} must be an integer of at least 1, not {steps!r} ({name})")
    return limits


def _limits_of_file(path: Path) -> dict[str, int]:
    try:
        limits = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the step limits in {path} ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: invalid JSON ({error}): mend it, or set max_steps") from None
    if not isinstance(limits, dict):
        raise ValueError(f'{path} must contain an object such as {{"find-animal": 10}}, not a {type(limits).__name__}')
    return limits


def limit_variations(split: dict[str, list[str]], limits: dict[str, int]) -> dict[str, list[str]]:
    """At most ``limits[part]`` variations of each task, evenly spaced, with the tasks in alternation.

    ValueError for an unknown part or a limit that is not a positive integer.
    """
    for part, count in limits.items():
        if part not in split or isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(
                f"variations: {part!r}: {count!r}; the key must be train, eval or test, the value an integer of at "
                "least 1"
            )
    chosen_split = dict(split)
    for part, count in limits.items():
        by_name: dict[str, list[str]] = {}
        for task in split[part]:
            by_name.setdefault(task.rpartition("/")[0], []).append(task)
        chosen = [_evenly_spaced(tasks, min(count, len(tasks))) for tasks in by_name.values()]
        chosen_split[part] = [tasks[i] for i in range(count) for tasks in chosen if i < len(tasks)]
    return chosen_split


def _evenly_spaced(tasks: list[str], count: int) -> list[str]:
    return [tasks[i * len(tasks) // count] for i in range(count)]
