"""The results pages: each number is that of the committed tables, and intervals have the coverage that they claim."""

from __future__ import annotations

import re
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
FIGURES = [ROOT / "figures" / "README.md"]
SWEEPS = (
    "main_comparison",
    "disjoint_families",
    "other_catalogue",
    "natural_expert",
    "natural_expert_60",
    "late_curve",
    "three_iterations",
    "regimes_webshop",
    "methods",
    "scienceworld",
    "smollm2",
)
ROWS = {f"docs/results/{name}.md": number for name, number in {
    "demo": 7, "disjoint_families": 23, "late_curve": 36, "main_comparison": 22, "methods": 64, "natural_expert": 30,
    "regimes_webshop": 20, "scienceworld": 34, "smollm2": 16, "three_iterations": 10, "README": 33,
}.items()} | {"README.md": 5}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that computes the numbers of the pages. It reads each table once."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = import_module("recompute_results")
    module.arms.cache_clear()
    monkeypatch.setattr(module, "ROOT", ROOT)
    return module


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_each_number_of_the_pages_is_that_of_the_committed_tables(
    script: ModuleType, capsys: Any, demo_drawn_again: bool
) -> None:
    left_out = {"docs/results/demo.md"} if demo_drawn_again else set()
    rows = {}
    for page in script.PAGES.keys() - left_out:
        sweep = script.PAGES[page]
        assert script.compare(text_of(page), sweep) == [], page
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        rows[page] = len(lines)
    assert {page: number for page, number in rows.items() if number} == {
        page: ROWS[page] for page in ROWS.keys() - left_out
    }
    assert len(text_of("experiments/recompute_results.py").splitlines()) < 100


def test_a_number_that_is_not_in_the_tables_is_named(script: ModuleType) -> None:
    page, sweep = text_of("docs/results/main_comparison.md"), "main_comparison"
    bad = script.compare(
        page.replace("| 58.5 | 52.7", "| 58.7 | 52.7").replace("17 of 20 | .001", "18 of 20 | .006"), sweep
    )
    assert [cell.partition(", ")[::2] for cell in bad[:1]] == [("RFT × 6", "win %: 58.7 != 58.5")]
    assert [cell.rsplit(", ", 1)[1] for cell in bad[1:]] == [
        "seeds with a gain: 18 of 20 != 17 of 20",
        "p (Holm): .006 != .001",
    ]
    with pytest.raises(KeyError, match="new column"):
        script.compare(page.replace("| mean | 95", "| new column | 95"), sweep)
    with pytest.raises(KeyError, match="EEF, M = 3"):
        script.compare(page.replace("EEF, M = 1", "EEF, M = 3"), sweep)


def test_win_rates_come_from_the_outcomes_where_they_are_committed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_drawn_again: bool
) -> None:
    if demo_drawn_again:
        pytest.skip("make demo has drawn figures/demo again, with other numbers than the committed ones")
    folder = tmp_path / "figures" / "demo"
    folder.mkdir(parents=True)
    for name in ("win_rate_vs_budget", "outcomes", "subtasks"):
        (folder / f"{name}.csv").write_text(text_of(f"figures/demo/{name}.csv"))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.compare(text_of("docs/results/demo.md"), "demo") == []
    lines = (folder / "outcomes.csv").read_text().splitlines()
    lines[1] = lines[1].replace(",1111", ",0000", 1)  # the ceiling wins four subtasks less
    (folder / "outcomes.csv").write_text("\n".join(lines))
    script.arms.cache_clear()
    assert script.compare(text_of("docs/results/demo.md"), "demo")[0].endswith("win %: 88.3 != 87.0")


def test_scores_and_groups_of_any_name_are_recomputed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "figures" / "rooms"
    folder.mkdir(parents=True)
    lines = ["method,m,n,experts,seed,episodes,win_rate,win_rate_find-plant,mean_max_score,run_id"]
    for seed in (0, 1):
        lines += [
            f"rft,,6,strong,{seed},60,0.5,0.25,0.4,rft{seed}",
            f"eef,5,,strong,{seed},40,0.6,0.5,0.{6 + seed},eef{seed}",
        ]
    (folder / "win_rate_vs_budget.csv").write_text("\n".join(lines))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    page = (
        "| method | simulated episodes | win % | find-plant | mean score |\n|---|---|---|---|---|\n"
        "| EEF, M = 5 | 40 | 60.0 | 50.0 | .650 |\n\n| difference | mean | seeds with a gain |\n|---|---|---|\n"
        "| EEF, M = 5 minus RFT × 6, score | +25.0 | 2 of 2 |\n"
    )
    assert script.compare(page, "rooms") == []
    assert script.compare(page.replace(".650", ".651").replace("+25", "+24"), "rooms") == [
        "EEF, M = 5, mean score: .651 != .650",
        "EEF, M = 5 minus RFT × 6, score, mean: +24.0 != +25.0",
    ]


def differences(script: ModuleType, sweep: str) -> list[pd.Series]:
    """All differences of two arms of a sweep: of the win rate, of that on hard subtasks, and of the score."""
    known = script.arms(sweep)
    names = ("win_rate", "win_rate_hard", "mean_max_score")
    columns = [[rows[name] for rows in known.values() if name in rows] for name in names]
    return [100 * (a - b) for rows in columns for a in rows for b in rows if a is not b and not a.isna().any()]


def test_each_interval_of_a_difference_in_prose_is_that_of_two_arms(script: ModuleType) -> None:
    computed = [each for sweep in SWEEPS for each in differences(script, sweep)]
    known = {script.with_ends(values) for values in computed}
    number = r"([+−]\d+\.\d) \(([+−]\d+\.\d to [+−]\d+\.\d)\)"
    for path in [ROOT / "README.md", *FIGURES]:
        claimed = {f"{mean} ({ends})" for mean, ends in re.findall(number, path.read_text(encoding="utf-8"))}
        assert len(claimed) >= 4 and claimed <= known, path
    for path in RESULTS:
        claimed = {f"{mean} ({ends})" for mean, ends in re.findall(number, path.read_text(encoding="utf-8"))}
        assert claimed <= known, path


@pytest.mark.parametrize(
    "path", [*RESULTS, *FIGURES, ROOT / "README.md"], ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_a_page_with_several_differences_says_whether_they_are_adjusted(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    number = r"[+−]\d+\.\d(?: \(| \| )[+−]\d+\.\d to [+−]\d+\.\d"
    if len(re.findall(number, text)) > 1:
        assert re.search(
            r"Holm's method for (?:these|the)\s[\w-]+\sdifferences|not adjusted for (?:its|these)\s\w+", text
        ), path


def test_intervals_over_seeds_cover_what_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    table = import_module("check_coverage").coverage(sweeps=1000, seed=1).set_index(["case", "seeds"])
    committed = pd.read_csv(ROOT / "figures" / "coverage" / "coverage.csv").set_index(["case", "seeds"])
    for coverage, margin in ((table, 2.5), (committed, 0.8)):
        assert (coverage.loc["normal", "t, %"] - 95).abs().max() < margin
        assert coverage.loc[("normal", 5), "bootstrap, %"] < 88 and coverage.loc[("bimodal", 3), "t, %"] < 80
    assert (committed.loc["normal", "t, %"] >= 93).all()
    assert (table["t, %"] - committed["t, %"]).abs().max() < 4


def test_a_picture_is_drawn_again_from_the_committed_rows(tmp_path: Path) -> None:
    """The table stays byte for byte; one that drawing would change is refused and stays too."""
    spec = util.spec_from_file_location("redraw_figures", ROOT / "experiments" / "redraw_figures.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = tmp_path / "win_rate_vs_budget.csv"
    table.write_text(text_of("figures/smollm2/win_rate_vs_budget.csv"))
    before = table.read_bytes()
    assert module.redraw(tmp_path) == table.with_suffix(".png") and table.with_suffix(".pdf").is_file()
    assert table.read_bytes() == before and "webshop · 3 seeds" in table.with_suffix(".svg").read_text()
    header, *rows = before.decode().splitlines()
    table.write_text("\n".join([header, *rows[::-1], ""]))
    with pytest.raises(ValueError, match="drawing it again changes the table"):
        module.redraw(tmp_path)
    assert table.read_text().splitlines()[1] == rows[-1]


def test_the_cells_of_a_sweep_over_the_experts_noise_are_experts(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "figures" / "curve"
    folder.mkdir(parents=True)
    rows = [
        {"method": method, "experts": "strong", "n": n, "m": m, "seed": seed, "expert_noise": noise, "test_set": 1,
         "outcomes": outcomes, "episodes": 10, "run_id": f"{method}{seed}{noise}"}
        for noise, eef in (('{"base": 0.2, "late": 0.0}', "1100"), ('{"base": 0.1, "late": 0.5}', "1111"))
        for method, n, m, outcomes in (("rft", 6, None, "1000"), ("eef", None, 5, eef))
        for seed in (1, 2)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "outcomes.csv", index=False)
    pd.DataFrame({"test_set": 1, "task": [*"abcd"]}).to_csv(folder / "subtasks.csv", index=False)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    page = """| experts | difference | mean |
|---|---|---|
| base 0.2, late 0.0 | EEF, M = 5 minus RFT × 6 | +25.0 |
| base 0.1, late 0.5 | EEF, M = 5 minus RFT × 6 | +70.0 |
"""
    assert script.compare(page, "curve") == ["EEF, M = 5 minus RFT × 6, mean: +70.0 != +75.0"]
