"""Export and import: rows are those of training, masks survive, flips are verified, files of others are checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eef.agents.actions import read_action
from eef.agents.chat import Chat
from eef.agents.policy import load_chat
from eef.agents.react import react_chat
from eef.agents.scaffold import answer_ids, content_encoder, user_ids
from eef.cli import main
from eef.exchange import incoming
from eef.exchange.conversation import Message, count_sampled, messages_of
from eef.exchange.formats import MASK_KEYS, masked, message_rows, sharegpt_rows, write_rows, write_trajectories
from eef.exchange.pairs import flip_row, flips, trajectory_pair
from eef.exchange.source import Selected, chat_of_run
from eef.experts import demonstrations, expert_trajectories
from eef.files import RunError, read_json, read_rows, write_json
from eef.lab import Lab, make_chat
from eef.models.pretrain import make_model, save
from eef.selection import Example
from eef.settings import Settings
from eef.tracking.keys import source_files
from eef.tracking.runs import Run
from eef.training.rows import IGNORE
from eef.training.sft import sft
from eef.trajectory import Trajectory, TrajectoryError, Turn, load
from eef.trajectory import save as save_trajectories


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.fixture(scope="module")
def played(shop) -> list[Trajectory]:
    return demonstrations(shop, shop.tasks("train"))


@pytest.fixture(scope="module")
def examples(played: list[Trajectory]) -> list[Example]:
    """Examples with loss from the first turn, from a later one, not on a turn, and one that begins another."""
    first, second, third = (t for t in played[:3])
    quiet = replace(second, turns=(replace(second.turns[0], learn=False), *second.turns[1:]))
    beginning = replace(third, turns=third.turns[:1])
    return [Example(first, len(first) - 1), Example(quiet, 0), Example(third, 1), Example(beginning, 0)]


@pytest.fixture(scope="module")
def run(base: str, shop, examples: list[Example], played: list[Trajectory], tmp_path_factory) -> Path:
    """A run of a tiny model with two SFT stages, and simulations of an expert's failure."""
    root = tmp_path_factory.mktemp("runs")
    record = Run.open(root, "webshop", "x", 0, {"model": base, "prompt": "", "one_shot": False}, {"hashes": {}})
    chat = load_chat(base)
    chosen = Settings(model=base, epochs=1, lora_r=4, lora_alpha=8, context=2048)
    lab = Lab(record, shop, chosen, 0, shop.tasks("train"), [], chat)

    def stage(name: str, items: Sequence[Trajectory], inputs: dict[str, Any]) -> None:
        record.stage(
            name, {"inputs": inputs}, lambda path: save_trajectories(items, path / "trajectories.jsonl") and None
        )

    expert, win, loss = failure(), simulation(2, won=True), simulation(3, won=False)
    stage("experts", [expert, *played], {"tasks": "x"})
    lab.sft("bc", [Example(item, 0) for item in played[:3]])
    stage("states-0", [win, loss], {"starts": "x", "chat": {"hash": chat.hash}})
    lab.sft("sft-0", examples)
    stage("test", [simulation(3, won=True)], {"starts": "x", "chat": {"hash": chat.hash}})
    record.finish({"win_rate": 0.0})
    return record.folder


def failure() -> Trajectory:
    turns = tuple(Turn(f"click[{name}]", f"page {name}") for name in "abcde")
    return Trajectory("7", "page 0", turns, source="strong")


def simulation(prefix: int, won: bool, action: str = "click[z]") -> Trajectory:
    turns = (*failure().turns[:prefix], Turn(action, "page z"), Turn("click[end]", "over"))
    return Trajectory("7", "page 0", turns, float(won), won, "policy", prefix=prefix)


def export(run: Path, *words: str) -> int:
    return main(["export", run.name, "--root", str(run.parent), *words])


# What is exported


def test_trl_rows_are_those_that_sft_trains_on(
    run: Path, base: str, examples: list[Example], tmp_path: Path, policy, monkeypatch, capsys
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr("eef.training.sft.fit", lambda model, rows, *_, **__: trained.extend(rows) or [])
    policy.chat = load_chat(base)
    report = sft(policy, examples, tmp_path / "adapter", seed=0)
    assert export(run, "--format", "trl", "--out", str(tmp_path / "rows.jsonl")) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["input_ids"] for row in rows] == [list(row.ids) for row in trained]
    expected = [[token if learn else IGNORE for token, learn in zip(row.ids, row.mask, strict=True)] for row in trained]
    assert [row["labels"] for row in rows] == expected and set(rows[0]) == {"input_ids", "labels"}
    assert len(rows) == 3 and report["examples"] == 4, "the example that begins another trains in one row with it"
    counts = f"3 rows of 4 examples of sft-0, {report['tokens']:,} tokens, {report['learnt_tokens']:,} with loss"
    assert counts in capsys.readouterr().out


def test_rows_that_differ_from_those_of_training_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / run.parent.name
    shutil.copytree(run.parent, copy, symlinks=True)
    path = copy / run.name / "sft-0" / "sft.json"
    path.write_text(json.dumps({**read_json(path), "learnt_tokens": 1}))
    assert export(copy / run.name, "--format", "trl") == 2
    assert "sft-0: training reported learnt_tokens=1, but its examples now give" in capsys.readouterr().err
    path = copy / run.name / "sft-0" / "stage.json"
    stage = read_json(path)
    stage["key"]["inputs"]["chat"]["hash"] = "0123"
    path.write_text(json.dumps(stage))
    assert export(copy / run.name, "--format", "messages") == 2
    assert "sft-0 was made with the chat 0123, but" in capsys.readouterr().err
    assert export(copy / run.name, "--format", "messages", "--plain") == 0


def test_a_run_exports_in_each_format_from_the_last_stage_or_a_chosen_one(
    run: Path, examples: list[Example], tmp_path: Path, capsys
) -> None:
    for form in ("trl", "messages", "sharegpt", "eef", "pairs"):
        assert export(run, "--format", form, "--out", str(tmp_path / f"{form}.jsonl")) == 0
    rows = {path.stem: read_rows(path) for path in tmp_path.glob("*.jsonl")}
    assert {form: len(items) for form, items in rows.items()} == {
        "trl": 3, "messages": 4, "sharegpt": 4, "eef": 4, "pairs": 1,
    }  # fmt: skip
    asks = [[message["train"] for message in row["messages"]] for row in rows["messages"]]
    assert asks == [[learn for each in example.mask for learn in (False, each)] for example in examples]
    assert {type(value) for row in asks for value in row} == {bool}
    assert {type(each["loss"]) for row in rows["sharegpt"] for each in row["conversations"]} == {bool}
    assert load(tmp_path / "eef.jsonl") == [masked(example) for example in examples]
    assert all(row["version"] == 1 for row in rows["eef"])
    capsys.readouterr()
    assert export(run, "--format", "messages", "--stage", "bc", "--mask-key", "step_loss_mask") == 0
    assert f"wrote {run / 'bc.messages.jsonl'}: 3 examples of bc" in capsys.readouterr().out
    first = read_rows(run / "bc.messages.jsonl")[0]
    assert {type(each["step_loss_mask"]) for each in first["messages"]} == {int}
    assert export(run, "--format", "trl", "--stage", "sft-9") == 2
    assert "no stage 'sft-9' of SFT; it has bc, sft-0: choose one with --stage" in capsys.readouterr().err


def test_a_file_exports_the_trajectories_that_flags_choose(tmp_path: Path, base: str, capsys) -> None:
    items = [simulation(2, won=True), simulation(3, won=False), replace(failure(), outcome="env_error")]
    path = save_trajectories(items, tmp_path / "mine.jsonl")

    def turns(*words: str) -> list[list[bool]]:
        assert main(["export", str(path), "--format", "messages", *words]) == 0
        rows = read_rows(tmp_path / "mine.messages.jsonl")
        return [[each["train"] for each in row["messages"] if each["role"] == "assistant"] for row in rows]

    assert turns() == [[True] * 4]
    assert turns("--which", "all") == [[True] * 4, [True] * 5]
    assert turns("--which", "failed", "--own-turns") == [[False] * 3 + [True] * 2]
    assert read_rows(tmp_path / "mine.messages.jsonl")[0]["messages"][0] == {
        "role": "user", "content": "page 0", "train": False,
    }  # fmt: skip
    assert main(["export", str(path), "--format", "trl"]) == 2
    assert "for a file, add --model NAME" in capsys.readouterr().err
    assert main(["export", str(path), "--format", "trl", "--model", base]) == 0
    assert "1 rows of 1 examples of mine.jsonl" in capsys.readouterr().out


def test_a_file_for_a_model_that_says_actions_alone_has_no_thoughts(tmp_path: Path, base: str, tokenizer) -> None:
    item = simulation(0, won=True)
    thinks = replace(item, turns=tuple(replace(t, reply=f"Thought: so.\nAction: {t.action}") for t in item.turns))
    path = save_trajectories([thinks], tmp_path / "mine.jsonl")
    words = {"constrained_decoding": True}
    words_model = str(save(make_model(tokenizer, 32, 1, 2), tokenizer, tmp_path / "words", words))

    def answers(*words: str) -> list[str]:
        assert main(["export", str(path), "--format", "messages", *words]) == 0
        (row,) = read_rows(tmp_path / "mine.messages.jsonl")
        return [each["content"] for each in row["messages"] if each["role"] == "assistant"]

    assert answers("--model", words_model) == item.actions == ["click[z]", "click[end]"]
    assert answers() == [turn.reply for turn in thinks.turns]
    react = answers("--model", words_model, "--prompt", "react", "--env", "webshop")
    assert react == ["OK", *answers()], "with this prompt the model says thoughts"
    assert answers("--model", base)[0].startswith("click[ ")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--format", "trl", "--mask-key", "loss"], "the format trl has no key"),
        (["--format", "trl", "--plain"], "the format trl needs the token ids of a model"),
        (["--format", "messages", "--which", "all"], "belong to a file, and there is no file"),
        (["--format", "messages", "--out", "rows.csv"], "must end in .jsonl, .json"),
        (["--format", "eef", "--out", "rows.parquet"], "our own format is JSON Lines"),
    ],
)
def test_options_that_do_not_fit_are_refused(run: Path, words: list[str], message: str, capsys) -> None:
    assert export(run, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["mine.jsonl", "--format", "eef", "--out", "mine.jsonl"], "--out mine.jsonl is the file that is read"),
        (["empty.jsonl", "--format", "eef"], "empty.jsonl is empty"),
        (["none.jsonl", "--format", "eef"], "there is no file none.jsonl: name a file of trajectories, or a run"),
        (["mine.jsonl", "--format", "messages", "--prompt", "react", "--env", "webshp"], "did you mean 'webshop'"),
        (["mine.jsonl", "--format", "messages", "--model", "embedded", "--plain"], "leave out --model and --prompt"),
    ],
)
def test_a_file_that_cannot_be_exported_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save_trajectories([failure(), simulation(0, won=True)], tmp_path / "mine.jsonl")
    (tmp_path / "empty.jsonl").touch()
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err
    assert len(load(tmp_path / "mine.jsonl")) == 2


@pytest.mark.parametrize("observation", ["text", "text_rich"])
@pytest.mark.parametrize("one_shot", [False, True])
def test_the_chat_of_a_react_run_is_made_again(
    one_shot: bool, observation: str, tokenizer, shop, tmp_path: Path, monkeypatch
) -> None:
    options = {} if observation == "text" else {"observation": observation}
    shop = shop.fork()
    shop.observation = observation
    model = str(save(make_model(tokenizer, 32, 1, 2), tokenizer, tmp_path / "base", {}))
    played = [*shop.tasks("train")[:19], *shop.tasks("test")[:2]]
    chat = make_chat(Settings(model=model, prompt="react", one_shot=one_shot), shop, played)
    config = {"model": model, "prompt": "react", "one_shot": one_shot, "train": 19, "max_steps": 15}
    config |= {"test": 2, "env_options": options}
    write_json(tmp_path / "run" / "config.json", {"env": "webshop", "config": config})
    write_json(tmp_path / "bc" / "stage.json", {"key": {"inputs": {"chat": {"hash": chat.hash}}}})
    monkeypatch.setattr("eef.exchange.source.env_from_parameters", lambda parameters: shop)
    assert chat_of_run(tmp_path / "run", tmp_path / "bc").opening == chat.opening and len(chat.opening) > one_shot
    write_json(
        tmp_path / "run" / "config.json", {"env": "webshop", "config": {**config, "model": str(tmp_path / "moved")}}
    )
    with pytest.raises(RunError, match="--model names the base model where its files have moved"):
        chat_of_run(tmp_path / "run", tmp_path / "bc")
    assert chat_of_run(tmp_path / "run", tmp_path / "bc", model).hash == chat.hash


def test_no_stage_depends_on_export_or_on_the_version_field() -> None:
    """Else a change there would compute all stages anew."""
    names = source_files(["eef.lab", "eef.methods"])
    assert "eef.training.rows" in names
    assert not [name for name in names if name.startswith(("eef.exchange", "eef.experts.lines", "eef.commands"))]


# Messages


def ids_of(chat: Chat, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids and mask of messages, by the parts of the chat's template."""
    encode, ids, mask = content_encoder(chat.tokenizer), [], []
    for place, message in enumerate(messages):
        if message.role == "user":
            part = user_ids(encode, chat.scaffold, message.content, place == 0)
        else:
            part = answer_ids(encode, chat.scaffold, message.content)
        ids += part
        mask += [message.learn] * len(part)
    return ids, mask


@pytest.mark.parametrize("kind", ["aliases", "instructions", "react", "example"])
def test_messages_have_the_ids_and_the_mask_that_training_renders(
    kind: str, tokenizer, played: list[Trajectory], examples: list[Example]
) -> None:
    chat = Chat.of(tokenizer, aliases="webshop") if kind == "aliases" else Chat.of(tokenizer, "find the item")
    if kind in ("react", "example"):
        chat = react_chat(chat, "webshop", played[4] if kind == "example" else None)
    for example in examples:
        messages = messages_of(chat, example.trajectory, example.mask)
        assert ids_of(chat, messages) == chat.render(example.trajectory, example.mask)
        assert [message.role for message in messages[:2]] == ["user", "assistant"]
    thinks = replace(examples[0].trajectory, turns=(Turn("click[a]", "page", "Thought: so.\nAction: click[a]"),))
    assert ids_of(chat, messages_of(chat, thinks, [True])) == chat.render(thinks, [True])


def test_answers_that_were_sampled_as_other_ids_are_counted(chat: Chat) -> None:
    turns = (Turn("click[a]", "", ids=(5, 6), chat=chat.hash), Turn("click[a]", "", ids=(5,), chat="other"))
    item = Trajectory("1", "page", turns)
    assert count_sampled(chat, [item]) == 1 and count_sampled(None, [item]) == 0


words = st.text("abc[]: \n", min_size=1, max_size=12).map(lambda text: f"x{text}y")
actions = words | st.sampled_from(["click[a b]", "search[a: b]", "look around"])
turns_of = st.lists(st.tuples(actions, words, st.booleans(), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=60)
@given(turns_of, st.sampled_from(sorted(MASK_KEYS)), st.booleans(), st.integers(0, 3), st.booleans())
def test_a_round_trip_keeps_every_mask(
    tmp_path_factory, parts, key: str, sharegpt: bool, begin: int, won: bool
) -> None:
    """Of a thought's action only if it can be read: no policy of ours could have another one."""
    replies = [f"Thought: so.\nAction: {action}" if thinks else "" for action, _, thinks, _ in parts]
    replies = [
        reply if read_action(reply).action == part[0] else "" for reply, part in zip(replies, parts, strict=True)
    ]
    turns = [Turn(action, page, reply, learn) for (action, page, _, learn), reply in zip(parts, replies, strict=True)]
    turns[-1] = replace(turns[-1], observation="")  # left out by the export
    item = Trajectory("12", "the first page", tuple(turns), 0.5 + won / 2, won, "mine", prefix=len(turns) // 2)
    example = Example(item, begin)
    selected = Selected("mine", [example])
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    write_rows(path, (sharegpt_rows if sharegpt else message_rows)(selected, key))
    ((_, back, known),) = incoming.read(path, "sharegpt" if sharegpt else "messages")
    assert known and [turn.learn for turn in back.turns] == list(example.mask)
    assert back == masked(example)
    write_trajectories(path, [back])
    assert load(path) == [back]


# Preference pairs


def test_a_flip_needs_a_win_a_later_loss_and_two_actions() -> None:
    expert, win = failure(), simulation(2, won=True)

    def flipped(*simulations: Trajectory) -> list[tuple[int, int]]:
        return [(flip.state, flip.next_state) for flip in flips([expert], simulations)]

    assert flipped(win, simulation(3, won=False)) == [(2, 3)]
    assert flipped(win, simulation(4, won=False)) == [(2, 4)], "the expert's two actions lie between"
    assert flipped(win) == [(2, 5)], "the expert's own end is the loss"
    assert flipped(win, simulation(3, won=True)) == [(3, 5)], "s2 is followed by a state that won"
    assert flipped(win, simulation(3, won=False), simulation(3, won=True)) == [(3, 5)], "one win is enough"
    assert flipped(simulation(2, won=False), simulation(3, won=False)) == []
    assert flipped(replace(win, outcome="env_error", won=False)) == []
    assert flipped(win, replace(simulation(3, won=False), outcome="env_error")) == [(2, 5)], "neither won nor lost"
    assert flipped(simulation(2, won=True, action="click[c]")) == [], "both do the same"
    assert flipped(win, win) == [(2, 5)] and len(flips([expert, expert], [win])) == 1, "equal flips count once"
    assert flips([replace(expert, won=True, reward=1.0)], [win]) == []
    assert flips([replace(expert, task="8")], [win]) == []
    mute = replace(expert, turns=(*expert.turns[:2], replace(expert.turns[2], action=""), *expert.turns[3:]))
    assert flips([mute], [win]) == [], "an answer without an action leads nowhere"
    own = replace(win.turns[2], learn=False)
    assert flipped(replace(win, turns=(*win.turns[:2], own, *win.turns[3:]))) == [], "an invented page is not learnt"
    s0 = simulation(0, won=True)
    assert flipped(s0, simulation(2, won=False)) == [(0, 2)]


def test_a_flip_is_a_prompt_and_two_answers(run: Path, tmp_path: Path) -> None:
    assert export(run, "--format", "pairs", "--plain", "--out", str(tmp_path / "pairs.jsonl")) == 0
    (row,) = read_rows(tmp_path / "pairs.jsonl")
    assert row == flip_row(None, flips([failure()], [simulation(2, won=True), simulation(3, won=False)])[0])
    assert (row["task"], row["state"], row["next_state"], row["kind"]) == ("7", 2, 3, "flip")
    said = [message["content"] for message in row["prompt"]]
    assert said == ["page 0", "click[a]", "page a", "click[b]", "page b"] and row["prompt"][-1]["role"] == "user"
    assert row["chosen"] == [{"role": "assistant", "content": "click[z]"}]
    assert row["rejected"] == [{"role": "assistant", "content": "click[c]"}]


def test_etos_pairs_share_their_first_turns_in_the_prompt(tokenizer) -> None:
    won, lost = simulation(2, won=True), failure()
    row = trajectory_pair(None, won, lost)
    assert row["state"] == 2 and len(row["prompt"]) == 5
    assert [each["content"] for each in row["chosen"]] == ["click[z]", "page z", "click[end]"]
    assert [each["content"] for each in row["rejected"]][:3] == ["click[c]", "page c", "click[d]"]
    chat = react_chat(Chat.of(tokenizer), "webshop")
    row = trajectory_pair(chat, won, lost)
    assert len(row["prompt"]) == 7 and row["prompt"][1]["content"] == "OK"
    assert row["chosen"][0]["content"] == "Action: click[z]"
    with pytest.raises(ValueError, match="begin with different pages"):
        trajectory_pair(None, won, replace(lost, prompt="another"))


def test_a_run_exports_its_etos_pairs(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(run.parent, copy, symlinks=True)
    record = Run.open(copy, "webshop", "x", 0, read_json(run / "config.json")["config"], {"hashes": {}})
    inputs = read_json(run / "sft-0" / "stage.json")["key"]["inputs"]
    sides = [simulation(2, won=True), failure()]
    record.stage("dpo-0", {"inputs": inputs}, lambda path: save_trajectories(sides, path / "pairs.jsonl") and None)
    assert export(copy / run.name, "--format", "pairs", "--out", str(tmp_path / "pairs.jsonl")) == 0
    assert [row["kind"] for row in read_rows(tmp_path / "pairs.jsonl")] == ["eto"]


# Import


def conversation(item: Trajectory) -> list[dict[str, Any]]:
    pages = [item.state(index) for index in range(len(item) + 1)]
    said = [{"role": "system", "content": "You shop."}, {"role": "user", "content": pages[0]}]
    for turn, page in zip(item.turns, pages[1:], strict=True):
        said += [{"role": "assistant", "content": turn.action}, {"role": "user", "content": page}]
    return said


def imported(path: Path, form: str, *words: str) -> int:
    return main(["import", str(path), "--format", form, "--out", str(path.with_name("out.jsonl")), *words])


def test_imported_messages_are_replayed_and_their_rewards_found(tmp_path: Path, monkeypatch, shop, capsys) -> None:
    monkeypatch.setattr("eef.commands.exchange.environment", lambda name, options: shop)
    items = expert_trajectories(shop, "strong", shop.tasks("train")[:6], 0)
    rows = [{"task": item.task, "messages": conversation(item)} for item in items]
    rows.append({"task": "unknown", "messages": conversation(items[0])})
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert imported(path, "messages") == 2
    assert "line 1: there is no reward: name the environment with --env" in capsys.readouterr().err
    assert imported(path, "messages", "--env", "webshop") == 0
    printed = capsys.readouterr().out
    assert "6 trajectories checked, 6 replayed without a difference" in printed
    assert "1 are on other subtasks and are ignored" in printed
    back = load(tmp_path / "out.jsonl")
    assert [(t.task, t.turns, t.reward, t.won, t.outcome) for t in back] == [
        (t.task, t.turns, t.reward, t.won, t.outcome) for t in items
    ]
    assert {row["version"] for row in read_rows(tmp_path / "out.jsonl")} == {1}

    rows[1]["messages"][3]["content"] += "!"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out.jsonl").unlink()
    assert imported(path, "messages", "--env", "webshop") == 1
    printed = capsys.readouterr().out
    assert (
        "1 diverges from the environment" in printed and "line 2, task" in printed and "nothing was written" in printed
    )
    assert not (tmp_path / "out.jsonl").exists()
    assert imported(path, "messages", "--env", "webshop", "--drop") == 0
    assert [item.task for item in load(tmp_path / "out.jsonl")] == [item.task for item in items if item is not items[1]]


def standard(thought: str = "I search.") -> dict[str, Any]:
    """A trajectory in the Agent Data Protocol's own schema."""

    def page(text: str) -> dict[str, Any]:
        return {"class_": "text_observation", "content": text, "source": "user"}

    return {
        "schema_version": "1.3.1",
        "id": "shop_12",
        "content": [
            page("You are shopping."),
            {"class_": "message_action", "content": "OK", "description": ""},
            page("first"),
            {"class_": "api_action", "function": "search", "kwargs": {"keywords": "hat"}, "description": thought},
            page("Observation: results"),
            {"class_": "message_action", "content": "<finish> Thought: good.\nAction: click[buy now] </finish>"},
        ],
        "details": {},
    }


def atif() -> dict[str, Any]:
    """The same trajectory as ATIF, in which the protocol's newer files are."""
    call = {"tool_call_id": "call_1", "function_name": "search", "arguments": {"keywords": "hat"}}
    result = {"source_call_id": "call_1", "content": "Observation: results"}
    steps = [
        {"step_id": 1, "source": "user", "message": "You are shopping."},
        {"step_id": 2, "source": "agent", "message": "OK"},
        {"step_id": 3, "source": "user", "message": "first"},
        {"source": "agent", "message": "I search.", "tool_calls": [call], "observation": {"results": [result]}},
        {"source": "agent", "message": "Thought: good.\nAction: click[buy now]"},
    ]
    return {"schema_version": "ATIF-v1.7", "session_id": "shop_12", "steps": steps, "final_metrics": {"reward": 1.0}}


def test_the_agent_data_protocol_becomes_trajectories(tmp_path: Path, capsys) -> None:
    turns = (
        Turn("search[hat]", "results", "Thought: I search.\nAction: search[hat]"),
        Turn("click[buy now]", "", "Thought: good.\nAction: click[buy now]"),
    )
    path = tmp_path / "theirs.json"
    for row, words in ((standard(), ["--reward", "1"]), (atif(), [])):
        path.write_text(json.dumps([row]))
        assert imported(path, "adp", *words) == 0
        assert "1 trajectories, 1 won; not replayed" in capsys.readouterr().out
        (item,) = load(tmp_path / "out.jsonl")
        assert (item.task, item.prompt, item.turns, item.reward, item.won) == ("12", "first", turns, 1.0, True)
    closing = {"class_": "message_action", "content": "<finish> </finish>", "description": "done"}
    row = standard(thought="")
    row["content"][-1:] = [{"class_": "text_observation", "content": "well done", "source": "user"}, closing]
    row["content"].insert(-2, {**row["content"][3], "function": "click", "kwargs": {"bid": "buy now"}})
    path.write_text(json.dumps([{**row, "content": [*row["content"][:5], *row["content"][5:]]}]))
    assert imported(path, "adp", "--reward", "0") == 0
    assert load(tmp_path / "out.jsonl")[0].actions == ["search[hat]", "click[buy now]"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_": "web_observation", "html": "<p>"}, "item 4 is a 'web_observation'"),
        ({"class_": "api_action", "function": "type", "kwargs": {"bid": "1", "text": "a"}}, "only a call with one"),
        ({"class_": "text_observation", "content": "again", "source": "user"}, "turns must alternate"),
        ("again", "item 4 must be a JSON object, not 'again'"),
        ({"class_": "message_action", "content": None}, "the message of item 4 must be a text, not None"),
        (
            {"class_": "api_action", "function": "a", "kwargs": {"b": "c"}, "description": 5},
            "the thought of item 4 must",
        ),
    ],
)
def test_what_is_no_turn_of_texts_is_refused(tmp_path: Path, change: Any, message: str, capsys) -> None:
    row = standard()
    row["content"][3] = change
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps([standard(), row]))
    assert imported(path, "adp", "--reward", "1") == 2
    error = capsys.readouterr().err
    assert message in error and "theirs.json, item 2" in error


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("steps", ["x"], "step 1 must be a JSON object, not 'x'"),
        ("steps", [{"source": "agent", "tool_calls": ["x"]}], "the call of step 1 must be a JSON object"),
        ("steps", [{"source": "agent", "observation": "x"}], "'observation' of step 1 must be a JSON object"),
        ("steps", [{"source": "agent", "observation": {"results": ["x"]}}], "the result of step 1 must be"),
        ("final_metrics", 3, "'final_metrics' must be a JSON object, not 3"),
    ],
)
def test_malformed_steps_are_refused(tmp_path: Path, field: str, value: Any, message: str, capsys) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps([{**atif(), field: value}]))
    assert imported(path, "adp") == 2
    assert message in capsys.readouterr().err


def test_masks_of_others_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"

    def read(*masks: Any, key: str | None = None, **fields: Any) -> Trajectory:
        messages = [{"role": "user", "content": "page"}]
        for mask in masks:
            messages += [{"role": "assistant", "content": "look", **mask}, {"role": "user", "content": "page"}]
        path.write_text(json.dumps({"task": "1", "reward": 0, "messages": messages, **fields}))
        return incoming.read(path, "messages", key)[0][1]

    assert [turn.learn for turn in read({"loss_mask": 0}, {"loss_mask": 1}, {}).turns] == [False, True, True]
    assert [turn.learn for turn in read({"mine": False}, key="mine").turns] == [False]
    with pytest.raises(TrajectoryError, match="line 1: the messages have the masks train, loss: choose one"):
        read({"train": True, "loss": False})
    with pytest.raises(TrajectoryError, match="message 2: 'loss' must be true, false, 0 or 1, not 2"):
        read({"loss": 2})
    with pytest.raises(TrajectoryError, match="there is no 'task'"):
        read({}, task=None)
    with pytest.raises(TrajectoryError, match="'opening' must be the number of messages before the first page"):
        read({}, opening=9)


# Files for datasets and TRL, where these libraries are installed


def test_parquet_without_pyarrow_says_what_to_install(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert export(run, "--format", "trl", "--out", str(tmp_path / "rows.parquet")) == 2
    assert "parquet needs pyarrow: pip install -e '.[export]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parquet_holds_the_same_rows_and_reads_back(run: Path, tmp_path: Path, capsys) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra 'export')")
    for form in ("trl", "messages", "sharegpt", "pairs"):
        for suffix in (".jsonl", ".parquet"):
            assert export(run, "--format", form, "--out", str(tmp_path / f"{form}{suffix}")) == 0
        rows = parquet.read_table(tmp_path / f"{form}.parquet").to_pylist()
        assert rows == read_rows(tmp_path / f"{form}.jsonl")
    assert imported(tmp_path / "messages.parquet", "messages") == 0


@pytest.mark.slow
def test_datasets_loads_every_file(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    for form in ("trl", "messages", "sharegpt", "pairs"):
        for suffix, builder in ((".jsonl", "json"), (".parquet", "parquet")):
            path = tmp_path / f"{form}{suffix}"
            assert export(run, "--format", form, "--out", str(path)) == 0
            rows = datasets.load_dataset(builder, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
            assert rows.to_list() == read_rows(tmp_path / f"{form}.jsonl")


@pytest.mark.slow
def test_trl_computes_the_losses_of_our_sft() -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    script = Path(__file__).parents[2] / "experiments" / "check_export.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and "largest difference" in done.stdout, done.stdout + done.stderr


def test_an_import_of_which_nothing_is_left_says_so(tmp_path: Path, capsys) -> None:
    messages = [{"role": "user", "content": "another page"}, {"role": "assistant", "content": "click[x]"}]
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps({"task": "3", "reward": 0, "messages": messages}))
    assert imported(path, "messages", "--env", "webshop", "--drop") == 1
    assert capsys.readouterr().out.endswith("nothing was written\n") and not (tmp_path / "out.jsonl").exists()
