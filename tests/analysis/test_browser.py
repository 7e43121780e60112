"""The page of all trajectories of a run: what it lists and filters, hostile texts, a real browser, and its size."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eef.analysis import views
from eef.analysis.arms import FigureError
from eef.analysis.browser import label_of, read_stage, some, stages_of, write_browser, write_views
from eef.files import write_json
from eef.trajectory import Trajectory, Turn, save

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 ' \""


def expert(task: str = "7", length: int = 4) -> Trajectory:
    turns = tuple(Turn(f"click[{i}]", f"page {i + 1} [SEP] Next >") for i in range(length))
    return Trajectory(task, "WebShop [SEP] Instruction: [SEP] a red mug [SEP] Search", turns, 0.5, False, "strong")


def played(start: Trajectory, index: int, won: bool) -> Trajectory:
    turns = (*start.turns[:index], Turn("click[buy now]", "over"))
    return replace(start, turns=turns, reward=float(won), won=won, source="policy", prefix=index)


def run_folder(root: Path) -> Path:
    """A run of EEF: an expert's failure, simulations from s0 and two of its states, an example, three test episodes."""
    run, start = root / "webshop__eef-m2__s0__1", expert()
    write_json(run / "config.json", {"env": "webshop", "method": "eef-m2", "config": {"method": "eef", "m": 2}})
    wins = [played(start, 1, False), played(start, 2, True)]
    hostile = Trajectory(HOSTILE, HOSTILE, (Turn(HOSTILE, HOSTILE, HOSTILE),), 0.0, False, HOSTILE, "env_error")
    tests = [replace(played(start, 0, won), task=f"t{won}") for won in (True, False)]
    for stage, trajectories in {
        "experts": [start, replace(expert("8"), won=True, reward=1.0)],
        "s0-0-0": [played(start, 0, False)],
        "states-0": wins,
        "test": [*tests, hostile],
    }.items():
        save(trajectories, run / stage / "trajectories.jsonl")
    save([wins[1]], run / "sft-0" / "examples.jsonl")
    write_json(run / "sft-0" / "learn_from.json", {"learn_from": [0]})
    return run


def contents(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the page and its views."""
    rows, packed = (re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL) for name in ("rows", "packed"))
    assert rows and packed
    return json.loads(rows.group(1)), json.loads(gzip.decompress(base64.b64decode(packed.group(1))))


def test_the_page_lists_every_trajectory_with_what_it_filters_by(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    path = write_browser(run)
    assert path == run / "browser.html" and write_browser(run, tmp_path / "a.html").read_bytes() == path.read_bytes()
    rows, views = contents(path.read_text())
    assert [row["stage"] for row in rows] == ["test"] * 3 + ["sft-0"] + ["states-0"] * 2 + ["s0-0-0"] + ["experts"] * 2
    assert [row["ended"] for row in rows] == ["won", "lost", "error", "won", "lost", "won", "lost", "lost", "won"]
    assert [row["recovery"] for row in rows] == [False] * 3 + [True] * 3 + [False] * 3
    assert rows[0]["goal"] == "a red mug" and rows[0]["task"] == "tTrue" and len(views) == len(rows)
    assert label_of(run, "states-0") == "simulations from expert states (states-0)"
    learnt = ["carry loss" in view for view in views]  # of examples and expert trajectories
    assert learnt == [False] * 3 + [True] + [False] * 3 + [True] * 2
    assert "on the way from s0, which lost, to s2, which won" in views[7]  # outcomes of the simulations
    assert not re.search(r"<\w+[^>]*\s(?:src|href)=|https?://|@import|url\(", path.read_text())


def test_other_selections_than_the_papers_are_not_shown(tmp_path: Path) -> None:
    """The page knows EEF's labels from one simulation per state alone, and the loss of no other method on failures."""
    run = run_folder(tmp_path)
    plain, won = read_stage(run, "experts")
    assert plain.outcomes and "carry loss" in plain.element() and "carry loss" in won.element()
    for method, config in (("eef-m2-k3", {"k": 3}), ("eef_recovery=False-m2", {"recovery": False}), ("sft_all", {})):
        write_json(run / "config.json", {"env": "webshop", "method": method, "config": config})
        for entry in read_stage(run, "experts"):
            assert not entry.outcomes and "carry loss" not in entry.element()
    write_json(run / "config.json", {"env": "webshop", "method": "rft", "config": {"method": "rft"}})
    assert [" 4 carry loss" in entry.element() for entry in read_stage(run, "experts")] == [False, True]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    text = write_browser(run_folder(tmp_path)).read_text()
    rows, views = contents(text)
    assert text.count("<script") == text.count("</script>") == 3
    assert rows[2]["task"] == HOSTILE and HOSTILE not in text
    assert "<img" not in views[2] and "<script" not in views[2] and html.escape("<img src=x") in views[2]
    static = write_views(tmp_path / "webshop__eef-m2__s0__1").read_text()
    assert "<script" not in static and "<img" not in static and static.count("<details class") == 3 + 1


def test_some_has_both_results_and_the_last_sft(tmp_path: Path) -> None:
    run, start = run_folder(tmp_path), expert()
    save([replace(played(start, 0, i < 9), task=str(i)) for i in range(10)], run / "test" / "trajectories.jsonl")
    for stage, starts in (("bc", [0]), ("sft-9", [0]), ("sft-10", [0, 1])):
        save([played(start, 2, True) for _ in starts], run / stage / "examples.jsonl")
        write_json(run / stage / "learn_from.json", {"learn_from": starts})
    shown = some(run, 4, 5)
    assert list(shown) == ["test", "sft-10"]
    assert [entry.trajectory.won for entry in shown["test"]] == [False, True, True, True]
    assert [entry.title.endswith("selected: loss from turn 2") for entry in shown["sft-10"]] == [True, False]
    assert stages_of(run)[:2] == ["test", "sft-0"] and stages_of(run)[-2:] == ["bc", "experts"]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="is not the folder of a run"):
        write_browser(tmp_path)
    write_json(tmp_path / "config.json", {"env": "webshop", "method": "eef"})
    with pytest.raises(FigureError, match="has no trajectories"):
        write_browser(tmp_path)


def in_browser(page: Path, script: str) -> Any:
    """What ``script`` writes to the page's title, as JSON, once the page is ready."""
    waiting = f"""<script>const wait = setInterval(() => {{ if (document.body.dataset.ready) {{ clearInterval(wait);
document.title = JSON.stringify((() => {{ {script} }})()); }} }}, 20);</script>"""
    page.write_text(page.read_text() + waiting)
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent}/profile"]
    words += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title, shown[:500]
    return json.loads(html.unescape(title.group(1)))


@pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt install chromium)")
def test_a_browser_filters_searches_and_walks_by_key(tmp_path: Path) -> None:
    script = """
const at = id => document.getElementById(id), seen = () => [...at("list").children].map(b => buttons.indexOf(b));
const set = (id, value) => {
  at(id)[id === "recovery" ? "checked" : "value"] = value;
  at(id).dispatchEvent(new Event("input"));
  return seen();
};
const key = name => {
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  return current;
};
const shown = [seen(), current, key("j"), key("ArrowDown"), key("k"), key("ArrowUp"), key("ArrowUp")];
shown.push(set("ended", "won"), set("ended", "lost"), set("ended", "error"), document.images.length, set("ended", ""));
shown.push(set("recovery", true), current, key("j"), set("recovery", false), set("stage", "experts"), set("stage", ""));
shown.push(set("text", "CLICK[3]"), set("text", "nowhere"), at("view").textContent, set("text", "<img src=x"));
shown.push(at("count").textContent);
return shown;"""
    shown = in_browser(write_browser(run_folder(tmp_path)), script)
    every = list(range(9))
    assert shown == [
        every, 0, 1, 2, 1, 0, 0,
        [0, 3, 5, 8], [1, 4, 6, 7], [2], 0, every,
        [3, 4, 5], 3, 4, every, [7, 8], every,
        [7, 8], [], "No trajectory fits the filters.", [2], "1 of 9",
    ]  # fmt: skip


@pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt install chromium)")
@pytest.mark.slow
def test_two_thousand_trajectories_load(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    page = " [SEP] ".join(f"B{i:09d} [SEP] a product with a title of some words [SEP] ${i}.00" for i in range(10))
    start = expert("1", 8)
    turns = tuple(replace(turn, observation=f"Page {i} [SEP] {page}") for i, turn in enumerate(start.turns))
    save([replace(start, task=str(i), turns=turns) for i in range(2000)], run / "test" / "trajectories.jsonl")
    began = time.monotonic()
    path = write_browser(run)
    assert time.monotonic() - began < 60 and path.stat().st_size < 4_000_000
    script = """const at = id => document.getElementById(id);
at("text").value = "B000000003"; at("text").dispatchEvent(new Event("input"));
return [at("list").children.length, at("count").textContent];"""
    assert in_browser(path, script) == [2000, "2000 of 2006"]


def test_a_broken_character_is_a_question_mark_on_every_page(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    broken = "\ud83d"
    one = Trajectory(f"9{broken}", f"page {broken}", (Turn(f"click[{broken}]", broken, f"Thought {broken}"),), 0.0)
    save([one], run / "test" / "trajectories.jsonl")
    assert "page ?" in write_views(run).read_text(encoding="utf-8")
    rows, views_of = contents(write_browser(run).read_text(encoding="utf-8"))
    assert rows[0]["task"] == "9?" and "Thought ?" in views_of[0]
    views.trajectory(one).data.encode()  # a notebook is written as UTF-8
    assert "page \\ud83d" in (run / "trajectories.json").read_text(encoding="utf-8")
