"""Which changes give a stage a new key: every setting, every option of an environment, every kind of file.

The methods run on a lab with prepared stages: no model is loaded and nothing is played, but every key is computed as in
a run. The tables below list the stages that get a new key after a change. All others must keep theirs.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from families import tokenizer_of
from forgetful import Forgetful
from test_method_masks import EASY, FAILURE, LOST, STATES
from transformers import LlamaConfig

from eef import methods
from eef.agents.chat import Chat
from eef.agents.rollout import Start
from eef.envs.extras import Extras, Skill, extras_of
from eef.envs.scienceworld import ScienceWorld
from eef.envs.webshop import WebShop
from eef.experiment import experiment
from eef.experts import Expertise
from eef.files import RunError, digest, joined_names, write_json
from eef.lab import Lab, make_chat
from eef.methods import ceiling, eef, eto
from eef.settings import GROUPS, ExpertSettings, Settings
from eef.tracking import keys
from eef.tracking import stages as key_module
from eef.tracking.keys import code_key, file_key, imports_of, model_key, path_key
from eef.tracking.stages import key_of, stage_key
from eef.trajectory import save

SMALL = {"products": 700, "train": 6, "eval": 2, "test": 4, "grades": [1.0, 0.0, 0.0]}
LOST_EASY = replace(LOST, task=EASY.task)  # what ETO learns from, with the expert's win
PLAY = {"s0-0-0", "states-0", "test"}  # simulations
TRAIN = {"bc", "sft-0", "ceiling", "dpo-0"}
SCRIPTED = {"experts", "demonstrations"}
SCORED = {"eval"}
POLICY = TRAIN | PLAY | SCORED  # another policy changes training, play and scores
WORLD = SCRIPTED | PLAY | SCORED  # another environment; the prepared trajectories, and so training, stay the same
EVERYTHING = POLICY | WORLD


@dataclass
class CannedRun:
    """Replaces :class:`eef.tracking.runs.Run`: records the key of each stage, whose contents are always the same."""

    folder: Path
    keys: dict[str, str] = field(default_factory=dict)
    stages: dict[str, Path] = field(default_factory=dict)
    tasks: int = 0

    def progress(self, stage: str, row: Any) -> None:
        pass

    def stage(self, name: str, key: Any, make: Callable[[Path], None]) -> Path:
        self.keys[name] = digest(key)
        self.stages[name] = at = self.folder / f"{name}-{self.keys[name]}"
        if (at / "stage.json").exists():
            return at
        at.mkdir(exist_ok=True)
        states = [STATES[index] for index in (1, 2, 3)]
        simulated = {"s0": [EASY, *[LOST_EASY] * (self.tasks - 1)], "states": states}
        canned = {"experts": [EASY, FAILURE], "demonstrations": [EASY], "test": [EASY], **simulated}
        save(canned.get(name.split("-")[0], []), at / "trajectories.jsonl")
        for file in ("summary.json", "stage.json"):
            (at / file).write_text("{}")
        return at


def keys_of(folder: Path, env: Any, settings: Settings, chat: Chat | None = None, seed: int = 0) -> dict[str, str]:
    """The key of each stage of EEF and its test, of the upper bound, and of ETO."""
    tasks, test = env.tasks("train"), env.tasks("test")
    chat = chat or make_chat(settings, env, tasks)
    run: Any = CannedRun(folder, tasks=len(tasks))
    lab = Lab(run, env, settings, seed, tasks, test, chat)
    lab.evaluate(eef(lab, m=3))
    keys_of_eef = dict(run.keys)
    for method in (ceiling, eto):
        method(lab)
    return {**run.keys, **keys_of_eef}  # and the stages that only ETO or the upper bound has


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash the code of each list of modules once, since the test does not change it."""
    monkeypatch.setattr(key_module, "_code_key", cache(key_module._code_key))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The files of a chat model, which is all that keys need. The weights are never loaded."""
    folder = tmp_path_factory.mktemp("model")
    LlamaConfig(vocab_size=700, hidden_size=32, max_position_embeddings=8192).save_pretrained(folder)
    tokenizer_of("qwen2.5").save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "chat.json").write_text(json.dumps({"instructions": "Shop well.", "constrained_decoding": False}))
    return folder


@pytest.fixture(scope="module")
def world() -> WebShop:
    return WebShop(
        catalogue={"products": 700, "train": 6, "eval": 2, "test": 4, "grades": [1.0, 0.0, 0.0]}, max_steps=15
    )


SETTINGS: dict[str, list[tuple[dict[str, Any], set[str]]]] = {
    # field: (settings that change it, the stages with a new key)
    "quantize": [({"quantize": "nf4"}, POLICY)],
    "dtype": [({"dtype": "bfloat16"}, POLICY)],
    "context": [({"context": 4096}, POLICY), ({"context": 8192}, set())],  # 8192 is the model's own
    "prompt": [({"prompt": "react"}, POLICY)],
    "one_shot": [({"prompt": "react", "one_shot": True}, POLICY)],
    "constrained_decoding": [
        ({"constrained_decoding": True}, PLAY | SCORED),
        ({"constrained_decoding": False}, set()),
    ],  # False is the value in chat.json
    "max_new_tokens": [({"max_new_tokens": 32}, PLAY | SCORED)],
    "engine": [({"engine": "http://localhost:8000"}, PLAY | SCORED)],
    "slots": [({"slots": 8}, set())],
    "experts": [({"experts": "weak"}, {"experts"})],  # the prepared expert trajectories stay
    "expert_noise": [({"expert_noise": {"base": 0.5}}, {"experts"})],
    "divergent_experts": [({"divergent_experts": "drop"}, set())],  # a run that is not refused has the same experts
    "tune": [({"tune": "full"}, POLICY)],
    "epochs": [({"epochs": 3.0}, POLICY), ({"epochs": 10}, set())],
    "updates": [({"updates": 50}, POLICY)],
    "lr": [({"lr": 1e-3}, POLICY)],
    "lr_schedule": [({"lr_schedule": "linear"}, POLICY)],
    "warmup_ratio": [({"warmup_ratio": 0.1}, POLICY)],
    "weight_decay": [({"weight_decay": 0.01}, POLICY)],
    "batch_size": [({"batch_size": 16}, POLICY)],
    "lora_r": [({"lora_r": 8}, POLICY)],
    "lora_alpha": [({"lora_alpha": 8}, POLICY)],
    "optimizer": [({"optimizer": "adamw_8bit"}, POLICY)],
    "gradient_checkpointing": [({"gradient_checkpointing": True}, POLICY)],
    "micro_batch_size": [({"micro_batch_size": 4}, POLICY)],
    "packing": [({"packing": "flat"}, POLICY)],
    "processes": [({"processes": 2}, POLICY)],
    "checkpoint_minutes": [({"checkpoint_minutes": 1.0}, set())],
    "dpo_beta": [({"dpo_beta": 0.2}, {"dpo-0"})],
    "dpo_lr": [({"dpo_lr": 1e-5}, {"dpo-0"})],
    "dpo_epochs": [({"dpo_epochs": 1.0}, {"dpo-0"})],
    "dpo_likelihood": [({"dpo_likelihood": 0.5}, {"dpo-0"}), ({"dpo_likelihood": 0}, set())],
    "temperature": [({"temperature": 0.5}, {"s0-0-0", "states-0"})],
    "iterations": [({"iterations": 2}, {"test", "eval"})],  # the policy of the last iteration is tested
    "restart": [({"restart": "last"}, {"sft-0", "test", "eval"})],
    "eval_temperature": [({"eval_temperature": 0.5}, {"test", "eval"})],
    "model": [({"model": "a copy"}, set()), ({"model": "other weights"}, POLICY)],
}


@pytest.mark.usefixtures("same_code")
def test_each_setting_makes_exactly_the_stages_anew_that_depend_on_it(stages, model: Path, world, tmp_path) -> None:
    assert set(SETTINGS) == {each.name for each in fields(Settings)}, "a setting without an entry in the table"
    assert set(SETTINGS) == {each.name for group in GROUPS for each in fields(group)}
    base = keys_of(stages, world, Settings(model=str(model)))
    assert set(base) == EVERYTHING
    for name in ("a copy", "other weights"):
        shutil.copytree(model, tmp_path / name)
    (tmp_path / "other weights" / "model.safetensors").write_bytes(b"others!")
    for name, rows in SETTINGS.items():
        for changes, expected in rows:
            values = {key: str(tmp_path / value) if key == "model" else value for key, value in changes.items()}
            other = keys_of(stages, world, Settings(**{"model": str(model), **values}))
            assert changed(base, other) == expected, f"{name}: {changes}"
    one_shot = [Settings(model=str(model), prompt="react", one_shot=shown) for shown in (False, True)]
    assert changed(*(keys_of(stages, world, settings) for settings in one_shot)) == POLICY


@pytest.mark.usefixtures("same_code")
def test_the_seed_is_part_of_all_that_is_drawn(stages, model: Path, world) -> None:
    settings = Settings(model=str(model))
    base, other = (keys_of(stages, world, settings, seed=seed) for seed in (0, 1))
    assert changed(base, other) == EVERYTHING - {"demonstrations"}


def test_the_seed_of_simulations_counts_beside_that_of_their_policy(stages, model: Path, world) -> None:
    stage_keys = []
    for seed in (0, 1, 0):
        run: Any = CannedRun(stages, tasks=6)
        settings = Settings(model=str(model))
        lab = Lab(run, world, settings, 0, world.tasks("train"), [], make_chat(settings, world, []))
        lab.simulate("s0", run.stage("bc", {}, None), [Start("0")], seed)
        stage_keys.append(run.keys["s0"])
    assert stage_keys[0] == stage_keys[2] != stage_keys[1]


def test_the_probability_and_the_skills_of_random_navigation_count(stages, model: Path, world, monkeypatch) -> None:
    stage_keys = []
    for share, pattern in ((0.0, "x"), (0.1, "x"), (0.2, "x"), (0.1, "y"), (0.1, "x")):
        monkeypatch.setattr(WebShop, "extras", Extras(skills={"one": Skill(pattern, "One", "one")}), raising=False)
        run: Any = CannedRun(stages, tasks=6)
        settings = Settings(model=str(model))
        lab = Lab(run, world, settings, 0, world.tasks("train"), [], make_chat(settings, world, []))
        lab.from_s0(run.stage("bc", {}, None), 0, 0, share)
        stage_keys.append(run.keys["s0-0-0"])
    assert len(set(stage_keys)) == 4 and stage_keys[1] == stage_keys[4]


def official(folder: Path, **edits: str) -> str:
    """Write a small shop in the official format. ``edits`` are the contents of further files, by name."""
    from eef.envs.webshop.generate import CatalogueSpec, generate

    folder.mkdir(exist_ok=True)
    names = ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json")
    products, attributes, human = generate(CatalogueSpec(products=60))
    for record in attributes.values():  # synthetic goals
        record |= {"instruction": "i want this", "instruction_attributes": record["attributes"][:1]}
    for name, rows in zip(names, (products, attributes, human), strict=True):
        (folder / name).write_text(json.dumps(rows))
    for name, text in edits.items():
        (folder / f"{name}.json").write_text(text)
    return str(folder)


SPLIT = {"train": [0, 1, 2], "eval": [3], "test": [4, 5]}
WEBSHOP: dict[str, list[tuple[dict[str, Any], set[str]]]] = {
    "data": [({"data": "copy"}, set()), ({"data": "other"}, WORLD)],
    "human_goals": [({"human_goals": False}, WORLD)],
    "observation": [({"observation": "text_rich"}, WORLD)],
    "seed": [({"seed": 1}, WORLD)],
    "show_attrs": [({"show_attrs": True}, WORLD)],
    "nouns": [({"nouns": str.split}, WORLD), ({"nouns": lambda title: title.split()}, WORLD)],
    "num_products": [({"num_products": 59}, WORLD)],
    # the split only says which subtasks are played
    "split": [
        ({"split": {**SPLIT, "test": [4]}}, {"test", "eval"}),
        ({"split": {**SPLIT, "train": [0, 1]}}, {"experts", "demonstrations", "s0-0-0", "dpo-0"}),
        ({"split": {**SPLIT, "eval": []}}, set()),
        ({"split": "files"}, set()),
        ({"split": "other files"}, {"test", "eval"}),
    ],
    "max_steps": [({"max_steps": 14}, WORLD)],
    "catalogue": [],  # not with data: tested below
    "allow_overlap": [({"allow_overlap": True}, set())],
}


@pytest.mark.usefixtures("same_code")
def test_each_option_of_webshop_makes_exactly_the_stages_anew_that_depend_on_it(stages, model: Path, tmp_path) -> None:
    assert set(WEBSHOP) == set(inspect.signature(WebShop.__init__).parameters) - {"self"}
    settings = Settings(model=str(model))
    data = official(tmp_path / "data")
    (tmp_path / "copy").mkdir()
    (tmp_path / "other").mkdir()
    official(tmp_path / "copy")
    official(tmp_path / "other")
    prices = (tmp_path / "other" / "items_shuffle.json").read_text().replace("$", "$1", 1)
    (tmp_path / "other" / "items_shuffle.json").write_text(prices)
    for name, test in (("files", [4, 5]), ("other files", [5])):
        for part, indices in {**SPLIT, "test": test}.items():
            write = tmp_path / name / f"webshop_{part}_indices.json"
            write.parent.mkdir(exist_ok=True)
            write.write_text(json.dumps(indices))

    def keys_with(**options: Any) -> dict[str, str]:
        for name in ("data", "split"):
            if isinstance(options.get(name), str):
                options[name] = str(tmp_path / options[name])
        env = WebShop(**{"data": data, "split": SPLIT, "max_steps": 15, **options})
        return keys_of(stages, env, settings)

    base = keys_with()
    for name, rows in WEBSHOP.items():
        for options, expected in rows:
            assert changed(base, keys_with(**options)) == expected, f"{name}: {options}"
    shops = [WebShop(catalogue={"products": 700, "train": 6, "test": 4, "seed": seed}) for seed in (0, 0, 1)]
    one, same, other = (keys_of(stages, shop, settings) for shop in shops)
    assert changed(one, same) == set() and changed(one, other) == WORLD


SCIENCE: dict[str, list[tuple[dict[str, Any], set[str]]]] = {
    "tasks": [({"tasks": ["find-animal", "find-plant"]}, WORLD | {"dpo-0"})],  # more subtasks, with their step limits
    "simplification": [({"simplification": ""}, WORLD)],
    "max_steps": [({"max_steps": 12}, WORLD), ({"max_steps": {"find-animal": 12}}, WORLD)],
    "split": [({"split": "files"}, {"test", "eval"})],
    "variations": [({"variations": {"test": 1}}, {"test", "eval"})],
    "valid_actions": [({"valid_actions": True}, WORLD)],
    "processes": [({"processes": 1}, set())],
    "java": [({"java": "/usr/bin/java"}, set())],
    "heap": [({"heap": 256}, set())],
    "timeout": [({"timeout": 5.0}, set())],
    "cached_states": [({"cached_states": 0}, set())],
}


@pytest.mark.usefixtures("same_code")
def test_each_option_of_scienceworld_makes_exactly_the_stages_anew_that_depend_on_it(
    stages, model: Path, tmp_path, monkeypatch
) -> None:
    assert set(SCIENCE) == set(inspect.signature(ScienceWorld.__init__).parameters) - {"self"}
    parts = {"train": [0, 1], "eval": [2], "test": [3, 4]}
    monkeypatch.setattr(ScienceWorld, "_task_sizes", lambda self, names: {"find-animal": 9, "find-plant": 9})
    monkeypatch.setattr(
        ScienceWorld,
        "_simulators_split",
        lambda self: {part: [f"{name}/{i}" for name in self._names for i in own] for part, own in parts.items()},
    )
    for part, indices in {"train": [0, 1], "dev": [2], "test": [3]}.items():
        (tmp_path / f"sciworld_{part}_indices.json").write_text(json.dumps([["find-animal", i] for i in indices]))
    settings = Settings(model=str(model))

    def keys_with(**options: Any) -> dict[str, str]:
        if options.get("split") == "files":
            options["split"] = tmp_path
        return keys_of(stages, ScienceWorld(**{"tasks": ["find-animal"], **options}), settings)

    base = keys_with()
    for name, rows in SCIENCE.items():
        for options, expected in rows:
            assert changed(base, keys_with(**options)) == expected, f"{name}: {options}"


MODEL_FILES = {
    # files that can change an answer
    "model.safetensors": True,
    "model-00001-of-00002.safetensors": True,
    "pytorch_model.bin": True,
    "model.gguf": True,
    "weights.pth": True,
    "model.safetensors.index.json": True,
    "config.json": True,
    "generation_config.json": True,
    "tokenizer.json": True,
    "tokenizer.model": True,
    "tokenizer_config.json": True,
    "special_tokens_map.json": True,
    "merges.txt": True,
    "chat_template.jinja": True,
    "additional_chat_templates/tool.jinja": True,
    "chat.json": True,
    "modeling_own.py": True,
    # files that cannot
    "README.md": False,
    "LICENSE": False,
    "optimizer.pt": False,
    "rng_state.pth": False,
    "training_args.bin": False,
    ".gitattributes": False,
    "config.json~": False,
    "config.json.bak": False,
    "README.txt": False,
    "nohup.out": False,
    "all_results.json": False,
    "stage.json": False,
    "figure.png": False,
    "original/consolidated.00.pth": False,
}


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_model_is_keyed_by_every_file_that_can_change_an_answer(name: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    before = model_key(str(tmp_path))
    (tmp_path / name).write_text('{"one": 1}')
    added = model_key(str(tmp_path))
    (tmp_path / name).write_text('{"one": 2}')
    rewritten = model_key(str(tmp_path))
    assert (len({before, added, rewritten}) == 3) == MODEL_FILES[name]
    assert (len({before, added, rewritten}) == 1) != MODEL_FILES[name]


@pytest.mark.usefixtures("same_code")
def test_files_that_the_model_is_made_of_reach_every_stage_that_uses_it(stages, model: Path, world, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    base = keys_of(stages, world, Settings(model=str(folder)))
    for name in ("chat.json", "config.json", "model.safetensors", "pytorch_model.bin"):
        text = (folder / name).read_text() if (folder / name).exists() else "x"
        (folder / name).write_text(text.replace("Shop well.", "Shop better.") + "\n")
        other = keys_of(stages, world, Settings(model=str(folder)))
        assert changed(base, other) == POLICY, name
        base = other


@pytest.mark.usefixtures("same_code")
def test_an_expert_file_is_keyed_by_its_content_and_not_by_its_path(stages, model: Path, world, tmp_path) -> None:
    one, copy, plus = tmp_path / "one.jsonl", tmp_path / "copy" / "one.jsonl", tmp_path / "a+b" / "one.jsonl"
    for path in (one, copy, plus):
        save([EASY, FAILURE], path)
    base, *others = (
        keys_of(stages, world, Settings(model=str(model), experts=str(path))) for path in (one, copy, plus)
    )
    assert others == [base, base]
    renamed = save([EASY, FAILURE], tmp_path / "two.jsonl")  # the stem is the source of its trajectories
    assert changed(base, keys_of(stages, world, Settings(model=str(model), experts=str(renamed)))) == {"experts"}
    both = keys_of(stages, world, Settings(model=str(model), experts=f"strong+{one}"))
    save([EASY], one)
    after = keys_of(stages, world, Settings(model=str(model), experts=f"strong+{one}"))
    assert changed(both, after) == {"experts"}
    assert changed(base, keys_of(stages, world, Settings(model=str(model), experts=str(one)))) == {"experts"}


@pytest.mark.usefixtures("same_code")
def test_constrained_decoding_changes_the_experts_of_a_file_alone(stages, model: Path, world, tmp_path) -> None:
    """It leaves out their thoughts. Scripted experts have none, so all runs share them."""
    path = save([EASY, FAILURE], tmp_path / "one.jsonl")
    for experts, expected in (("strong", set()), (str(path), {"experts"}), (f"strong+{path}", {"experts"})):
        free, constrained = (
            keys_of(stages, world, Settings(model=str(model), experts=experts, constrained_decoding=value))
            for value in (False, True)
        )
        assert changed(free, constrained) == PLAY | SCORED | expected, experts


SOURCES = {
    # file of the package: stages whose key changes with its code
    "trajectory.py": EVERYTHING,
    "selection.py": POLICY,
    "training/trainer.py": POLICY,
    "training/sft.py": POLICY,
    "training/dpo.py": POLICY,
    "training/rows.py": POLICY,
    "training/stages.py": POLICY,
    "agents/policy.py": POLICY,
    "agents/chat.py": POLICY,
    "agents/rollout.py": PLAY | SCORED,
    "agents/episode.py": PLAY | SCORED,
    "agents/cached_engine.py": PLAY | SCORED,
    "agents/actions.py": PLAY | SCORED,
    "agents/random_navigation.py": PLAY | SCORED,
    "agents/simulation.py": PLAY | SCORED,
    "agents/react.py": set(),  # it only affects the chat, whose hash is in the key
    "agents/vllm.py": PLAY | SCORED,
    "experts/__init__.py": SCRIPTED,
    "experts/endpoint.py": set(),
    "experts/collection.py": set(),
    "envs/extras.py": SCRIPTED,
    "envs/webshop/extras.py": set(),  # its values count where a stage receives them
    "envs/webshop/shopper.py": SCRIPTED,
    "envs/webshop/pretraining.py": set(),
    "envs/scienceworld/expert.py": set(),
    "analysis/evaluate.py": SCORED,
    "envs/__init__.py": SCRIPTED | PLAY | SCORED,
    "envs/webshop/session.py": WORLD,
    "envs/webshop/terminal.py": set(),  # an episode played by hand
    "envs/webshop/.ipynb_checkpoints/session-checkpoint.py": set(),
    "agents/.ipynb_checkpoints/chat.py": set(),
    "agents/chat.py~": set(),
    "agents/chat.py.orig": set(),
    "analysis/views.py": set(),
    "cli.py": set(),
    "analysis/figures.py": set(),
    "sweeps/sweep.py": set(),
    "tracking/mirror.py": set(),
    "tracking/runs.py": set(),
    "settings.py": set(),  # values and names of arguments are in the keys
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's sources, from which keys are computed."""
    copy = tmp_path / "eef"
    ignored = shutil.ignore_patterns("__pycache__", "embedded*")
    shutil.copytree(keys.PACKAGE, copy, ignore=ignored)
    monkeypatch.setattr(keys, "PACKAGE", copy)
    monkeypatch.setattr(keys, "_first_seen", Forgetful())
    return copy


def test_code_counts_where_it_is_imported_and_nowhere_else(stages, model: Path, world, package: Path) -> None:
    settings = Settings(model=str(model))
    chat = make_chat(settings, world, [])
    base = keys_of(stages, world, settings, chat)
    texts = {name: (package / name).read_text() if (package / name).exists() else "" for name in SOURCES}
    for name, expected in SOURCES.items():
        if expected:
            (package / name).write_text(texts[name] + "\nADDED = 1\n")
            assert changed(base, keys_of(stages, world, settings, chat)) == expected, name
            rest = texts[name].partition('"""\n')[2] if texts[name].startswith('"""') else texts[name]
            (package / name).write_text('"""Another docstring."""\n' + rest + "\n# a comment\n")
    assert changed(base, keys_of(stages, world, settings, chat)) == set(), "docstrings and comments"
    for name, expected in SOURCES.items():
        if not expected:
            (package / name).parent.mkdir(exist_ok=True)
            (package / name).write_text(texts[name] + "\nADDED = 1\n")
    assert changed(base, keys_of(stages, world, settings, chat)) == set(), "code that no stage imports"


def test_the_code_of_aliases_counts_for_a_policy_that_uses_them(stages, model: Path, world, package: Path) -> None:
    settings = Settings(model=str(model))
    with_aliases = replace(make_chat(settings, world, []), aliases="webshop")
    base, without = keys_of(stages, world, settings, with_aliases), keys_of(stages, world, settings)
    path = package / "envs" / "webshop" / "aliases.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert changed(base, keys_of(stages, world, settings, with_aliases)) == POLICY
    assert changed(without, keys_of(stages, world, settings)) == set()


def test_another_release_of_a_library_makes_anew_what_it_computes(stages, model: Path, world, monkeypatch) -> None:
    settings = Settings(model=str(model))
    base = keys_of(stages, world, settings)
    current = keys.library_version
    expected = {"torch": POLICY, "transformers": POLICY, "tokenizers": POLICY, "peft": POLICY, "accelerate": POLICY}
    expected |= {"rapidfuzz": WORLD, "regex": WORLD}  # what WebShop's reward is computed with
    expected |= {"numpy": WORLD, "bitsandbytes": POLICY, "gguf": POLICY, "pandas": set(), "matplotlib": set()}
    for library, stages_made in expected.items():
        monkeypatch.setattr(
            keys, "library_version", lambda name, library=library: "0" if name == library else current(name)
        )
        assert changed(base, keys_of(stages, world, settings)) == stages_made, library


OWN = """\
from helper import PAGE
from numpy import array
class Own:
    name, max_steps = "own", 3
    def state_key(self): return {"page": PAGE}
    def tasks(self, split): return ["0"]
"""


def test_an_environment_of_ones_own_counts_by_its_code_and_that_of_its_neighbours(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_world.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("PAGE = 'a'\n")
    (tmp_path / "stranger.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(keys, "_first_seen", Forgetful())
    from own_world import Own  # type: ignore[import-not-found]

    @dataclass
    class Inputs:
        env: Any

    def key(env: Any) -> str:
        return digest(stage_key(eef, Inputs(env)))

    class Wrapper:
        """An environment that wraps another one and passes on its state key."""

        def __init__(self, inner: Any) -> None:
            self.inner, self.max_steps = inner, inner.max_steps
            self.state_key = inner.state_key

    class Listed(Wrapper):
        """A wrapper that holds a list of environments."""

        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.inner = [inner]

    before = key(Own()), key(Wrapper(Own())), key(Listed(Own()))
    for name, counts in (("own_world.py", True), ("helper.py", True), ("stranger.py", False)):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "ADDED = 1\n")
        after = key(Own()), key(Wrapper(Own())), key(Listed(Own()))
        assert [a != b for a, b in zip(before, after, strict=True)] == [counts] * 3, name
        before = after


def test_imports_are_followed_however_they_are_written(tmp_path, monkeypatch) -> None:
    for name in ("top", "part/__init__", "part/one", "part/two", "part/three", "lazy", "never"):
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "part" / "one.py").write_text("from . import two\nfrom .three import x\n")
    (tmp_path / "top.py").write_text(
        "from typing import TYPE_CHECKING\nfrom part import one as first\nif TYPE_CHECKING:\n    import never\n"
        "def late():\n    import lazy\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "part" / "three.py").write_text("x = 1\n")
    import top  # type: ignore[import-not-found]

    assert set(keys.source_files([top.__name__])) == {"top", "part", "part.one", "part.two", "part.three", "lazy"}


def test_an_environment_without_a_source_file_is_refused() -> None:
    command = [sys.executable, "-c", "class E:\n pass\nfrom eef.tracking.keys import *\ncode_key(*source_modules(E))"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (
        "the module '__main__' has no source file" in process.stderr
        and "put the class into a .py file" in process.stderr
    )


def test_expert_trajectories_depend_on_the_noise_of_the_experts_that_play(world, monkeypatch) -> None:
    def keys_now() -> list[Any]:
        return [key_of(Expertise(world, ExpertSettings(experts=name), ["0"], 0)) for name in ("strong", "weak")]

    before, extras = keys_now(), extras_of(world)
    assert extras.experts is not None
    noise = {**extras.experts.noise, "strong": extras.experts.perfect}
    other = replace(extras, experts=replace(extras.experts, noise=noise))
    monkeypatch.setattr("eef.experts.extras_of", lambda env: other)
    assert [a != b for a, b in zip(before, keys_now(), strict=True)] == [True, False]


def test_a_function_counts_by_its_name_and_its_code(tmp_path, monkeypatch) -> None:
    (tmp_path / "player.py").write_text("import helper\ndef play(): pass\ndef other(): pass\n")
    (tmp_path / "helper.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(keys, "_first_seen", Forgetful())
    import player  # type: ignore[import-not-found]

    before = key_of({"play": player.play})
    assert key_of({"play": player.play}) == before != key_of({"play": player.other})
    for name in ("player.py", "helper.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "ADDED = 1\n")
        after = key_of({"play": player.play})
        assert after != before, name
        before = after
    with pytest.raises(TypeError, match="<lambda> cannot enter a stage: define the function at module level"):
        key_of({"play": lambda: None})


def test_values_without_a_key_cannot_enter_a_stage() -> None:
    with pytest.raises(TypeError, match="object cannot enter a stage"):
        key_of({"x": object()})
    with pytest.raises(ValueError, match="nan cannot enter a stage"):
        key_of([float("nan")])
    assert key_of([1, 2.0, "a", None, True, {"b": (1,)}]) == [1, 2.0, "a", None, True, {"b": [1]}]
    assert key_of([EASY]) == key_of((EASY,)) != key_of([FAILURE]) and isinstance(key_of([(EASY, FAILURE)]), str)


def test_a_stage_counts_by_its_name_and_any_other_folder_by_its_content(tmp_path) -> None:
    stage, other = tmp_path / "bc-0123", tmp_path / "model"
    for folder in (stage, other):
        folder.mkdir()
        (folder / "weights").write_text("1")
    write_json(stage / "stage.json", {})
    before = key_of(stage), key_of(other)
    for folder in (stage, other):
        (folder / "weights").write_text("2")
    assert key_of(stage) == before[0] == "bc-0123" and key_of(other) != before[1]


def test_a_folder_counts_by_names_and_contents_alone(tmp_path) -> None:
    (tmp_path / "data" / "part").mkdir(parents=True)
    (tmp_path / "data" / "part" / "a.json").write_text("1")
    before = path_key(tmp_path / "data")
    os.utime(tmp_path / "data" / "part" / "a.json", (1, 1))
    (tmp_path / "data" / "__pycache__").mkdir()
    (tmp_path / "data" / "__pycache__" / "x.pyc").write_text("x")
    (tmp_path / "data" / ".hidden").write_text("x")
    assert path_key(shutil.copytree(tmp_path / "data", tmp_path / "copy")) == before == path_key(tmp_path / "data")
    (tmp_path / "data" / "part" / "a.json").rename(tmp_path / "data" / "part" / "b.json")
    renamed = path_key(tmp_path / "data")
    (tmp_path / "data" / "part" / "b.json").write_text("2")
    assert len({before, renamed, path_key(tmp_path / "data")}) == 3
    with pytest.raises(FileNotFoundError):
        path_key(tmp_path / "nothing")


def test_links_to_folders_are_followed_and_backups_of_editors_do_not_count(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "real" / "b.json").write_text("1")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    before = path_key(tmp_path / "data")
    for name in ("a.json~", "a.json.bak", ".a.json.swp", "a.json.orig"):
        (tmp_path / "data" / name).write_text("x")
    assert path_key(tmp_path / "data") == before
    (tmp_path / "real" / "b.json").write_text("2")
    assert path_key(tmp_path / "data") != before


def test_an_adapter_is_not_a_base_model(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is the folder of an adapter: use its base model"):
        model_key(str(tmp_path))


def test_code_that_was_edited_while_the_process_runs_is_refused(package: Path, monkeypatch) -> None:
    monkeypatch.setattr(keys, "_first_seen", {})
    before = code_key("eef.selection")
    path = package / "selection.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert code_key("eef.selection") == before
    path.write_text(path.read_text() + "ADDED = 1\n")
    with pytest.raises(RunError, match=r"selection.py was edited after this process started.*start again"):
        code_key("eef.selection")
    assert path == keys.PACKAGE / "selection.py"


def test_the_code_of_this_process_is_noted_when_it_is_imported() -> None:
    code = "import sys; from eef.tracking import keys; print(len(keys._first_seen), 'torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    count, torch = process.stdout.split()
    assert int(count) >= 40 and torch == "False"


def test_large_files_are_read_once_and_again_when_they_change(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EEF_CACHE", str(tmp_path / "cache"))
    read: list[Path] = []
    hashed = keys._hash
    monkeypatch.setattr(keys, "_hash", lambda path: read.append(path) or hashed(path))
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 1_000_001)
    before = file_key(path)
    assert file_key(path) == before and len(read) == 2, "just written: not cached"
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(keys.time, "time_ns", lambda: later)
    assert [file_key(path), file_key(path)] == [before] * 2 and len(read) == 3
    path.write_bytes(b"b" * 1_000_001)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert file_key(path) != before
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("no folder")  # the cache cannot be written
    assert file_key(path) == file_key(path)


def test_joined_names_keep_a_path_with_a_plus_whole(tmp_path) -> None:
    assert joined_names("strong+weak") == ["strong", "weak"] and joined_names("my.jsonl") == ["my.jsonl"]
    (tmp_path / "a+b").mkdir()
    (tmp_path / "a+b" / "c.jsonl").write_text("")
    assert joined_names(f"strong+{tmp_path}/a+b/c.jsonl+weak") == ["strong", f"{tmp_path}/a+b/c.jsonl", "weak"]


def test_the_imports_of_a_notebook() -> None:
    lines = ["%matplotlib inline", "import os, eef.analysis.views", "from eef.sweeps import sweep", "!ls"]
    source = "\n".join([*lines, "from eef.tracking.runs import Run"])
    assert imports_of(source) == ["eef.analysis.views", "eef.sweeps", "eef.sweeps.sweep", "eef.tracking.runs"]
    files = keys.source_files(["eef.analysis.report"])
    assert (
        "eef.analysis.statistics" in files
        and "eef.cli" not in files
        and files["eef.tracking.runs"] == keys.PACKAGE / "tracking" / "runs.py"
    )
    assert (
        set(code_key("eef.files")["libraries"]) == {"python"}
        and "torch" in code_key("eef.training.trainer")["libraries"]
    )


def test_a_run_has_its_own_folder_where_its_results_may_differ(model: Path, world, tmp_path, monkeypatch) -> None:
    class Opened(Exception):
        pass

    def run_id(env: Any = world, method: str = "eef", options: Any = None, tasks: int = 6, **changes: Any) -> str:
        def opened(lab: Lab, m: int = 5) -> Path:
            raise Opened(lab.run.run_id)

        monkeypatch.setitem(methods.METHODS, method, opened)
        settings = Settings(model=str(model), **changes)
        with pytest.raises(Opened) as caught:
            experiment(
                method, env, settings, 0, options=options, train_tasks=tasks, root=tmp_path / "runs", wandb="disabled"
            )
        return str(caught.value)

    class Harsh(WebShop):
        pass

    rich = WebShop(catalogue=SMALL, observation="text_rich", max_steps=15)
    harsh = Harsh(catalogue=SMALL, max_steps=15)
    shorter = WebShop(catalogue=SMALL, max_steps=14)
    same = [
        {},
        {"slots": 3},
        {"checkpoint_minutes": 1.0},
        {"context": 8192},
        {"constrained_decoding": False},
        {"epochs": 10},
    ]
    other: list[dict[str, Any]] = [
        {"env": rich},
        {"env": shorter},
        {"env": harsh},
        {"tasks": 5},
        {"options": {"m": 2}},
        {"lr": 1e-3},
    ]
    other += [{"method": "rft"}, {"experts": "weak"}, {"prompt": "react"}, {"iterations": 2}, {"restart": "last"}]
    assert len({run_id(**changes) for changes in same}) == 1
    assert len({run_id(**changes) for changes in [{}, *other]}) == 1 + len(other)
