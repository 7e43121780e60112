"""The methods, one short function each. To compare two methods, compare their functions. :mod:`eef.beyond` has those
that are not in the paper.

Every method takes a :class:`~eef.lab.Lab` (environment, base model, experts, settings, run folder) and returns the
adapter that it trained. The lab counts the simulations. All SFT trains for the same number of epochs, or of optimiser
steps (setting ``updates``).

A new method is a function and its line in :data:`METHODS`. Its parameters after the lab are its options: they come from
``experiment(options=...)``, from the variables with their names in ``notebooks/experiment.ipynb``, and from sweep files
(:mod:`eef.sweeps.options`). An option that a method lacks is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.agents.episode import Start
from eef.beyond import eef_adaptive, eef_pairs, eef_soft
from eef.files import did_you_mean
from eef.selection import (
    Example,
    cut_points,
    distinct,
    expert_wins,
    explorable,
    merge,
    outcome,
    select,
    wins,
    with_random_segment,
)
from eef.tracking.progress import show
from eef.trajectory import Trajectory

if TYPE_CHECKING:  # the lab imports torch, which the names and options of the methods do not need
    from eef.lab import Lab

FAILED = "the following attempt fails"  # begins NAT's prompt of a failed trajectory


def sft_pos(lab: Lab) -> Path:
    """Behaviour cloning: SFT on the experts' wins (section 3; the first phase of all methods that simulate)."""
    return lab.sft("bc", expert_wins(lab.experts()))


def ceiling(lab: Lab) -> Path:
    """SFT on perfect demonstrations of every training subtask: an upper bound for this policy."""
    return lab.sft("ceiling", wins(lab.demonstrations()))


def sft_all(lab: Lab) -> Path:
    """SFT on every expert trajectory, won or failed."""
    return lab.sft("sft-all", distinct(t for t in lab.experts() if t.won or t.failed))


def nat(lab: Lab) -> Path:
    """Negative-aware training: SFT-all, with a prompt for failed trajectories that says that they fail."""
    failures = [replace(t, prompt=f"{FAILED}\n{t.prompt}") for t in lab.experts() if t.failed]
    return lab.sft("nat", [*expert_wins(lab.experts()), *distinct(failures)])


def eto(lab: Lab, n: int = 1, own_pairs: bool = False) -> Path:
    """Exploration-based trajectory optimisation: behaviour cloning, then iterations of ``n`` simulations from each s0
    and DPO, from the last adapter, on pairs of a win and a failure of the agent on the same subtask.

    The win is the expert's where it won, else the agent's. Pairs of earlier iterations are kept. With ``own_pairs``,
    win and failure are both the current policy's, of this iteration. ValueError where no subtask has such a pair.
    """
    adapter = sft_pos(lab)
    simulations: list[Trajectory] = []
    for iteration in range(lab.settings.iterations):
        if own_pairs:
            simulations = []
        for sample in range(n):
            simulations += lab.from_s0(adapter, iteration, sample)
        first_wins: dict[str, Trajectory] = {}
        for trajectory in [*([] if own_pairs else lab.experts()), *simulations]:
            if trajectory.won:
                first_wins.setdefault(trajectory.task, trajectory)
        pairs = [(first_wins[t.task], t) for t in simulations if t.failed and t.task in first_wins]
        if not pairs:
            more = "raise n" if own_pairs else "add experts"
            raise ValueError(f"ETO needs a subtask with a win and a failure of the agent: {more} or add subtasks")
        adapter = lab.dpo(f"dpo-{iteration}", pairs, adapter)
    return adapter


def rft(lab: Lab, n: int = 1, random_navigation: float = 0.0) -> Path:
    """Rejection sampling fine-tuning: iterations of ``n`` simulations from each s0 and SFT on all wins so far.

    ``random_navigation`` explores cheaply: the probability that a turn of these simulations is a random navigation
    action of the environment instead of the policy's (:class:`~eef.agents.random_navigation.RandomNavigation`).
    """
    adapter = sft_pos(lab)
    simulations: list[Trajectory] = []
    for iteration in range(lab.settings.iterations):
        for sample in range(n):
            simulations += lab.from_s0(adapter, iteration, sample, random_navigation)
        examples = merge(expert_wins(lab.experts()), wins(simulations), one_per_state=False)
        adapter = lab.sft(f"sft-{iteration}", examples, lab.sft_start(adapter))
    return adapter


def eef(
    lab: Lab,
    m: int = 5,
    mask_harmful: bool = True,
    recovery: bool = True,
    one_per_state: bool = True,
    restart_only: bool = False,
    random_segments: bool = False,
    all_experts: bool = False,
    k: int = 1,
) -> Path:
    """Exploring expert failures (section 4): behaviour cloning, then iterations of simulations from s0 of every subtask
    and from ``m`` states of every failed expert trajectory, and SFT on one solution per important state.

    Our choices: only failed expert trajectories are simulated, and a state counts as won once a simulation from it has
    won in any iteration.

    Options that :func:`~eef.selection.select` does not have:

    * ``k``: simulations per state and iteration. A state has won in an iteration by :func:`~eef.selection.outcome`.
    * ``all_experts``: wins of the experts are simulated too, and selected from by the same rules. Their end counts as
      won, so their last actions are never harmful. A state of a win that no later simulation solves gives no example,
      because the win itself is its solution and is among the positive data.
    * ``random_segments``: a control for "beneficial". The same number of expert turns carries loss, but in a random
      segment of the same trajectory (:func:`~eef.selection.with_random_segment`).
    """
    explored = explorable(lab.experts(), all_experts)
    # Phase 1: behaviour cloning (section 3)
    adapter = sft_pos(lab)
    # The expert states s_l, s_2l, ..., s_ml of each failure (section 4.1)
    cuts = [[i for i in cut_points(len(t), m) if lab.env.can_start_here(t.state(i))] for t in explored]
    expert_states = [(number, index) for number, indices in enumerate(cuts) for index in indices]
    if not expert_states:
        show("warning: no state of a failed expert trajectory can be simulated, so EEF only simulates from s0")
    # The outcome of each simulated state: the winning trajectory (these form D+), or None if it lost.
    # Keys: (task, 0) for s0 of a subtask, (number of the expert trajectory, i) for its state s_i.
    state_keys: list[tuple[Any, int]] = [*((task, 0) for task in lab.tasks), *expert_states]
    outcomes: dict[tuple[Any, int], Trajectory | None] = {}
    for iteration in range(lab.settings.iterations):
        # Phase 2: exploration (section 4.1)
        samples: list[list[Trajectory]] = []  # k simulations of each state
        for sample in range(k):
            from_s0 = lab.from_s0(adapter, iteration, sample)
            starts = [Start(explored[number].task, explored[number], i, sample) for number, i in expert_states]
            name = f"states-{iteration}-{sample}" if sample else f"states-{iteration}"
            samples.append(from_s0 + lab.simulate(name, adapter, starts, lab.sampling_seed(iteration)))
        for state, simulations in zip(state_keys, zip(*samples, strict=True), strict=True):
            if played := [simulation for simulation in simulations if simulation.won or simulation.failed]:
                outcomes[state] = outcome(played) or outcomes.get(state)
        # Phase 3: one solution per important state (section 4.2), and SFT
        solutions = wins(win for (_, index), win in outcomes.items() if win and index == 0)
        for number, expert in enumerate(explored):
            keys = {0: (expert.task, 0)} | {index: (number, index) for index in cuts[number]}
            own_outcomes = {index: outcomes[state] for index, state in keys.items() if state in outcomes}
            solutions += select(expert, own_outcomes, mask_harmful, recovery, one_per_state, restart_only)
        if not solutions:
            show("warning: no simulation won, so EEF trains on the examples of behaviour cloning")
        examples = merge(expert_wins(lab.experts()), solutions, one_per_state and mask_harmful)
        if random_segments:
            numbers = {id(win): number for (number, index), win in outcomes.items() if index}
            examples = _with_random_segments(examples, explored, numbers, lab.seed)
        adapter = lab.sft(f"sft-{iteration}", examples, lab.sft_start(adapter))
    return adapter


METHODS: dict[str, Callable[..., Path]] = {
    "sft_pos": sft_pos,
    "sft_all": sft_all,
    "nat": nat,
    "rft": rft,
    "eto": eto,
    "eef": eef,
    "ceiling": ceiling,
    # not of the paper: eef/beyond.py
    "eef_adaptive": eef_adaptive,
    "eef_soft": eef_soft,
    "eef_pairs": eef_pairs,
}


BUDGET = ("n", "m", "k")  # options that count simulations: results have a column for each
IN_EVERY_NAME = ("n", "m")  # those of them that enter a run's name even if they equal their default
REQUIRED = inspect.Parameter.empty  # in place of the default of an option without one


def method_options(name: str) -> dict[str, Any]:
    """The options of a method, from its signature: name -> default, or ``REQUIRED``. ValueError if it is unknown."""
    if name not in METHODS:
        hint = did_you_mean(str(name), METHODS)
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}{hint}")
    _, *options = inspect.signature(METHODS[name]).parameters.values()  # the first is the lab
    return {each.name: each.default for each in options}


def option_problem(method: str, option: str) -> str:
    """A message about an option that a method lacks; empty if it has it."""
    known = method_options(method)
    names = f"its options are {', '.join(known)}" if known else "it has no options"
    hint = did_you_mean(option, known)
    return "" if option in known else f"the method {method!r} has no option {option!r}{hint}; {names}"


def check_options(options: Mapping[str, Any]) -> None:
    """ValueError for an option's value with which no method can run."""
    for name in (*BUDGET, "rounds"):
        count = options.get(name, 1)
        if type(count) is not int or count < 1:
            raise ValueError(f"{name}={count!r} must be a positive integer")
    share = options.get("random_navigation", 0.0)
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise ValueError(f"random_navigation={share!r} must be a number from 0 to 1")
    if options.get("random_segments") and (options.get("restart_only") or not options.get("mask_harmful", True)):
        raise ValueError("random_segments=True needs mask_harmful=True and restart_only=False: it replaces their rule")
    if options.get("own_pairs") and options.get("n", 1) < 2:
        raise ValueError("own_pairs=True needs n of at least 2: a pair is two simulations of one subtask")


def _with_random_segments(
    examples: Sequence[Example], explored: Sequence[Trajectory], numbers: Mapping[int, int], seed: int
) -> list[Example]:
    """The examples with random segments. ``numbers`` maps the id of a win to its place in ``explored``."""
    changed = []
    for example in examples:
        number = numbers.get(id(example.trajectory))
        changed += [example] if number is None else with_random_segment(example, explored[number], (seed, number))
    return changed
