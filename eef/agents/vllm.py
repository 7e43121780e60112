"""A policy that a vLLM server plays. Its interface is that of :class:`eef.agents.policy.Policy`.

vLLM needs another version of transformers than this package, so it is never imported. It runs in its own environment,
and the two exchange token ids and adapter folders (written for the protocol of vLLM 0.32). To start a server::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16 --max-loras 2

``--max-lora-rank`` must be at least ``lora_r``, and ``--max-loras`` the number of concurrent runs. The server must see
the runs' folders under the same paths. Precision is set at the server (``--dtype``, ``--quantization``), and so is its
share of a GPU on which eef also trains (``--gpu-memory-utilization``). For a server with ``--api-key`` set the variable
``VLLM_API_KEY``. On a CPU add ``--no-enable-chunked-prefill``, because seeded sampling fails there without it.

Requests do not depend on the batch. On a GPU the answers may, in the last bits (``VLLM_BATCH_INVARIANT=1``).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eef.agents.chat import Chat
from eef.agents.constraints import Constraints
from eef.agents.model_files import config_of, context_of, ends_of, folder_of, generation_of, options_of
from eef.agents.policy import load_chat
from eef.agents.vllm_server import Server, ServerError, error_text


@dataclass
class ServedPolicy:
    """A policy whose weights are at a server, under the name ``served_name``.

    ``about`` goes into the run record: engine, version, address, model, and the longest conversation that the server
    accepts. ``model_ends`` are the ids that end an answer according to the model's configurations.
    """

    server: Server
    served_name: str
    chat: Chat
    name: str
    context: int
    constrained_decoding: bool
    max_new_tokens: int
    about: dict[str, Any]
    model_ends: frozenset[int] = frozenset()

    def engine(self, slots: int) -> VllmEngine:
        """A new engine for up to ``slots`` conversations at once."""
        return VllmEngine(self, slots)

    def sample(
        self, ids: list[int], count: int, draw: Callable[[], float], temperature: float, allowed: Sequence[int] = ()
    ) -> list[int]:
        """Between 1 and ``count`` ids that follow ``ids``; sampling stops after an id that may end an answer.

        Above temperature 0 the seed of the request is the next number of ``draw``. ``allowed`` limits the ids.
        ServerError if the response cannot be used.
        """
        body: dict[str, Any] = {
            "model": self.served_name,
            "prompt": ids,
            "max_tokens": count,
            "temperature": temperature,
            "return_token_ids": True,
            "stop_token_ids": sorted({self.chat.end[-1], *self.model_ends}),
            "ignore_eos": True,  # only the ids above end an answer
            # neutral values: otherwise the model's generation_config.json sets them
            "top_p": 1.0, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        }  # fmt: skip
        if temperature > 0:
            body["seed"] = int(draw() * 2**53)
        if allowed:
            body["allowed_token_ids"] = sorted(allowed)
        address, response = self.server.address, self.server.request("/v1/completions", body)
        if response.status_code == 404:
            raise ServerError(
                f"{address} no longer has {self.served_name!r} ({error_text(response)}): was the server restarted? "
                "Start the run again: finished stages are kept"
            )
        if response.status_code != 200:
            raise ServerError(f"{address} answers {response.status_code} to a prompt: {error_text(response)}")
        try:
            (choice,) = response.json()["choices"]
            prompt_ids, new_ids = choice.get("prompt_token_ids"), choice.get("token_ids")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerError(f"{address} did not return a completion: is this a vLLM server?") from None
        if not new_ids or len(new_ids) > count or prompt_ids != ids:
            raise ServerError(f"{address} does not return token ids (return_token_ids): use vLLM 0.10.2 or later")
        if allowed and new_ids[0] not in allowed:
            raise ServerError(f"{address} ignores allowed_token_ids, so constrained decoding is not possible there")
        return list(new_ids)

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
) -> Iterator[ServedPolicy]:
    """The policy of ``model`` and ``adapter``, played by the vLLM server at the address ``engine``.

    The other parameters are those of :meth:`eef.agents.policy.Policy.load`. The adapter is unloaded at the end. Each
    loading has a new name, because vLLM caches by adapter name. ServerError if the server cannot be reached, has
    another model, accepts fewer tokens than ``context``, or does not load adapters.
    """
    server = Server(engine)
    folder = folder_of(model)
    models = [entry for entry in server.models() if not entry.get("parent")]
    entry = next((entry for entry in models if _is_model(entry, model, folder)), None)
    if entry is None:
        names = ", ".join(repr(entry.get("id")) for entry in models) or "nothing"
        raise ServerError(
            f"{server.address} serves {names}, but the run has model={model!r}. Serve that model, or, if the weights "
            f"are the same, add --served-model-name {model}"
        )
    longest = entry.get("max_model_len")
    config = config_of(model)
    context = context_of(model, config, context)
    if not isinstance(longest, int) or longest < context:
        raise ServerError(
            f"{server.address} accepts at most {longest} tokens, but the run's longest conversation is {context}: "
            f"start it with --max-model-len {context}, or set a smaller context in the run"
        )
    version = server.request("/version")
    about = {
        "engine": "vllm",
        "version": version.json()["version"] if version.status_code == 200 else "unknown",
        "address": server.address,
        "model": entry["id"],
        "max_model_len": longest,
    }
    chat = chat or load_chat(model)
    if constrained_decoding is None:
        constrained_decoding = bool(options_of(model).get("constrained_decoding", False))
    name = f"{Path(adapter).name}-{uuid.uuid4().hex[:12]}" if adapter is not None else str(entry["id"])
    ends = ends_of(config, generation_of(model)) | ({chat.tokenizer.eos_token_id} - {None})
    policy = ServedPolicy(server, name, chat, model, context, constrained_decoding, max_new_tokens, about, ends)
    if adapter is None:
        yield policy
        return
    server.load(name, Path(adapter))
    try:
        yield policy
    finally:
        server.unload(name)


class VllmEngine:
    """An :class:`eef.agents.engine.Engine` that sends the ids of the whole conversation with each request.

    The server's prefix cache (on by default) has most of them. Constrained decoding is exact: where the constraints
    leave a choice, one request samples one of the allowed ids.
    """

    def __init__(self, policy: ServedPolicy, slots: int) -> None:
        self.policy = policy
        self.conversations: list[list[int]] = [[] for _ in range(slots)]

    def start(self, prompts: dict[int, list[int]]) -> None:
        """As :meth:`eef.agents.engine.Engine.start`."""
        for slot, ids in prompts.items():
            self.conversations[slot] = list(ids)

    def append(self, slot: int, ids: list[int]) -> None:
        """As :meth:`eef.agents.engine.Engine.append`."""
        self.conversations[slot] += ids

    def length(self, slot: int) -> int:
        """As :meth:`eef.agents.engine.Engine.length`."""
        return len(self.conversations[slot])

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        """All slots: the server manages its own memory."""
        return list(lengths)

    def park(self, slot: int) -> list[int]:
        """As :meth:`eef.agents.engine.Engine.park`."""
        ids, self.conversations[slot] = self.conversations[slot], []
        return ids

    def generate(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        constraints: dict[int, Constraints] | None = None,
    ) -> dict[int, list[int]]:
        """As :meth:`eef.agents.engine.Engine.generate`, with one thread for each slot.

        The seeds of a slot's requests are its next draws, so they depend only on the episode and its turn. ServerError
        if the server fails.
        """

        def answer(slot: int) -> list[int]:
            history, draw = self.conversations[slot], draws[slot]
            if constraints is not None:
                return self._constrained_answer(history, draw, temperature, constraints[slot])
            return self._free_answer(history, draw, temperature)

        with ThreadPoolExecutor(max(1, len(slots))) as threads:
            answers = dict(zip(slots, threads.map(answer, slots), strict=True))
        for slot, ids in answers.items():
            self.conversations[slot] += ids
        return answers

    def _constrained_answer(
        self, history: list[int], draw: Callable[[], float], temperature: float, constraints: Constraints
    ) -> list[int]:
        ids: list[int] = []
        while allowed := constraints.allowed(ids):
            if len(allowed) == 1:
                ids.append(allowed[0])
            else:
                ids += self.policy.sample(history + ids, 1, draw, temperature, allowed)
        return ids

    def _free_answer(self, history: list[int], draw: Callable[[], float], temperature: float) -> list[int]:
        policy, end = self.policy, list(self.policy.chat.end)
        ids: list[int] = []
        # the server stops at the last id of the end, which need not be the whole end
        while ids[-len(end) :] != end:
            if len(ids) >= policy.max_new_tokens:
                return ids + end
            for token in policy.sample(history + ids, policy.max_new_tokens - len(ids), draw, temperature):
                ids.append(token)
                if ids[-len(end) :] == end:
                    break
                if policy.ends(token):
                    return ids[:-1] + end
        return ids


def _is_model(entry: dict[str, Any], model: str, folder: str) -> bool:
    """Whether the server's entry is the model of this name or folder."""
    root = str(entry.get("root"))
    same_folder = Path(folder).exists() and Path(root).exists() and Path(root).samefile(folder)
    return model in (entry.get("id"), root) or same_folder
