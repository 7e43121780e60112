"""Measure the overhead of a sweep: the time of many dummy runs, and whether it grows with their number.

    python experiments/benchmark_sweep.py --runs 200 --jobs 2

A dummy run makes one stage and a result and sends nothing to W&B, so its time is that of papermill, the kernel, the run
folder and the sweep. ``own`` is the CPU time of the sweep's process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import yaml

PARAMETERS = "n = 0\nseed = 0"
BODY = """\
from eef.tracking.runs import Run
run = Run.open(None, "dummy", f"dummy-n{n}", seed, {"n": n}, {"hashes": {}})
run.stage("stage", {"n": n}, lambda folder: (folder / "file").write_text(str(n)))
run.finish({"method": "dummy", "n": n, "win_rate": 0.5})
"""
SWEEP = """\
import json, resource, sys, time
from eef.sweeps.sweep import sweep
before = time.perf_counter()
code = sweep(sys.argv[1], jobs=int(sys.argv[2]), root=sys.argv[3])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"wall": time.perf_counter() - before, "own": used.ru_utime + used.ru_stime, "code": code}))
"""


def write(folder: Path, runs: int) -> Path:
    """Write a sweep of ``runs`` dummy points."""
    cells = [nbformat.v4.new_code_cell(PARAMETERS), nbformat.v4.new_code_cell(BODY)]
    cells[0].metadata.tags = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, folder / "dummy.ipynb")
    spec = {"name": "dummy", "notebook": "dummy.ipynb", "grid": {"n": list(range(runs))}}
    (folder / "dummy.yaml").write_text(yaml.safe_dump(spec))
    return folder / "dummy.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    env = {**os.environ, "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory() as name:
        path, root = write(Path(name), options.runs), Path(name) / "runs"
        command = [sys.executable, "-c", SWEEP, str(path), str(options.jobs), str(root)]
        output = subprocess.run(command, env=env, capture_output=True, text=True).stdout
        first = json.loads(output.splitlines()[-1])
        # the final table, in the order in which points ran: label, state, seconds
        seconds = np.array([float(text) for text in re.findall(r"^n\d+-s0\s+done\s+(\d+)", output, re.MULTILINE)])
        ends = np.sort([at.stat().st_mtime for at in root.glob("*__*/result.json")])
        began = time.perf_counter()
        again = subprocess.run(command, env=env, capture_output=True, text=True).stdout
        skipped, whole = json.loads(again.splitlines()[-1]), time.perf_counter() - began
    assert first["code"] == skipped["code"] == 0 and len(seconds) == options.runs, output[-2000:]
    quarters = [f"{1e3 * np.median(part):.0f}" for part in np.array_split(np.diff(ends), 4)]
    print(f"{options.runs} dummy runs, {options.jobs} at a time, {os.cpu_count()} CPUs: {first['wall']:.0f} s in all")
    print(f"a run: {np.mean(seconds):.1f} s from start to end; {first['wall'] / options.runs:.2f} s of wall time each")
    print(f"from one result to the next, median of each quarter: {', '.join(quarters)} ms")
    print(f"the sweep's own process: {1e3 * first['own'] / options.runs:.0f} ms of CPU a run")
    print(f"again, all finished: {whole:.1f} s with Python's start")


if __name__ == "__main__":
    main()
