"""Makes an expert whose failures nobody wrote: a small policy, trained on perfect play and sampled hot.

    python experiments/natural_expert.py --catalogue "{seed: 22}" --seed 0 --out natural.jsonl
    eef sweep experiments/demo.yaml -p "catalogue={seed: 22}" -p experts=natural.jsonl

    python experiments/natural_expert.py --env scienceworld \
        --env-options "{valid_actions: true, variations: {train: 40, eval: 12}}" --tasks 298 --train-subtasks 93 \
        --settings "{model: embedded-scienceworld, tune: full, lr: 0.003}" --temperature 1.0 --out natural.jsonl

The expert is trained on other subtasks than it plays: on training subtasks after the first ``--tasks``, then on those
of ``eval``. It plays the first ``--tasks`` training subtasks, once each. FILE.jsonl contains its trajectories, and
FILE.json its win rate by group, its skills in wins and in failures, and its actions. Training and episodes are stages
in the folder of runs: a second call resumes, and another temperature reuses the trained policy.

Equal arguments give equal files on one machine; a processor of another kind makes another expert. ``--replay`` plays
the actions in FILE.json again and gives the same trajectories on every machine:

    python experiments/natural_expert.py --replay figures/scienceworld_natural/expert.json --out natural.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from eef import trajectory
from eef.agents.policy import load_chat
from eef.agents.rollout import Start
from eef.analysis.evaluate import results
from eef.analysis.statistics import without_errors
from eef.analysis.tables import markdown
from eef.envs import TextEnv, env_from_parameters, first_page, take_step
from eef.envs.extras import extras_of
from eef.experts.check import check_file
from eef.files import read_json, write_json
from eef.lab import Lab
from eef.methods import ceiling
from eef.settings import Settings
from eef.sweeps.strict_yaml import load_yaml
from eef.tracking.runs import Run, stamp
from eef.trajectory import Trajectory


def split_tasks(env: TextEnv, tasks: int, train_subtasks: int) -> tuple[list[str], list[str]]:
    """The subtasks that the expert plays and, apart from them, those that it is trained on. ValueError for too few."""
    train = env.tasks("train")
    others = [*train[tasks:], *env.tasks("eval")]
    if not 0 < tasks <= len(train):
        raise ValueError(f"--tasks={tasks} must be from 1 to the number of training subtasks, {len(train)}")
    if not 0 < train_subtasks <= len(others):
        raise ValueError(
            f"--train-subtasks={train_subtasks} must be from 1 to {len(others)}, the number of train and eval subtasks "
            f"after the first {tasks}: lower it, or have more with train and eval in --catalogue or --env-options"
        )
    return train[:tasks], others[:train_subtasks]


def play(lab: Lab, tasks: Sequence[str], source: str) -> list[Trajectory]:
    """One episode on each of ``tasks`` by a policy trained on perfect play of ``lab.tasks``."""
    episodes = lab.simulate("natural-expert", ceiling(lab), [Start(task) for task in tasks], lab.seed)
    return [replace(episode, source=source, info={}) for episode in episodes]


def without_pages(episode: Trajectory) -> dict[str, Any]:
    """``episode`` without its source and without the pages that its actions lead to."""
    row = trajectory.to_dict(episode)
    turns = [{k: v for k, v in turn.items() if k != "observation" or not turn["action"]} for turn in row["turns"]]
    return {key: row[key] for key in ("task", "reward", "won", "outcome")} | {"turns": turns}


def with_pages(env: TextEnv, row: Mapping[str, Any], source: str) -> Trajectory:
    """The inverse of :func:`without_pages`: its actions are played in ``env``."""
    prompt, turns = first_page(env, row["task"]), []
    for turn in row["turns"]:  # an answer without an action has kept its page
        page = {"observation": take_step(env, turn["action"]).observation} if turn["action"] else {}
        turns.append({**turn, **page})
    return trajectory.from_dict({**row, "prompt": prompt, "turns": turns, "source": source})


def replay(description: Path, out: Path) -> None:
    """Write the trajectories of the expert in ``description`` to ``out``.

    SystemExit for a description without actions, and if an episode does not end as the description says.
    """
    about = read_json(description)
    if "episodes" not in about:
        raise SystemExit(f"{description} has no actions: make the expert again without --replay")
    env = env_from_parameters(about)
    unchecked = out.with_name(f".{out.name}")
    try:
        trajectory.save([with_pages(env, row, out.stem) for row in about["episodes"]], unchecked)
        if (report := check_file(str(unchecked), env)).failed:
            raise SystemExit(f"{description} was not recorded with this environment: {report}")
        unchecked.replace(out)
    finally:
        unchecked.unlink(missing_ok=True)


def describe(env: TextEnv, episodes: Sequence[Trajectory]) -> dict[str, Any]:
    """Win rates by group, and what wins and failures show: skills (paper, Figure 2), steps, and how failures end.

    Rates and shares are fractions in [0, 1] of the episodes without infrastructure errors, which ``errors`` counts.
    """
    extras = extras_of(env)
    table = results(episodes, extras.skills)
    table["group"] = table["task"].map(extras.groups(env, list(table["task"])) or {})
    rated = without_errors(table)
    wins, failures = rated[rated["won"]], rated[~rated["won"]]
    groups = {"all": rated, **dict(iter(rated.groupby("group")))}
    return {
        "errors": len(table) - len(rated),
        "win_rate": {name: _rate(part) for name, part in groups.items()},
        "wins": _shown(wins, [*extras.skills]),
        "failures": _shown(failures, [*extras.skills]),
        "failures_end": failures["outcome"].value_counts().to_dict(),
    }


def _rate(part: pd.DataFrame) -> dict[str, Any]:
    return {"episodes": len(part), "wins": int(part["won"].sum()), "rate": float(part["won"].mean())}


def _shown(part: pd.DataFrame, skills: Sequence[str]) -> dict[str, Any]:
    shares = {name: float(part[name].mean()) for name in skills} if len(part) else {}
    return {"episodes": len(part), **shares, "steps": float(part["steps"].mean()) if len(part) else None}


def tables(about: Mapping[str, Any]) -> str:
    """What :func:`describe` returned, as Markdown tables in %."""
    rates = [{"subtasks": name, **row, "rate": f"{100 * row['rate']:.1f}"} for name, row in about["win_rate"].items()]
    shown = [
        {"of": name, **{key: _percent(key, value) for key, value in about[name].items()}}
        for name in ("wins", "failures")
    ]
    ends = ", ".join(f"{name} {count}" for name, count in about["failures_end"].items())
    return f"{markdown(pd.DataFrame(rates))}\n\n{markdown(pd.DataFrame(shown))}\n\nfailures end by: {ends}"


def _percent(key: str, value: Any) -> str:
    if value is None or key == "episodes":
        return "" if value is None else str(value)
    return f"{value:.1f}" if key == "steps" else f"{100 * value:.1f}"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="webshop", help="webshop or scienceworld")
    parser.add_argument("--catalogue", default="{}", metavar="YAML", help="WebShop's catalogue, as in a sweep")
    parser.add_argument("--env-options", default="{}", metavar="YAML", help="other options, as in a sweep")
    parser.add_argument("--settings", default="{}", metavar="YAML", help="of its training, as in a sweep")
    parser.add_argument("--max-steps", type=int, default=15, help="steps per episode, as in the sweep")
    parser.add_argument("--tasks", type=int, default=250, help="how many subtasks it plays; the sweep's train_tasks")
    parser.add_argument("--train-subtasks", type=int, default=350, help="how many other subtasks it is trained on")
    parser.add_argument("--epochs", type=float, default=10.0, help="passes over the demonstrations")
    parser.add_argument("--temperature", type=float, default=2.8, help="of its episodes: hotter is weaker")
    parser.add_argument("--seed", type=int, default=0, help="of the expert: its training and its episodes")
    parser.add_argument("--out", type=Path, default=Path("natural_expert.jsonl"), metavar="FILE.jsonl")
    parser.add_argument("--root", metavar="DIR", help="folder of the runs (default experiments/runs)")
    parser.add_argument("--replay", type=Path, metavar="FILE.json", help="play the actions of this expert again")
    args = parser.parse_args(words)

    if args.out.suffix != ".jsonl":
        parser.error(f"--out must end in .jsonl, not {args.out.name}: its description is written beside it as .json")
    if args.replay:
        replay(args.replay, args.out)
        print(f"wrote {args.out}")
        return
    options = {
        name: load_yaml(getattr(args, name), f"--{name.replace('_', '-')}", command_line=True)
        for name in ("catalogue", "env_options", "settings")
    }
    env = env_from_parameters({**vars(args), **options})
    played, trained_on = split_tasks(env, args.tasks, args.train_subtasks)
    settings = Settings(**{"epochs": args.epochs, "temperature": args.temperature, **options["settings"]})
    chat = load_chat(settings.model)
    run = Run.open(args.root, env.name, "natural-expert", args.seed, {}, stamp(env.stamp(), chat.hash))
    lab = Lab(run, env, settings, args.seed, trained_on, [], chat)
    episodes = play(lab, played, args.out.stem)

    trajectory.save(episodes, args.out)
    arguments = {key: value for key, value in vars(args).items() if key not in ("out", "root", "replay")} | options
    about = describe(env, episodes)
    recorded = {"played": played, "trained_on": trained_on, "episodes": [*map(without_pages, episodes)]}
    write_json(args.out.with_suffix(".json"), {**about, **arguments, **recorded})
    print(f"{tables(about)}\n\nwrote {args.out} and {args.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
