"""Methods that go beyond the paper: EEF with planned simulations, with soft selection, and with preference pairs.

All three learn from the experts' wins and from simulations of states of their failures, as :func:`eef.methods.eef`.
They differ from it in how the simulations are spent and in what is made of them. What the simulations say about a state
is an estimate of its win probability (:mod:`eef.planning`) instead of the outcome of one simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.agents.episode import Start
from eef.planning import Estimate, Line, estimate, fit, plan
from eef.selection import Example, cut_points, expert_wins, explorable, merge, outcome, select, wins
from eef.tracking.progress import show
from eef.trajectory import Trajectory

if TYPE_CHECKING:  # the lab imports torch, which the names and options of the methods do not need
    from eef.lab import Lab

VERIFIED = 0.9  # posterior probability of each label of a verified flip: one simulation alone does not reach it

State = tuple[Any, int]  # (task, 0) for s0 of a subtask, (number of the failure, i) for its state s_i
Outcomes = dict[State, Trajectory | None]
Pair = tuple[Trajectory, Trajectory]


def eef_adaptive(lab: Lab, m: int = 5, rounds: int = 3, adaptive: bool = True) -> Path:
    """EEF with at most as many simulations as with ``m``, in ``rounds`` batches, and the policy trained after each.

    The first batch simulates the middle state of each failure, and s0 of the subtasks without a win or failure of an
    expert. Each later batch simulates the states where the planner expects the first right example of a failure
    (:func:`eef.planning.plan`). It leaves out the failures with a win so far. s0 of a failure is a state like the
    others, and the failure itself counts as one lost simulation from it.

    A state has won if its estimated win probability is at least 1/2 and a simulation from it won. If no state of a
    failure has, its most probable state with a win counts as won. s0 counts as lost unless it has won. Then the
    selection is that of EEF (section 4.2). With ``iterations`` n there are n times as many simulations and batches.

    ``adaptive=False`` (ablation) simulates the states of EEF once each, every ``rounds``-th in each batch.
    """
    exploration = Exploration.of(lab)
    positives = expert_wins(lab.experts())
    adapter = lab.sft("bc", positives)
    decided = {t.task for t in (*(each.trajectory for each in positives), *exploration.failures)}
    first: list[State] = [(task, 0) for task in lab.tasks if task not in decided]
    of_eef: list[State] = [*((task, 0) for task in lab.tasks), *exploration.evenly_spaced(m)]
    batches, budget = rounds * lab.settings.iterations, len(of_eef) * lab.settings.iterations
    for batch in range(batches):
        if not adaptive:
            states = of_eef[batch % rounds :: rounds]
        elif batch:
            states = exploration.planned(budget // (batches - batch))
        else:
            states = [*first, *exploration.evenly_spaced(1)][:budget]
        if not states:
            continue
        starts = exploration.starts(states)
        exploration.add(states, lab.simulate(f"batch-{batch}", adapter, starts, lab.sampling_seed(batch)))
        budget -= len(states)
        outcomes: Outcomes = {(number, 0): None for number in range(len(exploration.failures))}
        outcomes |= exploration.outcomes()
        solutions = solutions_of(exploration.failures, outcomes)
        adapter = lab.sft(f"sft-{batch}", merge(positives, solutions), lab.sft_start(adapter))
    return adapter


def eef_pairs(lab: Lab, m: int = 5, k: int = 1, rounds: int = 3, adaptive: bool = True, verified: bool = True) -> Path:
    """EEF with planned simulations (:func:`explore`), and after each SFT a DPO, from its adapter, on pairs at the flips
    (:func:`flip_pairs`).

    The planner repeats states whose label is in doubt, since only that verifies a flip. The settings of DPO are those
    of ETO; ``dpo_likelihood`` keeps the wins likely. ``verified=False`` (ablation) takes the flips whose labels are in
    doubt too, and ``adaptive=False`` simulates evenly spaced states. Without any pair the adapter of the SFT remains.
    """
    positives = expert_wins(lab.experts())
    adapter = lab.sft("bc", positives)
    outcomes: Outcomes = {}
    for iteration in range(lab.settings.iterations):
        exploration = explore(lab, adapter, iteration, m, k, rounds if adaptive else 0)
        for state, win in exploration.outcomes().items():
            outcomes[state] = win or outcomes.get(state)  # a state that has won in any iteration has won, as in EEF
        solutions = solutions_of(exploration.failures, outcomes)
        adapter = lab.sft(f"sft-{iteration}", merge(positives, solutions), lab.sft_start(adapter))
        if pairs := flip_pairs(exploration, verified):
            adapter = lab.dpo(f"dpo-{iteration}", pairs, adapter)
        else:
            show(f"warning: no {'verified ' * verified}flip in iteration {iteration + 1}, so there is no DPO")
    return adapter


def eef_soft(lab: Lab, m: int = 5, k: int = 1, weighted: bool = True) -> Path:
    """EEF with the gain in win probability in place of the labels: the simulations of EEF with ``m`` and ``k``, and SFT
    on the weighted examples of :func:`soft_examples`, of all iterations so far.

    ``weighted=False`` (ablation) sets all weights to 1.
    """
    positives = expert_wins(lab.experts())
    adapter = lab.sft("bc", positives)
    solutions: list[Example] = []
    for iteration in range(lab.settings.iterations):
        solutions += soft_examples(explore(lab, adapter, iteration, m, k))
        examples = solutions if weighted else [replace(example, weight=1.0) for example in solutions]
        adapter = lab.sft(f"sft-{iteration}", merge(positives, examples, False), lab.sft_start(adapter))
    return adapter


# Simulations


@dataclass
class Exploration:
    """Simulations from states of experts' failures. ``can_simulate``: for each failure, which states may be simulated.

    ``simulations`` has those of each state in the order of their ``sample`` numbers, infrastructure errors included.
    """

    tasks: Sequence[str]
    failures: Sequence[Trajectory]
    can_simulate: Sequence[tuple[bool, ...]]
    simulations: dict[State, list[Trajectory]] = field(default_factory=dict)

    @classmethod
    def of(cls, lab: Lab) -> Exploration:
        """No simulation yet. ValueError where no failed expert trajectory can be simulated."""
        failures = explorable(lab.experts())
        can_start = [tuple(not i or lab.env.can_start_here(t.state(i)) for i in range(len(t))) for t in failures]
        return cls(lab.tasks, failures, can_start)

    def evenly_spaced(self, m: int) -> list[State]:
        """The states of all failures that EEF simulates with ``m``, without s0."""
        cuts = [cut_points(len(failure), m) for failure in self.failures]
        return [(number, i) for number, own in enumerate(cuts) for i in own if self.can_simulate[number][i]]

    def planned(self, budget: int) -> list[State]:
        """At most ``budget`` states of the failures without a win, as :func:`eef_adaptive` simulates them next."""
        return [self.state(*each) for each in plan([without_solved(line) for line in self.lines()], budget)]

    def state(self, number: int, index: int) -> State:
        """s0 belongs to its subtask, since two experts may have failed on it."""
        return (number, index) if index else (self.failures[number].task, 0)

    def valid(self, state: State) -> list[Trajectory]:
        """The simulations of a state that won or lost."""
        return [each for each in self.simulations.get(state, ()) if each.won or each.failed]

    def lines(self) -> list[Line]:
        """The counts of each failure. A state where a simulation ended in an error is not simulated again."""
        lines = []
        for number, allowed in enumerate(self.can_simulate):
            states = [self.state(number, index) for index in range(len(allowed))]
            valid = [self.valid(state) for state in states]
            counts = tuple(map(len, valid))
            is_intact = [len(self.simulations.get(s, ())) == count for s, count in zip(states, counts, strict=True)]
            lines.append(
                Line(
                    tuple(sum(each.won for each in simulations) for simulations in valid),
                    counts,
                    tuple(a and b for a, b in zip(allowed, is_intact, strict=True)),
                )
            )
        return lines

    def estimates(self) -> list[Estimate]:
        """What the simulations say about each failure."""
        lines = self.lines()
        model = fit(lines)
        return [estimate(line, model) for line in lines]

    def starts(self, states: Sequence[State]) -> list[Start]:
        """One start for each state. The ``sample`` is new, so the random stream is too."""
        samples: dict[State, int] = {}
        starts = []
        for place, index in states:
            sample = samples.get((place, index), len(self.simulations.get((place, index), ())))
            samples[place, index] = sample + 1
            expert = self.failures[place] if index else None
            starts.append(Start(expert.task if expert else place, expert, index, sample))
        return starts

    def add(self, states: Sequence[State], simulations: Sequence[Trajectory]) -> None:
        for state, simulation in zip(states, simulations, strict=True):
            self.simulations.setdefault(state, []).append(simulation)

    def outcomes(self) -> Outcomes:
        """The outcome of each state with one, for :func:`eef.selection.select`: its first win, or None.

        States of a failure have the key (number, index), also s0; s0 of a subtask without one has the key (task, 0).
        """
        outcomes: Outcomes = {}
        failed = {expert.task for expert in self.failures}
        for task in self.tasks:
            if task not in failed and (valid := self.valid((task, 0))):
                outcomes[task, 0] = outcome(valid)
        for number, estimated in enumerate(self.estimates()):
            first_wins = {
                index: win
                for index in range(len(estimated.means))
                if (win := next((each for each in self.valid(self.state(number, index)) if each.won), None))
            }
            labels = {index: won for index, won in enumerate(estimated.outcomes) if won is not None}
            if first_wins and not any(labels.values()):
                labels[max(first_wins, key=lambda index: (estimated.means[index], -index))] = True
            outcomes |= {(number, index): first_wins[index] if won else None for index, won in labels.items()}
        return outcomes


def without_solved(line: Line) -> Line:
    """The line as :func:`eef_adaptive` plans on it: no simulation if it has a win, and the expert's failure as a loss
    from s0.
    """
    allowed = line.can_simulate or (True,) * len(line.wins)
    return replace(
        line,
        simulations=(line.simulations[0] + 1, *line.simulations[1:]),
        can_simulate=tuple(each and not any(line.wins) for each in allowed),
    )


def explore(lab: Lab, adapter: Path, iteration: int, m: int, k: int, rounds: int = 0) -> Exploration:
    """The simulations of one iteration: as many as EEF makes with ``m`` and ``k``, or fewer.

    With ``rounds`` 0 they are EEF's own, and share its stages. Else they begin as those of EEF with ``m`` - 1 and one
    simulation per state, and the rest is planned in ``rounds`` batches that also repeat states whose label is in doubt
    (:func:`eef.planning.plan`, which may leave a part of the budget). ValueError where no expert trajectory failed.
    """
    exploration = Exploration.of(lab)
    s0, seed = [(task, 0) for task in lab.tasks], lab.sampling_seed(iteration)
    budget = k * (len(s0) + len(exploration.evenly_spaced(m)))
    for sample in range(1 if rounds else k):
        states = (
            exploration.evenly_spaced(max(1, m - 1))[: budget - len(s0)] if rounds else exploration.evenly_spaced(m)
        )
        exploration.add(s0, lab.from_s0(adapter, iteration, sample))
        name = f"states-{iteration}-{sample}" if sample else f"states-{iteration}"
        exploration.add(states, lab.simulate(name, adapter, exploration.starts(states), seed))
        budget -= len(s0) + len(states)
    for batch in range(rounds):
        planned = [
            exploration.state(*each) for each in plan(exploration.lines(), budget // (rounds - batch), certainty=1.0)
        ]
        if not planned:
            continue  # a batch of a small budget may be empty, later ones are not
        starts = exploration.starts(planned)
        exploration.add(planned, lab.simulate(f"planned-{iteration}-{batch}", adapter, starts, seed))
        budget -= len(planned)
    return exploration


# What is learnt


def solutions_of(failures: Sequence[Trajectory], outcomes: Outcomes) -> list[Example]:
    """The examples of :meth:`Exploration.outcomes`: wins of subtasks without a failure, and what EEF selects."""
    solutions = wins(win for (task, _), win in outcomes.items() if win and isinstance(task, str))
    for number, expert in enumerate(failures):
        solutions += select(expert, {index: win for (place, index), win in outcomes.items() if place == number})
    return solutions


def soft_examples(exploration: Exploration) -> list[Example]:
    """Examples weighted by the gain in win probability, p after minus p before, of the turns that carry loss.

    From s_i of win probability p_i a win has the gain 1 - p_i, and the expert's actions from s_i to s_j have p_j - p_i.
    So the gains along the expert's way to a state and a win from there add up to 1 - p_0. There is an example for the
    first win of each state, with loss on the policy's turns, and one for each segment between neighbouring simulated
    states with a positive gain and a win at its end, with loss on the segment. s0 of a subtask that no expert failed on
    is a trajectory of one state.
    """
    lines = exploration.lines()
    model = fit(lines)
    examples = []
    failed = {expert.task for expert in exploration.failures}
    for task in exploration.tasks:
        valid = exploration.valid((task, 0))
        first = next((each for each in valid if each.won), None)
        if first and task not in failed:
            line = Line((sum(each.won for each in valid),), (len(valid),), ends_lost=False)
            examples.append(Example(first, 0, 1 - estimate(line, model).means[0]))
    for number, (expert, line) in enumerate(zip(exploration.failures, lines, strict=True)):
        means = estimate(line, model).means
        before: int | None = None
        for index in [index for index, count in enumerate(line.simulations) if count]:
            valid = exploration.valid(exploration.state(number, index))
            first = next((each for each in valid if each.won), None)
            if first and before is not None and means[index] > means[before]:
                segment = replace(expert, turns=expert.turns[:index], prefix=index, won=False, reward=0.0)
                examples.append(Example(segment, before, means[index] - means[before]))
            if first:
                examples.append(Example(first, index, 1 - means[index]))
            before = index
    return examples


def flip_pairs(exploration: Exploration, verified: bool = True) -> list[Pair]:
    """Pairs of a win and a loss at the flips of each failure, with loss only where the two differ (:func:`aligned`).

    For a beneficial segment from s_i to s_j: the expert's actions with a win from s_j, against a loss from s_i. For a
    harmful one: a win from s_i, against the expert's actions with a loss from s_j; after the last simulated state, the
    failure itself is the loss. Each win and each loss of a flip is used once. ``verified``: only flips whose labels
    have a posterior probability of at least ``VERIFIED`` each.
    """
    pairs: list[Pair] = []
    for number, (expert, estimated) in enumerate(zip(exploration.failures, exploration.estimates(), strict=True)):
        least = VERIFIED if verified else 0.0
        valid = {i: exploration.valid(exploration.state(number, i)) for i in range(len(expert))}
        won = {i: [each for each in valid[i] if each.won] for i in valid}
        lost = {i: [each for each in valid[i] if each.failed] for i in valid} | {len(expert): [expert]}
        p_won = (*estimated.won, 0.0)  # the expert's end is lost
        flips = [(part.start, part.stop, part.kind) for part in estimated.segments()]
        labels = [(index, label) for index, label in enumerate(estimated.outcomes) if label is not None]
        if labels and labels[-1][1]:
            flips.append((labels[-1][0], len(expert), "harmful"))
        for start, stop, kind in flips:
            sure = min(1 - p_won[start], p_won[stop]) if kind == "beneficial" else min(p_won[start], 1 - p_won[stop])
            if kind == "neutral" or sure < least:
                continue
            sides = (won[stop], lost[start]) if kind == "beneficial" else (won[start], lost[stop])
            pairs += [pair for win, loss in zip(*sides, strict=False) if (pair := aligned(win, loss))]
    return pairs


def aligned(win: Trajectory, loss: Trajectory) -> Pair | None:
    """The pair with loss only from the first action on in which the two differ: what comes before is a shared context.

    None where one is the beginning of the other, or where a side has no action with loss.
    """
    shared, shortest = 0, min(len(win), len(loss))
    while shared < shortest and _text(win, shared) == _text(loss, shared):
        shared += 1
    if shared == shortest:
        return None
    context = tuple(replace(turn, learn=False) for turn in win.turns[:shared])
    sides = [replace(each, turns=(*context, *each.turns[shared:])) for each in (win, loss)]
    return (sides[0], sides[1]) if all(any(turn.learn for turn in each.turns) for each in sides) else None


def _text(trajectory: Trajectory, index: int) -> tuple[str, str]:
    turn = trajectory.turns[index]
    return turn.answer, turn.observation
