"""The steps of methods. Each is a stage, computed once and shared by all runs with the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from eef import trajectory
from eef.agents import react
from eef.agents.actions import describe_problems, problem_counts
from eef.agents.advice import chat_warnings, check_prompt
from eef.agents.chat import Chat
from eef.agents.model_files import check_playable, context_of, options_of
from eef.agents.policy import load_chat
from eef.agents.random_navigation import RandomNavigation
from eef.agents.rollout import Start
from eef.agents.simulation import Simulation, run_simulations
from eef.analysis import evaluate
from eef.analysis.evaluate import Scores
from eef.envs import EnvError, TextEnv, actions_now, first_page
from eef.envs.extras import extras_of, navigation_skills
from eef.experts import Demonstrations, Expertise, collect_experts, demonstrate, one_shot_example
from eef.experts.check import expert_counts, refuse_divergent
from eef.files import read_json, write_json
from eef.selection import Example
from eef.settings import (
    ActingSettings,
    ExpertSettings,
    ModelSettings,
    PreferenceSettings,
    Settings,
    TrainingSettings,
)
from eef.tracking.progress import Meter, show, stage_name
from eef.tracking.runs import Run, log_metrics, work_folder
from eef.tracking.stages import stage_key
from eef.training.stages import FineTuning, PreferenceTuning, fine_tune, preference_tune
from eef.trajectory import Trajectory


@dataclass
class Lab:
    """The steps of one run: expert trajectories, simulations, training, test. Each is a cached stage that all runs with
    the same inputs share.

    A dataclass holds the inputs of each stage, and the key is computed from it (:func:`eef.tracking.stages.stage_key`).
    ``tasks`` are the training subtasks, ``test`` the test subtasks. ``simulations`` are all episodes that the method
    has simulated. ``expert_counts`` say which expert trajectories were left out or could not be checked.
    ValueError for an invalid ``seed``.
    """

    run: Run
    env: TextEnv
    settings: Settings
    seed: int
    tasks: list[str]
    test: list[str]
    chat: Chat
    simulations: list[Trajectory] = field(default_factory=list)
    expert_counts: dict[str, int] = field(default_factory=lambda: expert_counts([]))
    _stages: dict[str, str] = field(default_factory=dict, init=False)  # how many trajectories a stage has, and won

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @cached_property
    def _resolved(self) -> Settings:
        return resolved(self.settings)

    def experts(self) -> list[Trajectory]:
        """The experts' trajectories on the training subtasks; without thoughts if decoding is constrained to actions.

        TrajectoryError where one of a file differs from its replay, unless ``divergent_experts`` is ``drop``.
        """
        settings = self._resolved
        group, constrained = settings.group(ExpertSettings), bool(settings.constrained_decoding)
        inputs = Expertise(self.env, group, self.tasks, self.seed, constrained, constrained and not self.chat.aliases)
        is_first_call = "experts" not in self._stages
        trajectories = self._trajectories("experts", collect_experts, inputs, len(self.tasks))
        covered = len({item.task for item in trajectories})
        if is_first_call and covered < len(self.tasks):
            show(
                f"{covered} of {len(self.tasks)} training subtasks have an expert trajectory; simulations also start "
                f"from s0 of the other {len(self.tasks) - covered}, if the method simulates"
            )
        if self.settings.divergent_experts == "refuse":
            refuse_divergent(trajectories)
        self.expert_counts = expert_counts(trajectories)
        return trajectories

    def demonstrations(self) -> list[Trajectory]:
        """Trajectories of perfect play on the training subtasks."""
        inputs = Demonstrations(self.env, self.tasks)
        return self._trajectories("demonstrations", demonstrate, inputs, len(self.tasks))

    def simulate(
        self, name: str, adapter: Path, starts: Sequence[Start], seed: int, random_navigation: float = 0.0
    ) -> list[Trajectory]:
        """Simulations of the policy with ``adapter``, in the order of ``starts``; they count towards the budget.

        ``random_navigation`` is the probability of a random navigation action, in each turn.
        """
        skills = navigation_skills(self.env, random_navigation)
        navigation = RandomNavigation(random_navigation, skills) if skills else None
        simulations = self._simulate(name, adapter, starts, seed, self.settings.temperature, navigation)
        self.simulations += simulations
        return simulations

    def sft(self, name: str, examples: Sequence[Example], start: Path | None = None) -> Path:
        """An adapter trained on ``examples``: from the base model, or from the adapter ``start``. ValueError if there
        are none.
        """
        if not examples:
            raise ValueError(
                f"there is no training example for {stage_name(name)}: the method's selection kept 0 of these "
                f"trajectories: {'; '.join(self._stages.values()) or 'none, since no stage has any'}"
            )
        settings = self._resolved
        inputs = FineTuning(
            settings.group(ModelSettings), self.chat, settings.group(TrainingSettings), examples, start, self.seed
        )
        return self._train(name, "sft", fine_tune, inputs)

    def dpo(self, name: str, pairs: Sequence[tuple[Trajectory, Trajectory]], start: Path) -> Path:
        """The adapter ``start`` trained on ``pairs`` of a win and a loss on the same subtask (ETO)."""
        settings = self._resolved
        training, preferences = settings.group(TrainingSettings), settings.group(PreferenceSettings)
        inputs = PreferenceTuning(
            settings.group(ModelSettings), self.chat, training, preferences, pairs, start, self.seed
        )
        return self._train(name, "dpo", preference_tune, inputs)

    def evaluate(self, adapter: Path | None) -> dict[str, Any]:
        """Win rate and reward of ``adapter`` (None: the base model) on the test subtasks, with intervals.

        The stage ``test`` holds the episodes, the stage ``eval`` their table and summary.
        """
        starts = [Start(task) for task in self.test]
        self._simulate("test", adapter, starts, self.seed, self.settings.eval_temperature)
        return self._score()

    def evaluate_player(self, body: Callable[..., list[Trajectory]], inputs: Any) -> dict[str, Any]:
        """As :meth:`evaluate`, for episodes that ``body(inputs, folder, on_progress)`` plays without our policy."""
        self._trajectories("test", body, inputs, len(self.test))
        return self._score()

    def _score(self) -> dict[str, Any]:
        extras = extras_of(self.env)
        inputs = Scores(self.run.stages["test"], extras.groups(self.env, self.test), extras.skills)
        key = stage_key(evaluate.score, inputs)
        folder = self.run.stage("eval", key, lambda path: evaluate.score(inputs, path))
        return read_json(folder / "summary.json")

    def from_s0(self, adapter: Path, iteration: int, sample: int, random_navigation: float = 0.0) -> list[Trajectory]:
        """One simulation from s0 of every training subtask; ``sample`` numbers the repetitions."""
        starts, seed = [Start(task, sample=sample) for task in self.tasks], self.sampling_seed(iteration)
        return self.simulate(f"s0-{iteration}-{sample}", adapter, starts, seed, random_navigation)

    def sampling_seed(self, iteration: int) -> int:
        """The seed of an iteration's simulations, different in each."""
        return 1000 * self.seed + iteration

    def sft_start(self, adapter: Path) -> Path | None:
        """The adapter that the next SFT continues from, or None for the base model (setting ``restart``)."""
        return None if self.settings.restart == "base" else adapter

    def _simulate(
        self,
        name: str,
        adapter: Path | None,
        starts: Sequence[Start],
        seed: int,
        temperature: float,
        navigation: RandomNavigation | None = None,
    ) -> list[Trajectory]:
        settings = self._resolved
        inputs = Simulation(
            self.env, settings.group(ModelSettings), self.chat, settings.group(ActingSettings), adapter, starts,
            temperature, seed, navigation, settings.processes,
        )  # fmt: skip
        return self._trajectories(name, run_simulations, inputs, len(starts))

    def _trajectories(
        self, name: str, body: Callable[..., list[Trajectory]], inputs: Any, total: int
    ) -> list[Trajectory]:
        """The trajectories that ``body(inputs, folder, on_progress)`` returns, as a stage."""

        def write(folder: Path) -> None:
            turns = self.env.max_steps if body is run_simulations else 0
            on_cpu = not (torch.cuda.is_available() or self.settings.engine or self.settings.processes > 1)
            with Meter(name, total, partial(self.run.progress, name), turns, on_cpu) as meter:
                more: dict[str, Any] = {"on_turn": meter.on_turn} if body is run_simulations else {}
                if body in (run_simulations, collect_experts, demonstrate):
                    more["journal"] = work_folder(folder) / "episodes.jsonl"
                trajectories = body(inputs, folder, meter.on_episodes, **more)
            self._check_code(body, inputs)
            trajectory.save(trajectories, folder / "trajectories.jsonl")
            cost, problems = evaluate.cost(trajectories), problem_counts(t.info for t in trajectories)
            log_metrics(folder, {**cost, **problems, "wins": sum(t.won for t in trajectories)})
            diverged = sum(t.outcome == "replay_divergence" for t in trajectories)
            if 2 * diverged > len(trajectories):
                show(
                    f"warning: {stage_name(name)}: {diverged} of {len(trajectories)} diverge from the expert "
                    "trajectory. Equal tasks and actions must give equal observations; `eef experts check` shows the "
                    "first difference"
                )
            if body is run_simulations:
                for text in _overflow_notices(trajectories, self._resolved.context):
                    show(f"{stage_name(name)}: {text}; context sets the limit")
            if line := describe_problems(problems, cost["env_steps"]):
                advice = "; max_new_tokens sets the limit" if problems["cut"] and body is run_simulations else ""
                show(f"{stage_name(name)}: {line}{advice}")

        folder = self.run.stage(name, stage_key(body, inputs), write)
        try:
            trajectories = trajectory.load(folder / "trajectories.jsonl")
        except trajectory.TrajectoryError as error:
            raise trajectory.TrajectoryError(f"{error}; or delete {folder} and start again") from None
        wins = sum(item.won for item in trajectories)
        self._stages[name] = f"{stage_name(name)}, {len(trajectories)} of which {wins} won"
        return trajectories

    def _check_code(self, body: Callable[..., Any], inputs: Any) -> None:
        """RunError if the code was edited while several processes ran: some may have imported it after the edit."""
        if self.settings.processes > 1:
            stage_key(body, inputs)

    def _train(self, name: str, kind: str, body: Callable[..., dict[str, Any]], inputs: Any) -> Path:
        """The adapter that ``body(inputs, folder, work, on_step)`` trains, as a stage with its report and losses."""

        def write(folder: Path) -> None:
            show(inputs.size)
            with Meter(name, report=partial(self.run.progress, name)) as meter:
                report = body(inputs, folder, work_folder(folder), meter.on_step)
            self._check_code(body, inputs)
            if kind == "dpo" and not report["dropped"]:
                turns = [(side, [turn.learn for turn in side.turns]) for pair in inputs.pairs for side in pair]
                report["learnt_tokens"] = sum(sum(self.chat.render(*each)[1]) for each in turns)
            if report["dropped"]:
                show(
                    f"warning: {stage_name(name)}: {report['dropped']} {'pairs' if kind == 'dpo' else 'examples'} "
                    f"exceed the context of {self._resolved.context} tokens and are left out; context sets the limit"
                )
            losses = report.pop("losses")
            if losses and losses[-1]["loss"] > 2 * losses[0]["loss"]:
                show(
                    f"warning: {stage_name(name)}: the loss rose from {losses[0]['loss']:.3g} to "
                    f"{losses[-1]['loss']:.3g}: lower the learning rate"
                )
            log_metrics(folder, losses)
            write_json(folder / f"{kind}.json", {**report, "artefact": self.settings.artefact})

        return self.run.stage(name, stage_key(body, inputs), write)


def check_seed(seed: Any) -> None:
    """ValueError for a seed that is not an int from 0 to 2**32 - 1."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} must be an int from 0 to {2**32 - 1}")


def resolved(settings: Settings) -> Settings:
    """``settings`` with ``constrained_decoding`` and ``context`` filled in from the model's files where they are None.

    OSError for an unknown model. ValueError for a model that our engine cannot run, and if its files give no maximum
    length.
    """
    if not settings.engine:
        check_playable(settings.model)
    constrained = settings.constrained_decoding
    if constrained is None:
        constrained = bool(options_of(settings.model).get("constrained_decoding", False))
    context = context_of(settings.model, context=settings.context)
    return replace(settings, constrained_decoding=constrained, context=context)


def check_decoding(settings: Settings, env: TextEnv, tasks: Sequence[str]) -> None:
    """Start one of ``tasks``. ValueError where answers are constrained to valid actions that ``env`` does not list."""
    if not tasks or not resolved(settings).constrained_decoding:
        return
    try:
        first_page(env, tasks[0])
        actions_now(env, tasks[0])
    except EnvError:  # a failure of this subtask, which the simulations count
        return
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _overflow_notices(trajectories: Sequence[Trajectory], context: int | None) -> list[str]:
    """How many simulations outgrew the context, and how many could not even start."""
    overflows = [item for item in trajectories if item.outcome == "context_overflow"]
    lost, total = sum(item.failed for item in overflows), len(trajectories)
    notices = []
    if lost:
        notices.append(f"{lost} of {total} episodes outgrew the context of {context} tokens and are lost")
    if unstarted := len(overflows) - lost:
        notices.append(
            f"{unstarted} of {total} episodes did not start: the conversation before their first answer fills the "
            f"context of {context} tokens"
        )
    return notices


def make_chat(settings: Settings, env: TextEnv, tasks: Sequence[str]) -> Chat:
    """The chat with the policy in ``env``. The one-shot example is of a subtask that is not among ``tasks``.

    ValueError where prompt, example and decoding do not fit together.
    """
    chat, options = load_chat(settings.model), options_of(settings.model)
    check_prompt(settings, options)
    for text in chat_warnings(settings, options, env.name):
        show(f"warning: {text}")
    if not settings.prompt:
        return chat
    return react.react_chat(chat, env, one_shot_example(env, "train", tasks) if settings.one_shot else None)
