"""Trajectories: what an expert or a policy did on one subtask, and how it is stored.

Notation of the paper (section 3): a subtask is an initial state s0; a trajectory is s0, a0, s1, a1, ...
Here ``prompt`` is the text of s0, and turn i holds a_i and the observation that followed it, so the text of
state s_(i+1) is ``turns[i].observation``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd


class TrajectoryError(ValueError):
    """A trajectory file that cannot be read; the message names the file and the line."""


@dataclass(frozen=True)
class Turn:
    """One action and the observation after it.

    ``reply`` is all that the agent said when that is more than the action (a ReAct thought); empty otherwise.
    ``learn`` is False where the action must never carry loss, whatever a method selects. ``ids``: the token ids that
    a policy sampled where its text, encoded again, would give others; ``chat`` is the hash of their scaffold.
    """

    action: str
    observation: str
    reply: str = ""
    learn: bool = True
    ids: tuple[int, ...] = ()
    chat: str = ""

    @property
    def said(self) -> str:
        """The agent's whole utterance: what a policy is trained to say."""
        return self.reply or self.action


@dataclass(frozen=True)
class Trajectory:
    """One episode on one subtask.

    ``reward`` is R in [0, 1]; ``won`` follows the environment's one definition of success (R = 1 in WebShop).
    ``outcome`` is ``done`` (the environment ended it), ``max_steps``, or an infrastructure error
    (``replay_divergence``, ``context_overflow``, ``env_error``), which is neither a win nor a loss.
    ``prefix`` counts the leading turns that were given (an expert's), not acted by ``source``.
    """

    task: str
    prompt: str
    turns: tuple[Turn, ...]
    reward: float = 0.0
    won: bool = False
    source: str = ""
    outcome: str = "done"
    prefix: int = 0
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def actions(self) -> list[str]:
        return [turn.action for turn in self.turns]

    @property
    def failed(self) -> bool:
        """Lost fairly: an infrastructure error is no failure."""
        return not self.won and self.outcome in ("done", "max_steps")

    def state(self, index: int) -> str:
        """The text seen in state s_index, 0 <= index <= len(self)."""
        if not 0 <= index <= len(self.turns):
            raise IndexError(f"state {index} of a trajectory of {len(self.turns)} turns (task {self.task})")
        return self.prompt if index == 0 else self.turns[index - 1].observation


def to_dict(trajectory: Trajectory) -> dict[str, Any]:
    """The JSON object of one line of a trajectory file; a turn without token ids has no field for them."""
    row = asdict(trajectory)
    for turn in row["turns"]:
        if not turn["ids"]:
            del turn["ids"], turn["chat"]
    return row


def from_dict(row: dict[str, Any]) -> Trajectory:
    """The inverse of :func:`to_dict`; a missing or unknown field is a :class:`TrajectoryError`."""
    try:
        turns = tuple(Turn(**{**turn, "ids": tuple(turn.get("ids", ()))}) for turn in row["turns"])
        trajectory = Trajectory(**{**row, "turns": turns})
    except KeyError as error:
        raise TrajectoryError(f"field {error} is missing") from None
    except TypeError as error:
        raise TrajectoryError(re.sub(r"^\w+\.__init__\(\) ", "", str(error))) from None
    check(trajectory)
    return trajectory


def check(trajectory: Trajectory) -> None:
    """:class:`TrajectoryError` for a trajectory that no file may hold: both :func:`load` and :func:`save` refuse it."""
    if not isinstance(trajectory.prompt, str) or not isinstance(trajectory.task, str):
        raise TrajectoryError("'task' and 'prompt' must be strings")
    check_reward(trajectory.reward)
    if type(trajectory.prefix) is not int or not 0 <= trajectory.prefix <= len(trajectory):
        raise TrajectoryError(f"'prefix' must be a number of turns, 0 to {len(trajectory)}, not {trajectory.prefix!r}")
    if not isinstance(trajectory.won, bool):
        raise TrajectoryError(f"'won' must be true or false, not {trajectory.won!r}")
    if trajectory.outcome not in OUTCOMES:
        raise TrajectoryError(f"'outcome' must be one of {', '.join(OUTCOMES)}, not {trajectory.outcome!r}")
    for index, turn in enumerate(trajectory.turns):
        if not all(isinstance(text, str) for text in (turn.action, turn.observation, turn.reply)):
            raise TrajectoryError(f"turn {index}: action, observation and reply must be strings")
        if not all(type(token) is int for token in turn.ids):
            raise TrajectoryError(f"turn {index}: 'ids' must be whole numbers")
        if not isinstance(turn.learn, bool):
            raise TrajectoryError(f"turn {index}: 'learn' must be true or false, not {turn.learn!r}")


OUTCOMES = ("done", "max_steps", "replay_divergence", "context_overflow", "env_error")


def check_reward(reward: Any) -> None:
    """:class:`TrajectoryError` unless ``reward`` is a number in [0, 1]."""
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise TrajectoryError(f"'reward' must be a number, not {reward!r}")
    if not 0 <= reward <= 1:  # true of NaN too
        raise TrajectoryError(
            f"'reward' must lie in [0, 1], not {reward!r}: divide ScienceWorld scores by 100, write 0 for a failure "
            "that it scores below 0"
        )


def save(trajectories: Iterable[Trajectory], path: str | Path) -> Path:
    """Write JSON Lines whole or not at all (a file beside it, then a rename).

    :class:`TrajectoryError` for a trajectory that :func:`load` would refuse.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8") as out:
            for number, trajectory in enumerate(trajectories, start=1):
                try:
                    check(trajectory)
                except TrajectoryError as error:
                    where = f"trajectory {number} (task {trajectory.task})"
                    raise TrajectoryError(f"{path} was not written, {where}: {error}") from None
                out.write(json.dumps(to_dict(trajectory)) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> list[Trajectory]:
    """Read a trajectory file: our JSON Lines, or ETO's ShareGPT conversations (a JSON list or JSON Lines).

    Raises :class:`TrajectoryError` with file and line for anything torn, and :class:`FileNotFoundError`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no trajectory file at {path}: check the parameter that names it")
    trajectories = []
    for where, row in _rows(path):
        try:
            if not isinstance(row, dict):
                raise TrajectoryError(f"a JSON object was expected, not {type(row).__name__}")
            trajectories.append(from_sharegpt(row) if "conversations" in row else from_dict(row))
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}, {where}: {error}") from None
    return trajectories


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    data = path.read_bytes()
    if data.lstrip().startswith(b"["):
        try:
            rows = json.loads(data.decode("utf-8"))
        except ValueError as error:
            raise TrajectoryError(f"{path}: the file is torn or no JSON ({error})") from None
        yield from ((f"item {number}", row) for number, row in enumerate(rows))
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8"))  # a tear inside a character is a UnicodeDecodeError
            except ValueError as error:
                raise TrajectoryError(
                    f"{path}, line {number}: the line is torn or no JSON ({getattr(error, 'msg', error)}); "
                    "restore the file, or delete the line to go on without it"
                ) from None
            yield f"line {number}", row


_ACTION = re.compile(r"Action: (.*)", re.DOTALL)  # as ETO's environments read it: what they executed
_ETO_TASKS = (  # ScienceWorld's tasks as ETO numbers them in its ids, in the order of its long names
    "boil", "change-the-state-of-matter-of", "freeze", "melt", "measure-melting-point-known-substance",
    "measure-melting-point-unknown-substance", "use-thermometer", "power-component",
    "power-component-renewable-vs-nonrenewable-energy", "test-conductivity", "test-conductivity-of-unknown-substances",
    "find-animal", "find-living-thing", "find-non-living-thing", "find-plant", "grow-fruit", "grow-plant",
    "chemistry-mix", "chemistry-mix-paint-secondary-color", "chemistry-mix-paint-tertiary-color",
    "lifespan-longest-lived", "lifespan-longest-lived-then-shortest-lived", "lifespan-shortest-lived",
    "identify-life-stages-1", "identify-life-stages-2", "inclined-plane-determine-angle",
    "inclined-plane-friction-named-surfaces", "inclined-plane-friction-unnamed-surfaces",
    "mendelian-genetics-known-plant", "mendelian-genetics-unknown-plant",
)  # fmt: skip


def _eto_task(name: str) -> tuple[str, bool]:
    """The subtask of an ETO id, and whether it is ScienceWorld's: ``42`` and ``webshop_42`` are not, ``11_7`` is."""
    number, _, variation = name.partition("_")
    if re.fullmatch(r"\d+_\d+", name, re.ASCII) and int(number) < len(_ETO_TASKS):
        return f"{_ETO_TASKS[int(number)]}/{variation}", True
    return name.rsplit("_", 1)[-1], False


def from_sharegpt(row: dict[str, Any]) -> Trajectory:
    """One of ETO's published conversations as a trajectory.

    ETO's layout: human instruction, gpt "OK", then human observation and gpt reply in turns; observations after
    the first carry an ``Observation:`` prefix, replies a ``Thought: ... Action: ...`` body. Per-message ``loss``
    flags become ``learn``. A reply that ETO's wrapper turned away for its format never reached the environment: its
    action is empty, and it never carries loss. ``won`` needs reward 1; ETO's own ``success`` only says that something
    was bought. ETO's ScienceWorld file holds solutions alone, without a reward: it counts as 1 there, as in ETO's own
    code, and ``info["reward"]`` says so. (The first page there is the task's description without the look around that
    our environment adds: such trajectories are to learn from, not to be replayed.)
    """
    messages = row["conversations"]
    try:
        said = [(message["from"], message["value"], message.get("loss")) for message in messages]
        if not all(isinstance(text, str) for _, text, _ in said):
            raise TypeError
        for _, _, loss in said:
            if loss is not None and not isinstance(loss, (bool, int)):
                raise TrajectoryError(f"'loss' of a message must be true or false, not {loss!r}")
    except (KeyError, TypeError, AttributeError):
        raise TrajectoryError("each message of 'conversations' needs 'from' and 'value'") from None
    if len(said) >= 2 and said[1][0] == "gpt" and said[1][1].strip().lower().rstrip(".!") == "ok":
        said = said[2:]
    if not said or said[0][0] != "human":
        raise TrajectoryError("no human message opens the conversation")
    turns = []
    for place in range(1, len(said), 2):
        who, reply, loss = said[place]
        if who != "gpt":
            raise TrajectoryError(f"message {place} is from {who!r}, not from 'gpt': turns must alternate")
        if place + 1 < len(said) and said[place + 1][0] != "human":
            raise TrajectoryError(
                f"message {place + 1} is from {said[place + 1][0]!r}, not from 'human': turns must alternate"
            )
        reply = reply.strip()
        match = _ACTION.search(reply)
        after = re.sub(r"^Observation:\s?", "", said[place + 1][1] if place + 1 < len(said) else "")
        unheard = match is None and after.startswith("Invalid format.")
        turns.append(
            Turn(
                action=match.group(1).strip() if match else "" if unheard else reply,
                observation=after,
                reply=reply if match or unheard else "",
                learn=(loss is None or bool(loss)) and not unheard,
            )
        )
    name = str(row.get("id", row.get("task", "")))
    task, science = _eto_task(name)
    info = {"id": str(row.get("id", ""))}
    if science and "reward" not in row:
        row, info = {**row, "reward": 1.0}, {**info, "reward": "not in the file: a solution, by ETO's count"}
    if "reward" not in row:
        raise TrajectoryError(
            "the conversation has no 'reward' ('success' only says that something was bought): add it, 1 for a win"
        )
    check_reward(row["reward"])
    return Trajectory(
        task=task,
        prompt=said[0][1],
        turns=tuple(turns),
        reward=float(row["reward"]),
        won=row["reward"] == 1,
        source=str(row.get("source", "eto")),
        info=info,
    )


def frame(trajectories: Iterable[Trajectory]) -> pd.DataFrame:
    """One row per turn: task, source, won, reward, turn, action, observation, learn, given."""
    rows = [
        {
            "task": trajectory.task,
            "source": trajectory.source,
            "won": trajectory.won,
            "reward": trajectory.reward,
            "turn": index,
            "action": turn.action,
            "observation": turn.observation,
            "learn": turn.learn,
            "given": index < trajectory.prefix,
        }
        for trajectory in trajectories
        for index, turn in enumerate(trajectory.turns)
    ]
    columns = ["task", "source", "won", "reward", "turn", "action", "observation", "learn", "given"]
    return pd.DataFrame(rows, columns=columns)


def without_loss(trajectory: Trajectory, turns: Iterable[int]) -> Trajectory:
    """The same trajectory with the named turns barred from loss."""
    barred = set(turns)
    return replace(
        trajectory,
        turns=tuple(replace(turn, learn=turn.learn and i not in barred) for i, turn in enumerate(trajectory.turns)),
    )
