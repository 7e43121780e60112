from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import pytest

from eef.agents import react
from eef.agents.actions import EXPLANATIONS, Problem, uses
from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.engine import Engine
from eef.agents.episode import Start, streams
from eef.agents.policy import Policy
from eef.agents.random_navigation import RandomNavigation
from eef.agents.rollout import simulate
from eef.envs import EnvError, Step
from eef.envs.extras import extras_of, navigation_skills
from eef.experts import expert_trajectories
from eef.selection import cut_points
from eef.tracking import keys
from eef.trajectory import Trajectory, Turn


@pytest.fixture(scope="module")
def experts(shop):
    return expert_trajectories(shop, "strong", shop.tasks("train"), seed=0)


def starts_of(shop, experts, m: int = 3) -> list[Start]:
    states = [Start(t.task, t, index) for t in experts if t.failed for index in cut_points(len(t), m)]
    return [Start(task) for task in shop.tasks("train")] + states


def test_results_come_in_order_of_start_and_do_not_depend_on_the_batch(shop, experts, policy: Policy) -> None:
    starts = starts_of(shop, experts)
    wide = simulate(policy, shop, starts, seed=1, slots=64)
    narrow = simulate(policy, shop, starts, seed=1, slots=3)
    assert wide == narrow
    assert [t.task for t in wide] == [start.task for start in starts]
    backwards = simulate(policy, shop, starts[::-1], seed=1, slots=7)
    assert backwards[::-1] == wide


def test_steps_in_threads_change_no_result(shop, experts, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = starts_of(shop, experts)[:20]
    plain = simulate(policy, shop, starts, seed=1)
    threaded, threads, step = shop.fork(), set(), type(shop).step

    def noted(self: object, action: str) -> Step:
        threads.add(threading.get_ident())
        return step(self, action)

    monkeypatch.setattr(type(shop), "step", noted)
    threaded.step_threads = 4
    assert simulate(policy, threaded, starts, seed=1) == plain
    assert threads - {threading.get_ident()}  # the states of experts are reached in this thread


def test_a_simulation_is_whole_and_replays(shop, experts, policy: Policy) -> None:
    starts = starts_of(shop, experts)
    for start, played in zip(starts, simulate(policy, shop, starts, seed=0), strict=True):
        assert played.prefix == start.index
        if start.expert:
            assert played.turns[: start.index] == start.expert.turns[: start.index]
        env, step = shop.fork(), None
        assert env.reset(played.task) == played.prompt
        for turn in played.turns:
            step = env.step(turn.action)
            assert step.observation == turn.observation and step.valid  # constrained decoding makes no invalid action
        assert played.outcome in ("done", "max_steps")
        assert played.won == bool(step is not None and step.info["won"])
        assert len(played) <= shop.max_steps


def test_samples_differ_and_seeds_repeat(shop, policy: Policy) -> None:
    tasks = shop.tasks("train")
    first = simulate(policy, shop, [Start(task) for task in tasks], seed=0)
    assert first == simulate(policy, shop, [Start(task) for task in tasks], seed=0)
    assert first != simulate(policy, shop, [Start(task) for task in tasks], seed=1)
    assert first != simulate(policy, shop, [Start(task, sample=1) for task in tasks], seed=0)


def test_a_replay_that_diverges_is_its_own_outcome(shop, experts, policy: Policy) -> None:
    expert = next(t for t in experts if t.failed and len(t) > 3)
    broken = replace(expert, turns=(replace(expert.turns[0], observation="another page"), *expert.turns[1:]))
    played = simulate(policy, shop, [Start(broken.task, broken, 2), Start(broken.task)], seed=0)
    assert played[0].outcome == "replay_divergence" and not played[0].failed and not played[0].won
    assert played[1].outcome in ("done", "max_steps")


def test_a_divergence_costs_only_the_states_after_it(shop, experts, policy: Policy) -> None:
    expert = next(t for t in experts if t.failed and len(t) > 4)
    turns = (*expert.turns[:2], replace(expert.turns[2], observation="another page"), *expert.turns[3:])
    broken = replace(expert, turns=turns)
    starts = [Start(broken.task, broken, index) for index in (3, 1, 4, 2)]
    played = simulate(policy, shop, starts, seed=0)
    assert [t.outcome in ("done", "max_steps") for t in played] == [False, True, False, True]
    assert {played[0].outcome, played[2].outcome} == {"replay_divergence"}
    assert [t.prefix for t in played] == [3, 1, 4, 2]


class Faulty:
    """A shop in which ``call`` fails on subtask ``bad``; ``fork`` fails the first and the third time."""

    def __init__(self, shop, call: str, bad: str) -> None:
        self.shop, self.call, self.bad, self.forks = shop, call, bad, 0
        self.name, self.max_steps = shop.name, shop.max_steps

    def _fail(self, call: str) -> None:
        if call == self.call and self.task == self.bad:
            raise EnvError(f"{call} failed")

    def fork(self) -> Faulty:
        self.forks += 1
        if self.call == "fork" and self.forks in (1, 3):
            raise EnvError("fork failed")
        return Faulty(self.shop.fork(), self.call, self.bad)

    def reset(self, task: str) -> str:
        self.task = task
        self._fail("reset")
        return self.shop.reset(task)

    def step(self, action: str):
        self._fail("step")
        return self.shop.step(action)

    def available_actions(self):
        self._fail("available_actions")
        return self.shop.available_actions()


@pytest.mark.parametrize("call", ["fork", "reset", "available_actions", "step"])
@pytest.mark.parametrize("slots", [1, 4])
def test_an_environment_that_fails_costs_one_episode(call: str, slots: int, shop, policy: Policy) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:4]]
    expected = simulate(policy, shop, starts, seed=0)
    progress: list[tuple[int, int, int]] = []
    env = Faulty(shop, call, starts[1].task)
    played = simulate(policy, env, starts, seed=0, slots=slots, on_progress=lambda *more: progress.append(more))
    assert played[1].outcome == "env_error" and not played[1].failed and not played[1].won
    assert [played[place] for place in (0, 2, 3)] == [expected[place] for place in (0, 2, 3)]
    assert [one[0] for one in progress] == [1] * 4


@pytest.mark.parametrize("call", ["fork", "reset", "step"])
def test_an_environment_that_fails_on_the_way_to_expert_states_costs_only_those(
    call: str, shop, experts, policy: Policy
) -> None:
    expert = next(t for t in experts if t.failed and len(t) > 3)
    other = next(task for task in shop.tasks("train") if task != expert.task)
    starts = [Start(expert.task, expert, 1), Start(expert.task, expert, 2), Start(other)]
    played = simulate(policy, Faulty(shop, call, expert.task), starts, seed=0)
    assert "env_error" in {t.outcome for t in played[:2]} <= {"env_error", "done", "max_steps"}
    assert played[2] == simulate(policy, shop, starts[2:], seed=0)[0]


class Replayed:
    """A shop that cannot fork and whose episodes end after ``steps`` steps; another step is a RuntimeError."""

    def __init__(self, shop, steps: int, max_steps: int) -> None:
        self.shop, self.steps, self.max_steps, self.name = shop.fork(), steps, max_steps, shop.name

    def fork(self):
        raise NotImplementedError

    def workers(self, count: int) -> list[Replayed]:
        return [Replayed(self.shop, self.steps, self.max_steps) for _ in range(min(count, 2))]

    def reset(self, task: str) -> str:
        self.left = self.steps
        return self.shop.reset(task)

    def step(self, action: str):
        if not self.left:
            raise RuntimeError("the episode is over: call reset(task)")
        step = self.shop.step(action)
        self.left = 0 if step.done else self.left - 1
        return replace(step, done=not self.left)

    def available_actions(self):
        return self.shop.available_actions()


@pytest.mark.parametrize(
    ("max_steps", "outcome"),
    [(3, "max_steps"), (9, "replay_divergence")],  # a limit that we know, and one that only the environment knows
)
def test_an_expert_longer_than_the_step_limit_costs_only_its_late_states(
    max_steps: int, outcome: str, shop, experts, policy: Policy
) -> None:
    expert = next(t for t in experts if t.failed and len(t) > 5)
    starts = [Start(expert.task, expert, index) for index in (5, 1, 3, 2, 4)]
    played = simulate(policy, Replayed(shop, 3, max_steps), [*starts, Start(expert.task)], seed=0)
    assert [played[place].outcome for place in (0, 2, 4)] == [outcome] * 3
    assert all(played[place].outcome in ("done", "max_steps") for place in (1, 3, 5))
    assert all(1 <= len(played[place]) <= 3 for place in (1, 3, 5))
    assert [t.prefix for t in played] == [5, 1, 3, 2, 4, 0]


def test_an_expert_beyond_the_step_limit_of_an_environment_that_forks(shop, experts, policy: Policy) -> None:
    expert = next(t for t in experts if t.failed and len(t) > 4)
    starts = [Start(expert.task, expert, index) for index in (4, 2, 1)]
    played = simulate(policy, shop, starts, seed=0, max_steps=2)
    assert [(t.outcome, len(t)) for t in played[:2]] == [("max_steps", 4), ("max_steps", 2)] and len(played[2]) == 2


def test_a_state_that_the_expert_does_not_have_is_refused(shop, experts, policy: Policy) -> None:
    with pytest.raises(ValueError, match="state 99 of an expert trajectory of"):
        simulate(policy, shop, [Start(experts[0].task, experts[0], 99)])


# Random streams


def test_the_stream_of_s0_depends_on_seed_task_and_sample() -> None:
    assert streams([Start("7", sample=2), Start("8")], 5) == [
        [5, zlib.crc32(b"7||0|2")],
        [5, zlib.crc32(b"8||0|0")],
    ]


def test_every_start_has_its_own_stream_in_any_order(experts) -> None:
    expert = next(t for t in experts if len(t) > 3)
    longer = replace(expert, turns=(*expert.turns, Turn("click[back to search]", "the first page")))
    elsewhere = replace(expert, turns=(*expert.turns[:-1], replace(expert.turns[-1], observation="another page")))
    starts = [
        Start(t.task, t, index, sample) for t in (expert, longer, elsewhere) for index in (0, 1) for sample in (0, 1)
    ]
    starts += [Start(expert.task, sample=sample) for sample in (0, 1)]
    seeds = streams(starts, 3)
    assert len({tuple(seed) for seed in seeds}) == len(starts)
    assert len({tuple(seed) for seed in [*seeds, *streams(starts, 4)]}) == 2 * len(starts)
    order = list(range(len(starts)))
    random.Random(0).shuffle(order)
    assert streams([starts[place] for place in order], 3) == [seeds[place] for place in order]
    copies = [replace(start, expert=start.expert and replace(start.expert)) for start in starts]
    twice = streams(starts + copies, 3)
    assert twice[: len(starts)] == seeds, "the first of equal starts has the seed of a single one"
    assert len({tuple(seed) for seed in twice}) == 2 * len(starts)


def test_equal_starts_are_simulated_apart_and_a_part_like_the_whole(shop, experts, policy: Policy) -> None:
    expert = next(t for t in experts if t.failed and len(t) > 3)
    starts = [Start(expert.task, expert, 1), Start(expert.task), Start(expert.task, expert, 1), Start(expert.task)]
    played = simulate(policy, shop, starts, seed=1)
    assert played == simulate(policy, shop, starts, seed=1, slots=1)
    assert played[0] != played[2] and played[1] != played[3]
    assert simulate(policy, shop, starts[:2], seed=1) == played[:2]
    assert simulate(policy, shop, starts[2:], seed=1, seeds=streams(starts, 1)[2:]) == played[2:]


def test_two_failures_on_one_subtask_are_simulated_apart(shop, experts, policy: Policy) -> None:
    """They share the turns before the state and differ after it."""
    expert = next(t for t in experts if t.failed and len(t) > 3)
    other = replace(expert, turns=expert.turns[:-1])
    one, two = simulate(policy, shop, [Start(t.task, t, 1) for t in (expert, other)], seed=0)
    assert one.turns[:1] == two.turns[:1] and one.turns != two.turns


def test_the_temperature_decides_between_the_best_and_a_drawn_action(shop, policy: Policy) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:8]]
    greedy, cold, warm = (simulate(policy, shop, starts, seed=0, temperature=t) for t in (0.0, 1e-6, 1.0))
    strip = [replace(t, info={}) for t in cold]
    assert strip == [replace(t, info={}) for t in greedy] != [replace(t, info={}) for t in warm]
    assert greedy == simulate(policy, shop, starts, seed=1, temperature=0.0)


# Random navigation


def navigation_of(played: Trajectory) -> list[bool]:
    return [any(uses(action, skill) for skill in extras_of("webshop").skills.values()) for action in played.actions]


def test_random_navigation_has_a_stream_of_its_own(shop, experts, policy: Policy) -> None:
    """Slots and order change nothing, and with probability 0 nothing changes."""
    starts = starts_of(shop, experts, 1)[10:30]
    plain = simulate(policy, shop, starts, seed=1)
    never, half = (RandomNavigation(share, navigation_skills(shop, 1.0)) for share in (0.0, 0.5))
    assert simulate(policy, shop, starts, seed=1, navigation=never) == plain
    played = simulate(policy, shop, starts, seed=1, navigation=half)
    assert played == simulate(policy, shop, starts[::-1], seed=1, navigation=half, slots=3)[::-1] != plain
    assert sum(map(sum, map(navigation_of, played))) > 2 * sum(map(sum, map(navigation_of, plain)))
    used = {action for one in played for action in one.actions}
    assert {"click[next >]", "click[< prev]", "click[back to search]"} <= used
    samples = [Start(starts[0].task, sample=sample) for sample in (0, 1)]
    greedy = simulate(policy, shop, samples, temperature=0.0, navigation=half)
    assert greedy[0].actions != greedy[1].actions


def test_the_policy_acts_where_no_navigation_is_available_and_reads_the_random_actions(shop, policy: Policy) -> None:
    """With probability 1 it only searches. Its answers are those that it gives from the same state of a replay."""
    always = RandomNavigation(1.0, navigation_skills(shop, 1.0))
    starts = [Start(task) for task in shop.tasks("train")[:4]]
    played = simulate(policy, shop, starts, temperature=0.0, navigation=always)
    for one in played:
        own = [index for index, random in enumerate(navigation_of(one)) if not random]
        assert 1 < len(own) < len(one) and all(one.actions[index].startswith("search[") for index in own)
        assert one.outcome == "max_steps" and len(one) == shop.max_steps
        alone = simulate(policy, shop, [Start(one.task, one, index) for index in own[1:]], temperature=0.0)
        assert [again.actions[index] for again, index in zip(alone, own[1:], strict=True)] == [
            one.actions[index] for index in own[1:]
        ]
        ids = [policy.chat.begin().encode_action(one.actions[index]) for index in own]
        assert one.info["tokens"] == sum(map(len, ids)), "random actions are not sampled"


def test_a_random_action_is_an_action_without_a_thought(shop, thinker: Policy) -> None:
    Scripted.replies = ("Thought: I look. Action: search[lamp]",)
    (played,) = simulate(
        thinker, shop, [Start(shop.tasks("train")[0])], navigation=RandomNavigation(1.0, navigation_skills(shop, 1.0))
    )
    moves = [turn for turn, random in zip(played.turns, navigation_of(played), strict=True) if random]
    assert len(moves) > 1 and all(turn.reply == "" and turn.learn and not turn.ids for turn in moves)
    assert played.info["invalid"] == 0


def test_random_navigation_in_an_environment_that_fails_costs_one_episode(shop, policy: Policy) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:3]]
    navigation = RandomNavigation(1.0, navigation_skills(shop, 1.0))
    expected = simulate(policy, shop, starts, navigation=navigation)
    world = Faulty(shop, "available_actions", starts[1].task)
    played = simulate(policy, world, starts, navigation=navigation)
    assert played[1].outcome == "env_error" and [played[0], played[2]] == [expected[0], expected[2]]


def test_random_navigation_needs_skills() -> None:
    with pytest.raises(ValueError, match="random_navigation=0.1 needs navigation skills, and the environment 'dense'"):
        navigation_skills(Dense(), 0.1)
    assert navigation_skills(Dense(), 0.0) == ()


def test_a_context_that_overflows_is_its_own_outcome(shop, policy: Policy) -> None:
    policy.context = 150
    played = simulate(policy, shop, [Start(task) for task in shop.tasks("train")], seed=0)
    assert {t.outcome for t in played} == {"context_overflow"}
    assert [t.failed for t in played] == [len(t) > 0 for t in played], "lost, unless not even the first turn fits"
    policy.context = policy.max_new_tokens
    (one,) = simulate(policy, shop, [Start(played[0].task)], seed=0)
    assert (one.outcome, len(one), one.failed) == ("context_overflow", 0, False)


def test_progress_counts_every_episode(shop, policy: Policy) -> None:
    counts: list[tuple[int, int, int]] = []
    starts = [Start(task) for task in shop.tasks("train")]
    turns: list[tuple[int, int]] = []
    played = simulate(
        policy, shop, starts, seed=0, on_progress=lambda *more: counts.append(more), on_turn=lambda *t: turns.append(t)
    )
    assert sum(count for count, _ in turns) == sum(map(len, played)), "and every turn"
    assert sum(tokens for _, tokens in turns) == sum(t.info["tokens"] for t in played)
    assert sorted(counts) == sorted((1, int(t.won), t.info["tokens"]) for t in played)
    assert min(tokens for _, _, tokens in counts) > 0


class Scripted:
    """An engine that answers with ``replies`` in turn."""

    replies: tuple[str, ...] = ()

    def __init__(self, policy: Policy, slots: int) -> None:
        self.policy, self.answered, self.conversations = policy, 0, [[] for _ in range(slots)]

    def start(self, prompts: dict[int, list[int]]) -> None:
        for slot, ids in prompts.items():
            self.conversations[slot] = list(ids)

    def append(self, slot: int, ids: list[int]) -> None:
        self.conversations[slot] += ids

    def length(self, slot: int) -> int:
        return len(self.conversations[slot])

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        return list(lengths)

    def park(self, slot: int) -> list[int]:
        raise AssertionError("all conversations fit")

    def generate(self, slots, draws, temperature, constraints=None) -> dict[int, list[int]]:
        reply = self.replies[min(self.answered, len(self.replies) - 1)]
        self.answered += 1
        answers = {slot: self.policy.chat.begin().encode_action(reply) for slot in slots}
        for slot, ids in answers.items():
            self.conversations[slot] += ids
        return answers


@pytest.fixture
def thinker(policy: Policy, monkeypatch) -> Policy:
    """A ReAct policy that gives the answers of :class:`Scripted`."""
    from families import tokenizer_of

    chat = react.react_chat(Chat.of(tokenizer_of("llama-3")), "webshop")
    monkeypatch.setattr(Policy, "engine", lambda self, slots: Scripted(self, slots))
    return replace(
        policy, chat=chat, tokenizer=chat.tokenizer, constrained_decoding=False, context=10**6, max_new_tokens=500
    )


def test_thoughts_are_kept_and_an_answer_without_an_action_costs_a_turn(shop, thinker: Policy, monkeypatch) -> None:
    goal = "Thought: I look.\nAction: search[shirt]\nObservation: made up"
    monkeypatch.setattr(Scripted, "replies", ("I had rather not.", goal, "Thought: x\nAction: click[nothing here]"))
    (played,) = simulate(thinker, shop, [Start(shop.tasks("train")[0])], max_steps=4)
    unreadable, looked, *rest = played.turns
    assert (unreadable.action, unreadable.observation, unreadable.learn) == ("", EXPLANATIONS[Problem.NO_ACTION], False)
    assert looked.action == "search[shirt]" and looked.reply == goal and not looked.learn
    assert [(turn.action, turn.learn) for turn in rest] == [("click[nothing here]", True)] * 2
    assert played.info["invalid"] == 3 and played.outcome == "max_steps" and played.failed

    Scripted.replies = (goal,)  # from a state of that failure: the answer without an action is repeated
    (again,) = simulate(thinker, shop, [Start(played.task, played, 2)], max_steps=3)
    assert again.turns[:2] == played.turns[:2] and again.outcome == "max_steps"


def test_an_action_in_a_thought_is_not_executed(shop, thinker: Policy, monkeypatch) -> None:
    reply = "<think>Maybe Action: click[x]? Too early.</think>\n\nThought: I look.\n**Action:** `search[shirt]`"
    unclear = "Thought: one of these.\nAction: search[shirt]\nsearch[boots]"
    monkeypatch.setattr(Scripted, "replies", (reply, unclear, "<think>Action: search[boots]"))
    (played,) = simulate(thinker, shop, [Start(shop.tasks("train")[0])], max_steps=3)
    assert played.actions == ["search[shirt]", "", ""]
    assert [turn.learn for turn in played.turns] == [True, False, False]
    assert [turn.reply for turn in played.turns] == [reply, unclear, "<think>Action: search[boots]"]
    expected = [EXPLANATIONS[problem] for problem in (Problem.AMBIGUOUS, Problem.NO_ACTION)]
    assert [turn.observation for turn in played.turns[1:]] == expected
    counts = {name: played.info[name] for name in ("invalid", "no_action", "ambiguous", "cut")}
    assert counts == {"invalid": 2, "no_action": 1, "ambiguous": 1, "cut": 0}


def test_a_cut_answer_is_neither_guessed_nor_learnt(shop, thinker: Policy, monkeypatch) -> None:
    begun, whole = "Thought: this one.\nAction: search[brown shi", "Thought: I look.\nAction: search[shirt]"
    invented = "Action: click[x]\nObservation: a page"
    for reply, action in ((begun, ""), (whole, "search[shirt]"), (invented, "click[x]")):
        monkeypatch.setattr(Scripted, "replies", (reply,))
        ids = len(thinker.chat.begin().encode_action(reply)) - len(thinker.chat.end)
        for limit, cut in ((ids, True), (ids + 1, False)):  # an answer at the limit gets the end appended
            short = replace(thinker, max_new_tokens=limit)
            (played,) = simulate(short, shop, [Start(shop.tasks("train")[0])], max_steps=1)
            (turn,) = played.turns
            assert turn.action == action and turn.learn is (reply == whole and not cut)
            if not action:
                assert turn.observation == EXPLANATIONS[Problem.CUT if cut else Problem.AMBIGUOUS]
            assert played.info["cut"] == int(cut and not action)


class Dense:
    """Each ``add[k]`` adds k to the score, of which 100 wins."""

    name, max_steps, score = "dense", 10, 0

    def reset(self, task: str) -> str:
        self.score = 0
        return "the score is 0"

    def step(self, action: str) -> Step:
        self.score += int(action[4:-1])
        info = {"won": self.score == 100, "score": self.score, "max_score": 100}
        return Step(f"the score is {self.score}", self.score / 100, self.score == 100, info=info)

    def fork(self):
        return copy(self)


class DenseReplayed(Dense):
    def fork(self):
        raise NotImplementedError

    def workers(self, count: int) -> list:
        return [DenseReplayed() for _ in range(count)]


@pytest.mark.parametrize("world", [Dense(), DenseReplayed()])
def test_an_episode_that_never_acts_keeps_the_score_of_its_first_state(world, thinker: Policy, monkeypatch) -> None:
    monkeypatch.setattr(Scripted, "replies", ("I had rather not.",))
    turns = tuple(Turn(f"add[{k}]", f"the score is {score}") for k, score in ((20, 20), (5, 25), (50, 75)))
    expert = Trajectory("0", "the score is 0", turns, 0.75, False)
    played = simulate(thinker, world, [Start("0", expert, 2), Start("0"), Start("0", expert, 1)], max_steps=3)
    assert [one.reward for one in played] == [0.25, 0.0, 0.2]
    assert [one.info.get("score") for one in played] == [25, None, 20]
    assert not any(one.won for one in played)


def test_unreadable_answers_count_for_the_step_limit_of_a_subtask(thinker: Policy, monkeypatch) -> None:
    monkeypatch.setattr(Scripted, "replies", ("I had rather not.",))
    monkeypatch.setattr(Dense, "max_steps_of", lambda self, task: {"short": 2}.get(task, 10), raising=False)
    expert = Trajectory("short", "the score is 0", tuple(Turn("add[1]", f"the score is {k}") for k in (1, 2, 3)), 0.03)
    played = simulate(thinker, Dense(), [Start("short"), Start("long"), Start("short", expert, 2)])
    assert [(len(one), one.outcome) for one in played] == [(2, "max_steps"), (10, "max_steps"), (2, "max_steps")]


@pytest.mark.parametrize("constrained_decoding", [False, True])
def test_the_engine_shows_which_answers_were_cut(shop, policy: Policy, constrained_decoding: bool) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:4]]
    played = simulate(
        replace(policy, constrained_decoding=constrained_decoding, max_new_tokens=3), shop, starts, seed=0, max_steps=4
    )
    turns = [turn for one in played for turn in one.turns]
    cut = [turn for turn in turns if turn.observation == EXPLANATIONS[Problem.CUT]]
    assert sum(one.info["cut"] for one in played) == len(cut) and bool(cut) is not constrained_decoding
    assert all(turn.action == "" and not turn.learn for turn in cut)


# Any engine


class TableEngine:
    """Answers from a table: the action that follows each observation. It holds one conversation, each in turn."""

    def __init__(self, chat: Chat, table: dict[str, str]) -> None:
        self.chat, self.table = chat, table
        self.conversations: dict[int, list[int]] = {}
        self.rounds, self.parked = 0, 0

    def start(self, prompts: dict[int, list[int]]) -> None:
        self.conversations |= prompts

    def append(self, slot: int, ids: list[int]) -> None:
        self.conversations[slot] = self.conversations[slot] + ids

    def length(self, slot: int) -> int:
        return len(self.conversations[slot])

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        self.rounds += 1
        return [list(lengths)[self.rounds % len(lengths)]] if lengths else []

    def park(self, slot: int) -> list[int]:
        self.parked += 1
        return self.conversations.pop(slot)

    def generate(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        constraints: dict[int, Constraints] | None = None,
    ) -> dict[int, list[int]]:
        answers = {}
        for slot in slots:
            text = self.chat.tokenizer.decode(self.conversations[slot])
            observation = max(self.table, key=text.rfind)  # the last one in the conversation
            answers[slot] = self.chat.begin().encode_action(self.table[observation])
            self.append(slot, answers[slot])
        return answers


@dataclass
class TablePolicy:
    """A policy without a model."""

    chat: Chat
    table: dict[str, str]
    context: int = 10_000
    constrained_decoding: bool = False
    max_new_tokens: int = 50
    engines: list[TableEngine] = field(default_factory=list)

    def engine(self, slots: int) -> Engine:
        self.engines.append(TableEngine(self.chat, self.table))
        return self.engines[-1]


def test_any_engine_with_the_protocol_plays() -> None:
    from families import tokenizer_of

    table = {"the score is 0": "add[20]", "the score is 20": "add[5]", "the score is 25": "add[75]"}
    policy = TablePolicy(Chat.of(tokenizer_of("llama-3")), table)
    expert = Trajectory("0", "the score is 0", (Turn("add[25]", "the score is 25"), Turn("x", "y")), 0.25, False)
    played = simulate(policy, Dense(), [Start("0"), Start("0", sample=1), Start("0", expert, 1)], slots=3)
    assert [t.actions for t in played] == [["add[20]", "add[5]", "add[75]"]] * 2 + [["add[25]", "add[75]"]]
    assert all(t.won and t.outcome == "done" for t in played)
    (engine,) = policy.engines
    assert engine.parked > 0, "conversations are resumed after they were parked"


def test_simulations_depend_on_the_code_of_the_engine_and_training_does_not() -> None:
    engine = {"eef.agents.cached_engine", "eef.agents.kv_cache", "eef.agents.constraints"}
    assert engine <= keys.source_files(["eef.agents.simulation"]).keys()
    assert not engine & keys.source_files(["eef.training.stages"]).keys()


@pytest.mark.parametrize(("invalid", "warnings"), [(7, 1), (5, 0)])
def test_a_policy_whose_actions_are_mostly_invalid_is_reported_once_while_it_plays(
    invalid: int, warnings: int, shop, thinker: Policy, monkeypatch
) -> None:
    """``invalid`` of every 10 actions are invalid; the first 50 turns are the first 10 of five episodes."""
    replies = ("Action: search[mug]",) * (10 - invalid) + ("Action: o0 i2",) * invalid
    monkeypatch.setattr(Scripted, "replies", replies * 2)
    events: list[str] = []
    starts = [Start(task) for task in shop.tasks("train")[:5]]
    simulate(thinker, shop, starts, on_warning=events.append, on_progress=lambda *_: events.append("end of an episode"))
    texts = [event for event in events if event != "end of an episode"]
    assert len(texts) == warnings and len(events) == warnings + 5
    if warnings:
        assert events[0] == texts[0], "while the episodes are played"
        assert texts[0].startswith("35 of 50 actions are invalid so far, such as 'o0 i2', where 'click[")
        assert "set constrained_decoding=True or prompt='react', use a model that knows" in texts[0]
