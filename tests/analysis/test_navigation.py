"""Figure 2 from run folders written here: shares that can be counted by hand, and skills of other environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from eef.analysis.arms import Arm, FigureError
from eef.analysis.drawing import CLIPPED, LOOKS
from eef.analysis.navigation import drawn_arms, navigation
from eef.trajectory import Trajectory, Turn, save

PROMPT = "WebShop [SEP] Instruction: [SEP] a red mug, and price lower than $20 or $30 [SEP] Search"
RESULTS = "Back to Search [SEP] Page 1 [SEP] Next > [SEP] B000000001 [SEP] A $5 Mug of Many Words [SEP] $5.00"


def expert(task: str, length: int, won: bool = False, source: str = "strong", first: str = "search[mug]") -> Trajectory:
    """Searches, turns pages, opens a product, buys."""
    actions = [first, *["click[next >]"] * (length - 3), "click[b000000001]", "click[buy now]"]
    turns = tuple(Turn(action, RESULTS) for action in actions)
    return Trajectory(task, PROMPT, turns, 1.0 if won else 0.5, won, source)


def run(folder: Path, method: str = "eef", seed: int = 0, **more: Any) -> dict[str, Any]:
    """A row of `load_runs` for a run in ``folder``."""
    row = {"run_id": f"webshop__{folder.name}__s{seed}", "env": "webshop", "method": method, "seed": seed, "n": None}
    row |= {"m": 3 if method == "eef" else None, "experts": "strong", "n_test": 4, "hashes": {"catalogue": "c"}}
    return {**row, "folder": str(folder), **more}


def episodes(folder: Path, rows: list[tuple[bool, bool, bool]]) -> None:
    """``eval/episodes.csv`` of (won, next, back) for each task."""
    table = pd.DataFrame(rows, columns=["won", "next", "back"]).assign(prev=False, error=False)
    table["task"] = [f"t{i}" for i in range(len(rows))]
    (folder / "eval").mkdir(parents=True)
    table.to_csv(folder / "eval" / "episodes.csv", index=False)


def shop_runs(root: Path) -> pd.DataFrame:
    rows = []
    win, plain, loss = (True, True, False), (True, False, False), (False, True, True)
    arms = {"rft-2": ("rft", {"n": 2}), "rft-1": ("rft", {"n": 1}), "eef": ("eef", {}), "bc": ("sft_pos", {})}
    arms |= {"cut": ("eef_recovery=False", {"m": 3}), "top": ("ceiling", {"experts": "perfect"})}
    for seed in (0, 1):
        for name, (method, more) in arms.items():
            at = root / f"{name}-{seed}"
            wins = [loss] * 4 if method == "sft_pos" else [win, plain, plain, loss] if seed else [win, win, loss, loss]
            episodes(at, wins)
            if method != "ceiling":
                played = [expert(f"x{seed}", 4, won=True), expert(f"y{seed}", 5), expert(f"z{seed}", 3)]
                save(played, at / "experts" / "trajectories.jsonl")
            rows.append(run(at, method, seed, **more))
    return pd.DataFrame(rows)


def test_shares_and_order_of_figure_2(tmp_path: Path) -> None:
    frame = shop_runs(tmp_path / "runs")
    path = navigation(frame.sample(frac=1, random_state=1), tmp_path)
    table = pd.read_csv(path.with_suffix(".csv"))
    assert table["bar"].tolist() == [
        "expert: wins", "expert: failures", "BC (SFT-pos)", "RFT × 1", "RFT × 2", "EEF, M = 3",
        "EEF, M = 3, no recovery states", "ceiling",
    ]  # fmt: skip
    shares = table.set_index("bar")
    assert shares.loc["expert: wins", ["episodes", "next", "seeds"]].tolist() == [2, 1, 2]
    assert shares.loc["expert: failures", ["episodes", "next"]].tolist() == [4, 0.5]
    assert shares.loc["EEF, M = 3", "next"] == pytest.approx(3 / 5)  # each win counts once
    assert shares.loc["EEF, M = 3", "next_low"] < 3 / 5 < shares.loc["EEF, M = 3", "next_high"]
    assert shares.loc["BC (SFT-pos)", "episodes"] == 0 and pd.isna(shares.loc["BC (SFT-pos)", "next"])
    assert shares["other"].dropna().eq(0).all()  # lost episodes went back, won ones did not
    assert shares.loc["RFT × 1", "run_ids"] == "webshop__rft-1-0__s0 webshop__rft-1-1__s1"
    assert path.stat().st_size > 10_000


def test_each_expert_has_its_bars(tmp_path: Path) -> None:
    frame = shop_runs(tmp_path / "runs").iloc[[0, 2]]
    both = Path(frame["folder"].iloc[1])
    save(
        [expert("x", 4), expert("x", 4, won=True), expert("x", 4, won=True, source="weak")],
        both / "experts" / "trajectories.jsonl",
    )
    frame = frame.assign(experts=["strong", "strong+weak"])
    table = pd.read_csv(navigation(frame, tmp_path).with_suffix(".csv")).set_index("bar")
    assert table.index[:4].tolist() == [f"expert {w}: {k}" for w in ("strong", "weak") for k in ("wins", "failures")]
    assert table["episodes"].tolist()[:4] == [1, 1, 1, 0]


def test_figure_2_refuses_what_cannot_be_drawn(tmp_path: Path) -> None:
    frame = shop_runs(tmp_path / "runs")
    mixed = frame.assign(hashes=[{"catalogue": f"c{i % 2}"} for i in range(len(frame))])
    with pytest.raises(FigureError, match="'catalogue' differs"):
        navigation(mixed, tmp_path)
    (tmp_path / "runs" / "eef-1" / "experts" / "trajectories.jsonl").unlink()
    with pytest.raises(FigureError, match="eef-1/experts/trajectories.jsonl is missing"):
        navigation(frame, tmp_path)


def panels(frame: pd.DataFrame, out: Path, drawn: list[Any]) -> list[Any]:
    """The axes of Figure 2."""
    navigation(frame, out)
    return drawn[-1].axes


def test_next_and_back_are_panels_with_the_same_rows(tmp_path: Path, drawn: list[Any]) -> None:
    left, right = panels(shop_runs(tmp_path / "runs"), tmp_path, drawn)
    assert [axes.get_title("left") for axes in (left, right)] == ["Next", "Prev or Back to Search"]
    names = [label.get_text().replace("\N{NO-BREAK SPACE}", " ") for label in left.get_yticklabels()]
    assert names == [
        "expert (2 wins)", "expert (4 failures)", "BC (SFT-pos) (0 wins)", "RFT × 1 (5 wins)", "RFT × 2 (5 wins)",
        "EEF, M = 3 (5 wins)", "EEF, M = 3, no recovery states\n(5 wins)", "ceiling (5 wins)",
    ]  # fmt: skip
    assert right.get_yticks().tolist() == left.get_yticks().tolist() and not right.get_yticklabels()[0].get_text()
    assert [text.get_text() for text in left.texts] == ["100 %", "50 %", "no wins"] + ["60 %"] * 5
    assert [text.get_text() for text in right.texts] == ["0 %", "0 %", "no wins"] + ["0 %"] * 5
    widths = [bar.get_width() for bar in left.patches]
    assert widths == pytest.approx([100, 50, 60, 60, 60, 60, 60])
    colours = [to_hex(bar.get_facecolor()).upper() for bar in left.patches]
    assert colours[2:5] == [LOOKS[name].colour for name in ("rft", "rft", "eef")]
    assert colours[6] == LOOKS["ceiling"].colour
    seeds = [sorted(group.get_offsets()[:, 0]) for group in left.collections if len(group.get_offsets()) == 2]
    assert [pytest.approx(100 / 3), pytest.approx(100)] in seeds, "a dot for each seed"


def test_an_expert_file_counts_once_over_all_seeds(tmp_path: Path) -> None:
    frame = shop_runs(tmp_path / "runs")
    for folder in frame["folder"]:
        if (Path(folder) / "experts").is_dir():
            one = [expert("x", 4, won=True, source="natural"), expert("y", 5, source="natural")]
            save(one, Path(folder) / "experts" / "trajectories.jsonl")
    table = pd.read_csv(navigation(frame, tmp_path).with_suffix(".csv")).set_index("bar")
    for bar in ("expert: wins", "expert: failures"):
        assert table.loc[bar, ["episodes", "seeds", "next"]].tolist() == [1, 1, 1]
        assert table.loc[bar, ["next_low", "next_high"]].isna().all(), "no interval over seeds"


def test_six_arms_are_drawn_and_all_are_in_the_table(tmp_path: Path, drawn: list[Any]) -> None:
    frame = shop_runs(tmp_path / "runs")
    more = [
        frame[frame["method"] == "eef"].assign(m=1),
        frame[frame["method"] == "eef"].assign(method="eef_restart_only=True"),
        frame[frame["method"] == "eef"].assign(method="eef_random_segments=True"),
    ]
    path = tmp_path / "navigation.csv"
    left, _ = panels(pd.concat([frame, *more]), tmp_path, drawn)
    names = [label.get_text().split(" (")[0].split("\n")[0] for label in left.get_yticklabels()]
    assert names[2:] == [
        "BC", "RFT × 2", "EEF, M = 3", "EEF, M = 3, random segments", "EEF, M = 3, restart only", "ceiling",
    ]  # fmt: skip
    assert len(pd.read_csv(path)) == 2 + 9
    arms = [Arm("rft", "b", 6), Arm("rft", "a", 6), Arm("eef", "a", None, 9, 3), Arm("eef", "a", None, 5)]
    assert drawn_arms(arms, "a", 2) == [arms[1], arms[3]] and drawn_arms(arms, "a", 3) == [arms[1], arms[2], arms[3]]
    frame.loc[frame["method"] == "rft", "experts"] = "a"
    left, _ = panels(pd.concat([frame, frame[frame["method"] == "rft"].assign(experts="b")]), tmp_path, drawn)
    names = [label.get_text().split(" (")[0] for label in left.get_yticklabels()]
    assert {"RFT × 1, experts: a", "RFT × 2, experts: a", "ceiling"} < set(names)


def test_skills_of_an_environment_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its episodes have the columns; its experts' trajectories cannot be looked into."""
    episodes(tmp_path / "a", [(True, True, False), (True, False, True), (False, True, True)])
    frame = pd.DataFrame([run(tmp_path / "a") | {"env": "kiosk"}])
    path = navigation(frame, tmp_path)
    table = pd.read_csv(path.with_suffix(".csv"))
    assert table["bar"].tolist() == ["EEF, M = 3"]
    assert table.loc[0, ["episodes", "next", "other"]].tolist() == [2, 0.5, 0.5]
    assert "no bars for experts" in capsys.readouterr().out
    assert "<!-- next -->" in path.with_suffix(".svg").read_text()


def test_an_environment_without_skills_has_no_figure_2(tmp_path: Path) -> None:
    (tmp_path / "a" / "eval").mkdir(parents=True)
    table = pd.DataFrame({"task": ["t"], "won": [True], "reward": [1.0], "error": [False], "group": ["g"]})
    table.to_csv(tmp_path / "a" / "eval" / "episodes.csv", index=False)
    for env in ("scienceworld", "kiosk"):
        with pytest.raises(FigureError, match=f"{env} has no navigation skills"):
            navigation(pd.DataFrame([run(tmp_path / "a") | {"env": env}]), tmp_path)
    assert not list(tmp_path.glob("navigation*"))


def test_an_interval_that_leaves_0_to_100_is_marked(tmp_path: Path, drawn: list[Any]) -> None:
    frame = shop_runs(tmp_path / "runs")
    rows = []
    for seed, uses_next in enumerate((True, False, False)):
        at = tmp_path / "runs" / f"mine-{seed}"
        episodes(at, [(True, uses_next, False)] * 4)
        rows.append(run(at, "mine", seed, m=None) | {"env": "kiosk"})
    left, _ = panels(pd.DataFrame(rows), tmp_path, drawn)
    assert [line.get_marker() for line in left.lines if line.get_gid() == "clipped"] == ["<", ">"]
    words = " ".join(text.get_text() for text in drawn[-1].texts)
    assert CLIPPED in words and "bars: all wins together" in words
    left, _ = panels(frame, tmp_path, drawn)
    assert not [line for line in left.lines if line.get_gid() == "clipped"], "two seeds have no interval"
