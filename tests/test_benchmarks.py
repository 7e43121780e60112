"""The benchmark scripts run with the smallest sizes. Their measurements are meaningless there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
TOKENIZER = EXPERIMENTS.parent / "eef" / "models" / "embedded-scienceworld"
SMALL = {
    "rollouts": "--episodes 3 --turns 2 --failures 2 --m 2 --further 1 --words 4 --width 32 --layers 1",
    "training": "--trajectories 4 --rounds 1",
    "sft": "--model embedded --trajectories 2 --batch-size 2 --only eef",
    "constraints": f"{TOKENIZER} --answers 2 --rounds 3 --layers 1 --share 9",
    "search": "--copies 1 --goals 4 --random 20",
    "gpu": "--small --episodes 1 3 --prompt 32 --words 4 --steps 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name: str) -> None:
    words = [sys.executable, str(EXPERIMENTS / f"benchmark_{name}.py"), *SMALL[name].split()]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert {
        "rollouts": " times",
        "training": "what eef does",
        "sft": "the limit",
        "constraints": "one forward pass",
        "search": "equal to plain scoring: 20 of 20 queries",
        "gpu": "share_of_bandwidth",
    }[name] in done.stdout
