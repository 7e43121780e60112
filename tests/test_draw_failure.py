"""The script that draws a failed expert trajectory."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_simulations_that_ended_in_an_error_are_neither_won_nor_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten wins and thirty errors are ten of ten, which no label can rest on, rather than thirty losses."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script = import_module("draw_failure")

    def simulate(lab: Any, experts: Any, times: int, stage: str, seed: int) -> Any:
        ends = ["win"] * (times // 4 or 1) + ["env_error"] * (times - (times // 4 or 1))
        return [
            [
                [replace(expert, won=end == "win", outcome="done" if end == "win" else end) for end in ends]
                for _ in expert.turns
            ]
            for expert in experts
        ]

    monkeypatch.setattr(script, "simulate", simulate)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(script, "is_reliable", lambda wins, valid: drawn.setdefault("counts", (wins, valid)) and False)
    with pytest.raises(SystemExit, match="reliable labels"):
        script.main(
            [*"--tasks 6 --simulations 40".split(), "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "f")]
        )
    assert drawn["counts"] == (10, 10) and "at each state: 10/10, 10/10" in capsys.readouterr().out


def test_without_a_clear_failure_the_script_says_what_to_raise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script = import_module("draw_failure")
    words = ["--settings", "{epochs: 1.0}", *"--tasks 6 --simulations 2 --seed 5".split()]
    with pytest.raises(SystemExit, match="reliable labels: raise --tasks or --simulations"):
        script.main([*words, "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")])
    assert "wins/simulations at each state: " in capsys.readouterr().out  # two simulations never make a label reliable
    assert not (tmp_path / "figures").exists()
