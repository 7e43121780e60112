"""Simulations from initial and expert states: the public names of :mod:`eef.agents.rollout`."""

from eef.agents.rollout import Start, simulate

__all__ = ["Start", "simulate"]
