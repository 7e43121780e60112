"""Figure 1 from run folders written here: which trajectory is drawn, and what its table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes

from eef.analysis.arms import FigureError
from eef.analysis.drawing import percent
from eef.analysis.failed_trajectory import (
    clearest_first,
    draw_failure,
    expert_state_table,
    failed_trajectory,
    is_reliable,
    outcomes_of,
)
from eef.envs.extras import Extras, extras_of
from eef.selection import segments
from eef.trajectory import Trajectory, Turn, save

PROMPT = "WebShop [SEP] Instruction: [SEP] a red mug, and price lower than $20 or $30 [SEP] Search"
RESULTS = "Back to Search [SEP] Page 1 [SEP] Next > [SEP] B000000001 [SEP] A $5 Mug of Many Words [SEP] $5.00"


def expert(task: str, length: int, won: bool = False, source: str = "strong", first: str = "search[mug]") -> Trajectory:
    """Searches, turns pages, opens a product, buys."""
    actions = [first, *["click[next >]"] * (length - 3), "click[b000000001]", "click[buy now]"]
    turns = tuple(Turn(action, RESULTS) for action in actions)
    return Trajectory(task, PROMPT, turns, 1.0 if won else 0.5, won, source)


def played(start: Trajectory, index: int, sign: str) -> Trajectory:
    """A simulation from s_index that won (+), lost (-) or broke (x)."""
    won = sign == "+"
    outcome = "env_error" if sign == "x" else "done"
    turns = (*start.turns[:index], Turn("click[buy now]", "over"))
    return Trajectory(start.task, PROMPT, turns, float(won), won, "policy", outcome, index)


def run(folder: Path, method: str = "eef", seed: int = 0, **more: Any) -> dict[str, Any]:
    """A row of `load_runs` for a run in ``folder``."""
    row = {"run_id": f"webshop__{folder.name}__s{seed}", "env": "webshop", "method": method, "seed": seed, "n": None}
    row |= {"m": 3 if method == "eef" else None, "experts": "strong", "n_test": 4, "hashes": {"catalogue": "c"}}
    return {**row, "folder": str(folder), **more}


def explored(folder: Path, plans: list[tuple[Trajectory, str]], **more: Any) -> dict[str, Any]:
    """An EEF run; a plan is an expert trajectory and how the simulations from s0, s_l, s_2l, ... ended."""
    save([start for start, _ in plans], folder / "experts" / "trajectories.jsonl")
    lost = [plan for plan in plans if not plan[0].won]
    save([played(start, 0, signs[0]) for start, signs in lost], folder / "s0-0-0" / "trajectories.jsonl")
    states = [
        played(start, j * max(1, len(start) // len(signs)), sign)
        for start, signs in lost
        for j, sign in enumerate(signs)
        if j
    ]
    save(states, folder / "states-0" / "trajectories.jsonl")
    return run(folder, m=len(lost[0][1]) - 1, **more)


def test_outcomes_come_from_the_experts_own_states() -> None:
    start, other = expert("t", 8), expert("t", 8, first="search[cup]")
    signs = [played(start, i, sign) for i, sign in ((0, "-"), (2, "+"), (4, "x"), (6, "-"))]
    strangers = [played(other, 3, "+"), played(expert("u", 8), 5, "+"), played(start, 8, "+")]
    outcomes = outcomes_of(start, [*strangers, *signs])
    assert outcomes == {0: None, 2: signs[1], 6: None}
    assert [part.kind for part in segments(start, outcomes)] == ["beneficial", "harmful", "neutral"]
    again = [played(start, 6, "+"), *signs]  # of two simulations of one state a win counts, in any order
    assert outcomes_of(start, again)[6] == again[0] == outcomes_of(start, again[::-1])[6]


def test_the_table_of_figure_1_is_the_papers_example(tmp_path: Path) -> None:
    row = explored(tmp_path / "a", [(expert("t", 8), "-+-+")])
    picture = failed_trajectory(pd.DataFrame([row]), tmp_path)
    assert picture == tmp_path / "failed_trajectory.png" and picture.stat().st_size > 10_000
    table = pd.read_csv(picture.with_suffix(".csv"), keep_default_na=False)
    assert table["turn"].tolist() == list(range(8)) and set(table["run_id"]) == {"webshop__a__s0"}
    assert table["segment"].tolist() == [kind for kind in ["beneficial", "harmful"] * 2 for _ in range(2)]
    assert table["simulated"].tolist() == ["lost", "", "won", "", "lost", "", "won", ""]
    assert table.loc[table["needs_recovery"], "turn"].tolist() == [4]
    drawn = picture.with_suffix(".svg").read_bytes()
    assert failed_trajectory(pd.DataFrame([row]), tmp_path / "again").with_suffix(".svg").read_bytes() == drawn


def test_the_choice_of_the_trajectory(tmp_path: Path) -> None:
    plans = [
        (expert("few", 8), "-+++"),
        (expert("long", 12), "-+-+"),
        (expert("b", 8), "-+-+"),
        (expert("won", 8, won=True), ""),
        (expert("a", 8), "-+-+"),
        (expert("none", 8), "----"),
    ]
    best = explored(tmp_path / "best", plans)
    fewer = explored(tmp_path / "fewer", [(expert("m", 8), "-+-")])
    later = explored(tmp_path / "later", [(expert("s", 8), "-+-+")], seed=1)
    ablation = {**best, "method": "eef_recovery=False", "m": 9, "folder": str(tmp_path / "nowhere")}
    for order in (1, -1):
        path = failed_trajectory(pd.DataFrame([ablation, fewer, later, best][::order]), tmp_path)
        assert set(pd.read_csv(path.with_suffix(".csv"))["task"]) == {"a"}
        assert "each label rests on one simulation" in path.with_suffix(".svg").read_text()


def test_two_experts_on_one_subtask_keep_their_own_simulations(tmp_path: Path) -> None:
    strong, weak = expert("t", 8), expert("t", 8, source="weak")  # the same turns
    row = explored(tmp_path / "a", [(strong, "----"), (weak, "-+-+")])
    table = pd.read_csv(failed_trajectory(pd.DataFrame([row]), tmp_path).with_suffix(".csv"))
    assert set(table["source"]) == {"weak"}


def test_figure_1_names_what_is_missing(tmp_path: Path) -> None:
    row = explored(tmp_path / "a", [(expert("t", 8), "----")])
    frame = pd.DataFrame([row])
    for empty in (pd.DataFrame(), frame.assign(method="rft")):
        with pytest.raises(FigureError, match="no finished EEF run"):
            failed_trajectory(empty, tmp_path)
    with pytest.raises(FigureError, match=r"webshop__a__s0 no failed .* both a beneficial and a harmful"):
        failed_trajectory(frame, tmp_path)
    with pytest.raises(FigureError, match=r"states-0 has 3 simulations, but number 2 starts from none of the states"):
        failed_trajectory(frame.assign(m=5), tmp_path)
    (tmp_path / "a" / "states-0" / "trajectories.jsonl").unlink()
    with pytest.raises(FigureError, match=r"a/states-0/trajectories.jsonl is missing"):
        failed_trajectory(frame, tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_counts_and_notes_of_a_failure_that_was_simulated_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture says how many of the simulations won, and the table has both numbers."""
    monkeypatch.setitem(plt.rcParams, "svg.fonttype", "none")  # text stays text
    start = expert("t", 4)
    outcomes = {0: None, 2: played(start, 2, "+")}
    counts = {0: (1, 20), 2: (15, 20)}
    path = draw_failure(start, outcomes, tmp_path, "about", Extras(), counts=counts, notes={1: "good"})
    table = pd.read_csv(path.with_suffix(".csv"), keep_default_na=False)
    assert table.columns[0] == "task" and table["segment"].tolist() == ["beneficial"] * 2 + ["harmful"] * 2
    assert table["carries_loss"].tolist() == [1, 1, 0, 0] and table["wins"].tolist() == ["1", "", "15", ""]
    drawn = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert "15 of 20 simulations from here won" in drawn and ">good<" in drawn and "most simulations won" in drawn
    assert ">75 %<" in drawn and ">5 %<" in drawn and ">+1<" in drawn, "win rates, and the turn of the win"
    pdf = path.with_suffix(".pdf").read_bytes()
    again = draw_failure(start, outcomes, tmp_path / "again", "about", Extras(), counts=counts, notes={1: "good"})
    assert pdf == again.with_suffix(".pdf").read_bytes() and b"/MediaBox [ 0 0 486 " in pdf


def test_labels_that_are_not_reliable_are_refused(tmp_path: Path) -> None:
    reliable = {(15, 20): True, (14, 20): False, (5, 20): True, (6, 20): False, (19, 19): False, (0, 0): False}
    reliable |= {(27, 40): True, (26, 40): False, (13, 40): True, (14, 40): False}
    assert {count: is_reliable(*count) for count in reliable} == reliable
    start = expert("t", 4)
    outcomes = {0: None, 2: played(start, 2, "+")}
    for counts in ({0: (1, 20), 2: (14, 20)}, {0: (1, 20)}, {0: (20, 20), 2: (20, 20)}, {0: (0, 20), 2: (3, 20)}):
        with pytest.raises(FigureError, match=r"task t: state [02] is labelled .* at least 20 times"):
            draw_failure(start, outcomes, tmp_path, "about", Extras(), counts=counts)
    assert not list(tmp_path.iterdir())


def test_examples_show_which_turns_carry_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s0 is solved from s2, so a0 and a1 carry loss; s4 needs recovery and is solved from s6: a4, a5 carry loss."""
    squares: list[tuple[float, str]] = []
    plot = Axes.plot

    def recorded(axes: Any, *places: Any, **style: Any) -> Any:
        if len(places) == 3 and "markerfacecolor" in style:
            squares.append((round(places[0][0], 2), style["markerfacecolor"]))
        return plot(axes, *places, **style)

    monkeypatch.setattr(Axes, "plot", recorded)
    row = explored(tmp_path / "a", [(expert("t", 8), "-+-+")])
    table = pd.read_csv(failed_trajectory(pd.DataFrame([row]), tmp_path).with_suffix(".csv"))
    assert table["carries_loss"].tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    first, second = sorted({x for x, _ in squares})
    filled = [[colour != "white" for x, colour in squares if x == column] for column in (first, second)]
    assert filled == [[True] * 2, [False] * 4 + [True] * 2]


def test_titles_and_odd_texts_are_drawn(tmp_path: Path) -> None:
    """Dollar signs are no formula, long texts are cut, a first simulation that broke leaves turns without a segment."""
    long = expert("t", 8, first="search[" + "very long words " * 20 + "]")
    row = explored(tmp_path / "a", [(long, "x-+-")])
    path = failed_trajectory(pd.DataFrame([row]), tmp_path)
    table = pd.read_csv(path.with_suffix(".csv"), keep_default_na=False)
    assert table["segment"].tolist()[:2] == ["", ""] and table["action"][0] == long.turns[0].action
    assert path.is_file()


def test_success_from_expert_states_by_earlier_uses_of_the_skill(tmp_path: Path) -> None:
    """Of 8 turns the states s2, s4, s6 lie behind 1, 3 and 5 turned pages."""
    row = explored(tmp_path / "a", [(expert("t", 8), "-+-+"), (expert("u", 8), "-++x")])
    table = expert_state_table(pd.DataFrame([row, run(tmp_path / "b", "rft")]), tmp_path)
    assert table["uses"].tolist() == [-1, 1, 3, 5] and table["simulations"].tolist() == [2, 2, 2, 1]
    assert table["won"].tolist() == [0.0, 1.0, 0.5, 1.0]
    assert pd.read_csv(tmp_path / "expert_states.csv")["won"].tolist() == [0.0, 1.0, 0.5, 1.0]
    with pytest.raises(FigureError, match="no finished EEF run"):
        expert_state_table(pd.DataFrame([run(tmp_path / "b", "rft")]), tmp_path)


def test_the_clearest_failure_turns_a_page_to_the_good_and_then_spoils_it() -> None:
    skills = extras_of("webshop").skills

    def simulated(start: Trajectory, signs: str) -> tuple[Trajectory, dict[int, Trajectory | None]]:
        return start, {i: played(start, i, "+") if sign == "+" else None for i, sign in enumerate(signs)}

    story = simulated(expert("5", 5), "--++-")  # turns a page (a1) to the good; a3 is harmful, s4 needs recovery
    same = simulated(expert("4", 5), "--++-")
    longer = simulated(expert("1", 6), "---++-")
    both = simulated(expert("2", 4), "--++")  # its harmful segment ends the trajectory: no state needs recovery
    no_skill = simulated(expert("3", 5), "-+--+")  # the beneficial segment is the search
    spoilt_first = simulated(expert("6", 5), "+-+++")  # s1 needs recovery, but no state after the page does
    none = simulated(expert("0", 4), "----")
    shown = clearest_first([none, no_skill, both, longer, spoilt_first, story, same], skills)
    assert [one.task for one, _ in shown] == ["4", "5", "1", "2", "6", "3", "0"]
    assert clearest_first(reversed(shown), skills) == shown
    without_skills = clearest_first(shown, {})
    assert without_skills[0][0].task == "2"  # the shortest of those with a beneficial and a harmful segment


def test_rates_are_rounded_up_from_one_half() -> None:
    assert [percent(wins / 40) for wins in (0, 1, 13, 29, 40)] == ["0 %", "3 %", "33 %", "73 %", "100 %"]


def test_the_legend_says_that_neutral_turns_may_be_learnt(tmp_path: Path) -> None:
    row = explored(tmp_path / "a", [(expert("t", 8), "-+-+")])
    text = failed_trajectory(pd.DataFrame([row]), tmp_path).with_suffix(".svg").read_text()
    assert "neutral (learned if before a win)" in text
