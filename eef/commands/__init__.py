"""Options that several commands of ``eef`` share, and what their values stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from eef.envs import ENVIRONMENTS

FIRST_ENV = next(iter(ENVIRONMENTS))
Root = Annotated[
    str | None, Option("--root", metavar="DIR", help="Folder of all runs.", show_default="experiments/runs")
]
Overrides = Annotated[list[str] | None, Option("-p", metavar="KEY=VALUE", help="Set a parameter; may be repeated.")]
Sweep = Annotated[str | None, Option("--sweep", metavar="NAME", help="Only the runs of this sweep.")]
Figures = Annotated[
    str | None, Option("--out", metavar="DIR", help="Folder for the figures.", show_default="figures/NAME")
]
Env = Annotated[str, Option("--env", metavar="NAME", help=f"One of {', '.join(ENVIRONMENTS)}.")]
Split = Literal["train", "eval", "test"]
OneSplit = Annotated[Split | None, Option("--split", help="Only this split.")]
Csv = Annotated[str | None, Option("--csv", metavar="FILE", help="Write CSV to a file, or to the screen with -.")]


def parse_overrides(words: list[str] | None) -> dict[str, Any]:
    """Parse ``key=value`` words. Values are as in a sweep file, but ``1e-4`` is a number."""
    from eef.sweeps.strict_yaml import load_yaml

    overrides: dict[str, Any] = {}
    for word in words or []:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"-p {word!r}: write key=value")
        overrides[key] = load_yaml(text, f"-p {word!r}", command_line=True)
    return overrides


def runs_folder(root: str | None) -> Path:
    """The folder of all runs that ``--root`` names, or the default."""
    from eef.tracking.records import default_root

    return Path(root).resolve() if root else default_root()


def environment(name: str, options: dict[str, Any]) -> Any:
    """The environment called ``name``. ValueError for an unknown name, and for an option that it does not have."""
    from eef.envs import env_from_parameters

    try:
        return env_from_parameters({"env": name, "env_options": options})
    except ValueError as error:
        raise ValueError(str(error).removeprefix("env_options: ")) from None
