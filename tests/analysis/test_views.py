"""Views: turns marked with loss are those that the selection learns, text is escaped, and a browser can use them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eef.agents.actions import EXPLANATIONS, Problem
from eef.agents.chat import Chat
from eef.analysis import views
from eef.analysis.arms import FigureError
from eef.analysis.failure_drawing import KINDS
from eef.files import PACKAGE, write_json
from eef.selection import Example, count, select, with_random_segment
from eef.trajectory import Trajectory, Turn, save

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHIP = re.compile(r'<span class="chip( yes)?">(?:no )?loss</span>([^<]*)')


def expert(length: int = 8) -> Trajectory:
    turns = tuple(Turn(f"click[{i}]", f"page {i + 1}") for i in range(length))
    return Trajectory("7", "Instruction: [SEP] a mug", turns, 0.5, False, "strong")


def win(one: Trajectory, index: int) -> Trajectory:
    turns = (*one.turns[:index], Turn("click[own]", "almost"), Turn("click[buy now]", "over"))
    return replace(one, turns=turns, reward=1.0, won=True, source="policy", prefix=index)


def chips(shown: Any) -> list[tuple[bool, str]]:
    """(carries loss, why) of each turn, as a reader sees it."""
    return [(bool(yes), html.unescape(why)) for yes, why in CHIP.findall(shown.data)]


def test_a_failure_is_marked_as_in_the_papers_figure_1() -> None:
    """Simulations from s0, s2, s4, s6 fail, win, fail, win: a0-a1 and a4-a5 carry loss, the rest is harmful."""
    one = expert()
    shown = views.trajectory(one, {0: None, 2: win(one, 2), 4: None, 6: win(one, 6)})
    turns = chips(shown)
    assert [yes for yes, _ in turns] == [True, True, False, False, True, True, False, False]
    assert turns[0][1] == "on the way from s0, which lost, to s2, which won"
    assert turns[2][1] == "harmful: from s2, which won, to s4, which lost"
    assert turns[7][1] == "harmful: from s6, which won, to the end, which lost"
    assert shown.data.count("needs recovery") == 1 and shown.data.count("the simulation from here lost") == 2
    assert "click[own]\nclick[buy now]" in shown.data and shown.data.count("<details") == 9 + 2
    assert shown._repr_html_() == shown.data


@given(st.dictionaries(st.integers(0, 7), st.booleans()), st.sets(st.integers(0, 7)))
def test_marked_turns_are_those_that_the_selection_learns(won: dict[int, bool], barred: set[int]) -> None:
    one = expert()
    one = replace(one, turns=tuple(replace(turn, learn=i not in barred) for i, turn in enumerate(one.turns)))
    outcomes = {index: win(one, index) if yes else None for index, yes in won.items()}
    learnt = {i for e in select(one, outcomes) for i in range(e.trajectory.prefix) if e.mask[i]}
    assert {i for i, (yes, _) in enumerate(chips(views.trajectory(one, outcomes))) if yes} == learnt
    for example in select(one, outcomes):
        assert tuple(yes for yes, _ in chips(views.trajectory(example))) == example.mask


def test_an_example_gives_a_reason_for_each_turn() -> None:
    one = win(expert(), 4)
    why = [reason for _, reason in chips(views.trajectory(Example(one, 2)))]
    assert why[1] == "context: before s2, the state that this example solves"
    assert (
        why[2:] == ["by the expert, on the way to s4, from which the policy won"] * 2 + ["part of the win from s4"] * 2
    )


def test_contents_are_escaped_and_an_error_is_not_a_failure() -> None:
    bad = "<script>alert(1)</script>"
    one = Trajectory(bad, bad, (Turn(f"click[{bad}]", bad, f"Thought: {bad}"),), 0.0, False, bad, "env_error")
    shown = views.trajectory(one).data
    assert bad not in shown and html.escape(bad) in shown
    assert "env error" in shown and ">failed<" not in shown
    assert bad not in views.sortable_table(pd.DataFrame({bad: [bad]}), bad).data


def test_colours_come_from_the_theme_of_the_page() -> None:
    """JupyterLab's and VS Code's variables, the browser's preference, and no fixed colour outside the two palettes."""
    views_of = [
        views.trajectory(expert(), {0: None, 2: win(expert(), 2)}),
        views.sortable_table(pd.DataFrame({"a": [1]})),
    ]
    for shown in views_of:
        for part in (
            "--jp-layout-color0",
            "--jp-content-font-color1",
            "--vscode-editor-background",
            "--vscode-editor-",
        ):
            assert part in shown.data
        for theme in ("prefers-color-scheme: dark", '[data-jp-theme-light="false"]', ".vscode-dark", '[theme="dark"]'):
            assert theme in shown.data
        rest = re.sub(r"--[\w-]+: #\w+;", "", shown.data)  # the palettes
        rest = re.sub("|".join(colour for colour, _, _ in KINDS.values()), "", rest)
        assert not re.findall(r"(?<!&)#[0-9a-fA-F]{3,8}\b", rest)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, as WCAG defines it."""

    def light(colour: str) -> float:
        digits = "".join(2 * c for c in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_palettes_have_contrast(theme: str) -> None:
    template = (PACKAGE / "analysis" / "views.html").read_text()
    (line,) = re.findall(rf'set {theme} = "(.*?)"', template)
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", line))
    own = (colours["own-page"], colours["own-soft"])
    host = ("#ffffff", "#f5f5f5") if theme == "light" else ("#111111", "#212121", "#1e1e1e")  # JupyterLab, VS Code
    for page in (*own, *host, colours["tint"]):
        assert contrast(colours["own-text"], page) >= 7
        for name in ("won", "lost", "recover", "link"):
            assert contrast(colours[name], page) >= 4.5, (name, page)
    assert contrast(colours["on-loss"], colours["loss"]) >= 4.5
    assert contrast(colours["on-token"], colours["token"]) >= 4.5


def test_pages_are_folded_and_shown_in_parts() -> None:
    turns = (Turn("search[mug]", "Instruction: [SEP] a mug [SEP] Next > [SEP] B01"), Turn("click[next >]", "over"))
    shown = views.trajectory(Trajectory("7", "Instruction: [SEP] a mug", turns), env="webshop").data
    assert "[SEP]" not in shown
    assert re.findall(r'<div( class="old")?>([^<]*)</div>', shown) == [
        ("", "Instruction:"), ("", "a mug"), (' class="old"', "Instruction:"), (' class="old"', "a mug"),
        ("", "Next &gt;"), ("", "B01"), ("", "over"),
    ]  # fmt: skip
    assert shown.count("<details>") == 3 and "<details open" not in shown


def test_what_carries_loss_is_marked_or_left_out() -> None:
    example = Example(win(expert(), 4), 2)
    shown = views.trajectory(example).data
    assert shown.count('class="row yes"') == sum(example.mask) == 4
    plain = views.trajectory(example, loss=False).data
    assert "carry loss" not in plain and 'class="chip' not in plain and 'class="row yes' not in plain


def test_a_turn_without_a_readable_action_shows_the_reason() -> None:
    turns = [Turn("", text, "I said this", False) for text in EXPLANATIONS.values()]
    turns += [Turn("", "Invalid format. The ...", "hm", False), Turn("click[x]", EXPLANATIONS[Problem.CUT])]
    shown = views.trajectory(Trajectory("7", "a mug", tuple(turns))).data
    marks = re.findall(r'<b class="lost">([^<]*)</b>', shown.partition("carry loss")[2])
    assert marks == ["no action", "ambiguous action", "cut at the token limit", "no action"]
    assert shown.count("<code><b>") == 1 and shown.count("I said this") == 3


def test_coloured_tokens_are_what_the_agent_says(chat: Chat, tokenizer: Any) -> None:
    turns = (Turn("search[mug]", "Page 1 [SEP] Next >"), Turn("click[next >]", "Page 2"), Turn("click[buy now]", "end"))
    one = Trajectory("1", "Instruction: [SEP] find me a mug", turns, 1.0, True, "policy", prefix=1)
    shown = views.loss_mask(chat, Example(one, 1)).data
    tokens = re.findall(r'<(b|i) title="\d+: id (\d+)">([^<]*)</\1>', shown)
    ids, mask = chat.render(one, [False, True, True])
    assert [(int(number), tag == "b") for tag, number, _ in tokens] == list(zip(ids, mask, strict=True))
    said = [html.unescape(text) for tag, _, text in tokens if tag == "b"]
    assert said == ["click[", "next_>", "]", "<end>", "click[", "buy_now", "]", "<end>"]
    assert f">{sum(mask)}</b> of {len(ids)} tokens" in shown
    assert shown.count("<p>") == 3  # a line for each observation and its answer


def run_folder(folder: Path, examples: list[Example], stage: str = "sft-0") -> Path:
    save([e.trajectory for e in examples], folder / stage / "examples.jsonl")
    write_json(folder / stage / "learn_from.json", {"learn_from": [e.learn_from for e in examples]})
    return folder


def test_a_random_segment_is_named() -> None:
    _, segment = with_random_segment(Example(win(expert(), 4), 2), expert(), (0,))
    (row,) = views.example_table([segment]).to_dict("records")
    assert row["kind"] == "segment of the expert's actions" and row["loss_turns"] == 2
    reasons = views._example_reasons(segment)
    assert [why for learn, why in reasons if learn] == ["by the expert, in a segment of its own"] * 2
    assert all("at which the segment begins" in why for learn, why in reasons if not learn)


def test_the_selection_of_a_run_is_that_of_its_last_sft(tmp_path: Path) -> None:
    one = expert()
    examples = [Example(replace(win(one, 0), source="strong"), 0), Example(win(one, 4), 2), Example(win(one, 6), 6)]
    run_folder(tmp_path, examples[:1], "bc")
    run_folder(tmp_path, examples[:2], "sft-9")
    run_folder(tmp_path, examples, "sft-10")
    table = views.selected(tmp_path)
    assert list(table["kind"]) == ["win from s0", "expert's actions, then a win", "win from an expert state"]
    assert list(table["state"]) == [0, 2, 6] and list(table["won_from"]) == [0, 4, 6]
    sizes = count(examples)
    assert table["loss_turns"].sum() == sizes["loss_turns"]
    assert table["expert_loss_turns"].sum() == sizes["expert_loss_turns"] == 2
    assert table["learnt"][1] == "click[2]  click[3]  click[own]  click[buy now]"
    assert "3 examples, 2 of them for states after s0; 8 turns carry loss" in views.selection(tmp_path).data
    assert len(views.selected(tmp_path, "bc")) == 1
    with pytest.raises(FigureError, match="no sft-3 stage"):
        views.selected(tmp_path, "sft-3")
    with pytest.raises(FigureError, match="no SFT stage"):
        views.selected(tmp_path / "elsewhere")
    assert "0 examples" in views.selection([]).data


@pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt install chromium)")
def test_a_browser_sorts_and_filters(tmp_path: Path) -> None:
    rows = pd.DataFrame({"name": ["ten", "two", "thirty"], "size": [10, 2, 30]})
    script = """<script>
const names = [...document.querySelectorAll("th.name")], inputs = [...document.querySelectorAll("input")];
const seen = () => [...document.querySelectorAll("tbody tr")].filter(r => !r.hidden).map(r => r.cells[0].textContent);
const type = (i, text) => { inputs[i].value = text; inputs[i].dispatchEvent(new Event("input")); return seen(); };
const found = [seen()];
names[1].click(); found.push(seen());
names[1].click(); found.push(seen());
names[0].click(); found.push(seen());
found.push(type(0, "T"), type(0, "TW"), type(0, ""), type(1, ">2"), type(1, "<=10"), type(1, "30"));
document.title = JSON.stringify(found);
</script>"""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title></title>{views.sortable_table(rows).data}{script}")
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shown = subprocess.run([*words, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title, shown[:500]
    assert json.loads(html.unescape(title.group(1))) == [
        ["ten", "two", "thirty"],
        ["two", "ten", "thirty"],
        ["thirty", "ten", "two"],
        ["ten", "thirty", "two"],
        ["ten", "thirty", "two"],
        ["two"],
        ["ten", "thirty", "two"],
        ["ten", "thirty"],
        ["ten", "two"],
        ["thirty"],
    ]
