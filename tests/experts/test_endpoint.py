"""Experts behind an OpenAI-compatible endpoint, tested against a real HTTP server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eef.agents.actions import EXPLANATIONS, Problem, read_action
from eef.agents.react import opening
from eef.cli import main
from eef.envs import EnvError, expert_states, restore
from eef.envs.extras import Extras
from eef.envs.scienceworld import ScienceWorld
from eef.envs.webshop import WebShop
from eef.experts import demonstrations, expert_trajectories, one_shot_example
from eef.experts.collection import _append, collect, common_settings, estimate, read_collected
from eef.experts.endpoint import CollectError, Expert, read_key
from eef.files import PACKAGE
from eef.trajectory import Trajectory, TrajectoryError, load, save, to_dict

SMALL = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}  # as in conftest
KEY = "sk-test-3f9a1c77d2e84b60"
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]


class Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect: their tracebacks would appear in the output under test."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Endpoint:
    """A server on a free port. ``answer(request body)`` returns status, headers, and a reply or a JSON object."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.answer: Answer = lambda body: (200, {}, "Thought: I wait.\nAction: click[nothing]")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.times.append(time.monotonic())
                outer.bodies.append(body)
                outer.keys.add(self.headers["Authorization"])
                status, headers, said = outer.answer(body) if self.path == "/v1/chat/completions" else (404, {}, {})
                if isinstance(said, str):
                    message = {"role": "assistant", "content": said}
                    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
                    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                    said = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
                            "choices": choices, "usage": usage}  # fmt: skip
                data = json.dumps(said).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = Endpoint()
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture(scope="module")
def perfect(shop: WebShop) -> dict[str, list[str]]:
    """The actions that win each training subtask, by its first page."""
    return {one.prompt: one.actions for one in demonstrations(shop, shop.tasks("train"))}


@pytest.fixture
def clever(endpoint: Endpoint, perfect: dict[str, list[str]]) -> Endpoint:
    """An endpoint that plays each subtask to a win."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        pages = [message["content"] for message in body["messages"] if message["role"] == "user"]
        at = next(index for index, page in enumerate(pages) if page.startswith("Now your task."))
        actions = perfect[pages[at].removeprefix("Now your task.\n\n")]
        return 200, {}, f"Thought: next.\nAction: {actions[len(pages) - at - 1]}"

    endpoint.answer = answer
    return endpoint


def expert(endpoint: Endpoint, **changes: Any) -> Expert:
    return Expert("tiny", endpoint.url, **{"key": KEY, "retries": 2, **changes})


def answer_next(endpoint: Endpoint, *answers: tuple[int, dict[str, str], Any]) -> None:
    """Answer the next requests with ``answers``, and later ones as before."""
    usual, waiting = endpoint.answer, list(answers)
    endpoint.answer = lambda body: waiting.pop(0) if waiting else usual(body)


# Collecting


def test_a_win_is_saved_and_can_be_used_as_an_expert(clever: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    path, tasks = tmp_path / "deep" / "e.jsonl", shop.tasks("train")[:3]
    assert collect(path, shop, "train", 3, expert(clever), yes=True) == 0
    trajectories = load(path)
    assert sorted(one.task for one in trajectories) == sorted(tasks)
    assert all(one.won and one.outcome == "done" and one.source == "tiny" for one in trajectories)
    for one in trajectories:
        assert all(turn.answer.startswith("Thought: next.\nAction: ") and turn.learn for turn in one.turns)
        assert all(read_action(turn.reply).action == turn.action for turn in one.turns)
        seen = [one.state(index) for index in range(len(one) + 1)]
        assert restore(shop.fork(), one.task, one.actions, seen) == seen[-1]
        assert one.info["tokens"] == 10 * len(one) and one.info["prompt_tokens"] == 100 * len(one)
    assert {one.task for one in expert_trajectories(shop, str(path), shop.tasks("train"), 0)} == set(tasks)
    first = next(body for body in clever.bodies if len(body["messages"]) == 3)
    assert [message["role"] for message in first["messages"]] == ["user", "assistant", "user"]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("tiny", 0.0, 512)


def test_an_answer_without_an_action_costs_a_step_and_replays(clever: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    answer_next(clever, (200, {}, "I would rather talk."), (200, {}, ""))
    usual = clever.answer

    def patient(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:  # ignores the answers without an action
        messages = [body["messages"][0]]
        for message, after in zip(body["messages"][1:], [*body["messages"][2:], None], strict=True):
            if "No action was found" in (after or message)["content"] or "No action was found" in message["content"]:
                continue
            messages.append(message)
        return usual({**body, "messages": messages})

    clever.answer = patient
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(clever, concurrency=1), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert one.won and one.info["invalid"] == 2
    assert [(turn.action, turn.answer, turn.learn) for turn in one.turns[:2]] == [
        ("", "I would rather talk.", False), ("", "", False)
    ]  # fmt: skip
    assert all("No action was found" in turn.observation for turn in one.turns[:2])
    states = expert_states(shop.fork(), one, list(range(len(one))))
    assert states[3].step(one.actions[3]).observation == one.state(4)
    seen = [one.state(index) for index in range(len(one) + 1)]
    assert restore(shop.fork(), one.task, one.actions, seen) == seen[-1]


def test_unreadable_answers_count_for_the_step_limit_of_a_subtask(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.answer = lambda body: (200, {}, "I would rather talk.")
    monkeypatch.setattr(WebShop, "max_steps_of", lambda self, task: 3, raising=False)
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert (len(one), one.outcome) == (3, "max_steps")


def test_half_of_a_surrogate_pair_in_an_answer_or_a_page_is_replaced(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = WebShop.reset
    monkeypatch.setattr(WebShop, "reset", lambda self, task: page(self, task) + " \ud83d")
    endpoint.answer = lambda body: (200, {}, "Thought: \ud83d\nAction: search[\ud83d]")
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert one.turns[0].answer == "Thought: \ufffd\nAction: search[\ufffd]"
    assert endpoint.bodies[0]["messages"][-1]["content"].endswith("\ufffd")


def test_an_invented_observation_is_removed_and_a_long_episode_ends(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path
) -> None:
    endpoint.answer = lambda body: (200, {}, "Thought: x\nAction: search[cup]\nObservation: a cup\nThought: y")
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert (one.outcome, one.won, len(one)) == ("max_steps", False, shop.max_steps) and one.failed
    assert set(one.actions) == {"search[cup]"}


def test_a_server_without_finish_reason_is_supported(endpoint: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    choices = [{"index": 0, "message": {"role": "assistant", "content": "Action: search[cup]"}}]
    endpoint.answer = lambda body: (200, {}, {"id": "1", "object": "chat.completion", "choices": choices})
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    assert all(turn.action == "search[cup]" and turn.learn for turn in load(tmp_path / "e.jsonl")[0].turns)


@pytest.mark.parametrize("usage", [{"prompt_tokens": None, "completion_tokens": 7}, {"completion_tokens": 7}, {}, None])
def test_tokens_that_the_server_does_not_count_are_0(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, usage: dict[str, Any] | None
) -> None:
    choices = [{"index": 0, "message": {"role": "assistant", "content": "Action: search[cup]"}}]
    endpoint.answer = lambda body: (
        200, {}, {"id": "1", "object": "chat.completion", "choices": choices, "usage": usage}
    )  # fmt: skip
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert (one.info["prompt_tokens"], one.info["tokens"]) == (0, 7 * len(one) if usage else 0)


def cut(reply: str) -> tuple[int, dict[str, str], Any]:
    """An answer that the token limit ended."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "length"}]
    usage = {"prompt_tokens": 100, "completion_tokens": 512, "total_tokens": 612}
    return 200, {}, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices,
                     "usage": usage}  # fmt: skip


@pytest.mark.parametrize("reply", ["Thought: I look for", "<think>Action: search[cup]", "Action: click[b0", None])
def test_an_answer_cut_at_the_token_limit_is_reported_with_advice(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: str
) -> None:
    endpoint.answer = lambda body: cut(reply)
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert one.info["cut"] == one.info["invalid"] == len(one) == shop.max_steps and one.info["no_action"] == 0
    assert {(turn.action, turn.observation, turn.learn) for turn in one.turns} == {
        ("", EXPLANATIONS[Problem.CUT], False)
    }
    said = capsys.readouterr().out
    assert "15 of 15 answers had no readable action: 15 cut at the token limit" in said
    assert """the limit is max_tokens=512, thoughts included: raise it by --body '{"max_tokens": 2048}'""" in said


def test_the_advice_names_the_limit_that_was_sent(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.answer = lambda body: cut("Hm")
    body = {"max_tokens": None, "max_completion_tokens": 700}
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint, body=body), yes=True) == 0
    assert """raise it by --body '{"max_completion_tokens": 2800}'""" in capsys.readouterr().out


def test_a_cut_answer_with_a_complete_action_is_played_and_not_learnt(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.answer = lambda body: cut("Thought: x\nAction: search[cup]")
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
    (one,) = load(tmp_path / "e.jsonl")
    assert set(one.actions) == {"search[cup]"} and not any(turn.learn for turn in one.turns)
    assert one.info["cut"] == 0 and "no readable action" not in capsys.readouterr().out


def test_thoughts_contain_no_action(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thought = "<think>The page was\nObservation: a shop. Action: click[buy now]?</think>\n"
    replies = {
        f"{thought}Action:\nsearch[cup]": ("search[cup]", True),
        "Action: search[a]\nsearch[b]": ("", False),
    }
    for number, (reply, (action, learn)) in enumerate(replies.items()):
        endpoint.answer = lambda body, reply=reply: (200, {}, f"{reply}\nObservation: invented")
        assert collect(tmp_path / f"{number}.jsonl", shop, "train", 1, expert(endpoint), yes=True) == 0
        (one,) = load(tmp_path / f"{number}.jsonl")
        assert {(turn.action, turn.reply, turn.learn) for turn in one.turns} == {(action, reply, learn)}
    assert "15 of 15 answers had no readable action: 15 ambiguous action" in capsys.readouterr().out


def test_concurrency_only_changes_the_order_of_the_file(clever: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    assert collect(one, shop, "train", 8, expert(clever, concurrency=1), yes=True) == 0
    assert collect(many, shop, "train", 8, expert(clever, concurrency=5), yes=True) == 0
    assert sorted(one.read_bytes().splitlines()) == sorted(many.read_bytes().splitlines())


def test_the_hint_names_the_file_as_the_experts_parameter_reads_it(
    clever: Endpoint, shop: WebShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("exp", "./exp"), ("my experts", "./my experts"), ("e.jsonl", "e.jsonl")):
        assert collect(name, shop, "train", 1, expert(clever), yes=True) == 0
        words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("use it: "))
        assert words == ["-p", f"experts={value}"]
        assert expert_trajectories(shop, value, shop.tasks("train")[:1], 0)


def test_the_example_is_a_win_on_a_subtask_that_is_not_collected(
    clever: Endpoint, shop: WebShop, tmp_path: Path
) -> None:
    tasks = shop.tasks("train")[:2]
    shown = one_shot_example(shop, "train", tasks)
    assert shown.won and shown.task in shop.tasks("train") and shown.task not in tasks
    talk = opening("webshop", shown)
    assert [message["role"] for message in talk] == ["user", "assistant"] * (1 + len(shown))
    assert talk[-1]["content"].endswith("\nAction: click[buy now]") and talk[4]["content"].startswith("Observation:\n")
    assert collect(tmp_path / "e.jsonl", shop, "train", 2, expert(clever), one_shot=True, yes=True) == 0
    assert all(body["messages"][: len(talk)] == talk for body in clever.bodies)
    assert all(one.won and one.info["settings"]["example"] == shown.task for one in load(tmp_path / "e.jsonl"))
    with pytest.raises(ValueError, match="no subtask is left for the example"):
        one_shot_example(shop, "train", shop.tasks("train"))


# Resuming

SCRIPT = """\
import json, sys
from eef.experts.endpoint import Expert, read_key
from eef.experts.collection import collect
from eef.envs.webshop import WebShop
shop = WebShop(catalogue=json.loads(sys.argv[3]), max_steps=15)
sys.exit(collect(sys.argv[1], shop, "train", 6, Expert("tiny", sys.argv[2], read_key(), concurrency=2), yes=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_collection_resumes(
    clever: Endpoint, shop: WebShop, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: signal.Signals
) -> None:
    path, usual, hold = tmp_path / "e.jsonl", clever.answer, threading.Event()

    def slow(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if path.exists() and path.read_bytes().count(b"\n") >= 2:
            hold.wait(30)
        return usual(body)

    clever.answer = slow
    env = {**os.environ, "OPENAI_LOG": "debug"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), clever.url, json.dumps(SMALL)],
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    begun = time.monotonic()
    process.wait(20)
    assert time.monotonic() - begun < 10  # an interrupt does not wait for an answer
    hold.set()
    before = load(path)
    assert 2 <= len(before) < 6
    said = capfd.readouterr()
    assert "Sending HTTP Request" in said.err and KEY not in said.out + said.err  # the client's own log is on
    clever.answer = usual
    clever.bodies.clear()
    assert collect(path, shop, "train", 6, expert(clever), yes=True) == 0
    assert load(path)[: len(before)] == before and sorted(one.task for one in load(path)) == sorted(
        shop.tasks("train")[:6]
    )
    prompts = {body["messages"][2]["content"].removeprefix("Now your task.\n\n") for body in clever.bodies}
    assert not prompts & {one.prompt for one in before}
    assert f"6 subtasks, {len(before)} in" in capfd.readouterr().out


def test_a_truncated_last_line_is_removed_and_played_again(
    clever: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.jsonl"
    assert collect(path, shop, "train", 3, expert(clever, concurrency=1), yes=True) == 0
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in (start + 1, start + 40, len(whole) - 2):
        path.write_bytes(whole[:cut])
        capsys.readouterr()
        assert collect(path, shop, "train", 3, expert(clever), yes=True) == 0
        assert f"removed the truncated last line ({cut - start} bytes)" in capsys.readouterr().out
        assert path.read_bytes() == whole
    clever.bodies.clear()
    path.write_bytes(whole[:-1])  # only the newline is missing
    assert collect(path, shop, "train", 3, expert(clever), yes=True) == 0
    assert path.read_bytes() == whole and not clever.bodies
    path.write_bytes(whole[:5])  # truncated in its first line
    assert collect(path, shop, "train", 3, expert(clever, concurrency=1), yes=True) == 0
    assert path.read_bytes() == whole


def test_a_file_of_another_kind_is_not_changed(clever: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    for text in ("notes, not trajectories", '[{"conversations": []}]', '{"a": 1}\n', "{}\n{"):
        path.write_text(text)
        with pytest.raises(CollectError, match="line 1: .*choose another file"):
            collect(path, shop, "train", 1, expert(clever), yes=True)
        assert path.read_text() == text
    path.unlink()
    assert collect(path, shop, "train", 1, expert(clever), yes=True) == 0
    with pytest.raises(CollectError, match=r"other settings \(request differ\)"):
        collect(path, shop, "train", 2, expert(clever, temperature=0.7), yes=True)
    with pytest.raises(CollectError, match=r"other settings \(env, max_steps differ\)"):
        collect(path, WebShop(catalogue={"products": 700, "train": 21, "eval": 0, "test": 20}), "train", 2,
            expert(clever), yes=True)  # fmt: skip
    assert len(load(path)) == 1


def test_other_step_limits_of_single_tasks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eef.experts.collection.opening", lambda env, example: [])

    def settings(limits: dict[str, int]) -> dict[str, Any]:
        env = SimpleNamespace(name="maze", stamp=dict, state_key=lambda: {"limits": limits})
        return common_settings(env, Expert("tiny", "http://localhost/v1", KEY), None, max(limits.values()))

    few, more = settings({"a": 10, "b": 30}), settings({"a": 30, "b": 30})
    path = tmp_path / "e.jsonl"
    save([Trajectory("a/1", "s0", (), info={"settings": few})], path)
    assert len(read_collected(path, few)) == 1
    with pytest.raises(CollectError, match=r"other settings \(options differ\)"):
        read_collected(path, more)
    earlier = {key: value for key, value in few.items() if key != "options"}
    save([Trajectory("a/1", "s0", (), info={"settings": earlier})], path)
    assert len(read_collected(path, more)) == 1  # written by an earlier version


# Errors of the endpoint


def test_429_is_retried_after_the_time_that_the_server_names(clever: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    answer_next(clever, (429, {"Retry-After": "1"}, {"error": {"message": "slow down"}}), (503, {}, {}))
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(clever, concurrency=1), yes=True) == 0
    assert 1.0 <= clever.times[1] - clever.times[0] < 3.0
    assert clever.bodies[0] == clever.bodies[1] == clever.bodies[2]
    assert load(tmp_path / "e.jsonl")[0].won


def test_requests_respect_the_rate(clever: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    answer_next(clever, (500, {"Retry-After-Ms": "1"}, {}))  # a retry counts, too
    assert collect(tmp_path / "e.jsonl", shop, "train", 2, expert(clever, rpm=600, concurrency=2), yes=True) == 0
    gaps = [after - before for before, after in zip(clever.times, clever.times[1:], strict=False)]
    assert len(gaps) >= 8 and sum(gaps) / len(gaps) >= 0.095


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, {"message": f"Incorrect API key provided: {KEY}"}, "401: the key was refused; check the variable"),
        (404, {"message": "model not found"}, "404: no model 'tiny', or no chat completions at http"),
        (402, {"message": "no credit"}, "402, and would do so for every request"),
        (403, {"message": f"the key {KEY[:12]}... may not"}, r"every request: .*the key \[key\] may not"),
        (429, {"message": "quota", "code": "insufficient_quota"}, "429, and would do so for every request"),
        (400, {"message": f"Unsupported parameter: stop {KEY}"}, r"400 to a first request .*: .*stop \[key\]"),
    ],
)
def test_an_error_that_every_episode_would_meet_ends_the_collection(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    status: int, error: dict[str, str], says: str,
) -> None:  # fmt: skip
    endpoint.answer = lambda body: (status, {"Retry-After-Ms": "1"}, {"error": error})
    with pytest.raises(CollectError, match=says) as raised:
        collect(tmp_path / "e.jsonl", shop, "train", 6, expert(endpoint), yes=True)
    said = capfd.readouterr()
    assert KEY[:8] not in str(raised.value) + said.out + said.err and raised.value.__suppress_context__
    assert load(tmp_path / "e.jsonl") == []


def test_an_episode_that_fails_at_the_endpoint_remains_for_the_next_start(
    clever: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.jsonl"
    broken = [(500, {"Retry-After-Ms": "1"}, {"error": {"message": "no memory"}})] * 3
    answer_next(clever, *broken)
    assert collect(path, shop, "train", 3, expert(clever, concurrency=1), yes=True) == 1
    said = capsys.readouterr().out
    task = shop.tasks("train")[0]
    assert f"not finished: subtask {task}: endpoint: the endpoint answers 500" in said and "no memory" in said
    assert "2 episodes saved" in said and sorted(one.task for one in load(path)) == sorted(shop.tasks("train")[1:3])
    assert collect(path, shop, "train", 3, expert(clever), yes=True) == 0
    assert len(load(path)) == 3


def overflowing(usual: Answer, prompt: str, messages: int, error: dict[str, Any]) -> Answer:
    """``usual``, with ``error`` to conversations of at least ``messages`` on the subtask with the page ``prompt``."""

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        too_long = body["messages"][2]["content"].endswith(prompt) and len(body["messages"]) >= messages
        return (400, {}, {"error": error}) if too_long else usual(body)

    return answer


@pytest.mark.parametrize("messages", [3, 7])  # the first request, a later one
@pytest.mark.parametrize(
    "error",
    [
        {"message": "too many tokens", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 4096 tokens. Please reduce the length", "code": 400},
        {"message": "The input (5000 tokens) is longer than the model's context length (4096 tokens)."},
        {"message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096."},
        {"message": "request (5000 tokens) exceeds the available context size (4096 tokens)", "code": 400},
        {
            "message": "You passed 31745 input tokens and requested 512 output tokens. However, the model's context "
            "length is only 32256 tokens, resulting in a maximum input length of 31744 tokens. Please reduce the "
            "length of the input prompt. (parameter=input_tokens, value=31745)",
            "type": "BadRequestError",
            "param": "input_tokens",
            "code": 400,
        },
        {
            "message": "You passed 130000 input characters and requested 512 output tokens. However, the model's "
            "context length is only 8192 tokens, resulting in a maximum input length of 7680 tokens (at most 122880 "
            "characters). Please reduce the length of the input prompt.",
            "code": 400,
        },
        {"message": "the model is loaded with context length of only 4096 tokens, which is not enough"},
        {"message": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 512"},
        {"message": "Input validation error: `inputs` must have less than 4096 tokens. Given: 5000"},
        {"message": "prompt is too long: 205000 tokens > 200000 maximum"},
        {"message": "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000"},
        {"message": "This model's maximum prompt length is 131072 but the request contains 140213 tokens."},
        {"message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."},
    ],
)
def test_a_context_overflow_is_a_loss_only_in_an_evaluation(
    clever: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str], messages: int, error: dict
) -> None:
    path, task = tmp_path / "e.jsonl", shop.tasks("train")[0]
    clever.answer = overflowing(clever.answer, demonstrations(shop, [task])[0].prompt, messages, error)
    assert collect(path, shop, "train", 3, expert(clever), yes=True) == 1
    assert task not in {one.task for one in load(path)} and len(load(path)) == 2
    said = capsys.readouterr().out
    assert f"not saved: subtask {task}: context_overflow: the endpoint answers 400" in said and error["message"] in said
    assert "1 subtasks exceed the context of 'tiny' and will not succeed with this model" in said
    assert "run the same command again" not in said and f"use it: -p experts={path}" in said
    assert collect(path, shop, "train", 3, expert(clever), yes=True, evaluation=True) == 0
    (one,) = (one for one in load(path) if one.task == task)
    assert one.outcome == "context_overflow" and not one.won and len(one) == (messages - 3) // 2
    assert one.failed == (len(one) > 0)
    sent = len(clever.bodies)
    assert (
        collect(path, shop, "train", 3, expert(clever), yes=True, evaluation=True) == 0 and len(clever.bodies) == sent
    )


def test_an_endpoint_on_this_machine_is_reached_without_a_proxy(
    clever: Endpoint, shop: WebShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert collect(tmp_path / "e.jsonl", shop, "train", 1, expert(clever), yes=True) == 0


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize(("concurrency", "requests"), [(2, 4), (20, 20)])
def test_a_context_without_room_for_any_first_page_ends_the_collection(
    clever: Endpoint, shop: WebShop, tmp_path: Path, evaluation: bool, concurrency: int, requests: int
) -> None:
    clever.answer = lambda body: (400, {}, {"error": {"message": "maximum context length is 64 tokens"}})
    with pytest.raises(CollectError, match="no first request fits into the context of 'tiny': .* is 64 tokens"):
        collect(
            tmp_path / "e.jsonl", shop, "train", 20, expert(clever, concurrency=concurrency), yes=True,
            evaluation=evaluation,
        )  # fmt: skip
    assert load(tmp_path / "e.jsonl") == [] and len(clever.bodies) <= requests


def test_an_address_has_one_spelling_and_no_secret() -> None:
    for url in ("http://Host:80/v1", "HTTP://host/v1/", "http://host/v1"):
        assert Expert("m", url, KEY).address == "http://host/v1"
    assert Expert("m", "https://[::1]:8443/v1", KEY).address == "https://[::1]:8443/v1"
    addresses = {
        Expert("m", url, KEY).address for url in ("http://a/v1", "https://a/v1", "http://a:8000/v1", "http://a")
    }
    assert len(addresses) == 4
    for url in (
        "http://a:b/v1",
        f"http://:{KEY}@a/v1",
        f"http://a/{KEY}/v1",
        "http://a/v1#x",
        "ftp://a",
        "http://[a/v1",
    ):
        with pytest.raises(ValueError, match="--base-url must be an address such as") as raised:
            Expert("m", url, KEY)
        assert KEY not in str(raised.value)


def test_an_endpoint_that_is_down_or_of_another_kind_ends_the_collection(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path
) -> None:
    nobody = Expert("tiny", "http://127.0.0.1:9/v1", KEY, retries=0, concurrency=2)
    with pytest.raises(CollectError, match="failed 3 times in a row: no connection at http://127.0.0.1:9/v1, 1 tries"):
        collect(tmp_path / "a.jsonl", shop, "train", 9, nobody, yes=True)
    endpoint.answer = lambda body: (200, {"Content-Type": "text/html"}, {"hello": "world"})
    with pytest.raises(CollectError, match="in a row: .* returned no chat completion: does the address end in /v1"):
        collect(tmp_path / "b.jsonl", shop, "train", 9, expert(endpoint, concurrency=1), yes=True)
    endpoint.answer = lambda body: (time.sleep(1), (200, {}, "late"))[1]
    slow = expert(endpoint, timeout=0.2, retries=0, concurrency=1)
    with pytest.raises(CollectError, match="no answer in time"):
        collect(tmp_path / "c.jsonl", shop, "train", 9, slow, yes=True)


def test_an_episode_whose_environment_fails_remains_too(
    clever: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eef.envs import EnvError

    step, bad = WebShop.step, shop.tasks("train")[1]

    def dying(self: WebShop, action: str) -> Any:
        if self.state is not None and str(self.state.goal) == bad and action == "click[buy now]":
            raise EnvError("the simulator died")
        return step(self, action)

    monkeypatch.setattr(WebShop, "step", dying)
    assert collect(tmp_path / "e.jsonl", shop, "train", 3, expert(clever), yes=True) == 1
    assert f"not finished: subtask {bad}: env_error: the simulator died" in capsys.readouterr().out
    assert bad not in {one.task for one in load(tmp_path / "e.jsonl")}


def test_only_one_process_collects_into_a_file(endpoint: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".e.jsonl.lock"), pytest.raises(CollectError, match="another process collects"):
        collect(tmp_path / "e.jsonl", shop, "train", 1, expert(endpoint), yes=True)


@pytest.mark.slow
def test_scienceworld_is_collected_with_two_simulators_and_can_be_replayed(endpoint: Endpoint, tmp_path: Path) -> None:
    world = ScienceWorld(tasks=["find-animal", "lifespan-longest-lived"], max_steps=12, variations={"train": 1})
    try:
        ways = {one.prompt: one.actions for one in demonstrations(world, world.tasks("train"))}

        def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
            pages = [message["content"] for message in body["messages"] if message["role"] == "user"]
            at = next(index for index, page in enumerate(pages) if page.startswith("Now your task."))
            turn = len(pages) - at - 1  # the second answer has no action
            way = ways[pages[at].removeprefix("Now your task.\n\n")]
            return 200, {}, "Hm." if turn == 1 else f"Thought: next.\nAction: {way[turn - (turn > 1)]}"

        endpoint.answer = answer
        path = tmp_path / "e.jsonl"
        assert collect(path, world, "train", 2, expert(endpoint, concurrency=2), one_shot=True, yes=True) == 0
        trajectories = load(path)
        assert len(trajectories) == 2 and all(one.won and one.info["score"] == 1.0 for one in trajectories)
        assert all(one.info["settings"]["example"].partition("/")[0] in world.tasks("eval")[-1] for one in trajectories)
        for one in trajectories:
            seen = [one.state(index) for index in range(len(one) + 1)]
            assert one.actions[1] == "" and restore(world, one.task, one.actions, seen) == seen[-1]
        talk = endpoint.bodies[0]["messages"]
        assert "teleport to ROOM" in talk[0]["content"] and "Action: teleport to " in talk[3]["content"]
    finally:
        world.close()


@pytest.mark.slow
def test_the_server_of_transformers_is_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "any-word")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while "Uvicorn running" not in (tmp_path / "server.log").read_text() and time.monotonic() < deadline:
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        path, small = tmp_path / "e.jsonl", f"catalogue={json.dumps(SMALL)}"
        words = [
            "collect",
            str(path),
            "--model",
            str(PACKAGE / "models" / "embedded"),
            "--base-url",
            f"http://127.0.0.1:{port}/v1",
            "--yes",
        ]
        words += ["--tasks", "2", "--max-steps", "2", "--concurrency", "1", "-p", small]
        # its stop strings do not work with the tokenizer of the small policy
        assert main([*words, "--body", '{"max_tokens": 16, "stop": null}']) == 0
    finally:
        server.terminate()
        server.wait(30)
    trajectories = load(path)
    assert [len(one) for one in trajectories] == [2, 2] and all(one.info["tokens"] > 0 for one in trajectories)
    assert all(turn.reply for one in trajectories for turn in one.turns)  # symbols, without an action
    assert "2 episodes saved" in capsys.readouterr().out


# Before the first request


def test_the_estimate_is_printed_and_confirmed_first(
    clever: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.jsonl"
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(CollectError, match="there is no terminal for the confirmation; add --yes"):
        collect(path, shop, "train", 4, expert(clever), price=(2.5, 10))
    said = capsys.readouterr().out
    estimated, answers, _ = estimate(shop, shop.tasks("train")[:4], opening("webshop"), 15)
    assert answers == 4 * 15 * 100
    assert "4 subtasks, 0 in" in said and f"at most 60 requests, {estimated:,} tokens in, 6,000 out, cost" in said
    assert f"cost {(estimated * 2.5 + 6000 * 10) / 1e6:.2f}" in said and "4 characters per token" in said
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(CollectError, match="not confirmed"):
        collect(path, shop, "train", 4, expert(clever))
    assert "cost unknown" in capsys.readouterr().out and not clever.bodies and not path.exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert collect(path, shop, "train", 1, expert(clever), price=(1e6, 0)) == 0
    steps = len(load(path)[0])
    assert f"1 won; {100 * steps:,} tokens in, {10 * steps} out, cost {100 * steps:.2f}" in capsys.readouterr().out
    assert collect(path, shop, "train", 3, expert(clever), yes=True) == 0
    assert (
        f"at the mean cost of the 1 saved episodes: {200 * steps:,} tokens in, {20 * steps} out"
        in capsys.readouterr().out
    )


def test_the_estimate_is_close_to_what_is_sent(endpoint: Endpoint, shop: WebShop, tmp_path: Path) -> None:
    endpoint.answer = lambda body: (200, {}, "Thought: " + "x" * 300 + "\nAction: search[boots]")
    tasks = shop.tasks("train")[:4]
    estimated, _, _ = estimate(shop, tasks, opening("webshop"), shop.max_steps)
    assert collect(tmp_path / "e.jsonl", shop, "train", 4, expert(endpoint), yes=True) == 0
    sent = sum(len(message["content"]) for body in endpoint.bodies for message in body["messages"]) / 4
    assert 0.5 < estimated / sent < 2.0  # result pages alone are longer than the scripted player's mean


def test_without_a_scripted_expert_the_estimate_takes_the_length_of_the_first_page(
    endpoint: Endpoint, shop: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env, task = shop.fork(), shop.tasks("train")[0]
    vars(env)["extras"] = Extras(instructions="Buy it.")
    assert collect(tmp_path / "e.jsonl", env, "train", 1, expert(endpoint), yes=True) == 0
    tokens = len(shop.fork().reset(task)) / 4
    said = capsys.readouterr().out
    assert f"{tokens:.0f} tokens per page (the length of the first page of subtask {task}), the whole" in said
    assert "the mean on subtask" in estimate(shop, [task], opening("webshop"), 15)[2]

    def fails(task: str) -> str:
        raise EnvError("the simulator died")

    vars(env).update(reset=fails, fork=lambda: env)
    assert "250 tokens per page (a guess)" in estimate(env, [task], opening("webshop"), 15)[2]


def test_a_key_is_checked_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"  {KEY}\n")
    assert read_key("MY_KEY") == KEY
    assert KEY not in repr(Expert("m", "http://x/v1", KEY))
    for wrong in ("sk-one\nsk-two", "sk-ключ", ""):
        monkeypatch.setenv("MY_KEY", wrong)
        with pytest.raises(ValueError, match="the variable MY_KEY ") as raised:
            read_key("MY_KEY")
        assert "sk-" not in str(raised.value)


def test_the_command_collects_and_reports_mistakes_in_one_message(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.jsonl"
    words = ["collect", str(path), "--model", "tiny", "--base-url", endpoint.url, "--tasks", "2", "--max-steps", "3"]
    words += ["-p", "catalogue={products: 700, train: 20, eval: 0, test: 20, grades: [0.5, 0.3, 0.2]}", "--yes"]
    assert main([*words, "--body", '{"stop": null, "seed": 1}', "--temperature", "0.5"]) == 0
    assert [(len(one), one.outcome) for one in load(path)] == [(3, "max_steps")] * 2
    assert endpoint.bodies[0]["seed"] == 1 and "stop" not in endpoint.bodies[0] and KEY not in path.read_text()
    assert endpoint.keys == {f"Bearer {KEY}"}
    for more, says in (
        (["--base-url", "localhost:8000"], "--base-url must be an address such as"),
        (["--base-url", f"http://me:{KEY}@host/v1"], "--base-url must be an address such as"),
        (["--body", "[1]"], "must be a JSON object"),
        (["--body", "{"], "is not valid JSON"),
        (["--tasks", "0"], "--tasks must be at least 1"),
        (["--concurrency", "0"], "--concurrency must be positive and finite, not 0"),
        (["--rpm", "nan"], "--rpm must be positive and finite, not nan"),
        (["--rpm", "inf"], "--rpm must be positive and finite, not inf"),
        (["--timeout", "nan"], "--timeout must be positive and finite, not nan"),
        (["--timeout", "inf"], "--timeout must be positive and finite, not inf"),
        (["--retries", "-1"], "--retries must be finite and at least 0, not -1"),
        (["--temperature", "nan"], "--temperature must be finite and at least 0, not nan"),
        (["--temperature", "inf"], "--temperature must be finite and at least 0, not inf"),
        (["--temperature", "-1"], "--temperature must be finite and at least 0, not -1.0"),
        (["--body", '{"top_p": NaN}'], "--body has a value that cannot be sent as JSON"),
        (["--price", "-1", "2"], "--price must be finite and at least 0, not -1.0"),
        (["--price", "1", "nan"], "--price must be finite and at least 0, not nan"),
        (["--key-variable", "NO_SUCH_KEY"], "the variable NO_SUCH_KEY is empty"),
        (["--key-variable", KEY], "--key-variable takes the name"),
        (["-p", "colour=red"], "webshop has no option 'colour'; its options are"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and KEY not in error and "Traceback" not in error
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main([*words[:1], str(tmp_path / "f.jsonl"), *words[2:]]) == 2
    assert "the openai client is missing: .venv/bin/pip install -e '.[collect]'" in capsys.readouterr().err


@pytest.mark.parametrize("reward", [75.0, -1.0, float("nan")])
def test_a_reward_out_of_range_is_neither_written_nor_read(tmp_path: Path, reward: float) -> None:
    path = tmp_path / "t.jsonl"
    wrong = Trajectory("7", "s0", (), reward)
    with pytest.raises(TrajectoryError, match=r"'reward' must lie in \[0, 1\]"):
        _append(path, wrong)
    assert not path.exists()
    path.write_text(json.dumps(to_dict(wrong)) + "\n")
    with pytest.raises(CollectError, match=r"t.jsonl, line 1: 'reward' must lie in \[0, 1\]"):
        read_collected(path, {})
