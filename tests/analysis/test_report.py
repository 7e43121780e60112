"""The page of a sweep: self-contained, escaped, and explicit about what is missing; read by a real browser."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eef.analysis import report
from eef.analysis.arms import FigureError
from eef.analysis.report import page
from eef.cli import main
from eef.files import write_json
from eef.sweeps import results
from eef.tracking.runs import Run, log_metrics
from eef.trajectory import Trajectory, Turn, save

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "polyline", "br"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def add(root: Path, method: str, seed: int, rate: float, dirty: bool = False, **config: Any) -> Run:
    stamp = {"commit": "0123456789abcdef", "dirty": dirty, "hashes": {"catalogue": "c"}}
    run = Run.open(root, "webshop", method, seed, {"lr": 0.1, "method": method, **config}, stamp, group="demo")
    wins = [i < 40 * rate for i in range(40)]
    rows = [f"t{i},{won},{float(won)},3,done,False,{'hard' if i % 2 else 'easy'}" for i, won in enumerate(wins)]

    def test(at: Path) -> None:
        turns = (Turn("click[<b>buy</b>]", "a page with <script>alert(1)</script>"),)
        save(
            [Trajectory(f"t{i}", "find a mug", turns, float(won), won) for i, won in enumerate(wins)],
            at / "trajectories.jsonl",
        )

    def score(at: Path) -> None:
        (at / "episodes.csv").write_text("\n".join(["task,won,reward,steps,outcome,error,group", *rows]) + "\n")

    def sft(at: Path) -> None:
        log_metrics(at, [{"step": i, "loss": 1 / (i + 1)} for i in range(9)])

    run.stage("sft-0", {"method": method, "seed": seed}, sft)
    run.stage("test", {"method": method, "seed": seed, **config}, test)
    run.stage("eval", {"method": method, "seed": seed, **config}, score)
    method, *options = method.split("-")
    result = {
        "method": method,
        "n": None,
        "m": None,
        "experts": "strong",
        "seed": seed,
        "episodes": 100,
        "env_steps": 9,
    }
    result |= {option[0]: int(option[1:]) for option in options}
    run.finish({**result, "tokens": 9, "win_rate": rate, "win_low": rate - 0.1, "win_high": rate + 0.1,
                "mean_reward": rate, "n_test": 40, "errors": 0})  # fmt: skip
    return run


def sweep_of(root: Path) -> dict[str, Any]:
    runs = [
        add(root, m, s, r + s / 20) for m, r in (("sft_pos", 0.3), ("rft-n2", 0.4), ("eef-m5", 0.6)) for s in (0, 1)
    ]
    index = {"run_ids": [run.run_id for run in runs], "missing": [], "command": "eef sweep demo.yaml -p 'a=<b>'"}
    write_json(root / "sweeps" / "demo.json", index)
    return index


class Balanced(HTMLParser):
    """Every element that opens closes; collects tags and outside references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.outside += [v for k in ("src", "href") if (v := named.get(k)) and re.match(r"(https?:)?//", v)]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def cells(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    return [
        [html.unescape(re.sub("<[^>]+>", "", c)) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_the_page_has_the_comparison_and_needs_nothing_else(tmp_path: Path) -> None:
    index = sweep_of(tmp_path)
    path = page(tmp_path, "demo", tmp_path / "reports" / "demo.html", index=index)
    text = path.read_text()
    reader = Balanced()
    reader.feed(text)
    assert not reader.open and not reader.outside and "script" not in reader.tags and "link" not in reader.tags
    assert text.count('src="data:image/png;base64,') == 1
    rows = cells(text)
    assert ["EEF, M = 5", "webshop", "60.0", "65.0", "62.5"] in rows
    (difference,) = [row for row in rows if row[:2] == ["EEF, M = 5", "RFT × 2"]]
    assert difference[2] == "+20.0" and difference[5:8] == ["2", "2", "80"]
    assert "Holm's method for all" in text and "t-intervals over seeds" in text
    for run_id in index["run_ids"]:
        assert f'href="../{run_id}"' in text and (path.parent / ".." / run_id).resolve().is_dir()
    assert ["EEF, M = 5", "strong", "2"] in [row[:3] for row in rows]  # the table of methods
    arms = {"BC (SFT-pos)", "RFT × 2", "EEF, M = 5"}
    assert {row[1] for row in rows if row[0] in index["run_ids"]} == arms
    assert {html.unescape(name) for name in re.findall(r"<summary><b>([^<]*)</b> <span", text)} == arms
    assert "prefers-color-scheme: dark" in text and 'content="width=device-width' in text
    assert text.count('class="eef eef-view"') == 6 * 3 and "<polyline" in text and "0.111" in text
    assert "&lt;script&gt;alert(1)" in text and "eef sweep demo.yaml -p &#39;a=&lt;b&gt;&#39;" in text
    assert page(tmp_path, "demo", tmp_path / "reports" / "b.html", index=index).read_text() == text


def test_unreadable_answers_are_counted_where_they_are_known(tmp_path: Path) -> None:
    runs = [add(tmp_path, "rft-n2", seed, 0.5) for seed in (0, 1)]
    path = runs[0].folder / "result.json"
    write_json(path, {**json.loads(path.read_text()), "no_action": 2, "ambiguous": 0, "cut": 1})
    rows = cells(page(tmp_path, None, tmp_path / "all.html").read_text())
    head = next(row for row in rows if "unreadable" in row)
    shown = {row[0]: row[head.index("unreadable")] for row in rows if len(row) == len(head)}
    assert [shown[run.run_id] for run in runs] == ["3", ""]


def test_the_page_reports_problems(tmp_path: Path) -> None:
    add(tmp_path, "rft-n2", 0, 0.4, dirty=True, expert_noise=1)
    add(tmp_path, "rft-n2", 0, 0.5, expert_noise=2)
    index = {"missing": ["eef-m5-s0"], "command": "again"}
    text = page(tmp_path, None, tmp_path / "all.html", index=index).read_text()
    assert (
        "1 points are not finished: eef-m5-s0" in text and "1 of 2 runs came from a checkout with uncommitted" in text
    )
    assert "left out: the figure, the table of methods" in text
    assert "several runs of one arm differ in expert_noise" in text
    assert ["RFT × 2", "webshop", "2", "50.0", "50.0"] in cells(text)
    bare = Run.open(tmp_path / "bare", "webshop", "mine", 0, {}, {})
    bare.finish({"method": "mine", "score": 1})
    assert "left out: the figure" in page(tmp_path / "bare", None, tmp_path / "bare.html").read_text()
    with pytest.raises(FigureError, match="no finished runs"):
        page(tmp_path / "none", None, tmp_path / "none.html")


def test_the_command_writes_the_page_and_says_why_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_of(tmp_path)
    assert main(["report", "--sweep", "demo", "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "reports" / "demo.html").is_file() and "demo.html" in printed
    assert "W&B report: none, WANDB_MODE is disabled" in printed
    assert main(["report", "--sweep", "other", "--root", str(tmp_path)]) == 2
    assert "no sweep 'other'" in capsys.readouterr().err


def test_runs_of_a_sweep_that_have_no_result_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = sweep_of(tmp_path)["run_ids"]
    (tmp_path / ids[4] / "result.json").rename(tmp_path / ids[4] / "result.before.json")
    shutil.rmtree(tmp_path / ids[0])
    line = f"2 runs of this sweep have no result: {ids[4]}, {ids[0]}; run the sweep again"
    at = ["--sweep", "demo", "--root", str(tmp_path)]
    assert main(["figures", *at, "--out", str(tmp_path / "out")]) == 0
    assert f"warning: {line}\n" in capsys.readouterr().out
    assert main(["report", *at]) == 0
    assert f"warning: {line}\n" in capsys.readouterr().out
    text = (tmp_path / "reports" / "demo.html").read_text()
    assert line in text and "4 of 6 runs finished" in text
    assert "4 of 4 runs finished" in page(tmp_path, None, tmp_path / "all.html").read_text()


def shown(root: Path, name: str = "demo") -> list[str]:
    return re.findall(r'<img alt="([^"]*)"', (root / "reports" / f"{name}.html").read_text())


def test_a_picture_that_was_not_drawn_this_time_is_on_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_of(tmp_path)
    out, spec = tmp_path / "out", tmp_path / "demo.yaml"
    out.mkdir()
    names = ["curve", "failed_trajectory", "map"]
    for name in names:
        (out / f"{name}.png").write_bytes(b"old")
        os.utime(out / f"{name}.png", (1, 1))

    def draw(*_: object) -> None:
        (out / "curve.png").write_bytes(b"new")
        raise RuntimeError("no failed trajectory")

    monkeypatch.setattr(results, "find_notebook", lambda file, name: file)
    monkeypatch.setattr(results, "_draw_with_notebook", draw)
    with pytest.raises(RuntimeError):
        results.draw_sweep(tmp_path, "demo", {"notebook": "n.ipynb", "draw": names}, spec, str(out))
    printed = capsys.readouterr().out
    assert "curve.png" in printed and "failed_trajectory" not in printed and "map.png" not in printed
    assert shown(tmp_path) == ["curve"]


def test_a_report_has_no_pictures_of_another_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "repo_root", lambda: tmp_path)
    first, second = tmp_path / "a", tmp_path / "b"
    for root in (second, first):
        sweep_of(root)
    for name in ("demo", "all"):
        (tmp_path / "figures" / name).mkdir(parents=True)
        (tmp_path / "figures" / name / "map.png").write_bytes(b"of the first root")
    results.publish(first, "demo", results.read_index(first, "demo"), [tmp_path / "figures" / "demo" / "map.png"])
    for root in (first, second):
        for name in ("demo", None):
            results.write_report(root, name, None)
    assert shown(first) == ["map"] and shown(second) == ["win_rate_vs_budget"]
    assert shown(first, "all") == shown(second, "all") == ["win_rate_vs_budget"]
    os.utime(tmp_path / "figures" / "demo" / "map.png", (2e9, 2e9))  # drawn again from the second root
    results.write_report(first, "demo", None)
    assert shown(first) == ["win_rate_vs_budget"]


@pytest.mark.skipif(not BROWSER, reason="no Chromium here (Debian: apt install chromium)")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    path = page(tmp_path, "demo", tmp_path / "demo.html", index=sweep_of(tmp_path))
    script = (
        "<script>document.title = JSON.stringify([...document.images].map(i => [i.complete, i.naturalWidth]))</script>"
    )
    path.write_text(path.read_text() + script)
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    words += ["--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title, shown[:500]
    ((complete, wide),) = json.loads(html.unescape(title.group(1)))
    assert complete and wide == 1620 and shown.count("<tr") > 15


def test_a_run_without_a_number_of_errors_does_not_hide_those_of_others() -> None:
    frame = pd.DataFrame({"errors": [math.nan, 3.0]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_stamps", lambda runs: [{"commit": "c"}] * 2)
        assert report._warnings(frame, {}) == ["3 test episodes ended in an infrastructure error; rates exclude them"]
        assert report._warnings(frame.assign(errors=0.0), {}) == []
