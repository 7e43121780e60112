"""The names that ``import eef`` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import eef
from eef.agents.policy import Policy
from eef.envs import make_env, restore
from eef.rollout import Start, simulate
from eef.selection import select
from eef.settings import Settings

LIGHT = """
import sys, eef
print([name for name in ("torch", "transformers", "numpy", "eef.rollout") if name in sys.modules])
"""


def test_the_package_exports_what_users_need() -> None:
    names = {"make_env": make_env, "restore": restore, "select": select, "Start": Start, "simulate": simulate}
    names |= {"Policy": Policy, "Settings": Settings}
    for name, value in names.items():
        assert getattr(eef, name) is value
    assert set(names) == set(eef.__all__) <= set(dir(eef))
    with pytest.raises(AttributeError, match="module 'eef' has no attribute 'nothing'"):
        _ = eef.nothing


def test_importing_the_package_imports_no_library() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "[]\n"
