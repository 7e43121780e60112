"""``eef evaluate``: who can be evaluated, equal bytes, resuming, the card, comparisons, the model card."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from eef import experts
from eef.agents import journal, simulation
from eef.agents.chat import Dialogue
from eef.agents.policy import load_chat
from eef.cli import main
from eef.envs.webshop import WebShop
from eef.evaluation import model_card, subject
from eef.evaluation.card import departures
from eef.evaluation.compare import compare, find_evaluation
from eef.evaluation.evaluate import evaluate, evaluations
from eef.evaluation.protocol import pin, read_protocol
from eef.evaluation.subject import read_subject
from eef.experiment import experiment
from eef.files import PACKAGE, RunError, read_json, write_json
from eef.models.pretrain import make_model, save
from eef.settings import Settings
from eef.tracking.keys import model_key
from eef.trajectory import Trajectory, load

SMALL = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}  # as in conftest


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("EEF_SWEEP", "EEF_RUN_IDS", "EEF_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    options = {"aliases": "webshop", "constrained_decoding": True}
    return str(save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, options))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A protocol of 10 subtasks of a small generated shop."""
    folder = tmp_path_factory.mktemp("protocols")
    values = yaml.safe_load(read_protocol("webshop-embedded-v1").path.read_text())
    values |= {"options": {"catalogue": SMALL, "max_steps": 6, "nouns": "letters"}, "hashes": {}}
    values |= {"subtasks": 10}
    (folder / "open.yaml").write_text(yaml.safe_dump(values))
    env = WebShop(catalogue=SMALL, max_steps=6, nouns="letters")
    return str(pin(read_protocol(str(folder / "open.yaml")), env, folder / "tiny-v1.yaml"))


@pytest.fixture(scope="module")
def whole(base: str, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of ``base`` without an interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        return evaluate(base, tiny, {"slots": 10}, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained and tested an adapter of ``base``."""
    root = tmp_path_factory.mktemp("runs")
    settings = Settings(model=base, epochs=1, lora_r=2, max_new_tokens=33)
    env = WebShop(catalogue=SMALL, max_steps=6)
    row = experiment("sft_pos", env, settings, 0, train_tasks=20, test_tasks=2, root=root, wandb="disabled")
    return root / row["run_id"]


def test_equal_evaluations_have_equal_bytes_and_a_card(base: str, tiny: str, whole: Path, tmp_path: Path) -> None:
    one, two = evaluate(base, tiny, {"slots": 3}, tmp_path), whole
    assert one.parent == evaluations(tmp_path)
    for name in ("card.json", "subtasks.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    card = read_json(one / "card.json")
    rates, cost, episodes = card["rates"], card["cost"], load(one / "test" / "trajectories.jsonl")
    assert rates["wins"] == sum(e.won for e in episodes) and rates["rated"] == card["subtasks"] == 10
    assert rates["win_low"] <= rates["win_rate"] <= rates["win_high"] and "training seeds" in rates["covers"]
    assert cost["steps"] == sum(map(len, episodes)) and cost["sampled_tokens"] == sum(
        e.info["tokens"] for e in episodes
    )
    assert cost["read_tokens"] > 20 * 10 and card["departures"] == {} and card["acting"]["instructions"] == ""
    assert card["overlap"]["goal"] == {"shared": 0, "of": 10} and card["protocol"]["hash"] == read_protocol(tiny).hash
    assert not any(str(tmp_path) in text for text in (json.dumps(card), (one / "card.md").read_text()))
    assert "seconds" not in json.dumps(card) and " seconds\n" in (one / "card.md").read_text()
    assert "Partial" not in (one / "card.md").read_text() and (one / "browser.html").is_file()
    before = (one / "card.json").stat().st_mtime_ns, (one / "card.json").read_bytes()
    assert evaluate(base, tiny, {"slots": 7}, tmp_path) == one, "the same evaluation is found again"
    assert (one / "card.json").read_bytes() == before[1]


def test_read_tokens_are_those_that_the_policy_was_given(
    base: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encode, simulate = Dialogue.encode_observation, simulation.simulate

    def counted(dialogue: Dialogue, observation: str) -> list[int]:
        ids = encode(dialogue, observation)
        counts.append(len(ids))
        return ids

    def play(*arguments: Any, **more: Any) -> list[Trajectory]:
        with monkeypatch.context() as patch:
            patch.setattr(Dialogue, "encode_observation", counted)
            return simulate(*arguments, **more)

    monkeypatch.setattr(simulation, "simulate", play)
    evaluation = evaluate(base, tiny, {}, tmp_path, subtasks=3)
    assert sum(counts) == read_json(evaluation / "card.json")["cost"]["read_tokens"] > 0


def interrupted(what: str, tiny: str, options: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of finished episodes of an evaluation that was interrupted after four of them."""
    append = journal.Journal.append

    def stop(self: journal.Journal, number: int, trajectory: Trajectory) -> None:
        if len(self.episodes) == 4:
            raise KeyboardInterrupt
        append(self, number, trajectory)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(what, tiny, options, root)
    (file,) = evaluations(root).glob("stages/.test-*.work/episodes.jsonl")
    assert len(file.read_text().splitlines()) == 4
    return file


def test_an_interrupted_evaluation_resumes_after_its_finished_episodes(
    base: str, tiny: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = interrupted(base, tiny, {"slots": 4}, tmp_path / "cut", monkeypatch)
    with open(file, "a") as out:
        out.write('{"number": 9, "traj')  # the line that a killed process was writing
    played: list[int] = []
    simulate = simulation.simulate
    monkeypatch.setattr(
        simulation, "simulate", lambda p, e, starts, **o: played.append(len(starts)) or simulate(p, e, starts, **o)
    )
    resumed = evaluate(base, tiny, {"slots": 4}, tmp_path / "cut")
    assert played == [6], "the four finished episodes are not played again"
    for name in ("card.json", "subtasks.csv", "test/trajectories.jsonl"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert not file.exists()


@pytest.mark.parametrize("name", ["weak", "perfect"])
def test_an_interrupted_evaluation_of_a_scripted_expert_resumes(
    name: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = interrupted(f"expert:{name}", tiny, {}, tmp_path / "cut", monkeypatch)
    played, play = list[str](), experts.play_scripted
    with monkeypatch.context() as patch:
        patch.setattr(experts, "play_scripted", lambda *args: played.append(args[2]) or play(*args))
        resumed = evaluate(f"expert:{name}", tiny, {}, tmp_path / "cut")
    whole = evaluate(f"expert:{name}", tiny, {}, tmp_path / "whole")
    assert played == [each.task for each in load(whole / "test" / "trajectories.jsonl")][4:]
    for table in ("card.json", "subtasks.csv", "test/trajectories.jsonl"):
        assert (resumed / table).read_bytes() == (whole / table).read_bytes()
    assert not file.exists()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(tiny: str, tmp_path: Path) -> None:
    def start(root: str) -> subprocess.Popen[bytes]:
        words = ["evaluate", "embedded", "--protocol", tiny, "-p", "slots=1", "--root", str(tmp_path / root)]
        return subprocess.Popen([sys.executable, "-m", "eef", *words], cwd=PACKAGE.parent, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    process = start("cut")
    while not (files := [p for p in tmp_path.glob("cut/evaluations/stages/.test-*.work/*.jsonl") if p.stat().st_size]):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(files[0].read_text().splitlines()) < 10
    assert start("cut").wait() == 0
    one, two = (next((tmp_path / root / "evaluations").glob("*__*/card.json")) for root in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes() and one.parent.name == two.parent.name


def test_a_run_is_evaluated_with_its_adapter_and_its_settings(run: Path, base: str, tiny: str, tmp_path: Path) -> None:
    evaluation = evaluate(run.name, tiny, {}, run.parent, subtasks=3)
    card = read_json(evaluation / "card.json")
    assert card["subject"]["kind"] == "run" and card["departures"] == {"max_new_tokens": [64, 33]}
    assert (
        "**departs from the protocol:** max_new_tokens is 33, the protocol has 64"
        in (evaluation / "card.md").read_text()
    )
    assert "Partial: 3 of the 10" in (evaluation / "card.md").read_text()
    adapter = read_json(evaluate(str(subject.tested_adapter(run)), tiny, {}, tmp_path, subtasks=3) / "card.json")
    assert adapter["subject"]["kind"] == "adapter" and adapter["departures"] == {}
    assert adapter["subject"]["adapter"] == card["subject"]["adapter"] and adapter["rates"] == card["rates"]
    played = read_json(evaluation / "test" / "stage.json")["key"]["inputs"]["adapter"]
    assert played == subject.tested_adapter(run).name, "the adapter played, not the base model"
    plain = read_json(evaluate(base, tiny, {}, tmp_path, subtasks=3) / "card.json")
    assert "adapter" not in plain["subject"]


def test_a_scripted_expert_and_a_comparison(
    base: str, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert = evaluate("expert:perfect", tiny, {}, tmp_path)
    card = read_json(expert / "card.json")
    wins, noisy = card["rates"]["wins"], read_json(evaluate("expert:weak", tiny, {}, tmp_path) / "card.json")
    assert wins > noisy["rates"]["wins"] and card["cost"]["sampled_tokens"] == 0 and card["acting"] is None
    model = evaluate(base, tiny, {}, tmp_path, subtasks=8)
    capsys.readouterr()
    assert main(["evaluate", "--compare", "perfect", str(model / "card.json"), "--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "a: expert perfect\nb: model tiny" in printed and "partial: both played 8 of the protocol's 10" in printed
    episodes = load(expert / "test" / "trajectories.jsonl")[:8]
    lost = [e.won for e in load(model / "test" / "trajectories.jsonl")]
    only = sum(a.won and not b for a, b in zip(episodes, lost, strict=True))
    assert f"only by a {only}" in printed and "8 pairs" in printed and "other training seeds" in printed
    swapped = list(compare(model, expert))
    assert any(line.startswith("win rate: ") and "a minus b: -" in line for line in swapped)


def test_means_are_over_the_pairs_that_both_sides_rated(tmp_path: Path) -> None:
    card = {"subject": {"kind": "model", "name": "m"}, "protocol": {"name": "p", "hash": "h", "subtasks": 4}}
    header = "task,won,reward,error\n"
    for name, rows in (
        ("a", "1,True,1.0,False\nNA,True,0.5,False\n3,False,0.0,True\n4,False,0.0,False\n"),
        ("b", "1,True,1.0,False\nNA,False,0.0,False\n3,True,1.0,False\n4,False,0.0,False\n"),
    ):
        write_json(tmp_path / name / "card.json", {**card, "hashes": {}, "departures": {}})
        (tmp_path / name / "subtasks.csv").write_text(header + rows)
    lines = list(compare(tmp_path / "a", tmp_path / "b"))
    assert any(line.startswith("win rate: a 66.7, b 33.3; a minus b: +33.3 points") for line in lines)
    assert any(line.startswith("mean reward: a 0.500, b 0.333; a minus b: +0.167") for line in lines)
    assert "3 pairs, 1 excluded for errors" in lines[1] and "partial" not in "".join(lines)
    assert lines[-1] == "won by both 1, only by a 1, only by b 0, by neither 1"
    same = list(compare(tmp_path / "a", tmp_path / "a"))
    assert "a minus b: +0.0 points, no interval, since all differences are equal, 3 pairs" in same[1]
    assert "nan" not in "".join(same)


def test_evaluations_that_cannot_be_paired_are_refused(tiny: str, tmp_path: Path) -> None:
    a = evaluate("expert:perfect", tiny, {}, tmp_path)
    text = Path(tiny).read_text()
    (tmp_path / "other-v1.yaml").write_text(
        text.replace("name: tiny-v1", "name: other-v1").replace("seed: 0", "seed: 1")
    )
    b = evaluate("expert:perfect", str(tmp_path / "other-v1.yaml"), {}, tmp_path)
    with pytest.raises(RunError, match="evaluate both by one protocol"):
        list(compare(a, b))
    with pytest.raises(
        RunError, match="no runs in .* contain 'nothing': the runs are .*`eef runs --root .*evaluations`"
    ):
        find_evaluation(tmp_path, "nothing")
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copyfile(a / "card.json", shared / "card.json")
    with pytest.raises(RunError, match=r"has card.json, but not subtasks.csv, which pairs the subtasks: copy both"):
        find_evaluation(tmp_path, str(shared / "card.json"))
    shutil.copyfile(a / "subtasks.csv", shared / "subtasks.csv")
    assert any("a minus b: +0.0 points" in line for line in compare(a, find_evaluation(tmp_path, str(shared))))
    (a / "card.json").unlink()
    with pytest.raises(RunError, match="not a finished evaluation"):
        find_evaluation(tmp_path, str(a))


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("expert:best", {}, "no scripted expert 'best' of webshop: use perfect, strong, weak"),
        ("openai:gpt", {}, "write openai:MODEL@URL"),
        ("http://localhost:8000", {}, "add -p model=NAME"),
        ("embedded", {"temprature": 1}, "-p temprature: there is no such option here"),
        ("embedded", {"model": "x"}, "embedded is a model itself"),
        ("no/such/folder", {}, "no model 'no/such/folder'"),
        ("webshop__rft__s0__00000000", {}, "no run 'webshop__rft__s0__00000000': .* contains no runs; --root names"),
        ("expert:weak", {"noise": 1}, "-p noise: there is no such option here; there is none to set"),
        ("openai:m@http://h/v1", {"concurrency": "abc"}, "-p concurrency='abc' must be a positive integer"),
        ("openai:m@http://h/v1", {"concurrency": True}, "-p concurrency=True must be a positive integer"),
        ("openai:m@http://h/v1", {"body": 3}, "-p body=3 must be a mapping, such as"),
        ("openai:m@http://h/v1", {"retries": 1.5}, "-p retries=1.5 must be an integer of at least 0"),
        ("openai:m@http://h/v1", {"one_shot": "no"}, "-p one_shot='no' must be true or false"),
        ("openai:m@http://h/v1", {"rpm": "1"}, "-p rpm='1' must be a positive number"),
        ("openai:m@http://h/v1", {"timeout": 0}, "-p timeout=0 must be a positive number"),
        ("openai:m@http://h:x/v1", {}, "--base-url must be an address such as"),
    ],
)
def test_who_is_evaluated_is_checked(
    what: str, options: dict, message: str, tiny: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    protocol, env = read_protocol(tiny), WebShop(catalogue=SMALL, max_steps=6)
    with pytest.raises((ValueError, RunError, OSError), match=message):
        read_subject(what, protocol, env, options, tmp_path, "OPENAI_API_KEY")


def recorded(folder: Path, config: dict[str, Any], inputs: dict[str, Any]) -> Path:
    """The record of a tested run: its configuration, and the inputs of its test."""
    run = folder / "webshop__rft__s0__01234567"
    (run / "test").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"run_id": run.name, "config": config}))
    (run / "result.json").write_text("{}")
    (run / "test" / "stage.json").write_text(json.dumps({"name": "test", "key": {"inputs": inputs}}))
    return run


def test_settings_of_a_run_under_former_names_are_used(base: str, tiny: str, tmp_path: Path) -> None:
    protocol, env = read_protocol(tiny), WebShop(catalogue=SMALL, max_steps=6)
    for name in ("constrained_decoding", "limited"):
        run = recorded(tmp_path / name, {"model": base, name: False}, {"adapter": None})
        read = read_subject(str(run), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
        assert read.settings.constrained_decoding is False and read.acting.constrained_decoding is False
    run = recorded(tmp_path / "both", {"model": base, "limited": False, "constrained_decoding": True}, {})
    with pytest.raises(ValueError, match=f"{run.name}/config.json: 'limited' is the former name"):
        read_subject(str(run), protocol, env, {}, tmp_path, "OPENAI_API_KEY")


@pytest.mark.parametrize("trained", ["Shop.", ""])
def test_a_run_keeps_the_instructions_that_it_was_trained_with(
    trained: str, base: str, tiny: str, tmp_path: Path
) -> None:
    """Those of the ``chat.json`` of its model. On a base model the protocol's are used."""
    model, env = tmp_path / "model", WebShop(catalogue=SMALL, max_steps=6)
    shutil.copytree(base, model)
    (model / "chat.json").write_text(json.dumps({"constrained_decoding": True, "instructions": trained}))
    protocol = read_protocol(tiny)
    wanted = protocol.acting.instructions
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    run = recorded(tmp_path, {"model": str(model)}, {"adapter": None})
    for what, instructions in ((run, trained), (adapter, trained), (model, wanted)):
        read = read_subject(str(what), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
        assert read.acting.instructions == instructions
        departs = {"instructions": [wanted, instructions]} if instructions != wanted else {}
        assert departures(protocol, read) == departs


CHAT = {"aliases": "webshop", "constrained_decoding": True}  # of ``base``


def with_model(run: Path, model: Path, folder: Path) -> Path:
    """A copy of a run, on another machine where its model is the folder ``model``."""
    copied = shutil.copytree(run, folder / "runs" / run.name, symlinks=True)
    (copied.parent / "stages").symlink_to(run.parent / "stages")
    origin = read_json(copied / "config.json")
    write_json(copied / "config.json", {**origin, "config": {**origin["config"], "model": str(model)}})
    return copied


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("chat.json", {**CHAT, "instructions": "Win."}, "test was made with the chat .* its chat.json, tokenizer or"),
        ("chat.json", {**CHAT, "constrained_decoding": False}, "constrained_decoding in its chat.json has changed"),
        ("model.safetensors", "other weights", "a file, such as its weights or chat.json, has changed"),
    ],
)
def test_a_run_whose_model_has_changed_is_not_evaluated(
    file: str, text: Any, message: str, run: Path, base: str, tiny: str, tmp_path: Path
) -> None:
    protocol, env = read_protocol(tiny), WebShop(catalogue=SMALL, max_steps=6)
    model = shutil.copytree(base, tmp_path / "model")
    moved = with_model(run, model, tmp_path)
    read = read_subject(str(moved), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
    assert read.settings.model == str(model) and read.acting.constrained_decoding is True
    (model / file).write_text(json.dumps(text))
    with pytest.raises(RunError, match=f"{message}.*; restore the original files, or name a folder .* by -p model="):
        read_subject(str(moved), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
    with pytest.raises(RunError, match=message):
        read_subject(str(run), protocol, env, {"model": str(model)}, tmp_path, "OPENAI_API_KEY")
    same = read_subject(str(moved), protocol, env, {"model": base}, tmp_path, "OPENAI_API_KEY")
    assert same.settings.model == base, "-p model names the original files"


def test_a_run_without_records_of_its_model_and_one_of_the_hub(
    run: Path, base: str, tiny: str, tmp_path: Path, capsys
) -> None:
    """Without records there is a warning; a commit of the hub is not compared with a folder, and decoding is kept."""
    protocol, env = read_protocol(tiny), WebShop(catalogue=SMALL, max_steps=6)
    old = recorded(tmp_path, {"model": base}, {"adapter": None})
    read_subject(str(old), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
    assert f"warning: {old.name} has no record of its chat and its model's files" in capsys.readouterr().out
    hub = with_model(run, Path(base), tmp_path / "hub")
    stage = read_json(hub / "test" / "stage.json")
    stage["key"]["inputs"]["model"]["model"] = "me/tiny@0123"
    stage["key"]["inputs"]["acting"]["constrained_decoding"] = False
    (hub / "test").unlink()
    write_json(hub / "test" / "stage.json", {**stage})
    read = read_subject(str(hub), protocol, env, {"model": base}, tmp_path, "OPENAI_API_KEY")
    assert read.acting.constrained_decoding is False and "warning" not in capsys.readouterr().out


def test_the_one_shot_example_is_of_no_subtask_that_is_played(
    base: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an evaluation and in a run, also where a split of one's own has subtasks of the test in ``eval``."""
    excluded: list[set[str]] = []

    def stop(*arguments: Any) -> None:
        excluded.append(set(arguments[-1]))
        raise KeyboardInterrupt

    monkeypatch.setattr("eef.lab.one_shot_example", stop)
    base = str(shutil.copytree(base, tmp_path / "model"))
    Path(base, "chat.json").write_text('{"aliases": ""}')  # a language model
    changes = {"prompt": "react", "one_shot": True, "constrained_decoding": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate(base, tiny, changes, tmp_path, subtasks=2)
    env = WebShop(catalogue=SMALL, max_steps=6, nouns="letters")
    assert excluded.pop() >= {*env.tasks("test")[:10]}
    settings = Settings(model=base, **changes)
    with pytest.raises(KeyboardInterrupt):
        experiment("sft_pos", env, settings, 0, train_tasks=3, test_tasks=4, root=tmp_path, wandb="disabled")
    assert excluded == [{*env.tasks("train")[:3], *env.tasks("test")[:4]}]


def test_a_run_that_tested_the_base_model_is_evaluated_with_it(base: str, tiny: str, tmp_path: Path, capsys) -> None:
    protocol, env = read_protocol(tiny), WebShop(catalogue=SMALL, max_steps=6)
    run = recorded(tmp_path, {"model": base}, {"adapter": None})
    read = read_subject(str(run), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
    assert (read.kind, read.adapter) == ("run", None) and "adapter" not in read.identity
    assert read.identity == read_subject(base, protocol, env, {}, tmp_path, "OPENAI_API_KEY").identity
    assert main(["card", run.name, "--root", str(tmp_path)]) == 2
    assert "tested the base model, so there is no adapter to share" in capsys.readouterr().err
    played = recorded(tmp_path / "expert", {"model": base}, {"tasks": []})
    with pytest.raises(RunError, match="an endpoint or a scripted expert played its test episodes"):
        read_subject(str(played), protocol, env, {}, tmp_path, "OPENAI_API_KEY")
    evaluation = recorded(tmp_path / "e", {"protocol": {}, "subject": {}}, {"adapter": None})
    with pytest.raises(RunError, match="is an evaluation, not a run"):
        read_subject(str(evaluation), protocol, env, {}, tmp_path, "OPENAI_API_KEY")


@pytest.mark.parametrize(
    ("sweep", "group", "notebook", "command"),
    [
        ("my__sweep", "", "my__sweep__eef-m1-s0__01234567", "eef sweep my__sweep --only eef-m1-s0 "),
        ("demo", "demo", "demo__my__env-m1-s0__01234567", "eef sweep demo --only my__env-m1-s0 "),
        ("a__b", "a__b", "a__b__my__env-s0__01234567", "eef sweep a__b --only my__env-s0 "),
        ("demo", "", "demo__my__env-m1-s0__01234567", None),
        ("demo", "", "notes", None),
    ],
)
def test_the_model_card_of_names_with_two_underscores(
    sweep: str, group: str, notebook: str, command: str | None, run: Path, tmp_path: Path, monkeypatch
) -> None:
    copied = shutil.copytree(run, tmp_path / "runs" / run.name, symlinks=True)
    (copied.parent / "stages").symlink_to(run.parent / "stages")
    origin = read_json(copied / "config.json")
    (copied / "config.json").write_text(json.dumps({**origin, "group": group}))
    (copied / "notebook.ipynb").unlink(missing_ok=True)
    (copied / "notebook.ipynb").symlink_to(f"../notebooks/{notebook}.ipynb")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / f"{sweep}.yaml").touch()
    monkeypatch.setattr(model_card, "repo_root", lambda: tmp_path)
    text = (model_card.write_model_card(copied, copied.parent, tmp_path / "hub") / "README.md").read_text()
    assert command in text if command else "eef sweep" not in text


def test_the_model_card_has_results_and_names_no_folder(run: Path, tiny: str, tmp_path: Path) -> None:
    evaluated = evaluate(run.name, tiny, {}, run.parent)
    (run / "notebook.ipynb").symlink_to("../notebooks/demo__eef-m1-s0__01234567.ipynb")
    assert main(["card", run.name, "--root", str(run.parent), "--out", str(tmp_path / "hub")]) == 0
    assert {p.name for p in (tmp_path / "hub").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat.json",
    }
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("tiny", "peft")
    named = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert named["tiny-v1", "mean_reward"] == read_json(evaluated / "card.json")["rates"]["mean_reward"]
    assert ("the run's own test (webshop)", "mean_reward") in named
    text = (tmp_path / "hub" / "README.md").read_text() + (tmp_path / "hub" / "adapter_config.json").read_text()
    assert "eef sweep demo --only eef-m1-s0 " in text
    assert "Departs from the protocol: max_new_tokens" in text
    assert "\neef evaluate FOLDER --protocol tiny-v1.yaml -p max_new_tokens=33 -p model=tiny\n" in text
    assert str(run.parent) not in text and "/models/" not in text
    (tmp_path / "hub" / "notes.txt").write_text("mine")
    assert main(["card", run.name, "--root", str(run.parent), "--out", str(tmp_path / "hub")]) == 2


def on_the_card(folder: Path, start: str) -> list[str]:
    """The words of the command on a model card that begins with ``start``."""
    lines = (folder / "README.md").read_text().splitlines()
    return shlex.split(next(line for line in lines if line.startswith(start)))


def test_a_full_model_with_its_card_is_evaluated_by_the_command_on_the_card(
    base: str, tiny: str, tmp_path: Path
) -> None:
    settings = Settings(model=base, tune="full", epochs=1, max_new_tokens=33)
    env, runs, hub = WebShop(catalogue=SMALL, max_steps=6), tmp_path / "runs", tmp_path / "hub"
    row = experiment("sft_pos", env, settings, 0, train_tasks=5, test_tasks=2, root=runs, wandb="disabled")
    own = read_json(evaluate(row["run_id"], tiny, {}, runs) / "card.json")
    assert main(["card", row["run_id"], "--root", str(runs), "--out", str(hub)]) == 0
    assert load_chat(str(hub)).hash == load_chat(base).hash and (hub / "generation_config.json").is_file()
    assert read_json(hub / "chat.json") == {**CHAT, "instructions": ""}
    assert not any(str(tmp_path) in p.read_text() or base in p.read_text() for p in hub.glob("*[!s]") if p.is_file())
    words = on_the_card(hub, "eef evaluate FOLDER")[1:]
    words = [{"FOLDER": str(hub), "tiny-v1.yaml": tiny}.get(word, word) for word in words]
    assert main([*words, "--root", str(tmp_path / "shared")]) == 0
    (card,) = evaluations(tmp_path / "shared").glob("*__*/card.json")
    assert read_json(card)["rates"] == own["rates"] and read_json(card)["departures"] == own["departures"]
    assert main(["card", row["run_id"], "--root", str(runs), "--out", str(hub)]) == 0, "its own files are replaced"


def prompted(run: Path, base: str, folder: Path) -> Path:
    """A copy of a run whose model has instructions and, by its ``chat.json``, free decoding."""
    model = shutil.copytree(base, folder / "model")
    write_json(model / "chat.json", {**CHAT, "instructions": "Win.", "constrained_decoding": False})
    copied = with_model(run, model, folder)
    stage = read_json(copied / "test" / "stage.json")
    stage["key"]["inputs"]["chat"]["hash"] = load_chat(str(model)).hash
    stage["key"]["inputs"]["model"]["model"] = model_key(str(model))
    stage["key"]["inputs"]["acting"]["constrained_decoding"] = False
    (copied / "test").unlink()
    write_json(copied / "test" / "stage.json", stage)
    return copied


def test_the_adapter_of_a_card_is_prompted_as_in_its_run(run: Path, base: str, tiny: str, tmp_path: Path) -> None:
    copied, hub = prompted(run, base, tmp_path), tmp_path / "hub"
    assert main(["card", copied.name, "--root", str(copied.parent), "--out", str(hub)]) == 0
    text = (hub / "README.md").read_text()
    assert '- instructions: "Win."\n' in text and "- constrained_decoding: false\n" in text
    protocol, env = read_protocol(tiny), WebShop(catalogue=SMALL, max_steps=6)
    assert protocol.acting.constrained_decoding is True
    for what, options in ((copied, {}), (hub, {"model": base})):
        acting = read_subject(str(what), protocol, env, options, tmp_path, "OPENAI_API_KEY").acting
        assert (acting.instructions, acting.constrained_decoding) == ("Win.", False), what
    free = {"model": base, "constrained_decoding": True}
    assert read_subject(str(hub), protocol, env, free, tmp_path, "OPENAI_API_KEY").acting.constrained_decoding is True
    other = shutil.copytree(base, tmp_path / "other")
    write_json(other / "chat.json", {})
    with pytest.raises(ValueError, match="trained with aliases 'webshop' .*: put that chat.json into the model's"):
        read_subject(str(hub), protocol, env, {"model": str(other)}, tmp_path, "OPENAI_API_KEY")


def test_the_command_on_a_card_repeats_decoding_that_was_chosen_for_an_evaluation(
    run: Path, base: str, tiny: str, tmp_path: Path
) -> None:
    """Also where it is the protocol's, so no departure: ``chat.json`` beside the adapter has the run's own."""
    copied, hub = prompted(run, base, tmp_path), tmp_path / "hub"
    evaluate(str(subject.tested_adapter(run)), tiny, {"model": base, "constrained_decoding": True}, copied.parent)
    model_card.write_model_card(copied, copied.parent, hub)
    assert "constrained_decoding=true" in on_the_card(hub, "eef evaluate FOLDER")


def test_a_card_is_of_the_model_that_was_trained_and_names_no_path(
    run: Path, base: str, tmp_path: Path, capsys
) -> None:
    model = shutil.copytree(base, tmp_path / "model")
    copied, hub = with_model(run, model, tmp_path), tmp_path / "hub"
    origin = read_json(copied / "config.json")
    paths = {"split": "/some/folder/split.json", "simplification": "easy", "more": [{"a": "/some/folder/a"}, "b"]}
    more = {"env_options": paths, "max_steps_of": {"x": "/some/folder/x"}}
    write_json(copied / "config.json", {**origin, "config": {**origin["config"], **more}})
    command = ["card", copied.name, "--root", str(copied.parent), "--out", str(hub)]
    assert main(command) == 0
    text = (hub / "README.md").read_text()
    assert "- env_options: `{'more': ['b'], 'simplification': 'easy'}`" in text
    assert "/some/folder" not in text and "max_steps_of" not in text
    (model / "chat.json").write_text(json.dumps({**CHAT, "instructions": "Win."}))
    assert main(command) == 2 and "has changed; restore the original files" in capsys.readouterr().err
    shutil.rmtree(model)
    assert main(command) == 2 and main([*command, "--model", base]) == 0
    assert "A LoRA adapter of `model`," in (hub / "README.md").read_text(), "the last part of a path elsewhere"
