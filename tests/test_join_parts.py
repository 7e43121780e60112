"""Parts of a sweep, joined, are the sweep's own tables."""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "figures" / "demo"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return import_module("join_parts")


def part(folder: Path, values: list[str], figures: Path = DEMO, column: str = "method") -> Path:
    """The runs of a sweep's tables that have one of ``values`` in ``column``."""
    folder.mkdir()
    shutil.copy(figures / "subtasks.csv", folder)
    for name in ("win_rate_vs_budget", "win_rate_over_parameter", "outcomes"):
        if not (figures / f"{name}.csv").is_file():
            continue
        table = pd.read_csv(figures / f"{name}.csv", dtype=str, keep_default_na=False)
        table = table[table[column].isin(values)]
        table.to_csv(folder / f"{name}.csv", index=False)
    table[["run_id"]].assign(seconds=len(values)).to_csv(folder / "seconds.csv", index=False)
    return folder


def test_two_parts_give_the_tables_of_the_whole_sweep(script: ModuleType, tmp_path: Path) -> None:
    parts = [part(tmp_path / "a", ["rft", "ceiling"]), part(tmp_path / "b", ["eef", "sft_pos"])]
    (picture,) = script.join(parts, tmp_path / "whole")
    assert picture.is_file()
    for name in ("win_rate_vs_budget.csv", "outcomes.csv", "subtasks.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (DEMO / name).read_bytes(), name
    seconds = pd.read_csv(tmp_path / "whole" / "seconds.csv")["run_id"]
    assert len(seconds) == 7 and list(seconds) == sorted(seconds)


def test_arms_that_differ_in_k_alone_keep_their_order(script: ModuleType, tmp_path: Path) -> None:
    whole, seeds = ROOT / "figures" / "methods", [str(seed) for seed in range(381, 391)]
    parts = [part(tmp_path / f"{n}", seeds[n::2], whole, "seed") for n in (0, 1)]
    assert script.join(parts, tmp_path / "whole")[0].is_file()
    for name in ("win_rate_vs_budget.csv", "outcomes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (whole / name).read_bytes(), name


def test_tables_of_an_earlier_join_are_named_and_not_drawn(script: ModuleType, tmp_path: Path, capsys) -> None:
    parts, whole = [part(tmp_path / "a", ["rft"]), part(tmp_path / "b", ["eef"])], tmp_path / "whole"
    whole.mkdir()
    for folder in parts:
        (folder / "seconds.csv").unlink()
    for name in ("seconds", "win_rate_over_parameter"):
        (whole / f"{name}.csv").write_text("run_id,seconds\nold,1\n")
    assert [picture.stem for picture in script.join(parts, whole)] == ["win_rate_vs_budget"]
    printed = capsys.readouterr().out
    for name in ("seconds", "win_rate_over_parameter"):
        assert f"{whole / f'{name}.csv'} was not joined: it is of one part alone or of an earlier join" in printed


def test_parts_with_a_common_run_or_other_subtasks_are_refused(script: ModuleType, tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", ["rft"]), part(tmp_path / "b", ["rft", "eef"])
    with pytest.raises(ValueError, match="__rft-n1__.* is in two parts"):
        script.join([a, b], tmp_path / "whole")
    (b / "subtasks.csv").write_text("test_set,task,group\n1,7,easy\n")
    with pytest.raises(ValueError, match=r"subtasks.csv differs"):
        script.join([a, b], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_refused_join_leaves_its_parts_as_they_are(script: ModuleType, tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", ["rft"]), part(tmp_path / "b", ["rft"])
    for name in ("win_rate_vs_budget", "outcomes", "seconds"):  # the same arms, with other settings
        (b / f"{name}.csv").write_text((b / f"{name}.csv").read_text().replace("__s0__", "__s0__1"))
    before = {path.name: path.read_bytes() for path in a.iterdir()}
    with pytest.raises(ValueError, match="two parts have a run of .*'rft'"):
        script.join([a, b], a)
    assert {path.name: path.read_bytes() for path in a.iterdir()} == before


def test_parts_of_one_arm_with_other_settings_are_refused(script: ModuleType, tmp_path: Path) -> None:
    whole = ROOT / "figures" / "three_iterations"
    a, b = (part(tmp_path / f"{n}", seeds, whole, "seed") for n, seeds in enumerate((["351", "352"], ["353"])))
    for name in ("win_rate_vs_budget", "outcomes", "seconds"):
        text = (b / f"{name}.csv").read_text()
        (b / f"{name}.csv").write_text(re.sub(r"(__eef-m5__s353__)\w+", r"\1deadbeef", text))
    with pytest.raises(ValueError, match="one arm with other settings .*__eef-m5__s35.__"):
        script.join([a, b], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_sweep_over_a_parameter_is_joined_and_drawn(script: ModuleType, tmp_path: Path) -> None:
    whole, seeds = ROOT / "figures" / "late_curve", [str(seed) for seed in range(331, 339)]
    parts = [part(tmp_path / f"{n}", seeds[n::2], whole, "seed") for n in (0, 1)]
    (picture,) = script.join(parts, tmp_path / "whole")
    assert picture.name == "win_rate_over_parameter.png"
    for name in ("win_rate_over_parameter.csv", "outcomes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (whole / name).read_bytes(), name


def test_tables_that_cannot_be_joined_are_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = part(tmp_path / "a", ["rft"]), part(tmp_path / "b", ["eef"])
    for folder in (a, b):
        (folder / "win_rate_vs_budget.csv").unlink()
        (folder / "seconds.csv").unlink()
    (a / "navigation.csv").write_text("bar\n")
    assert script.join([a, b], a) == [], "no table to draw"
    assert "navigation.csv was not joined" in capsys.readouterr().out
    (part(tmp_path / "c", ["ceiling"]) / "outcomes.csv").unlink()
    with pytest.raises(ValueError, match="c/outcomes.csv is missing"):
        script.join([a, tmp_path / "c"], tmp_path / "whole")


def test_a_part_without_errors_has_none_in_the_joined_table(script: ModuleType, tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", ["rft"]), part(tmp_path / "b", ["eef"])
    table = pd.read_csv(b / "win_rate_vs_budget.csv", dtype=str, keep_default_na=False)
    table.insert(len(table.columns) - 1, "simulation_errors", "3")
    table.to_csv(b / "win_rate_vs_budget.csv", index=False)
    script.join([a, b], tmp_path / "whole")
    whole = pd.read_csv(tmp_path / "whole" / "win_rate_vs_budget.csv").set_index("method")
    assert whole["simulation_errors"].to_dict() == {"rft": 0, "eef": 3}
