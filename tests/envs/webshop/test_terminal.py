"""An episode in the terminal, and the commands of ``eef webshop``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from eef.cli import main
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate, write
from eef.envs.webshop.terminal import numbered_page, parse_line, play_by_hand


@pytest.fixture
def env(triple: Any) -> WebShop:
    return WebShop(data=triple, split={"train": [0, 1, 2, 3, 4, 5, 6]})


def episode(env: WebShop, start: str, lines: list[str]) -> tuple[Any, str]:
    task = next(str(i) for i, goal in enumerate(env.shop.goals) if goal.instruction_text.startswith(start))
    shown: list[str] = []
    typed = iter(lines)

    def ask(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    return play_by_hand(env, task, ask, shown.append), "\n".join(shown)


def test_an_episode_that_wins(env: WebShop) -> None:
    step, shown = episode(env, "i want", ["red cotton shirt", "3", "red", "Buy Now"])
    assert step.reward == 1.0 and "Won: reward 1.000 = 3 of 3 parts met x type 1" in shown
    assert "attribute   met    soft" in shown and "option      met    red" in shown
    assert "  [3] B000000001\n" in shown and "red *\n" in shown and "with color: red" in shown
    assert "wanted        i want a soft red shirt" in shown and "4 actions" in shown


def test_an_episode_that_misses_is_explained(env: WebShop) -> None:
    lines = ["", "7", "search[plain wool sock 0]", "99", "what?", "click[nothing]", "click[b000000010]", "buy now"]
    step, shown = episode(env, "i want", lines)
    assert step.reward < 1 and shown.count("? type a number") == 4
    assert "click[nothing] is invalid here: nothing happened, but it counts as an action" in shown
    assert "Not won: reward 0.000 = 1 of 3 parts met x type 0" in shown
    assert "another query, a shared category, 0% of the wanted title's nouns" in shown
    assert "option      missed red" in shown and "with no option" in shown and "price       missed $1200.50" in shown
    assert "such as B000000001 red cotton shirt" in shown


def test_quitting_is_not_an_error(env: WebShop) -> None:
    assert episode(env, "i want", ["shirt", "q"])[0] is None
    assert episode(env, "i want", [])[0] is None


def test_lines_are_read_as_actions() -> None:
    assert parse_line("red shirt", ["search"]) == "search[red shirt]" and parse_line("1", ["search"]) is None
    assert [parse_line(number, ["a", "b"]) for number in "203"] == ["click[b]", None, None]
    assert parse_line("B", ["a", "b"]) == "click[B]" and parse_line("c", ["a"]) is None
    assert parse_line("search[x]", ["a"]) == "search[x]"


def test_long_texts_are_shortened_and_rich_pages_are_split_into_lines() -> None:
    assert numbered_page(f"a [SEP] {'x' * 900}", []).endswith(" ...")
    assert len(numbered_page("one\ntwo\n", []).splitlines()) == 4


def test_generate_build_and_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "made")
    assert main(["webshop", "generate", "--products", "200", "--seed", "3", "--goals", "20", folder]) == 0
    assert main(["webshop", "build", folder]) == 0
    assert "opens it" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("search[shirt]\nq\n"))
    assert main(["webshop", "play", "--data", folder, "--task", "2"]) == 0
    assert "Page 1" in capsys.readouterr().out
    for words, says in (
        (["play", "--data", folder, "--task", "99"], "no task '99': tasks are '0' to '19'"),
        (["play", "--data", str(tmp_path / "gone")], "no folder"),
        (["build", str(tmp_path)], "contains no items_shuffle"),
        (["generate", "--products", "0", folder], "'products' must be at least 1"),
        (["generate", "--goals", "0", folder], "'goals' must be at least 1"),
    ):
        assert main(["webshop", *words]) == 2
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error


def test_limited_goals_are_a_sample(tmp_path: Path) -> None:
    shop = CatalogueSpec(products=400)
    products, attributes, instructions = generate(shop)
    assert len(instructions) > 40
    folder = write(shop, tmp_path, goals=40)
    assert json.loads((folder / "items_shuffle.json").read_text()) == products
    assert json.loads((folder / "items_ins_v2.json").read_text()) == attributes
    sampled = json.loads((folder / "items_human_ins.json").read_text())
    assert len(sampled) == 40 and all(instructions[asin] == rows for asin, rows in sampled.items())
    assert set(sampled) != set(list(instructions)[:40])
    assert not list(folder.glob("*.part"))
