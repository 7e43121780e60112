"""The OpenEnv server of an environment, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from eef.envs.webshop import WebShop

pytest.importorskip("openenv", reason="the package openenv is not installed (the extra 'openenv')")

from eef.serving.app import make_app
from eef.serving.sessions import Served


@pytest.fixture
def client(shop: WebShop) -> Iterator[TestClient]:
    with TestClient(make_app(Served(shop.fork(), 2), max_bytes=20_000, idle=1.0)) as one:
        yield one


def send(socket: Any, kind: str, **data: Any) -> dict[str, Any]:
    socket.send_json({"type": kind, **({"data": data} if kind in ("reset", "step") else {})})
    return socket.receive_json()


def call(socket: Any, tool: str, **arguments: str) -> dict[str, Any]:
    return send(socket, "step", type="call_tool", tool_name=tool, arguments=arguments)["data"]


def active(client: TestClient) -> int:
    return client.get("/sessions").json()["active"]


def wait_for_no_session(client: TestClient) -> None:
    end = time.monotonic() + 10
    while active(client) and time.monotonic() < end:
        time.sleep(0.02)
    assert active(client) == 0


def test_an_episode_over_a_websocket(client: TestClient, shop: WebShop) -> None:
    direct, task = shop.fork(), shop.tasks("train")[0]
    first, query = direct.reset(task), direct.goal(task)["query"]
    with client.websocket_connect("/ws") as socket:
        tools = send(socket, "step", type="list_tools")["data"]["observation"]["tools"]
        assert [tool["name"] for tool in tools] == ["search", "click"]
        assert tools[0]["input_schema"]["required"] == ["query"]
        reset = send(socket, "reset", task=task)["data"]
        assert reset["observation"]["result"] == first and reset["done"] is False
        page = call(socket, "search", query=query)
        assert page["observation"]["result"] == direct.step(f"search[{query}]").observation
        assert page["metadata"] == {"won": False, "valid": True, "outcome": "", "steps": 1}
        state = send(socket, "state")["data"]
        assert state["task"] == task and state["available_actions"] == direct.available_actions()
        with client.websocket_connect("/ws") as other:
            assert (
                send(other, "reset", fork=state["fork_id"])["data"]["observation"]["result"]
                == page["observation"]["result"]
            )
        turns = [{"action": f"search[{query}]", "observation": page["observation"]["result"]}]
        restored = send(socket, "reset", task=task, prefix=turns)["data"]
        assert restored["observation"]["result"] == page["observation"]["result"] and restored["metadata"]["steps"] == 1
    wait_for_no_session(client)


def test_mistakes_are_explained_and_the_session_goes_on(client: TestClient, shop: WebShop) -> None:
    with client.websocket_connect("/ws") as socket:
        assert (
            "call reset first"
            in send(socket, "step", type="call_tool", tool_name="click", arguments={"element": "x"})["data"]["message"]
        )
        send(socket, "reset", task=shop.tasks("train")[0])
        assert call(socket, "clik", element="x")["observation"]["error"]["error_type"] == "tool_not_found"
        assert call(socket, "click", elements="x")["observation"]["error"]["error_type"] == "invalid_args"
        wrong = [
            "[]",
            "{",
            '{"type": "step"}',
            '{"type": "dance"}',
            '{"type": "reset", "data": 3}',
            '{"type": ["reset"]}',
        ]
        wrong += ['{"type": "step", "data": {"type": "call_tool"}}', '{"type": "reset", "data": {"task": {}}}']
        for text in wrong:
            socket.send_text(text)
            assert socket.receive_json()["type"] == "error", text
        assert call(socket, "search", query="shoes")["observation"]["error"] is None


def test_the_number_of_sessions_is_limited(client: TestClient) -> None:
    with client.websocket_connect("/ws") as one, client.websocket_connect("/ws") as two:
        send(one, "state"), send(two, "state")
        with client.websocket_connect("/ws") as three:
            assert three.receive_json()["data"]["code"] == "CAPACITY_REACHED"
        assert client.get("/sessions").json() == {"active": 2, "max": 2}
    wait_for_no_session(client)


def test_an_idle_session_ends(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/ws") as socket:
        send(socket, "state")
        socket.receive_json()
    assert caught.value.code == 1001
    wait_for_no_session(client)


def rpc(client: TestClient, method: str, **params: Any) -> dict[str, Any]:
    return client.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).json()


def test_a_session_over_http_and_the_routes(client: TestClient, shop: WebShop) -> None:
    session = rpc(client, "openenv/session/create")["result"]["session_id"]
    with client.websocket_connect(f"/ws?session_id={session}") as socket:
        send(socket, "reset", task=shop.tasks("train")[0])
        result = rpc(client, "tools/call", name="search", arguments={"query": "shoes"}, session_id=session)["result"]
        assert result["result"].startswith("Instruction") and result["error"] is None
    assert [tool["name"] for tool in rpc(client, "tools/list")["result"]["tools"]] == ["search", "click"]
    assert "call reset first" in rpc(client, "tools/call", name="search", arguments={"query": "x"})["error"]["message"]
    assert rpc(client, "openenv/session/close", session_id=session)["result"]["closed"]
    assert active(client) == 0
    assert client.post("/webshop/num_tasks", json={"split": "train"}).json() == {"num_tasks": 20}
    assert client.post("/webshop/num_tasks", json={"split": "no"}).status_code == 400
    assert (
        client.post("/webshop/task", json={"split": "train", "index": 1}).json()["task"]["task"]
        == shop.tasks("train")[1]
    )
    assert client.post("/webshop/task", json={"split": "train", "index": 20}).status_code == 400
    assert client.post("/mcp", content=b"x" * 30_000).status_code == 413
    assert client.post("/reset", json={}).status_code == client.post("/step", json={}).status_code == 404
    assert client.get("/metadata").json()["name"] == "webshop"
