"""Expert trajectories from a model behind any OpenAI-compatible chat-completions endpoint: ``eef collect``.

The conversation has the shape of ETO's (:mod:`eef.agents.react`). A finished episode is one line appended to the file,
so that the same command goes on where it was. Requests, retries and ``Retry-After`` are the ``openai`` client's. The
key goes into a header and nowhere else.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from eef.agents.actions import EXPLANATIONS, describe_problems, problem_counts, read_action
from eef.agents.react import STOP, Message, agent_message, first_page_message, opening, page_message
from eef.envs import EnvError, TextEnv, replay_workers
from eef.experts import demonstrations, one_shot_example
from eef.files import digest, disk_errors
from eef.trajectory import Trajectory, Turn, check, from_dict, to_dict

CHARACTERS, ANSWER = 4, 100  # of the estimate: characters per token, tokens per answer


class CollectError(RuntimeError):
    """The collection cannot go on; the message says why, and what to do."""


class _Left(Exception):
    """This episode cannot go on; its task is left for the next start."""


@dataclass(frozen=True)
class Expert:
    """A model and how it is asked.

    ``body`` holds further fields of the request (``{"reasoning_effort": "low"}``); a null takes one of ours out.
    ``rpm``: requests per minute at most, retries included. ``timeout`` in seconds, per request.
    """

    model: str
    base_url: str
    key: str = field(repr=False)
    temperature: float = 0.0
    body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 4
    rpm: float | None = None
    retries: int = 8
    timeout: float = 120.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("--base-url: an address such as http://localhost:8000/v1, without password or '?'")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or (self.rpm is not None and self.rpm <= 0):
            raise ValueError("--concurrency, --rpm and --timeout must be above 0, --retries at least 0")

    @property
    def fields(self) -> dict[str, Any]:
        """The request's fields beside model and messages."""
        ours = {"temperature": self.temperature, "max_tokens": 512, "stop": [STOP]}
        return {name: value for name, value in {**ours, **self.body}.items() if value is not None}


def read_key(variable: str = "OPENAI_API_KEY") -> str:
    """The key in an environment variable. ValueError, which never shows it, where there is none that can be sent."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", variable):  # perhaps the key itself
        raise ValueError("--key-variable takes the name of an environment variable (capitals), never a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the variable {variable} is empty: put the key there (any word, if the server asks for none)")
    if not key.isascii() or any(character.isspace() for character in key):
        raise ValueError(f"the variable {variable} holds spaces, line breaks or letters that no key has")
    return key


def read_body(text: str) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--body {text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'--body {text!r}: a JSON object was expected, such as {{"stop": null}}')
    return found


def settings(env: TextEnv, expert: Expert, shown: Trajectory | None, limit: int) -> dict[str, Any]:
    """What the trajectories of one file have in common."""
    return {
        "env": {"name": env.name, **env.stamp()},
        "max_steps": limit,
        "model": expert.model,
        "request": expert.fields,
        "example": shown.task if shown else None,
        "prompt": digest(opening(env, shown)),
    }


def held(path: Path, common: Mapping[str, Any]) -> list[Trajectory]:
    """The trajectories that ``path`` holds; a torn last line is cut off, and said.

    CollectError where the file is not one of ours, or was collected with other settings than ``common``.
    """
    lines = (path.read_bytes() if path.is_file() else b"").split(b"\n")
    found, torn, tail = list[Trajectory](), False, lines[-1]  # empty where the last line is whole
    for number, line in enumerate(lines, start=1):
        try:
            found += [from_dict(json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            torn = number == len(lines) and (bool(found) or b'{"task": '.startswith(line[:9]))
            if not torn:
                raise CollectError(f"{path}, line {number}: {error}; choose another file, or delete the line") from None
    for one in found:
        theirs = one.info.get("settings")
        if theirs != common:
            names = [key for key in common if theirs.get(key) != common[key]] if isinstance(theirs, dict) else ["all"]
            raise CollectError(
                f"{path} holds trajectories of other settings ({', '.join(names)} differ): choose another file"
            )
    if torn:
        os.truncate(path, path.stat().st_size - len(tail))
        print(f"{path}: the last line was torn and is cut off ({len(tail)} bytes); its subtask is played again")
    elif tail:
        with open(path, "ab") as out:
            out.write(b"\n")
    return found


def estimate(env: TextEnv, tasks: Sequence[str], talk: Sequence[Message], limit: int) -> tuple[int, int, str]:
    """Tokens in and out at most, if every episode takes ``limit`` steps, and the rule in words.

    Each request sends the whole conversation again; pages are as long as those that the scripted player sees.
    """
    seen = demonstrations(env, tasks[:1])[0]
    pages = [len(turn.observation) for turn in seen.turns] or [1000]
    mean = sum(pages) / len(pages) / CHARACTERS
    start = (sum(len(message["content"]) for message in talk) + len(seen.prompt)) / CHARACTERS
    told = limit * start + (mean + ANSWER) * limit * (limit - 1) / 2
    rule = (
        f"{limit} steps in every episode, {CHARACTERS} characters a token, {ANSWER} tokens an answer, {mean:.0f} "
        f"tokens a page (the mean on subtask {tasks[0]}), the whole conversation sent at each step"
    )
    return round(len(tasks) * told), len(tasks) * limit * ANSWER, rule


def money(price: Sequence[float] | None, told: int, said: int) -> str:
    """The cost in words; ``price`` is of a million tokens in, and out."""
    return f"cost {(told * price[0] + said * price[1]) / 1e6:.2f}" if price else "cost unknown (--price IN OUT)"


def run(
    path: str | Path, env: TextEnv, split: str, count: int | None, expert: Expert,
    one_shot: bool = False, price: Sequence[float] | None = None, yes: bool = False,
) -> int:  # fmt: skip
    """Estimate, ask, and play those of the first ``count`` subtasks of ``split`` that ``path`` lacks.

    0: the file holds all; 1: some are left for the next start. CollectError where it cannot go on at all; ValueError
    for a parameter.
    """
    if count is not None and count < 1:
        raise ValueError(f"--tasks must be at least 1, not {count}")
    path, limit, tasks = Path(path), env.max_steps, env.tasks(split)[:count]
    shown = one_shot_example(env, split, tasks) if one_shot else None
    common = settings(env, expert, shown, limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            before = held(path, common)
            known = {one.task for one in before}
            todo = [task for task in tasks if task not in known]
            print(f"{len(tasks)} subtasks, {len(tasks) - len(todo)} in {path}, {len(todo)} to play")
            if not todo:
                return 0
            talk = opening(env, shown)
            told, said, rule = estimate(env, todo, talk, limit)
            spent = f"{told:,} tokens in, {said:,} out, {money(price, told, said)}"
            print(f"at most {len(todo) * limit:,} requests, {spent}")
            print(f"  ({rule}; retries come on top)")
            if before:
                told, said = (n * len(todo) // len(before) for n in _used(before))
                print(f"as the {len(before)} before: {told:,} tokens in, {said:,} out, {money(price, told, said)}")
            _confirm(yes)
            path.open("ab").close()  # what cannot be written is said before anything is paid
            left = asyncio.run(_play(path, env, todo, expert, talk, common, limit, price))
    except Timeout:
        raise CollectError(f"another process collects into {path}: wait for it, or choose another file") from None
    for task, why in left.items():
        print(f"left: subtask {task}: {why}")
    print(f"{len(left)} subtasks are left; the same command tries them again" if left else f"-p experts={path} uses it")
    return int(bool(left))


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CollectError("nothing was asked of the endpoint: there is no terminal to confirm at; add --yes")
    if input("go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CollectError("not confirmed: nothing was asked of the endpoint")


def _used(trajectories: Sequence[Trajectory]) -> tuple[int, int]:
    """Tokens in and out as the endpoint counted them."""
    return sum(t.info["prompt_tokens"] for t in trajectories), sum(t.info["tokens"] for t in trajectories)


async def _play(
    path: Path, env: TextEnv, tasks: Sequence[str], expert: Expert, talk: list[Message],
    common: Mapping[str, Any], limit: int, price: Sequence[float] | None,
) -> dict[str, str]:  # fmt: skip
    """Play ``tasks``, append each episode as it ends; the subtasks that are left, with the reason."""
    seats = replay_workers(env, min(expert.concurrency, len(tasks)))  # empty where env can fork
    apart = bool(seats)
    seats = seats or [env.fork() for _ in range(min(expert.concurrency, len(tasks)))]
    queue, left, saved, failed = list(tasks)[::-1], dict[str, str](), list[Trajectory](), 0
    bar = tqdm(total=len(tasks), unit="episode", disable=None)

    async def sit(seat: TextEnv) -> None:
        nonlocal failed
        while queue:
            task = queue.pop()
            try:
                played = await _episode(ask, seat, apart, task, talk, limit)
            except EnvError as error:
                left[task] = f"env_error: {error}"
            except _Left as error:
                left[task], failed = f"endpoint: {error}", failed + 1
                if failed > len(seats):  # all that play at once, and one more
                    raise CollectError(f"the endpoint failed {failed} times in a row: {error}") from None
            else:
                failed = 0
                info = {**played.info, "settings": dict(common)}
                _append(path, replace(played, source=expert.model, info=info))
                saved.append(played)
            bar.update(1)

    try:
        async with _client(expert) as client:
            ask = _asker(client, expert)
            sitting = [asyncio.create_task(sit(seat)) for seat in seats]
            try:
                await asyncio.gather(*sitting)
            finally:  # where one cannot go on, the others do not either
                for one in sitting:
                    one.cancel()
                await asyncio.gather(*sitting, return_exceptions=True)
    finally:
        bar.close()
        told, said = _used(saved)
        wins = sum(played.won for played in saved)
        spent = f"{told:,} tokens in, {said:,} out, {money(price, told, said)}"
        print(f"{len(saved)} episodes saved in {path}, {wins} won; {spent}")
        _print_problems(saved, expert)
    return left


def _print_problems(saved: Sequence[Trajectory], expert: Expert) -> None:
    """How many answers had no readable action and why, with advice where the token limit is the reason."""
    problems = problem_counts(one.info for one in saved)
    if line := describe_problems(problems, sum(map(len, saved))):
        print(line)
    if problems["cut"]:
        name = next((name for name in ("max_completion_tokens", "max_tokens") if name in expert.fields), "max_tokens")
        limit = expert.fields.get(name)
        more = 4 * limit if isinstance(limit, int) else 2048
        print(
            f"  the limit is {f'{name}={limit}' if limit else 'the default of the server'}, thoughts included: raise "
            f"it by --body '{json.dumps({name: more})}' and collect into another file"
        )


def _append(path: Path, trajectory: Trajectory) -> None:
    check(trajectory)
    line = (json.dumps(to_dict(trajectory)) + "\n").encode()
    with disk_errors(path, (errno.ENOSPC, errno.EDQUOT)), open(path, "ab", buffering=0) as out:
        if out.write(line) < len(line):
            raise OSError(errno.ENOSPC, "the line was not written whole", str(path))
        os.fsync(out.fileno())


async def _episode(
    ask: Callable[..., Any], seat: TextEnv, apart: bool, task: str, talk: list[Message], limit: int
) -> Trajectory:
    """One episode; an answer without a readable action leaves the environment alone and costs a step."""

    async def do(act: Callable[[str], Any], word: str) -> Any:
        return await asyncio.to_thread(act, word) if apart else act(word)

    prompt, turns = await do(seat.reset, task), list[Turn]()
    talk = [*talk, first_page_message(prompt)]
    ended, reward, won = False, 0.0, False
    info: dict[str, Any] = {"prompt_tokens": 0, "tokens": 0, "invalid": 0, **problem_counts([])}
    while not ended and len(turns) < limit:
        reply, cut, tokens_in, tokens_out = await ask(talk, first=not turns)
        info["prompt_tokens"] += tokens_in
        info["tokens"] += tokens_out
        answer = read_action(reply, cut=cut)
        reply = reply[: answer.end].strip()
        if answer.problem:
            observation, valid = EXPLANATIONS[answer.problem], False
            info[answer.problem.name.lower()] += 1
        else:
            step = await do(seat.step, answer.action)
            observation, valid, ended = step.observation, step.valid, step.done
            reward, won = float(step.reward), bool(step.info.get("won"))
            info |= {name: step.info[name] for name in ("score", "max_score") if name in step.info}
        info["invalid"] += not valid
        turns.append(Turn(answer.action, observation, reply, learn=not answer.problem and not cut))
        talk += [agent_message(reply), page_message(observation)]
    return Trajectory(task, prompt, tuple(turns), reward, won, "", "done" if ended else "max_steps", info=info)


def _client(expert: Expert) -> Any:
    try:
        import openai
    except ImportError:
        raise CollectError("the openai client is missing: .venv/bin/pip install -e '.[collect]'") from None
    due = 0.0

    async def pace(_: Any) -> None:
        nonlocal due
        if expert.rpm:
            now = time.monotonic()
            begin = max(now, due)
            due = begin + 60 / expert.rpm
            await asyncio.sleep(begin - now)

    web = openai.DefaultAsyncHttpxClient(event_hooks={"request": [pace]})  # a hook sees the client's retries, too
    return openai.AsyncOpenAI(
        api_key=expert.key, base_url=expert.base_url, max_retries=expert.retries, timeout=expert.timeout,
        http_client=web,
    )  # fmt: skip


def _asker(client: Any, expert: Expert) -> Callable[..., Any]:
    """The coroutine ``ask(talk, first)``.

    It returns the reply, whether the token limit cut it, the tokens in and the tokens out. It raises CollectError or
    _Left.
    """
    import openai

    def shown(error: openai.APIError) -> str:
        """The server's words; what begins as the key does is left out."""
        text = " ".join(str(error.message).split())
        return (re.sub(re.escape(expert.key[:7]) + r"\S*", "[key]", text) if len(expert.key) > 7 else text)[:300]

    async def ask(talk: list[Message], first: bool) -> tuple[str, bool, int, int]:
        try:
            answer = await client.chat.completions.create(model=expert.model, messages=talk, extra_body=expert.fields)
            choice, usage = answer.choices[0], answer.usage
            reply, cut = (choice.message.content or "").strip(), getattr(choice, "finish_reason", None) == "length"
            return reply, cut, *((usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0))
        except openai.APIStatusError as error:
            raise _refused(error, shown(error), expert, first) from None
        except openai.APIConnectionError as error:
            kind = "no answer in time" if isinstance(error, openai.APITimeoutError) else "no connection"
            raise _Left(f"{kind} at {expert.base_url}, {expert.retries + 1} tries") from None
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError):
            raise _Left(f"{expert.base_url} gave no chat completion: does the address end in /v1?") from None

    return ask


def _refused(error: Any, text: str, expert: Expert, first: bool) -> Exception:
    """A status of the endpoint: what no other episode would be spared ends the collection."""
    code, said = error.status_code, f"the endpoint answers {error.status_code}"
    if code == 401:  # its text may hold a part of the key
        return CollectError(f"{said}: the key was refused; check the variable that holds it, and --base-url")
    if code == 404:
        return CollectError(f"{said}: no model {expert.model!r}, or no chat completions at {expert.base_url}: {text}")
    if code in (402, 403) or error.code == "insufficient_quota":
        return CollectError(f"{said}, and would do so to every request: {text}")
    if first and 400 <= code < 500 and code not in (408, 409, 429):
        return CollectError(f"{said} to a first request (--body can take fields out of it, or add some): {text}")
    return _Left(f"{said}: {text}")
