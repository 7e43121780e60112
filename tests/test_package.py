"""The names that ``import eef`` offers."""

from __future__ import annotations

import os
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
SHADOWED = """
import eef, importlib, pkgutil
for module in pkgutil.iter_modules(eef.__path__):
    importlib.import_module(f"eef.{module.name}")
print([name for name in eef.__all__ if not callable(getattr(eef, name))])
"""


def test_the_package_exports_what_users_need() -> None:
    names = {"make_env": make_env, "restore": restore, "select": select, "Start": Start, "simulate": simulate}
    names |= {"Policy": Policy, "Settings": Settings}
    for name, value in names.items():
        assert getattr(eef, name) is value
    assert set(names) == set(eef.__all__) <= set(dir(eef))
    with pytest.raises(AttributeError, match="module 'eef' has no attribute 'nothing'"):
        _ = eef.nothing


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(LIGHT, id="imports no library"),
        pytest.param(SHADOWED, id="no module shadows a name", marks=pytest.mark.slow),
    ],
)
def test_importing_the_package_in_a_new_process(code: str) -> None:
    quiet = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}  # wandb prints its mode
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300, env=quiet
    )
    assert done.stdout == "[]\n"
