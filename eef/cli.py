"""The command line: ``eef sweep``, ``figures``, ``report``, ``runs``, ``wandb``, ``collect``, and the environments'.

Heavy libraries are imported by the commands that need them, so that ``eef --help`` is fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from eef.envs import ENVIRONMENTS
from eef.files import PACKAGE


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 1 if points failed, 2 after an error message, 130 if interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `eef runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("EEF_DEBUG") == "1":
            raise
        text = str(error) or type(error).__name__
        print(f"eef: {text}\n(set EEF_DEBUG=1 for the traceback)", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eef", description="Tune LLM agents on the failures of their experts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    sweep = commands.add_parser("sweep", help="run the unfinished points of a sweep file, then draw the results")
    sweep.add_argument("file", metavar="FILE", help="a sweep file (YAML), such as experiments/demo.yaml")
    sweep.add_argument(
        "-p", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="set a parameter of all points"
    )
    sweep.add_argument("--jobs", type=int, help="number of points to run at a time (default 2; with Slurm, all)")
    sweep.add_argument("--executor", default="local", choices=("local", "slurm"), help="where to run (default local)")
    sweep.add_argument("--dry-run", action="store_true", help="list the points and stop")
    sweep.add_argument("--only", metavar="TEXT", help="run only points whose name contains TEXT")
    sweep.set_defaults(command=_sweep)

    figures = commands.add_parser("figures", help="draw win rate against budget for finished runs")
    figures.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (default: all runs)")
    figures.set_defaults(command=_figures)

    runs = commands.add_parser("runs", help="list, show, compare or prune runs")
    runs.set_defaults(command=_runs_list)
    _add_runs_commands(runs)

    report = commands.add_parser("report", help="write an HTML page of a sweep, and a report on W&B with an account")
    report.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep (default: all runs)")
    report.add_argument("--out", metavar="FILE", help="the page (default ROOT/reports/NAME.html)")
    report.set_defaults(command=_report)

    wandb = commands.add_parser("wandb", help="send offline runs to Weights & Biases")
    wandb.add_argument("action", choices=("sync",), help="sync: send all offline runs that were not sent")
    wandb.set_defaults(command=_wandb_sync)

    modules = _environment_modules()
    for name, module in modules.items():
        if hasattr(module, "add_commands"):
            summary = (module.__doc__ or "").partition("\n")[0]
            module.add_commands(commands.add_parser(name, help=summary[:1].lower() + summary[1:].rstrip(".")))
    collect = commands.add_parser("collect", help="collect expert trajectories from an OpenAI-compatible endpoint")
    _add_collect_options(collect, modules)

    for command in (sweep, figures, runs, report, wandb):
        command.add_argument("--root", metavar="DIR", help="folder of all runs (default experiments/runs)")
    for command in (sweep, figures):
        command.add_argument("--out", metavar="DIR", help="folder for the figures (default figures/NAME)")
    return parser


def _add_runs_commands(parser: argparse.ArgumentParser) -> None:
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", metavar="DIR", default=argparse.SUPPRESS, help="folder of all runs")
    commands = parser.add_subparsers(metavar="ACTION")
    commands.add_parser("list", parents=[root], help="id, win rate and state of each run (the default)").set_defaults(
        command=_runs_list
    )
    show = commands.add_parser("show", parents=[root], help="print everything that is recorded about a run")
    show.add_argument("run", metavar="RUN", help="its id, or a unique part of it")
    show.set_defaults(command=_runs_show)
    compare = commands.add_parser("compare", parents=[root], help="differences of two runs, and of their win rates")
    compare.add_argument("run", metavar="A")
    compare.add_argument("other", metavar="B")
    compare.set_defaults(command=_runs_compare)
    prune = commands.add_parser("prune", parents=[root], help="list files that no run needs; --yes removes them")
    prune.add_argument("runs", metavar="RUN", nargs="*", help="also these runs, and stages that only they use")
    prune.add_argument("--unfinished", action="store_true", help="also runs without a result")
    prune.add_argument("--yes", action="store_true", help="remove the files")
    prune.set_defaults(command=_runs_prune)


def _environment_modules() -> dict[str, ModuleType]:
    """The module ``cli`` of each environment that has one (see :mod:`eef.envs`)."""
    modules: dict[str, ModuleType] = {}
    for name in ENVIRONMENTS:
        path = PACKAGE / "envs" / name / "cli.py"
        spec = spec_from_file_location(f"eef.envs.{name}.cli", path)
        if path.is_file() and spec is not None and spec.loader is not None:
            # loaded from its file, since an import would also load the environment and its libraries
            modules[name] = module_from_spec(spec)
            spec.loader.exec_module(modules[name])
    return modules


def _add_collect_options(parser: argparse.ArgumentParser, modules: dict[str, ModuleType]) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="JSON Lines to append to; use it with `-p experts=FILE`")
    add("--model", required=True, metavar="NAME", help="name of the model at the endpoint")
    add("--base-url", required=True, metavar="URL", help="address of the endpoint, such as http://localhost:8000/v1")
    add(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="variable with the key (default OPENAI_API_KEY)",
    )
    first = next(iter(ENVIRONMENTS))
    add("--env", default=first, choices=tuple(ENVIRONMENTS), help=f"(default {first})")
    keywords = [
        add(option, **settings).dest
        for module in modules.values()
        for option, settings in getattr(module, "COLLECT_OPTIONS", {}).items()
    ]
    add("-p", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="an option of the environment")
    add("--split", default="train", choices=("train", "eval", "test"), help="(default train)")
    add("--tasks", type=int, metavar="N", help="use the first N subtasks of the split (default all)")
    add("--max-steps", type=int, metavar="N", help="steps per episode (default: as in the environment)")
    add("--one-shot", action="store_true", help="add an example: a scripted episode of another subtask")
    add("--temperature", type=float, default=0.0, metavar="T", help="(default 0)")
    add("--body", default="{}", metavar="JSON", help='more fields of the request; null removes a field: {"stop": null}')
    add("--concurrency", type=int, default=4, metavar="N", help="episodes at a time (default 4)")
    add("--rpm", type=float, metavar="N", help="largest number of requests per minute, including retries")
    add("--retries", type=int, default=8, metavar="N", help="retries after 429, 5xx and timeouts (default 8)")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="per request (default 120)")
    add("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="prices per million tokens, for an estimate")
    add("--yes", action="store_true", help="do not ask for confirmation")
    parser.set_defaults(command=_collect, environment_keywords=keywords)


def _collect(arguments: argparse.Namespace) -> int:
    from eef.envs import make_env
    from eef.experts.collection import collect
    from eef.experts.endpoint import Expert, read_body, read_key

    names = ("model", "base_url", "temperature", "concurrency", "rpm", "retries", "timeout")
    settings = {name: getattr(arguments, name) for name in names}
    expert = Expert(key=read_key(arguments.key_variable), body=read_body(arguments.body), **settings)
    module: Any = _environment_modules().get(arguments.env)
    options = module.collect_defaults(arguments) if hasattr(module, "collect_defaults") else {}
    options |= parse_overrides(arguments.overrides)
    for keyword in ("max_steps", *arguments.environment_keywords):
        if getattr(arguments, keyword):
            options[keyword] = getattr(arguments, keyword)
    try:
        env = make_env(arguments.env, **options)
    except TypeError as error:  # an unknown option
        raise ValueError(f"{arguments.env}: {str(error).partition('() ')[2]}") from None
    try:
        return collect(
            arguments.file,
            env,
            arguments.split,
            arguments.tasks,
            expert,
            arguments.one_shot,
            arguments.price,
            arguments.yes,
        )
    finally:
        getattr(env, "close", lambda: None)()  # ends the processes of an environment that has some


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Parse ``key=value`` words. Values are as in a sweep file, but ``1e-4`` is a number."""
    from eef.sweeps.strict_yaml import load_yaml

    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"-p {word!r}: write key=value")
        overrides[key] = load_yaml(text, f"-p {word!r}", command_line=True)
    return overrides


def _root(arguments: argparse.Namespace) -> Path:
    from eef.tracking.records import default_root

    return Path(arguments.root).resolve() if arguments.root else default_root()


def _sweep(arguments: argparse.Namespace) -> int:
    from eef.sweeps.points import sweep_label
    from eef.sweeps.results import check_writable, draw_sweep, publish, read_index
    from eef.sweeps.spec import read_spec, use_current_names
    from eef.sweeps.sweep import sweep

    overrides = parse_overrides(arguments.overrides)
    if arguments.out:
        check_writable(Path(arguments.out))
    code = sweep(
        arguments.file, overrides, arguments.jobs, arguments.dry_run, arguments.only, arguments.root, arguments.executor
    )
    if arguments.dry_run or code not in (0, 1):
        return code
    root, spec = _root(arguments), read_spec(arguments.file)
    overrides, _ = use_current_names(spec, overrides)
    name = sweep_label(spec, overrides)
    if code == 0:
        draw_sweep(root, name, spec.figure, spec.file, arguments.out)
    elif (index := read_index(root, name)).get("run_ids"):  # show the points that did not fail
        publish(root, name, index, [])
    return code


def _figures(arguments: argparse.Namespace) -> int:
    from eef.sweeps.results import draw_runs

    draw_runs(_root(arguments), arguments.sweep, arguments.out)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from eef.sweeps.results import write_report

    write_report(_root(arguments), arguments.sweep, arguments.out)
    return 0


def _wandb_sync(arguments: argparse.Namespace) -> int:
    from eef.tracking.mirror import sync

    sent, unsent = sync(_root(arguments))
    print(f"{sent} offline runs were sent to W&B" + (f", {len(unsent)} were not: {unsent[0]}" if unsent else ""))
    return int(bool(unsent))


def _runs_list(arguments: argparse.Namespace) -> int:
    from eef.tracking.records import load_runs

    root = _root(arguments)
    runs = load_runs(root)
    states = [(row["run_id"], row.get("win_rate"), "finished") for row in runs.to_dict("records")]
    states += [(name, None, "unfinished") for name in runs.attrs["unfinished"]]
    width = max((len(name) for name, _, _ in states), default=3)
    print(f"{'run':{width}}  win rate  state")
    for name, rate, state in sorted(states):
        percent = f"{100 * rate:6.1f} %" if isinstance(rate, float) and rate == rate else f"{'-':>8}"
        print(f"{name:{width}}  {percent}  {state}")
    print(f"{len(states)} runs in {root}")
    return 0


def _runs_show(arguments: argparse.Namespace) -> int:
    from eef.analysis.compare import find, show

    print("\n".join(show(find(_root(arguments), arguments.run))))
    return 0


def _runs_compare(arguments: argparse.Namespace) -> int:
    from eef.analysis.compare import compare, find

    for line in compare(*(find(_root(arguments), word) for word in (arguments.run, arguments.other))):
        print(line)
    return 0


def _runs_prune(arguments: argparse.Namespace) -> int:
    from eef.analysis.compare import find, in_units, prunable, prune, size

    root = _root(arguments)
    runs = [find(root, word) for word in arguments.runs]
    if arguments.yes:
        sizes = prune(root, runs, arguments.unfinished)
    else:
        sizes = [(path, size(path)) for path in prunable(root, runs, arguments.unfinished)]
    for path, count in sizes:
        print(f"{in_units(count):>8}  {path.relative_to(root)}")
    state = "removed" if arguments.yes else "would be removed (--yes removes them)"
    print(f"{len(sizes)} files and folders, {in_units(sum(count for _, count in sizes))}, {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
