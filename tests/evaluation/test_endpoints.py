"""``eef evaluate openai:MODEL@URL``: whose episodes are reused, what is paid for once, and what the card says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from eef.envs.webshop import WebShop
from eef.evaluation.endpoint import EndpointTest, play_endpoint
from eef.evaluation.evaluate import evaluate, evaluations
from eef.evaluation.protocol import pin, read_protocol
from eef.experts import demonstrations
from eef.experts.endpoint import Expert
from eef.files import PACKAGE, read_json

SMALL = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}  # as in conftest
KEY = "sk-test-3f9a1c77d2e84b60"


@pytest.fixture(scope="module")
def env() -> WebShop:
    return WebShop(catalogue=SMALL, max_steps=6, nouns="letters")


@pytest.fixture(scope="module")
def tiny(env: WebShop, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A protocol of 4 subtasks, with a ReAct prompt of at most 50 tokens per answer."""
    folder = tmp_path_factory.mktemp("protocols")
    values = yaml.safe_load(read_protocol("webshop-embedded-v1").path.read_text())
    values |= {"options": {"catalogue": SMALL, "max_steps": 6, "nouns": "letters"}, "hashes": {}, "subtasks": 4}
    values["acting"] |= {"prompt": "react", "instructions": "", "constrained_decoding": False, "max_new_tokens": 50}
    (folder / "open.yaml").write_text(yaml.safe_dump(values))
    return str(pin(read_protocol(str(folder / "open.yaml")), env, folder / "tiny-v1.yaml"))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Starts endpoints."""
    monkeypatch.syspath_prepend(str(PACKAGE.parent / "tests" / "experts"))
    from test_endpoint import Endpoint

    for name, value in {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    started: list[Any] = []

    def start() -> Any:
        started.append(Endpoint())
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.server.shutdown()
        endpoint.server.server_close()


@pytest.fixture(scope="module")
def play(env: WebShop) -> Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]:
    """Answers that win each of the subtasks."""
    ways = {one.prompt: one.actions for one in demonstrations(env, env.tasks("test")[:4])}

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        pages = [message["content"] for message in body["messages"] if message["role"] == "user"]
        at = next(index for index, page in enumerate(pages) if page.startswith("Now your task."))
        way = ways[pages[at].removeprefix("Now your task.\n\n")]
        return 200, {}, f"Thought: next.\nAction: {way[len(pages) - at - 1]}"

    return answer


def test_an_endpoint_is_evaluated(serve: Any, tiny: str, tmp_path: Path) -> None:
    endpoint = serve()
    evaluation = evaluate(f"openai:gpt@{endpoint.url}", tiny, {"concurrency": 2}, tmp_path, subtasks=3, yes=True)
    card = read_json(evaluation / "card.json")
    assert card["subject"]["kind"] == "endpoint" and card["departures"] == {}
    assert card["cost"]["steps"] == len(endpoint.bodies) == 18 and card["rates"]["wins"] == 0
    assert {body["temperature"] for body in endpoint.bodies} == {0.0} and "sk-test" not in json.dumps(card)


def test_two_endpoints_with_one_model_name_are_two_evaluations(
    serve: Any, play: Any, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong = serve(), serve()
    strong.answer = play
    folders = [evaluate(f"openai:gpt@{each.url}", tiny, {}, tmp_path, yes=True) for each in (weak, strong)]
    cards = [read_json(folder / "card.json") for folder in folders]
    assert len(set(folders)) == 2 and weak.bodies and strong.bodies
    assert cards[0]["rates"]["wins"] == 0 < cards[1]["rates"]["wins"]
    assert [card["subject"]["address"] for card in cards] == [weak.url, strong.url]
    keys = [read_json(folder / "test" / "stage.json")["key"]["inputs"] for folder in folders]
    assert [key["address"] for key in keys] == [weak.url, strong.url] and KEY not in json.dumps([cards, keys])
    sent = len(strong.bodies)
    assert "Reusing the episodes" not in capsys.readouterr().out
    assert evaluate(f"openai:gpt@{strong.url}/", tiny, {}, tmp_path, yes=True) == folders[1]
    said = capsys.readouterr().out
    assert len(strong.bodies) == sent and "To play again, add --root DIR" in said
    assert re.search(r"Reusing the episodes of \d{4}-\d\d-\d\d \d\d:\d\d, no request was sent", said)


def test_a_part_is_paid_for_once(
    serve: Any, play: Any, tiny: str, env: WebShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = serve()
    endpoint.answer, who = play, f"openai:gpt@{endpoint.url}"
    part = evaluate(who, tiny, {"concurrency": 1}, tmp_path / "a", subtasks=3, yes=True)
    first = len(endpoint.bodies)
    whole = evaluate(who, tiny, {"concurrency": 1}, tmp_path / "a", yes=True)
    sent = len(endpoint.bodies)
    assert part != whole and [read_json(each / "card.json")["partial"] for each in (part, whole)] == [True, False]
    steps = [read_json(each / "card.json")["cost"]["steps"] for each in (part, whole)]
    assert steps == [first, sent], "the whole protocol plays only the subtask that the part lacks"
    table = pd.read_csv(part / "subtasks.csv")
    assert len(table) == 3 and table.equals(pd.read_csv(whole / "subtasks.csv")[:3])
    capsys.readouterr()
    smaller = evaluate(who, tiny, {"concurrency": 1}, tmp_path / "a", subtasks=2, yes=True)
    assert read_json(smaller / "card.json")["partial"] and len(endpoint.bodies) == sent
    assert "Reusing the episodes of" in capsys.readouterr().out
    (file,) = evaluations(tmp_path / "a").glob("endpoints/*/endpoint.jsonl")
    expert, counted = Expert("gpt", endpoint.url, KEY, body={"max_tokens": 50}), list[int]()
    inputs = EndpointTest(
        env, "gpt", expert.address, expert.fields, False, "test", env.tasks("test")[:2], expert, file, True
    )
    assert len(play_endpoint(inputs, tmp_path, lambda count, wins, tokens: counted.append(count))) == 2
    assert counted == [1, 1], "only its own subtasks are progress"


def test_an_example_is_the_same_for_each_number_of_subtasks(
    serve: Any, play: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, subtasks = serve(), list[list[str]]()
    endpoint.answer = play
    from eef.experts import collection

    choose = collection.one_shot_example
    monkeypatch.setattr(
        collection, "one_shot_example", lambda env, split, tasks: subtasks.append(tasks) or choose(env, split, tasks)
    )
    for count in (1, None):
        evaluate(f"openai:gpt@{endpoint.url}", tiny, {"one_shot": True}, tmp_path, subtasks=count, yes=True)
    assert len(subtasks) == 2 and subtasks[0] == subtasks[1], "an example of another subtask would make another file"


@pytest.mark.parametrize("messages", [3, 7])  # the first request, a later one
def test_a_subtask_that_exceeds_the_context_is_lost_and_an_error_if_not_even_a_turn_fits(
    serve: Any, play: Any, tiny: str, env: WebShop, tmp_path: Path, messages: int
) -> None:
    endpoint, task = serve(), env.tasks("test")[1]
    prompt = demonstrations(env, [task])[0].prompt

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if body["messages"][2]["content"].endswith(prompt) and len(body["messages"]) >= messages:
            return 400, {}, {"error": {"message": "This model's maximum context length is 4096 tokens."}}
        return play(body)

    endpoint.answer = answer
    evaluation = evaluate(f"openai:gpt@{endpoint.url}", tiny, {}, tmp_path, yes=True)
    rates = read_json(evaluation / "card.json")["rates"]
    errors = int(messages == 3)
    assert (rates["rated"], rates["errors"]) == (4 - errors, errors)
    assert rates["win_rate"] == rates["wins"] / (4 - errors)
    table = pd.read_csv(evaluation / "subtasks.csv", dtype={"task": str}).set_index("task")
    assert table.loc[task, "outcome"] == "context_overflow" and table.loc[task, "steps"] == (messages - 3) // 2
    sent = len(endpoint.bodies)
    evaluate(f"openai:gpt@{endpoint.url}", tiny, {}, tmp_path, yes=True)
    assert len(endpoint.bodies) == sent, "a second start pays for nothing"


@pytest.mark.parametrize(
    ("body", "acting", "departures"),
    [
        ({}, (50, 0.0), {}),
        ({"max_tokens": None, "max_completion_tokens": 50}, (50, 0.0), {}),
        ({"max_tokens": None, "max_completion_tokens": 200}, (200, 0.0), {"max_new_tokens": [50, 200]}),
        ({"max_tokens": None}, ("the server's default", 0.0), {"max_new_tokens": [50, "the server's default"]}),
        ({"temperature": None}, (50, "the server's default"), {"temperature": [0.0, "the server's default"]}),
    ],
)
def test_the_card_has_the_limits_that_were_sent(
    body: dict[str, Any], acting: tuple[Any, Any], departures: dict[str, Any], serve: Any, tiny: str, tmp_path: Path
) -> None:
    endpoint = serve()
    evaluation = evaluate(f"openai:gpt@{endpoint.url}", tiny, {"body": body}, tmp_path, subtasks=1, yes=True)
    card = read_json(evaluation / "card.json")
    assert (card["acting"]["max_new_tokens"], card["acting"]["temperature"]) == acting
    assert card["departures"] == departures
    assert all(f"{name} is {used!r}" in (evaluation / "card.md").read_text() for name, (_, used) in departures.items())
