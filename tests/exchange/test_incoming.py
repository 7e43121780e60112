"""Import of conversations as other programs write them: answers, tool calls, masks, ends, and clear messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eef.agents.actions import EXPLANATIONS, Problem
from eef.cli import main
from eef.envs import EnvError, first_page
from eef.envs.webshop import WebShop
from eef.exchange import incoming
from eef.exchange.export import import_file
from eef.exchange.formats import message_rows, sharegpt_rows, write_rows
from eef.exchange.source import Selected
from eef.experts import demonstrations
from eef.selection import Example
from eef.trajectory import Trajectory, TrajectoryError, Turn, load


@pytest.fixture(scope="module")
def win(shop) -> Trajectory:
    return next(item for item in demonstrations(shop, shop.tasks("train")) if item.won)


def conversation(item: Trajectory, **answers: Any) -> list[dict[str, Any]]:
    """Messages of a trajectory; ``answers`` are fields of an answer, each a function of the action or a value."""
    messages = [{"role": "user", "content": item.prompt}]
    for turn in item.turns:
        answer = {"role": "assistant", "content": turn.action}
        answer |= {name: value(turn.action) if callable(value) else value for name, value in answers.items()}
        messages += [answer, {"role": "user", "content": turn.observation}]
    return messages


def read(tmp_path: Path, *rows: dict[str, Any], form: str = "messages", key: str | None = None) -> list[Trajectory]:
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [item for _, item, _ in incoming.read(path, form, key)]


def replayed(tmp_path: Path, env: WebShop, *rows: dict[str, Any], **options: Any) -> tuple[str, list[Trajectory]]:
    """What the import prints, and what it writes."""
    path, out = tmp_path / "theirs.jsonl", tmp_path / "ours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out.unlink(missing_ok=True)
    text, written = import_file(path, "messages", out, env=env, **options)
    assert written == out.exists()
    return text, load(out) if written else []


# Answers


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "Thought: go. Action: {}",
        "Thought: go.\nAction: {}",
        "Thought: go.\nAction:{}",
        "**Thought:** go.\n**Action:** {}",
        "Thought: go.\nAction:\n{}",
        "<think>Maybe Action: click[back to search]?</think>\nAction: {}",
        "<think>Not yet.</think>\n\n{}",
        "Thought: go.\nAction: {}\n\nObservation: an invented page",
        "{}\nObservation: an invented page",
    ],
)
def test_actions_are_read_as_those_of_a_policy(form: str, win: Trajectory, shop, tmp_path: Path) -> None:
    row = {"task": win.task, "messages": conversation(win, content=form.format)}
    text, (item,) = replayed(tmp_path, shop, row)
    assert item.won and item.actions == win.actions, text
    wanted = [form.format(action).split("\nObservation")[0].strip() for action in win.actions]
    assert [turn.answer for turn in item.turns] == wanted and all(turn.learn for turn in item.turns)


def test_an_answer_without_one_readable_action_is_never_learnt(tmp_path: Path) -> None:
    answers = ("Thought: hm.\nAction:", "Action: click[a]\nclick[b]", "<think>endless")
    messages = [{"role": "user", "content": "page"}]
    for answer in answers:
        messages += [{"role": "assistant", "content": answer, "train": True}, {"role": "user", "content": "page"}]
    (item,) = read(tmp_path, {"task": "1", "reward": 0, "messages": messages})
    assert item.turns == tuple(Turn("", "page", answer, False) for answer in answers)


def test_an_answer_that_etos_wrapper_rejected_did_nothing(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "page"}, {"from": "gpt", "value": "I click[a]"}]
    said += [{"from": "human", "value": "Observation: Invalid format."}]
    (item,) = read(tmp_path, {"task": "1", "reward": 0, "conversations": said}, form="sharegpt")
    assert item.turns == (Turn("", "Invalid format.", "I click[a]", False),)


def test_a_first_answer_ok_is_an_action_where_the_row_has_no_opening(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "page"}, {"role": "assistant", "content": "OK"}]
    talk += [{"role": "user", "content": "Observation: deck"}, {"role": "assistant", "content": "click[a]"}]
    talk += [{"role": "user", "content": "the end"}]
    (item,) = read(tmp_path, {"task": "1", "reward": 0, "opening": 0, "messages": talk})
    assert item.turns == (Turn("OK", "Observation: deck"), Turn("click[a]", "the end"))


def test_a_file_name_that_cannot_be_written_is_refused_before_anything_is_played(shop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours.csv: our own format is JSON Lines"):
        import_file(tmp_path / "absent.jsonl", "messages", tmp_path / "ours.csv", env=shop)


def test_an_answer_of_a_policy_that_did_nothing_still_does_nothing(tmp_path: Path) -> None:
    turn = Turn("", EXPLANATIONS[Problem.NO_ACTION], "Thought: hm.", False)
    item = Trajectory("1", "page", (turn, Turn("click[a]", "", "Action: click[a]")), source="mine")
    write_rows(tmp_path / "theirs.jsonl", message_rows(Selected("mine", [Example(item, 0)]), "train"))
    ((_, back, _),) = incoming.read(tmp_path / "theirs.jsonl", "messages")
    assert back == item
    write_rows(tmp_path / "ours.jsonl", sharegpt_rows(Selected("mine", [Example(item, 0)]), "loss"))
    (expert,) = load(tmp_path / "ours.jsonl")  # an expert file may be such an export
    assert (expert.actions, expert.turns[0]) == (item.actions, turn)


# Calls


def openai_call(action: str) -> list[dict[str, Any]]:
    name, argument = action[:-1].split("[", 1)
    function = {"name": name, "arguments": json.dumps({"x": argument})}
    return [{"id": "1", "type": "function", "function": function}]


def legacy_call(action: str) -> dict[str, Any]:
    return openai_call(action)[0]["function"]


@pytest.mark.parametrize("content", [None, "", "\n", "I think.", "I think.\nAction: click[buy now]"])
@pytest.mark.parametrize("legacy", [False, True])
def test_tool_calls_are_actions(content: str | None, legacy: bool, win: Trajectory, shop, tmp_path: Path) -> None:
    calls = {"function_call": legacy_call} if legacy else {"tool_calls": openai_call}
    row = {"task": win.task, "messages": conversation(win, content=content, **calls)}
    text, (item,) = replayed(tmp_path, shop, row)
    assert item.won and item.actions == win.actions, text
    thought = f"Thought: {content}\nAction: {{}}" if content and content.strip() else "{}"
    assert [turn.answer for turn in item.turns] == [thought.format(action) for action in win.actions]


def test_the_argument_of_a_call_is_not_read_for_actions(tmp_path: Path) -> None:
    call = [{"function": {"name": "search", "arguments": {"x": "[a\nAction: click[b]"}}}]
    messages = [{"role": "user", "content": "page"}, {"role": "assistant", "content": "so", "tool_calls": call}]
    (item,) = read(tmp_path, {"task": "1", "reward": 0, "messages": messages})
    assert item.actions == ["search[[a\nAction: click[b]]"] and item.turns[0].learn


@pytest.mark.parametrize(
    "answer, message",
    [
        ({"content": ""}, "turn 1: the answer is empty: it has neither a text nor a call"),
        ({"content": "  \n", "tool_calls": []}, "turn 1: the answer is empty"),
        ({"content": None}, "message 2 needs 'role', one of .* and 'content', a text, or 'tool_calls'"),
        ({"content": None, "tool_calls": [{}, {}]}, "message 2 has 2 calls: one is a turn"),
        ({"content": None, "tool_calls": "x"}, "'tool_calls' of message 2 must be a list, not 'x'"),
        ({"content": None, "tool_calls": ["x"]}, "the call of message 2 must be a JSON object, not 'x'"),
        ({"content": 3, "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]}, "the thought of message 2"),
        (
            {"content": None, "tool_calls": [{"function": {"name": "a", "arguments": '{"x": 1, "y": 2}'}}]},
            "message 2 calls 'a' with .*: only a call with one argument is an action",
        ),
        (
            {"content": None, "tool_calls": [{"function": {"name": "a", "arguments": "{truncated"}}]},
            "message 2 calls 'a' with '{truncated'",
        ),
    ],
)
def test_an_answer_that_is_no_action_is_refused(answer: dict[str, Any], message: str, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "page"}, {"role": "assistant", **answer}]
    with pytest.raises(TrajectoryError, match=f"theirs.jsonl, line 1: .*{message}"):
        read(tmp_path, {"task": "1", "reward": 0, "messages": messages})


def test_an_empty_answer_that_a_mask_leaves_out_comes_back(tmp_path: Path) -> None:
    """Export writes such answers of policies."""
    messages = [{"role": "user", "content": "page"}, {"role": "assistant", "content": "", "train": False}]
    (item,) = read(tmp_path, {"task": "1", "reward": 0, "messages": messages})
    assert item.turns == (Turn("", "", "", False),)


# Ends


@pytest.mark.parametrize("answer", ["click[b]", "Thought: short\nAction: click[b]"])
def test_a_thought_in_a_field_of_its_own_comes_before_the_answer(answer: str, tmp_path: Path) -> None:
    thought, page = {"reasoning_content": "I think."}, {"role": "user", "content": "page"}
    standard = {"class_": "message_action", "content": answer, **thought}
    first = {"class_": "text_observation", "content": "page", "source": "environment"}
    steps = [{"source": "user", "message": "page"}, {"source": "agent", "message": answer, **thought}]
    for form, row in (
        ("messages", {"messages": [page, {"role": "assistant", "content": answer, **thought}]}),
        ("adp", {"content": [first, standard]}),
        ("adp", {"steps": steps}),
    ):
        (turn,) = read(tmp_path, {"task": "1", "reward": 1, **row}, form=form)[0].turns
        label = "" if "Action" in answer else "Action: "
        assert (turn.action, turn.reply) == ("click[b]", f"Thought: I think.\n{label}{answer}")


@pytest.mark.parametrize("row", [{"id": "webshop_511", "task": "webshop"}, {"task": 511}, {"item_id": "webshop_511"}])
def test_the_subtask_of_a_row_is_read_as_in_etos_files(row: dict[str, Any], tmp_path: Path) -> None:
    said = [{"from": "human", "value": "page"}, {"from": "gpt", "value": "Action: click[b]"}]
    (item,) = read(tmp_path, {"reward": 1, "conversations": said, **row}, form="sharegpt")
    assert item.task == "511"


def test_a_conversation_that_was_cut_is_unfinished_and_no_failure(win: Trajectory, shop, tmp_path: Path) -> None:
    row = {"task": win.task, "messages": conversation(win)[:3]}
    text, items = replayed(tmp_path, shop, row)
    assert "the environment has an unfinished episode (max_steps=15)" in text and not items
    _, (item,) = replayed(tmp_path, shop, {**row, "outcome": "max_steps"})
    assert item.failed and item.outcome == "max_steps", "a smaller limit ended it, as the row says"
    page = first_page(shop, win.task)
    idle = Trajectory(win.task, page, tuple(Turn("click[x]", shop.step("click[x]").observation) for _ in range(15)))
    _, (item,) = replayed(tmp_path, shop, {"task": win.task, "messages": conversation(idle)})
    assert item.failed and item.outcome == "max_steps", "the environment's own limit ended it"


def test_an_environment_that_fails_costs_one_trajectory(win: Trajectory, shop, tmp_path: Path, monkeypatch) -> None:
    step, calls = WebShop.step, []

    def flaky(self: WebShop, action: str) -> Any:
        calls.append(action)
        if len(calls) == 1:
            raise EnvError("the simulator died")
        return step(self, action)

    monkeypatch.setattr(WebShop, "step", flaky)
    row = {"task": win.task, "messages": conversation(win)}
    text, items = replayed(tmp_path, shop, row, row)
    assert "2 trajectories checked, 1 replayed without a difference, 1 won" in text
    assert "1 ended in an error of the environment and are left out" in text
    assert [item.won for item in items] == [True]


# Masks


def test_a_mask_key_that_no_message_has_is_refused(win: Trajectory, tmp_path: Path) -> None:
    plain = {"task": win.task, "reward": 1, "messages": conversation(win)}
    masked = {"task": win.task, "reward": 1, "messages": conversation(win, train=False, weight=None)}
    with pytest.raises(TrajectoryError, match="no message has the mask 'loss_mask'; the messages have train: "):
        read(tmp_path, plain, masked, key="loss_mask")
    with pytest.raises(TrajectoryError, match="no message has the mask 'loss_mask'; the messages have no mask"):
        read(tmp_path, plain, key="loss_mask")
    items = read(tmp_path, plain, masked, key="train")
    assert [{turn.learn for turn in item.turns} for item in items] == [{True}, {False}]
    row = {"task": "1", "content": [{"class_": "message_action", "content": "x"}]}
    with pytest.raises(TrajectoryError, match="the format adp has no masks: leave out --mask-key"):
        read(tmp_path, row, form="adp", key="train")


@pytest.mark.parametrize("key", [None, "weight"])
def test_openais_weights_are_a_mask(key: str | None, win: Trajectory, tmp_path: Path) -> None:
    weights = iter([0, 1, 0.0, 1.0, None, *[1] * 20])
    messages = conversation(win, weight=lambda action: next(weights))
    (item,) = read(tmp_path, {"task": win.task, "reward": 1, "messages": messages}, key=key)
    assert [turn.learn for turn in item.turns][:5] == [False, True, False, True, True]
    path, out = tmp_path / "theirs.jsonl", tmp_path / "out.jsonl"
    words = ["import", str(path), "--format", "messages", "--out", str(out)]
    assert main([*words, "--mask-key", "weight"]) == 0
    assert load(out)[0].turns == item.turns


def test_a_mask_that_is_a_float_counts(win: Trajectory, tmp_path: Path) -> None:
    for value in (1.0, 0.0):
        (item,) = read(tmp_path, {"task": win.task, "reward": 1, "messages": conversation(win, loss=value)})
        assert {turn.learn for turn in item.turns} == {bool(value)}


def test_a_column_of_masks_without_values_is_no_mask(win: Trajectory, tmp_path: Path) -> None:
    """Parquet files have every key in every message."""
    messages = conversation(win, loss=None, train=False)
    (item,) = read(tmp_path, {"task": win.task, "reward": 1, "messages": messages})
    assert {turn.learn for turn in item.turns} == {False}


# Messages of errors


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"content": [{"class_": "text_observation", "source": "user", "content": None}]},
            "the content of item 1 must be a text, not None",
        ),
        ({"steps": [{"source": "user", "message": [{"type": "text"}]}]}, "the message of step 1 must be a text, not "),
        ({"steps": [{"source": "agent", "message": {"a": 1}}]}, "the message of step 1 must be a text, not "),
        (
            {"steps": [{"source": "agent", "message": "x", "observation": {"results": [{"content": 1}]}}]},
            "the content of the result of step 1 must be a text, not 1",
        ),
        ({"steps": [{"source": "agent", "tool_calls": {"x": 1}}]}, "'tool_calls' of step 1 must be a list, not {"),
        ({"steps": [{"source": "agent", "tool_calls": 3}]}, "'tool_calls' of step 1 must be a list, not 3"),
        (
            {"steps": [{"source": "agent", "message": "x", "observation": {"results": 3}}]},
            "'results' of step 1 must be a list, not 3",
        ),
        ({"steps": [{"source": "agent", "observation": []}]}, "'observation' of step 1 must be a JSON object"),
        ({"steps": [3]}, "step 1 must be a JSON object, not 3"),
        ({"content": ["x"]}, "item 1 must be a JSON object, not 'x'"),
        (
            {"steps": [{"source": "agent", "tool_calls": [{"function_name": "a", "arguments": {}}]}]},
            "step 1 calls 'a' with {}",
        ),
        (
            {"steps": [{"source": "user", "message": "page"}, {"source": "agent"}, {"source": "user", "message": "x"}]},
            "turn 1: the answer is empty",
        ),
    ],
)
def test_a_message_names_the_place_in_the_file(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=f"theirs.jsonl, line 1: .*{message}") as caught:
        read(tmp_path, {"task": "1", **row}, form="adp")
    assert "conversations" not in str(caught.value)
