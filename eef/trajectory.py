"""Trajectories: what an expert or a policy did on one subtask, and how it is stored.

The paper's notation (section 3): a subtask is an initial state s0; a trajectory is s0, a0, s1, a1, ...
``prompt`` is the text of s0, and ``turns[i]`` holds a_i and the observation that follows it, the text of s_(i+1).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.conversations import EXPLANATIONS, subtask_of
from eef.files import did_you_mean, json_rows

if TYPE_CHECKING:
    import pandas as pd

VERSION, TASK = 1, "Now your task.\n\n"  # of the format of a line; what ReAct has before the first page


class TrajectoryError(ValueError):
    """A trajectory file cannot be read. The message names the file and the line."""


@dataclass(frozen=True)
class Turn:
    """One action and the observation after it.

    ``reply``: the agent's complete answer if it is more than the action (a ReAct thought), else empty.
    ``learn``: False if the action must never carry loss, whatever a method selects.
    ``ids``: the token ids that a policy sampled, where encoding the text again would give other ids; else empty.
    ``chat``: the hash of the scaffold that ``ids`` belong to.
    """

    action: str
    observation: str
    reply: str = ""
    learn: bool = True
    ids: tuple[int, ...] = ()
    chat: str = ""

    @property
    def answer(self) -> str:
        """The agent's complete answer, thoughts included, on which a policy is trained."""
        return self.reply or self.action


@dataclass(frozen=True)
class Trajectory:
    """One episode on one subtask.

    ``reward`` is R in [0, 1]. ``won`` is the environment's own definition of success.
    ``outcome`` is ``done`` (the environment ended the episode), ``max_steps``, ``context_overflow``, or an error
    (``replay_divergence``, ``env_error``), which counts neither as a win nor as a loss, as an overflow before a turn.
    ``prefix`` is the number of leading turns that were replayed from an expert and not played by ``source``.
    ``info["no_replay"]`` is the reason why an expert's trajectory cannot be replayed; it is then only learnt from.
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
        """Whether the episode was lost. An infrastructure error is not a failure."""
        overflow = self.outcome == "context_overflow" and len(self) > self.prefix
        return not self.won and (overflow or self.outcome in ("done", "max_steps"))

    def state(self, index: int) -> str:
        """The text of state s_index, 0 <= index <= len(self)."""
        if not 0 <= index <= len(self.turns):
            raise IndexError(f"state {index} of a trajectory of {len(self.turns)} turns (task {self.task})")
        return self.prompt if index == 0 else self.turns[index - 1].observation


def to_dict(trajectory: Trajectory) -> dict[str, Any]:
    """The JSON object of one line of a trajectory file. Turns without token ids have no field for them."""
    row = asdict(trajectory)
    for turn in row["turns"]:
        if not turn["ids"]:
            del turn["ids"], turn["chat"]
    return row


def from_dict(row: dict[str, Any]) -> Trajectory:
    """The inverse of :func:`to_dict`. ``won`` may be left out only where ``reward`` is 0 or left out.

    A field ``version`` may say which version of the format a line has; there is only 1. Raises
    :class:`TrajectoryError` for a missing, unknown or invalid field.
    """
    if not isinstance(row, dict):
        raise TrajectoryError(f"a JSON object was expected, not {type(row).__name__}")
    if row.get("version", VERSION) != VERSION:
        raise TrajectoryError(f"'version' must be {VERSION}, not {row['version']!r}: update eef, or convert the file")
    row = {name: value for name, value in row.items() if name != "version"}
    _check_fields(row, Trajectory, "")
    if not isinstance(row["turns"], (list, tuple)):
        raise TrajectoryError(f"'turns' must be a list, not {row['turns']!r}")
    turns = []
    for index, turn in enumerate(row["turns"]):
        if not isinstance(turn, dict):
            raise TrajectoryError(f"turn {index + 1} must be an object with 'action' and 'observation', not {turn!r}")
        _check_fields(turn, Turn, f"turn {index + 1}: ")
        if not isinstance(turn.get("ids", ()), (list, tuple)):
            raise TrajectoryError(f"turn {index + 1}: 'ids' must be a list of integers")
        turns.append(Turn(**{**turn, "ids": tuple(turn.get("ids", ()))}))
    trajectory = Trajectory(**{**row, "turns": tuple(turns)})
    check(trajectory)
    if "won" not in row and trajectory.reward > 0:
        why = f"field 'won' is missing, with 'reward' {trajectory.reward:g}"
        raise TrajectoryError(f'{why}: write "won": true if the environment counts it as solved, else "won": false')
    return trajectory


def _check_fields(row: dict[str, Any], kind: type, where: str) -> None:
    """Raise :class:`TrajectoryError` for a field of a dataclass that is missing, or that the dataclass lacks."""
    names = [each.name for each in fields(kind)]
    for name in row:
        if name not in names:
            hint = did_you_mean(name, names)
            raise TrajectoryError(f"{where}unknown field {name!r}{hint}; the fields are {', '.join(names)}")
    for each in fields(kind):
        if each.default is MISSING and each.default_factory is MISSING and each.name not in row:
            raise TrajectoryError(f"{where}field {each.name!r} is missing")


def check(trajectory: Trajectory) -> None:
    """Raise :class:`TrajectoryError` for a trajectory that :func:`load` and :func:`save` refuse."""
    if not isinstance(trajectory.prompt, str) or not isinstance(trajectory.task, str):
        raise TrajectoryError("'task' and 'prompt' must be strings")
    check_reward(trajectory.reward)
    if type(trajectory.prefix) is not int or not 0 <= trajectory.prefix <= len(trajectory):
        raise TrajectoryError(f"'prefix' must be a number of turns, 0 to {len(trajectory)}, not {trajectory.prefix!r}")
    if not isinstance(trajectory.won, bool):
        raise TrajectoryError(f"'won' must be true or false, not {trajectory.won!r}")
    if not isinstance(trajectory.source, str):
        raise TrajectoryError(f"'source' must be a string, not {trajectory.source!r}")
    if not isinstance(trajectory.info, dict):
        raise TrajectoryError(f"'info' must be a JSON object, not {trajectory.info!r}")
    if trajectory.outcome not in OUTCOMES:
        raise TrajectoryError(f"'outcome' must be one of {', '.join(OUTCOMES)}, not {trajectory.outcome!r}")
    for index, turn in enumerate(trajectory.turns):
        if not all(isinstance(text, str) for text in (turn.action, turn.observation, turn.reply)):
            raise TrajectoryError(f"turn {index + 1}: action, observation and reply must be strings")
        if not all(type(token) is int for token in turn.ids):
            raise TrajectoryError(f"turn {index + 1}: 'ids' must be integers")
        if not isinstance(turn.chat, str):
            raise TrajectoryError(f"turn {index + 1}: 'chat' must be a string, not {turn.chat!r}")
        if not isinstance(turn.learn, bool):
            raise TrajectoryError(f"turn {index + 1}: 'learn' must be true or false, not {turn.learn!r}")


OUTCOMES = ("done", "max_steps", "replay_divergence", "context_overflow", "env_error")


def check_reward(reward: Any) -> None:
    """Raise :class:`TrajectoryError` unless ``reward`` is a number in [0, 1]."""
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise TrajectoryError(f"'reward' must be a number, not {reward!r}")
    if not 0 <= reward <= 1:  # refuses NaN too
        raise TrajectoryError(
            f"'reward' must lie in [0, 1], not {reward!r}: divide a score out of 100 by 100, and write 0 for a "
            "negative score"
        )


def save(trajectories: Iterable[Trajectory], path: str | Path) -> Path:
    """Write a JSON Lines file completely or not at all: to a temporary file first, which is then renamed.

    Raises :class:`TrajectoryError` for a trajectory that :func:`load` would refuse.
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

    Raises :class:`TrajectoryError`, with file and line, for truncated or invalid JSON and for invalid trajectories,
    and :class:`FileNotFoundError`.
    """
    return [trajectory for _, trajectory in load_lines(path)]


def load_lines(path: str | Path) -> list[tuple[str, Trajectory]]:
    """As :func:`load`, each trajectory with its place in the file: ``line 3``, or ``item 2`` of a JSON list, from 1."""
    path, trajectories = Path(path), []
    if not path.is_file():
        raise FileNotFoundError(f"no trajectory file at {path}: check the parameter that names it")
    for where, row in placed_rows(path):
        try:
            ours = not isinstance(row, dict) or "conversations" not in row
            trajectories.append((where, from_dict(row) if ours else from_sharegpt(row)))
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}, {where}: {error}") from None
    return trajectories


def placed_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """As :func:`eef.files.json_rows`. TrajectoryError for a file that it cannot read."""
    try:
        yield from json_rows(path)
    except ValueError as error:
        raise TrajectoryError(str(error)) from None


_ACTION = re.compile(r"Action: (.*)", re.DOTALL)  # the expression by which ETO's environments read actions


def from_sharegpt(row: dict[str, Any]) -> Trajectory:
    """Convert one of ETO's published conversations.

    ETO's layout: human instruction, gpt "OK", then human observations and gpt replies in turns. Observations after the
    first have an ``Observation:`` prefix, which is removed if all of them have it; replies have the form ``Thought: ...
    Action: ...``. The ``loss`` flag of a message becomes ``learn``. A reply that ETO's wrapper rejected for its format,
    or after which the page is one of our explanations, never reached the environment: its action is empty, and it never
    carries loss.

    ``won`` requires reward 1; ETO's ``success`` only says that something was bought. Conversations whose id has the
    form ``TASK_VARIATION`` and that have no reward are solutions: they get reward 1, as in ETO's code, and
    ``info["reward"]`` says so. Ids of that form belong to conversations whose first page lacks the first look around,
    so they cannot be replayed: ``info["no_replay"]`` says so.

    The fields ``opening``, ``task``, ``won``, ``outcome`` and ``prefix`` count where a row has them, as those that
    ``eef export`` writes. ``opening`` is the number of messages before the first page. ``task`` does not count where it
    is the name of a benchmark (:func:`eef.conversations.subtask_of`).
    """
    try:
        messages = [(message["from"], message["value"], message.get("loss")) for message in row["conversations"]]
        if not all(isinstance(text, str) for _, text, _ in messages):
            raise TypeError
        for _, _, loss in messages:
            if loss is not None and not isinstance(loss, (bool, int)):
                raise TrajectoryError(f"'loss' of a message must be true or false, not {loss!r}")
    except (KeyError, TypeError, AttributeError):
        raise TrajectoryError("each message of 'conversations' needs 'from' and 'value'") from None
    instructed = len(messages) >= 2 and messages[1][0] == "gpt" and messages[1][1].strip().lower().rstrip(".!") == "ok"
    opening = row.get("opening")
    if opening is None:
        opening = 2 * instructed
    elif type(opening) is not int or not 0 <= opening < max(len(messages), 1):
        raise TrajectoryError(f"'opening' must be the number of messages before the first page, not {opening!r}")
    messages, base = messages[opening:], opening + 1
    if not messages or messages[0][0] != "human":
        raise TrajectoryError(
            "the conversation does not begin with a message from 'human'; `eef import FILE --format sharegpt` also "
            "reads system messages and other names of roles"
        )
    prefix = all(re.match("Observation:", text) for sender, text, _ in messages[1:] if sender == "human")
    turns = []
    for index in range(1, len(messages), 2):
        sender, reply, loss = messages[index]
        if sender != "gpt":
            raise TrajectoryError(f"message {base + index} is from {sender!r}, not from 'gpt': turns must alternate")
        if index + 1 < len(messages) and messages[index + 1][0] != "human":
            raise TrajectoryError(
                f"message {base + index + 1} is from {messages[index + 1][0]!r}, not from 'human': turns must alternate"
            )
        reply = reply.strip()
        match = _ACTION.search(reply)
        page = messages[index + 1][1] if index + 1 < len(messages) else ""
        observation = re.sub(r"^Observation:\s?", "", page) if prefix else page
        explained = observation in EXPLANATIONS.values()  # our agents read no action, whatever the reply looks like
        rejected = explained or (match is None and observation.startswith("Invalid format."))
        turns.append(
            Turn(
                action="" if rejected else match.group(1).strip() if match else reply,
                observation=observation,
                reply=reply if match or rejected else "",
                learn=(loss is None or bool(loss)) and not rejected,
            )
        )
    task, numbered = subtask_of(row)
    info = {"id": str(row.get("id", ""))} | ({"no_replay": "the first page lacks the look around"} if numbered else {})
    if numbered and "reward" not in row:
        row, info = {**row, "reward": 1.0}, {**info, "reward": "not in the file; ETO counts it as a solution"}
    if "reward" not in row:
        raise TrajectoryError(
            "the conversation has no 'reward' ('success' only says that something was bought): add it, 1 for a win"
        )
    check_reward(row["reward"])
    end = {"won": row["reward"] == 1}
    end |= {key: row[key] for key in ("won", "outcome", "prefix") if row.get(key) is not None}
    source, prompt = str(row.get("source", "eto")), messages[0][1].removeprefix(TASK if row.get("opening") else "")
    item = Trajectory(task, prompt, tuple(turns), float(row["reward"]), source=source, info=info, **end)
    check(item)
    return item


def frame(trajectories: Iterable[Trajectory]) -> pd.DataFrame:
    """One row per turn: task, source, won, reward, turn, action, observation, learn, in_prefix."""
    import pandas as pd  # slow

    columns = ["task", "source", "won", "reward", "turn", "action", "observation", "learn", "in_prefix"]
    rows = [
        (t.task, t.source, t.won, t.reward, i, turn.action, turn.observation, turn.learn, i < t.prefix)
        for t in trajectories
        for i, turn in enumerate(t.turns)
    ]
    return pd.DataFrame(rows, columns=columns)


def without_loss(trajectory: Trajectory, turns: Iterable[int]) -> Trajectory:
    """The same trajectory, in which the turns with the given indices never carry loss."""
    masked = set(turns)
    changed = tuple(replace(turn, learn=turn.learn and i not in masked) for i, turn in enumerate(trajectory.turns))
    return replace(trajectory, turns=changed)
