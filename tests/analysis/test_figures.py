"""Figure 3, learning curves, and tables of all arms: which runs may be shown together, and stable files."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Text

from eef.analysis.arms import (
    NUMBERS,
    RUN_COLUMNS,
    Arm,
    FigureError,
    arm_name,
    arm_names,
    arm_of,
    arm_table,
    by_arm,
    comparable,
    is_ablation,
    most_common_experts,
    plain_eef,
    read_episodes,
    run_table,
    variant,
)
from eef.analysis.drawing import CLIPPED, LOOKS, looks
from eef.analysis.figures import learning_curves, paired_differences, win_rate_vs_budget
from eef.analysis.statistics import over_seeds
from eef.analysis.tables import markdown, paired_table, result_table, results_table, spread
from eef.methods import BUDGET
from eef.tracking.runs import log_metrics


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
    frame["hashes"] = pd.Series([hashes if i == 2 else each for i, each in enumerate(frame["hashes"])], dtype=object)
    return frame


def test_files_size_and_the_same_bytes_twice(tmp_path: Path) -> None:
    shuffled = runs().sample(frac=1, random_state=3)
    one = win_rate_vs_budget(runs(), tmp_path / "one")
    two = win_rate_vs_budget(shuffled, tmp_path / "two")
    assert struct.unpack(">II", one.read_bytes()[16:24])[0] == 1620
    for suffix in (".csv", ".svg", ".png", ".pdf"):
        assert one.with_suffix(suffix).read_bytes() == two.with_suffix(suffix).read_bytes()
    assert "<dc:date>" not in one.with_suffix(".svg").read_text()
    pdf = one.with_suffix(".pdf").read_bytes()
    assert b"/MediaBox [ 0 0 486 " in pdf and b"/FontFile2" in pdf and b"Date" not in pdf, "6.75 inches, TrueType"


def test_the_table_behind_the_figure(tmp_path: Path) -> None:
    path = win_rate_vs_budget(runs(), tmp_path).with_suffix(".csv")
    lines = path.read_text().splitlines()
    assert lines[0].split(",") == RUN_COLUMNS and len(lines) == 9
    assert "eef,1,,both,0,100,800,6000,0.32,0.22,0.42,0.32,,,0.443457,50,0," in lines[2]
    assert "0.333333" in path.read_text()
    scored = run_table(runs().assign(mean_max_score=[0.5, *[None] * (len(runs()) - 1)]))
    assert scored.columns[scored.columns.get_loc("mean_reward") + 1] == "mean_max_score"
    assert scored.set_index("method").loc["sft_pos", "mean_max_score"] == 0.5
    assert run_table(runs())["run_id"].tolist() == run_table(runs().iloc[::-1])["run_id"].tolist()


def test_runs_with_different_stamps_are_refused(tmp_path: Path) -> None:
    mixed = with_hashes({"catalogue": "c2", "chat": "t1"})
    with pytest.raises(FigureError, match=r"'catalogue' differs: c1 in .* and .* more; c2 in webshop__rft-1"):
        win_rate_vs_budget(mixed, tmp_path)
    mixed = with_hashes({"catalogue": "c1"})
    with pytest.raises(FigureError, match=r"'chat' differs.*none in webshop__rft-1"):
        results_table(mixed)
    mixed = runs()
    mixed.loc[0, "env"] = "scienceworld"
    with pytest.raises(FigureError, match="'env' differs"):
        comparable(mixed)
    assert not list(tmp_path.iterdir())


def test_runs_without_experts_are_drawn(tmp_path: Path) -> None:
    frame = runs()[lambda table: table["experts"] == "strong"].assign(experts=None)
    assert win_rate_vs_budget(frame, tmp_path).is_file()


def test_nothing_to_draw_and_doubled_runs(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="no finished runs"):
        win_rate_vs_budget(pd.DataFrame(), tmp_path)
    doubled = pd.concat([runs(), runs().iloc[[2]].assign(run_id="another")], ignore_index=True)
    with pytest.raises(FigureError, match=r"several runs of one method and seed .*another"):
        win_rate_vs_budget(doubled, tmp_path)


def test_one_seed_shows_no_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = arm_table(runs())
    assert table[["win_low", "win_high"]].isna().all(axis=None) and table["win_rate"].notna().all()
    assert results_table(runs())["95 % interval"].eq("").all()
    bars, bands = [], []
    monkeypatch.setattr(Axes, "axhspan", lambda axes, *ends, **_: bands.append(ends))
    draw = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda *a, yerr=None, **k: bars.append(yerr) or draw(*a, yerr=yerr, **k))
    assert "no intervals: one seed per method" in win_rate_vs_budget(runs(), tmp_path).with_suffix(".svg").read_text()
    assert not bars and not bands


def test_one_result_is_a_small_table_for_reading() -> None:
    result = {"method": "eef", "experts": "strong", "n": None, "m": 5}
    result |= {"win_rate": 0.51234, "win_low": 0.4, "win_high": 0.6}
    result |= {"mean_reward": 0.712345, "n_test": 60, "episodes": 84, "seconds": 41.2345, "run_id": "shop__eef__s0" * 9}
    table = result_table(result)
    assert table.iloc[0].tolist() == ["EEF, M = 5", "51.2 %", "40.0 to 60.0 %", "0.712", 60, 84, "41"]
    assert result["run_id"] in table.to_html() and "errors" not in table, "the run's name is not cut"
    without = {**result, "win_rate": None, "win_low": None, "win_high": None, "mean_reward": None, "errors": 60}
    assert result_table(without).iloc[0].tolist()[1:] == ["- %", "- to - %", "-", 60, 84, "41", 60]


def test_tables_count_errors_of_simulations_and_dropped_experts(tmp_path: Path) -> None:
    plain = results_table(runs())
    assert list(plain.columns[-3:]) == ["errors", "simulation errors", "experts dropped"]
    assert set(run_table(runs())) == set(RUN_COLUMNS)
    frame = runs().assign(simulation_errors=0, expert_divergences=0, expert_errors=0)
    assert set(run_table(frame)) == set(RUN_COLUMNS), "committed tables keep their columns"
    frame.loc[frame["method"] == "eef", ["simulation_errors", "expert_divergences", "expert_errors"]] = [4, 2, 1]
    shown = results_table(frame)
    eef = shown["method"].str.startswith("EEF")
    assert set(shown.loc[eef, "simulation errors"]) == {"4"} and set(shown.loc[eef, "experts dropped"]) == {"3"}
    assert set(shown.loc[~eef, "simulation errors"]) == {"0"} and set(shown.loc[~eef, "experts dropped"]) == {"0"}
    path = win_rate_vs_budget(frame, tmp_path).with_suffix(".csv")
    assert "errors,simulation_errors,expert_divergences,expert_errors,run_id" in path.read_text()


def test_the_intervals_of_figure_3_are_student_t_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = seeded(tmp_path)
    frame.loc[frame["folder"] == str(tmp_path / "rft0"), "win_rate"] = 0.0
    frame.loc[frame["folder"] == str(tmp_path / "eef0"), "win_rate"] = 0.5
    table = arm_table(frame).set_index("method")
    assert table.loc["rft", "seeds"] == 3
    for name in ("rft", "eef"):
        rates = frame.loc[frame["method"] == name, "win_rate"]
        ends = tuple(table.loc[name, ["win_rate", "win_low", "win_high"]])
        assert ends == pytest.approx(over_seeds(rates)), name
    half: list[float] = []
    draw = Axes.errorbar

    def errorbar(*places: Any, yerr: Any = None, **style: Any) -> Any:
        half.extend(yerr[0] if yerr else [])
        return draw(*places, yerr=yerr, **style)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    win_rate_vs_budget(frame, tmp_path / "drawn")
    assert sorted(half) == pytest.approx(sorted(100 * (table["win_rate"] - table["win_low"])))
    assert max(half) == pytest.approx(4.30265 * 40 / 3, rel=1e-4)  # rates of 0, 40 and 40 %
    picture = win_rate_vs_budget(frame, tmp_path / "figure")
    assert picture.is_file() and len(picture.with_suffix(".csv").read_text().splitlines()) == 7
    (tmp_path / "rft1" / "eval" / "episodes.csv").unlink()
    with pytest.raises(FigureError, match=r"rft1/eval/episodes.csv is missing"):
        read_episodes(frame[frame["method"] == "rft"])


def test_markdown_lines_up() -> None:
    lines = markdown(results_table(runs())).splitlines()
    assert len(lines) == 10 and len({len(line) for line in lines}) == 1
    assert markdown(pd.DataFrame({"a": [1], "long name": ["x"]})).splitlines()[2] == "| 1 | x         |"


def test_lone_baselines_can_be_drawn(tmp_path: Path) -> None:
    assert win_rate_vs_budget(runs().iloc[:2], tmp_path).is_file()


def compared(folder: Path, seeds: dict[str, tuple[int, ...]] | None = None, graded: bool = True) -> pd.DataFrame:
    """Five arms of 12 tasks, of which 4 are hard; the task's number decides which arm wins it."""
    plans: dict[str, tuple[str, dict[str, Any], int]] = {
        "bc": ("sft_pos", {}, 3), "rft": ("rft", {"n": 2}, 6), "eef": ("eef", {"m": 5}, 9),
        "both": ("eef", {"m": 5, "experts": "strong+weak"}, 12), "cut": ("eef_recovery=False", {"m": 5}, 8),
    }  # fmt: skip
    rows = []
    for name, (method, more, wins) in plans.items():
        for seed in (seeds or {}).get(name, (0, 1)):
            at = folder / f"{name}{seed}"
            (at / "eval").mkdir(parents=True)
            episodes = pd.DataFrame({"task": [f"t{i}" for i in range(12)], "won": [i < wins for i in range(12)]})
            if graded:
                episodes["group"] = ["hard" if i >= 8 else "easy" for i in range(12)]
            episodes.to_csv(at / "eval" / "episodes.csv", index=False)
            rows.append(row(method, wins / 12, seed, str(at), **more) | {"episodes": 100 * wins + seed})
    return pd.DataFrame(rows)


def test_arms_in_words_and_in_order(tmp_path: Path) -> None:
    groups = by_arm(compared(tmp_path).sample(frac=1, random_state=2))
    names = ["BC (SFT-pos)", "RFT × 2", "EEF, M = 5", "EEF, M = 5", "EEF, M = 5, no recovery states"]
    assert [arm_name(arm) for arm in groups] == names
    assert arm_name(list(groups)[3], experts=True) == "EEF, M = 5, experts: strong+weak"
    assert arm_name(Arm("ceiling", "perfect"), experts=True) == "ceiling" and arm_name(Arm("new", "x")) == "new"


@pytest.mark.parametrize(
    ("method", "options", "numbers", "name"),
    [
        ("eef", {"recovery": False}, {"m": 5}, "EEF, M = 5, no recovery states"),
        ("eef", {"restart_only": True}, {"m": 5}, "EEF, M = 5, restart only"),
        ("eef", {"random_segments": True, "all_experts": True}, {}, "EEF, random segments, experts' wins too"),
        ("rft", {"random_navigation": 0.25}, {"n": 6}, "RFT × 6, random navigation 0.25"),
        ("mine", {}, {"m": 1}, "mine, M = 1"),
        ("mine", {"my_size": 3, "best": True}, {"n": 2, "m": 1}, "mine, my_size=3, best=True, N = 2, M = 1"),
        ("eef_twice", {}, {"m": 5}, "eef_twice, M = 5"),
        ("eef_twice", {"size": 3}, {}, "eef_twice, size=3"),
        ("eto", {}, {"n": 1}, "ETO"),
        ("eto", {}, {"n": 2}, "ETO, N = 2"),
        ("eef", {}, {}, "EEF"),
        ("eef", {}, {"m": 5, "k": 4}, "EEF, M = 5, K = 4"),
        ("eef", {"recovery": False}, {"m": 5, "k": 4}, "EEF, M = 5, no recovery states, K = 4"),
        ("eef_adaptive", {}, {"m": 2}, "EEF planned, M = 2"),
        ("eef_adaptive", {"adaptive": False}, {"m": 5, "k": 2}, "EEF planned, M = 5, evenly spaced states, K = 2"),
        ("eef_soft", {"weighted": False}, {"m": 5}, "EEF soft, M = 5, all weights 1"),
        ("eef_pairs", {"verified": False}, {"m": 5}, "EEF with pairs, M = 5, flips in doubt too"),
    ],
)
def test_names_of_arms_have_all_options(method: str, options: Any, numbers: dict[str, int], name: str) -> None:
    arm = Arm(variant(method, options), "strong", **numbers)
    assert arm_name(arm) == name and arm_of(arm._asdict()) == arm
    assert is_ablation(arm.method) == (method == "eef" and bool(options))


def test_arms_of_a_new_method_are_called_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "legend", lambda axes, handles, **_: labels.extend(h.get_label() for h in handles))
    monkeypatch.setattr("eef.analysis.figures.place_labels", lambda axes, each: labels.extend(e.text for e in each))
    one = pd.DataFrame([row("rft", 0.3, n=1), row("mine, size=3", 0.4, m=2), row("level", 0.1, m=3) | {"episodes": 0}])
    win_rate_vs_budget(one, tmp_path)
    names = ["RFT × 1", "level, M = 3", "mine, size=3, M = 2"]
    assert labels == ["level", *names]
    assert set(results_table(one)["method"]) == set(names) == set(arm_names(by_arm(one)).values())
    several = pd.DataFrame([row("mine", 0.4, m=m, n=2, experts=e) for m in (1, 5) for e in ("strong", "weak")])
    labels.clear()
    win_rate_vs_budget(several, tmp_path)
    assert labels == ["M=1", "M=5"] * 2 + ["mine, N = 2", "mine, N = 2, experts: weak"], "strong is the usual one"
    assert "mine, N = 2, M = 1, experts: weak" in set(results_table(several)["method"])


def test_k_is_a_column_and_a_line_of_its_own_only_where_a_run_has_it(tmp_path: Path, monkeypatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "legend", lambda axes, handles, **_: labels.extend(h.get_label() for h in handles))
    plain = pd.DataFrame([row("eef", 0.4, m=m) for m in (1, 5)])
    both = pd.concat([plain, pd.DataFrame([row("eef", 0.5, m=5) | {"k": 4, "run_id": "k4"}])], ignore_index=True)
    assert "k" not in run_table(plain) and "k" not in arm_table(plain)
    assert run_table(both)["k"].dropna().tolist() == arm_table(both)["k"].dropna().tolist() == [4]
    assert [arm_name(arm) for arm in by_arm(both)] == ["EEF, M = 1", "EEF, M = 5", "EEF, M = 5, K = 4"]
    win_rate_vs_budget(both, tmp_path)
    assert labels == ["EEF, M states", "EEF, M = 5, K = 4"]
    assert set(plain_eef(both)["run_id"]) == set(plain["run_id"])
    assert set(BUDGET) == set(NUMBERS) == set(Arm._fields[2:])


def test_groups_of_any_environment_are_in_the_tables(tmp_path: Path) -> None:
    names = ["win_rate_low", "win_rate_short"]
    own = runs().drop(columns="win_rate_easy").assign(win_rate_short=0.25, win_rate_low=0.5)
    written = pd.read_csv(win_rate_vs_budget(own, tmp_path).with_suffix(".csv"))
    assert [name for name in written if name.startswith("win_rate_")] == names and written["win_rate_low"].eq(0.5).all()
    assert list(run_table(own)) == [*RUN_COLUMNS[:11], *names, *RUN_COLUMNS[14:]]
    assert {"low", "short"} <= {*results_table(own)}
    many = own.assign(**{f"win_rate_{i}": 0.1 for i in range(3)})
    assert list(run_table(many)) == RUN_COLUMNS, "more than four"
    frame = compared(tmp_path / "runs")
    for folder in frame["folder"]:
        episodes = pd.read_csv(Path(folder) / "eval" / "episodes.csv")
        episodes["group"] = episodes["group"].map({"hard": "long", "easy": "short"})
        episodes.to_csv(Path(folder) / "eval" / "episodes.csv", index=False)
    table = paired_table(frame)
    assert (4 * table["long_difference"]).round(6).tolist() == [1, 4, 0, 1, 4, 0, -1]
    assert table["long_pairs"].eq(8).all() and table["short_pairs"].eq(16).all() and "hard_pairs" not in table


def test_paired_differences_of_the_default_pairs(tmp_path: Path) -> None:
    table = paired_table(compared(tmp_path), out=tmp_path)
    assert [tuple(pair) for pair in table[["method", "experts", "against_method"]].to_numpy()] == [
        ("eef", "strong", "rft"), ("eef", "strong+weak", "rft"),
        ("rft", "strong", "sft_pos"), ("eef", "strong", "sft_pos"), ("eef", "strong+weak", "sft_pos"),
        ("eef_recovery=False", "strong", "sft_pos"), ("eef_recovery=False", "strong", "eef"),
    ]  # fmt: skip
    assert (12 * table["difference"]).round(6).tolist() == [3, 6, 3, 6, 9, 5, -1]
    assert (4 * table["hard_difference"]).round(6).tolist() == [1, 4, 0, 1, 4, 0, -1]
    assert table["pairs"].eq(24).all() and table["hard_pairs"].eq(8).all() and table["seeds"].eq(2).all()
    assert table[["low", "high", "p"]].isna().all(axis=None), "both seeds have the same difference"
    assert table["gains"].tolist() == [2, 2, 2, 2, 2, 2, 0]
    assert table.loc[0, ["episodes", "against_episodes"]].tolist() == [900.5, 600.5]
    written = pd.read_csv(tmp_path / "paired.csv")
    assert list(written) == list(table) and written["n"].isna().sum() == 6
    again = paired_table(compared(tmp_path / "again").iloc[::-1], out=tmp_path / "again")
    assert (tmp_path / "paired.csv").read_bytes() == (tmp_path / "again" / "paired.csv").read_bytes() and len(again)


def test_paired_differences_of_chosen_arms(tmp_path: Path) -> None:
    frame = compared(tmp_path, graded=False)
    one = paired_table(frame, [(("eef", "strong+weak", None, 5), ["eef", "strong", None, 5])])
    assert one["difference"].tolist() == [0.25]
    assert one[["hard_difference", "hard_pairs"]].isna().all(axis=None)
    reference = paired_table(frame, ("rft", "strong", 2))
    assert reference["against_method"].eq("rft").all() and len(reference) == 4
    with pytest.raises(FigureError, match=r"no runs of \('rft', 'strong', 4, None, None\); there are \('sft_pos', "):
        paired_table(frame, ("rft", "strong", 4))
    with pytest.raises(FigureError, match="nothing to compare with these arms alone: EEF, M = 5"):
        paired_table(frame[frame["method"] == "eef"])
    with pytest.raises(FigureError, match="no finished runs"):
        paired_table(pd.DataFrame())
    with pytest.raises(FigureError, match="'chat' differs"):
        paired_table(frame.assign(hashes=[{"chat": str(i)} for i in range(len(frame))]))


def test_arms_are_compared_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    frame = compared(tmp_path, {"bc": (0, 1, 2), "rft": (1, 2), "eef": (1, 3), "both": (4,)})
    pair = [(("eef", "strong", None, 5), ("rft", "strong", 2))]
    table = paired_table(frame, pair)
    assert table[["seeds", "pairs"]].to_numpy().tolist() == [[1, 12]]
    assert table.loc[0, ["episodes", "against_episodes"]].tolist() == [901, 601]
    with pytest.raises(FigureError, match=r"strong\+weak and RFT × 2, experts: strong have no seed in common"):
        paired_table(frame)
    at = tmp_path / "rft1" / "eval" / "episodes.csv"
    pd.read_csv(at).iloc[:-1].to_csv(at, index=False)
    with pytest.raises(FigureError, match=r"RFT × 2, experts: strong: .* not run on the same .* task t11"):
        paired_table(frame, pair)


def drawn_of(frame: pd.DataFrame, out: Path, drawn: list[Any]) -> Any:
    """matplotlib's figure of win rate against budget."""
    win_rate_vs_budget(frame, out)
    return drawn[-1]


def main_comparison(seeds: int = 3) -> pd.DataFrame:
    """The seven arms of the main comparison; the three EEF arms with M = 5 have the same budget in each seed."""
    arms: list[tuple[str, float, dict[str, Any]]] = [
        ("sft_pos", 0.41, {}), ("rft", 0.48, {"n": 6}), ("eef", 0.66, {"m": 1}), ("eef", 0.77, {"m": 5}),
        ("eef_restart_only=True", 0.59, {"m": 5}), ("eef_random_segments=True", 0.72, {"m": 5}),
        ("ceiling", 0.88, {"experts": "perfect"}),
    ]  # fmt: skip
    rows = []
    for seed in range(seeds):
        for place, (method, rate, more) in enumerate(arms):
            each = row(method, rate + 0.01 * seed * (place - 3), seed, **more)
            rows.append(
                {
                    **each,
                    "run_id": f"webshop__{place}__s{seed}",
                    "episodes": each["episodes"] + seed * bool(more),
                }
            )
    return pd.DataFrame(rows)


def dots(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """Places of the dots of single seeds, by colour."""
    groups = [group for group in axes.collections if group.get_gid() == "runs"]
    return {to_hex(group.get_edgecolor()[0]).upper(): [tuple(at) for at in group.get_offsets()] for group in groups}


def test_each_marker_and_dot_stands_at_its_true_budget(tmp_path: Path, drawn: list[Any]) -> None:
    frame = main_comparison()
    left, _ = drawn_of(frame, tmp_path, drawn).axes
    means = {line.get_color(): line.get_xydata().tolist() for line in left.lines if line.get_markersize() == 6.5}
    assert means["#D55E00"] == [[pytest.approx(101), pytest.approx(66 - 1)], [pytest.approx(501), pytest.approx(77)]]
    assert means["#0B4F8A"] == [[pytest.approx(601), pytest.approx(48 - 2)]]
    (small,) = [line for line in left.lines if line.get_color() == "#E69F00" and line.get_marker() == "^"]
    assert small.get_xydata()[0].tolist() == pytest.approx([501, 60]), "at equal budget no point is moved"
    single = dots(left)
    assert single["#0B4F8A"] == [(600 + seed, pytest.approx(48 - 2 * seed)) for seed in range(3)]
    assert single["#333333"] == [(0, pytest.approx(41 - 3 * seed)) for seed in range(3)], "BC, without simulations"
    assert len(single) == 6, "all methods have dots"


def test_the_panel_of_differences_pairs_equal_seeds(tmp_path: Path, drawn: list[Any]) -> None:
    frame = main_comparison()
    frame = frame[(frame["method"] != "ceiling") | (frame["seed"] != 1)]
    gains = paired_differences(frame, Arm("rft", "strong", 6))
    assert [arm_name(arm) for arm in gains] == [
        "BC (SFT-pos)", "EEF, M = 1", "EEF, M = 5", "EEF, M = 5, random segments", "EEF, M = 5, restart only",
        "ceiling",
    ]  # fmt: skip
    ceiling = gains[Arm("ceiling", "perfect")]
    assert ceiling.index.tolist() == [0, 2] and ceiling.tolist() == pytest.approx([0.40, 0.50])
    _, right = drawn_of(frame, tmp_path, drawn).axes
    eef = gains[Arm("eef", "strong", None, 5)]
    assert eef.tolist() == pytest.approx([0.29, 0.31, 0.33])
    shown = [group.get_offsets()[:, 0].tolist() for group in right.collections if len(group.get_offsets()) == 3]
    assert [pytest.approx(29), pytest.approx(31), pytest.approx(33)] in shown
    mean, low, high = (100 * end for end in over_seeds(eef))
    ends = [path.vertices[:, 0].tolist() for group in right.collections for path in group.get_paths()]
    assert [pytest.approx(low), pytest.approx(high)] in ends and mean == pytest.approx(31)
    assert any(line.get_xdata() == [0, 0] for line in right.lines if len(line.get_xdata()) == 2), "a line at zero"
    assert right.get_xlabel() == "minus RFT × 6, points"
    without_rft = frame[frame["method"] != "rft"]
    assert drawn_of(without_rft, tmp_path, drawn).axes[1].get_xlabel() == "minus BC (SFT-pos), points"
    assert len(drawn_of(frame[frame["seed"] == 0], tmp_path, drawn).axes) == 1, "one seed has no differences"


def test_all_ablations_are_drawn_with_names_for_people(tmp_path: Path, drawn: list[Any]) -> None:
    left, _ = drawn_of(main_comparison(), tmp_path, drawn).axes
    names = [text.get_text() for text in left.get_legend().get_texts()]
    assert names == [
        "BC (SFT-pos)", "RFT × 6", "EEF, M states", "EEF, M = 5, random segments", "EEF, M = 5, restart only",
        "ceiling: SFT on perfect demonstrations",
    ]  # fmt: skip
    parts = [row(f"eef_part{i}=False", 0.3, m=5) for i in range(8)]
    many = pd.DataFrame([row("rft", 0.2, n=5), row("eto", 0.2, n=1), row("eef", 0.4, m=5), *parts])
    (axes,) = drawn_of(many, tmp_path, drawn).axes
    assert sum("part" in text.get_text() for text in axes.get_legend().get_texts()) == 8


def test_with_many_lines_ablations_are_in_the_panel_of_differences_alone(tmp_path: Path, drawn: list[Any]) -> None:
    parts = [row(f"eef_part{i}=False", 0.3 + seed / 20, seed, m=5) for i in range(8) for seed in range(3)]
    frame = pd.concat([main_comparison(), pd.DataFrame(parts)])
    picture = drawn_of(frame, tmp_path, drawn)
    left, right = picture.axes
    assert not any("part" in text.get_text() for text in left.get_legend().get_texts())
    assert sum("part" in text.get_text() for text in right.get_yticklabels()) == 8
    assert any("left panel: BC, RFT, EEF, ceiling" in text.get_text() for text in picture.texts)


def test_a_method_has_one_colour_and_marker_in_all_pictures() -> None:
    each = list(LOOKS.values())
    assert len({look.colour for look in each}) == len({look.marker for look in each}) == len(each)
    alone = looks([Arm("eef_restart_only=True", "strong", None, 5)])
    among = looks(by_arm(main_comparison()))
    assert set(alone.items()) <= set(among.items()) and len(set(among.values())) == 6
    strong, weak, both = (Arm("eef", experts, None, 5) for experts in ("strong", "weak", "strong+weak"))
    drawn = looks([both, weak, strong, Arm("eef", "strong", None, 5, 4)])
    assert {(look.colour, look.marker) for look in drawn.values()} == {LOOKS["eef"][:2]}
    assert len({look.line for look in drawn.values()}) == len({look.fill for look in drawn.values()}) == 4
    assert drawn[strong] == LOOKS["eef"], "the first is solid and filled"
    unknown = looks([Arm(f"mine{i}", "strong") for i in range(28)])
    assert len(set(unknown.values())) == 28, "no two share a look while there are enough"


def test_labels_of_a_crowded_picture_touch_nothing(tmp_path: Path, drawn: list[Any]) -> None:
    rows = []
    for seed in range(4):
        for place, method in enumerate(("sft_pos", "sft_all", "nat", "mine")):
            rows.append(row(method, 0.45 + 0.004 * place + 0.01 * seed, seed) | {"episodes": 0})
        for m in (1, 2, 3, 5):
            rows += [row("eef", 0.47 + 0.01 * m + 0.02 * seed, seed, m=m, experts=e) for e in ("strong", "both")]
            rows += [row("rft", 0.46 + 0.01 * m + 0.02 * seed, seed, n=m)]
        rows.append(row("ceiling", 0.56 + 0.01 * seed, seed, experts="perfect"))
    frame = pd.DataFrame(rows)
    frame["run_id"] = [f"webshop__{i}__s{seed}" for i, seed in enumerate(frame["seed"])]
    figure = drawn_of(frame, tmp_path, drawn)
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    labels = [text for text in axes.texts if text.get_gid() == "point label"]
    assert len(labels) == 4 + 8 + 4 + 1
    boxes = [Text.get_window_extent(text, renderer) for text in labels]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number]), labels[number]
    for line in axes.lines:
        path = line.get_transform().transform_path(line.get_path())
        for text, box in zip(labels, boxes, strict=True):
            if line.get_linestyle() != "None":
                assert not path.intersects_bbox(box, filled=False), (text, line)
            if line.get_marker() not in ("None", ""):
                half = line.get_markersize() * figure.dpi / 144
                near = [box.padded(half).contains(*vertex) for vertex in path.vertices]
                assert not any(near), (text, line)
    for group in axes.collections:
        for text, box in zip(labels, boxes, strict=True):
            if type(group).__name__ == "PathCollection":
                places = group.get_offset_transform().transform(group.get_offsets())
                assert not any(box.contains(*place) for place in places), (text, "a dot")
            else:
                paths = [group.get_transform().transform_path(path) for path in group.get_paths()]
                assert not any(path.intersects_bbox(box, filled=False) for path in paths), (text, "an interval")


def test_learning_curves_draw_a_shared_stage_once(tmp_path: Path) -> None:
    (tmp_path / "stages" / "bc").mkdir(parents=True)
    rows = []
    for method, n in (("sft_pos", None), ("rft", 1)):
        folder = tmp_path / method
        folder.mkdir()
        (folder / "bc").symlink_to(tmp_path / "stages" / "bc")
        stages = ["bc"] if n is None else ["bc", "sft-0"]
        losses = [{"stage": s, "step": i, "epoch": i / 3, "loss": 2.0 / i} for s in stages for i in (1, 2, 3)]
        log_metrics(folder, [*losses, {"stage": "s0-0-0", "episodes": 5}])
        about = {
            "run_id": method,
            "env": "webshop",
            "method": method,
            "seed": 0,
            "experts": "strong",
            "n": n,
            "m": None,
        }
        rows.append({**about, "folder": str(folder)})
    path = learning_curves(pd.DataFrame(rows), tmp_path / "out")
    assert path.name == "learning_curves.png" and path.stat().st_size > 10_000
    table = pd.read_csv(path.with_suffix(".csv"))
    assert list(table["arm"]) == ["BC, shared"] * 3 + ["RFT × 1"] * 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(FigureError, match="logged a training loss"):
        learning_curves(pd.DataFrame([{**rows[0], "folder": str(tmp_path / "empty")}]), tmp_path / "out")


def test_two_seeds_have_no_interval_in_a_picture(tmp_path: Path, drawn: list[Any]) -> None:
    figure = drawn_of(main_comparison(2), tmp_path, drawn)
    bars = [group for axes in figure.axes for group in axes.collections if group.get_gid() != "runs"]
    assert not bars and any("no intervals: fewer than 3 seeds" in text.get_text() for text in figure.texts)
    assert len(dots(figure.axes[0])) == 6, "the runs themselves are drawn"


def test_an_interval_that_leaves_the_axes_is_marked(tmp_path: Path, drawn: list[Any]) -> None:
    rates = {"rft": (0.0, 0.1, 0.9), "ceiling": (1.0, 0.9, 0.2)}
    frame = pd.DataFrame([row(name, rate, seed, n=6) for name, each in rates.items() for seed, rate in enumerate(each)])
    figure = drawn_of(frame.assign(run_id=range(6)).astype({"run_id": str}), tmp_path, drawn)
    marks = [[line.get_marker() for line in axes.lines if line.get_gid() == "clipped"] for axes in figure.axes]
    assert marks == [["v", "^", "v", "^"], ["<", ">"]] and any(CLIPPED in text.get_text() for text in figure.texts)
    figure = drawn_of(main_comparison(), tmp_path, drawn)
    assert not [line for axes in figure.axes for line in axes.lines if line.get_gid() == "clipped"]


def test_intervals_over_each_other_have_different_widths(tmp_path: Path, drawn: list[Any]) -> None:
    frame = main_comparison(5)
    frame["win_rate"] += [0.3 * (seed - 2) for seed in frame["seed"]]  # wide intervals
    left = drawn_of(frame, tmp_path, drawn).axes[0]
    bars = [group for group in left.collections if group.get_gid() != "runs"]
    at_502 = [bar.get_linewidth()[0] for bar in bars if bar.get_paths()[0].vertices[0, 0] == 502]
    assert len(at_502) == len(set(at_502)) == 3 and at_502 == sorted(at_502, reverse=True), "the first is the widest"


def test_dots_stand_near_their_marker_however_few_rows_there_are(tmp_path: Path, drawn: list[Any]) -> None:
    frame = main_comparison()
    for methods in (["rft", "eef"], list(frame["method"].unique())):
        figure = drawn_of(frame[frame["method"].isin(methods)], tmp_path, drawn)
        right = figure.axes[1]
        inches = [
            (right.transData.transform((0, group.get_offsets()[0, 1])) / figure.dpi)[1]
            for group in right.collections
            if group.get_gid() == "runs"
        ]
        marks = [
            line.get_ydata()[0] for line in right.lines if line.get_marker() in "DosX^v*" and len(line.get_xdata()) == 1
        ]
        means = [(right.transData.transform((0, y)) / figure.dpi)[1] for y in marks]
        assert all(0.08 < mean - dot < 0.12 for dot, mean in zip(inches, means, strict=True)), methods
        assert len(right.get_xticks()) >= 4


def lightness(colour: str) -> float:
    """CIE L* of a colour, 0 to 100."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 116 * (0.2126 * red + 0.7152 * green + 0.0722 * blue) ** (1 / 3) - 16


def test_methods_that_stand_together_differ_in_lightness() -> None:
    together = ["sft_pos", "rft", "eef random_segments", "eef", "eef restart_only"]
    for names in (together, ["eef", "eto"], ["sft_pos", "nat"]):
        levels = sorted(lightness(LOOKS[name].colour) for name in names)
        assert min(b - a for a, b in pairwise(levels)) > 8, names


def test_runs_are_open_markers_in_the_shape_of_their_method(tmp_path: Path, drawn: list[Any]) -> None:
    left = drawn_of(main_comparison(), tmp_path, drawn).axes[0]
    runs = [group for group in left.collections if group.get_gid() == "runs"]
    assert all(len(group.get_facecolor()) == 0 for group in runs)
    shapes = {to_hex(group.get_edgecolor()[0]).upper(): len(group.get_paths()[0].vertices) for group in runs}
    assert len(set(shapes.values())) > 3, "circle, square, triangles, diamond, star"


def test_seeds_of_an_arm_are_those_with_a_win_rate() -> None:
    frame = pd.DataFrame([row("rft", rate, seed, n=6) for seed, rate in enumerate((0.5, 0.6, math.nan))])
    arm = arm_table(frame).iloc[0]
    assert arm["seeds"] == 2 and arm["win_rate"] == pytest.approx(0.55)
    assert arm[["win_low", "win_high"]].tolist() == pytest.approx(over_seeds([0.5, 0.6])[1:])
    assert arm_table(frame.assign(win_rate=None))["seeds"].item() == 0


def test_counts_of_errors_are_sums_over_the_seeds() -> None:
    frame = pd.DataFrame([row("rft", 0.5, seed, n=6) for seed in range(5)])
    frame["errors"], frame["simulation_errors"] = [2, 0, 0, 0, 0], [0, 1, 0, 0, 1]
    arm = arm_table(frame).iloc[0]
    assert (arm["errors"], arm["simulation_errors"], arm["seeds"]) == (2, 2, 5)
    shown = results_table(frame).iloc[0]
    assert (shown["errors"], shown["simulation errors"]) == ("2", "2")


def test_runs_with_other_settings_are_not_one_arm(tmp_path: Path) -> None:
    """Even if their seeds differ, as after a sweep with other epochs for further seeds."""
    frame = pd.DataFrame([row("rft", 0.5, seed, n=6) for seed in range(3)])
    frame["config"] = [{"epochs": 10.0, "n": 6}] * 3
    assert arm_table(frame)["seeds"].item() == 3
    frame["config"] = [{"epochs": 10.0, "n": 6}, *[{"epochs": 5.0, "n": 6}] * 2]
    with pytest.raises(FigureError, match="several runs of one arm differ in epochs"):
        arm_table(frame)


def test_the_usual_experts_are_those_of_most_runs_without_ceilings() -> None:
    ceilings = [row("ceiling", 0.9, seed, experts="perfect") for seed in range(3)]
    frame = pd.DataFrame([row("eef", 0.6, 0, m=5), *ceilings])
    assert most_common_experts(by_arm(frame)) == frame["experts"][0]
    assert most_common_experts(by_arm(pd.DataFrame(ceilings))) == ""


def test_tables_have_minus_signs() -> None:
    frame = pd.DataFrame([row("rft", rate, seed, n=6) for seed, rate in enumerate((0.1, 0.9, 0.2))])
    ends = results_table(frame)["95 % interval"].item()
    assert ends.startswith("−") and "-" not in ends and spread(-0.5, -0.1, "+.1f", 100) == "−50.0 to −10.0"
