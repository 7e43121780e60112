"""Sessions of a served environment, and the limits of the server. No test here needs OpenEnv."""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from eef import cli
from eef.commands.serve import check_address
from eef.envs import EnvError, ReplayDivergence, Step, TextEnv
from eef.envs.webshop import WebShop
from eef.serving import limits
from eef.serving.limits import Limits, Message
from eef.serving.sessions import Served, Session, ToolMistake


@dataclass
class Counter:
    """Counts to four and cannot fork. ``break`` is a failure of the environment itself."""

    name: str = "counter"
    max_steps: int = 6
    limit: int = 2
    task: str = ""
    count: int = 0

    def tasks(self, split: str) -> list[str]:
        return ["one", "two"] if split == "train" else []

    def reset(self, task: str) -> str:
        if task not in ("one", "two"):
            raise ValueError(f"no task {task!r}")
        self.task, self.count = task, 0
        return f"{task}: 0"

    def step(self, action: str) -> Step:
        if action == "break":
            raise EnvError("the counter broke")
        self.count += action == "more"
        return Step(f"{self.task}: {self.count}", self.count / 4, self.count == 4, True, {"won": self.count == 4})

    def available_actions(self) -> dict[str, Any]:
        raise RuntimeError("not computed")

    def fork(self) -> TextEnv:
        raise NotImplementedError

    def workers(self, count: int) -> list[Counter]:
        return [replace(self) for _ in range(min(count, self.limit))]

    def can_start_here(self, observation: str) -> bool:
        return True

    def stamp(self) -> dict[str, str]:
        return {}

    def state_key(self) -> dict[str, Any]:
        return {}


def act(session: Session, *actions: str) -> list[str]:
    return [session.call("act", {"action": action}).step.observation for action in actions]


def shopping(env: WebShop, task: str) -> list[tuple[str, str]]:
    """Tool calls of an episode: a search, the first product, the purchase."""
    return [("search", env.goal(task)["query"]), ("click", ""), ("click", "buy now")]


def play(env: WebShop, task: str) -> tuple[list[tuple[str, str]], list[str], float]:
    """The tool calls of an episode, its pages, and its reward, from the environment itself."""
    pages, calls, reward = [env.reset(task)], [], 0.0
    for tool, text in shopping(env, task):
        text = text or next(name for name in env.available_actions()["clickables"] if name.startswith("b0"))
        step = env.step(f"{tool}[{text}]")
        calls.append((tool, text))
        pages.append(step.observation)
        reward = step.reward
    return calls, pages, reward


def call(session: Session, tool: str, text: str) -> str:
    argument = {"search": "query", "click": "element"}[tool]
    return session.call(tool, {argument: text}).step.observation


def test_interleaved_sessions_see_the_pages_of_the_environment(shop: WebShop) -> None:
    direct = shop.fork()
    tasks = shop.tasks("train")[:6]
    recorded = [play(direct, task) for task in tasks]
    served = Served(shop.fork())
    assert [tool.name for tool in served.tools] == ["search", "click"] and served.can_fork
    sessions = [Session(served) for _ in tasks]
    pages = [[session.reset(task).step.observation] for session, task in zip(sessions, tasks, strict=True)]
    for number in range(3):
        for session, seen, (calls, _, _) in zip(sessions, pages, recorded, strict=True):
            seen.append(call(session, *calls[number]))
    assert pages == [expected for _, expected, _ in recorded]
    for session, (_, _, reward) in zip(sessions, recorded, strict=True):
        episode = session.episode
        assert episode is not None and episode.outcome == "done" and episode.step.reward == reward
        assert episode.won == (reward == 1.0)


def test_an_episode_starts_in_an_expert_state(shop: WebShop) -> None:
    direct, served = shop.fork(), Served(shop.fork())
    task = shop.tasks("train")[0]
    calls, pages, _ = play(direct, task)
    actions = [f"{tool}[{text}]" for tool, text in calls]
    session = Session(served)
    plain = session.reset(task, prefix=actions[:2])
    assert plain.step.observation == pages[2] and plain.prefix == 2 and len(plain.actions) == 2
    turns = [{"action": actions[0], "observation": pages[1], "reply": "x"}, {"action": actions[1]}]
    assert session.reset(task, prefix=turns, prompt=pages[0]).step.observation == pages[2]
    assert call(session, *calls[2]) == pages[3]
    for wrong in (dict(prompt="other"), dict(prefix=[{"action": actions[0], "observation": "other"}])):
        with pytest.raises(ReplayDivergence, match=r"state [01]: the replay shows"):
            session.reset(task, **wrong)
        assert session.episode is None
    with pytest.raises(ReplayDivergence, match="ended"):
        session.reset(task, prefix=actions)  # it buys, so there is nothing to continue


def test_a_fork_copies_the_state_and_is_independent(shop: WebShop) -> None:
    served = Served(shop.fork())
    task = shop.tasks("train")[0]
    calls, pages, _ = play(shop.fork(), task)
    first, second = Session(served), Session(served)
    first.reset(task)
    call(first, *calls[0])
    copied = second.reset(fork=first.fork_id)
    assert copied.step.observation == pages[1] and copied.actions == (f"search[{calls[0][1]}]",)
    assert second.fork_id not in ("", first.fork_id) and copied.episode_id != first.episode.episode_id  # type: ignore[union-attr]
    call(second, "click", "back to search")
    assert [call(first, *each) for each in calls[1:]] == pages[2:]


@pytest.mark.parametrize("end", ["reset", "close", "finish", "drop"])
def test_a_fork_id_ends_with_its_episode(end: str) -> None:
    served = Served(Counter(), 2)
    first, second = Session(served), Session(served)
    first.reset("one")
    fork_id = first.fork_id
    if end == "reset":
        first.reset("one")
    elif end == "close":
        first.close()
    elif end == "finish":
        act(first, *["more"] * 4)
    else:
        del first
    with pytest.raises(ValueError, match="no running episode"):
        second.reset(fork=fork_id)
    assert len(served.forkable) <= 1


def test_an_environment_without_fork_is_forked_by_replay() -> None:
    served = Served(Counter(), 64)
    assert served.sessions == 2 and [tool.name for tool in served.tools] == ["act"] and not served.can_fork
    first, second, third = Session(served), Session(served), Session(served)
    first.reset("two", prefix=["more"])
    act(first, "more")
    copied = second.reset(fork=first.fork_id)
    assert (copied.step.observation, copied.step.reward, copied.prefix) == ("two: 2", 0.5, 1)
    assert act(second, "more") == ["two: 3"] and act(first, "wait") == ["two: 2"]
    with pytest.raises(EnvError, match="all 2 workers of counter are in use"):
        third.reset("one")
    first.close()
    assert third.reset("one").step.observation == "one: 0"
    first.close()  # again: it must not give its worker back twice
    with pytest.raises(EnvError, match="in use"):
        Session(served).reset("one")
    for use in (lambda: first.reset("one"), lambda: act(first, "more")):
        with pytest.raises(RuntimeError, match="has ended"):
            use()


def test_the_step_limit_counts_the_prefix_and_mistakes_change_nothing() -> None:
    session = Session(Served(Counter(), 1))
    with pytest.raises(RuntimeError, match="call reset first"):
        act(session, "more")
    session.reset("one", prefix=["wait", "wait"])
    for tool, arguments, kind in (
        ("actt", {"action": "more"}, "tool_not_found"),
        ("act", {}, "invalid_args"),
        ("act", {"action": 1}, "invalid_args"),
        ("act", {"action": "more", "other": "x"}, "invalid_args"),
    ):
        with pytest.raises(ToolMistake) as caught:
            session.call(tool, arguments)
        assert caught.value.kind == kind
    act(session, "more", "more", "wait")
    assert session.episode is not None and session.episode.outcome == ""
    act(session, "wait")
    assert session.episode.outcome == "max_steps" and not session.episode.won and len(session.episode.actions) == 6
    with pytest.raises(ToolMistake, match="over"):
        act(session, "more")


def test_a_failure_of_the_environment_is_an_error_and_no_loss() -> None:
    session = Session(Served(Counter(), 1))
    session.reset("one")
    with pytest.raises(EnvError, match="broke"):
        act(session, "break")
    with pytest.raises(RuntimeError, match="call reset first"):
        act(session, "more")
    session.reset("one")
    assert act(session, "more") == ["one: 1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefx": []}, r"no argument 'prefx' \(did you mean 'prefix'\?\)"),
        ({"task": 3}, "'task' must be a text"),
        ({"task": "three"}, "no task 'three'"),
        ({"task": "one", "split": "train"}, "give either 'task'"),
        ({"split": "tain"}, "unknown split 'tain'"),
        ({"split": ["train"]}, "unknown split"),
        ({"split": "test"}, "has no subtask"),
        ({"split": "train", "index": 2}, "from 0 to 1"),
        ({"split": "train", "index": True}, "from 0 to 1"),
        ({"seed": "x"}, "'seed' must be an integer"),
        ({"episode_id": 1}, "'episode_id' must be a text"),
        ({"prefix": "more"}, "must be a list of actions"),
        ({"prefix": ["wait"] * 6}, "at most max_steps=6"),
        ({"prefix": ["wait", {"observation": "x"}]}, "item 2"),
        ({"prefix": [{"action": "wait", "observation": 1}]}, "item 1"),
        ({"fork": "x"}, "no running episode"),
        ({"fork": "x", "task": "one"}, "give no task"),
    ],
)
def test_a_wrong_reset_is_explained(arguments: dict[str, Any], message: str) -> None:
    session = Session(Served(Counter(), 1))
    with pytest.raises(ValueError, match=message):
        session.reset(**arguments)
    assert session.episode is None


def test_a_reset_without_a_task_draws_one_by_its_seed() -> None:
    session = Session(Served(Counter(), 1))
    drawn = [session.reset(seed=seed).task for seed in range(8)]
    assert set(drawn) == {"one", "two"} and drawn == [session.reset(seed=seed).task for seed in range(8)]
    assert session.reset(split="train", index=1).task == "two"
    assert session.reset("one", episode_id="mine").episode_id == "mine"


def test_sessions_are_a_positive_number() -> None:
    with pytest.raises(ValueError, match="positive"):
        Served(Counter(), 0)


# Limits


async def _body(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def _echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


@pytest.fixture
def client() -> TestClient:
    posts = [Route(path, _body, methods=["POST"]) for path in ("/", "/mcp")]
    app = Starlette(routes=[*posts, WebSocketRoute("/ws", _echo)])
    return TestClient(Limits(app, max_bytes=100, idle=0.2))


def test_a_long_request_is_refused(client: TestClient) -> None:
    assert client.post("/", content=b"x" * 100).text == "100"
    refused = client.post("/", content=b"x" * 101)
    assert refused.status_code == 413 and "at most 100 bytes" in refused.json()["detail"]
    assert client.post("/", content=(b"x" * 30 for _ in range(4))).status_code == 413  # without a length
    assert client.post("/", content=(b"x" * 30 for _ in range(3))).text == "90"


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        ("{", -32700, "the request is not valid JSON"),
        ("[1]", -32600, "the request must be a JSON object"),
        ('{"jsonrpc": "2.0", "method": 3}', -32600, "needs 'jsonrpc', which is '2.0', and 'method', a text"),
        ('{"jsonrpc": "2.0", "method": "a", "params": [1]}', -32602, "'params' must be a JSON object"),
        ('{"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": []}}', -32602, "needs 'name', a text"),
    ],
)
def test_a_malformed_request_to_mcp_gets_an_error_of_json_rpc(
    client: TestClient, request_: str, code: int, message: str
) -> None:
    refused = client.post("/mcp", content=request_)
    body = refused.json()
    assert refused.status_code == 400 and body["jsonrpc"] == "2.0"
    assert body["error"]["code"] == code and message in body["error"]["message"]
    assert body["id"] == (7 if '"id"' in request_ else None)
    valid = '{"jsonrpc": "2.0", "method": "tools/list"}'
    assert client.post("/mcp", content=valid).text == str(len(valid))
    assert client.post("/", content=request_).status_code == 200


@pytest.mark.parametrize("length", [b"300", b""], ids=["with a length", "without"])
@pytest.mark.parametrize("ends", [True, False])
def test_the_rest_of_a_long_request_is_read_before_the_connection_closes(
    length: bytes, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINGER", 0.2)
    waiting, sent, left = [True, True, not ends], list[Message](), list[int]()

    async def receive() -> Message:
        if not waiting:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"x" * 200, "more_body": waiting.pop(0)}

    async def send(message: Message) -> None:
        sent.append(message)
        left.append(len(waiting))

    headers = [(b"content-length", length)] if length else []
    asyncio.run(Limits(None, 100, 60.0)({"type": "http", "headers": headers}, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413 and b"at most 100 bytes" in sent[1]["body"] and sent[1]["more_body"]
    assert left[1] > 0 and left[-1] == 0 and not sent[-1].get("more_body") and len(sent) == 3


@pytest.mark.parametrize("text", ["[1]", "1", "nothing", '{"a": ', "[" * 90, '"' + "é" * 20])
def test_a_message_that_is_no_object_is_answered(client: TestClient, text: str) -> None:
    with client.websocket_connect("/ws") as socket:
        socket.send_text(text)
        assert socket.receive_json()["type"] == "error"
        socket.send_bytes(b"{}")
        assert "not as bytes" in socket.receive_json()["data"]["message"]
        socket.send_text('{"a": 1}')
        assert socket.receive_json() == {"a": 1}


def test_a_long_message_and_silence_close_a_connection(client: TestClient) -> None:
    for use, code in ((lambda s: s.send_text('"' + "x" * 100), 1009), (lambda s: None, 1001)):
        with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/ws") as socket:
            use(socket)
            socket.receive_text()
        assert caught.value.code == code


@pytest.mark.parametrize(("max_bytes", "idle"), [(0, 1.0), (100, 0.0)])
def test_limits_are_positive(max_bytes: int, idle: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Limits(None, max_bytes, idle)  # type: ignore[arg-type]


def test_the_command_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "eef.serving.app", None)
    assert cli.main(["serve"]) == 2
    assert "pip install -e '.[openenv]'" in capsys.readouterr().err


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{port} .*: choose another --port or --host"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(ValueError, match="cannot listen at nowhere.invalid:80"):
        check_address("nowhere.invalid", 80)
