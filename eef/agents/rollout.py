"""Many episodes at once, from initial and from expert states (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eef.agents import cached_engine  # noqa: F401  Policy.engine imports it by name; simulations depend on its code
from eef.agents.constraints import Constraints
from eef.agents.engine import PlayablePolicy
from eef.agents.episode import Episode, Start, StartStates, outcome_of, streams
from eef.agents.invalid_actions import InvalidActions, OnWarning, print_warning
from eef.agents.random_navigation import RandomNavigation
from eef.agents.token_bytes import token_bytes_of
from eef.envs import EnvError, Step, TextEnv, actions_now
from eef.envs.limits import step_limit
from eef.trajectory import Trajectory

OnProgress = Callable[[int, int, int], None]
OnTurn = Callable[[int, int], None]
OnEnd = Callable[[int, Trajectory], None]


def simulate(
    policy: PlayablePolicy,
    env: TextEnv,
    starts: Sequence[Start],
    *,
    seed: int = 0,
    temperature: float = 1.0,
    navigation: RandomNavigation | None = None,
    slots: int = 64,
    max_steps: int | None = None,
    source: str = "policy",
    seeds: Sequence[Sequence[int]] | None = None,
    on_progress: OnProgress | None = None,
    on_turn: OnTurn | None = None,
    on_end: OnEnd | None = None,
    on_warning: OnWarning = print_warning,
) -> list[Trajectory]:
    """Simulate ``policy`` from each start. Returns whole trajectories, an expert's prefix included, in order of start.

    ``slots`` episodes are played at once. ``max_steps`` counts all turns of an episode, the prefix included (default:
    the environment's; its limit for a subtask counts where it is lower). Each start has its own random stream, so that
    ``slots``, order and memory change no result in float32. ``seeds`` are those of :func:`streams`; pass them if
    ``starts`` is part of a longer list. A replay that diverges, an environment that fails and a context that overflows
    end one episode with an ``outcome`` of their own; the others continue.

    ``navigation`` replaces some of the policy's actions by random ones. They have a random stream of their own and are
    not counted as sampled tokens.

    ``on_progress(episodes, wins, tokens)`` is called after each episode with what it adds: 1, 1 if it won else 0, and
    the number of sampled tokens. ``on_turn(turns, tokens)`` is called after each turn of the episodes in play, with the
    number of turns and of tokens sampled in it. ``on_end(number, trajectory)`` is called after each episode, with the
    number of its start. ``on_warning(text)`` is called at most once, while the policy plays: if
    most of its actions are invalid. ValueError for a state that an expert does not have, and for a tokenizer that does
    not allow constrained decoding. ServerError if a policy's server (:mod:`eef.agents.vllm`) fails.
    """
    limit = env.max_steps if max_steps is None else max_steps
    _check(policy, starts, slots, limit)
    seeds = streams(starts, seed) if seeds is None else seeds
    slots = min(slots, max(1, len(starts)))
    states = StartStates(env, starts, slots, limit)
    slots = min(len(states.workers) or slots, slots)
    invalid = InvalidActions(policy.constrained_decoding, on_warning)
    rollouts = _Rollouts(
        policy, starts, seeds, states, slots, limit, temperature, navigation, source, on_progress, on_turn, on_end,
        invalid,
    )  # fmt: skip
    step_threads = 1 if states.workers else getattr(env, "step_threads", 1)
    with ThreadPoolExecutor(max(step_threads, len(states.workers))) as threads:  # a worker is a process: a thread waits
        rollouts.map_workers = threads.map if states.workers else map
        rollouts.map_steps = threads.map if step_threads > 1 else rollouts.map_workers
        while rollouts.queue or rollouts.live:
            rollouts.fill_free_slots()
            playing = rollouts.load_conversations()
            moves = rollouts.random_moves(playing)
            answering = [slot for slot in playing if slot in rollouts.live and slot not in moves]
            constraints = rollouts.constraints(answering)
            rollouts.take_turns(playing, constraints, moves)
    return [trajectory for trajectory in rollouts.results if trajectory is not None]


def _check(policy: PlayablePolicy, starts: Sequence[Start], slots: int, max_steps: int) -> None:
    for start in starts:
        if start.expert is not None and not 0 <= start.index < max(len(start.expert), 1):
            raise ValueError(
                f"state {start.index} of an expert trajectory of {len(start.expert)} turns (task {start.task})"
            )
    if policy.constrained_decoding:
        token_bytes_of(policy.chat.tokenizer)  # ValueError before anything is played
    if slots < 1 or max_steps < 1:
        raise ValueError(f"slots={slots} and max_steps={max_steps} must be positive")


class _Rollouts:
    """The episodes of one call of :func:`simulate`.

    ``queue`` holds the numbers of the starts that have no slot yet, the next one last; ``live`` the episode of each
    slot; ``waiting`` the ids of the live conversations that the engine does not hold.
    """

    def __init__(
        self,
        policy: PlayablePolicy,
        starts: Sequence[Start],
        seeds: Sequence[Sequence[int]],
        states: StartStates,
        slots: int,
        max_steps: int,
        temperature: float,
        navigation: RandomNavigation | None,
        source: str,
        on_progress: OnProgress | None,
        on_turn: OnTurn | None,
        on_end: OnEnd | None,
        invalid_actions: InvalidActions,
    ) -> None:
        self.policy, self.starts, self.seeds, self.states = policy, starts, seeds, states
        self.max_steps, self.temperature, self.source = max_steps, temperature, source
        self.navigation = navigation
        self.on_progress, self.on_turn, self.on_end = on_progress, on_turn, on_end
        self.invalid_actions = invalid_actions
        self.engine = policy.engine(slots)
        self.map_workers: Callable[..., Iterable[Any]] = map
        self.map_steps: Callable[..., Iterable[Any]] = map
        self.results: list[Trajectory | None] = [None] * len(starts)
        self.queue = list(range(len(starts)))[::-1]
        self.free_slots = list(range(slots))[::-1]
        self.live: dict[int, Episode] = {}
        self.waiting: dict[int, list[int]] = {}

    def fill_free_slots(self) -> None:
        """Begin episodes in the free slots, unless live conversations wait for room."""
        if self.waiting:
            return
        while self.queue and self.free_slots:
            count = min(len(self.queue), len(self.free_slots))
            pairs = [(self.free_slots.pop(), self.queue.pop()) for _ in range(count)]
            for (slot, _), (episode, ids, outcome) in zip(
                pairs, list(self.map_workers(self._begin, pairs)), strict=True
            ):
                if not outcome and len(ids) + self.policy.max_new_tokens > self.policy.context:
                    outcome = "context_overflow"
                if not outcome and len(episode.turns) >= episode.max_steps:
                    outcome = "max_steps"
                self.live[slot], self.waiting[slot] = episode, ids
                if outcome:
                    self._end(slot, outcome)

    def _begin(self, slot_and_number: tuple[int, int]) -> tuple[Episode, list[int], str]:
        """An episode at its start, the ids of its conversation, and the outcome if the start cannot be reached."""
        slot, number = slot_and_number
        start = self.starts[number]
        prompt = start.expert.prompt if start.expert else ""
        env, step, outcome = self.states.env, Step(prompt, 0.0, False), ""
        limit = step_limit(env, start.task, self.max_steps)
        if start.expert and start.index >= limit:
            outcome = "max_steps"
        else:
            try:
                env, prompt, step = self.states.reach(start, slot)
            except EnvError as error:
                outcome = outcome_of(error)
        episode, ids = Episode.begin(number, start, self.policy.chat, self.seeds[number], env, prompt, step, limit)
        return episode, ids, outcome

    def load_conversations(self) -> list[int]:
        """The slots that play the next turn: those whose conversations the engine can hold together."""
        lengths = {slot: len(self.waiting.get(slot, ())) or self.engine.length(slot) for slot in self.live}
        playing = self.engine.fitting(lengths)
        for slot in self.live:
            if slot not in playing and slot not in self.waiting:
                self.waiting[slot] = self.engine.park(slot)
        if prompts := {slot: self.waiting.pop(slot) for slot in playing if slot in self.waiting}:
            self.engine.start(prompts)
        return playing

    def random_moves(self, playing: list[int]) -> dict[int, str]:
        """The actions of the slots in which random navigation acts. Ends episodes whose environment fails."""
        moves: dict[int, str] = {}
        if self.navigation is None:
            return moves
        for slot in playing:
            episode = self.live[slot]
            try:
                action = self.navigation.draw(episode.navigation_stream, episode.env, episode.start.task)
            except EnvError as error:
                self._end(slot, outcome_of(error))
                continue
            if action is not None:
                moves[slot] = action
        return moves

    def constraints(self, playing: list[int]) -> dict[int, Constraints] | None:
        """The constraints of each slot's next answer; None for free decoding. Ends episodes that have none."""
        if not self.policy.constrained_decoding:
            return None
        constraints = {}
        for slot in playing:
            episode = self.live[slot]
            try:
                available = actions_now(episode.env, episode.start.task)
                allowed = Constraints.of(episode.dialogue, available, episode.prompt, self.policy.max_new_tokens)
            except EnvError as error:
                self._end(slot, outcome_of(error))
                continue
            if self.engine.length(slot) + allowed.max_tokens > self.policy.context:
                self._end(slot, "context_overflow")
                continue
            constraints[slot] = allowed
        return constraints

    def take_turns(
        self, playing: list[int], constraints: dict[int, Constraints] | None, moves: Mapping[int, str]
    ) -> None:
        """One turn of each playing episode: the policy answers, the environment steps, the policy reads.

        In the slots of ``moves`` that action is taken instead, and the policy reads it as its own answer.
        """
        episodes = {slot: self.live[slot] for slot in playing if slot in self.live}
        if not episodes:
            return
        draws = {slot: episode.draw for slot, episode in episodes.items() if slot not in moves}
        answers = self.engine.generate(list(draws), draws, self.temperature, constraints) if draws else {}

        actions = {slot: constraints[slot].action(answers[slot]) for slot in draws} if constraints else {}
        actions |= moves
        cut_length = self.policy.max_new_tokens + len(self.policy.chat.end)  # a cut answer has the end appended

        def step(slot: int) -> str:
            ids = answers.get(slot, [])
            is_cut = constraints is None and len(ids) >= cut_length
            return episodes[slot].take_turn(ids, actions.get(slot), is_cut)

        invalid_before = {slot: episode.invalid for slot, episode in episodes.items()}
        outcomes = list(self.map_steps(step, episodes))
        invalid = [episode for slot, episode in episodes.items() if episode.invalid > invalid_before[slot]]
        self.invalid_actions.count(len(episodes), invalid)
        if self.on_turn:
            self.on_turn(len(episodes), sum(map(len, answers.values())))
        for slot, outcome in zip(episodes, outcomes, strict=True):
            if not outcome:
                dialogue, last = episodes[slot].dialogue, episodes[slot].turns[-1]
                ids = dialogue.encode_turn(last) if slot in moves else []  # the engine has the policy's own answers
                ids += dialogue.encode_observation(last.observation)
                if self.engine.length(slot) + len(ids) + self.policy.max_new_tokens > self.policy.context:
                    outcome = "context_overflow"
                else:
                    self.engine.append(slot, ids)
            if outcome:
                self._end(slot, outcome)

    def _end(self, slot: int, outcome: str) -> None:
        """Record an episode's trajectory and free its slot."""
        episode = self.live.pop(slot)
        self.waiting.pop(slot, None)
        self.free_slots.append(slot)
        self.results[episode.number] = trajectory = episode.trajectory(self.source, outcome)
        if self.on_end:
            self.on_end(episode.number, trajectory)
        if self.on_progress:
            self.on_progress(1, int(episode.won), episode.tokens)
