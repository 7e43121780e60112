"""``eef evaluate``: play the subtasks of a protocol, and write the card, the table and the trajectories."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from eef import trajectory
from eef.agents.chat import Chat
from eef.analysis.browser import write_browser, write_views
from eef.analysis.statistics import read_by_task
from eef.envs import TextEnv
from eef.evaluation.card import make_card, markdown, overlap_lines
from eef.evaluation.endpoint import EndpointTest, play_endpoint, show_reused
from eef.evaluation.protocol import Protocol, check, environment_of, hashes_of, overlap, pin, read_protocol, subtasks_of
from eef.evaluation.subject import Subject, read_subject
from eef.experts import Demonstrations, Expertise, collect_experts, demonstrate
from eef.files import digest, write_json, write_text
from eef.lab import Lab, make_chat
from eef.settings import ExpertSettings, Settings
from eef.tracking.progress import show
from eef.tracking.records import remove_stale_links
from eef.tracking.runs import Run, stamp

CARD, TABLE = "card.json", "subtasks.csv"  # in the folder of an evaluation


def evaluations(root: Path) -> Path:
    """The folder of evaluations beside the runs in ``root``. Figures of runs do not read it."""
    return root / "evaluations"


def evaluate(
    what: str,
    protocol: str,
    options: Mapping[str, Any],
    root: Path,
    *,
    subtasks: int | None = None,
    wandb: str = "offline",
    key_variable: str = "OPENAI_API_KEY",
    yes: bool = False,
) -> Path:
    """Evaluate ``what`` (:func:`eef.evaluation.subject.read_subject`) by a protocol. Returns the evaluation's folder.

    ``options``: ``data`` is the folder with the protocol's data, the others belong to ``what``. ``subtasks`` plays only
    the first ones, and the card says that it is partial. ``root`` is the folder of all runs. ``yes`` skips the
    confirmation of an endpoint's cost. A killed evaluation resumes. ValueError for other data than the protocol's.
    """
    rules, more = read_protocol(protocol), dict(options)
    _check_count(subtasks)
    env = environment_of(rules, more.pop("data", None))
    try:
        check(rules, env)
        subject = read_subject(what, rules, env, more, root, key_variable)
        return _evaluate(rules, env, subject, root, subtasks, wandb, yes)
    finally:
        getattr(env, "close", lambda: None)()  # ends the processes of an environment that has some


def _check_count(subtasks: int | None) -> int | None:
    """``subtasks``, of ``--subtasks``. ValueError if it is less than 1."""
    if subtasks is not None and subtasks < 1:
        raise ValueError(f"--subtasks must be at least 1, not {subtasks}")
    return subtasks


def pin_protocol(protocol: str, data: str | None, path: Path, subtasks: int | None = None) -> str:
    """Write a copy of a protocol whose hashes are those of the folder ``data``. Returns a line about it.

    The copy has as many subtasks as the protocol, or ``subtasks``, if the split has so many.
    """
    rules = read_protocol(protocol)
    rules = replace(rules, subtasks=_check_count(subtasks) or rules.subtasks)
    env = environment_of(rules, data)
    try:
        file, split = pin(rules, env, path), env.tasks(rules.split)
        return f"protocol: {file}, with {len(subtasks_of(rules, env))} of the {len(split)} subtasks of {rules.split!r}"
    finally:
        getattr(env, "close", lambda: None)()


def _evaluate(
    protocol: Protocol, env: TextEnv, subject: Subject, root: Path, limit: int | None, wandb: str, yes: bool
) -> Path:
    tasks = subtasks_of(protocol, env)[:limit]
    hashes = hashes_of(protocol, env)
    shared = overlap(env, tasks)
    show(f"{protocol.name}: {len(tasks)} of {protocol.subtasks} subtasks, {subject.kind} {subject.name}")
    for line in overlap_lines({kind: {"shared": count, "of": len(tasks)} for kind, count in shared.items()}):
        show(line)
    if protocol.flaw:
        show(f"known flaw: {protocol.flaw}")
    chat = _chat(subject, env, subtasks_of(protocol, env))
    acting = vars(subject.acting) if subject.acting else {}
    about = {"protocol": protocol.as_dict(), "subject": subject.identity, "acting": acting, "test": len(tasks)}
    identity = [protocol.hash, subject.identity, acting, chat.hash if chat else "", hashes]
    method = f"{protocol.name}-{subject.name}"
    run = Run.open(
        evaluations(root), env.name, method, protocol.seed, about, stamp(hashes, chat.hash if chat else ""),
        tags=(protocol.name, subject.kind), group=protocol.name, identity=[*identity, digest(tasks)], wandb=wandb,
    )  # fmt: skip
    with run:
        file = run.root / "endpoints" / digest(identity) / "endpoint.jsonl"  # also for other numbers of subtasks
        measured = _play(run, protocol, env, subject, tasks, chat, file, yes)
        played = trajectory.load(run.folder / "test" / "trajectories.jsonl")
        table = read_by_task(run.folder / "eval" / "episodes.csv")
        card = make_card(protocol, subject, hashes, shared, table, measured, played, chat, version("eef"))
        write_json(run.folder / CARD, card)
        write_text(run.folder / "card.md", markdown(card, run.seconds()))
        shutil.copyfile(run.folder / "eval" / "episodes.csv", run.folder / TABLE)
        remove_stale_links(run.folder, run.stages)
        write_views(run.folder)
        write_browser(run.folder)
        cost = card["cost"]
        budget = {"episodes": cost["episodes"], "env_steps": cost["steps"], "tokens": cost["sampled_tokens"]}
        run.finish({"method": method, "seed": protocol.seed, **measured, **budget})
    return run.folder


def _chat(subject: Subject, env: TextEnv, tasks: Sequence[str]) -> Chat | None:
    """The chat of a policy of ours, in the words of :attr:`Subject.acting`. Its example is of none of ``tasks``."""
    if subject.settings is None or subject.acting is None:
        return None
    from eef.agents.policy import load_chat

    if subject.settings.prompt:
        return make_chat(subject.settings, env, [*env.tasks("train")[: subject.train], *tasks])
    return replace(load_chat(subject.settings.model), instructions=subject.acting.instructions)


def _play(
    run: Run, protocol: Protocol, env: TextEnv, subject: Subject, tasks: list[str], chat: Chat | None, file: Path,
    yes: bool,
) -> dict[str, Any]:  # fmt: skip
    """Play the subtasks as the stages ``test`` and ``eval``. Returns the summary.

    ``file`` keeps the episodes of an endpoint.
    """
    settings = subject.settings or Settings()
    lab = Lab(run, env, settings, protocol.seed, [], tasks, cast(Chat, chat))  # only a policy of ours has a chat
    if subject.settings is not None:
        return lab.evaluate(subject.adapter)
    if subject.endpoint is not None:
        one_shot = bool(subject.acting and subject.acting.one_shot)
        inputs = EndpointTest(
            env, subject.endpoint.model, subject.endpoint.address, subject.endpoint.fields, one_shot, protocol.split,
            tasks, subject.endpoint, file, yes,
        )  # fmt: skip
        earlier = set(run.root.glob("stages/test-*"))
        try:
            return lab.evaluate_player(play_endpoint, inputs)
        finally:
            if run.stages.get("test") in earlier:
                show_reused(run.stages["test"] / "stage.json")
    if subject.name == "perfect":
        return lab.evaluate_player(demonstrate, Demonstrations(env, tasks))
    experts = ExpertSettings(experts=subject.name)
    return lab.evaluate_player(collect_experts, Expertise(env, experts, tasks, protocol.seed))
