"""Settings are validated when they are created, and the experiment notebook declares the same ones."""

from __future__ import annotations

import ast
import json
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from transformers import TrainingArguments

from eef.settings import (
    GROUPS,
    PARAMETERS,
    RENAMED,
    Settings,
    TrainingSettings,
    parameter_lines,
    setting,
    write_parameters,
)
from eef.sweeps.executors import declared
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
