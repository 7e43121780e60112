"""Many episodes at once, from initial and from expert states (paper, section 4.1)."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eef.agents.actions import EXPLANATIONS, Answer, Problem, read_action
from eef.agents.chat import Dialogue
from eef.agents.constraints import Limits
from eef.agents.engine import Actor
from eef.agents.policy import Policy
from eef.agents.token_bytes import spelling_of
from eef.agents.vllm import Served, ServedActor
from eef.envs import EnvError, ReplayDivergence, Step, TextEnv, replay, replay_workers, walk
from eef.trajectory import Trajectory, Turn, check_reward


@dataclass(frozen=True)
class Start:
    """Where an episode begins: s0 of ``task``, or state s_index of ``expert``; ``sample`` numbers repetitions."""

    task: str
    expert: Trajectory | None = None
    index: int = 0
    sample: int = 0


OnProgress = Callable[[int, int, int], None]


def streams(starts: Sequence[Start], seed: int) -> list[list[int]]:
    """The seed of each start's random stream: no two are equal, and none depends on the order of different starts.

    It depends on ``seed``, task and sample; for an expert state also on the expert's source, the index and the whole
    trajectory. Of equal starts, the second and later ones are told apart by their number.
    """
    contents: dict[int, str] = {}
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for start in starts:
        expert = start.expert
        key = f"{start.task}|{expert.source if expert else ''}|{start.index}|{start.sample}"
        if expert is None:
            own = [seed, zlib.crc32(key.encode())]
        else:
            if id(expert) not in contents:
                contents[id(expert)] = json.dumps([expert.prompt, [[t.action, t.observation] for t in expert.turns]])
            own = [seed, int.from_bytes(hashlib.sha256(f"{key}|{contents[id(expert)]}".encode()).digest()[:16])]
        before = seen[tuple(own)]
        seen[tuple(own)] += 1
        seeds.append([*own, before] if before else own)
    return seeds


@dataclass
class _Episode:
    number: int
    start: Start
    env: TextEnv
    talk: Dialogue
    draw: Callable[[], float]
    prompt: str
    turns: list[Turn]
    reward: float = 0.0
    won: bool = False
    tokens: int = 0
    invalid: int = 0
    problems: Counter[Problem] = field(default_factory=Counter)  # answers without a readable action
    info: dict[str, float] = field(default_factory=dict)  # the environment's own scores

    def scored(self, step: Step) -> None:
        self.reward, self.won = float(step.reward), bool(step.info.get("won"))
        self.info = {name: step.info[name] for name in ("score", "max_score") if name in step.info}


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
    seeds: Sequence[Sequence[int]] | None = None,
    on_progress: OnProgress | None = None,
) -> list[Trajectory]:
    """Simulate ``policy`` from each start; whole trajectories (an expert's prefix included) in order of start.

    ``max_steps`` counts all turns of an episode, the prefix included (default: the environment's). Each start has a
    random stream of its own, so that ``slots``, order and memory change no result; ``seeds`` are those of
    :func:`streams`, to be passed where ``starts`` is a part of a longer list. An episode that the machinery breaks (a
    replay that diverges, an environment that fails, a context that overflows) ends with its own ``outcome``; the others
    go on.

    ``on_progress(episodes, wins, tokens)`` is called after each episode with what it adds: 1, 1 if it won else 0, and
    the tokens that the policy sampled. ValueError for a state that an expert does not have, and where decoding
    cannot be limited with the policy's tokenizer. ServerError where a policy that is played by a server
    (:mod:`eef.agents.vllm`) loses it.
    """
    for start in starts:
        if start.expert is not None and not 0 <= start.index < max(len(start.expert), 1):
            raise ValueError(
                f"state {start.index} of an expert trajectory of {len(start.expert)} turns (task {start.task})"
            )
    if policy.constrained_decoding:
        spelling_of(policy.chat.tokenizer)  # a tokenizer that cannot be limited is refused before anything is played
    limit = env.max_steps if max_steps is None else max_steps
    if slots < 1 or limit < 1:
        raise ValueError(f"slots={slots} and max_steps={limit} must be positive")
    seeds = streams(starts, seed) if seeds is None else seeds
    seats = replay_workers(env, min(slots, max(1, len(starts))))  # none where states can be forked
    places = min(len(seats) or slots, max(1, len(starts)))
    actor = ServedActor(policy, places) if isinstance(policy, Served) else Actor(policy, places)
    done: list[Trajectory | None] = [None] * len(starts)
    queue = list(range(len(starts)))[::-1]
    twins: dict[int, _Twins] = {}
    wanted: dict[int, list[int]] = {}  # by expert: the states that any start asks for
    for start in starts:
        if start.expert is not None and start.index < limit:
            wanted.setdefault(id(start.expert), []).append(start.index)
    live: dict[int, _Episode] = {}
    waiting: dict[int, list[int]] = {}  # ids of live conversations that the actor does not hold
    free = list(range(places))[::-1]

    def begin(pair: tuple[int, int]) -> tuple[_Episode, list[int], str]:
        slot, number = pair
        start = starts[number]
        prompt = start.expert.prompt if start.expert else ""
        place, broken, step = env, "", Step(prompt, 0.0, False)
        if start.expert and start.index >= limit:
            broken = "max_steps"
        else:
            try:
                if seats:
                    place = seats[slot]
                    prompt, step = _replayed(place, start)
                else:
                    place, prompt, step = _forked(env, start, wanted, twins)
            except EnvError as error:
                broken = _outcome(error)
        episode, ids = _begin(number, start, policy, seeds[number], place, prompt)
        episode.scored(step)  # an episode without a readable action keeps the score of its first state
        return episode, ids, broken

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
            info={
                "tokens": episode.tokens,
                "invalid": episode.invalid,
                **{problem.name.lower(): episode.problems[problem] for problem in Problem},
                "sample": episode.start.sample,
                **episode.info,
            },
        )
        if on_progress:
            on_progress(1, int(episode.won), episode.tokens)

    with ThreadPoolExecutor(max(1, len(seats))) as threads:  # a worker is a process: its thread waits for it
        at_once: Callable[..., Iterable[Any]] = threads.map if seats else map
        while queue or live:
            more = not waiting  # first those that wait for room
            while more and queue and free:
                batch = [(free.pop(), queue.pop()) for _ in range(min(len(queue), len(free)))]
                for (slot, _), (episode, ids, broken) in zip(batch, list(at_once(begin, batch)), strict=True):
                    if not broken and len(ids) + policy.max_new_tokens > policy.context:
                        broken = "context_overflow"
                    if broken or len(episode.turns) >= limit:
                        end(episode, broken or "max_steps")
                        free.append(slot)
                    else:
                        live[slot], waiting[slot] = episode, ids
            playing = actor.fitting({slot: len(waiting.get(slot, ())) or actor.length(slot) for slot in live})
            for slot in live:
                if slot not in playing and slot not in waiting:
                    waiting[slot] = actor.park(slot)
            if opened := {slot: waiting.pop(slot) for slot in playing if slot in waiting}:
                actor.open(opened)
            limits: dict[int, Limits] | None = None
            if policy.constrained_decoding:
                limits = {}
                for slot in playing:
                    episode = live[slot]
                    try:
                        actions = episode.env.available_actions()
                        limits[slot] = Limits.of(episode.talk, actions, episode.prompt, policy.max_new_tokens)
                    except EnvError as error:
                        end(live.pop(slot), _outcome(error))
                        free.append(slot)
                    else:
                        if actor.length(slot) + limits[slot].most > policy.context:
                            end(live.pop(slot), "context_overflow")
                            free.append(slot)
            turn = {slot: live[slot] for slot in playing if slot in live}
            if not turn:
                continue
            said = actor.act(list(turn), {slot: episode.draw for slot, episode in turn.items()}, temperature, limits)
            longest = policy.max_new_tokens + len(policy.chat.end)  # an answer that was cut has an end appended
            cut = [limits is None and len(said[slot]) >= longest for slot in turn]
            chosen = [limits[slot].action(said[slot]) if limits else None for slot in turn]
            answers = [said[slot] for slot in turn]
            stepped = list(at_once(_step, turn.values(), answers, chosen, cut, [limit] * len(turn)))
            for (slot, episode), outcome in zip(turn.items(), stepped, strict=True):
                if not outcome:
                    heard = episode.talk.encode_observation(episode.turns[-1].observation)
                    if actor.length(slot) + len(heard) + policy.max_new_tokens > policy.context:
                        outcome = "context_overflow"
                    else:
                        actor.hear(slot, heard)
                if outcome:
                    end(episode, outcome)
                    del live[slot]
                    free.append(slot)
    return [trajectory for trajectory in done if trajectory is not None]


@dataclass
class _Twins:
    """The states of one expert that were reached, and the error that kept the others from being reached."""

    states: dict[int, tuple[TextEnv, Step]] = field(default_factory=dict)
    error: EnvError = field(default_factory=EnvError)


def _outcome(error: EnvError) -> str:
    return "replay_divergence" if isinstance(error, ReplayDivergence) else "env_error"


def _forked(
    env: TextEnv, start: Start, wanted: dict[int, list[int]], twins: dict[int, _Twins]
) -> tuple[TextEnv, str, Step]:
    """An environment in the start's state, the text of s0, and the last step before that state."""
    expert = start.expert
    if expert is None:
        twin = env.fork()
        prompt = twin.reset(start.task)
        return twin, prompt, Step(prompt, 0.0, False)
    if id(expert) not in twins:
        twins[id(expert)] = _Twins()
        try:
            for index, twin, step in walk(env, expert, wanted[id(expert)]):
                twins[id(expert)].states[index] = twin, step
        except EnvError as error:  # it costs the later states alone
            twins[id(expert)].error = error
    if start.index not in twins[id(expert)].states:
        raise twins[id(expert)].error
    twin, step = twins[id(expert)].states[start.index]
    return twin.fork(), expert.prompt, step


def _replayed(seat: TextEnv, start: Start) -> tuple[str, Step]:
    """Replay to the start's state; the text of s0, and the last step before that state."""
    expert, index = start.expert, start.index
    if expert is None:
        prompt = seat.reset(start.task)
        return prompt, Step(prompt, 0.0, False)
    pages = [expert.state(i) for i in range(index + 1)]
    return expert.prompt, replay(seat, start.task, expert.actions[:index], pages, live=True)


def _begin(
    number: int, start: Start, policy: Policy | Served, seed: Sequence[int], env: TextEnv, prompt: str
) -> tuple[_Episode, list[int]]:
    """An episode at its start, and the ids of its history."""
    expert = start.expert
    draw = np.random.default_rng(seed).random
    talk = policy.chat.begin()
    turns = list(expert.turns[: start.index]) if expert else []
    ids = talk.encode_observation(prompt)
    for turn in turns:
        ids += talk.encode_turn(turn) + talk.encode_observation(turn.observation)
    return _Episode(number, start, env, talk, draw, prompt, turns), ids


def _step(episode: _Episode, said: list[int], chosen: str | None, cut: bool, limit: int) -> str:
    """Act in the environment; the outcome if the episode ended. ``chosen``: the action, where decoding was limited.

    An answer without a readable action (:mod:`eef.agents.actions`) leaves the environment alone and costs a turn; it is
    never learnt, nor is one that was ``cut`` at the token limit or goes on to invent an observation.
    """
    talk = episode.talk
    reply = talk.decode_action(said) if chosen is None else chosen
    answer = read_action(reply, talk.chat.react, cut) if chosen is None else Answer(chosen, None, len(chosen))
    action = answer.action
    episode.tokens += len(said)
    kept = () if talk.copy().encode_action(reply) == said else tuple(said)
    scaffold = talk.chat.hash if kept else ""
    learn = not cut and answer.end == len(reply)
    if answer.problem:
        episode.invalid += 1
        episode.problems[answer.problem] += 1
        episode.turns.append(Turn("", EXPLANATIONS[answer.problem], reply, False, kept, scaffold))
        return "max_steps" if len(episode.turns) >= limit else ""
    try:
        step = episode.env.step(action)
    except EnvError:
        return "env_error"
    episode.invalid += not step.valid
    episode.turns.append(Turn(action, step.observation, reply if reply != action else "", learn, kept, scaffold))
    check_reward(float(step.reward))
    episode.scored(step)
    if step.done:
        return "done"
    return "max_steps" if len(episode.turns) >= limit else ""
