"""Protocols: small versioned YAML files that say how a policy is evaluated (``eef/protocols/NAME.yaml``).

The version is part of the name. A protocol never changes; a changed one gets a new name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from eef.envs import TextEnv, env_from_parameters
from eef.envs.extras import extras_of
from eef.files import PACKAGE, did_you_mean, digest, write_text
from eef.sweeps.strict_yaml import load_yaml

FOLDER = PACKAGE / "protocols"
FORMAT = 1
SUFFIXES = (".yaml", ".yml")  # of the file of a protocol; other words are names


@dataclass(frozen=True)
class Acting:
    """How a policy answers: the fields of the same names of :class:`eef.settings.Settings`.

    ``instructions``: the text before the first page, for a policy without ReAct. None is the default of an endpoint's
    server; a protocol always has a number.
    """

    prompt: str
    instructions: str
    one_shot: bool
    constrained_decoding: bool
    max_new_tokens: int | None
    temperature: float | None


@dataclass(frozen=True)
class Protocol:
    """A protocol. ``options`` are those of the environment ``env``, the step limit among them.

    ``data``: the option that takes the folder of ``-p data=FOLDER``; empty if no data are needed. ``subtasks``: how
    many of ``split``, the first ones. ``hashes``: values that the environment's ``stamp()`` must have, and the hashes
    of the ids of the subtasks (``subtasks``) and of the environment's ``state_key()`` (``environment``). ``success``
    and ``flaw`` are sentences. ``path`` is the file.
    """

    version: int
    name: str
    title: str
    about: str
    env: str
    options: Mapping[str, Any]
    data: str
    split: str
    subtasks: int
    hashes: Mapping[str, str]
    acting: Acting
    seed: int
    success: str
    flaw: str
    path: Path = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        """What the file says."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    @property
    def hash(self) -> str:
        """The hash of what the file says; comments do not matter."""
        return digest(self.as_dict())


def names() -> list[str]:
    """The names of the protocols in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_protocol(name: str) -> Protocol:
    """The protocol called ``name``, or the one in a file. ValueError if there is none, or it is invalid."""
    path = Path(name) if name.endswith(SUFFIXES) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no protocol {name!r}{did_you_mean(name, names())}: use a file, or {', '.join(names())}")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text in UTF-8: name the YAML file of a protocol") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a protocol is a mapping")
    if values.get("version") != FORMAT:
        raise ValueError(f"{path}: version {values.get('version')!r} of the format is not supported, only {FORMAT}")
    own = [each for each in fields(Protocol) if each.name != "path"]
    _check_names(values, {each.name for each in own}, str(path))
    acting = values["acting"] if isinstance(values["acting"], dict) else {}
    _check_names(acting, {each.name for each in fields(Acting)}, f"{path}, acting")
    _check_types(values, {each.name: str(each.type) for each in own}, str(path))
    _check_types(acting, {each.name: str(each.type) for each in fields(Acting)}, f"{path}, acting")
    if values["subtasks"] < 1:
        raise ValueError(f"{path}: subtasks must be at least 1")
    if acting["prompt"] not in ("", "react"):
        raise ValueError(f"{path}, acting: prompt must be empty or 'react', not {acting['prompt']!r}")
    if acting["max_new_tokens"] < 1 or not 0 <= acting["temperature"] < math.inf:
        raise ValueError(f"{path}, acting: max_new_tokens must be at least 1, and temperature at least 0")
    return Protocol(**{**values, "acting": Acting(**acting)}, path=path)


def name_or_file(protocol: Protocol) -> str:
    """What ``--protocol`` reads it from: its name, or its file if it is not one of the package."""
    return protocol.name if protocol.name in names() else str(protocol.path)


def _check_names(values: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}{did_you_mean(name, known)}")
    if missing := sorted(known - set(values)):
        raise ValueError(f"{where}: {', '.join(missing)} missing")


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "int | None": (int,),
    "float | None": (float, int),
    "bool": (bool,),
    "Mapping[str, Any]": (dict,),
    "Mapping[str, str]": (dict,),
}


def _check_types(values: Mapping[str, Any], types: Mapping[str, str], where: str) -> None:
    for name, written in types.items():
        kinds = _KINDS.get(written)
        if kinds and type(values[name]) not in kinds:
            raise ValueError(f"{where}: {name} must be of type {kinds[0].__name__}, not {values[name]!r}")
        if written == "Mapping[str, str]":
            for key, value in values[name].items():
                if not isinstance(value, str):
                    raise ValueError(f"{where}, {name}: {key} must be text, not {value!r}: put it in quotes")


def environment_of(protocol: Protocol, data: str | None) -> TextEnv:
    """The environment of a protocol, unchecked. ``data`` is the folder with its data.

    ValueError if the protocol needs a folder and there is none, or the other way round.
    """
    options = dict(protocol.options)
    if protocol.data and not data:
        raise ValueError(f"protocol {protocol.name} needs data: add -p data=FOLDER ({protocol.title})")
    if data and not protocol.data:
        raise ValueError(f"protocol {protocol.name} has its own data: leave out -p data={data}")
    if data and not Path(data).is_dir():
        raise ValueError(f"-p data={data}: there is no such folder")
    if protocol.data:
        options[protocol.data] = data
    return env_from_parameters({"env": protocol.env, "env_options": options})


def subtasks_of(protocol: Protocol, env: TextEnv) -> list[str]:
    """The ids of the protocol's subtasks."""
    return env.tasks(protocol.split)[: protocol.subtasks]


def hashes_of(protocol: Protocol, env: TextEnv) -> dict[str, str]:
    """All hashes of an environment that a protocol may fix."""
    own = {"subtasks": digest(subtasks_of(protocol, env)), "environment": digest(env.state_key())}
    return {**env.stamp(), **own}


def check(protocol: Protocol, env: TextEnv) -> None:
    """ValueError if the environment does not have the protocol's hashes, or fewer subtasks."""
    actual: dict[str, Any] = {**hashes_of(protocol, env), "number of subtasks": len(subtasks_of(protocol, env))}
    wanted: dict[str, Any] = {**protocol.hashes, "number of subtasks": protocol.subtasks}
    if other := [name for name, value in wanted.items() if actual.get(name) != value]:
        what = ", ".join(f"{name} is {actual.get(name)}, not {wanted[name]}" for name in other)
        raise ValueError(
            f"these data or options are not those of the protocol {protocol.name}: {what}. Use the data that "
            f"{protocol.path} describes, or write a protocol of your own for yours: eef evaluate --protocol "
            f"{name_or_file(protocol)}{' -p data=FOLDER' if protocol.data else ''} --pin MINE.yaml"
        )


def pin(protocol: Protocol, env: TextEnv, path: Path) -> Path:
    """Write a copy of a protocol with the hashes of ``env``, named after the file ``path``.

    ValueError if the file exists, and for a name that ``--protocol`` does not read as a file.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"--pin {path}: a protocol is a file in YAML; write a name that ends in .yaml: {path}.yaml")
    if path.exists():
        raise ValueError(f"--pin {path}: the file exists, and a protocol never changes; choose another name")
    about = f"A copy of {protocol.name} for other data: its environment, options, decoding and rule of success."
    title, count = f"Other data by the rules of {protocol.name}", len(subtasks_of(protocol, env))
    own = replace(protocol, name=path.stem, title=title, about=about, subtasks=count, path=path)
    own = replace(own, hashes=hashes_of(own, env))
    return write_text(path, yaml.safe_dump(own.as_dict(), sort_keys=False, allow_unicode=True, width=120))


def overlap(env: TextEnv, tasks: list[str]) -> dict[str, int]:
    """How many of the test subtasks ``tasks`` have something in common with training, by what it is (``goal``, ...)."""
    contents = extras_of(env).contents
    trained: dict[str, set[Any]] = {}
    for task in env.tasks("train"):
        for kind, value in contents(env, task).items():
            trained.setdefault(kind, set()).add(value)
    tested = [contents(env, task) for task in tasks]
    return {kind: sum(each[kind] in trained.get(kind, ()) for each in tested) for kind in (tested[0] if tested else ())}
