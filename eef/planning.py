"""Which states of failed expert trajectories to simulate next, and what the simulations so far say about them.

EEF simulates evenly spaced states once each (section 4.1 of the paper), and learns from a failure only if a simulation
from one of its states won (section 4.2). A win from a state that mostly loses is luck, and a wrong example. So a
simulation is worth the probability that it gives the first right example of its failure: that it wins, that its state
wins at least half of the time, and that no earlier win of the failure is from such a state (:func:`plan`).

The win probabilities along one failure are modelled as a hidden Markov chain. An action of the expert leaves the win
probability as it is, or, with probability ``change``, moves it to a new value drawn from ``weights`` (:class:`Model`).
Both are learnt from all counts of the round (:func:`fit`), because the failures of one expert are alike: if most states
never win, one lost simulation nearly settles a state, while a Beta(1, 1) prior would still give it one chance in four.
The chain ends in the end of the failure, which is lost. So after a loss at s0 the middle states are most likely to win.

Pure functions of counts: equal inputs give equal plans, and ties go to the first trajectory and state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from eef.selection import Kind, Segment

VALUES = np.array([0.02, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.98])  # possible win probabilities; .5 is no value
WON = VALUES >= 0.5
LOST_END = (1 - VALUES) ** 20  # likelihood of the end of a failure: as of 20 lost simulations
LEAST_GAIN = 1e-3  # below this gain nothing is left to learn
_PRIOR_CHANGE, _PRIOR_COUNT = 0.25, 10.0  # what is believed before the first simulation, and its weight in states
_PRIOR_WEIGHTS = (VALUES * (1 - VALUES)) ** -0.5 / ((VALUES * (1 - VALUES)) ** -0.5).sum()  # Jeffreys: no side
_FIT_STEPS = 30
_SCENARIOS = 16  # possible outcomes of a batch that are looked at, the most probable ones


@dataclass(frozen=True)
class Line:
    """The counts of one failure so far: wins and simulations of each state s_0 ... s_(n-1).

    ``can_simulate``: whether each state may be simulated; empty if all may. ``ends_lost``: False where the trajectory
    is not a failure, so that its end says nothing. ValueError for impossible counts.
    """

    wins: tuple[int, ...]
    simulations: tuple[int, ...]
    can_simulate: tuple[bool, ...] = ()
    ends_lost: bool = True

    def __post_init__(self) -> None:
        if len(self.wins) != len(self.simulations) or len(self.can_simulate) not in (0, len(self.wins)):
            raise ValueError(
                f"wins, simulations and can_simulate have {len(self.wins)}, {len(self.simulations)} and "
                f"{len(self.can_simulate)} entries: give one for each state"
            )
        for index, (wins, simulations) in enumerate(zip(self.wins, self.simulations, strict=True)):
            if not 0 <= wins <= simulations:
                raise ValueError(f"state {index} has {wins} wins of {simulations} simulations: count again")


@dataclass(frozen=True)
class Model:
    """``weights`` of the win probabilities ``VALUES``, and the probability that an action draws a new one."""

    weights: tuple[float, ...] = tuple(_PRIOR_WEIGHTS)
    change: float = _PRIOR_CHANGE


@dataclass(frozen=True)
class Estimate:
    """What the counts say about the states of one failure, each a tuple of n entries.

    ``means``: posterior mean of the win probability. ``won``: posterior probability that it is at least 1/2.
    ``outcomes``: True (won) where the mean is at least 1/2 and a simulation won, so that there is a win to learn from;
    False (lost) where the mean is below 1/2; None where no simulation was made, or all lost although the neighbours say
    that the state wins.
    """

    means: tuple[float, ...]
    won: tuple[float, ...]
    outcomes: tuple[bool | None, ...]

    def segments(self) -> list[Segment]:
        """The expert's actions between neighbouring states with an outcome, as :func:`eef.selection.segments`, but
        without the last segment to the end of the trajectory.
        """
        known = [(index, won) for index, won in enumerate(self.outcomes) if won is not None]
        kinds: dict[tuple[bool, bool], Kind] = {(False, True): "beneficial", (True, False): "harmful"}
        return [Segment(a, b, kinds.get((before, after), "neutral")) for (a, before), (b, after) in pairwise(known)]

    def gain(self, start: int, stop: int) -> float:
        """By how much the expert's actions from s_start to s_stop raise the win probability."""
        return self.means[stop] - self.means[start]


def fit(lines: Sequence[Line]) -> Model:
    """The model that explains the counts of all ``lines`` best, by expectation maximisation.

    A few imagined states keep it near the default where there are few counts. The choice of the states to simulate does
    not bias it, since that depends on counts alone.
    """
    lines = [line for line in lines if any(line.simulations)]
    weights, change = np.array(Model().weights), Model().change
    if not lines:
        return Model()
    size = max(len(line.wins) for line in lines) + 1
    likelihood = np.ones((len(lines), size, len(VALUES)))  # states beyond the end of a line tell nothing
    for place, line in enumerate(lines):
        likelihood[place, : len(line.wins) + 1] = _likelihood(line)
    is_action = np.array([[index < len(line.wins) for index in range(size - 1)] for line in lines])
    for _ in range(_FIT_STEPS):
        forward, backward = _messages(likelihood, weights, change)
        first = forward[:, 0] * backward[:, 0]
        ahead = likelihood[:, 1:] * backward[:, 1:]
        moved = change * weights * ahead  # (lines, actions, values): to this value
        stayed = (1 - change) * forward[:, :-1] * ahead
        moved = moved / (moved + stayed).sum(-1, keepdims=True) * is_action[..., None]
        drawn = (first / first.sum(-1, keepdims=True)).sum(0) + moved.sum((0, 1))
        weights = drawn + _PRIOR_COUNT * _PRIOR_WEIGHTS
        weights = weights / weights.sum()
        change = (moved.sum() + _PRIOR_COUNT * _PRIOR_CHANGE) / (is_action.sum() + _PRIOR_COUNT)
    return Model(tuple(weights.tolist()), float(change))


def estimate(line: Line, model: Model) -> Estimate:
    """The posterior of one line under ``model``."""
    posterior = _posterior(_likelihood(line)[None], model)[0, :-1]
    means, won = posterior @ VALUES, posterior @ WON
    outcomes: list[bool | None] = []
    for mean, wins, simulations in zip(means, line.wins, line.simulations, strict=True):
        wins_here = mean >= 0.5
        outcomes.append(None if simulations == 0 or (wins_here and not wins) else bool(wins_here))
    return Estimate(tuple(means.tolist()), tuple(won.tolist()), tuple(outcomes))


def plan(
    lines: Sequence[Line], budget: int, model: Model | None = None, certainty: float = 0.0
) -> list[tuple[int, int]]:
    """The next batch: at most ``budget`` pairs (line, state), sorted; a pair that occurs twice means two simulations.

    Each line ranks its states by the gain of the next simulation: the probability that it wins and its state has won
    (wins at least half of its simulations), minus the probability that a state with a win at hand has won as well (of
    such states the one for which this is largest). To this is added ``certainty`` times the expected reduction of the
    variance of the labels, summed over the line, which repeats states whose label is in doubt. The possible outcomes of
    the earlier simulations of the batch are weighed by their probability. The largest gains over all lines are taken.
    The batch is shorter where nothing is left to learn, or where each line with something left has its most
    simulations: two more than twice the budget per line. ``model`` defaults to that of :func:`fit`. ValueError for a
    negative budget.
    """
    if budget < 0:
        raise ValueError(f"budget={budget} must be at least 0 simulations")
    model = model or fit(lines)
    most = min(budget, 2 * -(-budget // max(len(lines), 1)) + 2)  # of one line
    rankings: dict[Line, list[tuple[float, int]]] = {}  # equal lines are ranked once
    options = []
    for number, line in enumerate(lines):
        if line not in rankings:
            rankings[line] = _ranking(line, model, most, certainty)
        options += [(-gain, place, number, state) for place, (gain, state) in enumerate(rankings[line])]
    return sorted((number, state) for *_, number, state in sorted(options)[:budget])


def _ranking(line: Line, model: Model, most: int, certainty: float) -> list[tuple[float, int]]:
    """Up to ``most`` simulations of a line, the most useful first: the expected gain of each, and its state."""
    allowed = np.array([*(line.can_simulate or (True,) * len(line.wins)), False])  # the end of the line is no state
    if not allowed.any():
        return []
    likelihood, probability = _likelihood(line)[None], np.ones(1)  # of each scenario
    has_win = np.array([[*(wins > 0 for wins in line.wins), False]])
    ranking: list[tuple[float, int]] = []
    while len(ranking) < most:
        wins, both_won, less_variance = _lookahead(likelihood, model)
        new = np.einsum("sii->si", both_won) - np.where(has_win[:, None, :], both_won, 0.0).max(-1)
        expected = np.where(allowed, np.round(probability @ (new + certainty * less_variance), 9), -np.inf)
        state = int(expected.argmax())
        gain = min([float(expected[state]), *(earlier for earlier, _ in ranking[-1:])])  # a plan has falling gains
        if gain < LEAST_GAIN:
            break
        ranking.append((gain, state))
        win_probability = probability * wins[:, state]
        at_state = np.arange(len(allowed)) == state
        probability = np.concatenate([win_probability, probability - win_probability])
        has_win = np.concatenate([has_win | at_state, has_win])
        likelihood = np.concatenate(
            [likelihood * np.where(at_state[:, None], value, 1) for value in (VALUES, 1 - VALUES)]
        )
        largest = np.sort(np.argsort(-probability, kind="stable")[:_SCENARIOS])
        probability, likelihood, has_win = probability[largest], likelihood[largest], has_win[largest]
        probability /= probability.sum()
    return ranking


def _lookahead(likelihood: Any, model: Model) -> tuple[Any, Any, Any]:
    """What one more simulation of each state s_i gives, for ``likelihood`` of (scenarios, states, values).

    The probability that it wins, (scenarios, i); the probability that it wins and that s_i and s_j have won,
    (scenarios, i, j); and by how much it is expected to reduce the variance of all labels together, (scenarios, i).
    """
    weights, change = np.array(model.weights), model.change
    forward, backward = _messages(likelihood, weights, change)
    posterior = forward * backward
    posterior /= posterior.sum(-1, keepdims=True)
    states, values = likelihood.shape[1:]
    move = (1 - change) * np.eye(values) + change * weights  # [from, to]
    # won_given[i][..., v, j]: the probability that s_j wins if the win probability of s_i is v
    won_given = np.zeros((states, len(likelihood), values, states))
    won_given[range(states), :, :, range(states)] = WON
    for i in range(states - 2, -1, -1):
        to_next = move * (likelihood[:, i + 1] * backward[:, i + 1])[:, None, :]
        to_next /= to_next.sum(-1, keepdims=True)
        won_given[i, :, :, i + 1 :] = to_next @ won_given[i + 1, :, :, i + 1 :]
    for i in range(1, states):
        to_previous = move.T * forward[:, i - 1][:, None, :]
        to_previous /= to_previous.sum(-1, keepdims=True)
        won_given[i, :, :, :i] = to_previous @ won_given[i - 1, :, :, :i]
    wins, won = posterior @ VALUES, posterior @ WON
    both_won = np.einsum("siv,isvj->sij", posterior * VALUES * WON, won_given)
    after_win = np.einsum("siv,isvj->sij", posterior * VALUES, won_given)  # s_i's simulation wins, and s_j has won
    after_loss = won[:, None, :] - after_win
    expected_square = after_win**2 / wins[..., None] + after_loss**2 / (1 - wins)[..., None]
    return wins, both_won, (expected_square - won[:, None, :] ** 2).sum(-1)


def _likelihood(line: Line) -> Any:
    """Of the counts of each state, then of the end of the trajectory, for each of ``VALUES``: (states + 1, values)."""
    wins, simulations = np.array(line.wins, dtype=float), np.array(line.simulations, dtype=float)
    logs = wins[:, None] * np.log(VALUES) + (simulations - wins)[:, None] * np.log1p(-VALUES)
    end = LOST_END if line.ends_lost else np.ones_like(VALUES)
    return np.concatenate([np.exp(logs - logs.max(-1, keepdims=True, initial=-np.inf)), end[None]])


def _messages(likelihood: Any, weights: Any, change: float) -> tuple[Any, Any]:
    """Forward and backward messages of the chain, both (lines, states, values); their product is the posterior."""
    forward, backward = np.empty_like(likelihood), np.ones_like(likelihood)
    message = likelihood[:, 0] * weights
    for index in range(likelihood.shape[1]):
        if index:
            message = likelihood[:, index] * ((1 - change) * message + change * weights)
        message = message / message.sum(-1, keepdims=True)
        forward[:, index] = message
    for index in range(likelihood.shape[1] - 2, -1, -1):
        ahead = likelihood[:, index + 1] * backward[:, index + 1]
        message = (1 - change) * ahead + change * (ahead * weights).sum(-1, keepdims=True)
        backward[:, index] = message / message.sum(-1, keepdims=True)
    return forward, backward


def _posterior(likelihood: Any, model: Model) -> Any:
    forward, backward = _messages(likelihood, np.array(model.weights), model.change)
    posterior = forward * backward
    return posterior / posterior.sum(-1, keepdims=True)
