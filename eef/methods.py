"""The methods as short recipes: what two of them do differently is the difference of two functions.

Every recipe takes a :class:`~eef.lab.Lab` (environment, base model, experts, settings, the run's folder) and returns
the adapter that it trained; the lab counts what it spent. All SFT trains for the same number of epochs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from eef.agents.actions import problem_counts
from eef.agents.rollout import Start
from eef.agents.vllm import Server
from eef.analysis import evaluate
from eef.envs import TextEnv
from eef.files import digest, joined_names
from eef.lab import Lab, scaffold
from eef.selection import Example, cut_points, select
from eef.settings import Settings
from eef.tracking.runs import Run, stamp
from eef.tracking.stages import key_of
from eef.training.trainer import check_optimizer
from eef.trajectory import Trajectory

FAILED = "the following attempt fails"  # what NAT's prompt says of a failed trajectory


def wins(trajectories: Sequence[Trajectory]) -> list[Example]:
    """Every win as an example of which all turns carry loss; the same actions on the same subtask count once."""
    return _distinct([t for t in trajectories if t.won])


def _distinct(trajectories: Sequence[Trajectory]) -> list[Example]:
    kept = {(t.task, tuple(t.actions)): t for t in reversed(trajectories)}
    return [Example(t, 0) for t in reversed(kept.values())]


def sft_pos(lab: Lab) -> Path:
    """Behaviour cloning: SFT on the experts' wins (section 3; the first phase of all others)."""
    return lab.sft("bc", _expert_wins(lab))


def ceiling(lab: Lab) -> Path:
    """SFT on perfect demonstrations of every training subtask: what this policy could learn here at best."""
    return lab.sft("ceiling", wins(lab.demonstrations()))


def sft_all(lab: Lab) -> Path:
    """SFT on every expert trajectory, won or failed."""
    experts = [expert for expert in lab.experts() if expert.won or expert.failed]
    return lab.sft("sft-all", _distinct(experts))


def nat(lab: Lab) -> Path:
    """Negative-aware training: as SFT-all, but a failed trajectory stands under a prompt that says that it failed."""
    failed = [replace(t, prompt=f"{FAILED}\n{t.prompt}") for t in lab.experts() if t.failed]
    return lab.sft("nat", [*_expert_wins(lab), *_distinct(failed)])


def eto(lab: Lab, n: int = 1) -> Path:
    """Exploration-based trajectory optimisation: behaviour cloning, then in each iteration ``n`` simulations from
    each s0 and DPO, from the last adapter, on pairs of a win and the agent's own failure on the same subtask.

    The win is the expert's, else the agent's own. ValueError where no subtask has both.
    """
    adapter, found = sft_pos(lab), []
    for iteration in range(lab.settings.iterations):
        for sample in range(n):
            found += lab.from_s0(adapter, iteration, sample)
        won = {t.task: t for t in [*found[::-1], *lab.experts()[::-1]] if t.won}  # the last one set stays
        pairs = [(won[t.task], t) for t in found if t.failed and t.task in won]
        if not pairs:
            raise ValueError("ETO needs a subtask that was won and that the agent fails: give more experts or subtasks")
        adapter = lab.dpo(f"dpo-{iteration}", pairs, adapter)
    return adapter


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
    cuts = [[i for i in cut_points(len(one), m) if lab.env.can_start_here(one.state(i))] for one in failures]
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


METHODS: dict[str, Callable[..., Path]] = {
    "sft_pos": sft_pos,
    "sft_all": sft_all,
    "nat": nat,
    "rft": rft,
    "eto": eto,
    "eef": eef,
    "ceiling": ceiling,
}


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
    run; ``wandb`` shows it on W&B while it runs (:meth:`eef.tracking.runs.Run.open`). ValueError for an unknown method,
    TypeError for an option that the method does not have and for an environment without ``state_key()``.
    """
    if not hasattr(env, "state_key"):
        raise TypeError(
            f"the environment {env.name!r} has no state_key(): return a dictionary of all that changes an observation, "
            "a reward or an available action (see TextEnv in eef/envs/__init__.py); stages are reused by it"
        )
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
    if settings.engine:
        Server(settings.engine)  # what is no address is told before anything is trained
    check_optimizer(settings.optimizer)
    options = options or {}
    inspect.signature(METHODS[method]).bind(None, **options)
    for name in {"n", "m"} & options.keys():
        _at_least_one(name, options[name])
    for name, count in (("train_tasks", train_tasks), ("test_tasks", test_tasks), ("max_steps", env.max_steps)):
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(f"{name}={count!r} must be a positive integer")
    torch.set_num_threads(int(os.environ.get("EEF_THREADS", "1")))  # one: the same sums on every machine
    tasks, test = env.tasks("train")[:train_tasks], env.tasks("test")[:test_tasks]
    chat = scaffold(settings, env, tasks)
    resolved, environment = key_of(settings.resolved()), key_of(env)
    engine = {"engine": "vllm"} if settings.engine else {}  # not its address: a run resumes with a server elsewhere
    hashes = {**env.stamp(), "test": digest(test), "policy": resolved["model"], **engine}
    about = {**asdict(settings), **engine, "artefact": settings.artefact, **(config or {}), "method": method, **options}
    about |= {"train": len(tasks), "test": len(test), "environment": environment}
    identity = [resolved, environment, chat.hash, hashes, method, options, digest(tasks)]
    variant = "".join(f"_{name}={value}" for name, value in options.items() if name not in ("n", "m"))
    label = "-".join([method + variant, *(f"{name}{options[name]}" for name in ("n", "m") if name in options)])
    named = "+".join(Path(name).stem if Path(name).is_file() else name for name in joined_names(settings.experts))
    label += f"-{named}" if named != "strong" else ""
    record = stamp(hashes, chat.hash)
    run = Run.open(root, env.name, label, seed, about, record, identity=identity, wandb=wandb)
    with run:  # an exception ends the W&B run as failed
        lab = Lab(run, env, settings, seed, tasks, test, chat)
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
            **{f"simulation_{name}": value for name, value in problem_counts(one.info for one in lab.spent).items()},
        }
        run.finish(result)
    return {"run_id": run.run_id, "seconds": run.seconds(), **result}
