"""``eef experts`` checks expert trajectories; ``eef collect`` collects them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Annotated, Any

from typer import Argument, Option, Typer

from eef.commands import FIRST_ENV, Env, OneSplit, Overrides, Split, environment, parse_overrides

app = Typer(help="Check expert trajectories.")


@app.command("check")
def _experts_check(
    file: Annotated[str, Argument(metavar="FILE", help="Expert trajectories, as JSON Lines.")],
    env: Env = FIRST_ENV,
    overrides: Overrides = None,
    split: OneSplit = None,
) -> int:
    """Replay expert trajectories, and print the first difference from the environment."""
    from eef.experts.check import check_file

    report = check_file(file, environment(env, parse_overrides(overrides)), split)
    print(report)
    return int(report.failed)


def _collect(
    modules: dict[str, ModuleType],
    file: Annotated[str, Argument(metavar="FILE", help="JSON Lines to append to; use it with -p experts=FILE.")],
    model: Annotated[str, Option(metavar="NAME", help="Name of the model at the endpoint.")],
    base_url: Annotated[str, Option(metavar="URL", help="The endpoint, such as http://localhost:8000/v1.")],
    key_variable: Annotated[str, Option(metavar="NAME", help="Variable with the key.")] = "OPENAI_API_KEY",
    env: Env = FIRST_ENV,
    overrides: Overrides = None,
    split: Annotated[Split, Option()] = "train",
    tasks: Annotated[int | None, Option(metavar="N", help="Use the first N subtasks.", show_default="all")] = None,
    max_steps: Annotated[int | None, Option(metavar="N", help="Steps per episode.")] = None,
    one_shot: Annotated[bool, Option("--one-shot", help="Add an example, a scripted episode.")] = False,
    temperature: Annotated[float, Option(metavar="T")] = 0.0,
    body: Annotated[str, Option(metavar="JSON", help='Fields of the request, such as {"stop": null}.')] = "{}",
    concurrency: Annotated[int, Option(metavar="N", help="Episodes at a time.")] = 4,
    rpm: Annotated[float | None, Option(metavar="N", help="Most requests per minute.")] = None,
    retries: Annotated[int, Option(metavar="N", help="Retries after 429, 5xx and timeouts.")] = 8,
    timeout: Annotated[float, Option(metavar="SECONDS", help="Per request.")] = 120.0,
    price: Annotated[tuple[float, float] | None, Option(metavar="IN OUT", help="Prices per million tokens.")] = None,
    yes: Annotated[bool, Option("--yes", help="Do not ask for confirmation.")] = False,
    **of_environments: Any,
) -> int:
    """Collect expert trajectories from an OpenAI-compatible endpoint."""
    from eef.experts.collection import collect
    from eef.experts.endpoint import Expert, read_body, read_key

    expert = Expert(
        model=model,
        base_url=base_url,
        key=read_key(key_variable),
        temperature=temperature,
        body=read_body(body),
        concurrency=concurrency,
        rpm=rpm,
        retries=retries,
        timeout=timeout,
    )
    module: Any = modules.get(env)
    options = module.collect_defaults(concurrency) if hasattr(module, "collect_defaults") else {}
    options |= parse_overrides(overrides)
    options |= {key: value for key, value in of_environments.items() if value}
    options |= {} if max_steps is None else {"max_steps": max_steps}
    world = environment(env, options)
    try:
        return collect(file, world, split, tasks, expert, one_shot, price, yes)
    finally:
        getattr(world, "close", lambda: None)()  # ends the processes of an environment that has some


def collect_command(modules: dict[str, ModuleType]) -> Callable[..., int]:
    """``eef collect`` with the options that the environments' ``modules`` add to it (``COLLECT_OPTIONS``)."""

    @wraps(_collect)
    def command(**values: Any) -> int:
        return _collect(modules, **values)

    signature = inspect.signature(_collect, eval_str=True)
    _, *own, _ = signature.parameters.values()
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for module in modules.values()
        for name, annotation in getattr(module, "COLLECT_OPTIONS", {}).items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    return command
