"""``eef runs``: list, show, compare and prune runs."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from typer import Argument, Context, Option, Typer

from eef.commands import Csv, Root, Sweep, runs_folder

app = Typer(help="List, show, compare or prune runs.")


def _runs(
    context: Context,
    sweep: Sweep = None,
    method: Annotated[str | None, Option(metavar="NAME", help="Only this method: eef, eef-m5 or 'EEF, M = 5'.")] = None,
    env: Annotated[str | None, Option(metavar="NAME", help="Only this environment.")] = None,
    state: Annotated[Literal["finished", "unfinished"] | None, Option(help="Only runs in this state.")] = None,
    csv: Csv = None,
    root: Root = None,
) -> None:
    """List runs: date, sweep, method, numbers of training and test subtasks, win rate, state."""
    if command := context.invoked_subcommand:
        options = {"--sweep": sweep, "--method": method, "--env": env, "--state": state, "--csv": csv}
        for name, value in options.items():
            if value:
                raise ValueError(f"{name} has no effect before {command}: write eef runs {name} ... without {command}")
        context.obj = root
        return
    from eef.analysis.compare import list_runs

    folder = runs_folder(root or context.obj)
    rows = list_runs(folder, sweep, method, env, state)
    if csv:
        rows.to_csv(sys.stdout if csv == "-" else csv, index=False)
        return
    rates = [f"{100 * rate:.1f} %" if rate == rate else "-" for rate in rows.pop("win_rate")]
    rows.insert(len(rows.columns) - 1, "win rate", rates)
    if len(rows):
        rows = rows.drop(columns=["env", "method"]).rename(columns={"arm": "method"})
        print(rows.astype(object).fillna("-").to_string(index=False))
    print(f"{len(rows)} runs in {folder}")


app.callback(invoke_without_command=True)(_runs)
app.command("list", help="The same as eef runs.")(_runs)


@app.command("show")
def _runs_show(
    context: Context,
    run: Annotated[str, Argument(metavar="RUN", help="Its id, or a unique part of it.")],
    root: Root = None,
) -> None:
    """Print everything that is recorded about a run."""
    from eef.analysis.compare import find, show

    print("\n".join(show(find(runs_folder(root or context.obj), run))))


@app.command("compare")
def _runs_compare(
    context: Context,
    run: Annotated[str, Argument(metavar="A")],
    other: Annotated[str, Argument(metavar="B")],
    root: Root = None,
) -> None:
    """Print what differs between two runs, and the difference of their win rates."""
    from eef.analysis.compare import compare, find

    folder = runs_folder(root or context.obj)
    for line in compare(find(folder, run), find(folder, other)):
        print(line)


@app.command("prune")
def _runs_prune(
    context: Context,
    runs: Annotated[
        list[str] | None, Argument(metavar="RUN", help="Also these runs, and stages that only they use.")
    ] = None,
    unfinished: Annotated[bool, Option("--unfinished", help="Also runs without a result, and checkpoints.")] = False,
    yes: Annotated[bool, Option("--yes", help="Remove the files.")] = False,
    root: Root = None,
) -> None:
    """List files that no run needs; --yes removes them.

    Checkpoints from which killed stages resume are left in place for a week, with --unfinished for an hour.
    """
    from eef.analysis.compare import checkpoints, find, in_units, prunable, prune, size

    folder = runs_folder(root or context.obj)
    chosen = [find(folder, word) for word in runs or []]
    if yes:
        sizes = prune(folder, chosen, unfinished)
    else:
        sizes = [(path, size(path)) for path in prunable(folder, chosen, unfinished)]
    for path, count in sizes:
        print(f"{in_units(count):>8}  {path.relative_to(folder)}")
    state = "removed" if yes else "would be removed (--yes removes them)"
    print(f"{len(sizes)} files and folders, {in_units(sum(count for _, count in sizes))}, {state}")
    if left := [path for path in checkpoints(folder) if path not in dict(sizes)]:
        total = in_units(sum(size(path) for path in left))
        print(f"checkpoints of {len(left)} stages, {total}, stay for a week, to resume from (--unfinished: an hour)")
