"""One run's workbench: the steps that the methods are made of, each a stage that is made once and shared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from eef import evaluate, react, trajectory
from eef.chat import Chat, load_options
from eef.envs import TextEnv
from eef.experts import collect, demonstrations, groups
from eef.parallel import learn, learn_together, simulate_together
from eef.policy import DTYPES, QUANTIZATIONS, Policy, folder_of, load_chat
from eef.rollout import Start, simulate
from eef.runs import Run, code_hash, digest, log_metrics, read_json, work_folder, write_json
from eef.selection import Example
from eef.served import served
from eef.train import BATCHES, OPTIMIZERS
from eef.trajectory import Trajectory

_ACTING = ("rollout.py", "policy.py", "chat.py", "react.py", "trajectory.py", "envs")
_LEARNING = ("train.py", "rows.py", "parallel.py", "policy.py", "chat.py", "trajectory.py")
_TUNING = ("tune", "optimizer", "gradient_checkpointing", "micro", "batches", "processes")  # beside the first settings
_KNOWN = {
    "tune": ("lora", "full"),
    "quantize": QUANTIZATIONS,
    "dtype": DTYPES,
    "optimizer": OPTIMIZERS,
    "batches": BATCHES,
    "gradient_checkpointing": (False, True),
    "prompt": ("", "react"),
    "restart": ("base", "last"),
}


@dataclass(frozen=True)
class Settings:
    """What all arms share. ``temperature`` is for exploration, ``eval_temperature`` for the test (0: greedy);
    ``dpo_...`` are ETO's alone.

    ``engine``: the address of a vLLM server that plays the policy (:mod:`eef.served`), or nothing: ours. ``prompt``:
    empty (answers are actions, after the instructions of the model's ``chat.json``) or ``react`` (thoughts, then an
    action, after those of ``eef/prompts``), ``one_shot`` with an example played through; ``max_new_tokens`` is the
    longest answer and ``context`` the longest conversation in tokens (None: the model's own). ``experts`` and
    ``slips``: see :func:`eef.experts.collect`; stand-ins play with the run's seed. ``restart``: each iteration trains
    from the ``base`` model, or goes on from the ``last`` adapter.

    How it is trained: ``tune`` is ``lora`` (with ``quantize="nf4"``: QLoRA) or ``full`` (all weights); ``dtype`` is
    that of the weights (``auto``: the checkpoint's); ``optimizer`` (``adamw_torch``, ``adamw_8bit``, on a GPU
    ``paged_adamw_8bit``), ``gradient_checkpointing`` (memory against time), ``micro`` (rows at a time) and ``batches``
    are those of :func:`eef.train.fit`. ``processes`` train and simulate together, one for each GPU; ``batch_size`` is
    theirs together. Training that is killed goes on from a checkpoint at most ``checkpoint_minutes`` older, or a
    fiftieth of the steps. ValueError for a value that is not known.
    """

    model: str = "embedded"
    quantize: str | None = None
    limited: bool | None = None
    engine: str = ""
    prompt: str = ""
    one_shot: bool = False
    max_new_tokens: int = 64
    context: int | None = None
    experts: str = "strong"
    slips: Mapping[str, float] = field(default_factory=dict)
    epochs: float = 10.0
    lr: float = 4e-3
    batch_size: int = 8
    lora_r: int = 16
    lora_alpha: int = 32
    temperature: float = 1.0
    eval_temperature: float = 0.0
    slots: int = 64
    iterations: int = 1
    restart: str = "base"
    dpo_beta: float = 0.1
    dpo_lr: float = 1e-4
    dpo_epochs: float = 3.0
    tune: str = "lora"
    dtype: str = "auto"
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    micro: int | None = None
    batches: str = "auto"
    processes: int = 1
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: known are {', '.join(map(repr, known))}")
        for name in ("batch_size", "processes", "micro"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and (name, value) != ("micro", None):
                raise ValueError(f"{name}={value!r}: a whole number of at least 1 is known")
        if self.tune == "full" and self.quantize:
            raise ValueError(f"tune='full' with quantize={self.quantize!r}: quantised weights take an adapter, 'lora'")
        if self.tune == "full" and self.engine:
            raise ValueError(f"tune='full' with engine={self.engine!r}: a server is given adapters, 'lora'")
        if self.batch_size % (self.processes * min(self.micro or 1, self.batch_size)):
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of processes x micro: "
                f"{self.processes} x {self.micro or 1}"
            )
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"checkpoint_minutes={self.checkpoint_minutes!r}: a number of at least 0 is known")

    @property
    def artefact(self) -> str:
        """What training leaves, and so what every method simulates and tests; nothing is merged."""
        return "full model" if self.tune == "full" else f"adapter on the {self.quantize or self.dtype} base model"


@dataclass
class Lab:
    """One run's workbench: each step is a stage of the run, made once and shared by all runs that need it."""

    run: Run
    env: TextEnv
    settings: Settings
    seed: int
    tasks: list[str]
    test: list[str]
    chat: Chat
    spent: list[Trajectory] = field(default_factory=list)

    def experts(self) -> list[Trajectory]:
        """The experts' trajectories on the training subtasks."""
        key = {**self._world(), "experts": self._experts_key(), "tasks": self.tasks, "seed": self.seed}
        return self._trajectories(
            "experts",
            key,
            lambda told, _: collect(
                self.env, self.settings.experts, self.tasks, self.seed, told, slips=self.settings.slips
            ),
        )

    def demonstrations(self) -> list[Trajectory]:
        key = {**self._world(), "experts": "perfect", "code": code_hash("experts.py", "envs"), "tasks": self.tasks}
        return self._trajectories("demonstrations", key, lambda told, _: demonstrations(self.env, self.tasks, told))

    def simulate(self, name: str, adapter: Path, starts: Sequence[Start], seed: int) -> list[Trajectory]:
        """Simulations of the policy with ``adapter``, counted as spent."""
        key = {
            **self._world(),
            **self._acting(),
            "adapter": adapter.name,
            "policy": self._policy_key(),
            "starts": digest(
                [[s.task, s.index, s.sample, trajectory.to_dict(s.expert) if s.expert else None] for s in starts]
            ),
            "temperature": self.settings.temperature,
            "seed": seed,
        }

        def act(told: Callable[[int], None], folder: Path) -> list[Trajectory]:
            return self._play(adapter, starts, seed, self.settings.temperature, told, folder)

        found = self._trajectories(name, key, act, len(starts))
        self.spent += found
        return found

    def sft(self, name: str, examples: Sequence[Example], start: Path | None = None) -> Path:
        """An adapter trained on ``examples``: from the base model, or from the adapter ``start``."""
        settings = self.settings
        key = {
            "code": code_hash(*_LEARNING),
            "policy": self._policy_key(),
            "examples": digest([[trajectory.to_dict(e.trajectory), e.learn_from] for e in examples]),
            "hyper": [settings.epochs, settings.lr, settings.batch_size, settings.lora_r, settings.lora_alpha],
            "start": start.name if start else None,
            "seed": self.seed,
            **self._tuning_key(),
        }

        def make(folder: Path) -> None:
            trajectory.save((e.trajectory for e in examples), folder / "examples.jsonl")
            write_json(folder / "learn_from.json", {"learn_from": [e.learn_from for e in examples]})
            hyper = {"epochs": settings.epochs, "lr": settings.lr}
            new = {"seed": self.seed, "r": settings.lora_r, "alpha": settings.lora_alpha}
            fresh = new if start is None and settings.tune == "lora" else None
            self._learn(name, "sft", examples, folder, start, fresh, hyper)

        return self.run.stage(name, key, make)

    def dpo(self, name: str, pairs: Sequence[tuple[Trajectory, Trajectory]], start: Path) -> Path:
        """The adapter ``start`` trained on ``pairs`` of a win and a loss on the same subtask (ETO)."""
        settings = self.settings
        key = {
            "code": code_hash(*_LEARNING),
            "policy": self._policy_key(),
            "pairs": digest([[trajectory.to_dict(won), trajectory.to_dict(lost)] for won, lost in pairs]),
            "hyper": [settings.dpo_epochs, settings.dpo_lr, settings.dpo_beta, settings.batch_size],
            "start": start.name,
            "seed": self.seed,
            **self._tuning_key(),
        }

        def make(folder: Path) -> None:
            trajectory.save((t for pair in pairs for t in pair), folder / "pairs.jsonl")
            hyper = {"epochs": settings.dpo_epochs, "lr": settings.dpo_lr, "beta": settings.dpo_beta}
            self._learn(name, "dpo", pairs, folder, start, None, hyper)

        return self.run.stage(name, key, make)

    def evaluate(self, adapter: Path) -> dict[str, Any]:
        """Win rate and reward of ``adapter`` on the test subtasks, with intervals; episodes and table are kept."""
        settings = self.settings
        grouped = groups(self.env, self.test)
        key = {
            **self._world(),
            **self._acting("evaluate.py"),
            "adapter": adapter.name,
            "policy": self._policy_key(),
            "tasks": self.test,
            "temperature": settings.eval_temperature,
            "groups": grouped,
        }

        def make(folder: Path) -> None:
            with tqdm(desc="eval", total=len(self.test), unit="episode") as bar:
                starts = [Start(task) for task in self.test]
                played = self._play(
                    adapter, starts, 0, settings.eval_temperature, _advance(bar, self.run, "eval"), folder
                )  # fmt: skip
            trajectory.save(played, folder / "trajectories.jsonl")
            table = evaluate.results(played)
            if grouped:
                table["group"] = table["task"].map(grouped)
            table.to_csv(folder / "episodes.csv", index=False)
            write_json(folder / "summary.json", evaluate.summary(table, groups=grouped))

        folder = self.run.stage("eval", key, make)
        return read_json(folder / "summary.json")

    def from_s0(self, adapter: Path, iteration: int, sample: int) -> list[Trajectory]:
        """One simulation from the initial state of every training subtask; ``sample`` numbers the repetitions."""
        starts = [Start(task, sample=sample) for task in self.tasks]
        return self.simulate(f"s0-{iteration}-{sample}", adapter, starts, self.sampling_seed(iteration))

    def sampling_seed(self, iteration: int) -> int:
        return 1000 * self.seed + iteration

    def start(self, adapter: Path) -> Path | None:
        """Where the next SFT starts: None is the base model (``restart``)."""
        return None if self.settings.restart == "base" else adapter

    def _trajectories(
        self,
        name: str,
        key: dict[str, Any],
        make: Callable[[Callable[[int], None], Path], list[Trajectory]],
        total: int = 0,
    ) -> list[Trajectory]:
        def write(folder: Path) -> None:
            with tqdm(desc=name, total=total or len(self.tasks), unit="episode") as bar:
                made = make(_advance(bar, self.run, name), folder)
            trajectory.save(made, folder / "trajectories.jsonl")
            log_metrics(folder, {**evaluate.cost(made), "wins": sum(t.won for t in made)})

        folder = self.run.stage(name, key, write)
        try:
            return trajectory.load(folder / "trajectories.jsonl")
        except trajectory.TrajectoryError as error:
            raise trajectory.TrajectoryError(f"{error}; or delete {folder}: the next start makes it anew") from None

    def _load(self, adapter: Path | None) -> dict[str, Any]:
        """Arguments of :meth:`Policy.load`: the same for every method, for training and for acting."""
        settings = self.settings
        return {
            "model": settings.model,
            "adapter": str(adapter) if adapter else None,
            "quantize": settings.quantize,
            "dtype": settings.dtype,
            "limited": settings.limited,
            "opening": self.chat.opening,
            "context": settings.context,
            "max_new_tokens": settings.max_new_tokens,
        }

    def _play(
        self, adapter: Path, starts: Sequence[Start], seed: int, temperature: float, told: Callable[[int], None],
        folder: Path,
    ) -> list[Trajectory]:  # fmt: skip
        """Simulate with our engine, or with a server, which ``folder`` then names."""
        settings, load = self.settings, self._load(adapter)
        how: dict[str, Any] = {"seed": seed, "temperature": temperature, "slots": settings.slots, "told": told}
        if settings.engine:
            with served(
                settings.engine, settings.model, adapter, limited=settings.limited, chat=self.chat,
                context=settings.context, max_new_tokens=settings.max_new_tokens,
            ) as policy:  # fmt: skip
                write_json(folder / "engine.json", policy.about)
                return simulate(policy, self.env, starts, **how)
        if settings.processes > 1:
            return simulate_together(load, self.env, starts, settings.processes, **how)
        return simulate(Policy.load(**load), self.env, starts, **how)

    def _acting(self, *more: str) -> dict[str, Any]:
        """The code that plays, and the engine: another one gives other results."""
        code = {"code": code_hash(*_ACTING, *more)}
        return {**code, "engine": f"vllm {code_hash('served.py')}"} if self.settings.engine else code

    def _learn(
        self, name: str, kind: str, data: Sequence[Any], folder: Path, start: Path | None,
        new_adapter: dict[str, Any] | None, hyper: dict[str, Any],
    ) -> None:  # fmt: skip
        """Train on ``data``, which lie in the stage's ``folder`` as well; its report and losses beside them."""
        settings = self.settings
        how = {
            **hyper,
            "batch_size": settings.batch_size,
            "seed": self.seed,
            "micro": settings.micro,
            "optimizer": settings.optimizer,
            "gradient_checkpointing": settings.gradient_checkpointing,
            "work": str(work_folder(folder)),
            "checkpoint_minutes": settings.checkpoint_minutes,
            **({"batches": settings.batches} if kind == "sft" else {}),
        }
        job = {"kind": kind, "policy": self._load(start), "new_adapter": new_adapter, "settings": how}
        with tqdm(desc=name, unit="step") as bar:
            if settings.processes > 1:
                report = learn_together(job, folder, settings.processes, _steps(bar, self.run, name))
            else:
                report = learn(job, data, folder, _steps(bar, self.run, name))
        log_metrics(folder, report.pop("losses"))
        write_json(folder / f"{kind}.json", {**report, "artefact": settings.artefact})

    def _world(self) -> dict[str, Any]:
        return {"env": self.env.stamp(), "max_steps": self.env.max_steps}

    def _policy_key(self) -> dict[str, Any]:
        return {
            "model": model_hash(self.settings.model),
            "quantize": self.settings.quantize,
            "limited": self.settings.limited,
            "chat": self.chat.hash,
            "room": [self.settings.context, self.settings.max_new_tokens],
            **({"dtype": self.settings.dtype} if self.settings.dtype != "auto" else {}),
        }

    def _tuning_key(self) -> dict[str, Any]:
        """What of ``_TUNING`` is not as it is by default: the key of a stage that is holds as before."""
        changed = {f.name: getattr(self.settings, f.name) for f in fields(Settings) if f.name in _TUNING}
        changed = {name: value for name, value in changed.items() if value != getattr(Settings, name)}
        return {"tuning": changed} if changed else {}

    def _experts_key(self) -> list[str]:
        return [
            hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
            if Path(name).is_file()
            else f"{name} {json.dumps(dict(self.settings.slips), sort_keys=True)} {code_hash('experts.py', 'envs')}"
            for name in self.settings.experts.split("+")
        ]


def scaffold(settings: Settings, env: TextEnv, tasks: Sequence[str]) -> Chat:
    """How the policy of ``settings`` is spoken to in ``env``; an example is of a subtask that is not one of ``tasks``.

    ValueError where prompt, example and decoding do not go together.
    """
    chat = load_chat(settings.model)
    if not settings.prompt:
        if settings.one_shot:
            raise ValueError("one_shot=True needs prompt='react': without it there is no prompt to hold an example")
        return chat
    told = react.scaffold(chat, env.name, react.example(env, "train", tasks) if settings.one_shot else None)
    if settings.limited or (settings.limited is None and load_options(folder_of(settings.model)).get("limited")):
        raise ValueError(
            "prompt='react' needs limited=False: decoding limited to valid actions leaves no room for thoughts"
        )
    return told


def _advance(bar: Any, run: Run, stage: str) -> Callable[[int], None]:
    def told(n: int) -> None:
        bar.update(n)
        run.progress(stage, {"episodes": bar.n})

    return told


def _steps(bar: Any, run: Run, stage: str) -> Callable[[int, int, dict[str, float]], None]:
    def told(step: int, steps: int, last: dict[str, float]) -> None:
        bar.total = steps
        bar.set_postfix(**({"loss": f"{last['loss']:.3f}"} if last else {}))
        bar.update(step - bar.n)
        if last:
            run.progress(stage, last)

    return told


def model_hash(name: str) -> str:
    """Content hash of a local model's weights; a hub name stands for itself."""
    folder = Path(folder_of(name))
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]) if weights else name
