"""The settings of a run, in groups. A stage receives whole groups, and its key covers their fields.

To add an option, add a field to its group with :func:`setting` and run::

    python -m eef.settings notebooks/experiment.ipynb

The option is then a keyword of :class:`Settings`, a parameter of the notebook and so of sweeps, and part of the key of
each stage that receives the group. A field of :class:`TrainingSettings` that names an ``argument`` of transformers'
``TrainingArguments`` is passed to it; any other field is read by the code of the stage.
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from eef.files import did_you_mean, joined_names, names_file, write_text
from eef.model_names import EMBEDDED_MODELS, PACKAGED_MODELS, packaged_folder
from eef.tracking.keys import file_key, model_key

T = TypeVar("T")

QUANTIZATIONS = (None, "nf4")
DTYPES = ("auto", "float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_8bit")
SCHEDULES = ("cosine", "linear", "constant_with_warmup")
PACKINGS = ("auto", "padded", "flat")

# Former names of parameters, which sweep files may still use.
RENAMED = {
    "limited": "constrained_decoding",
    "micro": "micro_batch_size",
    "batches": "packing",
    "slips": "expert_noise",
}


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a group of settings.

    ``help`` is the comment beside the notebook's parameter: one line without ``=``. It may declare files or folders for
    sweeps (:mod:`eef.sweeps.inputs`). ``metadata``:

    - ``choices``: the possible values of a string
    - ``positive``: whether a float must be above 0, not just at least 0
    - ``maximum``: the largest value of a float
    - ``key``: a function of the value that gives its entry in stage keys; None leaves the field out of them, for a
      setting that no result depends on
    - ``key_at_default``: None leaves the field out of keys while it has its default, for a setting that is added later
    - ``argument``: the argument of ``TrainingArguments`` that takes the value
    """
    metadata["help"] = help
    return field(**{"default_factory" if callable(default) else "default": default}, metadata=metadata)


def _model_key(name: str) -> Any:
    return model_key(str(EMBEDDED_MODELS.get(name) or packaged_folder(name) or name))


def _experts_key(names: str) -> list[Any]:
    """Files by stem, which names the source of their trajectories, and contents; other names as they are."""
    return [[Path(name).stem, file_key(name)] if names_file(name) else name for name in joined_names(names)]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model, for training and for acting."""

    model: str = setting(
        "embedded",
        f"name or file or folder: {', '.join([*EMBEDDED_MODELS, *PACKAGED_MODELS])}; a GGUF file, or a name of the hub",
        key=_model_key,
    )
    quantize: str | None = setting(None, "nf4: 4-bit weights, for QLoRA", choices=QUANTIZATIONS)
    dtype: str = setting("auto", "number type of the weights; auto: the checkpoint's", choices=DTYPES)
    context: int | None = setting(None, "longest conversation in tokens; 0: the model's own limit")


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The prompt.

    Stages receive the chat made from it (:func:`eef.lab.make_chat`).
    """

    prompt: str = setting(
        "",
        "empty: answers are actions, after the instructions of the model's chat.json; react: a thought, then an "
        "action, after the environment's instructions",
        choices=("", "react"),
    )
    one_shot: bool = setting(False, "an example episode before each task; needs react")


@dataclass(frozen=True, kw_only=True)
class ActingSettings:
    """How the policy acts."""

    constrained_decoding: bool | None = setting(
        None, "True: only the environment's available actions can be decoded; None: as the model's chat.json says"
    )
    max_new_tokens: int = setting(64, "longest answer; thoughts need more")
    engine: str = setting(
        "",
        "address of a vLLM server that runs the policy; empty: this package's engine",
        key=lambda address: "vllm" if address else "",
    )
    slots: int = setting(64, "episodes in parallel; in float32 no result depends on it", key=None)


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """The expert trajectories; scripted experts play with the run's seed."""

    experts: str = setting(
        "strong", "names or files, joined by +: strong, weak; files are JSON Lines or ETO's", key=_experts_key
    )
    expert_noise: Mapping[str, float] = setting(dict, "overrides error rates of the environment's scripted experts")
    divergent_experts: str = setting(
        "refuse",
        "trajectories of files that differ from their replay; drop: learn from the others and count these",
        choices=("refuse", "drop"),
        key=None,  # a run that is not refused has the same experts either way
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """SFT; DPO shares all but epochs, updates, lr and the options of a new adapter."""

    tune: str = setting(
        "lora", "lora: an adapter (with nf4 weights: QLoRA); full: all weights", choices=("lora", "full")
    )
    epochs: float = setting(10.0, "passes over the examples", positive=True, argument="num_train_epochs")
    updates: int | None = setting(None, "optimiser steps of each SFT, instead of epochs; 0: by epochs")
    lr: float = setting(4e-3, "largest learning rate", positive=True, argument="learning_rate")
    lr_schedule: str = setting(
        "cosine", "learning rate after the warm-up", choices=SCHEDULES, argument="lr_scheduler_type"
    )
    warmup_ratio: float = setting(0.05, "share of the steps in which the learning rate rises from 0", maximum=1.0)
    weight_decay: float = setting(0.0, "weight decay of AdamW", argument="weight_decay")
    batch_size: int = setting(8, "examples per update, over all processes")
    lora_r: int = setting(16, "rank of a new adapter")
    lora_alpha: int = setting(32, "scale of a new adapter")
    optimizer: str = setting("adamw_torch", "paged_adamw_8bit needs a GPU", choices=OPTIMIZERS, argument="optim")
    gradient_checkpointing: bool = setting(False, "less memory, more time", argument="gradient_checkpointing")
    micro_batch_size: int | None = setting(
        None, "examples at a time in each process; 0: on a GPU all, on a CPU 2 for a small model, else 1"
    )
    packing: str = setting("auto", "flat: no padding; auto: flat where FlashAttention is available", choices=PACKINGS)
    processes: int = setting(1, "processes that train and simulate together, one per GPU")
    checkpoint_minutes: float = setting(
        10.0, "time between checkpoints, from which a killed training resumes; no result depends on it", key=None
    )


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """DPO, as ETO trains."""

    dpo_beta: float = setting(0.1, "strength of the KL penalty", positive=True)
    dpo_lr: float = setting(1e-4, "largest learning rate", positive=True)
    dpo_epochs: float = setting(3.0, "passes over the pairs", positive=True)
    dpo_likelihood: float = setting(0.0, "weight of the win's loss per token, beside DPO's loss", key_at_default=None)


@dataclass(frozen=True, kw_only=True)
class ExplorationSettings:
    """The exploration loop."""

    temperature: float = setting(1.0, "sampling temperature of the simulations")
    iterations: int = setting(1, "rounds of simulation and training")
    restart: str = setting(
        "base", "where the SFT of each iteration starts: base model or last adapter", choices=("base", "last")
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The test of the trained policy."""

    eval_temperature: float = setting(0.0, "sampling temperature of the test; 0: greedy")


@dataclass(frozen=True, kw_only=True)
class Settings(
    ModelSettings,
    PromptSettings,
    ActingSettings,
    ExpertSettings,
    TrainingSettings,
    PreferenceSettings,
    ExplorationSettings,
    EvaluationSettings,
):
    """The fields of all groups, which all methods share.

    ValueError for an invalid value, TypeError for an unknown name.
    """

    def __new__(cls, **values: Any) -> Settings:
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                raise TypeError(f"unknown setting {name!r}{_hint(name, known)}: eef/settings.py explains all of them")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "float" and type(value) is int:
                value = float(value)  # 10 and 10.0 are the same setting
                object.__setattr__(self, each.name, value)
            if reason := _invalid(each, value):
                raise ValueError(f"{each.name}={value!r} {reason}")
        if self.prompt == "react" and self.constrained_decoding:
            raise ValueError(
                "prompt='react' needs constrained_decoding=False: constrained decoding leaves no room for thoughts"
            )
        if self.one_shot and self.prompt != "react":
            raise ValueError("one_shot=True needs prompt='react': only that prompt has an example")
        if self.tune == "full" and self.quantize:
            raise ValueError(f"tune='full' with quantize={self.quantize!r}: quantised weights need tune='lora'")
        if self.tune == "full" and self.engine:
            raise ValueError(f"tune='full' with engine={self.engine!r}: a server loads adapters only, set tune='lora'")
        if self.batch_size % (self.processes * min(self.micro_batch_size or 1, self.batch_size)):
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of processes x micro_batch_size: "
                f"{self.processes} x {self.micro_batch_size or 1}"
            )

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Settings:
        """Settings from the variables of a notebook, by name: ``Settings.from_parameters(globals())``.

        An empty string or 0 stands for None where a field can be None. Other variables are ignored; a field without a
        variable has its default.
        """
        values = {each.name: parameters[each.name] for each in fields(cls) if each.name in parameters}
        for each in fields(cls):
            null = _NULLS.get(each.type)
            if null is not None and values.get(each.name) == null and type(values[each.name]) is type(null):
                values[each.name] = None
        return cls(**values)

    def group(self, kind: type[T]) -> T:
        """One group of these settings, such as ``settings.group(TrainingSettings)``."""
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})  # type: ignore[arg-type]

    @property
    def artefact(self) -> str:
        """What training saves. Every method simulates and tests it as it is; nothing is merged."""
        return "full model" if self.tune == "full" else f"adapter on the {self.quantize or self.dtype} base model"


GROUPS: tuple[type, ...] = Settings.__bases__
_NULLS: dict[Any, Any] = {"str | None": "", "int | None": 0}  # how a notebook writes None


def _invalid(each: Any, value: Any) -> str:
    """Why a field cannot have a value; empty if it can."""
    kind, options = each.type, each.metadata
    choices = options.get("choices") or {"bool": (False, True), "bool | None": (None, False, True)}.get(kind)
    if choices and not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        return f"must be one of {', '.join(map(repr, choices))}"
    if kind == "str" and not isinstance(value, str):
        return "must be a string"
    if kind == "int" or (kind == "int | None" and value is not None):
        return "" if type(value) is int and value >= 1 else "must be a positive integer"
    if kind == "float":
        if not (type(value) is float and math.isfinite(value)):
            return "must be a finite number"
        if options.get("positive") and value <= 0:
            return "must be positive"
        if value < 0:
            return "must be at least 0"
        if value > options.get("maximum", math.inf):
            return f"must be at most {options['maximum']:g}"
    return ""


def check_parameters(variables: Mapping[str, Any], more: Iterable[str] = ()) -> None:
    """ValueError for a parameter that papermill set in a notebook which does not declare it.

    Papermill only warns. A notebook calls ``check_parameters(globals())``; ``more`` are further names that it accepts.
    """
    cells = list(variables.get("In", ()))  # IPython's history
    for number, cell in enumerate(cells):
        if number and cell.startswith("# Parameters\n"):  # papermill's cell, which follows that of the notebook
            known = [*_assigned(cells[number - 1]), *more]
            for name in _assigned(cell):
                if name not in known:
                    listed = "the notebook's cell with the tag 'parameters' lists all of them"
                    raise ValueError(f"unknown parameter {name!r}{_hint(name, known)}: {listed}")


def _assigned(source: str) -> list[str]:
    return [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]


def _hint(name: str, known: Iterable[str]) -> str:
    return f" (now called {RENAMED[name]!r})" if name in RENAMED else did_you_mean(name, known)


PARAMETERS = "# Settings. This part is generated from eef/settings.py: python -m eef.settings NOTEBOOK"


def parameter_lines() -> list[str]:
    """All settings as lines of a notebook's parameters cell: name, default as a literal, help as a comment.

    The first line of a group's docstring is its heading.
    """
    lines = [PARAMETERS]
    for group in GROUPS:
        lines.append(f"# {(group.__doc__ or '').splitlines()[0].rstrip('.')}")
        lines += [_parameter(each) for each in fields(group)]
    return lines


def _parameter(each: Any) -> str:
    default = each.default if each.default_factory is MISSING else each.default_factory()
    default = _NULLS.get(each.type) if default is None else default
    literal = json.dumps(default) if isinstance(default, str) else repr(default)
    choices = [choice or '""' for choice in each.metadata.get("choices", ())]
    comment = "; ".join([f"one of: {', '.join(choices)}"] * bool(choices) + [each.metadata["help"]])
    return f"{each.name} = {literal}  # {comment}"


def write_parameters(path: Path) -> None:
    """Rewrite the settings in a notebook's parameters cell. ValueError if it lacks the line ``PARAMETERS``."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        above, line, _ = "".join(cell["source"]).partition(PARAMETERS)
        if line:
            cell["source"] = (above + "\n".join(parameter_lines())).splitlines(keepends=True)
            write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
            return
    raise ValueError(f"{path}: no cell has the line {PARAMETERS!r}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m eef.settings NOTEBOOK")
    write_parameters(Path(sys.argv[1]))
