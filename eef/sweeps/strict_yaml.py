"""YAML without surprises: values that YAML 1.1 would misread are refused, and the message gives the right spelling.

Duplicate keys, dates, leading zeros, ``1:30``, ``.nan`` and keys that are not text are errors. The message names the
file, the line and the key. ``1e-3`` is a number, as in YAML 1.2; in quotes it is text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_KINDS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "value")}
_TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:value")
_LEADING_ZERO = re.compile(r"[-+]?0(o[\d_]+|[\d_]*\d)")
_DEEPEST = 100
_NUMBER = re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?$")


class _Loader(yaml.SafeLoader):
    """A YAML loader that checks the whole document before it builds any value."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._check(node, "", ())
        return node

    def _check(self, node: yaml.Node, key: str, parents: tuple[yaml.Node, ...]) -> None:
        if node in parents:
            raise _Refused(node, key, "an alias refers to the value that it is part of")
        if len(parents) > _DEEPEST:
            raise _Refused(node, "", f"values are nested more than {_DEEPEST} levels deep")
        if isinstance(node, yaml.ScalarNode):
            if reason := _reason(node):
                raise _Refused(node, key, reason)
        elif node.tag not in _KINDS:
            raise _Refused(node, key, f"the tag {node.tag} is not supported")
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._check(item, f"{key}[{index}]", (*parents, node))
        elif isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)  # a key from a merge (<<) can be a duplicate too
            names = set()
            for name, value in node.value:
                if name.tag not in _TEXT:
                    raise _Refused(name, key, f"the key {name.value} is not text: put it in quotes")
                inner = f"{key}.{name.value}" if key else name.value
                if name.value in names:
                    raise _Refused(name, inner, "the key is duplicated: remove one of the two")
                names.add(name.value)
                self._check(value, inner, (*parents, node))


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("+-.0123456789"))
yaml.add_constructor("tag:yaml.org,2002:value", _Loader.construct_yaml_str, _Loader)  # a lone "="


class _Refused(Exception):
    def __init__(self, node: yaml.Node, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}" if key else reason)
        self.line = node.start_mark.line + 1


def _reason(node: yaml.ScalarNode) -> str | None:
    """Why a scalar is refused, or None if it is accepted."""
    text, tag = node.value, node.tag.rpartition(":")[2]
    if tag == "timestamp":
        return f"{text} is read as a date: put it in quotes"
    if node.tag not in _KINDS:
        return f"the tag {node.tag} is not supported"
    if tag in ("int", "float") and ":" in text:
        return f"{text} is read as a base-60 number: put it in quotes, or write the number in full"
    if node.style is None and _LEADING_ZERO.fullmatch(text):
        return f"{text} has a leading zero and is read as octal or as text: write the number without it, or use quotes"
    if tag == "float" and (text.lower().lstrip("+-") in (".inf", ".nan") or not math.isfinite(_float(text))):
        return f"{text} is not a finite number"
    return None


def _float(text: str) -> float:
    return float(text.replace("_", ""))


def load_yaml(text: str, name: str, command_line: bool = False) -> Any:
    """Parse a YAML document, or one value from the command line.

    Raises ValueError for invalid or ambiguous YAML. The message starts with ``name`` and, for a document, the line.
    """
    try:
        return yaml.load(text, _Loader)
    except _Refused as error:
        where = "" if command_line else f", line {error.line}"
        raise ValueError(f"{name}{where}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        where = f", line {mark.line + 1}" if mark and not command_line else ""
        hint = "; indent with spaces, not tabs" if "\\t" in problem else ""
        raise ValueError(f"{name} is not valid YAML{where}: {problem}{hint}") from None
    except RecursionError:
        raise ValueError(f"{name}: values are nested more than {_DEEPEST} levels deep") from None
    except ValueError as error:
        raise ValueError(f"{name} is not valid YAML: {error}") from None
