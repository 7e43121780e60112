"""The methods beyond the paper: what they simulate and what they learn, in a lab whose simulations end as told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_from_scratch import Corridor, play_expert

from eef import trajectory
from eef.agents.rollout import Start
from eef.beyond import (
    Exploration,
    aligned,
    eef_adaptive,
    eef_pairs,
    eef_soft,
    explore,
    flip_pairs,
    soft_examples,
    without_solved,
)
from eef.exchange.source import selected_by_run
from eef.experiment import experiment
from eef.files import RunError
from eef.methods import eef
from eef.models.pretrain import make_model, save
from eef.planning import Line, estimate, fit
from eef.selection import Example
from eef.settings import Settings
from eef.trajectory import Trajectory, Turn


def played(actions: str, won: bool, source: str, prefix: int = 0, task: str = "hard") -> Trajectory:
    turns = tuple(Turn(action, f"after {action}") for action in actions)
    return Trajectory(task, "s0", turns, float(won), won, source, prefix=prefix)


WIN = played("w", True, "strong", task="easy")
FAILURE = played("abcdefghijkl", False, "strong")
STATES = len(FAILURE)


def ended(index: int, how: str, sample: int = 0, task: str = "hard") -> Trajectory:
    """The simulation from state ``index`` of ``FAILURE``; its only own action names its sample and its end."""
    turns = (*FAILURE.turns[:index], Turn(f"{index} {how} {sample}", "the end"))
    outcome = "env_error" if how == "broken" else "done"
    return Trajectory(task, "s0", turns, float(how == "won"), how == "won", "policy", outcome, prefix=index)


@dataclass
class FakeLab:
    """Simulations end as ``end(index, sample)`` says: won, lost or broken."""

    end: Callable[[int, int], str]
    experts_: tuple[Trajectory, ...] = (WIN, FAILURE)
    tasks: tuple[str, ...] = ("easy", "hard")
    settings: Settings = field(default_factory=Settings)
    seed: int = 0
    blocked: tuple[str, ...] = ()
    starts: list[tuple[str, int, int, int]] = field(default_factory=list)
    stages: dict[str, int] = field(default_factory=dict)
    trained: dict[str, list[Any]] = field(default_factory=dict)
    started: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> FakeLab:
        return self

    def can_start_here(self, observation: str) -> bool:
        return observation not in self.blocked

    def experts(self) -> list[Trajectory]:
        return list(self.experts_)

    def sampling_seed(self, iteration: int) -> int:
        return 100 + iteration

    def sft_start(self, adapter: Path) -> Path | None:
        return None if self.settings.restart == "base" else adapter

    def from_s0(self, adapter: Path, iteration: int, sample: int) -> list[Trajectory]:
        starts = [Start(task, sample=sample) for task in self.tasks]
        return self.simulate(f"s0-{iteration}-{sample}", adapter, starts, self.sampling_seed(iteration))

    def simulate(self, name: str, adapter: Path, starts: Sequence[Start], seed: int) -> list[Trajectory]:
        self.starts += [(each.task, each.index, each.sample, seed) for each in starts]
        self.stages[name], self.adapters[name] = len(starts), str(adapter)
        played = [ended(each.index, self.end(each.index, each.sample), each.sample, each.task) for each in starts]
        prefixes = [each.expert.turns[: each.index] if each.expert else () for each in starts]
        return [replace(t, turns=(*turns, t.turns[-1])) for t, turns in zip(played, prefixes, strict=True)]

    def sft(self, name: str, examples: Sequence[Example], start: Path | None = None) -> Path:
        self.trained[name], self.started[name] = list(examples), start
        return Path(name)

    def dpo(self, name: str, pairs: Sequence[tuple[Trajectory, Trajectory]], start: Path) -> Path:
        self.trained[name], self.started[name] = list(pairs), start
        return Path(name)


def rises(index: int, sample: int) -> str:
    """Lost up to s_7, won from s_8 on."""
    return "won" if index >= 8 else "lost"


FAILURES = tuple(replace(FAILURE, task=f"t{number}") for number in range(6))
BROKEN = replace(FAILURE, task="broken", outcome="env_error")  # neither a win nor a failure
TASKS = ("easy", *(each.task for each in FAILURES), "untried", "broken")


@pytest.mark.parametrize("m", [1, 2, 5])
def test_adaptive_simulations_are_at_most_those_of_eef_and_leave_out_what_is_won(m: int) -> None:
    labs = [FakeLab(rises, (WIN, *FAILURES, BROKEN), TASKS) for _ in range(3)]
    eef(labs[0], m=m)  # type: ignore[arg-type]
    eef_adaptive(labs[1], m=m)  # type: ignore[arg-type]
    eef_adaptive(labs[2], m=m, adaptive=False)  # type: ignore[arg-type]
    of_eef, adaptive, even = ([(task, index) for task, index, *_ in lab.starts] for lab in labs)
    assert sorted(even) == sorted(of_eef) and max(labs[2].stages.values()) - min(labs[2].stages.values()) <= 1
    assert len(adaptive) <= len(of_eef) and labs[1].stages["batch-0"] == 8
    assert adaptive[:8] == [("untried", 0), ("broken", 0), *((t.task, 6) for t in FAILURES)], "the middle states"
    assert "easy" not in dict(adaptive) and len({*labs[1].starts}) == len(adaptive), "no random stream occurs twice"
    won: set[str] = set()
    for batch, size in enumerate(labs[1].stages.values()):
        begin = sum(list(labs[1].stages.values())[:batch])
        assert won.isdisjoint(dict(adaptive[begin : begin + size]))
        won |= {task for task, index in adaptive[begin : begin + size] if index >= 8}
    *_, last = labs[1].trained.values()
    solved = {example.trajectory.task for example in last[1:]}
    assert solved == won and (m < 5 or won == {t.task for t in FAILURES})
    assert all(example.learn_from == 0 for example in last), "s0 counts as lost"


@pytest.mark.parametrize("method", [eef_adaptive, eef_soft, eef_pairs])
def test_a_failure_without_a_turn_is_no_failure_to_explore(method: Any) -> None:
    empty = replace(FAILURE, task="empty", turns=(), outcome="max_steps")
    lab = FakeLab(lambda index, sample: "won", (WIN, *FAILURES, empty), (*TASKS, "empty"))
    method(lab, m=2)
    assert any(example.trajectory.task == "empty" for rows in lab.trained.values() for example in rows), "s0 won"


def test_each_batch_is_played_by_the_policy_that_learnt_from_the_one_before() -> None:
    lab = FakeLab(lambda index, sample: "lost", (WIN, *FAILURES), TASKS, settings=Settings(iterations=2))
    assert eef_adaptive(lab, m=5, rounds=2) == Path("sft-3")  # type: ignore[arg-type]
    assert lab.adapters == {"batch-0": "bc", "batch-1": "sft-0", "batch-2": "sft-1", "batch-3": "sft-2"}
    assert len({seed for *_, seed in lab.starts}) == 4, "each batch has its own seed"
    assert len(TASKS) + 5 * len(FAILURES) < sum(lab.stages.values()) <= 2 * (len(TASKS) + 5 * len(FAILURES))


@pytest.mark.parametrize(("method", "options"), [(eef_adaptive, {"rounds": 2}), (eef_soft, {}), (eef_pairs, {})])
def test_with_restart_last_each_sft_continues_from_the_adapter_before(method: Any, options: dict[str, int]) -> None:
    lab = FakeLab(rises, (WIN, *FAILURES), TASKS, settings=Settings(iterations=2, restart="last"))
    method(lab, m=5, **options)
    assert (lab.started["bc"], lab.started["sft-0"], lab.started["sft-1"]) == (None, Path("bc"), Path("sft-0"))


def test_blocked_states_do_not_raise_the_budget() -> None:
    """Two failures on each subtask, of which only the middle may be simulated, and M = 2 does not contain it."""
    experts = (WIN, *FAILURES, *(replace(each, source="weak") for each in FAILURES))
    blocked = tuple(FAILURE.state(index) for index in range(1, STATES) if index != 6)
    labs = [FakeLab(lambda index, sample: "lost", experts, TASKS, blocked=blocked) for _ in range(3)]
    eef(labs[0], m=2)  # type: ignore[arg-type]
    eef_adaptive(labs[1], m=2)  # type: ignore[arg-type]
    eef_pairs(labs[2], m=2)  # type: ignore[arg-type]
    assert {index for _, index, *_ in labs[0].starts} == {0} and len(labs[0].starts) == len(TASKS)
    assert all(0 < len(lab.starts) <= len(TASKS) for lab in labs[1:])


@pytest.mark.parametrize("method", [eef_soft, eef_pairs])
def test_evenly_spaced_simulations_are_those_of_eef(method: Any) -> None:
    labs = [
        FakeLab(rises, (WIN, *FAILURES), TASKS, settings=Settings(iterations=2), blocked=(FAILURE.state(4),))
        for _ in range(2)
    ]
    eef(labs[0], m=5, k=2)  # type: ignore[arg-type]
    method(labs[1], m=5, k=2, **({"adaptive": False} if method is eef_pairs else {}))
    assert labs[1].starts == labs[0].starts and labs[1].stages == labs[0].stages


def test_planned_simulations_begin_with_fewer_states_and_stay_within_the_budget() -> None:
    lab = FakeLab(lambda index, sample: "won" if index == 6 else "lost")
    eef_pairs(lab, m=3, k=4)  # type: ignore[arg-type]
    assert list(lab.stages)[:3] == ["s0-0-0", "states-0", "planned-0-0"] and lab.stages["states-0"] == 2
    assert 2 + 2 < sum(lab.stages.values()) <= 4 * (2 + 3)
    assert [index for task, index, *_ in lab.starts if task == "hard"].count(6) > 1, "a label in doubt is repeated"


def test_a_win_from_s0_solves_a_failure() -> None:
    lab = FakeLab(lambda index, sample: "won" if index == 0 else "lost", (WIN, *FAILURES), TASKS)
    eef_adaptive(lab, m=20)  # type: ignore[arg-type]
    *_, last = lab.trained.values()
    assert {(e.trajectory.task, e.trajectory.prefix, e.learn_from) for e in last[1:]} == {(t, 0, 0) for t in TASKS[1:]}


def test_planned_simulations_find_the_flip() -> None:
    lab = FakeLab(rises)
    eef_pairs(lab, m=3, k=4)  # type: ignore[arg-type]
    *_, solution = lab.trained["sft-0"]
    assert solution == Example(ended(8, "won"), 0), "the expert's actions a_0 ... a_7 are beneficial"
    indices = [index for _, index, _, _ in lab.starts[2:]]
    assert {7, 8} <= set(indices), "evenly spaced states are 3, 6 and 9"


def test_two_experts_that_failed_on_one_subtask_share_the_simulations_of_its_s0() -> None:
    second = replace(FAILURE, source="weak", turns=tuple(replace(t, action=f"{t.action}2") for t in FAILURE.turns))
    exploration = Exploration(("hard",), (FAILURE, second), [(True,) * STATES] * 2)
    exploration.add([("hard", 0)], [ended(0, "lost")])
    starts = exploration.starts([("hard", 0), (0, 3), ("hard", 0), (1, 3)])
    assert [(start.index, start.sample) for start in starts] == [(0, 1), (3, 0), (0, 2), (3, 0)]
    assert [start.expert for start in starts] == [None, FAILURE, None, second]
    exploration.add([("hard", 0), ("hard", 0)], [ended(0, "won", 1), ended(0, "won", 2)])
    assert all((line.wins[0], line.simulations[0]) == (2, 3) for line in exploration.lines())
    assert exploration.outcomes() == {(0, 0): ended(0, "won", 1), (1, 0): ended(0, "won", 1)}


def test_blocked_states_and_those_with_errors_are_left_alone() -> None:
    lab = FakeLab(lambda index, sample: "broken" if index == 5 else rises(index, sample), blocked=(FAILURE.state(7),))
    exploration = explore(lab, Path("bc"), 0, 6, 2, 5)  # type: ignore[arg-type]
    indices = [index for task, index, _, _ in lab.starts if task == "hard"]
    assert 7 not in indices and indices.count(5) <= 2, "at most one batch"
    (line,) = exploration.lines()
    assert line.simulations[5] == 0 and not line.can_simulate[7] and line.can_simulate[8]
    assert line.can_simulate[5] == (5 not in indices)


def test_the_most_probable_state_with_a_win_solves_a_failure_without_a_won_state() -> None:
    exploration = Exploration(("hard",), (FAILURE,), [(True,) * STATES])
    for index, words in {0: "lost lost", 4: "won lost lost lost lost", 8: "won lost lost lost"}.items():
        for sample, how in enumerate(words.split()):
            exploration.add([exploration.state(0, index)], [ended(index, how, sample)])
    assert exploration.estimates()[0].outcomes.count(False) == 3
    assert exploration.outcomes() == {(0, 0): None, (0, 4): None, (0, 8): ended(8, "won")}


def test_a_state_counts_as_won_by_most_of_its_simulations_and_two_experts_share_a_solution_of_s0() -> None:
    exploration = Exploration(("easy", "hard"), (FAILURE,), [(True,) * STATES])
    for sample, how in enumerate(("won", "lost", "lost")):
        exploration.add([("easy", 0)], [ended(0, how, sample, "easy")])
    assert exploration.outcomes() == {("easy", 0): None}
    weak = replace(FAILURE, source="weak", turns=tuple(replace(t, action=f"{t.action}2") for t in FAILURE.turns))
    lab = FakeLab(rises, (WIN, FAILURE, weak))
    eef_adaptive(lab, m=5)  # type: ignore[arg-type]
    *_, last = lab.trained.values()
    assert [example.trajectory.task for example in last] == ["easy", "hard"]
    assert without_solved(Line((0, 0), (2, 1))) == Line((0, 0), (3, 1), (True, True))
    assert without_solved(Line((0, 1), (0, 1), (True, False))) == Line((0, 1), (1, 1), (False, False))


def test_a_state_that_has_won_stays_won() -> None:
    lab = FakeLab(rises, settings=Settings(iterations=2))
    lab.end = lambda index, sample: rises(index, sample) if lab.starts[-1][-1] == 100 else "lost"
    eef_pairs(lab, m=8)  # type: ignore[arg-type]
    assert lab.trained["sft-1"] == lab.trained["sft-0"] and len(lab.trained["sft-1"]) > 1
    assert {seed for *_, seed in lab.starts} == {100, 101}, "each iteration has its own seed"


def explored(ends: dict[int, str]) -> Exploration:
    """A win of a subtask without a failure, and simulations of one failure that end so: state -> outcomes."""
    exploration = Exploration(("easy", "hard"), (FAILURE,), [(True,) * STATES])
    exploration.add([("easy", 0)], [ended(0, "won", task="easy")])
    for index, words in ends.items():
        for sample, how in enumerate(words.split()):
            exploration.add([exploration.state(0, index)], [ended(index, how, sample)])
    return exploration


def test_soft_weights_are_gains_that_add_up() -> None:
    exploration = explored({0: "lost lost", 4: "won lost", 8: "won won", 10: "won lost lost lost"})
    means = exploration.estimates()[0].means
    examples = soft_examples(exploration)
    assert [(e.trajectory.task, e.trajectory.prefix, e.learn_from, e.trajectory.won) for e in examples] == [
        ("easy", 0, 0, True), ("hard", 4, 0, False), ("hard", 4, 4, True), ("hard", 8, 4, False), ("hard", 8, 8, True),
        ("hard", 10, 10, True),
    ]  # fmt: skip
    assert [e.weight for e in examples[1:]] == [
        means[4] - means[0], 1 - means[4], means[8] - means[4], 1 - means[8], 1 - means[10],
    ]  # fmt: skip
    assert sum(examples[place].weight for place in (1, 3, 4)) == pytest.approx(1 - means[0])
    for segment in (examples[1].trajectory, examples[3].trajectory):
        assert segment.turns == FAILURE.turns[: len(segment)], "nothing after the segment, and no harmful action"


def test_soft_examples_need_a_win_at_the_end_of_a_segment() -> None:
    exploration = explored({0: "won lost lost lost lost lost", 4: "lost", 8: "won won"})
    means = exploration.estimates()[0].means
    examples = soft_examples(exploration)
    assert means[0] < means[4] < means[8]
    assert [(e.trajectory.task, e.trajectory.prefix, e.learn_from) for e in examples] == [
        ("easy", 0, 0), ("hard", 0, 0), ("hard", 8, 4), ("hard", 8, 8),
    ]  # fmt: skip
    alone = estimate(Line((1,), (1,), ends_lost=False), fit(exploration.lines())).means[0]
    assert examples[0].weight == 1 - alone, "the end of a subtask without a failure says nothing"


def test_soft_selection_keeps_the_examples_of_earlier_iterations() -> None:
    lab = FakeLab(rises, settings=Settings(iterations=2))
    lab.end = lambda index, sample: rises(index, sample) if lab.starts[-1][-1] == 100 else "lost"
    eef_soft(lab, m=5)  # type: ignore[arg-type]
    assert lab.trained["sft-1"] == lab.trained["sft-0"] and len(lab.trained["sft-1"]) == 5


def test_soft_selection_trains_on_weights_and_its_ablation_does_not() -> None:
    runs = []
    for weighted in (True, False):
        lab = FakeLab(rises, settings=Settings(iterations=2))
        eef_soft(lab, m=5, weighted=weighted)  # type: ignore[arg-type]
        runs.append(lab.trained["sft-1"])
    soft, plain = runs
    places = [(example.learn_from, example.trajectory.prefix) for example in soft[1:]]
    assert places == [(6, 8), (8, 8), (8, 10), (10, 10)], "two examples with loss from s_8 on"
    assert [replace(example, weight=1.0) for example in soft] == plain
    assert soft[0] == Example(WIN, 0) and {e.weight for e in plain} == {1.0} and len({e.weight for e in soft}) > 2


def pairs_of(ends: dict[int, str], verified: bool = True) -> list[tuple[Trajectory, Trajectory]]:
    exploration = Exploration(("hard",), (FAILURE,), [(True,) * STATES])
    for index, words in ends.items():
        for sample, how in enumerate(words.split()):
            exploration.add([exploration.state(0, index)], [ended(index, how, sample)])
    return flip_pairs(exploration, verified)


SURE = {0: "lost lost lost", 3: "won won won won lost", 6: "lost lost lost", 9: "won won won"}


def test_pairs_are_of_one_state_and_differ_from_there() -> None:
    pairs = pairs_of(SURE)
    last = {(win.prefix, loss.prefix, loss.source) for win, loss in pairs}
    assert last == {(3, 0, "policy"), (3, 6, "policy"), (9, 6, "policy"), (9, 0, "strong")}
    for win, loss in pairs:
        assert win.won and loss.failed and (win.task, win.prompt) == (loss.task, loss.prompt)
        shared = next(i for i, (a, b) in enumerate(zip(win.turns, loss.turns, strict=False)) if a != b)
        assert [t.learn for t in win.turns] == [i >= shared for i in range(len(win))]
        assert [t.learn for t in loss.turns] == [i >= shared for i in range(len(loss))]
        assert win.turns[:shared] == loss.turns[:shared] and win.turns[shared].action != loss.turns[shared].action
    beneficial = next(pair for pair in pairs if (pair[0].prefix, pair[1].prefix) == (9, 6))
    assert beneficial[0].actions == [*FAILURE.actions[:9], "9 won 0"], "the expert's actions, then the win"
    assert beneficial[1].actions == [*FAILURE.actions[:6], "6 lost 0"]
    harmful = next(pair for pair in pairs if (pair[0].prefix, pair[1].prefix) == (3, 6))
    assert harmful[0].actions == [*FAILURE.actions[:3], "3 won 0"]
    assert harmful[1].actions == [*FAILURE.actions[:6], "6 lost 0"], "the expert's harmful actions, then the loss"
    assert sum(win.prefix == 9 for win, loss in pairs if loss.prefix == 6) == 3, "each win and each loss once"


def test_flips_in_doubt_give_pairs_only_unverified() -> None:
    doubtful = {0: "lost", 6: "won"}
    assert pairs_of(doubtful) == [] and len(pairs_of(doubtful, verified=False)) == 2
    assert set(map(repr, pairs_of(SURE))) <= set(map(repr, pairs_of(SURE, verified=False)))
    once = SURE | {6: "lost"}
    assert {(win.prefix, loss.prefix) for win, loss in pairs_of(once)} == {(3, 0), (9, 0)}, "s_6 is in doubt"
    assert {(3, 6), (9, 6)} <= {(win.prefix, loss.prefix) for win, loss in pairs_of(once, verified=False)}
    lucky = {0: "lost", 3: "won lost lost lost", 6: "lost lost", 9: "won lost lost lost"}
    assert pairs_of(lucky, verified=False) == [], "a win from a state that is labelled lost is no flip"


def test_a_pair_without_a_difference_is_none() -> None:
    one = played("abc", True, "policy")
    assert aligned(one, played("ab", False, "policy")) is None and aligned(one, one) is None
    other = played("abd", False, "policy")
    barred = replace(other, turns=(*other.turns[:2], replace(other.turns[2], learn=False)))
    assert aligned(one, barred) is None
    assert aligned(one, other) is not None
    sampled = replace(other, turns=(replace(other.turns[0], ids=(1, 2)), *other.turns[1:]))
    pair = aligned(one, sampled)
    assert pair and pair[0].turns[:2] == pair[1].turns[:2], "one context, token by token"
    elsewhere = replace(other, turns=(replace(other.turns[0], observation="another page"), *other.turns[1:]))
    assert aligned(one, elsewhere) == (one, elsewhere), "what follows another page is no shared context"


def test_pairs_train_from_the_adapter_of_eef() -> None:
    lab = FakeLab(rises)
    assert eef_pairs(lab, m=3, k=4) == Path("dpo-0")  # type: ignore[arg-type]
    assert lab.started["dpo-0"] == Path("sft-0")
    assert all(win.won and loss.failed for win, loss in lab.trained["dpo-0"])
    lost = FakeLab(lambda index, sample: "lost")
    assert eef_pairs(lost, m=8) == Path("sft-0"), "without a flip"  # type: ignore[arg-type]


def test_each_method_runs_and_its_weights_and_pairs_reach_the_training(tokenizer, tmp_path: Path) -> None:
    """In the corridor, where a random policy wins about half of its simulations from any state but the last."""
    torch.manual_seed(0)
    base = str(save(make_model(tokenizer, 32, 1, 2), tokenizer, tmp_path / "base", {"constrained_decoding": True}))
    env, root = Corridor(), tmp_path / "runs"
    doors = {"first": "121221", "second": "111121"}
    experts = [play_expert(env, task, doors[name], name) for task in env.tasks("train") for name in doors]
    experts.append(play_expert(env, "0", "111111", "third"))
    file = str(trajectory.save(experts, tmp_path / "experts.jsonl"))
    settings = Settings(model=base, experts=file, epochs=1, dpo_epochs=1, dpo_likelihood=0.5, lora_r=4, lora_alpha=8)
    rows, run = {}, {}
    for name, options in (
        ("eef", {}),
        ("eef_adaptive", {}),
        ("eef_soft", {}),
        ("eef_pairs", {"verified": False}),
    ):
        rows[name] = experiment(
            name, env, settings, 0, options={"m": 3, **options}, test_tasks=2, root=root, wandb="disabled"
        )
        run[name] = root / rows[name]["run_id"]
    budget = rows["eef"]["episodes"]
    assert rows["eef_soft"]["episodes"] == budget and rows["eef_pairs"]["method"] == "eef_pairs_verified=False"
    assert all(3 < rows[name]["episodes"] <= budget for name in ("eef_adaptive", "eef_pairs"))
    assert len({(folder / "bc").resolve() for folder in run.values()}) == 1, "shared"
    assert len({(run[name] / "s0-0-0").resolve() for name in ("eef", "eef_soft", "eef_pairs")}) == 1, "shared"
    assert (run["eef_soft"] / "states-0").resolve() == (run["eef"] / "states-0").resolve()
    masks = json.loads((run["eef_soft"] / "sft-0" / "learn_from.json").read_text())
    examples = trajectory.load(run["eef_soft"] / "sft-0" / "examples.jsonl")
    assert len(masks["weights"]) == len(examples) and len(set(masks["weights"])) > 3
    assert "weights" not in json.loads((run["eef_adaptive"] / "sft-2" / "learn_from.json").read_text())
    stage = json.loads((run["eef_pairs"] / "dpo-0" / "stage.json").read_text())["key"]["inputs"]
    assert stage["preference"]["dpo_likelihood"] == 0.5 and stage["start"].startswith("sft-0")
    sides = trajectory.load(run["eef_pairs"] / "dpo-0" / "pairs.jsonl")
    assert [side.won for side in sides] == [True, False] * (len(sides) // 2) and len(sides) > 2
    with pytest.raises(RunError, match="its examples have weights, which no format can hold"):
        selected_by_run(run["eef_soft"])
    assert selected_by_run(run["eef_soft"], "bc").examples
