"""Writes the cells for Google Colab into every notebook beside this file: ``python notebooks/colab.py``.

The first cell is a badge that opens the notebook in Colab. The first code cell installs the package there and does
nothing anywhere else. The address of the repository is ``repository-code`` in ``CITATION.cff``; run this file again
after a change of the address or of :data:`INSTALL`.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import yaml

HERE = Path(__file__).resolve().parent
BADGE, CODE = "colab-badge", "colab-install"  # ids of the two cells
INSTALL = """\
# On Google Colab this cell installs eef and changes to its folder. Anywhere else it does nothing.
import os
import subprocess
import sys
from importlib.util import find_spec

if "google.colab" in sys.modules and find_spec("eef") is None:
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{address}", "/content/eef"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "/content/eef"], check=True)
    os.chdir("/content/eef")"""


def address() -> str:
    """The repository's address on GitHub."""
    citation = yaml.safe_load((HERE.parent / "CITATION.cff").read_text(encoding="utf-8"))
    return str(citation["repository-code"]).rstrip("/")


def badge(name: str) -> str:
    """The Markdown that opens a notebook in Colab."""
    path = address().removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def with_cells(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The notebook with both cells, in place of earlier ones."""
    cells = [cell for cell in notebook.cells if cell.get("id") not in (BADGE, CODE)]
    first_code = next(place for place, cell in enumerate(cells) if cell.cell_type == "code")
    cells.insert(first_code, nbformat.v4.new_code_cell(INSTALL.format(address=address()), id=CODE))
    cells.insert(0, nbformat.v4.new_markdown_cell(badge(name), id=BADGE))
    return nbformat.from_dict({**notebook, "cells": cells})


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        nbformat.write(with_cells(nbformat.read(path, as_version=4), path.name), path)
