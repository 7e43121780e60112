"""One episode: the state that it starts from, its turns, and the trajectory that it leaves."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eef.agents.actions import EXPLANATIONS, Answer, Problem, read_action
from eef.agents.chat import Chat, Dialogue
from eef.envs import (
    EnvError,
    ReplayDivergence,
    Step,
    TextEnv,
    first_page,
    replay,
    replay_workers,
    take_step,
    walk,
)
from eef.trajectory import Trajectory, Turn, check_reward


@dataclass(frozen=True)
class Start:
    """Where an episode starts: s0 of ``task``, or state s_index of ``expert``; ``sample`` numbers repetitions."""

    task: str
    expert: Trajectory | None = None
    index: int = 0
    sample: int = 0


def streams(starts: Sequence[Start], seed: int) -> list[list[int]]:
    """One seed for the random stream of each start. Seeds are distinct and do not depend on the order of different
    starts.

    It depends on ``seed``, task and sample. For an expert state it also depends on the expert's source, the index and
    the whole trajectory. Equal starts are numbered.
    """
    contents: dict[int, str] = {}
    counts: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for start in starts:
        expert = start.expert
        key = f"{start.task}|{expert.source if expert else ''}|{start.index}|{start.sample}"
        if expert is None:
            stream = [seed, zlib.crc32(key.encode())]
        else:
            if id(expert) not in contents:
                contents[id(expert)] = json.dumps([expert.prompt, [[t.action, t.observation] for t in expert.turns]])
            stream = [seed, int.from_bytes(hashlib.sha256(f"{key}|{contents[id(expert)]}".encode()).digest()[:16])]
        number = counts[tuple(stream)]
        counts[tuple(stream)] += 1
        seeds.append([*stream, number] if number else stream)
    return seeds


@dataclass
class Episode:
    """An episode in progress. ``number`` is the place of its start in the list of starts.

    ``prompt`` is the text of s0, ``draw`` the random stream, ``navigation_stream`` that of random navigation.
    ``max_steps`` is the largest number of turns. ``tokens`` counts sampled tokens, ``invalid`` the turns without a
    valid action, ``problems`` the answers without a readable action. ``scores`` are the environment's own.
    """

    number: int
    start: Start
    env: TextEnv
    dialogue: Dialogue
    draw: Callable[[], float]
    navigation_stream: np.random.Generator
    prompt: str
    turns: list[Turn]
    max_steps: int
    reward: float = 0.0
    won: bool = False
    tokens: int = 0
    invalid: int = 0
    problems: Counter[Problem] = field(default_factory=Counter)
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, number: int, start: Start, chat: Chat, seed: Sequence[int], env: TextEnv, prompt: str, step: Step,
        max_steps: int,
    ) -> tuple[Episode, list[int]]:  # fmt: skip
        """An episode at its start, which ``step`` led to, and the ids of the conversation so far."""
        dialogue = chat.begin()
        turns = list(start.expert.turns[: start.index]) if start.expert else []
        ids = dialogue.encode_observation(prompt)
        for turn in turns:
            ids += dialogue.encode_turn(turn) + dialogue.encode_observation(turn.observation)
        draw, navigation = np.random.default_rng(seed).random, np.random.SeedSequence(seed, spawn_key=(1,))
        episode = cls(number, start, env, dialogue, draw, np.random.default_rng(navigation), prompt, turns, max_steps)
        episode._score(step)  # an episode without a readable action keeps the score of its first state
        return episode, ids

    def take_turn(self, ids: list[int], action: str | None, is_cut: bool) -> str:
        """Act in the environment. Returns the outcome if this ends the episode, else an empty string.

        ``ids`` are those of the answer, ``action`` its action if decoding was constrained (else None). ``is_cut`` says
        that the answer reached the token limit. An answer without a readable action (:mod:`eef.agents.actions`) costs a
        turn and does not reach the environment. No loss is put on it, nor on an answer that was cut or that invents an
        observation.
        """
        dialogue, chat = self.dialogue, self.dialogue.chat
        reply = dialogue.decode_action(ids) if action is None else action
        answer = read_action(reply, chat.react, is_cut) if action is None else Answer(action, None, len(action))
        self.tokens += len(ids)
        full_reply = reply if reply != answer.action else ""
        # ids are stored only if the turn's text does not give them back
        sampled = () if dialogue.copy().encode_turn(Turn(answer.action, "", full_reply)) == ids else tuple(ids)
        scaffold = chat.hash if sampled else ""
        learn = not is_cut and answer.end == len(reply)
        if answer.problem:
            self.invalid += 1
            self.problems[answer.problem] += 1
            self.turns.append(Turn("", EXPLANATIONS[answer.problem], full_reply, False, sampled, scaffold))
            return "max_steps" if len(self.turns) >= self.max_steps else ""
        try:
            step = take_step(self.env, answer.action, self.start.task)
        except EnvError:
            return "env_error"
        self.invalid += not step.valid
        self.turns.append(Turn(answer.action, step.observation, full_reply, learn, sampled, scaffold))
        check_reward(float(step.reward))
        self._score(step)
        if step.done:
            return "done"
        return "max_steps" if len(self.turns) >= self.max_steps else ""

    def _score(self, step: Step) -> None:
        self.reward, self.won = float(step.reward), bool(step.info.get("won"))
        self.scores = {name: step.info[name] for name in ("score", "max_score") if name in step.info}

    def trajectory(self, source: str, outcome: str) -> Trajectory:
        """The whole trajectory, the expert's prefix included."""
        return Trajectory(
            task=self.start.task,
            prompt=self.prompt,
            turns=tuple(self.turns),
            reward=self.reward,
            won=self.won,
            source=source,
            outcome=outcome,
            prefix=self.start.index,
            info={
                "tokens": self.tokens,
                "invalid": self.invalid,
                **{problem.name.lower(): self.problems[problem] for problem in Problem},
                "sample": self.start.sample,
                **self.scores,
            },
        )


class StartStates:
    """Environments in the states that episodes start from, by forks, or by replay where an environment cannot fork.

    ``workers`` are the environments that replay, one per slot; the list is empty where states can be forked. With
    forks, the states of one expert are reached on one walk along its trajectory.
    """

    def __init__(self, env: TextEnv, starts: Sequence[Start], slots: int, max_steps: int) -> None:
        self.env = env
        self.workers = replay_workers(env, slots)
        self._indices: dict[int, list[int]] = {}  # id of an expert -> the states that any start needs
        for start in starts:
            if start.expert is not None and start.index < max_steps:
                self._indices.setdefault(id(start.expert), []).append(start.index)
        self._walks: dict[int, _Walk] = {}

    def reach(self, start: Start, slot: int) -> tuple[TextEnv, str, Step]:
        """An environment in the start's state, the text of s0, and the last step before that state.

        EnvError if the state cannot be reached.
        """
        return self._replayed(start, slot) if self.workers else self._forked(start)

    def _replayed(self, start: Start, slot: int) -> tuple[TextEnv, str, Step]:
        env, expert, index = self.workers[slot], start.expert, start.index
        if expert is None:
            prompt = first_page(env, start.task)
            return env, prompt, Step(prompt, 0.0, False)
        observations = [expert.state(i) for i in range(index + 1)]
        return env, expert.prompt, replay(env, start.task, expert.actions[:index], observations, live=True)

    def _forked(self, start: Start) -> tuple[TextEnv, str, Step]:
        expert = start.expert
        if expert is None:
            env = self.env.fork()
            prompt = first_page(env, start.task)
            return env, prompt, Step(prompt, 0.0, False)
        if id(expert) not in self._walks:
            self._walks[id(expert)] = _Walk.along(expert, self.env, self._indices[id(expert)])
        reached = self._walks[id(expert)]
        if start.index not in reached.states:
            raise reached.error
        env, step = reached.states[start.index]
        return env.fork(), expert.prompt, step


@dataclass
class _Walk:
    """The states reached on a walk along one expert trajectory, and the error that ended it early."""

    states: dict[int, tuple[TextEnv, Step]] = field(default_factory=dict)
    error: EnvError = field(default_factory=EnvError)

    @classmethod
    def along(cls, expert: Trajectory, env: TextEnv, indices: list[int]) -> _Walk:
        reached = cls()
        try:
            for index, twin, step in walk(env, expert, indices):
                reached.states[index] = twin, step
        except EnvError as error:  # only the later states are lost
            reached.error = error
        return reached


def outcome_of(error: EnvError) -> str:
    """The outcome of an episode that the environment broke."""
    return "replay_divergence" if isinstance(error, ReplayDivergence) else "env_error"
