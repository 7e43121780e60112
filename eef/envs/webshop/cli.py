"""Build a store, generate a catalogue, list subtasks, play an episode.

These are the commands of ``eef webshop``, and the options of WebShop for ``eef collect`` (see :mod:`eef.envs`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from typer import Argument, Option, Typer

_Split = Literal["train", "eval", "test"]
_Data = Annotated[
    str | None,
    Option("--data", metavar="FOLDER", help="Official files or a store.", show_default="the embedded catalogue"),
]
COLLECT_OPTIONS = {"data": _Data}
app = Typer()


@app.command()
def build(
    folder: Annotated[str, Argument(metavar="FOLDER", help="Folder with the official files.")],
    out: Annotated[str | None, Option(metavar="DIR", help="Folder of the store.", show_default="FOLDER/store")] = None,
) -> None:
    """Convert the official JSON files to a store that opens in seconds."""
    from eef.envs.webshop.build import build_store

    store = build_store(folder, out, progress=True)
    print(f"store: {store} (make_env('webshop', data={str(out or folder)!r}) opens it)")


@app.command()
def generate(
    folder: Annotated[str, Argument(metavar="FOLDER", help="Folder for the files.")],
    products: Annotated[int, Option(metavar="N", help="Number of products.")] = 6000,
    seed: Annotated[int, Option(metavar="S", help="Seed of the catalogue.")] = 0,
    goals: Annotated[int, Option(metavar="N", help="Largest number of instructions.")] = 12000,
) -> None:
    """Write a generated catalogue in the official format."""
    from eef.envs.webshop.generate import CatalogueSpec, write

    written = write(CatalogueSpec(products=products, seed=seed), folder, goals, progress=True)
    print(f"catalogue: {written} (`eef webshop build {written}` converts it to a store that opens in seconds)")


@app.command()
def tasks(
    split: Annotated[_Split | None, Option(help="Only this split.")] = None,
    csv: Annotated[str | None, Option(metavar="FILE", help="Write CSV to a file, or to the screen with -.")] = None,
    data: _Data = None,
) -> None:
    """List the subtasks: id, split, goal."""
    from eef.envs import make_env
    from eef.envs.tasks import print_tasks

    print_tasks(make_env("webshop", data=data), split, csv)


@app.command()
def play(
    data: _Data = None,
    task: Annotated[str | None, Option(metavar="ID", help="Task id.", show_default="the first of the split")] = None,
    split: Annotated[_Split, Option()] = "test",
    seed: Annotated[int, Option(metavar="S", help="Seed of the drawn prices.")] = 0,
) -> int:
    """Play an episode; the reward is explained at the end."""
    from eef.envs.webshop.terminal import start

    return start(data, task, split, seed)
