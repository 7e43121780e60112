"""The split that verl-agent's WebShop wrapper plays: every worker shuffles the goals with a seed of its own.

Read in September 2026 in two public copies of verl-agent, ``env_package/webshop/envs.py`` and its ``SimServer``. A
worker with seed s shuffles all goals with s. The 16 training workers have the seeds 0 to 15 and draw goals from
position 500 on in their own order; the 128 test workers have the seeds 1000 to 1127 and draw from the first 500
positions in theirs. So "the first 500" are other goals for every worker, and nearly every test goal is a training goal.
"""

from __future__ import annotations

import random

import numpy as np

TRAIN_WORKERS, TEST_WORKERS = 16, 128
_TEST_SEED, _TEST_POSITIONS = 1000, 500


def worker_split(count: int, shuffle: int) -> dict[str, tuple[int, ...]]:
    """Goal indices of ``train`` and ``test`` among ``count`` goals, which are in the order of the seed ``shuffle``.

    ``test``: the goals that the test workers play after the first reset. ``train``: all goals that a training worker
    can draw. ``eval`` is empty. ValueError for too few goals.
    """
    if count <= _TEST_POSITIONS:
        raise ValueError(f"split 'verl-agent' needs more than {_TEST_POSITIONS} goals, this catalogue has {count}")
    ours = {original: index for index, original in enumerate(_shuffled(count, shuffle))}
    positions = np.random.RandomState(_TEST_SEED).choice(range(_TEST_POSITIONS), size=TEST_WORKERS, replace=False)
    test = [ours[_shuffled(count, _TEST_SEED + worker)[at]] for worker, at in enumerate(positions)]
    train = {ours[goal] for worker in range(TRAIN_WORKERS) for goal in _shuffled(count, worker)[_TEST_POSITIONS:]}
    return {"train": tuple(sorted(train)), "eval": (), "test": tuple(dict.fromkeys(test))}


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
