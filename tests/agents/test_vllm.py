"""A policy behind a vLLM server, against a real HTTP server that speaks its protocol and answers by token ids."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from eef.agents import vllm_server as module
from eef.agents.chat import Chat
from eef.agents.policy import Policy
from eef.agents.rollout import Start, simulate
from eef.agents.vllm import Server, ServerError, VllmEngine, served
from eef.analysis.arms import FigureError, comparable
from eef.experiment import experiment
from eef.experts import expert_trajectories
from eef.files import read_json
from eef.models.pretrain import make_model, save
from eef.selection import cut_points
from eef.settings import Settings
from eef.tracking.runs import load_runs

Answer = tuple[int, dict[str, Any]]


class VLLM:
    """A server with the part of vLLM's protocol that we use: models, completions by token ids, loading adapters."""

    def __init__(self, base: str) -> None:
        self.policy = Policy.load(base)
        self.name, self.longest, self.updating, self.vocabulary = base, 2048, True, True
        self.adapters: dict[str, Any] = {}
        self.loads: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.paths: dict[str, str] = {}  # of adapters by name, also of those that were unloaded
        self.logits: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        self.authorization: set[str | None] = set()
        self.spoil: Callable[[str, dict[str, Any]], Answer | None] = lambda path, body: None
        self.drop = 0  # connections to close without an answer
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: dict[str, Any]) -> None:
                with outer.lock:
                    outer.authorization.add(self.headers["Authorization"])
                    status, content = outer.spoil(self.path, body) or outer.answer(self.path, body)
                    dropped = outer.drop > 0 and self.command == "POST"
                    outer.drop -= dropped
                if dropped:  # after the work was done, so that the client cannot know
                    self.close_connection = True
                    return
                data = content["raw"].encode() if "raw" in content else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        if path == "/version":
            return 200, {"version": "0.0.test"}
        if path == "/v1/models":
            cards = [{"id": self.name, "root": self.name, "parent": None, "max_model_len": self.longest}]
            return 200, {"data": cards + [{"id": name, "parent": self.name} for name in self.adapters]}
        if path == "/v1/completions":
            return self.complete(body)
        if not self.updating:
            return 404, {"detail": "Not Found"}
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            return (200, {}) if self.adapters.pop(name, None) else (404, {"error": {"message": "cannot be found"}})
        self.loads.append(body)
        if name in self.adapters:
            return 400, {"error": {"message": "has already been loaded"}}
        if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return 404, {"error": {"message": f"No adapter found for {body['lora_path']}"}}
        fresh = Policy.load(self.policy.name).model
        self.adapters[name] = PeftModel.from_pretrained(fresh, body["lora_path"]).eval()
        self.paths[name] = body["lora_path"]
        return 200, {"raw": "Success: LoRA adapter added successfully."}

    def next_logits(self, model: Any, path: str, ids: tuple[int, ...]) -> torch.Tensor:
        """Those after ``ids``, (vocabulary,), computed once for each adapter's ``path``."""
        if (path, ids) not in self.logits:
            with torch.no_grad():
                self.logits[path, ids] = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        return self.logits[path, ids]

    def complete(self, body: dict[str, Any]) -> Answer:
        """Decoding without a cache; the seed of the request is the only randomness."""
        self.requests.append(body)
        model = self.policy.model if body["model"] == self.name else self.adapters.get(body["model"])
        if model is None:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if len(body["prompt"]) + body["max_tokens"] > self.longest:
            return 400, {"error": {"message": "maximum context length"}}
        assert body["ignore_eos"] and body["return_token_ids"]
        ids: list[int] = []
        rng = np.random.default_rng(body.get("seed"))
        while len(ids) < body["max_tokens"] and (not ids or ids[-1] not in body["stop_token_ids"]):
            logits = self.next_logits(model, self.paths.get(body["model"], ""), (*body["prompt"], *ids)).clone()
            if self.vocabulary and "allowed_token_ids" in body:
                barred = torch.ones_like(logits, dtype=torch.bool)
                barred[body["allowed_token_ids"]] = False
                logits[barred] = float("-inf")
            if body["temperature"] == 0:
                ids.append(int(logits.argmax()))
            else:
                weights = (logits / body["temperature"]).softmax(-1).numpy()
                ids.append(int(rng.choice(len(weights), p=weights / weights.sum())))
        choice = {"text": "never read", "token_ids": ids, "prompt_token_ids": body["prompt"]}
        return 200, {"choices": [choice]}


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 2, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.fixture(scope="module")
def adapters(base: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters that play differently."""
    folders = [tmp_path_factory.mktemp("adapters") / f"sft-{number}" for number in (0, 1)]
    for number, folder in enumerate(folders):
        policy = Policy.load(base)
        policy.new_adapter(number, r=4, alpha=8)
        torch.manual_seed(number)
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        policy.save_adapter(folder)
    return folders


@pytest.fixture
def vllm(base: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLM]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(module, "_RETRY", module._RETRY.new(backoff_factor=0.001))
    server = VLLM(base)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(scope="module")
def starts(shop) -> list[Start]:
    """Initial and expert states."""
    experts = [t for t in expert_trajectories(shop, "strong", shop.tasks("train"), seed=0) if t.failed][:3]
    states = [Start(t.task, t, index) for t in experts for index in cut_points(len(t), 2)]
    return [Start(task) for task in shop.tasks("train")[:5]] + states


# Same trajectories as our engine


@pytest.mark.parametrize("constrained_decoding", [True, False])
def test_greedy_trajectories_are_those_of_our_engine(
    vllm: VLLM, base, adapters, shop, starts, constrained_decoding: bool
) -> None:
    played = []
    for adapter in adapters:
        ours = Policy.load(base, adapter, constrained_decoding=constrained_decoding, max_new_tokens=6)
        expected = simulate(ours, shop, starts, temperature=0.0, max_steps=8)
        with served(vllm.url, base, adapter, constrained_decoding=constrained_decoding, max_new_tokens=6) as policy:
            assert (policy.constrained_decoding, policy.context, policy.max_new_tokens) == (
                constrained_decoding,
                ours.context,
                6,
            )
            assert simulate(policy, shop, starts, temperature=0.0, slots=4, max_steps=8) == expected
        played.append(expected)
    assert played[0] != played[1], "the adapters must play differently"
    assert any(t.info["invalid"] for t in played[0]) is not constrained_decoding


def test_the_base_model_plays_without_an_adapter(vllm: VLLM, base: str, shop, starts) -> None:
    with served(vllm.url, base) as policy:
        expected = simulate(Policy.load(base), shop, starts, temperature=0.0, max_steps=6)
        assert simulate(policy, shop, starts, temperature=0.0, max_steps=6) == expected
    assert not vllm.loads and {body["model"] for body in vllm.requests} == {base}


def test_a_cut_answer_gets_its_end_and_an_end_of_several_ids_is_found(vllm: VLLM, base: str) -> None:
    with served(vllm.url, base, constrained_decoding=False, max_new_tokens=5) as policy:
        prompt = list(range(5, 60))
        greedy = _greedy(vllm, prompt, 5)
        policy.chat = _ending(policy.chat, 3, 3)  # never sampled: the answer is cut
        assert _answer(policy, prompt) == [*greedy, 3, 3]
        vllm.requests.clear()
        policy.chat = _ending(policy.chat, greedy[0], greedy[2])  # the server stops at an id that is not the whole end
        alone = greedy.index(greedy[2])
        expected = _until(greedy, (greedy[0], greedy[2]))
        assert _answer(policy, prompt) == expected
        assert len(vllm.requests) > 1 and vllm.requests[1]["prompt"] == prompt + greedy[: alone + 1]
        assert vllm.requests[1]["max_tokens"] == 5 - alone - 1


def _ending(chat: Chat, *end: int) -> Chat:
    return replace(chat, scaffold=replace(chat.scaffold, end=end))


def _answer(policy: Any, prompt: list[int]) -> list[int]:
    engine = VllmEngine(policy, 1)
    engine.start({0: prompt})
    answer = engine.generate([0], {0: lambda: 0.5}, 0.0)[0]
    assert engine.length(0) == len(prompt) + len(answer)
    return answer


def _greedy(vllm: VLLM, prompt: list[int], count: int) -> list[int]:
    ids: list[int] = []
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(vllm.policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].argmax()))
    return ids


def _until(ids: list[int], end: tuple[int, int]) -> list[int]:
    places = [n for n in range(2, len(ids) + 1) if tuple(ids[n - 2 : n]) == end]
    return ids[: places[0]] if places else [*ids, *end]


# Requests


def take_requests(vllm: VLLM) -> list[tuple[Any, ...]]:
    """The requests so far without the adapter's name, sorted; they are then forgotten."""
    bodies = [tuple(sorted((k, str(v)) for k, v in body.items() if k != "model")) for body in vllm.requests]
    vllm.requests.clear()
    return sorted(bodies)


@pytest.mark.parametrize("constrained_decoding", [True, False])
def test_batch_size_and_order_change_no_request(
    vllm: VLLM, base, adapters, shop, starts, constrained_decoding: bool
) -> None:
    def play(starts: list[Start], seed: int, slots: int) -> tuple[list[Any], list[tuple[Any, ...]]]:
        with served(vllm.url, base, adapters[0], constrained_decoding=constrained_decoding, max_new_tokens=4) as policy:
            return simulate(policy, shop, starts, seed=seed, slots=slots, max_steps=8), take_requests(vllm)

    wide, requests = play(starts, 1, 64)
    narrow, the_same = play(starts, 1, 2)
    backwards, also = play(starts[::-1], 1, 3)
    assert wide == narrow == backwards[::-1] and requests == the_same == also
    assert all("seed" in dict(request) for request in requests)
    assert play(starts, 2, 64)[1] != requests
    again = [Start(start.task, start.expert, start.index, sample=1) for start in starts]
    assert not {dict(r)["seed"] for r in play(again, 1, 64)[1]} & {dict(r)["seed"] for r in requests}


def test_seeds_differ_between_turns_and_episodes_and_greedy_has_none(vllm: VLLM, base, shop) -> None:
    with served(vllm.url, base, constrained_decoding=False, max_new_tokens=4) as policy:
        simulate(policy, shop, [Start(task) for task in shop.tasks("train")[:4]], max_steps=3)
        seeds = [body["seed"] for body in vllm.requests]
        assert len(seeds) == 12 == len(set(seeds)) and all(0 <= seed < 2**53 for seed in seeds)
        vllm.requests.clear()
        simulate(policy, shop, [Start(shop.tasks("train")[0])], max_steps=3, temperature=0.0)
    assert all("seed" not in body and body["temperature"] == 0 for body in vllm.requests)
    first = vllm.requests[0]
    neutral = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0}
    assert neutral.items() <= first.items() and first["frequency_penalty"] == 0
    assert first["stop_token_ids"] == [policy.chat.end[-1]] and first["max_tokens"] == 4


def test_a_context_overflow_is_found_before_the_request(vllm: VLLM, base: str, shop) -> None:
    starts = [Start(task) for task in shop.tasks("train")[:6]]
    with served(vllm.url, base, context=150, constrained_decoding=False) as policy:
        played = simulate(policy, shop, starts, seed=0)
    assert {t.outcome for t in played} == {"context_overflow"}
    assert all(len(body["prompt"]) + 64 <= 150 for body in vllm.requests)


# Adapters


def test_each_loading_has_its_own_name_and_is_unloaded(vllm: VLLM, base: str, adapters: list[Path]) -> None:
    names = []
    for adapter in [*adapters, adapters[0]]:
        with served(vllm.url, base, adapter) as policy:
            assert list(vllm.adapters) == [policy.served_name]
            names.append(policy.served_name)
        assert not vllm.adapters
    assert len(set(names)) == 3 and all(
        name.startswith(f"{adapter.name}-") for name, adapter in zip(names, [*adapters, adapters[0]], strict=True)
    )
    assert [load["lora_path"] for load in vllm.loads] == [str(a.resolve()) for a in [*adapters, adapters[0]]]
    with pytest.raises(KeyError), served(vllm.url, base, adapters[0]):
        raise KeyError
    assert not vllm.adapters


def test_a_failure_to_unload_is_printed_and_not_raised(
    vllm: VLLM, base: str, adapters: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with served(vllm.url, base, adapters[0]) as policy:
        vllm.adapters.clear()
    assert f"{policy.served_name} was not unloaded: cannot be found" in capsys.readouterr().out


# Faults


def test_a_busy_server_and_lost_connections_are_retried(vllm: VLLM, base, adapters, shop, starts) -> None:
    with served(vllm.url, base, adapters[0]) as policy:
        expected = simulate(policy, shop, starts, seed=3, max_steps=8)
    left = {"/v1/completions": 5, "/v1/load_lora_adapter": 1, "/v1/models": 1}

    def busy(path: str, body: dict[str, Any]) -> Answer | None:
        left[path] = left.get(path, 0) - 1
        return (503, {"error": {"message": "busy"}}) if left[path] >= 0 else None

    vllm.spoil = busy
    before = len(vllm.loads)
    with served(vllm.url, base, adapters[0]) as policy:
        vllm.drop = 4
        assert simulate(policy, shop, starts, seed=3, max_steps=8) == expected
    assert all(value < 0 for value in left.values()) and vllm.drop == 0 and len(vllm.loads) == before + 1


def test_an_adapter_is_loaded_even_if_the_response_was_lost(vllm: VLLM, base: str, adapters: list[Path]) -> None:
    vllm.drop = 1
    with served(vllm.url, base, adapters[0]) as policy:
        assert list(vllm.adapters) == [policy.served_name]
    assert [load["lora_name"] for load in vllm.loads] == [policy.served_name] * 2


def test_an_adapter_that_was_not_loaded_is_not_unloaded(
    vllm: VLLM, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(vllm, base, tmp_path, "cannot load the adapter")
    assert capsys.readouterr().out == ""


def refused(vllm: VLLM, base: str, adapter: Path | None, match: str, **changes: Any) -> None:
    with pytest.raises(ServerError, match=match), served(vllm.url, changes.pop("model", base), adapter, **changes):
        raise AssertionError("the server was accepted")


def test_a_server_that_is_not_there_is_named(base: str, vllm: VLLM) -> None:
    vllm.server.shutdown()
    vllm.server.server_close()
    refused(vllm, base, None, f"no answer from engine='{vllm.url}' .*refused.*vllm serve")


def test_a_server_on_this_machine_is_reached_without_a_proxy(vllm: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Server(vllm.url).request("/v1/models").ok
    assert Server("http://far:8000").session.trust_env


@pytest.mark.parametrize("address", ["localhost:8000", "vllm", "ftp://a", "http://u:p@a", "http://a?key=1"])
def test_an_invalid_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="engine=.*give an address such as"):
        Server(address)


def test_a_run_refuses_an_invalid_address_before_it_trains(base: str, shop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine='localhost:8000'"):
        experiment("sft_pos", shop, Settings(model=base, engine="localhost:8000"), 0, root=tmp_path, wandb="disabled")
    assert not list(tmp_path.iterdir())


def test_an_address_may_end_in_v1(vllm: VLLM) -> None:
    assert Server(f"{vllm.url}/v1/").models()[0]["id"] == vllm.name


def test_another_model_is_named(vllm: VLLM, base: str) -> None:
    vllm.spoil = lambda path, body: (
        (200, {"data": [{"id": "other/model", "root": "other/model", "max_model_len": 4096}]})
        if path == "/v1/models"
        else None
    )
    refused(vllm, base, None, f"serves 'other/model', but the run has model='{base}'.*--served-model-name")


def test_a_model_is_known_by_its_name_its_root_or_its_folder(
    vllm: VLLM, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(base)
    with served(vllm.url, str(tmp_path / "link")) as policy:
        assert policy.served_name == base
    vllm.spoil = lambda path, body: (
        (200, {"data": [{"id": "mine", "root": base, "max_model_len": 2048}]}) if path == "/v1/models" else None
    )
    with served(vllm.url, base) as policy:
        assert policy.served_name == "mine"


def test_a_server_that_does_not_load_adapters_is_an_error(vllm: VLLM, base: str, adapters: list[Path]) -> None:
    vllm.updating = False
    refused(vllm, base, adapters[0], "does not load adapters while it runs.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    with served(vllm.url, base) as policy:  # the base model needs none
        assert policy.served_name == base


def test_an_adapter_that_cannot_be_loaded_is_named(vllm: VLLM, base: str, adapters: list[Path], tmp_path) -> None:
    refused(vllm, base, tmp_path, f"cannot load the adapter {tmp_path}: No adapter found.*same folders")
    rank = "LoRA rank 64 is greater than max_lora_rank 16."
    vllm.spoil = lambda path, body: (500, {"error": {"message": rank}}) if path.endswith("load_lora_adapter") else None
    refused(vllm, base, adapters[0], "LoRA rank 64 is greater than max_lora_rank 16.*--max-lora-rank")


def test_a_server_with_a_shorter_context_than_the_run_is_named(vllm: VLLM, base: str) -> None:
    vllm.longest = 512
    refused(
        vllm, base, None, "accepts at most 512 tokens, but the run's longest conversation is 2048.*--max-model-len 2048"
    )
    with served(vllm.url, base, context=512) as policy:
        assert policy.context == 512


def test_a_restarted_server_is_named(vllm: VLLM, base, adapters, shop) -> None:
    with served(vllm.url, base, adapters[0]) as policy:
        vllm.adapters.clear()
        with pytest.raises(ServerError, match="no longer has 'sft-0-.*restarted"):
            simulate(policy, shop, [Start(shop.tasks("train")[0])])


def test_a_server_that_stays_busy_is_an_error(vllm: VLLM, base: str) -> None:
    vllm.spoil = lambda path, body: (503, {"error": {"message": "overloaded"}})
    refused(vllm, base, None, "answers 503: overloaded")


def test_a_key_is_sent_and_a_refused_one_is_an_error(vllm: VLLM, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret-7")
    with served(vllm.url, base):
        assert vllm.authorization == {"Bearer secret-7"}
    vllm.spoil = lambda path, body: (401, {"error": "Unauthorized"})
    with (
        pytest.raises(ServerError, match="put the server's --api-key into VLLM_API_KEY") as raised,
        served(vllm.url, base),
    ):
        pass
    assert "secret-7" not in str(raised.value)


@pytest.mark.parametrize(
    ("response", "match"),
    [
        ({"choices": [{"text": "search[cup]"}]}, "does not return token ids"),
        ({"choices": [{"token_ids": [7], "prompt_token_ids": [1, 2]}]}, "does not return token ids"),
        ({"choices": [{"token_ids": [], "prompt_token_ids": "as sent"}]}, "does not return token ids"),
        ({"choices": [{"token_ids": [7] * 9, "prompt_token_ids": "as sent"}]}, "does not return token ids"),
        ({"choices": []}, "did not return a completion"),
        ({"raw": "<html>"}, "did not return a completion"),
    ],
)
def test_an_unusable_response_is_an_error(vllm: VLLM, base: str, response: dict[str, Any], match: str) -> None:
    def spoil(path: str, body: dict[str, Any]) -> Answer | None:
        text = json.dumps(response).replace('"as sent"', str(body.get("prompt")))
        return (200, json.loads(text)) if path == "/v1/completions" else None

    vllm.spoil = spoil
    with (
        served(vllm.url, base, constrained_decoding=False, max_new_tokens=8) as policy,
        pytest.raises(ServerError, match=match),
    ):
        _answer(policy, [5, 6, 7])


def test_a_server_that_ignores_constraints_is_an_error(vllm: VLLM, base: str, shop) -> None:
    vllm.vocabulary = False
    with served(vllm.url, base) as policy, pytest.raises(ServerError, match="ignores allowed_token_ids"):
        simulate(policy, shop, [Start(task) for task in shop.tasks("train")[:4]], temperature=0.0)


def test_something_else_at_the_address_is_an_error(vllm: VLLM, base: str) -> None:
    vllm.spoil = lambda path, body: (200, {"raw": "hello"})
    refused(vllm, base, None, "is this a vLLM server")


# A run


@pytest.mark.slow
def test_a_run_records_which_engine_played(vllm: VLLM, base: str, shop, tmp_path: Path) -> None:
    def start(**changes: Any) -> dict[str, Any]:
        limits = {"max_new_tokens": 8, "temperature": 0.0}
        settings = Settings(model=base, epochs=1, lora_r=4, lora_alpha=8, iterations=2, **limits, **changes)
        return experiment(
            "eef", shop, settings, 0, options={"m": 1}, train_tasks=4, test_tasks=2, root=tmp_path, wandb="disabled"
        )

    ours, theirs = start(), start(engine=vllm.url)
    names = [load["lora_name"] for load in vllm.loads]
    assert len(names) == len(set(names)) == 5 and not vllm.adapters  # s0 and states twice, test
    assert [name.rsplit("-", 2)[0] for name in names] == ["bc", "bc", "sft-0", "sft-0", "sft-1"]
    results = [key for key in ours if key not in ("run_id", "seconds")]
    assert [ours[key] for key in results] == [theirs[key] for key in results]
    mine, other = tmp_path / ours["run_id"], tmp_path / theirs["run_id"]
    same = {name: (mine / name).resolve() == (other / name).resolve() for name in ("experts", "bc", "s0-0-0", "test")}
    assert same == {"experts": True, "bc": True, "s0-0-0": False, "test": False}
    for stage in ("s0-0-0", "states-1", "test"):
        about = read_json(other / stage / "engine.json")
        assert (about["engine"], about["version"], about["model"]) == ("vllm", "0.0.test", base)
        assert not (mine / stage / "engine.json").exists()
        assert (mine / stage / "trajectories.jsonl").read_bytes() == (other / stage / "trajectories.jsonl").read_bytes()
    assert read_json(other / "config.json")["config"]["engine"] == "vllm"
    assert read_json(other / "stamp.json")["hashes"]["engine"] == "vllm"
    with pytest.raises(FigureError, match="'engine' differs"):
        comparable(load_runs(tmp_path))
    requests_before = len(vllm.requests)
    assert start(engine="http://127.0.0.1:9")["run_id"] == theirs["run_id"]  # everything is cached: no server is needed
    assert len(vllm.requests) == requests_before


# vLLM itself


@pytest.mark.skipif("EEF_VLLM" not in os.environ, reason="EEF_VLLM: the address of a vLLM server of `embedded`")
@pytest.mark.parametrize("constrained_decoding", [True, False])
def test_vllm_itself_plays_as_our_engine(shop, starts, tmp_path: Path, constrained_decoding: bool) -> None:
    """Start the server as eef/agents/vllm.py says, with ``eef/models/embedded --served-model-name embedded --dtype
    float32 --enable-lora``."""
    adapters: list[Path | None] = [None]
    for number in (0, 1):
        policy = Policy.load()
        policy.new_adapter(number, r=8, alpha=16)
        torch.manual_seed(number)
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        policy.save_adapter(tmp_path / f"sft-{number}")
        adapters.append(tmp_path / f"sft-{number}")
    greedy = []
    for adapter in adapters:
        ours = Policy.load("embedded", adapter, constrained_decoding=constrained_decoding, max_new_tokens=24)
        greedy.append(simulate(ours, shop, starts, temperature=0.0))
        with served(
            os.environ["EEF_VLLM"], "embedded", adapter, constrained_decoding=constrained_decoding, max_new_tokens=24
        ) as policy:
            assert simulate(policy, shop, starts, temperature=0.0) == greedy[-1]
            sampled = simulate(policy, shop, starts, seed=1)
            assert simulate(policy, shop, starts, seed=1, slots=3) == sampled
            assert simulate(policy, shop, starts, seed=2) != sampled
    assert greedy[0] != greedy[1] != greedy[2]
