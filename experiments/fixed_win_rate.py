"""Finds error rates with which the scripted expert wins equally often, however often it spoils purchases after paging.

    python experiments/fixed_win_rate.py --late 0 0.25 0.5 0.75

``late`` makes an expert's failures show a skill that its wins hide, and lowers its win rate too. For each value the
script finds the ``base`` error rate with which the strong expert wins as often as with its usual rates, to 0.001, on
all training subtasks of the development catalogues 100 to 103 in the setting of experiments/main_comparison.yaml. It
prints the win rate and the share of wins and of failures that turn a page. ``late`` above the usual .75 has none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml

from eef.agents.actions import uses
from eef.envs import make_env
from eef.envs.extras import extras_of
from eef.envs.webshop.shopper import STRONG, ShopperNoise, play_expert
from eef.trajectory import Trajectory

SETTING = yaml.safe_load((Path(__file__).parent / "main_comparison.yaml").read_text(encoding="utf-8"))["parameters"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--late", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--catalogues", type=int, nargs="+", default=[100, 101, 102, 103])
    options = parser.parse_args()
    catalogues = [{**SETTING["catalogue"], "seed": seed} for seed in options.catalogues]
    shops = [make_env("webshop", max_steps=SETTING["max_steps"], catalogue=each) for each in catalogues]

    def play(noise: ShopperNoise) -> list[Trajectory]:
        return [play_expert(shop, task, noise) for shop in shops for task in shop.tasks("train")]

    def share(part: list[Trajectory], condition: Callable[[Trajectory], bool]) -> float:
        return 100 * sum(map(condition, part)) / len(part)

    def won(trajectory: Trajectory) -> bool:
        return trajectory.won

    def pages(trajectory: Trajectory) -> bool:
        return any(uses(action, turns_page) for action in trajectory.actions)

    turns_page = extras_of("webshop").skills["next"]
    target = share(play(STRONG), won)
    print(f"usual rates: {STRONG}, {target:.1f} % won\n")
    print("| late | base | win % | wins that page % | failures that page % |\n|---|---|---|---|---|")
    for late in options.late:
        low, high = 0.0, 0.5
        while high - low > 0.0005:
            middle = (low + high) / 2
            wins_more = share(play(replace(STRONG, base=middle, late=late)), won) > target
            low, high = (middle, high) if wins_more else (low, middle)
        episodes = play(replace(STRONG, base=round(high, 3), late=late))
        rates = [share([t for t in episodes if t.won is outcome], pages) for outcome in (True, False)]
        print(f"| {late} | {high:.3f} | {share(episodes, won):.1f} | {rates[0]:.1f} | {rates[1]:.1f} |")


if __name__ == "__main__":
    main()
