"""A served environment as an OpenEnv server (``pip install -e '.[openenv]'``).

A session is a WebSocket at ``/ws``, or an HTTP session of the Model Context Protocol at ``/mcp``. OpenEnv's routes
``/reset`` and ``/step`` keep no session, so they are left out (its mode ``production``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from openenv.core.env_server.http_server import HTTPEnvServer
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_types import (
    CallToolAction,
    CallToolObservation,
    ListToolsAction,
    ListToolsObservation,
    Tool,
    ToolError,
)
from openenv.core.env_server.types import ConcurrencyConfig, EnvironmentMetadata, Observation, State

from eef.envs import EnvError
from eef.serving.limits import Limits
from eef.serving.sessions import Episode, Served, Session, ToolMistake


class TextEnvironment(Environment):
    """One session of ``served`` as an OpenEnv environment.

    The result of a tool call is the page as a text. ``reward`` is the reward that the episode has if it ends now.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, served: Served) -> None:
        super().__init__()
        self._served, self._session = served, Session(served)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Observation:
        """Start an episode; see :meth:`eef.serving.sessions.Session.reset` for the arguments."""
        return _observation("reset", self._session.reset(seed=seed, episode_id=episode_id, **kwargs))

    def step(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        """Call a tool, or list the tools."""
        if isinstance(action, ListToolsAction):
            tools = [
                Tool(name=tool.name, description=tool.description, input_schema=tool.schema)
                for tool in self._served.tools
            ]
            return ListToolsObservation(tools=tools)
        try:
            return _observation(action.tool_name, self._session.call(action.tool_name, action.arguments))
        except ToolMistake as mistake:
            error = ToolError(error_type=mistake.kind, message=str(mistake))
            episode = self._session.episode
            values = _values(episode) if episode is not None else {}
            return CallToolObservation(tool_name=action.tool_name, error=error, **values)

    @property
    def state(self) -> State:
        """``task``, ``won``, ``outcome``, ``available_actions``, and ``fork_id``, with which a session can copy it."""
        episode = self._session.episode
        if episode is None:
            return State()
        return State(
            episode_id=episode.episode_id,
            step_count=len(episode.actions),
            task=episode.task,
            prefix=episode.prefix,
            fork_id=self._session.fork_id,
            won=episode.won,
            outcome=episode.outcome,
            available_actions=episode.available_actions,
        )

    def close(self) -> None:
        self._session.close()

    def get_metadata(self) -> EnvironmentMetadata:
        from importlib.metadata import version

        name, steps = self._served.name, self._served.max_steps
        tools = " and ".join(tool.name for tool in self._served.tools)
        text = f"{name} with the tools {tools}; an episode has at most {steps} steps and may start in an expert state"
        return EnvironmentMetadata(name=name, description=text, version=version("eef"))

    def list_splits(self) -> list[str]:
        return [split for split, ids in self._served.tasks.items() if ids]

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        return self.get_task_range(split)

    def num_tasks(self, split: str) -> int:
        return len(self._served.ids(split))

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        ids = self._served.ids(split)
        if not 0 <= index < len(ids):
            raise IndexError(f"{split} has the subtasks 0 to {len(ids) - 1}")
        return {"task": ids[index], "split": split, "index": index}

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        numbers = range(self.num_tasks(split))[start:stop]
        return [self.get_task(split, number) for number in numbers]


def _values(episode: Episode) -> dict[str, Any]:
    step = episode.step
    metadata = {"won": episode.won, "valid": step.valid, "outcome": episode.outcome, "steps": len(episode.actions)}
    return {"reward": step.reward, "done": bool(episode.outcome), "metadata": metadata}


def _observation(tool: str, episode: Episode) -> Observation:
    return CallToolObservation(tool_name=tool, result=episode.step.observation, **_values(episode))


def make_app(served: Served, max_bytes: int = 1_000_000, idle: float = 600.0) -> FastAPI:
    """The server as an ASGI application.

    ``max_bytes``: the largest request. ``idle``: seconds after which an unused session ends. ``GET /sessions`` returns
    the number of sessions and its limit.
    """
    server = HTTPEnvServer(
        partial(TextEnvironment, served),
        CallToolAction,
        CallToolObservation,
        concurrency_config=ConcurrencyConfig(max_concurrent_envs=served.sessions, session_timeout=idle),
        env_name=served.name,
    )
    app = FastAPI(title=f"{served.name} (OpenEnv)")
    app.add_middleware(Limits, max_bytes=max_bytes, idle=idle)

    @app.exception_handler(ValueError)
    @app.exception_handler(RuntimeError)
    async def explain(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503 if isinstance(error, EnvError) else 400)

    @app.get("/sessions")
    async def sessions() -> dict[str, int]:
        return {"active": server.active_sessions, "max": server.max_concurrent_envs}

    server.register_routes(app, mode="production")
    return app
