"""An expert model behind an OpenAI-compatible chat-completions endpoint: its settings, requests and errors.

The ``openai`` client sends requests, retries them and follows ``Retry-After``. The key is sent in a header and is never
printed or written. :mod:`eef.experts.collection` plays the episodes.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from eef.agents.react import STOP, Message
from eef.files import replace_surrogates

_PORTS = {"http": 80, "https": 443}
_TOO_LONG = re.compile(
    "context_length_exceeded|maximum context length"  # OpenAI and others; vLLM, SGLang
    "|longer than the (model.{1,2}s context|maximum model) length|context length is only"  # vLLM, SGLang
    "|available context size|context length of only"  # llama.cpp, LM Studio
    r"|`inputs` tokens \+ `max_new_tokens` must be|`inputs` must have less than"  # Text Generation Inference
    r"|prompt is too long: \d+ tokens|exceed context limit"  # Anthropic
    "|maximum prompt length is|input token count.{0,30}exceeds the maximum",  # xAI, Gemini
    re.I,
)


class CollectError(RuntimeError):
    """The collection cannot continue; the message says why, and what to do."""


class EpisodeError(Exception):
    """This episode cannot continue; its subtask is played again at the next start."""


class ContextOverflow(EpisodeError):
    """The conversation is longer than the context of the served model: the subtask would end so at each start."""


@dataclass(frozen=True)
class Expert:
    """A model, its endpoint, and the settings of requests.

    ``body`` has further fields of the request (``{"reasoning_effort": "low"}``); null removes one of ours. ``rpm``:
    maximum number of requests per minute, with retries. ``timeout``: seconds per request.
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
        _ = self.address  # ValueError for an invalid one
        for name, value in {"concurrency": self.concurrency, "rpm": self.rpm, "timeout": self.timeout}.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name} must be positive and finite, not {value}")
        check_not_negative("--temperature", self.temperature)
        check_not_negative("--retries", self.retries)
        try:
            json.dumps(dict(self.body), allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ValueError(f"--body has a value that cannot be sent as JSON: {error}") from None

    @property
    def address(self) -> str:
        """The base URL in one spelling, which identifies the endpoint. ValueError for another kind of address."""
        try:
            url = urlsplit(self.base_url)
            host, port = url.hostname, url.port
        except ValueError:  # a port that is no number
            url, host, port = urlsplit(""), None, None
        secret = url.username or url.password or (len(self.key) > 7 and self.key in self.base_url)
        if url.scheme not in _PORTS or not host or secret or url.query or url.fragment:
            raise ValueError(
                "--base-url must be an address such as http://localhost:8000/v1, without a key, a password, '?' or '#'"
            )
        shown = f"[{host}]" if ":" in host else host
        shown += f":{port}" if port not in (None, _PORTS[url.scheme]) else ""
        return f"{url.scheme}://{shown}{url.path.rstrip('/')}"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a request, without the model and the messages."""
        ours = {"temperature": self.temperature, "max_tokens": 512, "stop": [STOP]}
        return {name: value for name, value in {**ours, **self.body}.items() if value is not None}


def check_not_negative(name: str, *values: float) -> None:
    """ValueError with ``name`` unless each of ``values`` is a finite number of at least 0."""
    for value in values:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, not {value}")


class Answer(NamedTuple):
    """``cut``: whether the token limit ended ``text``. Tokens as counted by the endpoint, 0 if it does not count."""

    text: str
    cut: bool
    prompt_tokens: int
    tokens: int


Ask = Callable[[list[Message], bool], Awaitable[Answer]]


def read_key(variable: str = "OPENAI_API_KEY") -> str:
    """The key in an environment variable. ValueError, which never shows it, if it is missing or cannot be a key."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", variable):  # perhaps the key itself
        raise ValueError("--key-variable takes the name of an environment variable (capital letters), never a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the variable {variable} is empty: set it to the key (any word if the server needs none)")
    if not key.isascii() or any(character.isspace() for character in key):
        raise ValueError(f"the variable {variable} contains spaces, line breaks or letters that no key has")
    return key


def read_body(text: str) -> dict[str, Any]:
    """A JSON object. ValueError for anything else."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--body {text!r} is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError(f'--body {text!r} must be a JSON object, such as {{"stop": null}}')
    return body


def make_client(expert: Expert) -> Any:
    """The ``openai`` client, as an asynchronous context manager, limited to ``expert.rpm``."""
    try:
        import openai
    except ImportError:
        raise CollectError("the openai client is missing: .venv/bin/pip install -e '.[collect]'") from None
    from eef.agents.vllm_server import LOOPBACK

    next_start = 0.0

    async def pace(_: Any) -> None:
        nonlocal next_start
        if expert.rpm:
            now = time.monotonic()
            start = max(now, next_start)
            next_start = start + 60 / expert.rpm
            await asyncio.sleep(start - now)

    through_proxy = urlsplit(expert.base_url).hostname not in LOOPBACK
    hooks = {"request": [pace]}  # a hook sees retries, too
    http_client = openai.DefaultAsyncHttpxClient(event_hooks=hooks, trust_env=through_proxy)
    return openai.AsyncOpenAI(
        api_key=expert.key, base_url=expert.base_url, max_retries=expert.retries, timeout=expert.timeout,
        http_client=http_client,
    )  # fmt: skip


def asker(client: Any, expert: Expert) -> Ask:
    """The coroutine ``ask(messages, first)``, where ``first`` marks the first request of an episode.

    It raises CollectError, EpisodeError or ContextOverflow.
    """
    import openai

    def message_of(error: openai.APIError) -> str:
        """The server's message, without anything that begins like the key."""
        text = " ".join(str(error.message).split())
        return (re.sub(re.escape(expert.key[:7]) + r"\S*", "[key]", text) if len(expert.key) > 7 else text)[:300]

    async def ask(messages: list[Message], first: bool) -> Answer:
        try:
            response = await client.chat.completions.create(
                model=expert.model, messages=replace_surrogates(messages), extra_body=expert.fields
            )
            choice, usage = response.choices[0], response.usage
            text = replace_surrogates((choice.message.content or "").strip())
            cut = getattr(choice, "finish_reason", None) == "length"
            return Answer(text, cut, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))
        except openai.APIStatusError as error:
            raise _status_error(error, message_of(error), expert, first) from None
        except openai.APIConnectionError as error:
            kind = "no answer in time" if isinstance(error, openai.APITimeoutError) else "no connection"
            raise EpisodeError(f"{kind} at {expert.base_url}, {expert.retries + 1} tries") from None
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError):
            raise EpisodeError(f"{expert.base_url} returned no chat completion: does the address end in /v1?") from None

    return ask


def _count(usage: Any, name: str) -> int:
    """A number of tokens; 0 where the endpoint does not count."""
    value = getattr(usage, name, None)
    return value if isinstance(value, int) else 0


def _status_error(error: Any, text: str, expert: Expert, first: bool) -> Exception:
    """The exception for an error status: a CollectError if every other episode would fail in the same way."""
    code, prefix = error.status_code, f"the endpoint answers {error.status_code}"
    if code == 401:  # its text may contain a part of the key
        return CollectError(f"{prefix}: the key was refused; check the variable with the key, and --base-url")
    if code == 404:
        return CollectError(f"{prefix}: no model {expert.model!r}, or no chat completions at {expert.base_url}: {text}")
    if code in (402, 403) or error.code == "insufficient_quota":
        return CollectError(f"{prefix}, and would do so for every request: {text}")
    if _TOO_LONG.search(f"{error.code} {error.message}"):
        return ContextOverflow(f"{prefix}: {text}")
    if first and 400 <= code < 500 and code not in (408, 409, 429):
        return CollectError(f"{prefix} to a first request (--body can remove or add fields): {text}")
    return EpisodeError(f"{prefix}: {text}")
