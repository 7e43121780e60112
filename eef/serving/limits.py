"""Limits of a server, as ASGI middleware: the size of a request, idle connections, malformed messages and requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GOING_AWAY, TOO_BIG = 1001, 1009  # codes of a closed WebSocket (RFC 6455, section 7.4.1)
LINGER = 2.0  # seconds


class Limits:
    """Middleware around an ASGI application ``app``.

    ``max_bytes``: the largest request body and WebSocket message; a larger one is answered with 413, or closes its
    connection with code 1009. ``idle``: seconds without a message after which a WebSocket is closed with code 1001. A
    WebSocket message that is not a JSON object is answered with an error, and the connection stays open. A request to
    ``/mcp`` that JSON-RPC does not allow is answered with 400 and the error of JSON-RPC.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], max_bytes: int, idle: float) -> None:
        if max_bytes < 1 or idle <= 0:
            raise ValueError(f"max_bytes={max_bytes} and idle={idle} must be positive")
        self.app, self.max_bytes, self.idle = app, max_bytes, idle

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.app(scope, self._messages(receive, send), send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _messages(self, receive: Receive, send: Send) -> Receive:
        async def next_message() -> Message:
            while True:
                try:
                    message = await asyncio.wait_for(receive(), self.idle)
                except TimeoutError:
                    return await _close(send, GOING_AWAY, f"no message for {self.idle:g} s")
                if message["type"] != "websocket.receive":
                    return message
                text = message.get("text")
                if len(text if text is not None else message.get("bytes") or b"") > self.max_bytes:
                    return await _close(send, TOO_BIG, f"a message has at most {self.max_bytes} bytes")
                if (problem := _problem(text)) is None:
                    return message
                error = {"type": "error", "data": {"message": problem, "code": "INVALID_JSON"}}
                await send({"type": "websocket.send", "text": json.dumps(error)})

        return next_message

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the whole body, then pass it on, so that a body that is too long never reaches the application."""
        body, more = b"", True
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        too_big = any(value.isdigit() and int(value) > self.max_bytes for value in lengths)
        while more and not too_big:
            try:
                message = await asyncio.wait_for(receive(), self.idle)
            except TimeoutError:
                return await _answer(send, 408, f"the request did not end within {self.idle:g} s")
            if message["type"] != "http.request":  # the client is gone
                return None
            body, more = body + message.get("body", b""), message.get("more_body", False)
            too_big = len(body) > self.max_bytes
        if too_big:
            return await _answer(send, 413, f"a request has at most {self.max_bytes} bytes", receive if more else None)
        if scope["method"] == "POST" and scope["path"] == "/mcp" and (refusal := _refusal(body)):
            return await _answer(send, 400, refusal)
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def next_message() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message if message is not None else await receive()

        return await self.app(scope, next_message, send)


def _refusal(body: bytes) -> dict[str, Any] | None:
    """The JSON-RPC response to a malformed request, None for a valid one."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        problem = f"the request is not valid JSON ({type(error).__name__}: {str(error)[:100]})"
        return {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": problem}}
    code, number = -32600, request.get("id") if isinstance(request, dict) else None
    number = number if type(number) in (str, int, float) else None
    if not isinstance(request, dict):
        problem = "the request must be a JSON object"
    elif request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
        problem = "the request needs 'jsonrpc', which is '2.0', and 'method', a text"
    elif not isinstance(params := request.get("params") or {}, dict):
        code, problem = -32602, "'params' must be a JSON object"
    elif request["method"] == "tools/call" and not (
        isinstance(params.get("name"), str) and isinstance(params.get("arguments", {}), dict)
    ):
        code, problem = -32602, "tools/call needs 'name', a text, and 'arguments', a JSON object"
    else:
        return None
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": problem}}


def _problem(text: str | None) -> str | None:
    """Why a message is not a JSON object, or None."""
    if text is None:
        return "send messages as text, not as bytes"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"the message is not valid JSON ({type(error).__name__}: {str(error)[:100]})"
    return None if isinstance(value, dict) else "the message must be a JSON object"


async def _close(send: Send, code: int, reason: str) -> Message:
    await send({"type": "websocket.close", "code": code, "reason": reason})
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


async def _answer(send: Send, status: int, detail: str | dict[str, Any], rest: Receive | None = None) -> None:
    """Answer with ``{"detail": detail}``, or with ``detail`` if it is an object, and close the connection.

    Before that, the ``rest`` of the request is read and dropped, for at most ``LINGER`` seconds. A client that still
    sends would lose the answer.
    """
    body = json.dumps({"detail": detail} if isinstance(detail, str) else detail).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": rest is not None})
    if rest is not None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await rest()).get("more_body", False):
                    pass
        await send({"type": "http.response.body"})
