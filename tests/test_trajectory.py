"""Trajectory files: what is written is read back, and errors name file and line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eef.conversations import EXPLANATIONS, eto_task_names
from eef.trajectory import (
    Trajectory,
    TrajectoryError,
    Turn,
    frame,
    from_dict,
    from_sharegpt,
    load,
    load_lines,
    save,
    to_dict,
    without_loss,
)

settings.register_profile("busy", deadline=None)  # a busy machine is no failure
settings.load_profile("busy")

TURNS = st.builds(Turn, action=st.text(), observation=st.text(), reply=st.text(), learn=st.booleans())
TRAJECTORIES = st.builds(
    Trajectory,
    task=st.text(),
    prompt=st.text(),
    turns=st.lists(TURNS, max_size=4).map(tuple),
    reward=st.floats(0, 1),
    won=st.booleans(),
    source=st.text(),
    outcome=st.sampled_from(["done", "max_steps", "env_error", "context_overflow"]),
    prefix=st.just(0),
    info=st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=2),
)
SMALL = Trajectory(
    "7", "Instruction: [SEP] café", (Turn("search[ü\u2028x]", "page\n[SEP] 1", learn=False), Turn("click[b]", "é"))
)


# Files


@given(st.lists(TRAJECTORIES, max_size=4))
@settings(max_examples=50)
def test_a_saved_file_loads_the_same(tmp_path_factory: pytest.TempPathFactory, trajectories: list[Trajectory]) -> None:
    path = tmp_path_factory.mktemp("files") / "deep" / "t.jsonl"
    assert load(save(trajectories, path)) == trajectories


@given(TRAJECTORIES)
def test_dicts_round_trip_through_json(trajectory: Trajectory) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(trajectory)))) == trajectory


def test_a_file_truncated_at_any_byte_names_the_line(tmp_path: Path) -> None:
    path = save([SMALL, SMALL], tmp_path / "t.jsonl")
    whole = path.read_bytes()
    last = whole.index(b"\n") + 1
    for cut in range(last + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(TrajectoryError, match="t.jsonl, line 2: truncated or invalid JSON"):
            load(path)
    path.write_bytes(whole[:last])  # a cut between two lines is valid
    assert load(path) == [SMALL]
    path.write_bytes(whole[:-1])  # the newline alone is lost
    assert load(path) == [SMALL, SMALL]


def test_a_truncated_list_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    whole = json.dumps([to_dict(SMALL)], ensure_ascii=False).encode()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(TrajectoryError, match="t.json: truncated or invalid JSON"):
            load(path)


def test_a_byte_order_mark_is_skipped_and_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    path, text = tmp_path / "t.jsonl", json.dumps(to_dict(SMALL))
    for content in (text, f"[{text}]"):
        path.write_text(content, encoding="utf-8-sig")
        assert load(path) == [SMALL]
    for data, message in (
        (gzip.compress(text.encode()), "t.jsonl is compressed with gzip: unpack it with gunzip"),
        (text.encode("utf-16"), "t.jsonl is a text in UTF-16: save it in UTF-8"),
    ):
        path.write_bytes(data)
        with pytest.raises(TrajectoryError, match=message):
            load(path)


def test_a_killed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = save([SMALL], tmp_path / "t.jsonl")

    def dying() -> Iterator[Trajectory]:
        yield SMALL
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(dying(), path)
    assert load(path) == [SMALL]
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no trajectory file at .*absent.jsonl"):
        load(tmp_path / "absent.jsonl")


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    assert load(save([], tmp_path / "t.jsonl")) == []


def test_won_may_be_left_out_where_nothing_was_scored(tmp_path: Path) -> None:
    line = {"version": 1, "task": "1", "prompt": "p", "turns": [{"action": "a", "observation": "o"}]}
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({**line, **more}) for more in ({}, {"reward": 0}, {"reward": 1, "won": True})))
    assert [t.won for t in load(path)] == [False, False, True]
    assert [place for place, _ in load_lines(path)] == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (5, "a JSON object was expected, not int"),
        ({}, "field 'task' is missing"),
        ({"task": "1", "prompt": "p"}, "field 'turns' is missing"),
        ({"task": "1", "turns": []}, "field 'prompt' is missing"),
        ({"task": "1", "prompt": "p", "turns": [], "gold": 1}, "unknown field 'gold'; the fields are task, prompt"),
        ({"task": "1", "prompt": "p", "turns": [], "rewards": 1}, r"unknown field 'rewards' .did you mean 'reward'"),
        ({"task": "1", "prompt": "p", "turns": [], "reward": 1.0}, "field 'won' is missing, with 'reward' 1: write"),
        ({"task": "1", "prompt": "p", "turns": [], "reward": 0.5}, "field 'won' is missing, with 'reward' 0.5: write"),
        ({"task": "1", "prompt": "p", "turns": [], "version": 2}, "'version' must be 1, not 2: update eef"),
        ({"task": "1", "prompt": "p", "turns": "abc"}, "'turns' must be a list, not 'abc'"),
        ({"task": "1", "prompt": "p", "turns": ["a"]}, "turn 1 must be an object with 'action' and 'observation'"),
        ({"task": 1, "prompt": "p", "turns": []}, "must be strings"),
        ({"task": "1", "prompt": "p", "turns": [{"action": "a"}]}, "turn 1: field 'observation' is missing"),
        (
            {"task": "1", "prompt": "p", "turns": [{"action": "a", "observation": "o", "answer": "b"}]},
            "turn 1: unknown field 'answer'",
        ),
        (
            {"task": "1", "prompt": "p", "turns": [{"action": "a", "observation": "o", "ids": 3}]},
            "turn 1: 'ids' must be a list",
        ),
        ({"task": "1", "prompt": "p", "turns": [{"action": "a", "observation": None}]}, "turn 1: .* must be strings"),
        ({"task": "1", "prompt": "p", "turns": [], "reward": "1"}, "'reward' must be a number"),
        ({"task": "1", "prompt": "p", "turns": [], "reward": 100}, "'reward' must lie in"),
        ({"task": "1", "prompt": "p", "turns": [], "prefix": 1}, "'prefix' must be a number of turns, 0 to 0"),
        (
            {"task": "1", "prompt": "p", "turns": [{"action": "a", "observation": "o", "learn": "no"}]},
            "'learn' must be",
        ),
        ({"task": "1", "prompt": "p", "turns": [], "won": 1}, "'won' must be true or false"),
        ({"task": "1", "prompt": "p", "turns": [], "info": [1]}, "'info' must be a JSON object"),
        ({"task": "1", "prompt": "p", "turns": [], "source": 3}, "'source' must be a string, not 3"),
        (
            {"task": "1", "prompt": "p", "turns": [{"action": "a", "observation": "o", "chat": 3}]},
            "turn 1: 'chat' must be a string, not 3",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(to_dict(SMALL)) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(TrajectoryError, match=rf"t.jsonl, line 2: .*{message}"):
        load(path)


@pytest.mark.parametrize("reward", [75, -1, -1.0, 1.0001, float("nan"), float("inf"), True, "1", None])
@pytest.mark.parametrize("layout", ["ours", "eto_list", "eto_lines"])
def test_a_reward_out_of_range_is_named_in_every_format(tmp_path: Path, reward: object, layout: str) -> None:
    path = tmp_path / "t.jsonl"
    ours = layout == "ours"
    rows = [{**to_dict(SMALL), "reward": r} if ours else eto_row(reward=r) for r in (1.0, reward)]
    path.write_text(json.dumps(rows) if layout == "eto_list" else "\n".join(map(json.dumps, rows)))
    number = isinstance(reward, (int, float)) and not isinstance(reward, bool)
    what = r"'reward' must lie in \[0, 1\], not .*: divide a score out of 100 by 100" if number else "must be a number"
    with pytest.raises(TrajectoryError, match=f"t.jsonl, {'item 2' if layout == 'eto_list' else 'line 2'}: .*{what}"):
        load(path)


@pytest.mark.parametrize("change", [{"reward": 75.0}, {"reward": float("nan")}, {"reward": True}, {"prefix": 3}])
def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path, change: dict) -> None:
    path = save([SMALL], tmp_path / "t.jsonl")
    with pytest.raises(TrajectoryError, match=r"t.jsonl was not written, trajectory 2 \(task 7\): '(reward|prefix)'"):
        save([SMALL, replace(SMALL, **change)], path)
    assert load(path) == [SMALL]
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.jsonl"]


# ETO's conversations


def eto_row(**changes: object) -> dict:
    conversations = [
        {"from": "human", "value": "You are shopping on the web. ...", "loss": None},
        {"from": "gpt", "value": "OK", "loss": False},
        {"from": "human", "value": "WebShop [SEP] Instruction: [SEP] a blue cup [SEP] Search", "loss": None},
        {"from": "gpt", "value": "Thought: I think I should search.\nAction: search[blue cup]", "loss": True},
        {"from": "human", "value": "Observation:\nBack to Search [SEP] Page 1 [SEP] B01 [SEP] $5", "loss": None},
        {"from": "gpt", "value": "Thought: I look at it.\nAction: click[B01]", "loss": False},
        {"from": "human", "value": "Observation:\nBuy Now", "loss": None},
        {"from": "gpt", "value": "Thought: It fits.\nAction: click[Buy Now]", "loss": True},
    ]
    return {"id": "webshop_42", "conversations": conversations, "reward": 1.0, **changes}


def test_an_eto_conversation_becomes_turns() -> None:
    got = from_sharegpt(eto_row())
    assert (got.task, got.reward, got.won, got.info) == ("42", 1.0, True, {"id": "webshop_42"})
    assert got.prompt == "WebShop [SEP] Instruction: [SEP] a blue cup [SEP] Search"
    assert got.actions == ["search[blue cup]", "click[B01]", "click[Buy Now]"]
    assert [turn.learn for turn in got.turns] == [True, False, True]
    assert got.turns[0].answer == "Thought: I think I should search.\nAction: search[blue cup]"
    assert got.state(1) == "Back to Search [SEP] Page 1 [SEP] B01 [SEP] $5"
    assert got.state(3) == ""  # the episode ended there


def test_a_purchase_below_full_reward_is_not_won() -> None:
    assert not from_sharegpt(eto_row(reward=0.75, success=True)).won


def test_eto_files_load_as_list_and_as_lines(tmp_path: Path) -> None:
    rows = [eto_row(), eto_row(id="webshop_43", reward=0.5)]
    as_list, as_lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    as_list.write_text(json.dumps(rows, indent=1))
    as_lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(as_list) == load(as_lines) == [from_sharegpt(row) for row in rows]


def test_a_label_that_not_every_page_has_is_part_of_the_page() -> None:
    row = eto_row()
    row["conversations"][4]["value"] = "Observation: deck [SEP] B01"
    row["conversations"][6]["value"] = "Buy Now"
    assert from_sharegpt(row).turns[0].observation == "Observation: deck [SEP] B01"


def test_a_row_that_we_exported_keeps_its_task_and_its_end() -> None:
    talk = [{"from": "human", "value": "s0"}, {"from": "gpt", "value": "OK"}, {"from": "human", "value": "s1"}]
    talk += [{"from": "gpt", "value": "click[b]"}]
    row = {"item_id": "big_cup", "task": "big_cup", "reward": 1.0, "won": False, "outcome": "max_steps", "prefix": 1}
    got = from_sharegpt({**row, "source": "mine", "opening": 0, "conversations": talk})
    assert (got.task, got.prompt, got.actions, got.source) == ("big_cup", "s0", ["OK", "click[b]"], "mine")
    assert (got.won, got.outcome, got.prefix) == (False, "max_steps", 1)
    react = [{"from": "human", "value": "rules"}, {"from": "gpt", "value": "OK"}, *talk]
    react[2] = {"from": "human", "value": "Now your task.\n\ns0"}
    got = from_sharegpt({**row, "opening": 2, "conversations": react})
    assert (got.prompt, got.actions) == ("s0", ["OK", "click[b]"])
    other = {"id": "webshop_511", "task": "webshop", "reward": 1.0, "conversations": talk}
    assert from_sharegpt(other).task == "511", "'task' is the name of a benchmark here"
    for wrong in ({"won": 1}, {"outcome": "lost"}, {"prefix": 9}, {"opening": 4}):
        with pytest.raises(TrajectoryError, match=f"'{next(iter(wrong))}' must be"):
            from_sharegpt({**row, "conversations": talk, **wrong})


def test_a_conversation_without_acknowledgement_or_thoughts() -> None:
    conversations = [{"from": "human", "value": "s0"}, {"from": "gpt", "value": "click[Buy Now]"}]
    got = from_sharegpt({"id": 3, "conversations": conversations, "reward": 0.5})
    assert (got.task, got.prompt, got.won) == ("3", "s0", False)
    assert got.turns == (Turn("click[Buy Now]", ""),)
    assert got.turns[0].answer == "click[Buy Now]"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (eto_row(conversations=[{"from": "human"}]), "needs 'from' and 'value'"),
        (eto_row(conversations=[]), "does not begin with a message from 'human'"),
        (eto_row(conversations=eto_row()["conversations"][:2]), "does not begin with a message from 'human'"),
        (eto_row(conversations=[eto_row()["conversations"][2]] * 2), "not from 'gpt'"),
        (eto_row(conversations=[*eto_row()["conversations"][2:4], eto_row()["conversations"][3]]), "not from 'human'"),
        (
            eto_row(conversations=[*eto_row()["conversations"][:4], eto_row()["conversations"][3]]),
            "message 5 is from 'gpt'",
        ),
        (eto_row(reward=None), "'reward' must be a number"),
        ({k: v for k, v in eto_row(success=True).items() if k != "reward"}, "has no 'reward'"),
    ],
)
def test_a_wrong_conversation_is_named(tmp_path: Path, row: dict, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([eto_row(), row]))
    with pytest.raises(TrajectoryError, match=f"t.json, item 2: .*{message}"):
        load(path)


def test_a_reply_turned_away_for_its_format_never_reached_the_environment() -> None:
    row = eto_row()
    rude = [
        {"from": "gpt", "value": "I do not know."},
        {"from": "human", "value": "Observation: Invalid format. The ..."},
    ]
    row["conversations"][5:5] = rude
    turn = from_sharegpt(row).turns[1]
    assert (turn.action, turn.answer, turn.learn) == ("", "I do not know.", False)
    assert turn.observation == "Invalid format. The ..."


@pytest.mark.parametrize("explanation", EXPLANATIONS.values(), ids=list(EXPLANATIONS))
def test_an_answer_that_our_agents_could_not_read_is_no_action_either(explanation: str) -> None:
    row = eto_row()
    for at, answer in ((5, "I think."), (7, "Action: click[a] and more")):
        page = {"from": "human", "value": f"Observation: {explanation}"}
        row["conversations"][at:at] = [{"from": "gpt", "value": answer}, page]
    got = from_sharegpt(row)
    assert got.actions == ["search[blue cup]", "", "", "click[B01]", "click[Buy Now]"]
    unread = [(turn.answer, turn.learn, turn.observation) for turn in got.turns[1:3]]
    assert unread == [("I think.", False, explanation), ("Action: click[a] and more", False, explanation)]


def test_the_task_of_a_row_counts_unless_it_names_a_benchmark() -> None:
    row = {key: value for key, value in eto_row(reward=0.0).items() if key != "id"}
    for named, task in (
        ({"id": "conv_0001", "task": "find-animal/12"}, "find-animal/12"),
        ({"id": "11_7", "task": "find-plant/3"}, "find-plant/3"),
        ({"id": "find-animal/12_0", "task": "find-animal/12"}, "find-animal/12"),
        ({"id": "41_0", "task": "41"}, "41"),
        ({"id": "webshop_511", "task": "webshop"}, "511"),
        ({"id": "maze_1", "task": "maze", "outcome": "done"}, "maze"),
        ({"task": "big_cup"}, "big_cup"),
        ({"id": "conv_0001", "task": 12}, "12"),
        ({"id": "conv_0001", "task": None}, "0001"),
    ):
        assert from_sharegpt({**row, **named}).task == task
    with pytest.raises(TrajectoryError, match="'task' and 'prompt' must be strings"):
        from_sharegpt({**row, "task": ["find-animal", 12]})


def test_pages_keep_their_outer_spaces() -> None:
    row = eto_row()
    row["conversations"][4]["value"] = "Observation:\n\ta cup [SEP] < Prev [SEP] "
    assert from_sharegpt(row).turns[0].observation == "\ta cup [SEP] < Prev [SEP] "


def test_scienceworld_ids_name_our_subtasks_and_their_file_needs_no_reward() -> None:
    row = {key: value for key, value in eto_row(id="11_7").items() if key != "reward"}
    got = from_sharegpt(row)
    assert (got.task, got.reward, got.won) == ("find-animal/7", 1.0, True) and "ETO" in got.info["reward"]
    assert "look around" in got.info["no_replay"] and "no_replay" not in from_sharegpt(eto_row()).info
    assert from_sharegpt(eto_row(id="6_0", reward=0.5)).task == "use-thermometer/0"
    assert not from_sharegpt(eto_row(id="6_0", reward=0.5)).won
    for other in (eto_row(id="99_7"), eto_row(id=7)):
        assert from_sharegpt(other).task == "7"


ETO = (
    Path(os.environ.get("EEF_ETO_DATA") or Path(__file__).parents[2] / "shared" / "eto") / "sciworld_train_indices.json"
)


@pytest.mark.skipif(not ETO.is_file(), reason="no index files of ETO: name their folder in EEF_ETO_DATA")
def test_every_id_of_etos_split_is_a_subtask_of_ours() -> None:
    from scienceworld.utils import infer_task

    items = json.loads(ETO.read_text())
    order = sorted({name for name, _ in items})
    for name, variation in items:
        number = next(i for i, known in enumerate(eto_task_names()) if known == infer_task(name))
        assert from_sharegpt(eto_row(id=f"{number}_{variation}")).task == f"{infer_task(name)}/{variation}"
    numbers = [eto_task_names().index(infer_task(name)) for name in order]
    assert len(order) == 24 and numbers == sorted(numbers)  # ETO numbers the long names in their order


# Views


def test_frame_has_a_row_per_turn() -> None:
    got = frame([SMALL, Trajectory("8", "s0", (Turn("a", "o"), Turn("b", "p")), 1.0, True, "policy", prefix=1)])
    assert got["task"].tolist() == ["7", "7", "8", "8"]
    assert got["turn"].tolist() == [0, 1, 0, 1]
    assert got["learn"].tolist() == [False, True, True, True]
    assert got["in_prefix"].tolist() == [False, False, True, False]
    assert list(frame([]).columns) == list(got.columns)


def test_states_are_prompt_and_observations() -> None:
    assert [SMALL.state(i) for i in range(3)] == [SMALL.prompt, "page\n[SEP] 1", "é"]
    for index in (-1, 3):
        with pytest.raises(IndexError, match="task 7"):
            SMALL.state(index)


def test_an_error_is_neither_win_nor_failure() -> None:
    assert Trajectory("7", "s0", (), outcome="max_steps").failed
    assert not Trajectory("7", "s0", (), outcome="env_error").failed
    turn = Turn("search[x]", "page")
    assert Trajectory("7", "s0", (turn, turn), outcome="context_overflow", prefix=1).failed
    assert not Trajectory("7", "s0", (turn,), outcome="context_overflow", prefix=1).failed
    assert not Trajectory("7", "s0", (), won=True).failed


def test_without_loss_bars_and_never_frees() -> None:
    assert [turn.learn for turn in without_loss(SMALL, [1]).turns] == [False, False]
    assert without_loss(SMALL, []) == SMALL


@pytest.mark.parametrize("outcome", ["lost", None, ["done"]])
def test_an_unknown_outcome_is_refused(tmp_path: Path, outcome: object) -> None:
    row = {"task": "1", "prompt": "s0", "turns": [], "outcome": outcome}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TrajectoryError, match=r"t.jsonl, line 1: 'outcome' must be one of done, max_steps, "):
        load(tmp_path / "t.jsonl")


def test_a_loss_flag_that_is_text_is_refused() -> None:
    talk = [{"from": "human", "value": "a task"}, {"from": "gpt", "value": "Action: look", "loss": "False"}]
    with pytest.raises(TrajectoryError, match="'loss' of a message must be true or false, not 'False'"):
        from_sharegpt({"id": "1", "reward": 1.0, "conversations": talk})
