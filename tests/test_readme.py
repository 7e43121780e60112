"""README.md is a front page: short, with links that exist, Python that runs, and numbers of the committed tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = FENCED.sub("", README)
TABLES = re.findall(r"(?:^\|.*\n)+", PROSE, re.MULTILINE)


def rows(table: str) -> list[list[str]]:
    """The cells of a table, without the line below its head."""
    lines = [line for line in table.splitlines() if not re.fullmatch(r"[|:\- ]+", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def python_block() -> str:
    (code,) = [code for language, code in FENCED.findall(README) if language == "python"]
    return code


def test_the_page_has_at_most_900_words_outside_code() -> None:
    assert len(PROSE.split()) <= 900


def test_there_are_two_tables_of_five_columns_with_short_cells() -> None:
    assert len(TABLES) == 2
    for table in TABLES:
        assert all(len(row) == len(rows(table)[0]) <= 5 for row in rows(table))
        assert max(len(cell) for row in rows(table) for cell in row) <= 60


@pytest.mark.parametrize(
    "target", sorted({link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PROSE)} - {""})
)
def test_each_relative_link_exists(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("eef.tracking.runs.default_root", lambda: tmp_path)
    code = python_block()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    small = code.replace(": 60", ": 6").replace("Settings()", "Settings(epochs=1.0)")
    assert small.count(": 6") == 2 and "epochs=1.0" in small  # the reduced version is reduced
    exec(compile(small, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    for method in ("sft_pos", "rft", "eef"):
        assert re.search(rf"^{method}: \d+\.\d% after \d+ simulated episodes$", printed, re.MULTILINE)
    assert list(tmp_path.glob("webshop__eef-m1__s0__*"))


def claims() -> ModuleType:
    """The script that computes intervals from the committed tables."""
    spec = spec_from_file_location("recompute_claims", ROOT / "experiments" / "recompute_claims.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def signed(values: Iterable[float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*values).replace("-", "−")


def test_the_result_table_is_computed_from_the_committed_tables() -> None:
    script = claims()
    table, differences = script.arms("figure3"), script.differences("figure3", "win_rate")
    head, *body = rows(TABLES[0])
    assert head[1:] == ["simulated episodes", "win %", "95 % interval", "minus RFT × 6"]
    arms = [script.BC, script.RFT, script.EEF_1, script.EEF, script.CEILING]
    for row, arm in zip(body, arms, strict=True):
        mean, low, high = script.interval(100 * table[arm]["win_rate"])
        assert row[1:4] == [f"{table[arm]['episodes'].mean():,.0f}", f"{mean:.1f}", f"{low:.1f} to {high:.1f}"]
        assert row[4] == ("" if arm == script.RFT else signed(script.interval(differences[arm, script.RFT])))


def test_each_interval_of_a_difference_is_computed_from_the_committed_tables() -> None:
    script = claims()
    computed = []
    for sweep in ("figure3", "paper_webshop", "scienceworld"):
        for column in ("win_rate", "win_rate_hard"):
            computed += [values for values in script.differences(sweep, column).values() if not values.isna().any()]
    pair = (script.EEF, script.RFT)
    computed.append(pd.concat([script.differences(sweep, "win_rate")[pair] for sweep in ("figure3", "paper_webshop")]))
    known = {signed(script.interval(sign * values)) for values in computed for sign in (1, -1)}
    for page in ["README.md", *(f"figures/{name}README.md" for name in ("", "figure3/", "scienceworld/"))]:
        text = (ROOT / page).read_text(encoding="utf-8")
        claimed = re.findall(r"[+−]\d+\.\d \([+−]\d+\.\d to [+−]\d+\.\d\)", text)
        assert len(claimed) >= 4 and set(claimed) <= known, page
