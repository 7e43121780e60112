"""Protocols: their files, the check of data and split, and what training and test share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from eef.cli import main
from eef.envs import make_env
from eef.envs.webshop import WebShop
from eef.envs.webshop.nouns import Nouns
from eef.envs.webshop.worker_splits import worker_split
from eef.evaluation.protocol import check, environment_of, hashes_of, names, overlap, pin, read_protocol, subtasks_of
from eef.files import PACKAGE

DATA = PACKAGE.parents[1] / "shared" / "webshop" / "data"
ETO = PACKAGE.parents[1] / "shared" / "eto"
SMALL = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}  # as in conftest


@pytest.mark.parametrize("name", names())
def test_each_protocol_of_the_package_is_valid_and_named_after_its_file(name: str) -> None:
    protocol = read_protocol(name)
    assert protocol.name == name and protocol.hashes["subtasks"] and protocol.about and protocol.success
    assert protocol.title and not protocol.title.endswith(".")


@pytest.mark.slow
def test_the_embedded_protocol_fits_its_environment_and_has_no_overlap() -> None:
    protocol = read_protocol("webshop-embedded-v1")
    env = environment_of(protocol, None)
    check(protocol, env)
    assert len(subtasks_of(protocol, env)) == protocol.subtasks == 500
    assert overlap(env, subtasks_of(protocol, env)) == {"goal": 0, "product": 0}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no WebShop data in {DATA}")
@pytest.mark.parametrize(
    ("name", "count", "goals", "products"),
    [("webshop-small-v1", 500, 0, 400), ("webshop-verl-agent-v1", 127, 127, 127)],
)
def test_protocols_on_webshop_data(name: str, count: int, goals: int, products: int) -> None:
    protocol = read_protocol(name)
    env = environment_of(protocol, str(DATA))
    check(protocol, env)
    assert len(subtasks_of(protocol, env)) == count
    assert overlap(env, subtasks_of(protocol, env)) == {"goal": goals, "product": products}


@pytest.mark.slow
@pytest.mark.skipif(not ETO.is_dir(), reason=f"there are no index files in {ETO}")
@pytest.mark.parametrize(
    ("name", "data", "steps"), [("scienceworld-eto-v1", ETO, 120), ("scienceworld-short-v1", None, 12)]
)
def test_protocols_of_scienceworld(name: str, data: Path | None, steps: int) -> None:
    protocol = read_protocol(name)
    env = environment_of(protocol, str(data) if data else None)
    try:
        check(protocol, env)
        assert len(subtasks_of(protocol, env)) == protocol.subtasks and env.max_steps == steps
        assert overlap(env, subtasks_of(protocol, env)) == {"subtask": 0}
    finally:
        env.close()  # type: ignore[attr-defined]


def test_other_data_stop_with_a_message_that_names_what_differs(tmp_path: Path) -> None:
    protocol = read_protocol("webshop-embedded-v1")
    env = WebShop(catalogue=SMALL, nouns="letters", max_steps=15)
    with pytest.raises(ValueError, match=r"not those of the protocol webshop-embedded-v1: catalogue is \w+, not abb"):
        check(protocol, env)
    own = read_protocol(str(pin(protocol, env, tmp_path / "mine.yaml")))
    assert (own.name, own.subtasks) == ("mine", 20) and own.hashes == hashes_of(own, env)
    assert own.title == "Other data by the rules of webshop-embedded-v1" and "500" not in own.about
    check(own, env)
    with pytest.raises(ValueError, match="the file exists, and a protocol never changes"):
        pin(protocol, env, tmp_path / "mine.yaml")
    for name in ("mine", "mine-v1.2", "mine.json"):
        with pytest.raises(ValueError, match=rf"write a name that ends in .yaml: .*/{name}.yaml"):
            pin(protocol, env, tmp_path / name)
        assert not (tmp_path / name).exists()
    assert read_protocol(str(pin(protocol, env, tmp_path / "other.yml"))).name == "other"
    with pytest.raises(ValueError, match=rf"catalogue .*eef evaluate --protocol {tmp_path}/mine.yaml --pin MINE.yaml"):
        check(own, WebShop(catalogue={**SMALL, "seed": 1}, nouns="letters", max_steps=15))


def test_pin_says_how_many_subtasks_and_refuses_what_it_does_not_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(read_protocol("webshop-embedded-v1").path.read_text())
    values["options"]["catalogue"] = {**SMALL}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**values, "subtasks": 7}))
    words = ["evaluate", "--protocol", str(tmp_path / "small.yaml"), "--pin"]
    assert main([*words, str(tmp_path / "a.yaml")]) == 0
    assert capsys.readouterr().out.endswith("a.yaml, with 7 of the 20 subtasks of 'test'\n")
    assert main([*words, str(tmp_path / "b.yaml"), "--subtasks", "30"]) == 0
    assert read_protocol(str(tmp_path / "b.yaml")).subtasks == 20
    for more, wrong in ((["-p", "one_shot=true"], "-p one_shot"), (["expert:weak"], "expert:weak")):
        assert main([*words, str(tmp_path / "c.yaml"), *more]) == 2
        assert f"--pin only copies the protocol and does not use {wrong}" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "c.yaml"), "--subtasks", "0"]) == 2 and not (tmp_path / "c.yaml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("version: 1", "version: 2"), "version 2 of the format is not supported"),
        (("flaw: ", "flaws: "), "unknown field 'flaws'"),
        (("success: ", "#success: "), "success missing"),
        (("  prompt: ", "  prompts: "), "acting: unknown field 'prompts'"),
        (("subtasks: 500", "subtasks: all"), "subtasks must be of type int, not 'all'"),
        (("temperature: 0.0", "temperature: hot"), "acting: temperature must be of type float, not 'hot'"),
        (("temperature: 0.0", "temperature: -1"), "acting: max_new_tokens must be at least 1, and temperature"),
        (("one_shot: false", "one_shot: 3"), "acting: one_shot must be of type bool, not 3"),
        (('prompt: ""', "prompt: reakt"), "acting: prompt must be empty or 'react', not 'reakt'"),
        (("hashes:\n", "hashes:\n  number: 17\n"), "hashes: number must be text, not 17: put it in quotes"),
    ],
)
def test_an_invalid_file_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    text = read_protocol("webshop-embedded-v1").path.read_text()
    assert change[0] in text
    (tmp_path / "x.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        read_protocol(str(tmp_path / "x.yaml"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="x.yaml is not a text in UTF-8"):
        read_protocol(str(tmp_path / "x.yaml"))


def test_a_data_folder_may_have_a_number_as_its_name(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "expert:strong", "--protocol", "webshop-small-v1", "-p", "data=2024"]) == 2
    assert "-p data=2024: there is no such folder" in capsys.readouterr().err


def test_names_and_data_folders_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no protocol 'webshop-smal-v1' \\(did you mean 'webshop-small-v1'"):
        read_protocol("webshop-smal-v1")
    with pytest.raises(ValueError, match="needs data: add -p data=FOLDER"):
        environment_of(read_protocol("webshop-small-v1"), None)
    with pytest.raises(ValueError, match="has its own data"):
        environment_of(read_protocol("webshop-embedded-v1"), str(tmp_path))
    with pytest.raises(ValueError, match="there is no such folder"):
        environment_of(read_protocol("webshop-small-v1"), str(tmp_path / "none"))


def test_shared_goals_and_products_are_counted() -> None:
    env = make_env("webshop", catalogue=SMALL, split={"train": [0, 1, 2], "test": [2, 3]}, allow_overlap=True)
    assert overlap(env, env.tasks("test"))["goal"] == 1


def test_verl_agents_workers_have_different_test_goals_which_are_trained() -> None:
    split = worker_split(1000, 233)
    assert 100 < len(split["test"]) <= 128 and set(split["test"]) <= set(split["train"]) and not split["eval"]
    assert len(split["train"]) > 990, "16 workers together leave out almost no goal"
    assert min(split["test"]) < 500 < max(split["test"]), "positions below 500 of other orders are goals of all places"
    assert worker_split(1000, 234)["test"] != split["test"], "the ids are those of this catalogue's order"
    with pytest.raises(ValueError, match="needs more than 500 goals"):
        worker_split(500, 233)


def test_the_tagger_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nouns("letters").name == "stand-in:letters" and Nouns("letters")("Red shoe for men")[1] == 3
    shops = [WebShop(catalogue=SMALL, nouns="".join(name)) for name in (["let", "ters"], ["lette", "rs"])]
    assert shops[0].nouns is shops[1].nouns, "each title is tagged once in a process"
    with pytest.raises(ValueError, match=r"nouns='letter' must be 'letters' or the package .*did you mean 'letters'"):
        WebShop(data="no such folder", nouns="letter")  # before the data are read
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="nouns='spacy' must be .*spaCy is not installed: `pip install en-core-web-sm"):
        Nouns("spacy")
