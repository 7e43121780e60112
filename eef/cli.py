"""The command line: ``eef sweep``, ``eef figures``, ``eef runs``, ``eef webshop``.

Heavy libraries are imported by the commands that need them, so that ``eef --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

_POWER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: well, 1: points failed, 2: a mistake that the message explains, 130: interrupted."""
    given = _parser().parse_args(argv)
    try:
        return int(given.command(given))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
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

    three = commands.add_parser("runs", help="list the runs: id, win rate, state")
    three.set_defaults(command=_runs)

    _webshop_parser(commands.add_parser("webshop", help="build a store, generate a catalogue, play an episode"))

    for command in (one, two, three):
        command.add_argument("--root", metavar="DIR", help="where runs are kept (default experiments/runs)")
    for command in (one, two):
        command.add_argument("--out", metavar="DIR", help="where the figure goes (default figures/NAME)")
    return parser


def _webshop_parser(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("build", help="turn the official JSON into a store that opens in seconds")
    one.add_argument("folder", metavar="FOLDER", help="the folder with the official files")
    one.add_argument("--out", metavar="DIR", help="where the store goes (default FOLDER/store)")
    one.set_defaults(command=_webshop_build)

    two = commands.add_parser("generate", help="write a generated catalogue in the official format")
    two.add_argument("folder", metavar="FOLDER", help="where the files go")
    two.add_argument("--products", type=int, default=6000, metavar="N", help="number of products (default 6000)")
    two.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another catalogue (default 0)")
    two.add_argument(
        "--goals", type=int, default=12000, metavar="N", help="keep at most N instructions (default 12000)"
    )
    two.set_defaults(command=_webshop_generate)

    three = commands.add_parser("play", help="play an episode; the reward is explained at the end")
    three.add_argument("--data", metavar="FOLDER", help="official files or a store (default: the embedded catalogue)")
    three.add_argument("--task", metavar="ID", help="the task (default: the first of the split)")
    three.add_argument("--split", default="test", choices=("train", "eval", "test"), help="(default test)")
    three.add_argument("--seed", type=int, default=0, metavar="S", help="seed of drawn prices (default 0)")
    three.set_defaults(command=_webshop_play)


def _webshop_build(given: argparse.Namespace) -> int:
    from eef.envs.webshop.store import build

    place = build(given.folder, given.out, progress=True)
    print(f"store: {place} (make_env('webshop', data={str(given.out or given.folder)!r}) opens it)")
    return 0


def _webshop_generate(given: argparse.Namespace) -> int:
    from eef.envs.webshop.generate import Shop, write

    folder = write(Shop(products=given.products, seed=given.seed), given.folder, given.goals, progress=True)
    print(f"catalogue: {folder} (`eef webshop build {folder}` makes it open in seconds)")
    return 0


def _webshop_play(given: argparse.Namespace) -> int:
    from eef.envs.webshop.play import start

    return start(given.data, given.task, given.split, given.seed)


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``key=value`` words with YAML values; ``1e-4`` is a number here, which YAML 1.1 would read as text."""
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"-p {word!r}: write key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"-p {word!r}: the value is no YAML; quote it") from None
        found[key] = float(value) if value == text and _POWER.fullmatch(text) else value
    return found


def _root(given: argparse.Namespace) -> Path:
    from eef.runs import default_root

    return Path(given.root).resolve() if given.root else default_root()


def _sweep(given: argparse.Namespace) -> int:
    from eef.sweep import read_spec, sweep, sweep_label

    overrides = parse_overrides(given.overrides)
    code = sweep(given.file, overrides, given.jobs, given.dry_run, given.only, given.root, given.executor)
    if code or given.dry_run:
        return code
    spec = read_spec(given.file)
    return _draw(given, sweep_label(spec, overrides), spec.figure, whole=True)


def _figures(given: argparse.Namespace) -> int:
    return _draw(given, given.sweep, {}, whole=False)


def _draw(given: argparse.Namespace, name: str | None, figure: dict[str, Any], whole: bool) -> int:
    """Draw a sweep's figures and print their table and where they are.

    ``figure`` is the section of the sweep file: a ``notebook``, and its parameters (``draw``, ...).
    """
    from eef.figures import markdown, table, win_rate_vs_budget
    from eef.runs import load_runs, read_json, repo_root

    root = _root(given)
    index: dict[str, Any] = {}
    if name:
        at = root / "sweeps" / f"{name}.json"
        if not at.is_file():
            known = ", ".join(sorted(path.stem for path in at.parent.glob("*.json"))) or "none"
            raise ValueError(f"no sweep {name!r} in {root}; known: {known}")
        index = read_json(at)
    if missing := index.get("missing"):
        print(f"{len(missing)} points of {name} are not finished: {', '.join(missing[:5])}")
        if whole:
            print(f"no figure yet; `eef figures --sweep {name}` draws what is there")
            return 0
    runs = load_runs(root, index.get("run_ids"))
    if runs.empty and whole:
        print("the sweep's notebook made no runs: no figure")
        return 0
    out = Path(given.out).resolve() if given.out else repo_root() / "figures" / (name or "all")
    drawn = figure.get("draw", ["win_rate_vs_budget"])
    shown = f"\n{markdown(table(runs))}\n" if "win_rate_vs_budget" in drawn else ""
    if "notebook" in figure:
        given_on = {key: value for key, value in figure.items() if key != "notebook"}
        where = {"root": str(root), "sweep": name, "out": str(out)}
        _draw_by_notebook(given, figure["notebook"], given_on | where, root)
    else:
        win_rate_vs_budget(runs, out)
    print(shown)
    for stem in drawn:
        files = [_near(out / f"{stem}{suffix}") for suffix in (".png", ".svg", ".md", ".csv")]
        print(f"figure: {', '.join(str(file) for file in files if file.is_file())}")
    print(f"again:  {index['command']}" if index else f"again:  eef figures --root {root}", flush=True)
    return 0


def _draw_by_notebook(given: argparse.Namespace, notebook: str, parameters: dict[str, Any], root: Path) -> None:
    from papermill.inspection import inspect_notebook

    from eef.launch import failure, start_notebook, stop
    from eef.sweep import find_notebook

    path = find_notebook(Path(given.file), notebook)
    declared = inspect_notebook(str(path))
    base = f"{root}/notebooks/{parameters['sweep']}__{path.stem}"
    process = start_notebook(path, base, {key: value for key, value in parameters.items() if key in declared}, root)
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


def _runs(given: argparse.Namespace) -> int:
    from eef.runs import load_runs

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


if __name__ == "__main__":
    sys.exit(main())
