"""A policy that a vLLM server plays: the same interface as :mod:`eef.agents.policy`, its weights in another process.

vLLM pins another transformers than ours, so it is never imported: it runs in an environment of its own, and token ids
and adapter folders are exchanged (written against the protocol of vLLM 0.32). To start it::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16 --max-loras 2

``--max-lora-rank`` is at least ``lora_r``, ``--max-loras`` the number of runs at once, and the server reads the run's
folders under the same paths. Precision is the server's own (``--dtype``, ``--quantization``), and so is the share of a
GPU on which eef trains as well (``--gpu-memory-utilization``). A server with ``--api-key``: the key is expected in the
variable ``VLLM_API_KEY``. On a CPU add ``--no-enable-chunked-prefill``: seeded sampling fails there without it.

What is asked does not depend on the batch; what a GPU answers may, in the last bits (``VLLM_BATCH_INVARIANT=1``).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.model_files import config_of, context_of, ends_of, folder_of, generation_of, options_of
from eef.agents.policy import load_chat

_WAIT = (10, 300)  # seconds: to connect, to answer
# an unreachable server is told soon; one that is busy, or drops a connection, is asked again for about a minute
_AGAIN = Retry(
    total=8, connect=2, read=4, backoff_factor=0.25, status_forcelist=(429, 502, 503, 504), allowed_methods=None,
    raise_on_status=False,
)  # fmt: skip


class ServerError(RuntimeError):
    """The server cannot play this policy; the message says why, and what to do."""


@dataclass
class Server:
    """A vLLM server by its address (``http://host:port``). ValueError for what is no address."""

    address: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"engine={self.address!r}: give an address such as http://localhost:8000, or nothing")
        self.address = self.address.rstrip("/").removesuffix("/v1")
        self.session = requests.Session()
        self.session.mount(self.address, HTTPAdapter(pool_maxsize=256, max_retries=_AGAIN))
        if key := os.environ.get("VLLM_API_KEY", "").strip():
            self.session.headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        """GET, or POST where there is a ``body``; any answer but a refused key. ServerError where there is none."""
        try:
            answer = self.session.request("POST" if body else "GET", self.address + path, json=body, timeout=_WAIT)
        except requests.RequestException as error:
            raise ServerError(
                f"no answer from engine={self.address!r} ({_cause(error)}): start `vllm serve` (see "
                "eef/agents/vllm.py), wait until it is up, and start again (finished stages are kept)"
            ) from None
        if answer.status_code == 401:
            raise ServerError(f"{self.address} refuses the key: put the server's --api-key into VLLM_API_KEY")
        return answer

    def read(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """As :meth:`ask`, for a JSON object; ServerError for anything else."""
        answer = self.ask(path, body)
        if answer.status_code != 200:
            raise ServerError(f"{self.address}{path} answers {answer.status_code}: {_words(answer)}")
        try:
            return dict(answer.json())
        except (ValueError, TypeError):
            raise ServerError(f"{self.address}{path} gave no JSON object: is this a vLLM server?") from None

    def cards(self) -> list[dict[str, Any]]:
        """What the server says of each model and adapter that it has."""
        return list(self.read("/v1/models").get("data") or [])

    def load(self, name: str, adapter: Path) -> None:
        """Load an adapter's folder under a name; ServerError where the server cannot."""
        body = {"lora_name": name, "lora_path": str(adapter.resolve())}
        answer = self.ask("/v1/load_lora_adapter", body)
        if answer.status_code == 200 or name in [card.get("id") for card in self.cards()]:
            return  # listed though refused: an answer was lost, and the request was sent again
        if answer.status_code == 404 and "error" not in answer.text:  # the route itself is missing
            why = "start it with the variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and with --enable-lora"
            raise ServerError(f"{self.address} loads no adapters while it runs: {why}")
        raise ServerError(
            f"{self.address} cannot load the adapter {body['lora_path']}: {_words(answer)}; it takes --enable-lora, a "
            "--max-lora-rank of at least lora_r, and the same folders under the same paths as here"
        )

    def unload(self, name: str) -> None:
        """Unload an adapter; what goes wrong is told, no error: it changes no result."""
        try:
            answer = self.ask("/v1/unload_lora_adapter", {"lora_name": name})
            trouble = "" if answer.status_code == 200 else _words(answer)
        except ServerError as error:
            trouble = str(error)
        if trouble:
            print(f"the adapter {name} was not unloaded: {trouble}", flush=True)


@dataclass
class Served:
    """A policy behind a server: :class:`eef.agents.policy.Policy` without weights. ``asked`` is its name at the server.

    ``about`` is for the record: engine, version, address, model and the longest conversation that the server reads.
    ``model_ends`` are the ends that the model's configurations name.
    """

    server: Server
    asked: str
    chat: Chat
    name: str
    context: int
    constrained_decoding: bool
    max_new_tokens: int
    about: dict[str, Any]
    model_ends: frozenset[int] = frozenset()

    def sample(
        self, ids: list[int], count: int, draw: Callable[[], float], temperature: float, allowed: Sequence[int] = ()
    ) -> list[int]:
        """At most ``count`` ids that follow ``ids``, up to the last id of an utterance's end or an end of the model's;
        at least one.

        Above temperature 0 the request's seed is the next of ``draw``. ServerError where the answer cannot be used.
        """
        body: dict[str, Any] = {
            "model": self.asked,
            "prompt": ids,
            "max_tokens": count,
            "temperature": temperature,
            "return_token_ids": True,
            "stop_token_ids": sorted({self.chat.end[-1], *self.model_ends}),
            "ignore_eos": True,  # those above alone end an utterance
            # neutral: else the model's generation_config.json sets them
            "top_p": 1.0, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }  # fmt: skip
        if temperature > 0:
            body["seed"] = int(draw() * 2**53)
        if allowed:
            body["allowed_token_ids"] = sorted(allowed)
        answer = self.server.ask("/v1/completions", body)
        if answer.status_code == 404:
            raise ServerError(
                f"{self.server.address} does not know {self.asked!r} any more ({_words(answer)}): was it started anew? "
                "Start the run again: finished stages are kept"
            )
        if answer.status_code != 200:
            raise ServerError(f"{self.server.address} answers {answer.status_code} to a prompt: {_words(answer)}")
        try:
            (choice,) = answer.json()["choices"]
            read, said = choice.get("prompt_token_ids"), choice.get("token_ids")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerError(f"{self.server.address} gave no completion: is this a vLLM server?") from None
        if not said or len(said) > count or read != ids:
            raise ServerError(
                f"{self.server.address} does not give token ids for token ids (return_token_ids): vLLM 0.10.2 or later "
                "is needed"
            )
        if allowed and said[0] not in allowed:
            raise ServerError(f"{self.server.address} ignores allowed_token_ids, so decoding cannot be limited there")
        return list(said)

    def ends(self, token: int) -> bool:
        """As :meth:`eef.agents.policy.Policy.ends`."""
        return token in self.chat.stops or token in self.model_ends or token >= self.chat.vocabulary_size


@contextmanager
def served(
    engine: str,
    model: str,
    adapter: str | Path | None = None,
    *,
    constrained_decoding: bool | None = None,
    chat: Chat | None = None,
    context: int | None = None,
    max_new_tokens: int = 64,
) -> Iterator[Served]:
    """The policy of ``model`` and ``adapter``, played by the vLLM server at the address ``engine``.

    Parameters as of :meth:`eef.agents.policy.Policy.load`. The adapter gets a name of its own at each loading (vLLM
    keeps what it read by adapter name: under an old name it would be stale) and is unloaded at the end. ServerError
    where the server is not there, has another model, reads less than ``context``, or loads no adapters.
    """
    server = Server(engine)
    folder = folder_of(model)
    cards = [card for card in server.cards() if not card.get("parent")]
    card = next((card for card in cards if _is(card, model, folder)), None)
    if card is None:
        found = ", ".join(repr(card.get("id")) for card in cards) or "nothing"
        raise ServerError(
            f"{server.address} serves {found}, the run asks for model={model!r}: serve that one, or (the same weights "
            f"under another name) add --served-model-name {model}"
        )
    longest = card.get("max_model_len")
    config = config_of(model)
    context = context_of(model, config, context)
    if not isinstance(longest, int) or longest < context:
        raise ServerError(
            f"{server.address} reads {longest} tokens at most, the run's longest conversation is {context}: start it "
            f"with --max-model-len {context}, or set a smaller context in the run"
        )
    version = server.ask("/version")
    about = {
        "engine": "vllm",
        "version": version.json()["version"] if version.status_code == 200 else "unknown",
        "address": server.address,
        "model": card["id"],
        "max_model_len": longest,
    }
    chat = chat or load_chat(model)
    if constrained_decoding is None:
        constrained_decoding = bool(options_of(model).get("constrained_decoding", False))
    name = f"{Path(adapter).name}-{uuid.uuid4().hex[:12]}" if adapter is not None else str(card["id"])
    ends = ends_of(config, generation_of(model)) | ({chat.tokenizer.eos_token_id} - {None})
    policy = Served(server, name, chat, model, context, constrained_decoding, max_new_tokens, about, ends)
    if adapter is None:
        yield policy
        return
    server.load(name, Path(adapter))
    try:
        yield policy
    finally:
        server.unload(name)


class ServedActor:
    """:class:`eef.agents.engine.Actor` with a server: each request sends the whole conversation's ids.

    The server's prefix cache (vLLM's own, on by default) holds what it has read before, so that this costs little.
    Constrained decoding is exact: where the constraints leave a choice, one id is asked for among those allowed; a
    request for each such id.
    """

    def __init__(self, policy: Served, slots: int) -> None:
        self.policy = policy
        self.held: list[list[int]] = [[] for _ in range(slots)]

    def open(self, prompts: dict[int, list[int]]) -> None:
        """Begin conversations in the given slots."""
        for slot, ids in prompts.items():
            self.held[slot] = list(ids)

    def hear(self, slot: int, ids: list[int]) -> None:
        """What is to be read before the slot speaks again."""
        self.held[slot] += ids

    def length(self, slot: int) -> int:
        """Tokens of the conversation so far."""
        return len(self.held[slot])

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        """All of them: the server has its own memory."""
        return list(lengths)

    def park(self, slot: int) -> list[int]:
        """The ids of a conversation, with which :meth:`open` begins it again."""
        return self.held[slot]

    def act(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        constraints: dict[int, Constraints] | None = None,
    ) -> dict[int, list[int]]:
        """One utterance for each slot, ids with their end, all at once; a request's seed is the slot's next draw, so
        that it depends on the episode and its turn alone. ServerError where the server fails."""

        def utter(slot: int) -> list[int]:
            return self._utterance(
                self.held[slot], draws[slot], temperature, constraints[slot] if constraints else None
            )

        with ThreadPoolExecutor(max(1, len(slots))) as threads:
            said = dict(zip(slots, threads.map(utter, slots), strict=True))
        for slot, ids in said.items():
            self.held[slot] += ids
        return said

    def _utterance(
        self, history: list[int], draw: Callable[[], float], temperature: float, constraints: Constraints | None
    ) -> list[int]:
        policy, end = self.policy, list(self.policy.chat.end)
        said: list[int] = []
        while constraints is not None:
            while len(allowed := constraints.allowed(said)) == 1:
                said.append(allowed[0])
            if not allowed:
                return said
            said += policy.sample(history + said, 1, draw, temperature, allowed)
        while said[-len(end) :] != end:  # an end of several ids may be begun and not be one
            if len(said) >= policy.max_new_tokens:
                return said + end
            more = policy.sample(history + said, policy.max_new_tokens - len(said), draw, temperature)
            for token in more:
                said.append(token)
                if said[-len(end) :] == end:
                    break
                if policy.ends(token):
                    return said[:-1] + end
        return said


def _is(card: dict[str, Any], model: str, folder: str) -> bool:
    root = str(card.get("root"))
    same = Path(folder).exists() and Path(root).exists() and Path(root).samefile(folder)
    return model in (card.get("id"), root) or same


def _words(answer: requests.Response) -> str:
    """What the server says of an error."""
    try:
        said = answer.json()
        text = str((said.get("error") or {}).get("message") or said.get("detail") or said)
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(text.split())[:300] or "no words"


def _cause(error: Exception) -> str:
    inner = getattr(error.args[0] if error.args else None, "reason", None) or error
    return " ".join(str(inner).split())[-120:]
