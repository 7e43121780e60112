"""README.md is a front page: short, with links that exist and Python that runs. Its numbers: tests/test_results.py."""

from __future__ import annotations

import re
from pathlib import Path

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
