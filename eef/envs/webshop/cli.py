"""Build a store, generate a catalogue, play an episode.

These are the commands of ``eef webshop``, and the options of WebShop for ``eef collect`` (see :mod:`eef.envs`).
"""

from __future__ import annotations

import argparse
from typing import Any

COLLECT_OPTIONS: dict[str, dict[str, Any]] = {
    "--data": {"metavar": "FOLDER", "help": "WebShop's official files or a store (default: the embedded catalogue)"},
}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add ``build``, ``generate`` and ``play``."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="convert the official JSON files to a store that opens in seconds")
    build.add_argument("folder", metavar="FOLDER", help="folder with the official files")
    build.add_argument("--out", metavar="DIR", help="folder of the store (default FOLDER/store)")
    build.set_defaults(command=_build)

    generate = commands.add_parser("generate", help="write a generated catalogue in the official format")
    generate.add_argument("folder", metavar="FOLDER", help="folder for the files")
    generate.add_argument("--products", type=int, default=6000, metavar="N", help="number of products (default 6000)")
    generate.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the catalogue (default 0)")
    generate.add_argument(
        "--goals", type=int, default=12000, metavar="N", help="largest number of instructions (default 12000)"
    )
    generate.set_defaults(command=_generate)

    play = commands.add_parser("play", help="play an episode; the reward is explained at the end")
    play.add_argument("--data", metavar="FOLDER", help="official files or a store (default: the embedded catalogue)")
    play.add_argument("--task", metavar="ID", help="task id (default: the first task of the split)")
    play.add_argument("--split", default="test", choices=("train", "eval", "test"), help="(default test)")
    play.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the drawn prices (default 0)")
    play.set_defaults(command=_play)


def _build(arguments: argparse.Namespace) -> int:
    from eef.envs.webshop.build import build_store

    store = build_store(arguments.folder, arguments.out, progress=True)
    print(f"store: {store} (make_env('webshop', data={str(arguments.out or arguments.folder)!r}) opens it)")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from eef.envs.webshop.generate import CatalogueSpec, write

    spec = CatalogueSpec(products=arguments.products, seed=arguments.seed)
    folder = write(spec, arguments.folder, arguments.goals, progress=True)
    print(f"catalogue: {folder} (`eef webshop build {folder}` converts it to a store that opens in seconds)")
    return 0


def _play(arguments: argparse.Namespace) -> int:
    from eef.envs.webshop.terminal import start

    return start(arguments.data, arguments.task, arguments.split, arguments.seed)
