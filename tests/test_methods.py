from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch

from eef import trajectory
from eef.agents.policy import load_chat
from eef.agents.rollout import Start
from eef.experiment import experiment
from eef.lab import Lab
from eef.methods import FAILED, METHODS, REQUIRED, eef, eto, merge, method_options, wins
from eef.models.pretrain import make_model, save
from eef.selection import Example, count, select
from eef.settings import Settings
from eef.tracking.runs import Run, load_runs
from eef.trajectory import Trajectory, Turn


def played(task: str, actions: str, won: bool = True, prefix: int = 0) -> Trajectory:
    turns = tuple(Turn(action, f"after {action}") for action in actions)
    return Trajectory(task, "s0", turns, float(won), won, "policy", prefix=prefix)


@pytest.fixture(scope="session")
def base(tokenizer, tmp_path_factory) -> str:
    """A small base model with random weights, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 2, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(shop, base: str, root: Path):
    def start(method: str, **changes):
        options = changes.pop("options", {})
        where = changes.pop("root", root)
        settings = Settings(model=base, epochs=2, lora_r=4, lora_alpha=8, max_new_tokens=12, **changes)
        return experiment(method, shop, settings, 0, options=options, root=where, wandb="disabled", test_tasks=6)

    return start


def stages(root: Path, run_id: str) -> dict[str, str]:
    return {path.name: path.resolve().name for path in (root / run_id).iterdir() if path.is_symlink()}


def test_every_method_runs_and_counts_its_budget(run, shop, root: Path) -> None:
    rows = {
        "sft_pos": run("sft_pos"),
        "ceiling": run("ceiling"),
        "rft1": run("rft", options={"n": 1}),
        "rft2": run("rft", options={"n": 2}),
        "eef": run("eef", options={"m": 2}),
    }
    tasks = len(shop.tasks("train"))
    assert {name: row["episodes"] for name, row in rows.items() if name != "eef"} == {
        "sft_pos": 0,
        "ceiling": 0,
        "rft1": tasks,
        "rft2": 2 * tasks,
    }
    experts = trajectory.load(root / rows["eef"]["run_id"] / "experts" / "trajectories.jsonl")
    failures = sum(t.failed for t in experts)
    assert tasks < rows["eef"]["episodes"] <= tasks + 2 * failures
    assert all(0 <= row["win_rate"] <= 1 and row["n_test"] == 6 for row in rows.values())
    assert all(row["errors"] == 0 for row in rows.values())
    shared = [stages(root, rows[name]["run_id"]) for name in ("rft1", "rft2", "eef")]
    assert len({stage["bc"] for stage in shared}) == 1, "behaviour cloning runs once"
    assert len({stage["s0-0-0"] for stage in shared}) == 1, "so does the first simulation from s0"
    assert len(load_runs(root)) == 5


def test_k_simulations_share_stages_and_count(run, shop, root: Path) -> None:
    one, two, explicit = (run("eef", options={"m": 1, **more}) for more in ({}, {"k": 2}, {"k": 1}))
    assert explicit == {**one, "seconds": ANY} and "k" not in one
    assert two["k"] == 2 and "eef-m1-k2__" in two["run_id"] and two["episodes"] == 2 * one["episodes"]
    rft = run("rft", options={"n": 2})
    first, second, third = (stages(root, row["run_id"]) for row in (one, two, rft))
    assert all(first[name] == second[name] for name in ("s0-0-0", "states-0"))
    assert second["s0-0-1"] == third["s0-0-1"] and "states-0-1" in second


def test_random_navigation_is_an_arm_of_its_own(run, root: Path) -> None:
    plain, same, random = (
        run("rft", options={"n": 1, **more}) for more in ({}, {"random_navigation": 0.0}, {"random_navigation": 0.5})
    )
    assert same == {**plain, "seconds": ANY}
    assert random["method"] == "rft_random_navigation=0.5" and "rft_random_navigation-0.5-n1__" in random["run_id"]
    first, second = (stages(root, row["run_id"]) for row in (plain, random))
    assert first["bc"] == second["bc"] and first["s0-0-0"] != second["s0-0-0"]


def test_another_temperature_changes_the_stages_of_its_own_run_only(run, root: Path) -> None:
    rows = [run("rft", options={"n": 1}, **more) for more in ({}, {"temperature": 1.5})]
    first, second = (stages(root, row["run_id"]) for row in rows)
    assert first["bc"] == second["bc"] and first["s0-0-0"] != second["s0-0-0"]
    assert stages(root, run("rft", options={"n": 1})["run_id"]) == first


def test_a_second_start_reuses_every_stage_and_gives_the_same_row(run, root: Path, tmp_path: Path, capsys) -> None:
    first = run("eef", options={"m": 1})
    capsys.readouterr()
    again = run("eef", options={"m": 1})
    assert "starts" not in capsys.readouterr().out
    assert first == again
    elsewhere = run("eef", options={"m": 1}, root=tmp_path)
    strip = {"seconds"}
    assert {k: v for k, v in first.items() if k not in strip} == {k: v for k, v in elsewhere.items() if k not in strip}
    one = (root / first["run_id"] / "result.json").read_bytes()
    assert one == (tmp_path / first["run_id"] / "result.json").read_bytes()


def test_examples_of_eef_are_wins_with_something_to_learn(run, root: Path) -> None:
    row = run("eef", options={"m": 3})
    folder = root / row["run_id"] / "sft-0"
    examples = trajectory.load(folder / "examples.jsonl")
    begins = json.loads((folder / "learn_from.json").read_text())["learn_from"]
    assert len(examples) == len(begins) and all(t.won for t in examples)
    assert all(0 <= begin < len(t) for t, begin in zip(examples, begins, strict=True))


EXPERT_WIN = replace(played("easy", "w"), source="strong")
FAILURE = replace(played("hard", "abcdefgh", won=False), source="strong")


def ended(index: int, how: str, task: str = "hard", sample: int = 0) -> Trajectory:
    """The simulation from state ``index`` of ``FAILURE``: won, lost, or broken by an infrastructure error."""
    turns = (*FAILURE.turns[:index], Turn(f"agent {index} {how}{sample or ''}", "the end"))
    outcome = "replay_divergence" if how == "broken" else "done"
    return Trajectory(task, "s0", turns, float(how == "won"), how == "won", "policy", outcome, prefix=index)


@dataclass
class FakeLab:
    """A lab whose simulations end as ``ends`` says: per iteration, by the index of the state (0: s0 of "hard").

    Several words are the ends of several samples.
    """

    ends: Sequence[Mapping[int, str]]
    settings: Settings = field(default_factory=Settings)
    tasks: tuple[str, ...] = ("hard",)
    blocked: str = ""
    experts_: tuple[Trajectory, ...] = (EXPERT_WIN, FAILURE)
    seeds: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    trained: dict[str, list] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        self.settings = Settings(iterations=len(self.ends))
        self.env = self

    def can_start_here(self, observation: str) -> bool:
        return observation != self.blocked

    def experts(self) -> list[Trajectory]:
        return list(self.experts_)

    def _end(self, index: int, sample: int, task: str = "hard") -> Trajectory:
        words = self.ends[self.iteration].get(index, "lost").split()
        return ended(index, words[sample % len(words)], task, sample)

    def from_s0(self, adapter: Path, iteration: int, sample: int, random_navigation: float = 0.0) -> list[Trajectory]:
        self.iteration = iteration
        return [self._end(0, sample, task) for task in self.tasks]

    def simulate(self, name: str, adapter: Path, starts: Sequence[Start], seed: int) -> list[Trajectory]:
        self.seeds.append(seed)
        self.indices = [start.index for start in starts]
        return [self._end(start.index, start.sample) for start in starts]

    def sampling_seed(self, iteration: int) -> int:
        return 100 + iteration

    def sft_start(self, adapter: Path) -> None:
        return None

    def sft(self, name: str, examples: Sequence[Example], start: Path | None = None) -> Path:
        self.trained[name] = [example for example in examples if example.trajectory.source == "policy"]
        self.examples[name] = list(examples)
        return Path(name)

    def dpo(self, name: str, pairs: Sequence[tuple[Trajectory, Trajectory]], start: Path) -> Path:
        self.trained[name] = list(pairs)
        return Path(name)


@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize("one_per_state", [True, False])
def test_examples_of_eef_never_learn_harmful_actions(recovery: bool, one_per_state: bool) -> None:
    """For all outcomes: an action between a state that won and the next one, which lost, carries no loss."""
    masked = 0
    for ends in product(["won", "lost", "broken"], repeat=4):
        lab = FakeLab([dict(zip((0, 2, 4, 6), ends, strict=True))])
        eef(lab, m=3, recovery=recovery, one_per_state=one_per_state)
        known = [(state, how == "won") for state, how in zip((0, 2, 4, 6), ends, strict=True) if how != "broken"]
        known.append((len(FAILURE), False))
        harmful = {
            turn for (begin, won), (end, later) in pairwise(known) for turn in range(begin, end) if won and not later
        }
        for example in lab.trained["sft-0"]:
            prefix = range(example.trajectory.prefix)
            assert example.trajectory.won and not any(example.mask[turn] for turn in harmful & set(prefix))
            assert all(example.mask[example.trajectory.prefix :]), "the agent's own actions are learnt"
            masked += len(harmful & set(prefix))
    assert (masked > 0) == (recovery or not one_per_state)  # no harmful action precedes the first win


def solved(lab: FakeLab, stage: str) -> list[tuple[int, int]]:
    """The state that each example starts from, and its first turn with loss."""
    return [(example.trajectory.prefix, example.learn_from) for example in lab.trained[stage]]


def test_eef_remembers_the_wins_of_earlier_iterations() -> None:
    lab = FakeLab([{2: "won", 6: "won"}, {0: "won", 6: "broken"}, {}])
    eef(lab, m=3)
    assert solved(lab, "sft-0") == [(2, 0), (6, 4)]
    assert solved(lab, "sft-1") == solved(lab, "sft-2") == [(0, 0), (6, 4)]
    assert lab.seeds == [100, 101, 102], "each iteration has its own seed"


def test_eef_does_not_count_a_broken_simulation_as_lost() -> None:
    """If s4 were lost, the actions from s2 to s4 would be harmful, and the win from s6 the recovery."""
    for how, examples in (("broken", [(2, 0)]), ("lost", [(2, 0), (6, 4)])):
        lab = FakeLab([{2: "won", 4: how, 6: "won"}])
        eef(lab, m=3)
        assert solved(lab, "sft-0") == examples
    lab = FakeLab([{0: "broken", 2: "won"}, {4: "won"}])  # s0 is not important before its outcome is known
    eef(lab, m=3)
    assert solved(lab, "sft-0") == [] and solved(lab, "sft-1") == [(2, 0)]


def test_eef_starts_only_where_the_environment_allows_it() -> None:
    lab = FakeLab([{2: "won"}], blocked=FAILURE.state(4))
    eef(lab, m=3)
    assert lab.indices == [2, 6]


@pytest.mark.parametrize("options", [{}, {"recovery": False}, {"one_per_state": False}])
@pytest.mark.parametrize("experts", [(FAILURE,), (FAILURE, replace(FAILURE, source="weak"))], ids=["one", "two"])
def test_random_segments_change_which_expert_turns_carry_loss_and_not_how_many(options: dict, experts: tuple) -> None:
    """For all outcomes, and with a second expert whose solutions are dropped because they are of the same states."""
    moved = 0
    for ends in product(["won", "lost", "broken"], repeat=4):
        story = [dict(zip((0, 2, 4, 6), ends, strict=True))]
        runs: list[list[Example]] = []
        for seed, random in ((0, False), (0, True), (0, True), (1, True)):
            lab = FakeLab(story, experts_=(EXPERT_WIN, *experts), seed=seed)
            eef(lab, m=3, random_segments=random, **options)
            runs.append(lab.examples["sft-0"])
        usual, control, again, other_seed = runs
        assert control == again
        totals = [count(examples) for examples in (usual, control, other_seed)]
        assert len({total["expert_loss_turns"] for total in totals}) == len({t["loss_turns"] for t in totals}) == 1
        simulations = [example for example in control if example.trajectory.source != "strong"]
        assert [e.trajectory for e in simulations] == [e.trajectory for e in usual if e.trajectory is not EXPERT_WIN]
        assert all(example.learn_from == example.trajectory.prefix for example in simulations)
        for segment in (example.trajectory for example in control if example.trajectory.failed):
            assert segment.turns == FAILURE.turns[: len(segment)] and segment.prefix == len(segment)
        moved += control != other_seed
    assert moved


def test_a_state_has_won_if_at_least_half_of_its_simulations_won() -> None:
    lab = FakeLab([{0: "won lost lost", 2: "lost won won", 4: "broken lost won", 6: "won broken broken"}])
    eef(lab, m=3, k=3)
    (solution,) = lab.trained["sft-0"]  # s0 lost, s2 won, s4 is a tie and so won, s6 won
    assert (solution.trajectory, solution.learn_from) == (ended(2, "won", sample=1), 0), "the first win"
    lab = FakeLab([{2: "won won", 4: "broken broken", 6: "won"}, {4: "lost", 6: "lost"}])
    eef(lab, m=3, k=2)
    assert solved(lab, "sft-0") == [(2, 0)], "a state without a valid simulation has no outcome"
    assert solved(lab, "sft-1") == [(2, 0), (6, 4)], "a state that has won stays won"
    assert lab.seeds == [100, 100, 101, 101]


def test_all_experts_simulates_their_wins_too() -> None:
    """A win ends as won: s6 was lost, but the actions after it are not harmful, and the win solves it."""
    win = replace(FAILURE, won=True, reward=1.0)
    for ends, examples in (
        ({2: "won", 4: "lost", 6: "won"}, [(2, 0), (6, 4)]),
        ({0: "won", 2: "won", 4: "won", 6: "lost"}, [(0, 0)]),
        ({}, []),
    ):
        lab = FakeLab([ends], experts_=(win,))
        eef(lab, m=3, all_experts=True)
        assert lab.indices == [2, 4, 6] and solved(lab, "sft-0") == examples
        assert lab.examples["sft-0"][0] == Example(win, 0)
    lab = FakeLab([{}], experts_=(win, FAILURE, replace(win, info={"no_replay": "its first page is missing"})))
    eef(lab, m=1, all_experts=True)
    assert lab.indices == [4, 4], "what cannot be replayed is not simulated"
    with pytest.raises(ValueError, match="there are none"):
        eef(FakeLab([{}], experts_=(win,)))
    with pytest.raises(ValueError, match="none of the 1 can be replayed"):
        eef(FakeLab([{}], experts_=(replace(FAILURE, info={"no_replay": "its first page is missing"}),)))


def test_own_pairs_are_of_the_current_policy() -> None:
    expert = replace(played("hard", "w"), source="strong")
    lab = FakeLab([{0: "lost won"}, {0: "won lost"}], experts_=(expert,))
    eto(lab, n=2, own_pairs=True)
    assert lab.trained["dpo-0"] == [(ended(0, "won", sample=1), ended(0, "lost"))]
    assert lab.trained["dpo-1"] == [(ended(0, "won"), ended(0, "lost", sample=1))]
    with pytest.raises(ValueError, match="ETO needs a subtask with a win and a failure of the agent: raise n or add"):
        eto(FakeLab([{0: "lost"}], experts_=(expert,)), n=2, own_pairs=True)


def test_eto_pairs_with_the_failures_of_all_iterations() -> None:
    expert = replace(played("hard", "w"), source="strong")
    lab = FakeLab([{0: "lost"}, {0: "won"}, {0: "lost"}], experts_=(expert,))
    eto(lab)
    lost = ended(0, "lost")
    assert lab.trained["dpo-0"] == lab.trained["dpo-1"] == [(expert, lost)]
    assert lab.trained["dpo-2"] == [(expert, lost), (expert, lost)]


def test_iterations_start_from_base_or_from_the_last_adapter(run, root: Path) -> None:
    keys = []
    for restart in ("base", "last"):
        row = run("rft", options={"n": 1}, iterations=2, restart=restart)
        stage = json.loads((root / row["run_id"] / "sft-1" / "stage.json").read_text())
        keys.append(stage["key"]["inputs"]["start"])
        assert row["episodes"] == 40
    assert keys[0] is None and keys[1].startswith("sft-0")


def test_sft_all_and_nat_learn_from_failures_too(run, root: Path) -> None:
    examples = {}
    for method, stage in (("sft_all", "sft-all"), ("nat", "nat")):
        row = run(method)
        assert row["episodes"] == 0
        folder = root / row["run_id"]
        experts = trajectory.load(folder / "experts" / "trajectories.jsonl")
        examples[method] = trajectory.load(folder / stage / "examples.jsonl")
        assert len(examples[method]) == len(experts)
        assert set(json.loads((folder / stage / "learn_from.json").read_text())["learn_from"]) == {0}
    assert [t.won for t in examples["nat"]] == sorted((t.won for t in examples["sft_all"]), reverse=True)
    assert all(t.prompt.startswith(FAILED) != t.won for t in examples["nat"])
    assert not any(t.prompt.startswith(FAILED) for t in examples["sft_all"])


def test_eto_learns_from_pairs_of_a_win_and_its_own_loss(run, shop, root: Path) -> None:
    row = run("eto", options={"n": 1}, iterations=2, dpo_epochs=1.0)
    assert row["episodes"] == 2 * len(shop.tasks("train"))
    for iteration in (0, 1):
        folder = root / row["run_id"] / f"dpo-{iteration}"
        sides = trajectory.load(folder / "pairs.jsonl")
        assert all(won.task == lost.task for won, lost in zip(sides[::2], sides[1::2], strict=True))
        assert [t.won for t in sides] == [True, False] * (len(sides) // 2)
        assert {t.source for t in sides[1::2]} == {"policy"}
        report = json.loads((folder / "dpo.json").read_text())
        chat = load_chat(json.loads((root / row["run_id"] / "config.json").read_text())["config"]["model"])
        learnt = [chat.render(t, [turn.learn for turn in t.turns])[1] for t in sides]
        assert report["pairs"] == len(sides) // 2 and report["learnt_tokens"] == sum(map(sum, learnt)) > len(sides)
        start = json.loads((folder / "stage.json").read_text())["key"]["inputs"]["start"]
        assert start.startswith("dpo-0" if iteration else "bc")


def test_a_trajectory_file_replaces_the_scripted_expert(run, shop, root: Path, tmp_path: Path) -> None:
    experts = trajectory.load(root / run("sft_pos")["run_id"] / "experts" / "trajectories.jsonl")
    path = trajectory.save(experts, tmp_path / "mine.jsonl")
    row = run("eef", options={"m": 1}, experts=str(path))
    assert row["experts"] == path.stem and row["episodes"] > 20


def test_a_file_that_differs_from_its_replay_stops_the_run_before_training(
    run, shop, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = trajectory.load(root / run("sft_pos")["run_id"] / "experts" / "trajectories.jsonl")
    lost = next(index for index, item in enumerate(experts) if item.failed)
    turns = (replace(experts[lost].turns[0], observation="a page that does not exist"), *experts[lost].turns[1:])
    wrong = [*experts[:lost], replace(experts[lost], turns=turns), *experts[lost + 1 :]]
    path = str(trajectory.save(wrong, tmp_path / "mine.jsonl"))
    message = rf"1 of {len(experts)} expert trajectories diverge .*mine.jsonl, line {lost + 1}, task .*a page that does"
    with pytest.raises(trajectory.TrajectoryError, match=message):
        run("sft_pos", experts=path, root=tmp_path / "runs")
    assert [p.name.partition("-")[0] for p in (tmp_path / "runs" / "stages").glob("[!.]*")] == ["experts"]
    steps: list[str] = []
    step = type(shop).step
    monkeypatch.setattr(type(shop), "step", lambda self, action: steps.append(action) or step(self, action))
    with pytest.raises(trajectory.TrajectoryError, match="1 of"):  # from the cached stage
        run("sft_pos", experts=path, root=tmp_path / "runs")
    assert not steps
    row = run("sft_pos", experts=path, root=tmp_path / "runs", divergent_experts="drop")
    saved = json.loads((tmp_path / "runs" / row["run_id"] / "result.json").read_text())
    for result in (row, saved):
        assert (result["expert_divergences"], result["expert_errors"], result["experts_not_replayed"]) == (1, 0, 0)
    assert run("sft_pos")["expert_divergences"] == 0


def test_constrained_decoding_without_valid_actions_is_refused_before_training(
    shop, tmp_path: Path, monkeypatch
) -> None:
    def unlisted(self: Any) -> dict:
        raise RuntimeError("valid actions are not computed")

    monkeypatch.setattr(type(shop), "available_actions", unlisted)
    with pytest.raises(ValueError, match="valid actions are not computed"):
        experiment("sft_pos", shop, Settings(), 0, root=tmp_path, wandb="disabled")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("efe", {}, "unknown method 'efe': choose one of sft_pos, sft_all, nat, rft, eto, eef, ceiling"),
        ("eef", {"m": 0}, "m=0 must be a positive integer"),
        ("rft", {"n": 0}, "n=0 must be a positive integer"),
        ("eef", {"k": 1.0}, "k=1.0 must be a positive integer"),
        ("eef", {"mask_harmful": "false"}, "mask_harmful='false' must be True or False"),
        ("eef", {"all_experts": None}, "all_experts=None must be True or False"),
        ("eto", {"own_pairs": 1, "n": 2}, "own_pairs=1 must be True or False"),
        ("rft", {"random_navigation": 1.5}, "random_navigation=1.5 must be a number from 0 to 1"),
        ("rft", {"random_navigation": float("nan")}, "random_navigation=nan must be a number from 0 to 1"),
        ("eef", {"random_segments": True, "mask_harmful": False}, "random_segments=True needs mask_harmful=True and"),
        ("eef", {"random_segments": True, "restart_only": True}, "random_segments=True needs mask_harmful=True and"),
        ("eto", {"own_pairs": True}, "own_pairs=True needs n of at least 2"),
    ],
)
def test_a_wrong_method_or_number_is_named(run, method: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(method, options=options)


@pytest.mark.parametrize(("name", "count"), [("train_tasks", -5), ("test_tasks", 0)])
def test_a_number_of_subtasks_is_positive(shop, base: str, tmp_path: Path, name: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={count} must be a positive integer"):
        experiment("sft_pos", shop, Settings(model=base), 0, root=tmp_path, wandb="disabled", **{name: count})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [1.0, "1", -1, True, None, 2**32])
def test_a_seed_is_an_integer(shop, base: str, tmp_path: Path, seed: Any) -> None:
    message = re.escape(f"seed={seed!r} must be an int from 0 to 4294967295")
    with pytest.raises(ValueError, match=message):
        experiment("sft_pos", shop, Settings(model=base), seed, root=tmp_path, wandb="disabled")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        Lab(Run.open(tmp_path, "webshop", "x", 0, {}, {}), shop, Settings(model=base), seed, [], [], load_chat(base))


def test_an_environment_without_a_state_key_is_refused(shop, base: str, tmp_path: Path) -> None:
    class Old:
        name, max_steps = "old", 3

    with pytest.raises(TypeError, match=r"the environment 'old' has no state_key\(\): return a dictionary"):
        experiment("sft_pos", Old(), Settings(model=base), 0, root=tmp_path, wandb="disabled")


def test_an_option_that_the_method_lacks_is_named(run) -> None:
    with pytest.raises(TypeError, match=r"the method 'eef' has no option 'n'.*; its options are m, mask_harmful, rec"):
        run("eef", options={"n": 2})
    with pytest.raises(TypeError, match=r"the method 'eef' has no option 'recover' \(did you mean 'recovery'\?\)"):
        run("eef", options={"recover": False})


def test_options_come_from_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    assert method_options("eef") == {
        "m": 5,
        "mask_harmful": True,
        "recovery": True,
        "one_per_state": True,
        "restart_only": False,
        "random_segments": False,
        "all_experts": False,
        "k": 1,
    }
    assert method_options("rft") == {"n": 1, "random_navigation": 0.0} and method_options("sft_pos") == {}
    with pytest.raises(ValueError, match=r"unknown method 'efe': choose one of .*\(did you mean 'eef'\?\)"):
        method_options("efe")

    def needs(lab, k):
        raise AssertionError

    monkeypatch.setitem(METHODS, "needs", needs)
    assert method_options("needs") == {"k": REQUIRED}


def test_a_required_option_is_named_and_a_default_does_not_enter_the_name(run, monkeypatch) -> None:
    monkeypatch.setitem(METHODS, "needs", lambda lab, k: None)
    with pytest.raises(TypeError, match="the method 'needs' needs a value of its option 'k'"):
        run("needs")
    first = run("eef", options={"m": 1})
    assert run("eef", options={"m": 1, "mask_harmful": True, "recovery": True}) == {**first, "seconds": ANY}


def test_experts_without_a_failure_or_without_a_win_are_named(run, shop, root: Path, tmp_path: Path) -> None:
    experts = trajectory.load(root / run("sft_pos")["run_id"] / "experts" / "trajectories.jsonl")
    won = trajectory.save((t for t in experts if t.won), tmp_path / "won.jsonl")
    lost = trajectory.save((t for t in experts if t.failed), tmp_path / "lost.jsonl")
    with pytest.raises(ValueError, match="EEF explores failed expert trajectories, but there are none"):
        run("eef", options={"m": 1}, experts=str(won))
    with pytest.raises(ValueError, match=r"none of the \d+ expert trajectories won"):
        run("sft_pos", experts=str(lost))
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(lost.read_bytes()[:-30])
    with pytest.raises(trajectory.TrajectoryError, match=r"torn.jsonl, line \d+: truncated or invalid JSON"):
        run("sft_pos", experts=str(torn))


def test_wins_are_distinct_and_merge_keeps_one_solution_per_state() -> None:
    examples = wins([played("1", "ab"), played("1", "ab"), played("1", "c"), played("2", "ab", won=False)])
    assert [e.trajectory.actions for e in examples] == [["a", "b"], ["c"]]
    positives = wins([played("1", "ab")])
    merged = merge(
        positives, [Example(played("1", "ab"), 0), Example(played("2", "cd"), 0), Example(played("2", "ce"), 0)]
    )
    assert [e.trajectory.actions for e in merged] == [["a", "b"], ["c", "d"]]


def test_the_unmasked_ablation_keeps_both_examples_of_figure_1() -> None:
    expert = played("1", "abcdefgh", won=False)
    outcomes = {
        0: None,
        2: replace(played("1", "abX", prefix=2), turns=(*expert.turns[:2], Turn("X", "x"))),
        4: None,
        6: replace(played("1", "abcdefY", prefix=6), turns=(*expert.turns[:6], Turn("Y", "y"))),
    }
    for masked in (True, False):
        merged = merge([], select(expert, outcomes, mask_harmful=masked), one_per_state=masked)
        assert len(merged) == 2
        harmful = [any(e.mask[i] for e in merged if e.trajectory.prefix > i) for i in (2, 3)]
        assert harmful == [not masked] * 2
