"""The map: interpolation that can be done by hand, cells that are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eef.analysis.arms import FigureError
from eef.analysis.difference_map import difference_map, draw_map
from eef.analysis.statistics import over_seeds
from eef.trajectory import Trajectory, Turn, save

TASKS = 10


def cell(folder: Path, late: float, grades: list[float], wins: dict[str, int]) -> list[dict[str, Any]]:
    """The runs of a cell, two seeds: of ten tasks each arm wins the first ``wins``; RFT spends 100 episodes per n."""
    rows = []
    for name, count in wins.items():
        method, _, number = name.partition("-")
        for seed in (0, 1):
            at = folder / f"{name}-{late}-{grades[2]}-{seed}"
            (at / "eval").mkdir(parents=True)
            table = pd.DataFrame({"task": [f"t{i}" for i in range(TASKS)], "won": [i < count for i in range(TASKS)]})
            table.assign(error=False).to_csv(at / "eval" / "episodes.csv", index=False)
            paged = (Turn("click[next >]", ""),)
            experts = [Trajectory(task, "", paged[:many], 1.0, True) for many, task in enumerate("ab")]
            experts += [Trajectory("c", "", paged), Trajectory("d", "", (), outcome="env_error")]
            save(experts, at / "experts" / "trajectories.jsonl")
            budget = {"rft": 100 * int(number or 0), "eef": 150 + 50 * seed}.get(method, 0)
            row = {
                "run_id": f"webshop__{at.name}",
                "env": "webshop",
                "method": method,
                "experts": "strong",
                "seed": seed,
            }
            row |= {"n": int(number) if method == "rft" else None, "m": int(number) if method == "eef" else None}
            row |= {"episodes": budget, "n_test": TASKS, "hashes": {"catalogue": str(grades)}, "folder": str(at)}
            rows.append(
                {**row, "config": {"expert_noise": {"late": late}, "catalogue": {"grades": grades}, "lr": 1e-3}}
            )
    return rows


ARMS = {"sft_pos": 2, "rft-1": 4, "rft-2": 8, "eef-5": 9}
EASY, HARD = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]


def test_rft_is_interpolated_at_eefs_budget_per_seed(tmp_path: Path) -> None:
    rows = cell(tmp_path / "runs", 0.7, EASY, ARMS) + cell(tmp_path / "runs", 0.0, EASY, {**ARMS, "eef-5": 3})
    rows += cell(tmp_path / "runs", 0.7, HARD, {**ARMS, "eef_recovery=False-5": 10})
    frame = pd.DataFrame(rows).sample(frac=1, random_state=1)
    path = difference_map(frame, "expert_noise.late", "catalogue.grades.2", tmp_path)
    assert path.stat().st_size > 10_000 and path.with_suffix(".svg").is_file()
    table = pd.read_csv(path.with_suffix(".csv"))
    assert table[["x", "y"]].to_numpy().tolist() == [[0.0, 0.2], [0.7, 0.2], [0.7, 0.6]]
    first = table.loc[1]
    assert first["win_rft"] == pytest.approx((0.6 + 0.8) / 2)  # between n = 1 and 2 at 150, all of n = 2 at 200
    assert (first["win_eef"], first["win_bc"], first["episodes_eef"]) == (0.9, 0.2, 175)
    assert first["difference"] == pytest.approx(0.2)  # seeds: 0.3 and 0.1
    assert [first["low"], first["high"]] == pytest.approx([*over_seeds([0.3, 0.1])[1:]], abs=1e-5)
    assert table.loc[0, "difference"] == pytest.approx(-0.4)
    assert first[["seeds", "n_test"]].tolist() == [2, TASKS]
    assert first["expert_win_rate"] == pytest.approx(2 / 3, abs=1e-6) and first["expert_wins_next"] == 0.5
    assert first["x_name"] == "expert_noise.late" and len(first["run_ids"].split()) == 8
    assert not any("recovery" in ids for ids in table["run_ids"])


def test_below_the_smallest_rft_behaviour_cloning_is_the_neighbour(tmp_path: Path) -> None:
    frame = pd.DataFrame(cell(tmp_path / "runs", 0.7, EASY, {"sft_pos": 2, "rft-4": 10, "eef-5": 9}))
    table = pd.read_csv(difference_map(frame, "expert_noise.late", "lr", tmp_path).with_suffix(".csv"))
    assert table["win_rft"].item() == pytest.approx(0.2 + 0.8 * 175 / 400)


def test_nothing_is_extrapolated(tmp_path: Path) -> None:
    arms = {"sft_pos": 2, "rft-1": 4, "eef-5": 9}
    frame = pd.DataFrame(cell(tmp_path / "runs", 0.7, EASY, arms))
    with pytest.raises(
        FigureError, match=r"cell expert_noise.late = 0.7, lr = 0.001, seed 0: EEF spent 150 .* with n = 2$"
    ):
        difference_map(frame, "expert_noise.late", "lr", tmp_path)
    assert not list(tmp_path.glob("difference_map*"))


def test_an_error_on_either_side_leaves_the_pair_out(tmp_path: Path) -> None:
    frame = pd.DataFrame(cell(tmp_path / "runs", 0.7, EASY, ARMS))
    at = tmp_path / "runs" / "rft-2-0.7-0.2-0" / "eval" / "episodes.csv"
    broken = pd.read_csv(at)
    broken.loc[9, "error"] = True  # lost by all arms
    broken.to_csv(at, index=False)
    table = pd.read_csv(difference_map(frame, "expert_noise.late", "lr", tmp_path).with_suffix(".csv"))
    assert table["win_eef"].item() == pytest.approx(18 / 19, abs=1e-6)
    assert table["difference"].item() == pytest.approx(table["win_eef"].item() - table["win_rft"].item(), abs=1e-5)


def test_cells_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    rows = cell(tmp_path / "runs", 0.7, EASY, ARMS)
    frame = pd.DataFrame(rows)
    two = pd.concat([frame, pd.DataFrame(rows[-2:]).assign(m=1, run_id=["x", "y"])])
    for wrong in (frame[frame["method"] != "sft_pos"], frame[frame["method"] != "rft"], two):
        with pytest.raises(
            FigureError, match=r"cell expert_noise.late = 0.7, lr = 0.001 needs the runs of one EEF arm"
        ):
            difference_map(wrong, "expert_noise.late", "lr", tmp_path)
    apart = frame[(frame["method"] != "eef") | (frame["seed"] == 0)]
    apart = apart[(apart["method"] != "sft_pos") | (apart["seed"] == 1)]
    with pytest.raises(FigureError, match=r"lr = 0.001: its arms have no seed in common"):
        difference_map(apart, "expert_noise.late", "lr", tmp_path)
    with pytest.raises(
        FigureError, match=r"'expert_noise.early': 'early' is not in the configuration .*\(it has: late\)"
    ):
        difference_map(frame, "expert_noise.early", "lr", tmp_path)
    with pytest.raises(FigureError, match="no finished runs"):
        difference_map(pd.DataFrame(), "expert_noise.late", "lr", tmp_path)


def test_catalogues_may_differ_only_where_an_axis_changes_them(tmp_path: Path) -> None:
    frame = pd.DataFrame(cell(tmp_path / "runs", 0.7, EASY, ARMS) + cell(tmp_path / "runs", 0.0, HARD, ARMS))
    with pytest.raises(FigureError, match="'catalogue' differs"):
        difference_map(frame, "expert_noise.late", "lr", tmp_path)
    path = difference_map(frame, "expert_noise.late", "catalogue.grades", tmp_path)  # two of four cells have runs
    assert pd.read_csv(path.with_suffix(".csv"))["y"].tolist() == ["[0.2, 0.2, 0.6]", "[0.5, 0.3, 0.2]"]
    mixed = frame.assign(hashes=[{"catalogue": str(i)} for i in range(len(frame))])
    with pytest.raises(FigureError, match="'catalogue' differs"):
        difference_map(mixed, "expert_noise.late", "catalogue.grades", tmp_path)


def test_axes_are_in_words_and_the_headline_setting_is_framed(tmp_path: Path, drawn: list[Any]) -> None:
    frame = pd.DataFrame(cell(tmp_path / "runs", 0.7, EASY, ARMS) + cell(tmp_path / "runs", 0.0, EASY, ARMS))
    difference_map(frame, "expert_noise.late", "lr", tmp_path, "probability of a late error", headline=[0.7, 1e-3])
    axes = drawn[-1].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("probability of a late error", "lr")
    (framed,) = [patch for patch in axes.patches if patch.get_gid() == "headline"]
    assert round(framed.get_x() + framed.get_width() / 2) == 1, "the second column, 0.7"
    path = difference_map(frame, "expert_noise.late", "lr", tmp_path, headline=[0.75, 1e-3])
    assert drawn[-1].axes[0].get_xlabel() == "expert noise: late" and path.with_suffix(".pdf").is_file()
    assert not [patch for patch in drawn[-1].axes[0].patches if patch.get_gid() == "headline"]
    with pytest.raises(FigureError, match=r"headline=\[0.7\]: give the values of expert_noise.late and lr "):
        difference_map(frame, "expert_noise.late", "lr", tmp_path, headline=[0.7])


def test_a_cell_of_two_seeds_is_pale_and_empty_cells_say_so(tmp_path: Path, drawn: list[Any]) -> None:
    rows = cell(tmp_path / "runs", 0.7, EASY, ARMS) + cell(tmp_path / "runs", 0.0, EASY, {**ARMS, "eef-5": 3})
    rows += cell(tmp_path / "runs", 0.7, HARD, ARMS)
    path = difference_map(pd.DataFrame(rows), "expert_noise.late", "catalogue.grades.2", tmp_path)
    texts = [text.get_text() for text in drawn[-1].axes[0].texts]
    assert texts.count("2 seeds") == 3 and not any(text.startswith("[") for text in texts)
    assert texts.count("not run") == 4 and "▲ +20.0" in texts and "▼ −40.0" in texts
    table = pd.read_csv(path.with_suffix(".csv")).assign(seeds=3, low=[-0.1, 0.1, -0.1], high=[0.1, 0.3, 0.3])
    draw_map(table, pd.DataFrame(rows), tmp_path)
    axes = drawn[-1].axes[0]
    light = [sum(patch.get_facecolor()[:3]) for patch in axes.patches if patch.get_fill()]
    assert light[2] > light[1], "the cell whose interval includes 0 is paler than that of an equal difference"
    assert any("not to scale" in text.get_text() for text in drawn[-1].texts)
