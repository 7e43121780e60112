"""Expert actions as constrained decoding writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from eef.envs import EnvError
from eef.envs.webshop import WebShop
from eef.experts import expert_trajectories
from eef.experts.offered import as_offered
from eef.trajectory import Trajectory, Turn


@pytest.fixture(scope="module")
def strong(shop: WebShop) -> list[Trajectory]:
    return expert_trajectories(shop, "strong", shop.tasks("train"), 0)


def capitals(action: str) -> str:
    name, _, inside = action.partition("[")
    return f"{name}[{inside.upper()}"


def recorded(shop: WebShop, task: str, actions: Sequence[str]) -> Trajectory:
    env = shop.fork()
    prompt, steps = env.reset(task), [env.step(action) for action in actions]
    turns = tuple(Turn(action, step.observation) for action, step in zip(actions, steps, strict=True))
    outcome = "done" if steps[-1].done else "max_steps"
    return Trajectory(task, prompt, turns, steps[-1].reward, bool(steps[-1].info["won"]), "mine", outcome)


def test_actions_of_scripted_experts_stay_and_nothing_is_printed(shop: WebShop, strong, capsys) -> None:
    before = shop.reset(shop.tasks("train")[0])
    assert as_offered(shop, strong) == strong
    assert capsys.readouterr().out == ""
    assert shop.step("click[nothing]").observation == before


def test_actions_in_another_case_become_the_available_ones(shop: WebShop, strong, capsys) -> None:
    loud = [recorded(shop, item.task, [capitals(action) for action in item.actions]) for item in strong]
    assert [[turn.observation for turn in item.turns] for item in loud] == [
        [turn.observation for turn in item.turns] for item in strong
    ]
    sampled = [
        replace(item, turns=tuple(replace(turn, reply="so", ids=(5,), chat="x") for turn in item.turns))
        for item in loud
    ]
    assert [item.turns for item in as_offered(shop, sampled)] == [item.turns for item in strong]
    count, first = sum(map(len, strong)), strong[0].actions[0]
    assert capsys.readouterr().out == (
        f"[experts] {count} expert actions are written as constrained decoding says them, such as {first!r} for "
        f"{capitals(first)!r}\n"
    )


def test_actions_that_are_never_offered_stay_with_a_warning(shop: WebShop, strong, capsys) -> None:
    task = strong[0].task
    refused = recorded(shop, task, [strong[0].actions[0], "Click[Next >]", "click[nothing]", "click[NEXT >]"])
    unknown = recorded(shop, task, ["search[lamp zebra]"])
    result = as_offered(shop, [*strong, refused, unknown])
    assert result[-2].actions == [*refused.actions[:3], "click[next >]"] and result[-1] == unknown
    printed = capsys.readouterr().out
    count = sum(map(len, strong)) + 5
    assert f"warning: 3 of {count} expert actions are learnt though constrained decoding cannot say them" in printed
    assert f"the first: 'Click[Next >]', mine on task {task}" in printed and "[experts] 1 expert actions" in printed


def test_what_cannot_be_replayed_or_is_no_action_stays(shop: WebShop, strong) -> None:
    loud = recorded(shop, strong[0].task, [capitals(action) for action in strong[0].actions])
    mute = Turn("", "No action was found.", "Thought: hm.")
    items = [
        replace(loud, info={"no_replay": "other pages"}), replace(loud, outcome="replay_divergence", won=False),
        replace(strong[0], turns=(mute, *strong[0].turns)),
    ]  # fmt: skip
    assert as_offered(shop, items) == items


def test_a_failure_of_the_environment_is_no_loss(shop: WebShop, strong, monkeypatch) -> None:
    def fails(self: WebShop, action: str) -> None:
        raise EnvError("gone")

    monkeypatch.setattr(WebShop, "step", fails)
    (item,) = as_offered(shop, strong[:1])
    assert item.outcome == "env_error" and not (item.won or item.failed)
