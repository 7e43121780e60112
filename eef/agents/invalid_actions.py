"""The warning about a policy most of whose actions are invalid, while it plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from eef.agents.episode import Episode
from eef.envs import TextEnv

TURNS = 50  # before the policy is judged
OnWarning = Callable[[str], None]


def print_warning(text: str) -> None:
    """Print a warning without breaking a progress bar."""
    tqdm.write(f"warning: {text}")


class InvalidActions:
    """Counts turns and invalid actions, and warns once: when more than half of at least ``TURNS`` turns are invalid."""

    def __init__(self, constrained_decoding: bool, on_warning: OnWarning) -> None:
        self.constrained_decoding, self.on_warning = constrained_decoding, on_warning
        self.turns = self.invalid = 0
        self.has_warned = False

    def count(self, turns: int, invalid: Sequence[Episode]) -> None:
        """Count ``turns`` turns; ``invalid`` are the episodes in which the last turn's action was invalid."""
        self.turns += turns
        self.invalid += len(invalid)
        if invalid and not self.has_warned and self.turns >= TURNS and 2 * self.invalid > self.turns:
            self.has_warned = True
            self.on_warning(self._text(invalid[-1]))

    def _text(self, episode: Episode) -> str:
        turn = episode.turns[-1]
        answer = turn.action or turn.reply
        text = f"{self.invalid} of {self.turns} actions are invalid so far, such as {_short(answer)!r}"
        if available := _available(episode.env):
            text += f", where {_short(available)!r} is available"
        ways = [] if self.constrained_decoding else ["set constrained_decoding=True or prompt='react'"]
        ways += ["use a model that knows this environment", "train longer or on more expert trajectories"]
        return f"{text}. The policy does not know what to answer here: {', '.join(ways[:-1])}, or {ways[-1]}"


def _available(env: TextEnv) -> str:
    """An available action; empty where the environment has none or the episode has ended."""
    try:
        available: dict[str, Any] = env.available_actions()
        actions = [*available.get("actions", ()), *(f"click[{name}]" for name in available.get("clickables", ()))]
    except Exception:  # a warning must not end a rollout
        return ""
    return str(actions[-1]) if actions else ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
