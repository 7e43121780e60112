"""``eef serve`` runs an environment as an OpenEnv server."""

from __future__ import annotations

import ipaddress
import socket
from typing import Annotated

from typer import Option

from eef.commands import FIRST_ENV, Env, Overrides, environment, parse_overrides


def serve(
    env: Env = FIRST_ENV,
    overrides: Overrides = None,
    host: Annotated[str, Option(help="The address to listen at; others than 127.0.0.1 are open to the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Option(min=1, max=65535)] = 8000,
    sessions: Annotated[int, Option(min=1, metavar="N", help="Maximum number of sessions.")] = 64,
    idle: Annotated[float, Option(min=1, metavar="SECONDS", help="An unused session ends after this time.")] = 600.0,
    max_bytes: Annotated[int, Option(min=1000, metavar="N", help="The largest request.")] = 1_000_000,
) -> None:
    """Run an OpenEnv server of an environment."""
    try:
        from eef.serving.app import make_app
    except ImportError as error:
        raise ValueError(f"eef serve needs OpenEnv ({error}): pip install -e '.[openenv]'") from None
    check_address(host, port)
    import uvicorn

    from eef.serving.sessions import Served

    world = environment(env, parse_overrides(overrides))
    try:
        served = Served(world, sessions)
        tools = ", ".join(tool.name for tool in served.tools)
        print(f"{served.name} at http://{host}:{port} (tools: {tools}; at most {served.sessions} sessions)", flush=True)
        if not _is_loopback(host):
            print(f"warning: {host} is open to the network, and the server asks nobody who they are", flush=True)
        uvicorn.run(
            make_app(served, max_bytes, idle),
            host=host,
            port=port,
            log_level="warning",
            ws_max_size=max_bytes,
            limit_concurrency=2 * served.sessions + 32,
            timeout_graceful_shutdown=5,
        )
    finally:
        getattr(world, "close", lambda: None)()  # ends the processes of an environment that has some


def check_address(host: str, port: int) -> None:
    """ValueError if no server can listen at this address, for example because another one does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
