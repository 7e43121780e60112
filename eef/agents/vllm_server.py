"""The HTTP client of a vLLM server; :mod:`eef.agents.vllm` says how to start one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

LOOPBACK = ("localhost", "127.0.0.1", "::1")  # names of this machine
_TIMEOUT = (10, 300)  # seconds: to connect, to answer
# fails soon if the server cannot be reached; retries for about a minute if it is busy or drops a connection
_RETRY = Retry(
    total=8, connect=2, read=4, backoff_factor=0.25, status_forcelist=(429, 502, 503, 504), allowed_methods=None,
    raise_on_status=False,
)  # fmt: skip


class ServerError(RuntimeError):
    """The server cannot play this policy. The message says why, and what to do."""


@dataclass
class Server:
    """A vLLM server at an address (``http://host:port``). ValueError for an invalid address."""

    address: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                f"engine={self.address!r}: give an address such as http://localhost:8000, or leave it empty"
            )
        self.address = self.address.rstrip("/").removesuffix("/v1")
        self.session = requests.Session()
        self.session.trust_env = parts.hostname not in LOOPBACK  # no proxy leads to this machine
        self.session.mount(self.address, HTTPAdapter(pool_maxsize=256, max_retries=_RETRY))
        if key := os.environ.get("VLLM_API_KEY", "").strip():
            self.session.headers["Authorization"] = f"Bearer {key}"

    def request(self, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        """GET, or POST if there is a ``body``. ServerError if there is no response, or if the key is refused."""
        try:
            response = self.session.request("POST" if body else "GET", self.address + path, json=body, timeout=_TIMEOUT)
        except requests.RequestException as error:
            raise ServerError(
                f"no answer from engine={self.address!r} ({_cause(error)}): start `vllm serve` (see "
                "eef/agents/vllm.py), wait until it is ready, and start the run again (finished stages are kept)"
            ) from None
        if response.status_code == 401:
            raise ServerError(f"{self.address} refuses the key: put the server's --api-key into VLLM_API_KEY")
        return response

    def request_json(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """As :meth:`request`, for a JSON object. ServerError for anything else."""
        response = self.request(path, body)
        if response.status_code != 200:
            raise ServerError(f"{self.address}{path} answers {response.status_code}: {error_text(response)}")
        try:
            return dict(response.json())
        except (ValueError, TypeError):
            raise ServerError(f"{self.address}{path} did not return a JSON object: is this a vLLM server?") from None

    def models(self) -> list[dict[str, Any]]:
        """The server's description of each model and adapter that it has loaded."""
        return list(self.request_json("/v1/models").get("data") or [])

    def load(self, name: str, adapter: Path) -> None:
        """Load the adapter in a folder under a name. ServerError if the server cannot."""
        body = {"lora_name": name, "lora_path": str(adapter.resolve())}
        response = self.request("/v1/load_lora_adapter", body)
        if response.status_code == 200 or name in [model.get("id") for model in self.models()]:
            return  # refused but listed: a response was lost, and the request was sent again
        if response.status_code == 404 and "error" not in response.text:  # the route itself is missing
            remedy = "start it with the variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and with --enable-lora"
            raise ServerError(f"{self.address} does not load adapters while it runs: {remedy}")
        raise ServerError(
            f"{self.address} cannot load the adapter {body['lora_path']}: {error_text(response)}. It needs "
            "--enable-lora, a --max-lora-rank of at least lora_r, and the same folders under the same paths as here"
        )

    def unload(self, name: str) -> None:
        """Unload an adapter. Failures are printed, not raised: they change no result."""
        try:
            response = self.request("/v1/unload_lora_adapter", {"lora_name": name})
            problem = "" if response.status_code == 200 else error_text(response)
        except ServerError as error:
            problem = str(error)
        if problem:
            print(f"the adapter {name} was not unloaded: {problem}", flush=True)


def error_text(response: requests.Response) -> str:
    """The server's explanation of an error."""
    try:
        body = response.json()
        text = str((body.get("error") or {}).get("message") or body.get("detail") or body)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:300] or "no explanation"


def _cause(error: Exception) -> str:
    inner = getattr(error.args[0] if error.args else None, "reason", None) or error
    return " ".join(str(inner).split())[-120:]
