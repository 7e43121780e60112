"""The methods as short recipes: what two of them do differently is the difference of two functions.

Every recipe takes a :class:`Lab` (environment, base model, experts, settings, the run's folder) and returns the
adapter that it trained and the simulations that it spent. All arms train for the same number of epochs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from eef import evaluate, trajectory
from eef.envs import TextEnv
from eef.experts import collect, demonstrations, difficulty
from eef.policy import Policy, embedded_folder, load_chat
from eef.rollout import Start, simulate
from eef.runs import Run, code_hash, digest, log_metrics, read_json, stamp, write_json
from eef.selection import Example, cut_points, select
from eef.train import sft
from eef.trajectory import Trajectory

_ACTING = ("rollout.py", "policy.py", "chat.py", "trajectory.py", "envs")
_LEARNING = ("train.py", "policy.py", "chat.py", "trajectory.py")


@dataclass(frozen=True)
class Settings:
    """What all arms share. ``temperature`` is for exploration, ``eval_temperature`` for the test (0: greedy).

    ``experts`` and ``slips``: see :func:`eef.experts.collect`; stand-ins play with the run's seed. ``restart``: each
    iteration trains from the ``base`` model, or goes on from the ``last`` adapter.
    """

    model: str = "embedded"
    quantize: str | None = None
    limited: bool | None = None
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


@dataclass
class Lab:
    """One run's workbench: each step is a stage of the run, made once and shared by all runs that need it."""

    run: Run
    env: TextEnv
    settings: Settings
    seed: int
    tasks: list[str]
    test: list[str]
    spent: list[Trajectory] = field(default_factory=list)

    def experts(self) -> list[Trajectory]:
        """The experts' trajectories on the training subtasks."""
        key = {**self._world(), "experts": self._experts_key(), "tasks": self.tasks, "seed": self.seed}
        return self._trajectories(
            "experts",
            key,
            lambda told: collect(
                self.env, self.settings.experts, self.tasks, self.seed, told, slips=self.settings.slips
            ),
        )

    def demonstrations(self) -> list[Trajectory]:
        key = {**self._world(), "experts": "perfect", "code": code_hash("experts.py", "envs"), "tasks": self.tasks}
        return self._trajectories("demonstrations", key, lambda told: demonstrations(self.env, self.tasks, told))

    def simulate(self, name: str, adapter: Path, starts: Sequence[Start], seed: int) -> list[Trajectory]:
        """Simulations of the policy with ``adapter``, counted as spent."""
        key = {
            **self._world(),
            "code": code_hash(*_ACTING),
            "adapter": adapter.name,
            "policy": self._policy_key(),
            "starts": digest(
                [[s.task, s.index, s.sample, trajectory.to_dict(s.expert) if s.expert else None] for s in starts]
            ),
            "temperature": self.settings.temperature,
            "seed": seed,
        }

        def act(told: Callable[[int], None]) -> list[Trajectory]:
            policy = self._policy(adapter)
            return simulate(
                policy,
                self.env,
                starts,
                seed=seed,
                temperature=self.settings.temperature,
                slots=self.settings.slots,
                told=told,
            )

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
        }

        def make(folder: Path) -> None:
            policy = self._policy(start, trainable=True)
            if start is None:
                policy.new_adapter(self.seed, settings.lora_r, settings.lora_alpha)
            with tqdm(desc=name, unit="step") as bar:

                def told(step: int, steps: int, last: dict[str, float]) -> None:
                    bar.total = steps
                    bar.set_postfix(last and {"loss": f"{last['loss']:.3f}"})
                    bar.update(step - bar.n)

                report = sft(
                    policy, examples, folder, epochs=settings.epochs, lr=settings.lr, batch_size=settings.batch_size,
                    seed=self.seed, told=told,
                )  # fmt: skip
            trajectory.save((e.trajectory for e in examples), folder / "examples.jsonl")
            write_json(folder / "learn_from.json", {"learn_from": [e.learn_from for e in examples]})
            log_metrics(folder, report.pop("losses"))
            write_json(folder / "sft.json", report)

        return self.run.stage(name, key, make)

    def evaluate(self, adapter: Path) -> dict[str, Any]:
        """Win rate and reward of ``adapter`` on the test subtasks, with intervals; episodes and table are kept."""
        settings = self.settings
        groups = difficulty(self.env, self.test)
        key = {
            **self._world(),
            "code": code_hash(*_ACTING, "evaluate.py"),
            "adapter": adapter.name,
            "policy": self._policy_key(),
            "tasks": self.test,
            "temperature": settings.eval_temperature,
            "groups": groups,
        }

        def make(folder: Path) -> None:
            with tqdm(desc="eval", total=len(self.test), unit="episode") as bar:
                played = simulate(
                    self._policy(adapter), self.env, [Start(task) for task in self.test], seed=0,
                    temperature=settings.eval_temperature, slots=settings.slots, told=lambda n: _advance(bar, n),
                )  # fmt: skip
            trajectory.save(played, folder / "trajectories.jsonl")
            table = evaluate.results(played)
            if groups:
                table["group"] = table["task"].map(groups)
            table.to_csv(folder / "episodes.csv", index=False)
            write_json(folder / "summary.json", evaluate.summary(table, groups=groups))

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
        self, name: str, key: dict[str, Any], make: Callable[[Callable[[int], None]], list[Trajectory]], total: int = 0
    ) -> list[Trajectory]:
        def write(folder: Path) -> None:
            with tqdm(desc=name, total=total or len(self.tasks), unit="episode") as bar:
                made = make(lambda n: _advance(bar, n))
            trajectory.save(made, folder / "trajectories.jsonl")
            log_metrics(folder, {**evaluate.cost(made), "wins": sum(t.won for t in made)})

        return trajectory.load(self.run.stage(name, key, write) / "trajectories.jsonl")

    def _policy(self, adapter: Path | None, trainable: bool = False) -> Policy:
        settings = self.settings
        return Policy.load(
            settings.model, adapter, quantize=settings.quantize, limited=settings.limited, trainable=trainable
        )

    def _world(self) -> dict[str, Any]:
        return {"env": self.env.stamp(), "max_steps": self.env.max_steps}

    def _policy_key(self) -> dict[str, Any]:
        return {
            "model": model_hash(self.settings.model),
            "quantize": self.settings.quantize,
            "limited": self.settings.limited,
        }

    def _experts_key(self) -> list[str]:
        return [
            hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
            if Path(name).is_file()
            else f"{name} {json.dumps(dict(self.settings.slips), sort_keys=True)} {code_hash('experts.py', 'envs')}"
            for name in self.settings.experts.split("+")
        ]


def _advance(bar: Any, n: int) -> None:
    bar.update(n)


def model_hash(name: str) -> str:
    """Content hash of a local model's weights; a hub name stands for itself."""
    folder = embedded_folder() if name == "embedded" else Path(name)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]) if weights else name


def wins(trajectories: Sequence[Trajectory]) -> list[Example]:
    """Every win as an example of which all turns carry loss; the same actions on the same subtask count once."""
    kept = {(t.task, tuple(t.actions)): t for t in reversed(trajectories) if t.won}
    return [Example(t, 0) for t in reversed(kept.values())]


def sft_pos(lab: Lab) -> Path:
    """Behaviour cloning: SFT on the experts' wins (section 3; the first phase of all others)."""
    return lab.sft("bc", _expert_wins(lab))


def ceiling(lab: Lab) -> Path:
    """SFT on perfect demonstrations of every training subtask: what this policy could learn here at best."""
    return lab.sft("ceiling", wins(lab.demonstrations()))


def rft(lab: Lab, n: int = 1) -> Path:
    """Rejection sampling fine-tuning: ``n`` simulations from each s0 per iteration, SFT on all wins so far."""
    adapter, found = sft_pos(lab), []
    for iteration in range(lab.settings.iterations):
        for sample in range(n):
            found += lab.from_s0(adapter, iteration, sample)
        adapter = lab.sft(
            f"sft-{iteration}", _merge(_expert_wins(lab), wins(found), one_per_state=False), lab.start(adapter)
        )
    return adapter


def eef(lab: Lab, m: int = 5, mask_harmful: bool = True, recovery: bool = True, one_per_state: bool = True) -> Path:
    """Exploring expert failures (section 4): each iteration simulates s0 of every subtask and ``m`` states of every
    failed expert trajectory; SFT on one solution per important state.

    Our choice: a state counts as won once any iteration's simulation from it has won.
    """
    failures = [expert for expert in lab.experts() if expert.failed]
    if not failures:
        raise ValueError("EEF needs expert failures and every expert trajectory won: give weaker experts, or use rft")
    cuts = [[i for i in cut_points(len(one), m) if lab.env.cuttable(one.state(i))] for one in failures]
    states = [(place, index) for place, indices in enumerate(cuts) for index in indices]
    starts = [Start(failures[place].task, failures[place], index) for place, index in states]
    keys: list[tuple[Any, int]] = [*((task, 0) for task in lab.tasks), *states]
    outcomes: dict[tuple[Any, int], Trajectory | None] = {}  # (task, 0), or (place of the expert, index) -> D+ or lost
    adapter = sft_pos(lab)
    for iteration in range(lab.settings.iterations):
        simulated = lab.from_s0(adapter, iteration, 0)
        simulated += lab.simulate(f"states-{iteration}", adapter, starts, lab.sampling_seed(iteration))
        for key, played in zip(keys, simulated, strict=True):
            if played.won:
                outcomes[key] = played
            elif played.failed:
                outcomes.setdefault(key, None)
        chosen = wins([played for (_, index), played in outcomes.items() if played and index == 0])
        for place, expert in enumerate(failures):
            seen = [((expert.task, 0), 0), *(((place, index), index) for index in cuts[place])]
            mine = {index: outcomes[key] for key, index in seen if key in outcomes}
            chosen += select(expert, mine, mask_harmful, recovery, one_per_state)
        adapter = lab.sft(
            f"sft-{iteration}", _merge(_expert_wins(lab), chosen, one_per_state and mask_harmful), lab.start(adapter)
        )
    return adapter


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name.upper()} must be a whole number of at least 1, not {value!r}")


def _expert_wins(lab: Lab) -> list[Example]:
    experts = lab.experts()
    found = wins(experts)
    if not found:
        raise ValueError(
            f"none of the {len(experts)} expert trajectories won, so behaviour cloning has nothing to learn from: "
            "check 'experts', and in a file that 'won' is true (ETO: reward 1) where the subtask was solved"
        )
    return found


def _merge(positives: list[Example], chosen: list[Example], one_per_state: bool = True) -> list[Example]:
    """Both together; of two solutions of one state (two experts may share it) the first is kept."""
    kept: dict[tuple[Any, ...], Example] = {}
    for example in chosen:
        actions = tuple(example.trajectory.actions)
        own = actions[: example.learn_from] if one_per_state else actions
        kept.setdefault((example.trajectory.task, example.learn_from, own), example)
    known = {(e.trajectory.task, tuple(e.trajectory.actions)) for e in positives}
    return positives + [
        e for e in kept.values() if e.learn_from or (e.trajectory.task, tuple(e.trajectory.actions)) not in known
    ]


METHODS: dict[str, Callable[..., Path]] = {"sft_pos": sft_pos, "rft": rft, "eef": eef, "ceiling": ceiling}


def experiment(
    method: str,
    env: TextEnv,
    settings: Settings,
    seed: int,
    *,
    options: dict[str, Any] | None = None,
    train_tasks: int | None = None,
    test_tasks: int | None = None,
    root: str | Path | None = None,
    wandb: str = "offline",
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One run: train by ``method`` (a name of ``METHODS``, with its ``options``), test, record; the result's row.

    ``train_tasks`` and ``test_tasks`` take the first so many subtasks of each split. ``config`` is recorded with the
    run. ValueError for an unknown method, a TypeError for an option that the method does not have.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
    if settings.restart not in ("base", "last"):
        raise ValueError(f"restart={settings.restart!r}: known are 'base' and 'last'")
    options = options or {}
    inspect.signature(METHODS[method]).bind(None, **options)
    for name in {"n", "m"} & options.keys():
        _at_least_one(name, options[name])
    torch.set_num_threads(int(os.environ.get("EEF_THREADS", "1")))  # one: the same sums on every machine
    tasks, test = env.tasks("train")[:train_tasks], env.tasks("test")[:test_tasks]
    chat_hash = load_chat(settings.model).hash
    hashes = {**env.stamp(), "test": digest(test), "policy": model_hash(settings.model)}
    about = {**asdict(settings), **(config or {}), "method": method, **options, "train": len(tasks), "test": len(test)}
    variant = "".join(f"_{name}={value}" for name, value in options.items() if name not in ("n", "m"))
    label = "-".join([method + variant, *(f"{name}{options[name]}" for name in ("n", "m") if name in options)])
    label += f"-{settings.experts.replace('/', '_')}" if settings.experts != "strong" else ""
    run = Run.open(root, env.name, label, seed, about, stamp(hashes, chat_hash))
    lab = Lab(run, env, settings, seed, tasks, test)
    adapter = METHODS[method](lab, **options)
    result = {
        "method": method + variant,
        "m": options.get("m"),
        "n": options.get("n"),
        "experts": "perfect" if method == "ceiling" else settings.experts,
        "seed": seed,
        **lab.evaluate(adapter),
        **{name: value for name, value in evaluate.cost(lab.spent).items() if name != "errors"},
        "simulation_errors": evaluate.cost(lab.spent)["errors"],
    }
    run.finish(result, wandb=wandb)
    return {"run_id": run.run_id, "seconds": run.seconds(), **result}
