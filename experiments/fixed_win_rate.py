"""Finds error rates with which the scripted expert wins equally often, however often it spoils purchases after paging.

    python experiments/fixed_win_rate.py --late 0 0.25 0.5 0.75
    python experiments/fixed_win_rate.py --sweep experiments/late_curve.yaml

``late`` makes an expert's failures show a skill that its wins hide, and lowers its win rate too. For each value the
script finds the ``base`` error rate with which the strong expert wins as often as with its usual rates, to 0.001, on
all training subtasks of the development catalogues 100 to 103 in the setting of experiments/main_comparison.yaml. It
prints the win rate and the share of wins and of failures that turn a page. ``late`` above the usual .75 has none.
``--sweep`` prints the same for the rates, subtasks and seeds of a sweep file.
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


def share(part: list[Trajectory], condition: Callable[[Trajectory], bool]) -> float:
    return 100 * sum(map(condition, part)) / len(part)


def won(trajectory: Trajectory) -> bool:
    return trajectory.won


def pages(trajectory: Trajectory) -> bool:
    turns_page = extras_of("webshop").skills["next"]
    return any(uses(action, turns_page) for action in trajectory.actions)


def show(late: float, base: float, episodes: list[Trajectory]) -> None:
    """A row of the table."""
    rates = [share([t for t in episodes if t.won is outcome], pages) for outcome in (True, False)]
    print(f"| {late} | {base:.3f} | {share(episodes, won):.1f} | {rates[0]:.1f} | {rates[1]:.1f} |")


def of_sweep(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    setting = sweep["parameters"]
    shop = make_env("webshop", max_steps=setting["max_steps"], catalogue=setting["catalogue"])
    tasks = shop.tasks("train")[: setting["train_tasks"]]
    for noise in sweep["grid"]["expert_noise"]:
        rates = replace(STRONG, **noise)
        show(
            rates.late, rates.base, [play_expert(shop, task, rates, seed) for seed in sweep["seeds"] for task in tasks]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--late", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--catalogues", type=int, nargs="+", default=[100, 101, 102, 103])
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="a sweep file with a grid over expert_noise")
    options = parser.parse_args()
    head = "| late | base | win % | wins that page % | failures that page % |\n|---|---|---|---|---|"
    if options.sweep:
        print(head)
        return of_sweep(options.sweep)
    catalogues = [{**SETTING["catalogue"], "seed": seed} for seed in options.catalogues]
    shops = [make_env("webshop", max_steps=SETTING["max_steps"], catalogue=each) for each in catalogues]

    def play(noise: ShopperNoise) -> list[Trajectory]:
        return [play_expert(shop, task, noise) for shop in shops for task in shop.tasks("train")]

    target = share(play(STRONG), won)
    print(f"usual rates: {STRONG}, {target:.1f} % won\n\n{head}")
    for late in options.late:
        low, high = 0.0, 0.5
        while high - low > 0.0005:
            middle = (low + high) / 2
            wins_more = share(play(replace(STRONG, base=middle, late=late)), won) > target
            low, high = (middle, high) if wins_more else (low, middle)
        show(late, high, play(replace(STRONG, base=round(high, 3), late=late)))


if __name__ == "__main__":
    main()
