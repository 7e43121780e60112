"""Where expert trajectories come from: files, or scripted stand-ins of two strengths for the embedded default.

The stand-ins play WebShop by rule and slip (:mod:`eef.envs.webshop.shopper`). ``strong`` wins about 36 % of the
embedded default's training subtasks, as GPT-4 does in the paper (Table 1), ``weak`` about 27 %. Fewer than two in a
hundred wins turn a page, of the failures more than two thirds do. Failures hold good prefixes (searches, pages turned,
the right item opened), harmful moves (a wrong row, a wrong option, a hasty purchase) and recoveries (a step back from a
wrong item).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from eef.envs import TextEnv
from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import grade
from eef.envs.webshop.shopper import Slips, play
from eef.trajectory import Trajectory, load

STRONG = Slips(base=0.06, growth=0.02, late=0.75, notice=0.6)
WEAK = Slips(base=0.1, growth=0.04, late=0.85, notice=0.4)
STAND_INS = {"strong": STRONG, "weak": WEAK}


def collect(
    env: TextEnv,
    names: str,
    tasks: Sequence[str],
    seed: int,
    told: Callable[[int], None] | None = None,
    slips: Mapping[str, float] | None = None,
) -> list[Trajectory]:
    """Expert trajectories on ``tasks``. ``names`` joins stand-ins and files by ``+`` (``strong+weak``, ``my.jsonl``).

    ``slips`` changes fields of the stand-ins' :class:`~eef.envs.webshop.shopper.Slips`: how strong they are
    (``base``, ``growth``, ``notice``) and how rarely their wins show navigation (``late``). A file's trajectories on
    other subtasks are left out. ValueError for a name that is neither, that stands twice, or where no trajectory is
    left, and for unknown slips; :class:`eef.trajectory.TrajectoryError` for a torn file.
    """
    found: list[Trajectory] = []
    given = names.split("+")
    if len(set(given)) < len(given):
        raise ValueError(f"experts={names!r} names one expert twice")
    for name, chance in (slips or {}).items():
        if name not in Slips.__dataclass_fields__:
            raise ValueError(f"slips: {name!r} is none of {', '.join(Slips.__dataclass_fields__)}")
        if isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance <= 1:
            raise ValueError(f"slips: {name!r} is a chance in [0, 1], not {chance!r}")
    if slips and not set(given) & set(STAND_INS):
        raise ValueError(f"slips change stand-ins ({', '.join(STAND_INS)}) alone, and experts={names!r} names none")
    for name in given:
        if name in STAND_INS:
            found += _played(env, replace(STAND_INS[name], **(slips or {})), name, tasks, seed, told)
        elif Path(name).is_file():
            wanted, read = set(tasks), load(name)
            kept = [replace(item, source=item.source or Path(name).stem) for item in read if item.task in wanted]
            if not kept:
                raise ValueError(
                    f"{name}: none of its {len(read)} trajectories is on one of the {len(wanted)} training subtasks"
                )
            found += kept
        else:
            raise ValueError(f"expert {name!r} is neither a stand-in ({', '.join(STAND_INS)}) nor a trajectory file")
    return found


def demonstrations(env: TextEnv, tasks: Sequence[str], told: Callable[[int], None] | None = None) -> list[Trajectory]:
    """Perfect play on ``tasks``: what the ceiling is trained on."""
    return _played(env, Slips(), "perfect", tasks, 0, told)


def difficulty(env: TextEnv, tasks: Sequence[str]) -> dict[str, str] | None:
    """``easy``, ``medium`` or ``hard`` for each task of a generated shop, by what perfect play needs; else None."""
    if not isinstance(env, WebShop) or not env.generated:
        return None
    return {task: grade(play(cast(WebShop, env.fork()), task).actions) for task in tasks}


def _played(
    env: TextEnv, slips: Slips, name: str, tasks: Sequence[str], seed: int, told: Callable[[int], None] | None
) -> list[Trajectory]:
    if not isinstance(env, WebShop):
        raise ValueError(f"the expert {name!r} plays WebShop only: give a trajectory file for {env.name}")
    out = []
    for task in tasks:
        played = play(cast(WebShop, env.fork()), task, slips, seed, insight=not env.generated)
        out.append(replace(played, source=name))
        if told:
            told(1)
    return out
