"""What a run is made of: settings in groups. A stage receives whole groups, and its key holds their fields.

To add an option, add a field to the group that it belongs to: it is then a keyword of :class:`Settings`, it enters the
keys of the stages that receive the group, and their code can read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from eef.agents.model_files import check_playable, context_of, folder_of, options_of
from eef.agents.policy import DTYPES, QUANTIZATIONS
from eef.files import joined_names, names_file
from eef.tracking.keys import file_key, model_key
from eef.training.trainer import OPTIMIZERS, PACKINGS

T = TypeVar("T")


def _experts_key(names: str) -> list[Any]:
    """Names of scripted experts unchanged; files by stem, which names the source of trajectories, and contents."""
    return [[Path(name).stem, file_key(name)] if names_file(name) else name for name in joined_names(names)]


# Former names of parameters, which sweep files may still use.
RENAMED = {
    "limited": "constrained_decoding",
    "micro": "micro_batch_size",
    "batches": "packing",
    "slips": "expert_noise",
}

# A field's "key" says what a stage key holds instead of the value. None leaves the field out: no result depends on it.
NOT_IN_KEYS: Mapping[str, Any] = {"key": None}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model, for training and for acting.

    ``model``: a name, a folder or a file. ``quantize``: ``nf4`` (4-bit weights, for QLoRA) or None. ``dtype``: that of
    the weights (``auto``: the checkpoint's). ``context``: the longest conversation in tokens (None: the model's own).
    """

    model: str = field(default="embedded", metadata={"key": lambda name: model_key(folder_of(name))})
    quantize: str | None = None
    dtype: str = "auto"
    context: int | None = None


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How the policy is spoken to; stages receive the scaffold made of it (:class:`eef.agents.chat.Chat`).

    ``prompt``: empty (answers are actions, after the instructions of the model's ``chat.json``) or ``react`` (thoughts,
    then an action, after the environment's); ``one_shot``: with an example episode.
    """

    prompt: str = ""
    one_shot: bool = False


@dataclass(frozen=True, kw_only=True)
class ActingSettings:
    """How the policy plays.

    ``constrained_decoding``: decoding is limited to the environment's available actions (None: as the model's
    ``chat.json`` says). ``max_new_tokens``: the longest answer. ``engine``: the address of a vLLM server that plays the
    policy (:mod:`eef.agents.vllm`); empty: our own engine. ``slots``: episodes at once; no result depends on it.
    """

    constrained_decoding: bool | None = None
    max_new_tokens: int = 64
    engine: str = field(default="", metadata={"key": lambda address: "vllm" if address else ""})
    slots: int = field(default=64, metadata=NOT_IN_KEYS)


@dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """Expert trajectories: ``experts`` and ``expert_noise`` of :func:`eef.experts.expert_trajectories`.

    Scripted experts play with the run's seed.
    """

    experts: str = field(default="strong", metadata={"key": _experts_key})
    expert_noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How SFT trains; DPO too, but for ``epochs``, ``lr`` and a new adapter's ``lora_r`` and ``lora_alpha``.

    ``tune``: ``lora`` (with ``quantize="nf4"``: QLoRA) or ``full`` (all weights). ``optimizer`` (``adamw_torch``,
    ``adamw_8bit``, on a GPU ``paged_adamw_8bit``), ``gradient_checkpointing`` (memory against time),
    ``micro_batch_size`` (rows at a time) and ``packing`` are those of :func:`eef.training.trainer.fit`. ``processes``
    train and simulate together, one for each GPU; ``batch_size`` is theirs together. Training that is killed resumes
    from a checkpoint at most ``checkpoint_minutes`` old, or a fiftieth of the steps; no result depends on it.
    """

    tune: str = "lora"
    epochs: float = 10.0
    lr: float = 4e-3
    batch_size: int = 8
    lora_r: int = 16
    lora_alpha: int = 32
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    micro_batch_size: int | None = None
    packing: str = "auto"
    processes: int = 1
    checkpoint_minutes: float = field(default=10.0, metadata=NOT_IN_KEYS)


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """DPO, the training of ETO."""

    dpo_beta: float = 0.1
    dpo_lr: float = 1e-4
    dpo_epochs: float = 3.0


@dataclass(frozen=True, kw_only=True)
class ExplorationSettings:
    """The loop of a method. ``temperature``: of the simulations. ``restart``: each iteration trains from the ``base``
    model, or from the ``last`` adapter."""

    temperature: float = 1.0
    iterations: int = 1
    restart: str = "base"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the trained policy is tested. ``eval_temperature`` 0 is greedy."""

    eval_temperature: float = 0.0


_CHOICES: dict[str, tuple[Any, ...]] = {
    "tune": ("lora", "full"),
    "quantize": QUANTIZATIONS,
    "dtype": DTYPES,
    "optimizer": OPTIMIZERS,
    "packing": PACKINGS,
    "gradient_checkpointing": (False, True),
    "one_shot": (False, True),
    "constrained_decoding": (None, False, True),
    "prompt": ("", "react"),
    "restart": ("base", "last"),
}
_AT_LEAST_ONE = (
    "batch_size",
    "processes",
    "micro_batch_size",
    "context",
    "max_new_tokens",
    "slots",
    "lora_r",
    "lora_alpha",
    "iterations",
)
_NONE_ALLOWED = ("micro_batch_size", "context")


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
    """What all arms share: the fields of all groups, each by its name. ValueError for a value that cannot be."""

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.type == "float" and type(value := getattr(self, each.name)) is int:
                object.__setattr__(self, each.name, float(value))  # 10 and 10.0 are one setting
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known or (isinstance(value, int) and not isinstance(value, bool)):
                raise ValueError(f"{name}={value!r}: known are {', '.join(map(repr, known))}")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (value is None and name in _NONE_ALLOWED):
                raise ValueError(f"{name}={value!r} must be a positive integer")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "float" and not (type(value) is float and math.isfinite(value) and value >= 0):
                raise ValueError(f"{each.name}={value!r} must be a finite number of at least 0")
        for name in ("epochs", "dpo_epochs", "lr", "dpo_lr", "dpo_beta"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}=0 trains nothing: it must be positive")
        if self.tune == "full" and self.quantize:
            raise ValueError(f"tune='full' with quantize={self.quantize!r}: quantised weights take an adapter, 'lora'")
        if self.tune == "full" and self.engine:
            raise ValueError(f"tune='full' with engine={self.engine!r}: a server is given adapters, 'lora'")
        if self.batch_size % (self.processes * min(self.micro_batch_size or 1, self.batch_size)):
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of processes x micro_batch_size: "
                f"{self.processes} x {self.micro_batch_size or 1}"
            )

    def group(self, kind: type[T]) -> T:
        """One group of these settings, such as ``settings.group(TrainingSettings)``."""
        return kind(**{each.name: getattr(self, each.name) for each in fields(kind)})  # type: ignore[arg-type]

    def resolved(self) -> Settings:
        """The same settings with what the model's files decide filled in: ``constrained_decoding`` and ``context``.

        OSError for an unknown model; ValueError for one that our engine cannot play, and where the files do not name
        the longest conversation.
        """
        if not self.engine:
            check_playable(self.model)
        constrained = self.constrained_decoding
        if constrained is None:
            constrained = bool(options_of(self.model).get("constrained_decoding", False))
        return replace(self, constrained_decoding=constrained, context=context_of(self.model, context=self.context))

    @property
    def artefact(self) -> str:
        """What training leaves, and so what every method simulates and tests; nothing is merged."""
        return "full model" if self.tune == "full" else f"adapter on the {self.quantize or self.dtype} base model"


GROUPS: tuple[type, ...] = Settings.__bases__
