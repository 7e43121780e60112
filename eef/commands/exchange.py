"""``eef export`` writes files for other trainers, ``eef import`` reads theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from eef.commands import Overrides, Root, environment, parse_overrides, runs_folder
from eef.envs import ENVIRONMENTS
from eef.files import did_you_mean

MaskKey = Literal["train", "step_loss_mask", "loss", "loss_mask"]
ImportedKey = Literal["train", "step_loss_mask", "loss", "loss_mask", "weight"]
_NAMES = ", ".join(ENVIRONMENTS)


def export(
    what: Annotated[str, Argument(metavar="RUN_OR_FILE", help="A run's id or a unique part of it, or a file.")],
    form: Annotated[Literal["trl", "messages", "sharegpt", "pairs", "eef"], Option("--format", help="What to write.")],
    out: Annotated[
        str | None,
        Option(metavar="FILE", help="A .jsonl or .parquet file.", show_default="beside the run or the file"),
    ] = None,
    mask_key: Annotated[
        MaskKey | None,
        Option(help="Key of the mask in messages.", show_default="train; sharegpt: loss"),
    ] = None,
    stage: Annotated[
        str | None, Option(metavar="NAME", help="The training stage, such as bc.", show_default="the last")
    ] = None,
    plain: Annotated[bool, Option("--plain", help="Texts of the environment, without a model's chat.")] = False,
    model: Annotated[
        str | None, Option(metavar="NAME", help="The model whose chat is used.", show_default="the run's; file: none")
    ] = None,
    which: Annotated[Literal["won", "failed", "all"], Option(help="File: which trajectories.")] = "won",
    own_turns: Annotated[bool, Option("--own-turns", help="File: no loss on replayed turns of an expert.")] = False,
    prompt: Annotated[Literal["react"] | None, Option(help="File: begin with --env's instructions.")] = None,
    env: Annotated[str | None, Option(metavar="NAME", help=f"File, with --prompt: {_NAMES}.")] = None,
    root: Root = None,
) -> None:
    """Write what a method selected, with its masks, for another trainer."""
    from eef.exchange.export import File, export_file, export_run

    if mask_key and form not in ("messages", "sharegpt"):
        raise ValueError(f"--mask-key belongs to messages and sharegpt; the format {form} has no key")
    target = Path(out) if out else None
    if Path(what).is_file():
        if stage:
            raise ValueError("--stage belongs to a run, not to a file")
        if bool(prompt) != bool(env):
            raise ValueError("--prompt react and --env belong together: the instructions are the environment's")
        if env and env not in ENVIRONMENTS:
            raise ValueError(f"unknown environment {env!r}{did_you_mean(env, ENVIRONMENTS)}: use {_NAMES}")
        if plain and (model or prompt):
            raise ValueError("--plain writes the environment's own texts: leave out --model and --prompt, or --plain")
        source = File(Path(what), which, own_turns, None if plain else model, env)
        print(export_file(source, form, target, mask_key))
        return
    if which != "won" or own_turns or prompt or env:
        raise ValueError(f"--which, --own-turns, --prompt and --env belong to a file, and there is no file {what}")
    if Path(what).suffix in (".jsonl", ".json"):
        raise ValueError(f"there is no file {what}: name a file of trajectories, or a run")
    from eef.analysis.compare import find

    print(export_run(find(runs_folder(root), what), form, target, mask_key, stage, model, plain))


def import_(
    file: Annotated[str, Argument(metavar="FILE", help="JSON, JSON Lines or parquet.")],
    form: Annotated[Literal["adp", "messages", "sharegpt"], Option("--format", help="What the file is.")],
    out: Annotated[str, Option(metavar="FILE", help="The .jsonl file of trajectories to write.")],
    mask_key: Annotated[
        ImportedKey | None,
        Option(help="Key of the mask in messages.", show_default="the one they have"),
    ] = None,
    reward: Annotated[float | None, Option(metavar="R", help="Reward of rows without one; 1 is a win.")] = None,
    env: Annotated[str | None, Option(metavar="NAME", help=f"Replay in this environment: {_NAMES}.")] = None,
    overrides: Overrides = None,
    drop: Annotated[bool, Option("--drop", help="Leave out what differs from its replay.")] = False,
) -> int:
    """Turn conversations in other formats into trajectories, and check each."""
    from eef.exchange.export import import_file

    if env is None and (overrides or drop):
        raise ValueError("-p and --drop need --env: without an environment nothing is replayed")
    world = environment(env, parse_overrides(overrides)) if env else None
    try:
        text, written = import_file(Path(file), form, Path(out), mask_key, reward, world, drop)
    finally:
        getattr(world, "close", lambda: None)()  # ends the processes of an environment that has some
    print(text)
    return int(not written)
