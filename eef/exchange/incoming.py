"""Conversations of others as trajectories: the Agent Data Protocol, and messages with or without masks.

Every form becomes one of ETO's conversations, which :func:`eef.trajectory.from_sharegpt` reads: it finds the turns and
the masks. The action of an answer is then read as that of a policy (:mod:`eef.agents.actions`), and that of a call is
the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eef.agents.actions import EXPLANATIONS, Problem, read_action
from eef.exchange.formats import MASK_KEYS, import_pyarrow
from eef.trajectory import (
    TASK,
    Trajectory,
    TrajectoryError,
    Turn,
    check,
    from_sharegpt,
    placed_rows,
)

Message = dict[str, Any]  # from, value and perhaps loss, as ETO writes them; action, where the answer is a call
_KEYS = (*MASK_KEYS, "weight")  # of masks: those that we export, and OpenAI's
_ROLES = {"user": "human", "human": "human", "tool": "human", "assistant": "gpt", "gpt": "gpt", "agent": "gpt"}
_FINISH = re.compile(r"\s*<finish>(.*?)(</finish>)?\s*", re.DOTALL)  # how the protocol marks a last message


def rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON list, JSON Lines or a parquet file, each with its place: ``line 3``, ``row 3``.

    FileNotFoundError; TrajectoryError for invalid JSON; ValueError where parquet cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    if path.suffix != ".parquet":
        yield from placed_rows(path)
        return
    table = import_pyarrow(path).parquet.read_table(path)
    yield from ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))


def read(
    path: Path, form: str, key: str | None = None, reward: float | None = None
) -> list[tuple[str, Trajectory, bool]]:
    """The trajectories of a file in the format ``form`` (a name in ``FORMATS``), each with its place and whether the
    end is known.

    ``key`` names the mask of messages; None takes the one known key that they have. ``reward`` is for rows that give
    none; 1 counts as a win. The end is unknown where neither gives one: :func:`play_ends` finds it out.
    :class:`TrajectoryError` names the file and the place of a row that cannot be read. It also refuses a ``key`` that
    no message of the file has: every answer would carry loss.
    """
    if key and form == "adp":
        raise TrajectoryError("the format adp has no masks: leave out --mask-key")
    trajectories, keys = [], dict[str, None]()
    for where, row in rows_of_file(path):
        try:
            if not isinstance(row, dict):
                raise TrajectoryError(f"a JSON object was expected, not {type(row).__name__}")
            messages, known = FORMATS[form](row, key)
            if key:
                keys |= dict.fromkeys(_keys_of(row.get("messages" if form == "messages" else "conversations"), key))
            trajectories.append((where, *_trajectory(row, messages, known, reward)))
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}, {where}: {error}") from None
    if not trajectories:
        raise TrajectoryError(f"{path} is empty")
    if key and key not in keys:
        others = f"have {', '.join(keys)}: choose one of these with" if keys else "have no mask: leave out"
        raise TrajectoryError(f"{path}: no message has the mask {key!r}; the messages {others} --mask-key")
    return trajectories


def _trajectory(
    row: Mapping[str, Any], messages: list[Message], known: float | None, reward: float | None
) -> tuple[Trajectory, bool]:
    end = row.get("reward") if row.get("reward") is not None else known if known is not None else reward
    conversation = {"conversations": messages, "reward": 0.0 if end is None else end}
    conversation |= {name: row[name] for name in ("opening", "task", "outcome") if row.get(name) is not None}
    names = {name: row[name] for name in ("id", "item_id", "session_id") if row.get(name) is not None}
    if row.get("task") is None and not names:
        raise TrajectoryError("there is no 'task': write the id of the subtask")
    if names and (row.get("task") is None or "id" in names):  # the task may be the name of a benchmark
        conversation["id"] = next(iter(names.values()))
    item = from_sharegpt(conversation)
    calls = [message.get("action") for message in messages if message["from"] == "gpt"]
    calls = calls[len(calls) - len(item) :]  # without an answer "OK" to instructions
    turns = tuple(_turn(number, *pair) for number, pair in enumerate(zip(item.turns, calls, strict=True), start=1))
    fields: dict[str, Any] = {"prompt": item.prompt.removeprefix(TASK), "source": "import", "turns": turns}
    fields |= {name: row[name] for name in ("source", "won", "outcome", "prefix") if row.get(name) is not None}
    item = replace(item, **fields, info={name: value for name, value in item.info.items() if value})
    check(item)
    return item, end is not None


def _turn(number: int, turn: Turn, call: str | None) -> Turn:
    """``turn`` with its action as a policy's would be read. ``call`` is the action of an answer that is a call.

    An invented page is cut off. An answer without one readable action did nothing and never carries loss.
    """
    reply, action = turn.answer, call or ""
    if call is None:
        if not reply and turn.learn:  # an empty answer that a mask leaves out is one of a policy
            raise TrajectoryError(f"turn {number}: the answer is empty: it has neither a text nor a call")
        if not turn.action or turn.observation in EXPLANATIONS.values():  # ETO's wrapper or ours rejected it
            return replace(turn, action="", reply=reply, learn=False)
        answer = read_action(reply)
        if answer.problem is Problem.NO_ACTION:  # without a label the whole answer is an action
            answer = read_action(reply, react=False)
        if answer.problem:
            return replace(turn, action="", reply=reply, learn=False)
        reply, action = reply[: answer.end].rstrip(), answer.action
    return replace(turn, action=action, reply="" if reply == action else reply)


# Formats


def _messages(row: Mapping[str, Any], key: str | None) -> tuple[list[Message], None]:
    return _conversation(row, "messages", "role", "content", key), None


def _sharegpt(row: Mapping[str, Any], key: str | None) -> tuple[list[Message], None]:
    return _conversation(row, "conversations", "from", "value", key), None


def _conversation(row: Mapping[str, Any], field: str, role: str, content: str, key: str | None) -> list[Message]:
    messages = row.get(field)
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise TrajectoryError(f"{field!r} must be a list of messages")
    key = key or _only_key(messages)
    said: list[Message] = []
    for place, message in enumerate(messages, start=1):
        if message.get(role) == "system" and not said:
            continue  # instructions are the environment's business
        sender, text = _ROLES.get(str(message.get(role))), message.get(content)
        calls = _calls(message, place) if sender == "gpt" else []
        if sender is None or not (isinstance(text, str) or calls):
            raise TrajectoryError(
                f"message {place} needs {role!r}, one of {', '.join(_ROLES)}, and {content!r}, a text, or 'tool_calls' "
                "of an assistant"
            )
        value = message.get(key) if key and sender == "gpt" else None
        if value not in (None, 0, 1):
            raise TrajectoryError(f"message {place}: {key!r} must be true, false, 0 or 1, not {value!r}")
        thought = message.get("reasoning_content") or ""
        answer = {"from": sender, "value": _after(thought, text) if sender == "gpt" and not calls else text}
        if calls:
            function = _object(calls[0].get("function"), f"the function of message {place}")
            thought = thought or text or ""
            answer = _call(f"message {place}", function.get("name"), _parsed(function.get("arguments")), thought)
        said.append({**answer, "loss": value if value is None else bool(value)})
    return said


def _calls(message: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    """The calls of an assistant's message, none or one: OpenAI's ``tool_calls``, formerly ``function_call``."""
    calls = _list(message.get("tool_calls"), f"'tool_calls' of message {place}")
    if message.get("function_call"):
        calls = [*calls, {"function": message["function_call"]}]
    if len(calls) > 1:
        raise TrajectoryError(f"message {place} has {len(calls)} calls: one is a turn")
    return [_object(call, f"the call of message {place}") for call in calls]


def _parsed(arguments: Any) -> Any:
    """The arguments of a call, which OpenAI writes as JSON in a text; a text that is not JSON stays."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _keys_of(messages: Any, *more: str) -> list[str]:
    """The keys of masks that some message has. Parquet files have every key in every message, perhaps without value."""
    names = dict.fromkeys((*_KEYS, *more))
    return [name for name in names if any(message.get(name) is not None for message in messages)]


def _only_key(messages: Sequence[Mapping[str, Any]]) -> str | None:
    keys = _keys_of(messages)
    if len(keys) > 1:
        raise TrajectoryError(f"the messages have the masks {', '.join(keys)}: choose one with --mask-key")
    return keys[0] if keys else None


def _protocol(row: Mapping[str, Any], key: str | None) -> tuple[list[Message], float | None]:
    """Agent Data Protocol: ``content`` of actions and observations (its own schema), or ``steps`` (ATIF)."""
    if isinstance(row.get("steps"), list):
        said, known = _atif(row["steps"]), _object(row.get("final_metrics"), "'final_metrics'").get("reward")
    elif isinstance(row.get("content"), list):
        said, known = _standard(row["content"]), _object(row.get("details"), "'details'").get("reward")
        if known is None and row["content"]:
            known = row["content"][-1].get("reward")
    else:
        raise TrajectoryError("a trajectory of the Agent Data Protocol has a list 'content' or 'steps'")
    if said and said[-1]["from"] == "gpt" and not said[-1]["value"].strip():
        said.pop()  # an empty closing message
    return said, known


def _standard(content: Sequence[Mapping[str, Any]]) -> list[Message]:
    said: list[Message] = []
    for place, item in enumerate(content, start=1):
        kind = _object(item, f"item {place}").get("class_")
        thought = item.get("reasoning_content") or item.get("description") or ""
        if kind == "text_observation" and item.get("source") == "system" and not said:
            continue
        if kind == "text_observation":
            said.append({"from": "human", "value": _text(item.get("content"), f"the content of item {place}")})
        elif kind == "message_action":
            text = _unfinished(item.get("content"), f"the message of item {place}")
            said.append({"from": "gpt", "value": _after(thought, text)})
        elif kind == "api_action":
            said.append(_call(f"item {place}", item.get("function"), item.get("kwargs"), thought))
        else:
            raise TrajectoryError(f"item {place} is a {kind!r}: an environment of texts has no such action or page")
    return said


def _atif(steps: Sequence[Mapping[str, Any]]) -> list[Message]:
    said: list[Message] = []
    for place, step in enumerate(steps, start=1):
        message, source = _object(step, f"step {place}").get("message") or "", step.get("source")
        if source == "system" and not said:
            continue
        if source != "agent":
            said.append({"from": "human", "value": _text(message, f"the message of step {place}")})
            continue
        calls = _list(step.get("tool_calls"), f"'tool_calls' of step {place}")
        observation = _object(step.get("observation"), f"'observation' of step {place}")
        results = _list(observation.get("results"), f"'results' of step {place}")
        if len(calls) > 1 or len(results) > 1:
            raise TrajectoryError(f"step {place} has {len(calls)} calls and {len(results)} results: one each is a turn")
        if calls:
            thought, call = step.get("reasoning_content") or message, _object(calls[0], f"the call of step {place}")
            said.append(_call(f"step {place}", call.get("function_name"), call.get("arguments"), thought))
        else:
            text = _unfinished(message, f"the message of step {place}")
            said.append({"from": "gpt", "value": _after(step.get("reasoning_content") or "", text)})
        for result in results:
            page = _object(result, f"the result of step {place}").get("content")
            said.append({"from": "human", "value": _text(page, f"the content of the result of step {place}")})
    return said


def _object(value: Any, what: str) -> dict[str, Any]:
    """``value``, or an empty object for None. TrajectoryError if it is something else."""
    if not isinstance(value, (dict, type(None))):
        raise TrajectoryError(f"{what} must be a JSON object, not {value!r}")
    return value or {}


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, (list, type(None))):
        raise TrajectoryError(f"{what} must be a list, not {value!r}")
    return value or []


def _call(where: str, function: Any, arguments: Any, thought: Any) -> Message:
    """A call as an action: ``function[argument]``, after its thought."""
    _text(thought, f"the thought of {where}")
    values = list(arguments.values()) if isinstance(arguments, dict) else []
    if not isinstance(function, str) or len(values) != 1 or not isinstance(values[0], (str, int, float)):
        raise TrajectoryError(
            f"{where} calls {function!r} with {arguments!r}: only a call with one argument is an action, such as "
            "click[buy now]"
        )
    action = f"{function}[{values[0]}]"
    value = f"Thought: {thought}\nAction: {action}" if thought.strip() else action
    return {"from": "gpt", "value": value, "action": action}


def _after(thought: Any, text: Any) -> Any:
    """A text answer after the thought in a field beside it."""
    if not (isinstance(thought, str) and isinstance(text, str) and thought.strip() and text.strip()):
        return text
    label = "Action: " if read_action(text).problem is Problem.NO_ACTION else ""
    return f"Thought: {thought.strip()}\n{label}{text}"


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TrajectoryError(f"{what} must be a text, not {value!r}")
    return value


def _unfinished(value: Any, what: str) -> str:
    text = _text(value, what)
    match = _FINISH.fullmatch(text)
    return match[1].strip() if match else text


FORMATS: dict[str, Callable[[Mapping[str, Any], str | None], tuple[list[Message], float | None]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "adp": _protocol,
}
