"""``eef export`` and ``eef import``: from a run or a file to a file, with a line that says what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eef.envs import TextEnv
from eef.exchange import formats, incoming, pairs, replay_check
from eef.exchange.conversation import count_sampled
from eef.exchange.source import Selected, loss_turns, selected_by_run, selected_in_file
from eef.trajectory import TrajectoryError


@dataclass(frozen=True)
class File:
    """A trajectory file to export. The fields are the arguments of :func:`eef.exchange.source.selected_in_file`."""

    path: Path
    which: str = "won"
    own_turns: bool = False
    model: str | None = None
    react: str | None = None


def export_run(
    folder: Path, form: str, out: Path | None = None, key: str | None = None, stage: str | None = None,
    model: str | None = None, plain: bool = False,
) -> str:  # fmt: skip
    """Export a stage of the run in ``folder``; returns what was written.

    ``out`` defaults to ``STAGE.FORMAT.jsonl`` in the run's folder. Errors: see :mod:`eef.exchange.source`.
    """
    _check(form, out, plain)
    if form == "pairs":
        rows, line = pairs.run_pairs(folder, stage, model, plain)
        out = out or folder / "pairs.jsonl"
        return f"wrote {out}: {formats.write_rows(out, rows)} rows; {line}"
    selected = selected_by_run(folder, stage, model, plain or form == "eef")
    return _export(selected, form, out or folder / f"{selected.name}.{form}.jsonl", key)


def export_file(source: File, form: str, out: Path | None = None, key: str | None = None) -> str:
    """Export a trajectory file; returns what was written. ``out`` defaults to ``NAME.FORMAT.jsonl`` beside the file."""
    _check(form, out, source.model is None)
    if form == "pairs":
        raise ValueError(f"pairs need the simulations of a run, and {source.path} is a file: name a run of eef or eto")
    _check_not_same(source.path, out)
    selected = selected_in_file(source.path, source.which, source.own_turns, source.model, source.react)
    return _export(selected, form, out or source.path.with_name(f"{source.path.stem}.{form}.jsonl"), key)


def _check(form: str, out: Path | None, plain: bool) -> None:
    if form == "trl" and plain:
        raise ValueError(
            "the format trl needs the token ids of a model: leave out --plain; for a file, add --model NAME"
        )
    if out:
        (formats.check_jsonl if form == "eef" else formats.check_suffix)(out)


def _check_not_same(source: Path, out: Path | None) -> None:
    """ValueError if ``out`` is the file that is read. Writing would lose the rows that were left out."""
    if out and out.exists() and out.samefile(source):
        raise ValueError(f"--out {out} is the file that is read: choose another name")


def _export(selected: Selected, form: str, out: Path, key: str | None) -> str:
    examples = selected.examples
    turns = sum(len(example.trajectory) for example in examples)
    if form == "trl":
        rows, counts = formats.trl_rows(selected)
        formats.write_rows(out, rows)
        dropped = f"; {counts['dropped']} exceed the context of {selected.context} tokens" if counts["dropped"] else ""
        return (
            f"wrote {out}: {len(rows)} rows of {counts['examples']} examples of {selected.name}, {counts['tokens']:,} "
            f"tokens, {counts['learnt_tokens']:,} with loss{dropped}"
        )
    if form == "eef":
        formats.write_trajectories(out, map(formats.masked, examples))
    else:
        write = {"messages": formats.message_rows, "sharegpt": formats.sharegpt_rows}[form]
        formats.write_rows(out, write(selected, key or formats.DEFAULT_KEYS[form]))
    line = (
        f"wrote {out}: {len(examples)} examples of {selected.name}, {loss_turns(examples)} of {turns} turns with loss"
    )
    sampled = count_sampled(selected.chat, [example.trajectory for example in examples])
    if sampled and form != "eef":
        line += f"; {sampled} answers were sampled as other ids than their text gives: the format trl keeps them"
    return line


def import_file(
    path: Path, form: str, out: Path, key: str | None = None, reward: float | None = None, env: TextEnv | None = None,
    drop: bool = False,
) -> tuple[str, bool]:  # fmt: skip
    """Turn the conversations in ``path`` into our JSON Lines in ``out``; returns what to print, and whether it was
    written.

    With an environment every trajectory is replayed, and unknown rewards are those of the replay. Nothing is written
    where one differs, unless ``drop`` leaves it out. TrajectoryError, with the file and the place, for a row that
    cannot be read, and for one without a reward if there is no environment.
    """
    formats.check_jsonl(out)
    _check_not_same(path, out)
    lines = incoming.read(path, form, key, reward)
    if env is None:
        unknown = next((place for place, _, known in lines if not known), None)
        if unknown:
            raise TrajectoryError(
                f"{path}, {unknown}: there is no reward: name the environment with --env, or the reward with --reward"
            )
        count = formats.write_trajectories(out, (item for _, item, _ in lines))
        wins = sum(item.won for _, item, _ in lines)
        return f"wrote {out}: {count} trajectories, {wins} won; not replayed, since there is no --env", True
    result = replay_check.checked(path, lines, env)
    text = str(result.report)
    if not result.trajectories or (result.report.divergences and not drop):
        hint = "; --drop leaves out what differs" if result.trajectories else ""
        return f"{text}\nnothing was written{hint}", False
    count = formats.write_trajectories(out, result.trajectories)
    return f"{text}\nwrote {out}: {count} trajectories", True
