"""Many episodes at once, from initial and from expert states (paper, section 4.1)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eef.chat import Dialogue, action_of
from eef.envs import EnvError, ReplayDivergence, TextEnv, expert_states
from eef.policy import Actor, Limits, Policy
from eef.trajectory import Trajectory, Turn


@dataclass(frozen=True)
class Start:
    """Where an episode begins: s0 of ``task``, or state s_index of ``expert``; ``sample`` numbers repetitions."""

    task: str
    expert: Trajectory | None = None
    index: int = 0
    sample: int = 0


@dataclass
class _Episode:
    number: int
    start: Start
    env: TextEnv
    talk: Dialogue
    draw: Callable[[], float]
    prompt: str
    prompt_ids: list[int]
    turns: list[Turn]
    reward: float = 0.0
    won: bool = False
    tokens: int = 0
    invalid: int = 0
    outcome: str = field(default="")


def simulate(
    policy: Policy,
    env: TextEnv,
    starts: Sequence[Start],
    *,
    seed: int = 0,
    temperature: float = 1.0,
    slots: int = 64,
    max_steps: int | None = None,
    source: str = "policy",
    told: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Simulate ``policy`` from each start; whole trajectories (an expert's prefix included) in order of start.

    ``max_steps`` counts all turns of an episode, the prefix included (default: the environment's). Sampling is seeded
    by start (``seed``, task, expert, index, sample), so that ``slots`` and order change no result. An episode that
    the machinery breaks (a replay that diverges, a context that overflows) ends with its own ``outcome``.
    ``told(n)`` is called with the number of episodes that have ended.
    """
    limit = max_steps or env.max_steps
    actor = Actor(policy, min(slots, max(1, len(starts))))
    done: list[Trajectory | None] = [None] * len(starts)
    queue = list(range(len(starts)))[::-1]
    twins: dict[int, dict[int, TextEnv]] = {}
    wanted: dict[int, list[int]] = {}  # by expert: the states that any start asks for
    for start in starts:
        if start.expert is not None:
            wanted.setdefault(id(start.expert), []).append(start.index)
    live: dict[int, _Episode] = {}
    free = list(range(actor.plan.slots))[::-1]

    def end(episode: _Episode, outcome: str) -> None:
        done[episode.number] = Trajectory(
            task=episode.start.task,
            prompt=episode.prompt,
            turns=tuple(episode.turns),
            reward=episode.reward,
            won=episode.won,
            source=source,
            outcome=outcome,
            prefix=episode.start.index,
            info={"tokens": episode.tokens, "invalid": episode.invalid, "sample": episode.start.sample},
        )
        if told:
            told(1)

    while queue or live:
        opened: dict[int, list[int]] = {}
        while queue and free:
            episode, ids, broken = _begin(queue.pop(), starts, env, policy, wanted, twins, seed)
            if not broken and len(ids) + policy.max_new_tokens > policy.context:
                broken = "context_overflow"
            if broken or len(episode.turns) >= limit:
                end(episode, broken or "max_steps")
                continue
            slot = free.pop()
            live[slot], opened[slot] = episode, ids
        if opened:
            actor.open(opened)
        if not live:
            continue
        limits = None
        if policy.limited:
            limits = {s: Limits.of(e.talk, e.env.available_actions(), e.prompt_ids) for s, e in live.items()}
        said = actor.act(list(live), {slot: episode.draw for slot, episode in live.items()}, temperature, limits)
        for slot, episode in list(live.items()):
            outcome = _step(episode, said[slot], limit)
            if not outcome:
                heard = episode.talk.hear(episode.turns[-1].observation)
                if actor.length(slot) + len(heard) + policy.max_new_tokens > policy.context:
                    outcome = "context_overflow"
                else:
                    actor.hear(slot, heard)
            if outcome:
                end(episode, outcome)
                del live[slot]
                free.append(slot)
    return [trajectory for trajectory in done if trajectory is not None]


def _begin(
    number: int,
    starts: Sequence[Start],
    env: TextEnv,
    policy: Policy,
    wanted: dict[int, list[int]],
    twins: dict[int, dict[int, TextEnv]],
    seed: int,
) -> tuple[_Episode, list[int], str]:
    """An episode at its start, the ids of its history, and what went wrong if something did."""
    start, broken = starts[number], ""
    expert = start.expert
    key = f"{start.task}|{expert.source if expert else ''}|{start.index}|{start.sample}"
    draw = np.random.default_rng([seed, zlib.crc32(key.encode())]).random
    talk = policy.chat.begin()
    if expert is None:
        twin = env.fork()
        prompt, turns = twin.reset(start.task), []
    else:
        prompt, turns, twin = expert.prompt, list(expert.turns[: start.index]), env
        if id(expert) not in twins:
            try:
                twins[id(expert)] = expert_states(env, expert, wanted[id(expert)])
            except ReplayDivergence:
                twins[id(expert)] = {}
        if start.index in twins[id(expert)]:
            twin = twins[id(expert)][start.index].fork()
        else:
            broken = "replay_divergence"
    prompt_ids = talk.hear(prompt)
    ids = list(prompt_ids)
    for turn in turns:
        ids += talk.say(turn.said) + talk.hear(turn.observation)
    return _Episode(number, start, twin, talk, draw, prompt, prompt_ids, turns), ids, broken


def _step(episode: _Episode, said: list[int], limit: int) -> str:
    """Act in the environment; the outcome if the episode ended."""
    reply = episode.talk.spoken(said)
    action = action_of(reply)
    episode.tokens += len(said)
    try:
        step = episode.env.step(action)
    except EnvError:
        return "env_error"
    episode.invalid += not step.valid
    episode.turns.append(Turn(action, step.observation, reply if reply != action else ""))
    if step.done:
        episode.reward, episode.won = float(step.reward), bool(step.info.get("won"))
        return "done"
    return "max_steps" if len(episode.turns) >= limit else ""
