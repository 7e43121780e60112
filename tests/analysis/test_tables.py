"""The paper's tables: their rows, what they compare with, and numbers that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eef.analysis.arms import FigureError
from eef.analysis.statistics import holm, over_seeds, t_test
from eef.analysis.tables import ablation_table, main_table, readable, regime_table


def run(
    at: Path, method: str, wins: int, seed: int = 0, train: int = 150, policy: str = "embedded", **arm: Any
) -> dict[str, Any]:
    """A finished run that won the first ``wins`` of ten test subtasks, the last five of them hard."""
    arm = {"n": None, "m": None, "experts": "strong", **arm}
    folder = at / f"{method}-{arm['n']}-{arm['m']}-{arm['experts']}-{train}-{policy}-{seed}"
    (folder / "eval").mkdir(parents=True)
    won = [place < wins for place in range(10)]
    table = pd.DataFrame({"task": range(10), "won": won, "reward": [0.5 + 0.5 * w for w in won], "error": False})
    table["group"] = ["easy"] * 5 + ["hard"] * 5
    table["max_score"] = [0.7 + 0.3 * w for w in won]
    table.to_csv(folder / "eval" / "episodes.csv", index=False)
    (folder / "timing.json").write_text(json.dumps({"seconds": 10.0 + seed}))
    return {
        "run_id": folder.name, "env": "webshop", "method": method, "seed": seed, "folder": str(folder), **arm,
        "episodes": 100, "env_steps": 800, "tokens": 4000, "errors": 0, "hashes": {"catalogue": "c"},
        "config": {"train": train, "model": policy},
    }  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> pd.DataFrame:
    rows = []
    for seed in (0, 1):
        rows += [
            run(tmp_path, "sft_pos", 2, seed),
            run(tmp_path, "sft_pos", 1, seed, experts="weak"),
            run(tmp_path, "rft", 3, seed, n=1),
            run(tmp_path, "rft", 4, seed, n=6),
            run(tmp_path, "rft", 7, seed, n=6, experts="a+strong"),  # before "strong" in lists, and no reference
            run(tmp_path, "eef", 6, seed, m=5),
            run(tmp_path, "eef", 8, seed, m=5, experts="strong+weak"),
            run(tmp_path, "eef", 5, seed, m=1),
            run(tmp_path, "eef", 4, seed, m=5, experts="weak"),
            run(tmp_path, "eef_recovery=False", 5, seed, m=5),
            run(tmp_path, "ceiling", 9, seed, experts="perfect"),
        ]
    return pd.DataFrame(rows)


def rows_of(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [
        tuple(None if pd.isna(x) else x for x in row)
        for row in table[["method", "experts", "n", "m"]].itertuples(index=False)
    ]


def test_the_main_table(runs: pd.DataFrame, tmp_path: Path) -> None:
    table = main_table(runs, tmp_path / "out")
    assert rows_of(table) == [
        ("sft_pos", "strong", None, None),
        ("rft", "a+strong", 6, None),
        ("rft", "strong", 1, None),
        ("rft", "strong", 6, None),
        ("eef", "strong", None, 5),
        ("eef", "strong+weak", None, 5),
        ("ceiling", "perfect", None, None),
    ]
    eef = table.iloc[4]
    assert eef["win_rate"] == pytest.approx(0.6) and eef["reward"] == pytest.approx(0.8)
    assert eef["max_score"] == pytest.approx(0.88)
    assert (eef["win_rate_easy"], eef["win_rate_hard"]) == (1.0, pytest.approx(0.2))
    assert eef["difference"] == pytest.approx(0.2), "both seeds gain two subtasks"
    assert eef[["low", "high"]].isna().all(), "equal values have no interval"
    assert (eef["seconds"], eef["episodes"], eef["seeds"]) == (10.5, 100, 2)
    assert pd.isna(table.iloc[3]["difference"])  # RFT x 6 against itself
    again = pd.read_csv(tmp_path / "out" / "main_table.csv")
    assert again["run_ids"][4].split() == sorted(
        runs[(runs["m"] == 5) & (runs["experts"] == "strong") & (runs["method"] == "eef")]["run_id"]
    )
    text = (tmp_path / "out" / "main_table.md").read_text()
    assert "| EEF, M = 5" in text and "+20.0 " in text and "60.0 " in text and "2 of 2" in text


def test_differences_have_t_intervals_over_seeds_and_holms_p_values(tmp_path: Path) -> None:
    wins = {("rft", 6): (4, 4, 3), ("eef", 5): (6, 8, 5), ("sft_pos", None): (2, 1, 3)}
    rows = []
    for (method, number), each in wins.items():
        option = {"n": number} if method == "rft" else {"m": number}
        rows += [run(tmp_path, method, count, seed, **option) for seed, count in enumerate(each)]
        rows += [run(tmp_path, method, count, seed, train=50, **option) for seed, count in enumerate(each)]
    first = pd.DataFrame([row for row in rows if row["config"]["train"] == 150])
    table = main_table(first, tmp_path / "out").set_index("method")
    for method, values in (("eef", [0.2, 0.4, 0.2]), ("sft_pos", [-0.2, -0.3, 0.0])):
        assert tuple(table.loc[method, ["difference", "low", "high"]]) == pytest.approx(over_seeds(values))
        assert table.loc[method, "p"] == pytest.approx(t_test(values))
    assert table.loc["eef", "p_holm"] == pytest.approx(min(1, 2 * table.loc["eef", "p"])), "the smaller of two"
    assert table["p_holm"].notna().sum() == 2 and table.loc["eef", ["gains", "common_seeds"]].tolist() == [3, 3]
    text = (tmp_path / "out" / "main_table.md").read_text()
    assert "| p (Holm, 2 differences) |" in text and "3 of 3" in text
    both = regime_table(pd.DataFrame(rows), tmp_path / "out")
    assert both["p_holm"].dropna().tolist() == pytest.approx(holm(both["p"].dropna())), "of all regimes together"
    assert both["p_holm"].min() == pytest.approx(4 * both["p"].min())


def test_the_ablation_table(runs: pd.DataFrame, tmp_path: Path) -> None:
    table = ablation_table(runs, tmp_path)
    differences = dict(zip(rows_of(table), table["difference"], strict=True))
    assert pd.isna(differences["eef", "strong", None, 5])
    assert differences["eef_recovery=False", "strong", None, 5] == pytest.approx(-0.1)
    assert differences["eef", "strong", None, 1] == pytest.approx(-0.1)
    assert differences["eef", "weak", None, 5] == pytest.approx(-0.2)
    assert ("sft_pos", "weak", None, None) in differences and not any(
        key[0] in ("rft", "ceiling") for key in differences
    )


def test_the_regime_table_compares_within_a_regime(runs: pd.DataFrame, tmp_path: Path) -> None:
    whole = runs[
        runs["method"].isin(["rft", "eef"]) & runs["experts"].eq("strong") & ~runs["m"].eq(1) & ~runs["n"].eq(1)
    ]
    few = [run(tmp_path, "rft", 1, n=6, train=50), run(tmp_path, "eef", 4, m=5, train=50)]
    other = [run(tmp_path, "rft", 2, n=6, policy="a/mistral"), run(tmp_path, "eef", 3, m=5, policy="a/mistral")]
    for one in other:
        one["hashes"] = {"catalogue": "c", "policy": "another"}
    table = regime_table(pd.concat([whole, pd.DataFrame(few + other)], ignore_index=True), tmp_path)
    eef = table[table["method"] == "eef"].set_index(["train", "policy"])["difference"]
    assert eef[50, "embedded"] == pytest.approx(0.3)
    assert eef[150, "embedded"] == pytest.approx(0.2)
    assert eef[150, "mistral"] == pytest.approx(0.1)
    assert list(readable(table))[:3] == ["train", "policy", "method"]


def test_the_main_table_of_joined_experts_has_all_their_arms(tmp_path: Path) -> None:
    joined = {"experts": "strong+weak"}
    rows = [
        row
        for seed in (0, 1)
        for row in (
            run(tmp_path, "sft_pos", 2, seed, **joined), run(tmp_path, "rft", 3, seed, n=6, **joined),
            run(tmp_path, "eef", 6, seed, m=5, **joined), run(tmp_path, "ceiling", 9, seed, experts="perfect"),
        )
    ]  # fmt: skip
    table = main_table(pd.DataFrame(rows), tmp_path / "out")
    assert table["method"].tolist() == ["sft_pos", "rft", "eef", "ceiling"]


def test_the_main_table_shows_what_there_is(runs: pd.DataFrame, tmp_path: Path) -> None:
    without = main_table(runs[runs["method"] != "rft"], tmp_path / "one")
    assert [row[0] for row in rows_of(without)] == ["sft_pos", "eef", "eef", "ceiling"]
    assert without[["difference", "low", "high", "p"]].isna().all(axis=None), "there is no RFT to compare with"
    assert "| EEF, M = 5" in (tmp_path / "one" / "main_table.md").read_text()
    without = main_table(runs[~runs["method"].str.startswith("eef")], tmp_path / "two")
    assert [row[0] for row in rows_of(without)] == ["sft_pos", "rft", "rft", "rft", "ceiling"]
    assert without.loc[0, "difference"] == pytest.approx(-0.2), "minus RFT × 6"
    own = pd.DataFrame([run(tmp_path, "eef_twice, size=3", 6, m=2), run(tmp_path, "sft_pos", 2, train=9)])
    table = readable(main_table(own, tmp_path / "three"))
    assert table["method"].tolist() == ["BC (SFT-pos)", "eef_twice, size=3, M = 2"], "a method, not an ablation of EEF"
    assert len(main_table(pd.concat([runs, own.iloc[:1]]), tmp_path / "four")) == 8, "with another m than EEF's"


def test_errors_do_not_count_in_a_group(tmp_path: Path) -> None:
    frame = pd.DataFrame([run(tmp_path, "eef", 4, 0, m=5)])
    path = Path(frame["folder"].iloc[0]) / "eval" / "episodes.csv"
    episodes = pd.read_csv(path).assign(group="hard")
    episodes["error"] = ~episodes["won"].astype(bool)
    episodes.to_csv(path, index=False)
    assert main_table(frame, tmp_path)["win_rate_hard"].tolist() == [1.0]


def test_arms_without_a_common_seed_are_named(tmp_path: Path) -> None:
    frame = pd.DataFrame([run(tmp_path, "rft", 4, 0, n=6), run(tmp_path, "eef", 4, 1, m=5)])
    with pytest.raises(FigureError, match=r"EEF, M = 5.* and RFT × 6.* have no seed in common"):
        main_table(frame, tmp_path)


def test_what_cannot_be_compared_is_named(runs: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="no finished EEF run"):
        ablation_table(runs[runs["method"] == "rft"], tmp_path)
    runs["hashes"] = [{"catalogue": "d" if i == 3 else "c"} for i in range(len(runs))]
    with pytest.raises(FigureError, match="'catalogue' differs"):
        main_table(runs, tmp_path)
    assert not list(tmp_path.glob("*.csv"))
