"""The files around the package agree with each other: locks, hooks, citation, workflow, image."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIN = re.compile(r"^([\w.-]+)==([^\s\\;]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return {canonicalize_name(package): version for package, version in PIN.findall((ROOT / name).read_text("utf-8"))}


def requirements(extra: str = "") -> Iterator[Requirement]:
    """Those of the project with an extra; an extra may include others (``eef[slurm]``)."""
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                yield from requirements(other)
        else:
            yield requirement


@pytest.mark.parametrize("lock", ["constraints.txt", "requirements.lock"])
def test_a_lock_satisfies_what_the_project_requires(lock: str) -> None:
    versions = pins(lock)
    required = [*requirements(), *requirements("dev")]
    assert len(required) > 30
    missing = [str(one) for one in required if canonicalize_name(one.name) not in versions]
    wrong = [
        str(one)
        for one in required
        if one.name not in missing
        and versions.get(canonicalize_name(one.name))
        and not one.specifier.contains(versions[canonicalize_name(one.name)], prereleases=True)
    ]
    assert not missing and not wrong, f"make {lock} anew (CONTRIBUTING.md, 'Dependencies')"


def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_for_each() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked, constrained = pins("requirements.lock"), pins("constraints.txt")
    assert {name: version for name, version in constrained.items() if locked.get(name) != version} == {}
    packages = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(packages) == len(locked) and all("--hash=sha256:" in package for package in packages)
    assert "://" not in text and "index" not in text.lower()


def test_hooks_use_the_constrained_versions() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "nbstripout"}
    constrained = pins("constraints.txt")
    for hook in hooks:
        (package,) = hook["additional_dependencies"]
        name, _, version = package.partition("==")
        assert constrained[name] == version


def test_the_citation_has_the_version_and_license_of_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for field, name in (("title", "name"), ("version", "version"), ("license", "license")):
        assert citation[field] == PROJECT[name]


def test_the_workflow_calls_the_script_that_lands_changes() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_image_copies_files_that_exist_before_it_installs() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    before = lines[: lines.index("RUN make setup")]
    copied = [word for line in before if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "Makefile"} <= set(copied)
    assert all((ROOT / name).is_file() for name in copied)


def test_the_page_for_coding_assistants_is_short_and_names_what_exists() -> None:
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    named = re.findall(r"`((?:eef|tests|notebooks|experiments|docs)/[\w./-]+)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_make_smoke_touches_each_package() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.search(r"^SMOKE := ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert names is not None
    files = names[1].replace("\\", " ").split()
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in files)
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/test_*.py"))}
    assert {name.partition("/")[0] for name in files if "/" in name} == folders


def test_each_mutation_changes_one_place_of_the_code() -> None:
    """Else ``tests/mutations.py`` stops there, and a part of the tests is not checked any more."""
    from mutations import MUTATIONS

    counts = {each.name: (ROOT / each.file).read_text(encoding="utf-8").count(each.old) for each in MUTATIONS}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    assert len(counts) == len(MUTATIONS) > 70
