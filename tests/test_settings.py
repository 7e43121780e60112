"""Settings are validated when they are created, and the experiment notebook declares the same ones."""

from __future__ import annotations

import ast
import copy
import json
import pickle
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from transformers import TrainingArguments

from eef.settings import (
    GROUPS,
    PARAMETERS,
    RENAMED,
    Settings,
    TrainingSettings,
    check_parameters,
    parameter_lines,
    setting,
    write_parameters,
)
from eef.sweeps.executors import declared, failure
from eef.training.trainer import _named_arguments

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "experiment.ipynb"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tune": "lorra"}, "tune='lorra' must be one of 'lora', 'full'"),
        ({"quantize": "int3"}, "quantize='int3' must be one of None, 'nf4'"),
        ({"dtype": "half"}, "dtype='half' must be one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"optimizer": "sgd"}, "optimizer='sgd' must be one of 'adamw_torch', 'adamw_8bit', 'paged_adamw_8bit'"),
        ({"lr_schedule": "cosin"}, "lr_schedule='cosin' must be one of 'cosine', 'linear', 'constant_with_warmup'"),
        ({"packing": "packed"}, "packing='packed' must be one of 'auto', 'padded', 'flat'"),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing='yes' must be one of False, True"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing=1 must be one of False, True"),
        ({"restart": "best"}, "restart='best' must be one of 'base', 'last'"),
        ({"micro_batch_size": 0}, "micro_batch_size=0 must be a positive integer"),
        ({"updates": 0}, "updates=0 must be a positive integer"),
        ({"processes": 1.5}, "processes=1.5 must be a positive integer"),
        ({"slots": None}, "slots=None must be a positive integer"),
        ({"experts": None}, "experts=None must be a string"),
        ({"batch_size": 8, "processes": 3}, "batch_size=8 must be a multiple of processes x micro_batch_size: 3 x 1"),
        (
            {"batch_size": 8, "micro_batch_size": 3},
            "batch_size=8 must be a multiple of processes x micro_batch_size: 1 x 3",
        ),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes=-1.0 must be at least 0"),
        ({"epochs": 0}, "epochs=0.0 must be positive"),
        ({"epochs": -1}, "epochs=-1.0 must be positive"),
        ({"prompt": "react", "constrained_decoding": True}, "prompt='react' needs constrained_decoding=False"),
        ({"one_shot": True}, "one_shot=True needs prompt='react'"),
        ({"divergent_experts": "keep"}, "divergent_experts='keep' must be one of 'refuse', 'drop'"),
        ({"warmup_ratio": 5}, "warmup_ratio=5.0 must be at most 1"),
        ({"lr": float("nan")}, "lr=nan must be a finite number"),
        ({"temperature": "1"}, "temperature='1' must be a finite number"),
        ({"constrained_decoding": 1}, "constrained_decoding=1 must be one of None, False, True"),
        ({"tune": "full", "quantize": "nf4"}, "tune='full' with quantize='nf4'"),
        ({"tune": "full", "engine": "http://x"}, "tune='full' with engine="),
    ],
)
def test_an_invalid_setting_is_named_at_once(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epoch", r"unknown setting 'epoch' \(did you mean 'epochs'\?\): eef/settings.py explains all of them"),
        ("slips", r"unknown setting 'slips' \(now called 'expert_noise'\): "),
        ("zzz", "unknown setting 'zzz': "),
    ],
)
def test_an_unknown_setting_is_one_message_with_a_hint(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Settings(**{name: 2})
    assert copy.deepcopy(Settings(lr=1)) == pickle.loads(pickle.dumps(Settings(lr=1))) == replace(Settings(), lr=1)


def test_a_parameter_that_a_notebook_lacks_ends_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Papermill only warns. The message of the run is ours, once, without the traceback."""
    cells = [
        "epochs = 1  # passes\nmodel = 'a'",
        "from eef.settings import check_parameters\ncheck_parameters(globals())",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    book.cells[0].metadata.tags = ["parameters"]
    nbformat.write(book, tmp_path / "book.ipynb")
    paths = [str(tmp_path / name) for name in ("book.ipynb", "out.ipynb")]
    options: dict[str, Any] = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    papermill.execute_notebook(*paths, {"epochs": 3}, **options)
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'epoch'"):
        papermill.execute_notebook(*paths, {"epochs": 3, "epoch": 2}, **options)
    message = (
        "unknown parameter 'epoch' (did you mean 'epochs'?): the notebook's cell with the tag 'parameters' lists all"
    )
    assert failure(str(tmp_path / "out"), 1) == f"{message} of them"
    monkeypatch.setenv("EEF_DEBUG", "1")
    shown = failure(str(tmp_path / "out"), 1)
    assert shown.startswith(f"ValueError: {message}") and "raise ValueError" in shown and shown.count(message) == 1


def test_options_of_methods_need_no_declaration() -> None:
    history = ["", "m = 5", "# Parameters\nm = 1\nkeep = {'a': 1}\n"]
    check_parameters({})
    check_parameters({"In": history}, ["keep"])
    with pytest.raises(ValueError, match="unknown parameter 'keep'"):
        check_parameters({"In": history})


@pytest.mark.parametrize("path", sorted(NOTEBOOK.parent.glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_notebook_checks_its_parameters(path: Path) -> None:
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert sum("\ncheck_parameters(globals()" in source for source in code[2:3]) == 1


def test_the_notebook_declares_exactly_the_settings() -> None:
    """Names, order, defaults and comments."""
    (cell,) = (c for c in nbformat.read(NOTEBOOK, as_version=4).cells if "parameters" in c.metadata.get("tags", []))
    own, line, settings = cell.source.partition(PARAMETERS)
    assert (line + settings).splitlines() == parameter_lines(), (
        "the notebook's settings differ from eef/settings.py: python -m eef.settings notebooks/experiment.ipynb"
    )
    assert not {each.name for each in fields(Settings)} & {name for name in _assigned(own)}


def _assigned(source: str) -> list[str]:
    return [node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)]


def test_papermill_reads_every_parameter_with_its_comment() -> None:
    """It skips lines with a second ``=``, and takes all after a ``#`` for the comment."""
    parameters = declared(NOTEBOOK)
    for group in GROUPS:
        for each in fields(group):
            assert each.metadata["help"] and not set("=#\n") & set(each.metadata["help"])
            assert parameters[each.name]["help"].endswith(each.metadata["help"])
    assert set(RENAMED.values()) <= set(parameters) and not set(RENAMED) & set(parameters)


def test_the_defaults_of_the_notebook_are_those_of_the_settings() -> None:
    values = {name: ast.literal_eval(known["default"]) for name, known in declared(NOTEBOOK).items()}
    assert Settings.from_parameters(values) == Settings()


def test_settings_come_from_variables_by_name() -> None:
    variables = {"lr": 1, "quantize": "", "context": 0, "micro_batch_size": 4, "constrained_decoding": False, "seed": 3}
    settings = Settings.from_parameters(variables)
    assert settings == Settings(lr=1.0, micro_batch_size=4, constrained_decoding=False)
    with pytest.raises(ValueError, match="slots=0 must be a positive integer"):
        Settings.from_parameters({"slots": 0})
    with pytest.raises(ValueError, match="context=False must be a positive integer"):
        Settings.from_parameters({"context": False})


def test_a_generated_part_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "experiment.ipynb"
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = [line for line in cell["source"] if not line.startswith("lr =")]
    path.write_text(json.dumps(notebook))
    write_parameters(path)
    assert path.read_bytes() == NOTEBOOK.read_bytes()
    path.write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match="no cell has the line '# Settings"):
        write_parameters(path)


def test_a_field_that_names_an_argument_reaches_the_trainer() -> None:
    """One field, as someone who exposes another argument would add it."""
    added = [("max_grad_norm", float, setting(1.0, "largest norm of the gradient", argument="max_grad_norm"))]
    extended = make_dataclass("Extended", added, bases=(TrainingSettings,), frozen=True, kw_only=True)
    named = _named_arguments(extended(max_grad_norm=0.5, weight_decay=0.1))
    assert named["max_grad_norm"] == 0.5 and named["weight_decay"] == 0.1 and named["learning_rate"] == 4e-3
    assert set(named) <= {each.name for each in fields(TrainingArguments)}
