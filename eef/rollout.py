"""Many episodes at once, from initial and from expert states (paper, section 4.1)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eef.chat import Dialogue, action_of
from eef.envs import EnvError, ReplayDivergence, TextEnv, expert_states, restore, workers
from eef.policy import Actor, Limits, Policy
from eef.react import NO_ACTION, STOP, action_in
from eef.served import Served, ServedActor
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
    info: dict[str, float] = field(default_factory=dict)  # the environment's own scores


def simulate(
    policy: Policy | Served,
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
    ``told(n)`` is called with the number of episodes that have ended. ServerError where a policy that is played by a
    server (:mod:`eef.served`) loses it.
    """
    limit = max_steps or env.max_steps
    seats = workers(env, min(slots, max(1, len(starts))))  # none where states can be forked
    places = min(len(seats) or slots, max(1, len(starts)))
    actor = ServedActor(policy, places) if isinstance(policy, Served) else Actor(policy, places)
    done: list[Trajectory | None] = [None] * len(starts)
    queue = list(range(len(starts)))[::-1]
    twins: dict[int, dict[int, TextEnv]] = {}
    wanted: dict[int, list[int]] = {}  # by expert: the states that any start asks for
    for start in starts:
        if start.expert is not None:
            wanted.setdefault(id(start.expert), []).append(start.index)
    live: dict[int, _Episode] = {}
    free = list(range(places))[::-1]

    def begin(pair: tuple[int, int]) -> tuple[_Episode, list[int], str]:
        slot, number = pair
        start = starts[number]
        if seats:
            placed = _replayed(seats[slot], start)
        else:
            placed = _forked(env, start, wanted, twins)
        return _begin(number, start, policy, seed, *placed)

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
            info={"tokens": episode.tokens, "invalid": episode.invalid, "sample": episode.start.sample, **episode.info},
        )
        if told:
            told(1)

    with ThreadPoolExecutor(max(1, len(seats))) as threads:  # a worker is a process: its thread waits for it
        at_once: Callable[..., Iterable[Any]] = threads.map if seats else map
        while queue or live:
            opened: dict[int, list[int]] = {}
            while queue and free:
                batch = [(free.pop(), queue.pop()) for _ in range(min(len(queue), len(free)))]
                for (slot, _), (episode, ids, broken) in zip(batch, list(at_once(begin, batch)), strict=True):
                    if not broken and len(ids) + policy.max_new_tokens > policy.context:
                        broken = "context_overflow"
                    if broken or len(episode.turns) >= limit:
                        end(episode, broken or "max_steps")
                        free.append(slot)
                    else:
                        live[slot], opened[slot] = episode, ids
            if opened:
                actor.open(opened)
            if not live:
                continue
            limits = None
            if policy.limited:
                limits = {s: Limits.of(e.talk, e.env.available_actions(), e.prompt_ids) for s, e in live.items()}
            said = actor.act(list(live), {slot: episode.draw for slot, episode in live.items()}, temperature, limits)
            stepped = list(at_once(_step, live.values(), [said[slot] for slot in live], [limit] * len(live)))
            for (slot, episode), outcome in zip(list(live.items()), stepped, strict=True):
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


def _forked(
    env: TextEnv, start: Start, wanted: dict[int, list[int]], twins: dict[int, dict[int, TextEnv]]
) -> tuple[TextEnv, str, str]:
    """An environment in the start's state, the text of s0, and what went wrong if something did."""
    expert = start.expert
    if expert is None:
        twin = env.fork()
        return twin, twin.reset(start.task), ""
    if id(expert) not in twins:
        try:
            twins[id(expert)] = expert_states(env, expert, wanted[id(expert)])
        except ReplayDivergence:
            twins[id(expert)] = {}
    if start.index not in twins[id(expert)]:
        return env, expert.prompt, "replay_divergence"
    return twins[id(expert)][start.index].fork(), expert.prompt, ""


def _replayed(seat: TextEnv, start: Start) -> tuple[TextEnv, str, str]:
    """As :func:`_forked`, for an environment that has to go all the way."""
    expert, index = start.expert, start.index
    try:
        if expert is None:
            return seat, seat.reset(start.task), ""
        restore(seat, start.task, expert.actions[:index], [expert.state(i) for i in range(index + 1)])
        return seat, expert.prompt, ""
    except EnvError as error:
        broken = "replay_divergence" if isinstance(error, ReplayDivergence) else "env_error"
        return seat, expert.prompt if expert else "", broken


def _begin(
    number: int, start: Start, policy: Policy | Served, seed: int, env: TextEnv, prompt: str, broken: str
) -> tuple[_Episode, list[int], str]:
    """An episode at its start, the ids of its history, and what went wrong if something did."""
    expert = start.expert
    key = f"{start.task}|{expert.source if expert else ''}|{start.index}|{start.sample}"
    draw = np.random.default_rng([seed, zlib.crc32(key.encode())]).random
    talk = policy.chat.begin()
    turns = list(expert.turns[: start.index]) if expert else []
    prompt_ids = talk.hear(prompt)
    ids = list(prompt_ids)
    for turn in turns:
        ids += talk.repeat(turn) + talk.hear(turn.observation)
    return _Episode(number, start, env, talk, draw, prompt, prompt_ids, turns), ids, broken


def _step(episode: _Episode, said: list[int], limit: int) -> str:
    """Act in the environment; the outcome if the episode ended.

    A ReAct answer without an action leaves the environment alone and costs a turn; it is never learnt, nor is one that
    goes on to invent an observation.
    """
    talk, reply = episode.talk, episode.talk.spoken(said)
    action = action_in(reply) if talk.chat.react else action_of(reply)
    episode.tokens += len(said)
    kept = () if talk.copy().say(reply) == said else tuple(said)
    scaffold = talk.chat.hash if kept else ""
    learn = not (talk.chat.react and STOP in reply)
    if talk.chat.react and not action:
        episode.invalid += 1
        episode.turns.append(Turn("", NO_ACTION, reply, False, kept, scaffold))
        return "max_steps" if len(episode.turns) >= limit else ""
    try:
        step = episode.env.step(action)
    except EnvError:
        return "env_error"
    episode.invalid += not step.valid
    episode.turns.append(Turn(action, step.observation, reply if reply != action else "", learn, kept, scaffold))
    episode.reward, episode.won = float(step.reward), bool(step.info.get("won"))
    episode.info = {name: step.info[name] for name in ("score", "max_score") if name in step.info}
    if step.done:
        return "done"
    return "max_steps" if len(episode.turns) >= limit else ""
