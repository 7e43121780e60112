"""One run's workbench: the steps that the methods are made of, each a stage that is made once and shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from eef import trajectory
from eef.agents import react
from eef.agents.actions import describe_problems, problem_counts
from eef.agents.chat import Chat
from eef.agents.policy import load_chat
from eef.agents.rollout import OnProgress, Start
from eef.agents.simulation import Simulation, run_simulations
from eef.analysis import evaluate
from eef.analysis.evaluate import Scores
from eef.envs import TextEnv
from eef.envs.extras import extras_of
from eef.experts import Demonstrations, Expertise, collect_experts, demonstrate, one_shot_example
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
from eef.tracking.runs import Run, log_metrics, work_folder
from eef.tracking.stages import stage_key
from eef.training.stages import FineTuning, PreferenceTuning, fine_tune, prefer
from eef.training.trainer import OnStep
from eef.trajectory import Trajectory


@dataclass
class Lab:
    """One run's workbench: each step is a stage of the run, made once and shared by all runs that need it.

    Each method below says by its inputs (a dataclass) what a stage depends on; its key is computed from them
    (:func:`eef.tracking.stages.stage_key`).
    """

    run: Run
    env: TextEnv
    settings: Settings
    seed: int
    tasks: list[str]
    test: list[str]
    chat: Chat
    spent: list[Trajectory] = field(default_factory=list)

    @cached_property
    def _resolved(self) -> Settings:
        return self.settings.resolved()

    def experts(self) -> list[Trajectory]:
        """The experts' trajectories on the training subtasks."""
        inputs = Expertise(self.env, self._resolved.group(ExpertSettings), self.tasks, self.seed)
        return self._trajectories("experts", collect_experts, inputs, len(self.tasks))

    def demonstrations(self) -> list[Trajectory]:
        """Perfect play on the training subtasks."""
        inputs = Demonstrations(self.env, self.tasks)
        return self._trajectories("demonstrations", demonstrate, inputs, len(self.tasks))

    def simulate(self, name: str, adapter: Path, starts: Sequence[Start], seed: int) -> list[Trajectory]:
        """Simulations of the policy with ``adapter``, counted as spent."""
        simulated = self._play(name, adapter, starts, seed, self.settings.temperature)
        self.spent += simulated
        return simulated

    def sft(self, name: str, examples: Sequence[Example], start: Path | None = None) -> Path:
        """An adapter trained on ``examples``: from the base model, or from the adapter ``start``."""
        settings = self._resolved
        inputs = FineTuning(
            settings.group(ModelSettings), self.chat, settings.group(TrainingSettings), examples, start, self.seed
        )
        return self._train(name, "sft", fine_tune, inputs)

    def dpo(self, name: str, pairs: Sequence[tuple[Trajectory, Trajectory]], start: Path) -> Path:
        """The adapter ``start`` trained on ``pairs`` of a win and a loss on the same subtask (ETO)."""
        settings = self._resolved
        training, preference = settings.group(TrainingSettings), settings.group(PreferenceSettings)
        inputs = PreferenceTuning(
            settings.group(ModelSettings), self.chat, training, preference, pairs, start, self.seed
        )
        return self._train(name, "dpo", prefer, inputs)

    def evaluate(self, adapter: Path) -> dict[str, Any]:
        """Win rate and reward of ``adapter`` on the test subtasks, with intervals.

        The episodes are the stage ``test``, their table and summary the stage ``eval``.
        """
        starts = [Start(task) for task in self.test]
        self._play("test", adapter, starts, self.seed, self.settings.eval_temperature)
        inputs = Scores(self.run.stages["test"], extras_of(self.env).groups(self.env, self.test))
        key = stage_key(evaluate.score, inputs)
        folder = self.run.stage("eval", key, lambda at: evaluate.score(inputs, at))
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

    def _play(
        self, name: str, adapter: Path, starts: Sequence[Start], seed: int, temperature: float
    ) -> list[Trajectory]:
        settings = self._resolved
        inputs = Simulation(
            self.env, settings.group(ModelSettings), self.chat, settings.group(ActingSettings), adapter, starts,
            temperature, seed, settings.processes,
        )  # fmt: skip
        return self._trajectories(name, run_simulations, inputs, len(starts))

    def _trajectories(
        self, name: str, body: Callable[..., list[Trajectory]], inputs: Any, total: int
    ) -> list[Trajectory]:
        """The trajectories that ``body(inputs, folder, on_progress)`` gives, as a stage."""

        def write(folder: Path) -> None:
            with tqdm(desc=name, total=total, unit="episode") as bar:
                played = body(inputs, folder, _episodes(bar, self.run, name))
            self._check_code(body, inputs)
            trajectory.save(played, folder / "trajectories.jsonl")
            cost, problems = evaluate.cost(played), problem_counts(one.info for one in played)
            log_metrics(folder, {**cost, **problems, "wins": sum(t.won for t in played)})
            if line := describe_problems(problems, cost["env_steps"]):
                advice = "; max_new_tokens sets the limit" if problems["cut"] and body is run_simulations else ""
                print(f"[{name}] {line}{advice}", flush=True)

        folder = self.run.stage(name, stage_key(body, inputs), write)
        try:
            return trajectory.load(folder / "trajectories.jsonl")
        except trajectory.TrajectoryError as error:
            raise trajectory.TrajectoryError(f"{error}; or delete {folder}: the next start makes it anew") from None

    def _check_code(self, body: Callable[..., Any], inputs: Any) -> None:
        """RunError where the code was edited while several processes worked: some may have imported it after that."""
        if self.settings.processes > 1:
            stage_key(body, inputs)

    def _train(self, name: str, kind: str, body: Callable[..., dict[str, Any]], inputs: Any) -> Path:
        """What ``body(inputs, folder, work, on_step)`` trains, as a stage with its report and losses."""

        def make(folder: Path) -> None:
            with tqdm(desc=name, unit="step") as bar:
                report = body(inputs, folder, work_folder(folder), _steps(bar, self.run, name))
            self._check_code(body, inputs)
            losses = report.pop("losses")
            if losses and losses[-1]["loss"] > 2 * losses[0]["loss"]:
                print(
                    f"warning: [{name}] the loss rose from {losses[0]['loss']:.3g} to {losses[-1]['loss']:.3g}: "
                    "lower the learning rate",
                    flush=True,
                )
            log_metrics(folder, losses)
            write_json(folder / f"{kind}.json", {**report, "artefact": self.settings.artefact})

        return self.run.stage(name, stage_key(body, inputs), make)


def scaffold(settings: Settings, env: TextEnv, tasks: Sequence[str]) -> Chat:
    """How the policy of ``settings`` is spoken to in ``env``; an example is of a subtask that is not one of ``tasks``.

    ValueError where prompt, example and decoding do not go together.
    """
    chat = load_chat(settings.model)
    if not settings.prompt:
        if settings.one_shot:
            raise ValueError("one_shot=True needs prompt='react': without it there is no prompt to hold an example")
        return chat
    with_opening = react.react_chat(chat, env, one_shot_example(env, "train", tasks) if settings.one_shot else None)
    if settings.resolved().constrained_decoding:
        raise ValueError(
            "prompt='react' needs constrained_decoding=False: constrained decoding leaves no room for thoughts"
        )
    return with_opening


def _episodes(bar: Any, run: Run, stage: str) -> OnProgress:
    """Shows episodes that have ended in the progress bar and, as totals so far, on W&B."""
    totals = {"episodes": 0, "wins": 0, "tokens": 0}

    def on_progress(episodes: int, wins: int, tokens: int) -> None:
        for name, more in (("episodes", episodes), ("wins", wins), ("tokens", tokens)):
            totals[name] += more
        bar.update(episodes)
        run.progress(stage, totals)

    return on_progress


def _steps(bar: Any, run: Run, stage: str) -> OnStep:
    """Shows training steps in the progress bar and their losses on W&B."""

    def on_step(step: int, steps: int, row: dict[str, float]) -> None:
        bar.total = steps
        if row:
            bar.set_postfix(loss=f"{row['loss']:.3f}")
            run.progress(stage, row)
        bar.update(step - bar.n)

    return on_step
