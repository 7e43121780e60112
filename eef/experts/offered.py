"""Expert actions as constrained decoding writes them.

It offers the texts of ``available_actions``, such as ``click[next >]``. An environment may also accept another case,
such as ``click[Next >]`` in a file, on which a policy would be trained without ever being able to say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from eef.agents.search_words import search_words
from eef.envs import EnvError, TextEnv, action_texts, actions_now, first_page, on_workers, take_step
from eef.trajectory import Trajectory, Turn


class Offered(NamedTuple):
    """A trajectory with actions as they are offered, the changes (before, after), and the actions that never are."""

    trajectory: Trajectory
    changes: list[tuple[str, str]]
    unavailable: list[str]


def as_offered(env: TextEnv, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """``trajectories`` with each action as ``env`` offers it: equal but for case and blanks. They are replayed once.

    Those that cannot be replayed stay as they are. Prints how many actions were changed, and warns of those that
    constrained decoding never offers.
    """
    results = on_workers(env, trajectories, _replayed)
    changes = [change for each in results for change in each.changes]
    unavailable = [(each.trajectory, action) for each in results for action in each.unavailable]
    if changes:
        before, after = changes[0]
        print(
            f"[experts] {len(changes)} expert actions are written as constrained decoding says them, such as "
            f"{after!r} for {before!r}",
            flush=True,
        )
    if unavailable:
        item, action = unavailable[0]
        total = sum(bool(turn.action) for each in trajectories for turn in each.turns)
        print(
            f"[experts] warning: {len(unavailable)} of {total} expert actions are learnt though constrained decoding "
            f"cannot say them; the first: {action!r}, {item.source} on task {item.task}. They are not available, or "
            "search for words that are not on the first page: leave such trajectories out, or set "
            "constrained_decoding=False",
            flush=True,
        )
    return [each.trajectory for each in results]


def _replayed(worker: Callable[[], TextEnv], item: Trajectory) -> Offered:
    if "no_replay" in item.info or not (item.won or item.failed):
        return Offered(item, [], [])
    try:
        return _offered(worker(), item)
    except EnvError:  # the environment failed: neither won nor lost
        return Offered(replace(item, won=False, outcome="env_error"), [], [])


def _offered(env: TextEnv, item: Trajectory) -> Offered:
    own = search_words(first_page(env, item.task))
    words = {word.casefold(): word for word in own[::-1]} | {word: word for word in own}
    turns: list[Turn] = []
    changes, unavailable = [], []
    for turn in item.turns:
        if turn.action:  # an answer without an action does not reach the environment
            action = _available(turn.action, actions_now(env, item.task), words)
            is_valid = take_step(env, turn.action, item.task).valid
            if action is None or (action != turn.action and not is_valid):
                unavailable.append(turn.action)
            elif action != turn.action:
                changes.append((turn.action, action))
                turn = replace(turn, action=action, reply="", ids=(), chat="")
        turns.append(turn)
    return Offered(replace(item, turns=tuple(turns)), changes, unavailable)


def _available(action: str, available: dict[str, Any], words: Mapping[str, str]) -> str | None:
    """The available action that equals ``action`` but for case and blanks; None if there is none."""
    texts = action_texts(available)
    if action in texts:
        return action
    if available.get("has_search_bar") and action.startswith("search[") and action.endswith("]"):
        query = [words.get(word) or words.get(word.casefold()) for word in action[len("search[") : -1].split()]
        return f"search[{' '.join(map(str, query))}]" if query and all(query) else None
    return next((text for text in texts if _plain(text) == _plain(action)), None)


def _plain(action: str) -> str:
    return " ".join(action.split()).casefold()
