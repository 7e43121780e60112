"""Figures: what may be drawn together, tables that do not change, pictures of the right size."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eef.figures import COLUMNS, FigureError, arms, comparable, markdown, run_table, table, win_rate_vs_budget


def row(method: str, rate: float, seed: int = 0, folder: str = "", **more: Any) -> dict[str, Any]:
    budget = 100 * (more.get("n") or more.get("m") or 0)
    return {
        "run_id": f"webshop__{method}-{more.get('n') or more.get('m') or 0}-{more.get('experts')}__s{seed}",
        "env": "webshop", "method": method, "n": None, "m": None, "experts": "strong", "seed": seed,
        "episodes": budget, "env_steps": 8 * budget, "tokens": 60 * budget, "win_rate": rate,
        "win_low": rate - 0.1, "win_high": rate + 0.1, "win_rate_easy": rate, "mean_reward": rate + 0.123456789,
        "n_test": 50, "errors": 0, "hashes": {"catalogue": "c1", "chat": "t1"}, "folder": folder, **more,
    }  # fmt: skip


def runs() -> pd.DataFrame:
    rows = [row("sft_pos", 0.2), row("ceiling", 0.8), row("rft", 0.3, n=1), row("rft", 1 / 3, n=4)]
    return pd.DataFrame(rows + [row("eef", 0.3 + m / 50, m=m, experts=e) for e in ("strong", "both") for m in (1, 5)])


def seeded(folder: Path, seeds: int = 3) -> pd.DataFrame:
    rows = []
    for seed in range(seeds):
        for method, rate in (("rft", 0.4), ("eef", 0.6)):
            at = folder / f"{method}{seed}"
            (at / "eval").mkdir(parents=True)
            won = [(17 * task + seed) % 10 < 10 * rate for task in range(50)]
            episodes = pd.DataFrame(
                {"task": [f"t{i}" for i in range(50)], "won": won, "reward": [float(w) for w in won]}
            )
            episodes.to_csv(at / "eval" / "episodes.csv", index=False)
            number = {"m": 5} if method == "eef" else {"n": 4}
            rows.append(row(method, sum(won) / 50, seed, str(at), **number))
    return pd.DataFrame(rows)


def with_hashes(hashes: dict[str, str]) -> pd.DataFrame:
    """The runs, with other hashes for the third."""
    frame = runs()
    frame["hashes"] = pd.Series([hashes if i == 2 else kept for i, kept in enumerate(frame["hashes"])], dtype=object)
    return frame


def test_files_size_and_the_same_bytes_twice(tmp_path: Path) -> None:
    shuffled = runs().sample(frac=1, random_state=3)
    one = win_rate_vs_budget(runs(), tmp_path / "one")
    two = win_rate_vs_budget(shuffled, tmp_path / "two")
    assert struct.unpack(">II", one.read_bytes()[16:24]) == (1600, 1000)
    for suffix in (".csv", ".svg", ".png"):
        assert one.with_suffix(suffix).read_bytes() == two.with_suffix(suffix).read_bytes()
    assert "<dc:date>" not in one.with_suffix(".svg").read_text()


def test_the_table_behind_the_figure(tmp_path: Path) -> None:
    path = win_rate_vs_budget(runs(), tmp_path).with_suffix(".csv")
    lines = path.read_text().splitlines()
    assert lines[0].split(",") == COLUMNS and len(lines) == 9
    assert "eef,1,,both,0,100,800,6000,0.32,0.22,0.42,0.32,,,0.443457,50,0," in lines[2]
    assert "0.333333" in path.read_text()
    assert run_table(runs())["run_id"].tolist() == run_table(runs().iloc[::-1])["run_id"].tolist()


def test_runs_with_different_stamps_are_refused(tmp_path: Path) -> None:
    mixed = with_hashes({"catalogue": "c2", "chat": "t1"})
    with pytest.raises(FigureError, match=r"'catalogue' differs: c1 in .* and .* more; c2 in webshop__rft-1"):
        win_rate_vs_budget(mixed, tmp_path)
    mixed = with_hashes({"catalogue": "c1"})
    with pytest.raises(FigureError, match=r"'chat' differs.*none in webshop__rft-1"):
        table(mixed)
    mixed = runs()
    mixed.loc[0, "env"] = "scienceworld"
    with pytest.raises(FigureError, match="'env' differs"):
        comparable(mixed)
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_and_doubled_runs(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="no finished runs"):
        win_rate_vs_budget(pd.DataFrame(), tmp_path)
    doubled = pd.concat([runs(), runs().iloc[[2]].assign(run_id="another")], ignore_index=True)
    with pytest.raises(FigureError, match=r"several runs of one method and seed .*another"):
        win_rate_vs_budget(doubled, tmp_path)


def test_one_seed_shows_the_runs_own_interval() -> None:
    found = arms(runs()).set_index("method")
    assert found.loc["sft_pos", "win_low"] == pytest.approx(0.1)
    shown = table(runs())
    assert shown.loc[shown["method"] == "ceiling", "95 % interval"].item() == "70.0 to 90.0"


def test_several_seeds_use_tasks_and_seeds(tmp_path: Path) -> None:
    frame = seeded(tmp_path)
    found = arms(frame).set_index("method")
    assert found.loc["rft", "seeds"] == 3
    for name in ("rft", "eef"):
        assert (found["win_low"] < found["win_rate"])[name] and (found["win_rate"] < found["win_high"])[name]
    picture = win_rate_vs_budget(frame, tmp_path / "figure")
    assert picture.is_file() and len(picture.with_suffix(".csv").read_text().splitlines()) == 7
    (tmp_path / "rft1" / "eval" / "episodes.csv").unlink()
    with pytest.raises(FigureError, match=r"rft1/eval/episodes.csv is missing"):
        arms(frame)


def test_markdown_lines_up() -> None:
    lines = markdown(table(runs())).splitlines()
    assert len(lines) == 10 and len({len(line) for line in lines}) == 1
    assert markdown(pd.DataFrame({"a": [1], "long name": ["x"]})).splitlines()[2] == "| 1 | x         |"


def test_lone_baselines_can_be_drawn(tmp_path: Path) -> None:
    assert win_rate_vs_budget(runs().iloc[:2], tmp_path).is_file()
