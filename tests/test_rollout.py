from __future__ import annotations

from dataclasses import replace

import pytest

from eef import react
from eef.chat import Chat
from eef.experts import collect
from eef.policy import Policy
from eef.rollout import Start, simulate
from eef.selection import cut_points


@pytest.fixture(scope="module")
def experts(shop):
    return collect(shop, "strong", shop.tasks("train"), seed=0)


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
            assert step.observation == turn.observation and step.valid  # limited decoding makes no invalid action
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


def test_a_context_that_overflows_is_its_own_outcome(shop, policy: Policy) -> None:
    policy.context = 150
    played = simulate(policy, shop, [Start(task) for task in shop.tasks("train")], seed=0)
    assert {t.outcome for t in played} == {"context_overflow"}
    assert not any(t.failed for t in played)


def test_progress_counts_every_episode(shop, policy: Policy) -> None:
    seen: list[int] = []
    simulate(policy, shop, [Start(task) for task in shop.tasks("train")], seed=0, told=seen.append)
    assert sum(seen) == len(shop.tasks("train"))


class Scripted:
    """Stands for a policy's Actor: says ``replies`` in turn, in the place of a model that can think."""

    replies: tuple[str, ...] = ()

    def __init__(self, policy: Policy, slots: int) -> None:
        self.policy, self.said, self.read = policy, 0, 0
        self.plan = type("Plan", (), {"slots": slots})

    def open(self, prompts) -> None:
        self.read = max(map(len, prompts.values()))

    def length(self, slot: int) -> int:
        return self.read

    def hear(self, slot: int, ids: list[int]) -> None:
        self.read += len(ids)

    def act(self, slots, draws, temperature, limits):
        reply = self.replies[min(self.said, len(self.replies) - 1)]
        self.said += 1
        return {slot: self.policy.chat.begin().say(reply) for slot in slots}


def test_thoughts_are_kept_and_an_answer_without_an_action_costs_a_turn(shop, policy: Policy, monkeypatch) -> None:
    from test_families import tokenizer_of

    chat = react.scaffold(Chat.of(tokenizer_of("llama-3")), "webshop")
    policy = replace(policy, chat=chat, tokenizer=chat.tokenizer, limited=False, context=10**6)
    goal = "Thought: I look.\nAction: search[shirt]\nObservation: made up"
    monkeypatch.setattr("eef.rollout.Actor", Scripted)
    monkeypatch.setattr(Scripted, "replies", ("I had rather not.", goal, "Thought: x\nAction: click[nothing here]"))
    (played,) = simulate(policy, shop, [Start(shop.tasks("train")[0])], max_steps=4)
    unheard, looked, *rest = played.turns
    assert (unheard.action, unheard.observation, unheard.learn) == ("", react.NO_ACTION, False)
    assert looked.action == "search[shirt]" and looked.reply == goal and not looked.learn
    assert [(turn.action, turn.learn) for turn in rest] == [("click[nothing here]", True)] * 2
    assert played.info["invalid"] == 3 and played.outcome == "max_steps" and played.failed

    Scripted.replies = (goal,)  # from a state of that failure: the answer without an action is replayed as it was
    (again,) = simulate(policy, shop, [Start(played.task, played, 2)], max_steps=3)
    assert again.turns[:2] == played.turns[:2] and again.outcome == "max_steps"
