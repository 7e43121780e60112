"""The script that describes the expert of a sweep over its error rates."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml


def test_the_expert_of_each_cell_is_that_of_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    sweep = {
        "seeds": [1, 2],
        "parameters": {"max_steps": 15, "catalogue": {"seed": 100}, "train_tasks": 40},
        "grid": {"expert_noise": [{"late": 0.0, "base": 0.0}, {"late": 0.9, "base": 0.3}]},
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    import_module("fixed_win_rate").of_sweep(file)
    rows = [[float(cell) for cell in line.strip("| \n").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [[0.0, 0.0], [0.9, 0.3]]
    (wins, pages_of_wins), (fewer, pages_of_fewer) = (row[2:4] for row in rows)
    assert (
        wins > fewer + 20 and pages_of_wins > pages_of_fewer and all(0 <= cell <= 100 for row in rows for cell in row)
    )
