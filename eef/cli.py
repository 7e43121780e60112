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
    """Run one command. 0: well, 1: points failed, 2: a mistake that the message explains, 130: interrupted."""
    given = _parser().parse_args(argv)
    try:
        return int(given.command(given))
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
        print(f"eef: {text}\n(EEF_DEBUG=1 shows where it came from)", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eef", description="Tuning LLM agents on their experts' failures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("sweep", help="run the points of a sweep file that are not finished, then draw them")
    one.add_argument("file", metavar="FILE", help="a sweep as YAML, such as experiments/demo.yaml")
    one.add_argument(
        "-p", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="change a parameter"
    )
    one.add_argument("--jobs", type=int, help="points at a time (default 2; on Slurm all)")
    one.add_argument("--executor", default="local", choices=("local", "slurm"), help="where points run (default local)")
    one.add_argument("--dry-run", action="store_true", help="list the points and stop")
    one.add_argument("--only", metavar="SUBSTR", help="the points whose name contains this")
    one.set_defaults(command=_sweep)

    two = commands.add_parser("figures", help="draw win rate against budget from finished runs")
    two.add_argument("--sweep", metavar="NAME", help="the runs of one sweep (default: every run in the root)")
    two.set_defaults(command=_figures)

    three = commands.add_parser("runs", help="list, show, compare or prune runs")
    three.set_defaults(command=_runs_list)
    _runs_parser(three)

    four = commands.add_parser("report", help="an HTML page of a sweep; with a W&B account a report there, too")
    four.add_argument("--sweep", metavar="NAME", help="the runs of one sweep (default: every run in the root)")
    four.add_argument("--out", metavar="FILE", help="the page (default ROOT/reports/NAME.html)")
    four.set_defaults(command=_report)

    five = commands.add_parser("wandb", help="what was kept offline for Weights & Biases")
    five.add_argument("what", choices=("sync",), help="sync: send the offline runs")
    five.set_defaults(command=_wandb_sync)

    modules = _environment_modules()
    for name, module in modules.items():
        if hasattr(module, "add_commands"):
            summary = (module.__doc__ or "").partition("\n")[0]
            module.add_commands(commands.add_parser(name, help=summary[:1].lower() + summary[1:].rstrip(".")))
    _collect_parser(
        commands.add_parser("collect", help="expert trajectories from an OpenAI-compatible endpoint"), modules
    )

    for command in (one, two, three, four, five):
        command.add_argument("--root", metavar="DIR", help="where runs are kept (default experiments/runs)")
    for command in (one, two):
        command.add_argument("--out", metavar="DIR", help="where the figure goes (default figures/NAME)")
    return parser


def _runs_parser(parser: argparse.ArgumentParser) -> None:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--root", metavar="DIR", default=argparse.SUPPRESS, help="where runs are kept")
    commands = parser.add_subparsers(metavar="ACTION")
    one = commands.add_parser("list", parents=[where], help="id, win rate, state (the default)")
    one.set_defaults(command=_runs_list)
    two = commands.add_parser("show", parents=[where], help="all that a run's folder holds")
    two.add_argument("run", metavar="RUN", help="its id, or a part that no other has")
    two.set_defaults(command=_runs_show)
    three = commands.add_parser("compare", parents=[where], help="what differs, and the paired difference of win rates")
    three.add_argument("run", metavar="A")
    three.add_argument("other", metavar="B")
    three.set_defaults(command=_runs_compare)
    four = commands.add_parser("prune", parents=[where], help="list what no run needs; remove it with --yes")
    four.add_argument("runs", metavar="RUN", nargs="*", help="runs to remove as well, with the stages they alone use")
    four.add_argument("--unfinished", action="store_true", help="also runs without a result")
    four.add_argument("--yes", action="store_true", help="remove, and not just list")
    four.set_defaults(command=_runs_prune)


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


def _collect_parser(parser: argparse.ArgumentParser, modules: dict[str, ModuleType]) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="JSON Lines, appended to; `-p experts=FILE` uses it")
    add("--model", required=True, metavar="NAME", help="the model, as the endpoint calls it")
    add("--base-url", required=True, metavar="URL", help="the endpoint, such as http://localhost:8000/v1")
    add("--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="what holds the key (default OPENAI_API_KEY)")
    first = next(iter(ENVIRONMENTS))
    add("--env", default=first, choices=tuple(ENVIRONMENTS), help=f"(default {first})")
    keywords = [
        add(option, **settings).dest
        for module in modules.values()
        for option, settings in getattr(module, "COLLECT_OPTIONS", {}).items()
    ]
    add("-p", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="a keyword of the environment")
    add("--split", default="train", choices=("train", "eval", "test"), help="(default train)")
    add("--tasks", type=int, metavar="N", help="the first N subtasks of the split (default all)")
    add("--max-steps", type=int, metavar="N", help="steps per episode (default: the environment's)")
    add("--one-shot", action="store_true", help="show an example: the scripted player on a subtask not collected")
    add("--temperature", type=float, default=0.0, metavar="T", help="(default 0)")
    add(
        "--body", default="{}", metavar="JSON", help='further fields of the request; null takes one out: {"stop": null}'
    )
    add("--concurrency", type=int, default=4, metavar="N", help="episodes at once (default 4)")
    add("--rpm", type=float, metavar="N", help="requests per minute at most, retries included")
    add("--retries", type=int, default=8, metavar="N", help="after 429, 5xx and timeouts (default 8)")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="per request (default 120)")
    add("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens in and out, for the estimate")
    add("--yes", action="store_true", help="do not ask for confirmation")
    parser.set_defaults(command=_collect, environment_keywords=keywords)


def _collect(given: argparse.Namespace) -> int:
    from eef.envs import make_env
    from eef.experts.endpoint import Expert, read_body, read_key, run

    names = ("model", "base_url", "temperature", "concurrency", "rpm", "retries", "timeout")
    asked = {name: getattr(given, name) for name in names}
    expert = Expert(key=read_key(given.key_variable), body=read_body(given.body), **asked)
    collect_defaults = getattr(_environment_modules().get(given.env), "collect_defaults", None)
    options: dict[str, Any] = collect_defaults(given) if collect_defaults else {}
    options |= parse_overrides(given.overrides)
    for keyword in ("max_steps", *given.environment_keywords):
        if getattr(given, keyword):
            options[keyword] = getattr(given, keyword)
    try:
        env = make_env(given.env, **options)
    except TypeError as error:  # an option that it does not have
        raise ValueError(f"{given.env}: {str(error).partition('() ')[2]}") from None
    try:
        return run(given.file, env, given.split, given.tasks, expert, given.one_shot, given.price, given.yes)
    finally:
        getattr(env, "close", lambda: None)()  # ends the processes of an environment that has some


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``key=value`` words with values as in a sweep file (:mod:`eef.sweeps.strict_yaml`); ``1e-4`` is a number here."""
    from eef.sweeps.strict_yaml import load

    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"-p {word!r}: write key=value")
        overrides[key] = load(text, f"-p {word!r}", command_line=True)
    return overrides


def _root(given: argparse.Namespace) -> Path:
    from eef.tracking.runs import default_root

    return Path(given.root).resolve() if given.root else default_root()


def _sweep(given: argparse.Namespace) -> int:
    from eef.sweeps.sweep import read_spec, sweep, sweep_label

    overrides = parse_overrides(given.overrides)
    if given.out:
        _check_out(Path(given.out))
    code = sweep(given.file, overrides, given.jobs, given.dry_run, given.only, given.root, given.executor)
    if given.dry_run or code not in (0, 1):
        return code
    spec = read_spec(given.file)
    name = sweep_label(spec, overrides)
    if code:
        root = _root(given)
        index = _index(root, name)
        if index.get("run_ids"):  # in the morning, what the night gave
            _publish(root, name, index, [])
        return code
    return _draw(given, name, spec.figure, whole=True)


def _figures(given: argparse.Namespace) -> int:
    return _draw(given, given.sweep, {}, whole=False)


def _index(root: Path, name: str | None) -> dict[str, Any]:
    """What a sweep left about itself: run_ids, missing, command; empty without a name."""
    from eef.files import read_json

    at = root / "sweeps" / f"{name}.json"
    if name and not at.is_file():
        known = ", ".join(sorted(path.stem for path in at.parent.glob("*.json"))) or "none"
        raise ValueError(f"no sweep {name!r} in {root}; known: {known}")
    return read_json(at) if name else {}


def _draw(given: argparse.Namespace, name: str | None, figure: dict[str, Any], whole: bool) -> int:
    """Draw a sweep's figures and print their table and where they are.

    ``figure`` is the section of the sweep file: a ``notebook``, and its parameters (``draw``, ...).
    """
    from eef.analysis.figures import markdown, table, win_rate_vs_budget
    from eef.tracking.runs import load_runs

    root = _root(given)
    index = _index(root, name)
    if missing := index.get("missing"):
        print(f"{len(missing)} points of {name} are not finished: {', '.join(missing[:5])}")
        if whole:
            print(f"no figure yet; `eef figures --sweep {name}` draws what is there")
            return 0
    runs = load_runs(root, index.get("run_ids"))
    if runs.empty and whole:
        print("the sweep's notebook made no runs: no figure")
        return 0
    out = _figure_folder(given, root, name or "all")
    drawn = figure.get("draw", ["win_rate_vs_budget"])
    shown = f"\n{markdown(table(runs))}\n" if "win_rate_vs_budget" in drawn else ""
    if "notebook" in figure:
        given_on = {key: value for key, value in figure.items() if key != "notebook"}
        where = {"root": str(root), "sweep": name, "out": str(out)}
        _draw_by_notebook(given, figure["notebook"], given_on | where, root)
    else:
        win_rate_vs_budget(runs, out)
    print(shown)
    files = [out / f"{stem}{suffix}" for stem in drawn for suffix in (".png", ".svg", ".md", ".csv")]
    for stem in drawn:
        print(f"figure: {', '.join(str(_near(file)) for file in files if file.stem == stem and file.is_file())}")
    if name:
        _publish(root, name, index, files)
    print(f"again:  {index['command']}" if index else f"again:  eef figures --root {root}", flush=True)
    return 0


def _figure_folder(given: argparse.Namespace, root: Path, name: str) -> Path:
    """``--out``, else the checkout's figures/NAME, or ROOT/figures/NAME where the checkout is read-only."""
    from eef.files import is_writable
    from eef.tracking.runs import repo_root

    if given.out:
        _check_out(Path(given.out))
        return Path(given.out).resolve()
    out = repo_root() / "figures" / name
    if is_writable(out):
        return out
    print(f"{out} cannot be written: the figure goes to {root / 'figures' / name} (--out chooses another folder)")
    return root / "figures" / name


def _check_out(out: Path, folder: Path | None = None) -> None:
    from eef.files import is_writable

    if not is_writable(folder or out):
        raise ValueError(f"--out {out}: cannot write there; choose another folder")


def _publish(root: Path, name: str, index: dict[str, Any], files: list[Path]) -> None:
    """The HTML page of a sweep, and its figure in W&B beside its runs (as offline or online as they are)."""
    from eef.analysis.report import page
    from eef.files import read_json
    from eef.tracking import mirror

    pictures = [path for path in files if path.suffix == ".png" and path.is_file()]
    print(f"report: {_near(page(root, name, root / 'reports' / f'{name}.html', pictures, index))}")
    clocks = [root / run / "timing.json" for run in index["run_ids"][:1]]
    modes = [(read_json(path).get("wandb") or {}).get("used", "disabled") for path in clocks if path.is_file()]
    if trouble := mirror.send_figure(root, name, files, modes[0] if modes else "disabled"):
        print(f"warning: W&B: the figure was not sent: {trouble}")


def _report(given: argparse.Namespace) -> int:
    from eef.analysis.report import in_words, page
    from eef.tracking import mirror
    from eef.tracking.runs import repo_root

    root, name = _root(given), given.sweep
    index = _index(root, name)
    if given.out:
        _check_out(Path(given.out), Path(given.out).parent)
    folders = [base / "figures" / (name or "all") for base in (repo_root(), root)]
    newest = max((path.stat().st_mtime for path in [root / "sweeps" / f"{name}.json"] if name), default=0.0)
    drawn = [path for folder in folders for path in sorted(folder.glob("*.png"))]
    pictures = [path for path in drawn if path.stat().st_mtime >= newest]
    out = Path(given.out).resolve() if given.out else root / "reports" / f"{name or 'all'}.html"
    print(f"report: {_near(page(root, name, out, pictures, index))}")
    if name:
        reason = mirror.account_problem()
        made = f"none, {reason}" if reason else mirror.save_report(root, name, pictures, in_words(root, name, index))
        print(f"W&B report: {made}")
    return 0


def _wandb_sync(given: argparse.Namespace) -> int:
    from eef.tracking.mirror import sync

    sent, left = sync(_root(given))
    print(f"{sent} offline runs were sent to W&B" + (f", {len(left)} were not: {left[0]}" if left else ""))
    return int(bool(left))


def _draw_by_notebook(given: argparse.Namespace, notebook: str, parameters: dict[str, Any], root: Path) -> None:
    from eef.sweeps.executors import declared, failure, start_notebook, stop
    from eef.sweeps.sweep import find_notebook

    path = find_notebook(Path(given.file), notebook)
    known = declared(path)
    base = f"{root}/notebooks/{parameters['sweep']}__{path.stem}"
    process = start_notebook(path, base, {key: value for key, value in parameters.items() if key in known}, root)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        stop([process])
        raise
    if code:
        raise RuntimeError(f"{path.name} failed: {failure(base, code)}\n        ({base}.ipynb)")


def _near(path: Path) -> Path:
    """The path as seen from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _runs_list(given: argparse.Namespace) -> int:
    from eef.tracking.runs import load_runs

    root = _root(given)
    runs = load_runs(root)
    states = [(row["run_id"], row.get("win_rate"), "finished") for row in runs.to_dict("records")]
    states += [(name, None, "unfinished") for name in runs.attrs["unfinished"]]
    wide = max((len(name) for name, _, _ in states), default=3)
    print(f"{'run':{wide}}  win rate  state")
    for name, rate, state in sorted(states):
        shown = f"{100 * rate:6.1f} %" if isinstance(rate, float) and rate == rate else f"{'-':>8}"
        print(f"{name:{wide}}  {shown}  {state}")
    print(f"{len(states)} runs in {root}")
    return 0


def _runs_show(given: argparse.Namespace) -> int:
    from eef.analysis.compare import find, show

    print("\n".join(show(find(_root(given), given.run))))
    return 0


def _runs_compare(given: argparse.Namespace) -> int:
    from eef.analysis.compare import compare, find

    for line in compare(*(find(_root(given), word) for word in (given.run, given.other))):
        print(line)
    return 0


def _runs_prune(given: argparse.Namespace) -> int:
    from eef.analysis.compare import find, in_units, prunable, prune, size

    root = _root(given)
    runs = [find(root, word) for word in given.runs]
    if given.yes:
        found = prune(root, runs, given.unfinished)
    else:
        found = [(path, size(path)) for path in prunable(root, runs, given.unfinished)]
    for path, count in found:
        print(f"{in_units(count):>8}  {path.relative_to(root)}")
    done = "removed" if given.yes else "would be removed; --yes does it"
    print(f"{len(found)} files and folders, {in_units(sum(count for _, count in found))}, {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
