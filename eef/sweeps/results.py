"""The results of a sweep for its reader: figures, an HTML page, and copies on W&B."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.analysis.arms import FigureError
from eef.analysis.figures import win_rate_vs_budget
from eef.analysis.outcomes import outcome_table
from eef.analysis.report import markdown_summary, page, without_result
from eef.analysis.tables import markdown, results_table
from eef.files import is_writable, read_json, write_json
from eef.sweeps.executors import declared, failure, start_notebook, stop
from eef.sweeps.spec import find_notebook
from eef.tracking import mirror
from eef.tracking.records import default_root, load_runs, repo_root

if TYPE_CHECKING:
    import pandas as pd


def read_index(root: Path, name: str | None) -> dict[str, Any]:
    """The index of a finished or interrupted sweep: ``run_ids``, ``missing``, ``command``; empty without a name."""
    if not name:
        return {}
    file = root / "sweeps" / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.json"))) or "none"
        raise ValueError(f"no sweep {name!r} in {root}; known: {known}")
    return read_json(file)


def check_writable(out: Path, folder: Path | None = None) -> None:
    """Raise ValueError unless ``out`` (or ``folder``, which will contain it) can be written."""
    if not is_writable(folder or out):
        raise ValueError(f"--out {out}: cannot write there; choose another folder")


def draw_sweep(root: Path, name: str, figure: Mapping[str, Any], file: Path, out: str | None) -> None:
    """Draw the figures of a complete sweep, as the section ``figure`` of the sweep file ``file`` says.

    ``figure`` has a ``notebook`` and its parameters, such as ``draw``. Nothing is drawn while points are missing.
    """
    index = read_index(root, name)
    if missing := index.get("missing"):
        _print_missing(name, missing)
        print(f"no figure yet; `{_figures_command(root, name, out)}` draws the finished points")
        return
    runs = _runs_of(root, index)
    if runs.empty:
        print("no figure: the sweep's notebook recorded no runs")
        return
    folder = _figure_folder(root, name, out)
    stems = figure.get("draw", ["win_rate_vs_budget"])
    text = f"\n{markdown(results_table(runs))}\n" if "win_rate_vs_budget" in stems else ""
    before = _times(_files(folder, stems))
    _write_outcomes(runs, folder)
    if "notebook" in figure:
        parameters = {key: value for key, value in figure.items() if key != "notebook"}
        parameters |= {"root": str(root), "sweep": name, "out": str(folder)}
        try:
            _draw_with_notebook(find_notebook(file, figure["notebook"]), parameters, root)
        except RuntimeError:
            publish(root, name, index, _print_files(folder, stems, before))  # the report does not depend on the figures
            raise
    else:
        win_rate_vs_budget(runs, folder)
    print(text)
    publish(root, name, index, _print_files(folder, stems, before))


def draw_runs(root: Path, name: str | None, out: str | None) -> None:
    """Draw win rate against budget for the finished runs of a sweep, or of the whole root without a name."""
    index = read_index(root, name)
    if name and (missing := index.get("missing")):
        _print_missing(name, missing)
    runs = _runs_of(root, index)
    folder = _figure_folder(root, name or "all", out)
    text = markdown(results_table(runs))
    win_rate_vs_budget(runs, folder)
    _write_outcomes(runs, folder)
    print(f"\n{text}\n")
    files = _print_files(folder, ["win_rate_vs_budget"], {})
    if name:
        publish(root, name, index, files)
    print(f"to repeat: {_figures_command(root, name, out)}", flush=True)


def _runs_of(root: Path, index: Mapping[str, Any]) -> pd.DataFrame:
    """The finished runs of a sweep, or of the whole root without an index. Those without a result are named."""
    runs = load_runs(root, index.get("run_ids"))
    if line := without_result(runs, index):
        print(f"warning: {line}")
    return runs


def _write_outcomes(runs: pd.DataFrame, folder: Path) -> None:
    """Write the outcome of every test subtask. Runs of a notebook of one's own may have none; the reason is printed."""
    try:
        outcome_table(runs, folder)
        print(f"outcomes: {_relative(folder / 'outcomes.csv')}, {_relative(folder / 'subtasks.csv')}")
    except FigureError as error:
        print(f"no outcomes.csv: {error}")


def _figures_command(root: Path, name: str | None, out: str | None) -> str:
    options = {"--sweep": name, "--root": root if root != default_root() else None, "--out": out}
    words = [word for option, value in options.items() if value for word in (option, str(value))]
    return shlex.join(["eef", "figures", *words])


def publish(root: Path, name: str, index: Mapping[str, Any], files: list[Path]) -> None:
    """Write the HTML page of a sweep, and send its figures to W&B in the mode that its runs used."""
    pictures = [path for path in files if path.suffix == ".png" and path.is_file()]
    times = {str(file): time for file, time in _times([*_pictures(root, name), *pictures]).items()}
    write_json(root / "reports" / f"{name}.json", times)
    print(f"report: {_relative(page(root, name, root / 'reports' / f'{name}.html', pictures, index))}")
    timings = [root / run / "timing.json" for run in index["run_ids"][:1]]
    modes = [(read_json(path).get("wandb") or {}).get("used", "disabled") for path in timings if path.is_file()]
    if problem := mirror.send_figure(root, name, files, modes[0] if modes else "disabled"):
        print(f"warning: W&B: the figure was not sent: {problem}")


def write_report(root: Path, name: str | None, out: str | None) -> None:
    """Write the HTML page of a sweep (of all runs without a name), and a W&B report if there is an account."""
    index = read_index(root, name)
    if out:
        check_writable(Path(out), Path(out).parent)
    if name:
        _runs_of(root, index)
    pictures = _pictures(root, name) if name else []  # without a name the page draws its own
    file = Path(out).resolve() if out else root / "reports" / f"{name or 'all'}.html"
    print(f"report: {_relative(page(root, name, file, pictures, index))}")
    if name:
        problem = mirror.account_problem()
        address = (
            f"none, {problem}"
            if problem
            else mirror.save_report(root, name, pictures, markdown_summary(root, name, index))
        )
        print(f"W&B report: {address}")


def _print_missing(name: str, missing: list[str]) -> None:
    print(f"{len(missing)} points of {name} are not finished: {', '.join(missing[:5])}")


def _files(folder: Path, stems: list[str]) -> list[Path]:
    return [folder / f"{stem}{suffix}" for stem in stems for suffix in (".png", ".svg", ".pdf", ".md", ".csv")]


def _times(files: list[Path]) -> dict[Path, int]:
    """When each of the files that exist was written."""
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def _print_files(folder: Path, stems: list[str], before: Mapping[Path, int]) -> list[Path]:
    """Print the files of each figure on one line. Returns the paths of all files.

    ``before`` has the times of the files before the figures were drawn: a file that was not written since is left out.
    """
    files = [file for file, time in _times(_files(folder, stems)).items() if before.get(file) != time]
    for stem in stems:
        if own := [str(_relative(file)) for file in files if file.stem == stem]:
            print(f"figure: {', '.join(own)}")
    return files


def _pictures(root: Path, name: str) -> list[Path]:
    """The pictures of a sweep that were drawn from ``root`` since the sweep ended.

    The folder of a checkout may have pictures from another root by now, so that :func:`publish` writes down what it
    drew, and when.
    """
    record, ended = root / "reports" / f"{name}.json", (root / "sweeps" / f"{name}.json").stat().st_mtime_ns
    times = read_json(record) if record.is_file() else {}
    files = _times([*map(Path, times), *sorted((root / "figures" / name).glob("*.png"))])
    return [file for file, time in files.items() if times.get(str(file), time) == time >= ended]


def _figure_folder(root: Path, name: str, out: str | None) -> Path:
    """The folder ``out``, or figures/NAME in the checkout, or in ``root`` if the checkout is read-only."""
    if out:
        check_writable(Path(out))
        return Path(out).resolve()
    folder = repo_root() / "figures" / name
    if is_writable(folder):
        return folder
    print(f"{folder} cannot be written: the figure goes to {root / 'figures' / name} (--out chooses another folder)")
    return root / "figures" / name


def _draw_with_notebook(notebook: Path, parameters: Mapping[str, Any], root: Path) -> None:
    known = declared(notebook)
    base = f"{root}/notebooks/{parameters['sweep']}__{notebook.stem}"
    process = start_notebook(notebook, base, {key: value for key, value in parameters.items() if key in known}, root)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        stop([process])
        raise
    if code:
        raise RuntimeError(f"{notebook.name} failed: {failure(base, code)}\n        ({base}.ipynb)")


def _relative(path: Path) -> Path:
    """The path relative to the current folder, if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
