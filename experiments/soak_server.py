"""Many sessions at once on ``eef serve``, with malformed requests among them, for some minutes.

    python experiments/soak_server.py --minutes 10

Each session plays recorded episodes through OpenEnv's own client, from s0 and from expert states, and compares every
page, reward and win with the recording, which was made in this process without a server. Some sessions copy others
(``fork``), and some connect anew. Other clients send malformed requests and break connections. The script prints the
memory, threads, open files and sessions of the server while it runs. It exits with 1 if a page differs, a malformed
request has no clear answer, the server ends, a session is left over, or memory grew by more than ``--growth`` after
the first third. Needs ``pip install eef[openenv]``. It talks to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from openenv.core.generic_client import GenericEnvClient
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from eef.envs import SPLITS, TextEnv, make_env
from eef.envs.extras import extras_of, play_scripted
from eef.trajectory import Trajectory

MAX_BYTES, FORKS, BROKEN = 200_000, 8, 4  # the largest request; forks at a time; clients with malformed requests


@dataclass
class Soak:
    """What the clients share."""

    url: str
    episodes: list[Trajectory]
    end: float
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    forks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FORKS))

    @property
    def ended(self) -> bool:
        return time.monotonic() > self.end or len(self.problems) > 20


def tool_call(action: str) -> dict[str, Any]:
    match = re.fullmatch(r"(search|click)\[(.*)\]", action, re.DOTALL)
    tool, argument = (match[1], "query" if match[1] == "search" else "element") if match else ("act", "action")
    return {"type": "call_tool", "tool_name": tool, "arguments": {argument: match[2] if match else action}}


def record(env: TextEnv, count: int) -> list[Trajectory]:
    """Episodes of the scripted experts, with and without mistakes, by the environment itself."""
    experts = extras_of(env).experts
    assert experts is not None
    tasks = [task for split in SPLITS for task in env.tasks(split)]
    noises = [*experts.noise.values(), experts.perfect]
    played = [
        play_scripted(experts, env, tasks[number % len(tasks)], noises[number % len(noises)], number)
        for number in range(count)
    ]
    return [item for item in played if item.turns and all(turn.action for turn in item.turns)]


async def play(soak: Soak, env: GenericEnvClient, rng: random.Random) -> None:
    """One recorded episode, from s0 or from an expert state, with each page compared."""
    item = rng.choice(soak.episodes)
    start = rng.randrange(len(item.turns))
    compared = rng.random() < 0.5
    prefix = [{"action": t.action, "observation": t.observation if compared else None} for t in item.turns[:start]]
    result = await env.reset(task=item.task, prefix=prefix)
    check(soak, item, start, result)
    for index in range(start, len(item.turns)):
        if rng.random() < 0.03 and not soak.forks.locked():
            await fork(soak, item, index, (await env.state())["fork_id"])
        result = await env.step(tool_call(item.turns[index].action))
        check(soak, item, index + 1, result)
        await asyncio.sleep(rng.random() * 0.05)
    if item.outcome == "done" and (result.reward, result.metadata["won"]) != (item.reward, item.won):
        soak.problems.append(f"task {item.task}: reward {result.reward} instead of {item.reward}")
    soak.counts["episodes"] += 1


async def fork(soak: Soak, item: Trajectory, index: int, fork_id: str) -> None:
    """A second session copies the state s_index and plays on by itself."""
    async with soak.forks, GenericEnvClient(base_url=soak.url) as twin:
        check(soak, item, index, await twin.reset(fork=fork_id))
        for at in range(index, len(item.turns)):
            check(soak, item, at + 1, await twin.step(tool_call(item.turns[at].action)))
    soak.counts["forks"] += 1


def check(soak: Soak, item: Trajectory, index: int, result: Any) -> None:
    soak.counts["pages"] += 1
    if result.observation["result"] != item.state(index):
        seen = str(result.observation["result"])[:80]
        soak.problems.append(f"task {item.task}, state {index}: {seen!r} instead of {item.state(index)[:80]!r}")


async def session(soak: Soak, number: int) -> None:
    rng = random.Random(number)
    while not soak.ended:
        try:
            async with GenericEnvClient(base_url=soak.url) as env:
                soak.counts["connections"] += 1
                while not soak.ended and rng.random() > 0.2:
                    await play(soak, env, rng)
        except Exception as error:
            soak.problems.append(f"session {number}: {type(error).__name__}: {error}")


WRONG = {  # messages of a WebSocket that are answered with an error, or with an observation that has one
    "truncated": '{"type": "reset"',
    "a list": "[1, 2]",
    "deep": "[" * 50_000,
    "an unknown type": '{"type": "dance"}',
    "no data": '{"type": "step"}',
    "an unknown argument": '{"type": "reset", "data": {"prefx": []}}',
    "an unknown task": '{"type": "reset", "data": {"task": "no such task"}}',
    "a wrong prefix": '{"type": "reset", "data": {"prefix": [{"action": 3}]}}',
    "a wrong fork": '{"type": "reset", "data": {"fork": "0123"}}',
    "an early step": '{"type": "step", "data": {"type": "call_tool", "tool_name": "click"}}',
    "an unknown tool": '{"type": "step", "data": {"type": "call_tool", "tool_name": "no", "arguments": {}}}',
    "bytes": b"\x00\xff",
}


async def malformed(soak: Soak, number: int) -> None:
    rng = random.Random(-1 - number)
    host, port = soak.url.removeprefix("http://").split(":")
    async with httpx.AsyncClient(base_url=soak.url, timeout=30) as http:
        while not soak.ended:
            kind = rng.choice([*WRONG, "a long message", "a broken connection", "a long body", "garbage", "mcp"])
            try:
                if kind in WRONG:
                    async with connect(soak.url.replace("http", "ws") + "/ws", proxy=None) as raw:
                        await raw.send(WRONG[kind])
                        answer = json.loads(await asyncio.wait_for(raw.recv(), 30))
                        clear = answer["type"] == "error" or bool(answer["data"]["observation"]["error"])
                        if not clear:
                            soak.problems.append(f"{kind}: {str(answer)[:200]}")
                elif kind == "a long message":
                    async with connect(soak.url.replace("http", "ws") + "/ws", proxy=None) as raw:
                        await raw.send('{"type": "reset", "data": {"task": "' + "x" * MAX_BYTES + '"}}')
                        try:
                            soak.problems.append(f"{kind}: {await asyncio.wait_for(raw.recv(), 30)!r}")
                        except ConnectionClosed as closed:
                            if closed.rcvd is None or closed.rcvd.code != 1009:
                                soak.problems.append(f"{kind}: {closed}")
                elif kind == "a broken connection":
                    raw = await connect(soak.url.replace("http", "ws") + "/ws", proxy=None)
                    await raw.send('{"type": "reset", "data": {}}')
                    raw.transport.abort()
                elif kind == "a long body":
                    if (await http.post("/mcp", content=b"x" * (MAX_BYTES + 1))).status_code != 413:
                        soak.problems.append(kind)
                elif kind == "garbage":
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(rng.randbytes(200) + b"\r\n\r\n")
                    await asyncio.wait_for(reader.read(1000), 30)
                    writer.close()
                elif "error" not in (await http.post("/mcp", content=b'{"jsonrpc": "2.0"}')).json():
                    soak.problems.append(kind)
            except Exception as error:
                soak.problems.append(f"{kind}: {type(error).__name__}: {error}")
            soak.counts["malformed"] += 1
            await asyncio.sleep(rng.random() * 0.2)


def usage(server: psutil.Process) -> dict[str, float]:
    """Memory in MB, of the process and its children; threads and open files of the process."""
    memory = sum(each.memory_info().rss for each in [server, *server.children(recursive=True)])
    return {"MB": round(memory / 1e6, 1), "threads": server.num_threads(), "files": server.num_fds()}


async def soaking(soak: Soak, server: psutil.Process, sessions: int, growth: float) -> None:
    async with httpx.AsyncClient(base_url=soak.url, timeout=30) as http:

        async def show(label: str) -> dict[str, float]:
            values = usage(server) | {"sessions": (await http.get("/sessions")).json()["active"]}
            print(label, json.dumps(values | dict(soak.counts)), flush=True)
            return values

        begin, minutes = time.monotonic(), (soak.end - time.monotonic()) / 60
        before = await show("before")
        clients = [asyncio.create_task(session(soak, number)) for number in range(sessions)]
        clients += [asyncio.create_task(malformed(soak, number)) for number in range(BROKEN)]
        warm: dict[str, float] | None = None
        while not soak.ended:
            await asyncio.sleep(min(15, max(0.1, soak.end - time.monotonic())))
            values = await show(f"{time.monotonic() - begin:6.0f} s")
            if warm is None and time.monotonic() - begin > minutes * 20:
                warm = values
        await asyncio.gather(*clients)
        for _ in range(60):
            if not (await http.get("/sessions")).json()["active"]:
                break
            await asyncio.sleep(0.5)
        after = await show("after ")
    if after["sessions"]:
        soak.problems.append(f"{after['sessions']} sessions are left over")
    if warm is not None and after["MB"] > warm["MB"] * (1 + growth):
        soak.problems.append(f"memory grew from {warm['MB']} to {after['MB']} MB")
    for name in ("threads", "files"):
        if after[name] > before[name] + 40:  # a pool of 32 threads, idle connections
            soak.problems.append(f"{name} grew from {before[name]} to {after[name]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--env", default="webshop")
    parser.add_argument("--episodes", type=int, default=300, help="recorded episodes")
    parser.add_argument("--growth", type=float, default=0.1, help="allowed growth of memory after the first third")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    room = arguments.sessions + FORKS + BROKEN + 8
    command = [sys.executable, "-m", "eef", "serve", "--env", arguments.env, "--port", str(port)]
    command += ["--sessions", str(room), "--max-bytes", str(MAX_BYTES)]
    server = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=sys.stderr)
    try:
        episodes = record(make_env(arguments.env), arguments.episodes)
        print(f"{len(episodes)} episodes, {sum(len(item) for item in episodes)} steps recorded", flush=True)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with code {server.returncode}")
            try:
                httpx.get(url + "/health")
                break
            except httpx.TransportError:
                time.sleep(0.2)
        soak = Soak(url, episodes, time.monotonic() + 60 * arguments.minutes)
        asyncio.run(soaking(soak, psutil.Process(server.pid), arguments.sessions, arguments.growth))
        if server.poll() is not None:
            soak.problems.append(f"the server ended with code {server.returncode}")
        print("\n".join(soak.problems) or "no problem", flush=True)
        return int(bool(soak.problems))
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    sys.exit(main())
