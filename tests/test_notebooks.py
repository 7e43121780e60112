"""The notebooks: thin, without outputs, and executed from start to end on small parameters."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from eef.agents.model_files import folder_of
from eef.analysis.outcomes import read_outcomes
from eef.cli import main
from eef.envs import TextEnv, expert_states
from eef.envs.extras import extras_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = "{products: 700, train: 20, eval: 0, test: 20, grades: [0.5, 0.3, 0.2]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_thin(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "papermill" not in notebook.metadata
    trees = [ast.parse(cell.source) for cell in code]
    kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    assert not any(isinstance(node, kinds) for tree in trees for node in ast.walk(tree))
    parameters = [tree for cell, tree in zip(code, trees, strict=True) if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    for line in parameters[0].body:
        assert isinstance(line, ast.Assign)
        ast.literal_eval(line.value)  # literals only


DEMO = ROOT / "experiments" / "demo.yaml"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_open_in_colab(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python notebooks/colab.py` would change nothing; the address is that of CITATION.cff, and only there."""
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    import colab

    notebook = nbformat.read(path, as_version=4)
    assert colab.with_cells(notebook, path.name) == notebook
    assert notebook.cells[0].id == colab.BADGE and f"main/notebooks/{path.name})" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].id == colab.CODE and "parameters" in code[1].metadata.tags
    assert colab.address() in code[0].source and colab.address().startswith("https://github.com/")


def test_the_first_cell_installs_on_colab_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setattr("os.chdir", lambda folder: commands.append(["cd", folder]))
    exec(source, {})
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(source, {})  # eef is installed here
    assert not commands
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(source, {})
    assert [command[:2] for command in commands] == [["git", "clone"], [sys.executable, "-m"], ["cd", "/content/eef"]]


def small_demo(folder: Path, points: list[dict[str, Any]] | None = None) -> list[str]:
    """Arguments of `eef` that run the demo on a small shop under ``folder``; ``points``: other arms, more figures."""
    file = DEMO
    if points is not None:
        spec = yaml.safe_load(DEMO.read_text())
        spec["figure"]["draw"] = ["win_rate_vs_budget", "learning_curves", "selection"]
        file = folder / DEMO.name
        file.write_text(yaml.safe_dump({**spec, "points": points}))
    words = ["sweep", str(file), "--root", str(folder / "runs")]
    for change in (f"catalogue={SMALL}", "epochs=2", "wandb=disabled", "train_tasks=0", "test_tasks=0"):
        words += ["-p", change]
    return [*words, "--out", str(folder / "figure")]


POINTS = yaml.safe_load(DEMO.read_text())["points"]
TWO = [{"method": "rft", "n": 1}, {"method": "eef", "m": 1}]


@pytest.mark.parametrize("points", [TWO, pytest.param(POINTS, marks=pytest.mark.slow)], ids=["two arms", "all arms"])
def test_the_main_job_from_sweep_to_figure(
    points: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`eef sweep experiments/demo.yaml`, small: arms, the figure, and the same table from a second start."""
    assert all(point in POINTS for point in points)
    words = small_demo(tmp_path, points)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "to repeat:" in printed and "win_rate_vs_budget.png" in printed
    table = tmp_path / "figure" / "win_rate_vs_budget.csv"
    first = table.read_bytes()
    frame = pd.read_csv(table)
    assert set(frame["method"]) == {point["method"] for point in points}
    assert len(frame) == len(points)
    for point in points:  # RFT x N simulates its 20 subtasks N times; EEF simulates them once, and expert states
        (row,) = [row for row in frame.to_dict("records") if all(row[name] == point[name] for name in point)]
        least = 20 * point.get("n", "m" in point)
        assert row["episodes"] > least if "m" in point else row["episodes"] == least
    assert frame["win_rate"].between(0, 1).all() and frame["errors"].eq(0).all()
    outcomes = read_outcomes(tmp_path / "figure").groupby("run_id")
    assert outcomes["won"].mean().to_dict() == pytest.approx(frame.set_index("run_id")["win_rate"].to_dict())
    budget = pd.read_csv(tmp_path / "figure" / "outcomes.csv").set_index("run_id").loc[frame["run_id"]]
    assert budget["sampled_tokens"].tolist() == frame["tokens"].tolist()
    simulating = budget[budget["episodes"] > 0]
    assert (simulating["prefilled_tokens"] > 50 * simulating["episodes"]).all(), "a page has more than 50 tokens"
    assert (budget[["examples", "loss_tokens", "optimiser_steps"]] > 0).all(axis=None)
    for kind in ("png", "svg"):
        assert (tmp_path / "figure" / f"win_rate_vs_budget.{kind}").stat().st_size > 10_000
    assert main(words) == 0  # nothing is left to run: only the figure is drawn again
    assert table.read_bytes() == first
    (index,) = (tmp_path / "runs" / "sweeps").glob("*.json")
    again = ["--root", str(tmp_path / "runs"), "--sweep", index.stem, "--out", str(tmp_path / "again")]
    assert main(["figures", *again]) == 0
    for name in ("outcomes.csv", "subtasks.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "figure" / name).read_bytes()
    (book,) = (tmp_path / "runs" / "notebooks").glob("demo-*__figures.ipynb")
    shown = outputs_of(book)
    assert (tmp_path / "figure" / "learning_curves.png").stat().st_size > 10_000
    assert shown.count('class="eef eef-view eef-table"') == sum(point["method"] == "eef" for point in points)


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_table_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """Two sweeps with one seed, the second one killed at three random moments, give the same bytes."""
    assert main(small_demo(tmp_path / "whole")) == 0
    again = small_demo(tmp_path / "killed")
    for moment in random.Random(0).sample(range(8, 40), 3):
        process = subprocess.Popen([sys.executable, "-m", "eef.cli", *again])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment)
        process.kill()
        process.wait()
    assert main(again) == 0
    tables = [tmp_path / name / "figure" / "win_rate_vs_budget.csv" for name in ("whole", "killed")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


@pytest.mark.slow
def test_the_base_model_notebook_writes_a_model_that_loads(tmp_path: Path) -> None:
    small = {
        "documents_train": 24,
        "documents_second": 8,
        "documents_held": 6,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "out": str(tmp_path),
    }
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "base_model.ipynb"), None, small, kernel_name="python3", progress_bar=False
    )
    assert json.loads((tmp_path / "chat.json").read_text()) == {"aliases": "webshop", "constrained_decoding": True}
    assert (tmp_path / "model.safetensors").stat().st_size > 0


SHORT = {
    "quickstart": {"train_tasks": 16, "simulated_failures": 3, "epochs": 1.0, "repeats": 1},
    "experts": {"tasks": 40},
    "own_environment": {"train_tasks": 20, "test_tasks": 5, "methods": ["eef"], "m": 1, "epochs": 1.0},
    "own_model": {"examples": 2},
}


def executed(name: str, folder: Path, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """All outputs of the notebook, as text; papermill raises if a cell fails."""
    monkeypatch.setenv("EEF_ROOT", str(folder / "runs"))
    out = folder / f"{name}.ipynb"
    papermill.execute_notebook(
        str(ROOT / "notebooks" / f"{name}.ipynb"), str(out), parameters, kernel_name="python3", progress_bar=False
    )
    return outputs_of(out)


def outputs_of(notebook: Path) -> str:
    """All outputs of an executed notebook, as text. None of them may be a warning."""
    outputs = [o for cell in nbformat.read(notebook, as_version=4).cells for o in cell.get("outputs", [])]
    assert not any("Warning" in o.get("text", "") for o in outputs if o.get("name") == "stderr")
    return "\n".join(o.get("text") or str(o.get("data")) for o in outputs)


EXPECTED = {
    "quickstart": ["thrown away by RFT", "carry loss", "one simulation", "eef-table"],
    "experts": ["win_rate", "option wrong or missing", "image/png"],
    "own_environment": ["with a screen turned", "win_rate", "eef-table"],
    "own_model": ["<|im_end|>", "tokens carry loss", "learnt_tokens", "policy", "SFT: ", "actions were invalid"],
}


SLOW = ("own_environment",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SHORT]
)
def test_a_notebook_runs_on_small_parameters(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = executed(name, tmp_path, SHORT[name], monkeypatch)
    assert not [words for words in EXPECTED[name] if words not in shown]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_notebook_runs_on_its_own_parameters(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = executed(name, tmp_path, {}, monkeypatch)
    assert not [words for words in EXPECTED[name] if words not in shown]
    if name == "quickstart":
        assert "harmful: from" in shown and "on the way from" in shown  # the first picture shows both
        marks = re.findall(r"<b>(click|search)\[([^<]*)\]</b></code>.*?</span>([^<]*)<", shown)
        assert ("click", "next &gt;", "on the way from s0, which lost, to s2, which won") in marks
        assert ("click", "wide", "harmful: from s3, which won, to s4, which lost") in marks
        shares = re.findall(r"s(\d) +([✓✗]) +20 +(\d+)", shown)
        assert len(shares) == 6 and all((int(won) >= 10) == (mark == "✓") for _, mark, won in shares)


@pytest.mark.slow
def test_the_notebook_on_experts_takes_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ScienceWorld names no navigation skills, and its rewards have no parts."""
    shown = executed("experts", tmp_path, {"env": "scienceworld", "max_steps": 16, "tasks": 12}, monkeypatch)
    assert "The environment scienceworld names no navigation skills." in shown
    assert "max_steps" in shown and "option wrong" not in shown


def test_an_environment_in_fifty_lines_keeps_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "notebooks"))
    from own_environment import ClerkNoise, Kiosk, play_expert

    lines = inspect.getsource(Kiosk).splitlines()
    assert sum(bool(line.strip()) for line in lines) < 50
    kiosk = Kiosk(60, 20)
    names = [name for name in vars(TextEnv) if not name.startswith("_")]
    assert all(hasattr(kiosk, name) for name in [*names, *TextEnv.__annotations__])
    assert not set(kiosk.tasks("train")) & set(kiosk.tasks("test"))
    experts = [play_expert(kiosk, task) for task in kiosk.tasks("train")]
    assert {t.won for t in experts} == {True, False}
    assert experts == [play_expert(kiosk, task) for task in kiosk.tasks("train")]
    assert all(play_expert(kiosk, task, ClerkNoise()).won for task in kiosk.tasks("test"))
    extras = extras_of(kiosk)
    assert extras.experts is not None and extras.experts.play is play_expert and set(extras.skills) == {"next", "prev"}
    turns = [
        sum("next >" in action for action in play_expert(kiosk, t, ClerkNoise()).actions) for t in kiosk.tasks("test")
    ]
    grades = extras.groups(kiosk, kiosk.tasks("test"))
    assert grades is not None and set(grades.values()) == {"easy", "hard"}
    assert [count <= 2 for count in turns] == [grade == "easy" for grade in grades.values()]
    for expert in experts:
        for index, twin in expert_states(kiosk, expert, list(range(len(expert)))).items():
            assert f"{expert.actions[index]}" in twin.available_actions()["actions"]
    assert not kiosk.step("search[x]").valid


@pytest.mark.parametrize("model", ["embedded", "embedded-mistral", "embedded-scienceworld"])
def test_a_shipped_base_model_is_small_and_has_a_card(model: str) -> None:
    folder = Path(folder_of(model))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10 * 2**20
    assert "random walks" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_scienceworld_from_walks_to_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The base notebook and `eef sweep experiments/scienceworld.yaml`, both small, on the real simulator."""
    small = {"count": 6, "held": 1, "longest": 4, "width": 32, "layers": 1, "heads": 2, "epochs": 1.0, "processes": 1}
    base = tmp_path / "base"
    notebook = str(ROOT / "notebooks" / "base_scienceworld.ipynb")
    papermill.execute_notebook(notebook, None, small | {"out": str(base)}, kernel_name="python3", progress_bar=False)
    assert json.loads((base / "chat.json").read_text()) == {"constrained_decoding": True}
    words = ["sweep", str(ROOT / "experiments" / "scienceworld.yaml"), "--root", str(tmp_path / "runs")]
    options = "{valid_actions: true, tasks: [find-non-living-thing], variations: {train: 6, test: 2}}"
    changes = ("expert_noise={fail: 0.5}", "epochs=1", "wandb=disabled", "seeds=[0]", "max_steps=6")
    for change in (f"env_options={options}", f"model={base}", *changes):
        words += ["-p", change]
    assert main([*words, "--out", str(tmp_path / "figure")]) == 0
    frame = pd.read_csv(tmp_path / "figure" / "win_rate_vs_budget.csv")
    assert set(frame["method"]) == {"sft_pos", "ceiling", "rft", "eef", "eef_restart_only=True"}
    assert frame["errors"].eq(0).all()
    assert frame.set_index("n").loc[6, "episodes"] == 36 and frame["n_test"].eq(2).all()
    episodes = pd.read_csv(next((tmp_path / "runs").glob("scienceworld__eef*/eval/episodes.csv")))
    assert episodes["max_score"].between(0, 1).all() and set(episodes["group"]) == {"find-non-living-thing"}
    assert "main_table.md" in capsys.readouterr().out
