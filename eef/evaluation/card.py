"""The card of an evaluation: what was measured under which protocol, as JSON and as Markdown.

Equal evaluations have equal ``card.json``. Times are in ``timing.json`` of the run, and in the Markdown only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from eef.agents.chat import Chat
from eef.analysis.evaluate import cost, tokens_read
from eef.analysis.statistics import wilson, without_errors
from eef.evaluation.protocol import Acting, Protocol
from eef.evaluation.subject import Subject
from eef.trajectory import Trajectory

FORMAT = 1
COVERS = (
    "95 % intervals over subtasks: Wilson for the win rate, a bootstrap for the reward. They cover other draws of "
    "subtasks like these for this one policy. They do not cover other training seeds. A bootstrap of equal values has "
    "no width, whatever their number."
)
SERVER_DEFAULT = "the server's default"  # of a field that the requests do not set
READ = {
    "policy": "each token of a page once, as with a cache of keys and values",
    "endpoint": "as counted by the endpoint; each request sends the whole conversation",
    "expert": "none: a scripted expert reads no tokens",
}


def departures(protocol: Protocol, subject: Subject) -> dict[str, list[Any]]:
    """What a policy does otherwise than the protocol says: name -> [the protocol's value, the one that was used].

    Instructions that a model with aliases for words cannot read are not a departure.
    """
    if subject.acting is None:
        return {}
    from eef.agents.model_files import options_of  # imports torch

    wanted, used = asdict(protocol.acting), _shown(subject.acting)
    has_aliases = subject.settings is not None and bool(options_of(subject.settings.model).get("aliases"))
    if has_aliases and used["prompt"] == wanted["prompt"]:
        used["instructions"] = wanted["instructions"]
    return {name: [wanted[name], used[name]] for name in wanted if wanted[name] != used[name]}


def _shown(acting: Acting) -> dict[str, Any]:
    return {name: SERVER_DEFAULT if value is None else value for name, value in asdict(acting).items()}


def make_card(
    protocol: Protocol,
    subject: Subject,
    hashes: Mapping[str, str],
    shared: Mapping[str, int],
    episodes: pd.DataFrame,
    measured: Mapping[str, Any],
    trajectories: Sequence[Trajectory],
    chat: Chat | None,
    version: str,
) -> dict[str, Any]:
    """The contents of ``card.json``.

    ``episodes`` and ``measured`` are the table and the summary of :mod:`eef.analysis.evaluate`. ``shared``: see
    :func:`eef.evaluation.protocol.overlap`. ``chat`` is that of a policy of ours. ``version``: of this package.
    """
    rated = without_errors(episodes)
    wins = int(rated["won"].sum())
    low, high = wilson(wins, len(rated))
    counted = cost(trajectories)
    reader = "policy" if chat else subject.kind
    if chat:
        read = tokens_read(chat, trajectories)
    else:
        read = sum(int(episode.info.get("prompt_tokens", 0)) for episode in trajectories)
    more = {name: value for name, value in measured.items() if name.startswith(("win_rate_", "wins_", "mean_max"))}
    invalid = {name: measured[name] for name in ("invalid", "no_action", "ambiguous", "cut") if name in measured}
    return {
        "format": FORMAT,
        "protocol": {**protocol.as_dict(), "hash": protocol.hash},
        "subject": {"kind": subject.kind, "name": subject.name, **subject.identity},
        "acting": _shown(subject.acting) if subject.acting else None,
        "departures": departures(protocol, subject),
        "subtasks": len(trajectories),
        "partial": len(trajectories) < protocol.subtasks,
        "hashes": {**hashes, **({"chat": chat.hash} if chat else {})},
        "overlap": {kind: {"shared": value, "of": len(trajectories)} for kind, value in shared.items()},
        "rates": {
            "rated": len(rated),
            "errors": len(episodes) - len(rated),
            "wins": wins,
            "win_rate": wins / len(rated),
            "win_low": low,
            "win_high": high,
            **{name: measured[name] for name in ("mean_reward", "reward_low", "reward_high")},
            **more,
            "covers": COVERS,
        },
        "answers": invalid,
        "cost": {
            "episodes": counted["episodes"],
            "steps": counted["env_steps"],
            "sampled_tokens": counted["tokens"],
            "read_tokens": read,
            "read_tokens_are": READ[reader],
        },
        "eef": version,
    }


def markdown(card: Mapping[str, Any], seconds: float) -> str:
    """A card for reading. ``seconds``: what the stages took."""
    protocol, subject, rates, cost_ = card["protocol"], card["subject"], card["rates"], card["cost"]
    lines = [f"# {subject['name']} on {protocol['name']}", "", f"{protocol['title']}.", ""]
    if card["partial"]:
        part = f"{card['subtasks']} of the {protocol['subtasks']} subtasks"
        lines += [f"**Partial: {part}.** This is not a result under the protocol.", ""]
    lines += ["| | value | 95 % interval |", "|---|---|---|", f"| win rate | {_interval(rates, 'win', 'win_rate')} |"]
    lines += [f"| mean reward | {_interval(rates, 'reward', 'mean_reward')} |"]
    for name, value in rates.items():
        if name.startswith(("win_rate_", "wins_", "mean_max")):
            lines.append(f"| {name} | {'-' if value is None or value != value else f'{value:.3f}'} | |")
    lines += ["", f"{rates['wins']} of {rates['rated']} subtasks were won. {rates['covers']}"]
    if rates["errors"]:
        lines.append(f"{rates['errors']} episodes ended in an error of the infrastructure and are not rated.")
    if card["answers"]:
        lines.append(f"Answers: {', '.join(f'{value} {name}' for name, value in card['answers'].items())}.")
    lines += ["", "## Training and test", "", *overlap_lines(card["overlap"])]
    if protocol["flaw"]:
        lines += ["", f"**Known flaw.** {protocol['flaw']}"]
    lines += ["", "## Protocol", "", protocol["about"], "", f"Success: {protocol['success']}", ""]
    lines += [f"- file: `{protocol['name']}`, hash `{protocol['hash']}`"]
    lines += [f"- {name}: `{value}`" for name, value in card["hashes"].items()]
    unfixed = [
        name for name in card["hashes"] if name not in protocol["hashes"] and name not in ("environment", "chat")
    ]
    lines += [f"- not fixed by the protocol: {', '.join(unfixed)}"] if unfixed else []
    lines += ["", "## Who", ""]
    lines += [f"- {name}: `{value}`" for name, value in subject.items() if value is not None]
    lines += [f"- {name}: {value!r}" for name, value in (card["acting"] or {}).items()]
    for name, (wanted, used) in card["departures"].items():
        lines.append(f"- **departs from the protocol:** {name} is {used!r}, the protocol has {wanted!r}")
    lines += ["", "## Cost", ""]
    lines += [f"- {cost_['episodes']:,} episodes, {cost_['steps']:,} steps"]
    lines += [
        f"- {cost_['sampled_tokens']:,} tokens sampled, {cost_['read_tokens']:,} read ({cost_['read_tokens_are']})"
    ]
    lines.append(f"- {seconds:,.1f} seconds")
    return "\n".join(lines) + "\n"


def overlap_lines(shared: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What test subtasks and training subtasks have in common, in words."""
    return [
        f"{each['shared']} of {each['of']} test subtasks share their {kind} with a training subtask."
        for kind, each in shared.items()
    ]


def _interval(rates: Mapping[str, Any], start: str, name: str) -> str:
    return f"{rates[name]:.3f} | {rates[f'{start}_low']:.3f} to {rates[f'{start}_high']:.3f}"
