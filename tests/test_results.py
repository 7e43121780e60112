"""The results pages: each number is that of the committed tables, and intervals have the coverage that they claim."""

from __future__ import annotations

import re
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from eef.analysis.committed import find
from eef.analysis.pages import tables
from eef.analysis.statistics import holm, over_seeds, t_test

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
    "beyond",
    "scienceworld",
    "scienceworld_natural",
    "smollm2",
    "equal_steps",
    "rft_temperature",
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that computes the numbers of the pages. It reads each table once."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = import_module("recompute_results")
    module.arms.cache_clear()
    module.differences.cache_clear()
    monkeypatch.setattr(module, "ROOT", ROOT)
    return module


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_each_number_of_the_pages_is_that_of_the_committed_tables(script: ModuleType, demo_drawn_again: bool) -> None:
    left_out = {"docs/results/demo.md"} if demo_drawn_again else set()
    assert {page.name for page in [*RESULTS, *FIGURES]} <= {Path(page).name for page in script.PAGES}
    for page in script.PAGES.keys() - left_out:
        assert script.compare(text_of(page), script.PAGES[page]) == [], page
    assert len(text_of("experiments/recompute_results.py").splitlines()) < 100


@pytest.mark.parametrize(
    ("page", "right", "wrong"),
    [
        ("docs/results/map.md", "| 40.4 | 67.8 |", "| 40.4 | 99.8 |"),
        ("docs/results/main_comparison.md", "| EEF, M = 5 | 43.7 |", "| EEF, M = 5 | 93.7 |"),
        ("docs/results/methods.md", "two experts | 46.6 |", "two experts | 46.7 |"),
        ("README.md", "−0.7 (−4.4", "+9.7 (+4.4"),
        ("figures/README.md", "+14.8 (+8.9 to +20.8)", "+14.8 (+8.9 to +20.9)"),
        ("figures/README.md", "+22.2 (+12.7 to +31.8), 10 of 10", "+22.2 (+12.7 to +31.8), 9 of 10"),
    ],
)
def test_a_wrong_number_in_any_page_is_named(script: ModuleType, page: str, right: str, wrong: str) -> None:
    """Also in the map, in shares of wins, in sentences and in the table of claims."""
    text = text_of(page)
    assert right in text
    assert len(script.compare(text.replace(right, wrong), script.PAGES[page])) >= 1


def test_an_interval_of_another_sweep_and_a_number_without_a_source_are_named(script: ModuleType) -> None:
    page = "The gain is +14.3 (+9.2 to +19.4), 20 of 20 seeds; +11.2 of the\n+14.3 points, or 19.6 points.\n"
    assert script.compare(page, "main_comparison") == ["11.2", "19.6"]
    assert script.compare(page.replace("gain", "gain in `late_curve`"), "disjoint_families")[0].startswith("+14.3 (")
    before = f"## Before\n\n{page}\n# A title\n"
    assert script.compare(before, "main_comparison") == [], "the tables of earlier runs are not there"


def test_a_table_with_an_unknown_head_is_refused(script: ModuleType) -> None:
    page = text_of("docs/results/main_comparison.md").replace("| method |", "| Method |")
    with pytest.raises(ValueError, match=r"\| Method \| simulated episodes .* unknown table"):
        script.compare(page, "main_comparison")
    for head in script.UNCHECKED:
        pages = [each for each in script.PAGES if f"\n| {head}" in text_of(each)]
        assert pages, f"{head}: no page has such a table any more"


def test_an_arm_without_experts_must_be_the_only_one(script: ModuleType) -> None:
    with pytest.raises(KeyError, match=r"RFT × 6.*there are: base 0.06, late 0.75, base 0.105, late 0.5"):
        find(script.arms("late_curve"), "RFT × 6")
    assert len(find(script.arms("methods"), "RFT × 6")) == 10, "of several, strong is the usual one"


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


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of the tables of a page, by the names of their columns."""
    return [row for table in tables(text.replace("| regime |", "| experts |")) for row in table]


@pytest.fixture(scope="module")
def known() -> pd.DataFrame:
    """All differences of the sweeps' pages: the interval as text, p adjusted on the page, and p adjusted over all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        script = import_module("recompute_results")
    script.arms.cache_clear()
    each: list[dict[str, Any]] = []
    for page, sweep in script.PAGES.items():
        for row in rows_of(text_of(page)) if not page.endswith("README.md") else ():
            if "difference" in row:
                gain = script.of_difference(row, row.get("sweep", sweep).strip("`"))[1]
                experts = f" ({row['experts']})" if "experts" in row else ""
                name = " minus ".join(arm + experts for arm in row["difference"].split(" minus "))
                place = {"page": page, "sweep": row.get("sweep", sweep).strip("`"), "name": name}
                low, high = over_seeds(gain)[1:]
                ends = {"interval": script.with_ends(gain), "zero": low <= 0 <= high}
                each.append({**place, **ends, "seeds": len(gain), "raw": t_test(gain)})
    table = pd.DataFrame(each)
    table["p"] = table.groupby("page")["raw"].transform(lambda raw: holm(raw.tolist()))
    table["p_all"] = holm(table["raw"].tolist())
    return table


def as_page(p: float) -> str:
    return "< .001" if p < 0.0005 else f"{p:.3f}".lstrip("0")


def test_the_overview_sorts_its_rows_by_the_rule_for_what_holds(known: pd.DataFrame) -> None:
    own = known.set_index(["sweep", "name"])
    parts = re.split(
        r"^##+ (?:What holds|Not shown after|What is not shown)", text_of("docs/results/README.md"), flags=re.M
    )
    for number, part in enumerate(parts[1:]):
        listed = [(row["sweep"].strip("`"), row["difference"]) for row in rows_of(part) if "difference" in row]
        rows = own.loc[listed]
        assert len(rows) == len(listed) > 8
        kinds = rows["zero"] * 2 + (~rows["zero"] & (rows["p"] >= 0.05))
        assert set(kinds) == {number}, rows[kinds != number]
        if number == 1:  # complete
            assert set(listed) == {*own[~own["zero"] & (own["p"] >= 0.05)].index}


def test_the_overview_says_what_an_adjustment_over_all_pages_changes(known: pd.DataFrame) -> None:
    text = " ".join(text_of("docs/results/README.md").split())
    sentence = re.search(
        r"If the (\d+) differences of all pages are adjusted together, (\d+) of the (\d+) that hold stay below "
        r"\.05\. The other twelve are (.*?\))\. ",
        text,
    )
    holds = known[(known["p"] < 0.05) & ~known["zero"]]
    lost = holds[holds["p_all"] >= 0.05]
    assert sentence
    assert [*map(int, sentence.groups()[:3])] == [len(known), len(holds) - len(lost), len(holds)] and len(lost) == 12
    assert sorted(re.findall(r"\.\d{3}", sentence[4])) == sorted(as_page(p) for p in lost["p_all"])
    assert {name for name in re.findall(r"`(\w+)`", sentence[4])} == {*lost["sweep"]}
    assert f"The pages list all {len(known)}." in text
    listed = [row for row in rows_of(text_of("docs/results/README.md")) if "difference" in row]
    assert f"adjusted by Holm's method for the {len(listed)} differences of this page" in text
    first = rows_of(text_of("docs/results/README.md").partition("\n### Not shown after adjustment")[0])
    above = [row for row in first if ".05" <= row.get("p (Holm)", "") < "1"]
    assert len(above) == 7 and "the first table seven p-values" in text


@pytest.mark.parametrize("path", [*RESULTS, *FIGURES], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_not_shown_after_adjustment_has_the_p_value_of_its_page(path: Path, known: pd.DataFrame) -> None:
    own = known[~known["zero"] & (known["p"] >= 0.05)]
    if path in RESULTS and path.stem != "README":
        own = own[own["page"] == f"docs/results/{path.name}"]
    written = re.findall(r"not\s+shown\s+after\s+adjustment\s+\(([^)]*)\)", path.read_text(encoding="utf-8"))
    values = [p for one in written for p in re.findall(r"p = (\.\d{3})", one)]
    assert set(values) <= {as_page(p) for p in own["p"]} and all("p = " in one for one in written)
    if path.stem in ("methods", "natural_expert"):
        assert set(values) == {as_page(p) for p in own["p"]}


def test_the_counts_of_simulated_wins_are_those_of_the_committed_table() -> None:
    table = pd.read_csv(ROOT / "figures" / "rft_temperature" / "simulations.csv")
    assert set(table["run_id"]) < set(pd.read_csv(ROOT / "figures" / "rft_temperature" / "outcomes.csv")["run_id"])
    shares = [f"{100 * part['wins'].sum() / part['simulations'].sum():.1f}" for _, part in table.groupby("temperature")]
    turned = [f"{count:.1f}" for count in table.groupby("temperature")["wins_with_next"].mean()]
    text = " ".join(text_of("docs/results/rft_temperature.md").split())
    assert "{} % of its 1,500 simulations at 1.0, {} % at 1.5 and {} % at 2.0".format(*shares) in text
    assert "In {}, {} and {} of these wins per run".format(*turned) in text


def test_the_table_of_etos_split_is_that_of_the_committed_outcomes() -> None:
    page = text_of("docs/results/scienceworld.md")
    table = pd.read_csv(ROOT / "figures" / "scienceworld" / "eto_split.csv")
    table["short"] = table["task"].str.match("find|lifespan|chemistry-mix-paint-secondary")
    rows = [row for row in rows_of(page) if "won of 211" in row]
    for row in rows:
        own = table[(table["policy"] == row["policy"]) & (table["answers"] == row["answers"])]
        score, short, fruit = own["max_score"].mean(), own[own["short"]], own[own["task"].str.match("grow-fruit")]
        assert (len(own), len(short), len(fruit)) == (211, 79, 10)
        counts = [str(part["won"].sum()) for part in (own, short, fruit)]
        rates = [f"{100 * own['won'].mean():.1f}", f"{score:.3f}".lstrip("0")]
        assert [*row.values()][2:] == [counts[0], *rates, *counts[1:]], row
    assert len(rows) == table.groupby(["policy", "answers"]).ngroups
    others = table[~table["short"] & ~table["task"].str.match("grow-fruit")]
    assert others["won"].sum() == 0 and "the other 15 task types" in page
    assert others["task"].str.rsplit("/").str[0].nunique() == 15


def test_verdicts_on_the_claims_follow_the_rule(known: pd.DataFrame) -> None:
    """Each interval of the claims table that excludes zero is on the page of its sweep, with a p-value that decides."""
    claims = [row for row in rows_of(text_of("figures/README.md")) if "the paper's claim" in row]
    assert len(claims) == 14
    decided = 0
    for row in claims:
        sweep = ""
        for name, interval in re.findall(r"`(\w+)`|([+−]\d+\.\d \([+−]\d+\.\d to [+−]\d+\.\d\))", row["here"]):
            sweep = name if name in SWEEPS else sweep
            if not interval:
                continue
            own = known[(known["sweep"] == sweep) & (known["interval"] == interval)]
            if own.empty:
                low, high = (float(end.replace("−", "-")) for end in re.findall(r"[+−][\d.]+(?= to|\))", interval))
                assert low < 0 < high, (sweep, interval)
                continue
            p, zero = own["p"].item(), own["zero"].item()
            decided += not zero
            if not zero and p >= 0.05:
                assert f"not shown after adjustment (p = {as_page(p)})" in row["does it hold?"], interval
            elif not zero:
                assert re.search(r"\bholds? over \d+ seeds|over \d+ with", row["does it hold?"]), interval
                assert "designed" in row["does it hold?"] or "fails by itself" in row["does it hold?"], interval
            else:
                assert "not shown" in row["does it hold?"] or "restart only" in row["here"], interval
        for number in re.findall(r"holds? over (\d+)", row["does it hold?"]):
            assert int(number) in set(known["seeds"])
    assert decided > 15


def test_each_sweep_with_seconds_prints_them_for_all_arms(script: ModuleType) -> None:
    printed: dict[str, int] = {}
    for page, usual in script.PAGES.items():
        for row in rows_of(text_of(page)):
            for name in [name for name in row if name.startswith("seconds")]:
                sweep = row.get("sweep", usual).strip("`")
                arm = row.get("arm") or name.removeprefix("seconds: ")
                value = find(script.arms(sweep), arm, row.get("experts", ""))["seconds"].median()
                assert row[name] == f"{value:,.0f}", (page, row)
                printed[sweep] = printed.get(sweep, 0) + 1
    committed = {path.parent.name for path in ROOT.glob("figures/*/seconds.csv")}
    assert printed == {sweep: len(script.arms(sweep)) for sweep in committed}


def test_shares_of_navigation_skills_are_those_of_the_committed_tables() -> None:
    """The tables of the pages, and the row of Figure 2 in the claims: all sweeps with a table, and their seeds."""
    tables = {path.parent.name: pd.read_csv(path) for path in ROOT.glob("figures/*/navigation.csv")}
    (claim,) = (
        row for row in rows_of(text_of("figures/README.md")) if "(Figure 2)" in row.get("the paper's claim", "")
    )
    shown = re.findall(
        r"`(\w+)` \((\d+) seeds.*?\): Next ([\d.]+) and ([\d.]+) %, Back ([\d.]+) and ([\d.]+) %", claim["here"]
    )
    for sweep, seeds, *numbers in shown:
        m, n = ("M = 2", "× 3") if sweep == "smollm2" else ("M = 5", "× 6")
        own = tables[sweep].assign(bar=tables[sweep]["bar"].str.removesuffix(", experts: strong")).set_index("bar")
        rows = own.loc[[f"EEF, {m}", f"RFT {n}"]]
        assert [int(seeds)] * 2 == rows["seeds"].tolist()
        assert numbers == [f"{100 * value:.1f}" for name in ("next", "other") for value in rows[name]], sweep
    assert {sweep for sweep, *_ in shown} == {*tables}
    words = {"the expert": "expert: wins", "the strong expert": "expert strong: wins", "BC": "BC (SFT-pos)",
             "the weak expert": "expert weak: wins"}  # fmt: skip
    pages = {"natural_expert": ["natural_expert", "natural_expert_60"]}
    for page in ("main_comparison", "methods", "three_iterations", "disjoint_families", "natural_expert"):
        for row in [row for row in rows_of(text_of(f"docs/results/{page}.md")) if "wins of" in row]:
            name = words.get(row["wins of"], row["wins of"]).replace(", two experts", ", experts: strong+weak")
            name = name.replace("BC, e", "BC (SFT-pos), e")
            cells = []
            for sweep in pages.get(page, [page]):
                own = tables[sweep].set_index("bar")
                bar = own.loc[name] if name in own.index else own.loc[f"{name}, experts: strong"]
                cells += [f"{100 * bar['next']:.1f}", f"{100 * bar['other']:.1f}"]
            assert cells == [*row.values()][1:], (page, name)


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
    assert (committed.loc["skewed", "t, %"] < 93).all()  # the worst case, which the page names with its numbers
    page = " ".join(text_of("docs/results/README.md").split())
    for case, text in (
        ("skewed", "{}, {}, {} and {} %"),
        ("bimodal", "{} % with 3, {} with 5, {} with 10 and {} with 20"),
    ):
        assert text.format(*(f"{value:.1f}" for value in committed.loc[case, "t, %"])) in page
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
    assert module.redraw(tmp_path) == [table.with_suffix(".png")] and table.with_suffix(".pdf").is_file()
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


@pytest.mark.parametrize("sweep", ["late_curve", "map"])
def test_other_pictures_are_drawn_again_too(sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    folder = tmp_path / sweep
    folder.mkdir()
    for path in (ROOT / "figures" / sweep).glob("*.csv"):
        (folder / path.name).write_bytes(path.read_bytes())
    (picture,) = import_module("redraw_figures").redraw(folder)
    assert picture.is_file()
    text = picture.with_suffix(".svg").read_text()
    assert "webshop · 8 seeds · 500 test tasks" in text if sweep == "late_curve" else "2 seeds · 300 test tasks" in text
