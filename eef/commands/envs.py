"""``eef envs`` lists the environments that have a name, and checks one."""

from __future__ import annotations

import ast
import os
from importlib import import_module
from typing import Annotated, Any

from typer import Argument, Context, Typer

from eef.commands import Overrides, environment, parse_overrides
from eef.envs import ENVIRONMENTS
from eef.files import PACKAGE

app = Typer(help="List environments, or check one.")


@app.callback(invoke_without_command=True)
def _envs(context: Context) -> None:
    """List the environments that have a name, or check one."""
    if context.invoked_subcommand:
        return
    for name in ENVIRONMENTS:
        source = PACKAGE / "envs" / name / "__init__.py"
        doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) if source.is_file() else "no such folder"
        print(f"{name:<14} {(doc or '').partition(chr(10))[0]}")
    print("eef envs check NAME checks one; docs/environments.md says how to add your own")


@app.command("check")
def _envs_check(
    name: Annotated[str, Argument(metavar="NAME", help=f"One of {', '.join(ENVIRONMENTS)}.")],
    overrides: Overrides = None,
) -> int:
    """Play some episodes of an environment, and print the first departure from the protocol."""
    from eef.envs.check import check_env
    from eef.envs.errors import describe

    try:
        env = environment(name, _check_defaults(name) | parse_overrides(overrides))
    except (ValueError, OSError):  # of an option: the message says what to do
        raise
    except Exception as error:
        if os.environ.get("EEF_DEBUG") == "1":
            raise
        print(f"failed  {name} cannot be made: {describe(error)}")
        return 1
    try:
        for line in check_env(env):
            print(f"ok      {line}", flush=True)
    except ValueError as error:
        if os.environ.get("EEF_DEBUG") == "1":
            raise
        print(f"failed  {error}")
        return 1
    finally:
        getattr(env, "close", lambda: None)()  # ends the processes of an environment that has some
    return 0


def _check_defaults(name: str) -> dict[str, Any]:
    try:
        module: Any = import_module(f"eef.envs.{name}.cli")
    except ModuleNotFoundError:  # the file is optional
        return {}
    return dict(module.check_defaults()) if hasattr(module, "check_defaults") else {}
