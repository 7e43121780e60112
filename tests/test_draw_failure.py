"""The script that draws a failed expert trajectory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_clear_failure_the_script_says_what_to_raise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    script = import_module("draw_failure")
    words = ["--settings", "{epochs: 1.0}", *"--tasks 6 --simulations 2 --seed 5".split()]
    with pytest.raises(SystemExit, match="reliable labels: raise --tasks or --simulations"):
        script.main([*words, "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")])
    assert "wins of 2 at each state: [" in capsys.readouterr().out  # two simulations never make a label reliable
    assert not (tmp_path / "figures").exists()
