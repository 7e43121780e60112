"""``eef collect``: expert trajectories from a model behind an endpoint, written to a file.

The conversation has the form of ETO's (:mod:`eef.agents.react`). Each finished episode is appended to the file as one
line, so the same command resumes from there.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from eef.agents.actions import EXPLANATIONS, describe_problems, problem_counts, read_action
from eef.agents.react import Message, agent_message, first_page_message, opening, page_message
from eef.envs import EnvError, TextEnv, first_page, on_workers, replay_workers, take_step
from eef.envs.extras import extras_of
from eef.envs.limits import step_limit
from eef.experts import demonstrations, one_shot_example
from eef.experts.endpoint import (
    Answer,
    Ask,
    CollectError,
    ContextOverflow,
    EpisodeError,
    Expert,
    asker,
    check_not_negative,
    make_client,
)
from eef.experts.lines import line_of
from eef.files import digest, disk_errors, names_file
from eef.trajectory import Trajectory, Turn, from_dict

CHARACTERS_PER_TOKEN, TOKENS_PER_ANSWER = 4, 100  # assumed by the estimate


def collect(
    path: str | Path, env: TextEnv, split: str, count: int | None, expert: Expert,
    one_shot: bool = False, price: Sequence[float] | None = None, yes: bool = False, evaluation: bool = False,
) -> int:  # fmt: skip
    """Play the first ``count`` subtasks of ``split`` that ``path`` lacks, after an estimate and a confirmation.

    ``price`` is per million tokens, in and out. ``yes`` skips the confirmation. ``evaluation``: an episode that exceeds
    the model's context is saved, with the outcome ``context_overflow``, and the example does not depend on ``count``.
    Returns 0 if the file is complete, 1 if subtasks are missing. CollectError if the collection cannot continue,
    ValueError for an invalid parameter.
    """
    if count is not None and count < 1:
        raise ValueError(f"--tasks must be at least 1, not {count}")
    check_not_negative("--price", *(price or ()))
    path, limit, tasks = Path(path), env.max_steps, env.tasks(split)[:count]
    example = one_shot_example(env, split, env.tasks(split) if evaluation else tasks) if one_shot else None
    common = common_settings(env, expert, example, limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            before = read_collected(path, common)
            finished = {episode.task for episode in before}
            todo = [task for task in tasks if task not in finished]
            print(f"{len(tasks)} subtasks, {len(tasks) - len(todo)} in {path}, {len(todo)} to play")
            if not todo:
                return 0
            messages = opening(env, example)
            tokens_in, tokens_out, rule = estimate(env, todo, messages, limit)
            print(f"at most {len(todo) * limit:,} requests, {in_words(tokens_in, tokens_out, price)}")
            print(f"  ({rule}; without retries)")
            if before:
                tokens_in, tokens_out = (tokens * len(todo) // len(before) for tokens in _tokens_used(before))
                print(f"at the mean cost of the {len(before)} saved episodes: {in_words(tokens_in, tokens_out, price)}")
            _confirm(yes)
            path.open("ab").close()  # a file that cannot be written is an error before any request is paid
            play = _play(path, env, todo, expert, messages, common, limit, price, bool(before), evaluation)
            remaining, too_long = asyncio.run(play)
    except Timeout:
        raise CollectError(f"another process collects into {path}: wait for it, or choose another file") from None
    _print_missing(remaining, too_long, expert)
    if not (evaluation or remaining):
        name = str(path) if names_file(str(path)) else f"./{path}"
        print(f"use it: {shlex.join(['-p', f'experts={name}'])}")
    return int(bool(remaining or too_long))


def _print_missing(remaining: Mapping[str, str], too_long: Sequence[Trajectory], expert: Expert) -> None:
    """Which subtasks are not in the file, and whether another start can change that."""
    for task, reason in remaining.items():
        print(f"not finished: subtask {task}: {reason}")
    for episode in too_long:
        print(f"not saved: subtask {episode.task}: context_overflow: {episode.info['error']}")
    if too_long:
        print(
            f"{len(too_long)} subtasks exceed the context of {expert.model!r} and will not succeed with this model: "
            "each start plays them again; use the file without them, or serve the model with a longer context"
        )
    if remaining:
        print(f"{len(remaining)} subtasks remain; run the same command again")


def common_settings(env: TextEnv, expert: Expert, example: Trajectory | None, limit: int) -> dict[str, Any]:
    """The settings that all trajectories of one file share."""
    return {
        "env": {"name": env.name, **env.stamp()},
        "max_steps": limit,
        "model": expert.model,
        "request": expert.fields,
        "example": example.task if example else None,
        "prompt": digest(opening(env, example)),
        "options": digest(env.state_key()) if hasattr(env, "state_key") else "",
    }


def read_collected(path: Path, common: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories in ``path``. A truncated last line is removed, with a message.

    CollectError for another kind of file, and for a file with settings other than ``common``.
    """
    lines = (path.read_bytes() if path.is_file() else b"").split(b"\n")
    episodes, truncated, tail = list[Trajectory](), False, lines[-1]  # empty if the last line is complete
    for number, line in enumerate(lines, start=1):
        try:
            episodes += [from_dict(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            truncated = number == len(lines) and (bool(episodes) or b'{"task": '.startswith(line[:9]))
            if not truncated:
                raise CollectError(f"{path}, line {number}: {error}; choose another file, or delete the line") from None
    later = {key: common[key] for key in ("options",) if key in common}  # absent in files of earlier versions
    for episode in episodes:
        settings = episode.info.get("settings")
        ours = {**later, **settings} if settings and isinstance(settings, dict) else {}
        if ours != common:
            differing = [key for key in common if ours.get(key) != common[key]] if ours else ["all"]
            raise CollectError(
                f"{path} has trajectories with other settings ({', '.join(differing)} differ): choose another file"
            )
    if truncated:
        os.truncate(path, path.stat().st_size - len(tail))
        print(f"{path}: removed the truncated last line ({len(tail)} bytes); its subtask is played again")
    elif tail:
        with open(path, "ab") as out:
            out.write(b"\n")
    return episodes


def estimate(env: TextEnv, tasks: Sequence[str], messages: Sequence[Message], limit: int) -> tuple[int, int, str]:
    """The largest numbers of tokens in and out, if each episode takes ``limit`` steps, and the assumptions in words.

    Each request sends the whole conversation. Pages are assumed to be as long as those that perfect play sees, or as
    the first page where no scripted expert plays.
    """
    episode = _sample(env, tasks[0])
    pages, source = [len(turn.observation) for turn in episode.turns], f"the mean on subtask {tasks[0]}"
    if not pages:
        pages, source = [len(episode.prompt)], f"the length of the first page of subtask {tasks[0]}"
    if not any(pages):
        pages, source = [1000], "a guess"
    page = sum(pages) / len(pages) / CHARACTERS_PER_TOKEN
    start = (sum(len(message["content"]) for message in messages) + len(episode.prompt)) / CHARACTERS_PER_TOKEN
    tokens_in = limit * start + (page + TOKENS_PER_ANSWER) * limit * (limit - 1) / 2
    rule = (
        f"{limit} steps per episode, {CHARACTERS_PER_TOKEN} characters per token, {TOKENS_PER_ANSWER} tokens per "
        f"answer, {page:.0f} tokens per page ({source}), the whole conversation in each request"
    )
    return round(len(tasks) * tokens_in), len(tasks) * limit * TOKENS_PER_ANSWER, rule


def _sample(env: TextEnv, task: str) -> Trajectory:
    """Perfect play on ``task``, without turns where no scripted expert plays, and empty if the environment fails."""
    if extras_of(env).experts:
        return demonstrations(env, [task])[0]
    try:
        return Trajectory(task, on_workers(env, [task], lambda worker, task: first_page(worker(), task))[0], ())
    except EnvError:
        return Trajectory(task, "", ())


def in_words(tokens_in: int, tokens_out: int, price: Sequence[float] | None) -> str:
    """Tokens and their cost; ``price`` is per million tokens in, and out."""
    known = f"{(tokens_in * price[0] + tokens_out * price[1]) / 1e6:.2f}" if price else "unknown (--price IN OUT)"
    return f"{tokens_in:,} tokens in, {tokens_out:,} out, cost {known}"


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CollectError("no request was sent: there is no terminal for the confirmation; add --yes")
    if input("continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CollectError("not confirmed: no request was sent")


def _tokens_used(episodes: Sequence[Trajectory]) -> tuple[int, int]:
    """Tokens in and out, as counted by the endpoint."""
    return (
        sum(episode.info["prompt_tokens"] for episode in episodes),
        sum(episode.info["tokens"] for episode in episodes),
    )


async def _play(
    path: Path, env: TextEnv, tasks: Sequence[str], expert: Expert, messages: list[Message],
    common: Mapping[str, Any], limit: int, price: Sequence[float] | None, begun: bool, evaluation: bool,
) -> tuple[dict[str, str], list[Trajectory]]:  # fmt: skip
    """Play ``tasks`` and append each episode to ``path``.

    ``begun``: whether the model has answered before, so that the first pages fit into its context. Returns the subtasks
    that remain, each with the reason, and the episodes that exceeded the context and were not saved.
    """
    count = min(expert.concurrency, len(tasks))
    workers = replay_workers(env, count)
    in_threads = bool(workers)  # such workers are slow processes; forks answer at once
    workers = workers or [env.fork() for _ in range(count)]
    queue, remaining, failures = list(tasks)[::-1], dict[str, str](), 0
    saved, too_long = list[Trajectory](), list[Trajectory]()
    bar = tqdm(total=len(tasks), unit="episode", disable=None)

    def save(episode: Trajectory) -> None:
        info = {**episode.info, "settings": dict(common)}
        _append(path, replace(episode, source=expert.model, info=info))
        saved.append(episode)

    def check_begun(most: int) -> None:
        if not begun and len(too_long) > most:
            raise CollectError(
                f"no first request fits into the context of {expert.model!r}: serve it with a longer context, or lower "
                f"the token limit in the request's body: {too_long[0].info['error']}"
            )

    async def work(worker: TextEnv) -> None:
        nonlocal failures
        while queue:
            task = queue.pop()
            try:
                episode = await _episode(ask, worker, in_threads, task, messages, step_limit(env, task, limit))
            except EnvError as error:
                remaining[task] = f"env_error: {error}"
            except EpisodeError as error:
                remaining[task], failures = f"endpoint: {error}", failures + 1
                if failures > len(workers):  # each of the current episodes, and one more
                    raise CollectError(f"the endpoint failed {failures} times in a row: {error}") from None
            else:
                failures = 0
                if episode.outcome == "context_overflow" and not (evaluation and episode.turns):
                    too_long.append(episode)
                    check_begun(len(workers))
                else:
                    save(episode)
            bar.update(1)

    try:
        async with make_client(expert) as client:
            send = asker(client, expert)

            async def ask(messages: list[Message], first: bool) -> Answer:
                nonlocal begun
                answer = await send(messages, first)
                begun = True
                return answer

            running = [asyncio.create_task(work(worker)) for worker in workers]
            try:
                await asyncio.gather(*running)
            finally:  # if one worker fails, stop the others
                for each in running:
                    each.cancel()
                await asyncio.gather(*running, return_exceptions=True)
            check_begun(0)
            while evaluation and too_long:  # not even a first page fitted, and this cost nothing
                save(too_long.pop(0))
    finally:
        bar.close()
        wins = sum(episode.won for episode in saved)
        print(f"{len(saved)} episodes saved in {path}, {wins} won; {in_words(*_tokens_used(saved), price)}")
        _print_problems(saved, expert)
    return remaining, too_long


def _print_problems(episodes: Sequence[Trajectory], expert: Expert) -> None:
    """How many answers had no readable action and why, with advice if the token limit was the reason."""
    problems = problem_counts(episode.info for episode in episodes)
    if line := describe_problems(problems, sum(map(len, episodes))):
        print(line)
    if problems["cut"]:
        name = next((name for name in ("max_completion_tokens", "max_tokens") if name in expert.fields), "max_tokens")
        limit = expert.fields.get(name)
        larger = 4 * limit if isinstance(limit, int) else 2048
        print(
            f"  the limit is {f'{name}={limit}' if limit else 'the default of the server'}, thoughts included: raise "
            f"it by --body '{json.dumps({name: larger})}' and collect into another file"
        )


def _append(path: Path, trajectory: Trajectory) -> None:
    line = line_of(trajectory).encode()
    with disk_errors(path, (errno.ENOSPC, errno.EDQUOT)), open(path, "ab", buffering=0) as out:
        if out.write(line) < len(line):
            raise OSError(errno.ENOSPC, "the line was not written completely", str(path))
        os.fsync(out.fileno())


async def _episode(
    ask: Ask, env: TextEnv, in_threads: bool, task: str, messages: list[Message], limit: int
) -> Trajectory:
    """One episode. An answer without a readable action does not reach the environment and costs a step.

    Its outcome is ``context_overflow`` if the endpoint refuses the conversation as too long.
    """

    async def call(method: Callable[[str], Any], argument: str) -> Any:
        return await asyncio.to_thread(method, argument) if in_threads else method(argument)

    prompt, turns = await call(partial(first_page, env), task), list[Turn]()
    messages = [*messages, first_page_message(prompt)]
    outcome, reward, won = "", 0.0, False
    info: dict[str, Any] = {"prompt_tokens": 0, "tokens": 0, "invalid": 0, **problem_counts([])}
    while not outcome and len(turns) < limit:
        try:
            answer = await ask(messages, not turns)
        except ContextOverflow as error:
            outcome, info["error"] = "context_overflow", str(error)
            break
        info["prompt_tokens"] += answer.prompt_tokens
        info["tokens"] += answer.tokens
        reading = read_action(answer.text, cut=answer.cut)
        reply = answer.text[: reading.end].strip()
        if reading.problem:
            observation, valid = EXPLANATIONS[reading.problem], False
            info[reading.problem.name.lower()] += 1
        else:
            step = await call(partial(take_step, env, task=task), reading.action)
            observation, valid, outcome = step.observation, step.valid, "done" if step.done else ""
            reward, won = float(step.reward), bool(step.info.get("won"))
            info |= {name: step.info[name] for name in ("score", "max_score") if name in step.info}
        info["invalid"] += not valid
        turns.append(Turn(reading.action, observation, reply, learn=not reading.problem and not answer.cut))
        messages += [agent_message(reply), page_message(observation)]
    return Trajectory(task, prompt, tuple(turns), reward, won, "", outcome or "max_steps", info=info)
