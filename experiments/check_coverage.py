"""How often a "95 %" interval over training seeds contains the true mean: Student t, and the percentile bootstrap.

    python experiments/check_coverage.py

Each simulated sweep draws one win rate per training seed: a true rate from a distribution over seeds, then the wins in
500 test subtasks. The truth is the mean of that distribution. Writes figures/coverage/coverage.csv and coverage.md;
equal arguments write equal files. It takes half a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from eef.analysis.statistics import over_seeds
from eef.analysis.tables import markdown, write_table

OUT = Path(__file__).parents[1] / "figures" / "coverage"
SUBTASKS = 500
SEEDS = (3, 5, 10, 20)
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def normal(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """As EEF with M = 5: about 70 %, with a standard deviation of 5 points."""
    return 0.7 + 0.05 * rng.standard_normal(size)


def skewed(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """As RFT x 6 after one iteration: most seeds near 43 %, some far above."""
    return np.minimum(0.43 + rng.exponential(0.1, size), 0.95)


def bimodal(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """As RFT x 6 after three iterations: 43 % for two seeds in five, 77 % for the others."""
    return np.where(rng.random(size) < 0.4, 0.43, 0.77) + 0.02 * rng.standard_normal(size)


def wins(draw: Draw, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Measured win rates, (sweeps, seeds)."""
    return rng.binomial(SUBTASKS, draw(rng, size).clip(0, 1)) / SUBTASKS


CASES: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "normal": ("70 %, standard deviation 5", lambda rng, size: wins(normal, rng, size)),
    "skewed": ("43 % + exponential, mean 10", lambda rng, size: wins(skewed, rng, size)),
    "bimodal": ("43 % (two in five) or 77 %", lambda rng, size: wins(bimodal, rng, size)),
    "difference": ("normal minus bimodal", lambda rng, size: wins(normal, rng, size) - wins(bimodal, rng, size)),
}


def bootstrap(values: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> np.ndarray:
    """Ends of the percentile bootstrap over seeds of each sweep, (2, sweeps)."""
    seeds = values.shape[1]
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    return np.percentile(weights @ values.T, [2.5, 97.5], axis=0)


def coverage(sweeps: int, seed: int) -> pd.DataFrame:
    """A row per case and number of seeds: % of the sweeps whose interval contains the truth, and half-widths."""
    rows = []
    for name, (about, draw) in CASES.items():
        rng = np.random.default_rng([seed, *name.encode()])
        truth = draw(rng, (1000, 1000)).mean()
        for seeds in SEEDS:
            values = draw(rng, (sweeps, seeds))
            ends = {"t": np.array([over_seeds(each)[1:] for each in values]).T}
            ends["bootstrap"] = np.hstack(
                [bootstrap(part, rng) for part in np.array_split(values, max(1, sweeps // 1000))]
            )
            row = {"case": name, "win rate over seeds": about, "seeds": seeds}
            row |= {f"{kind}, %": 100 * np.mean((low <= truth) & (truth <= high)) for kind, (low, high) in ends.items()}
            row |= {f"{kind}, ± points": 50 * np.mean(high - low) for kind, (low, high) in ends.items()}
            rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=10_000, help="simulated sweeps per row (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    table = coverage(options.sweeps, options.seed)
    path = write_table(table, options.out, "coverage")
    text = markdown(table.round(1))
    path.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")
    print(text)
