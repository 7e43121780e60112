"""Speed of the WebShop environment: against the official one, and a large store against 1,000 products.

python experiments/benchmark_webshop.py                      # 1,000 generated products in memory
python experiments/benchmark_webshop.py --data FOLDER        # also FOLDER: official files or a store
python experiments/benchmark_webshop.py --record FOLDER      # also the recorded episodes of the official code

eef webshop generate --products 1180000 big && eef webshop build big      # a FOLDER as large as the official one
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate

OFFICIAL = {"step": 24.9, "reset": 4.7, "start": 5600.0}  # milliseconds, one core, 1,000 products


clock = time.perf_counter


def open_shop(data: str | Path | None) -> tuple[WebShop, float]:
    """The shop, and the milliseconds taken to open it."""
    source: Any = generate(CatalogueSpec(products=1000)) if data is None else data
    begin = clock()
    env = WebShop(data=source, split="ratio")
    env.reset("0")
    return env, 1000 * (clock() - begin)


def walk(env: WebShop, episodes: int, seed: int = 0) -> dict[str, list[float]]:
    """Milliseconds of each reset, search and other step, in episodes with two searches and random clicks."""
    rng = random.Random(seed)
    times: dict[str, list[float]] = {"reset": [], "search": [], "other": []}

    def timed(kind: str, call: Any, word: str) -> Any:
        begin = clock()
        result = call(word)
        times[kind].append(1000 * (clock() - begin))
        return result

    tasks = rng.sample(range(len(env.shop.goals)), min(episodes, len(env.shop.goals)))
    for task in tasks:
        timed("reset", env.reset, str(task))
        goal = env.shop.goals[task]
        for query in (goal.instruction_text, " ".join([*goal.attributes, goal.query])):
            timed("search", env.step, f"search[{query}]")
            for _ in range(6):
                names = [name for name in env.available_actions()["clickables"] if name != "back to search"]
                if not names:
                    break
                timed("other", env.step, f"click[{rng.choice(names)}]")
    return times


def report(name: str, env: WebShop, start: float, episodes: int) -> tuple[float, float]:
    """Print the numbers of one catalogue; median milliseconds of a step other than a search, first and second time."""
    memory = psutil.Process().memory_info()
    print(f"\n{name}: {len(env.shop.products):,} products, {len(env.shop.goals):,} goals")
    print(f"  open        {start:10.1f} ms   official / this {OFFICIAL['start'] / start:8.1f}")
    print(f"  memory      {memory.rss / 2**20:10.0f} MB   of which shared {memory.shared / 2**20:.0f} MB")
    times = walk(env, episodes)
    times["again"] = walk(env, episodes)["other"]  # the same episodes again: all pages were seen before
    steps = times["search"] + times["other"]
    mean = statistics.fmean(steps)
    print(f"  reset       {statistics.fmean(times['reset']):10.4f} ms   official / this "
          f"{OFFICIAL['reset'] / statistics.fmean(times['reset']):8.1f}")  # fmt: skip
    print(f"  step        {mean:10.4f} ms   official / this {OFFICIAL['step'] / mean:8.1f}   "
          f"({1000 / mean:,.0f} steps/s, {len(times['search']) / len(steps):.0%} of them searches)")  # fmt: skip
    for kind in ("search", "other", "again"):
        cuts = statistics.quantiles(times[kind], n=100)
        label = {"search": "search", "other": "other steps", "again": "seen before"}[kind]
        print(f"  {label:11} {cuts[49]:10.4f} ms median, {cuts[94]:.4f} ms 95th percentile, "
              f"{max(times[kind]):.3f} ms maximum, {statistics.fmean(times[kind]):.4f} ms mean")  # fmt: skip
    memory = psutil.Process().memory_info()
    print(f"  memory      {memory.rss / 2**20:10.0f} MB afterwards, of which shared {memory.shared / 2**20:.0f} MB")
    return statistics.median(times["other"]), statistics.median(times["again"])


def replay(folder: Path) -> None:
    """The recorded episodes of the official code (``FOLDER/golden``) on its 1,000 products (``FOLDER/data``)."""
    with gzip.open(folder / "golden" / "transcripts.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    begin = clock()
    env = WebShop(data=folder / "data")
    opening = 1000 * (clock() - begin)
    print(f"\nrecorded episodes: {len(env.shop.products):,} products of the official record")
    print(f"  open        {opening:10.1f} ms   official / this {OFFICIAL['start'] / opening:8.1f}")
    for label in ("first time", "second time"):
        times: dict[str, list[float]] = {"reset": [], "step": []}
        for row in rows:
            begin = clock()
            if row["step"] == 0:
                env.reset(str(row["session"]))
            else:
                env.step(row["action"])
            times["step" if row["step"] else "reset"].append(1000 * (clock() - begin))
        reset, step = statistics.fmean(times["reset"]), statistics.fmean(times["step"])
        print(f"  {label:11} {step:10.4f} ms a step ({len(times['step']):,} steps), official / this "
              f"{OFFICIAL['step'] / step:.0f}; {reset:.4f} ms a reset, {OFFICIAL['reset'] / reset:.0f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="official files or a store")
    parser.add_argument("--record", metavar="FOLDER", type=Path, help="a folder with data/ and golden/")
    parser.add_argument("--episodes", type=int, default=250)
    parser.add_argument("--cpu", action="store_true", help="measure processor time, for a shared machine")
    args = parser.parse_args()
    if args.cpu:
        global clock
        clock = time.process_time
    large = None
    if args.data:
        env, start = open_shop(args.data)  # first, so that the memory measured is its own
        large = report(args.data, env, start, args.episodes)
    env, start = open_shop(None)
    small = report("generated, in memory", env, start, args.episodes)
    if large is not None:
        first, again = (big / little for big, little in zip(large, small, strict=True))
        print(f"\na step other than a search takes {first:.2f} times as long as with 1,000 products (median)")
        print(f"on pages seen before: {again:.2f}")
    if args.record:
        replay(args.record)


if __name__ == "__main__":
    main()
