"""Text environments: the protocol :class:`TextEnv`, and :func:`make_env`, which creates an environment by name.

An environment with a name is a folder ``eef/envs/NAME/`` and a line in :data:`ENVIRONMENTS`. The folder contains:

* ``__init__.py``: the class that implements :class:`TextEnv`, and :class:`ReplayEnv` if it cannot copy its state.
* ``extras.py`` (optional): ``EXTRAS``, the skills, grades, scripted experts, ... of :class:`eef.envs.extras.Extras`.
* ``instructions.txt`` (optional): what the environment asks of a ReAct agent; ``extras.py`` reads it.
* ``cli.py`` (optional), which may define

  - ``app``: a ``typer.Typer`` with the commands of ``eef NAME``; the module's docstring begins with their summary;
  - ``COLLECT_OPTIONS``: options of ``eef collect`` by the keyword of the class that they set, such as
    ``{"data": Annotated[str | None, typer.Option(metavar="FOLDER")]}``;
  - ``collect_defaults(concurrency)``: default keywords of the class for ``eef collect``;
  - ``check_defaults()``: default keywords of the class for ``eef envs check``.

  ``eef --help`` loads this file alone, so it imports other modules inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Protocol, cast

from eef.envs.errors import EnvError, ProtocolError, ReplayDivergence, own_errors
from eef.files import did_you_mean, replace_surrogates

if TYPE_CHECKING:
    from eef.trajectory import Trajectory


@dataclass(frozen=True)
class Step:
    """The result of one action: ``reward`` is in [0, 1]; ``valid`` is False for an invalid action, which does nothing.

    ``info["won"]`` on the last step of an episode is the only definition of success.
    """

    observation: str
    reward: float
    done: bool
    valid: bool = True
    info: dict[str, Any] = field(default_factory=dict)


_FAILED = "raise EnvError if the environment itself failed"


class TextEnv(Protocol):
    """An episodic text environment that plays one episode at a time.

    Equal tasks and actions must give equal observations, since expert states are reached by replay and every
    observation is compared. An episode is won if its last step has ``info["won"]``. An environment may also have an
    attribute ``extras`` (:class:`eef.envs.extras.Extras`) and a method ``close()``, which ends its processes. An
    attribute ``step_threads`` above 1 is the number of threads that may step different forks at once. A method
    ``max_steps_of(task)`` returns the step limit of a subtask where it is below ``max_steps``; ``state_key()`` has it.
    """

    name: str
    max_steps: int  # actions per episode; the rollouts enforce it

    def tasks(self, split: str) -> list[str]:
        """The ids of the tasks in ``train``, ``eval`` or ``test``, in a fixed order."""
        ...

    def reset(self, task: str) -> str:
        """Start an episode of ``task``. Returns the text of the initial state s0."""
        ...

    def step(self, action: str) -> Step:
        """Take one action. Invalid actions must not raise. EnvError for a failure of the environment itself."""
        ...

    def available_actions(self) -> dict[str, Any]:
        """The actions that are valid now: ``{"actions": [str, ...]}``.

        A page of buttons with an optional search bar may instead return ``{"has_search_bar": bool, "clickables":
        [str, ...]}``, whose actions are ``search[any text]`` and ``click[clickable]``.
        """
        ...

    def fork(self) -> TextEnv:
        """An independent copy in the same state. NotImplementedError if only a replay can reach a state."""
        ...

    def can_start_here(self, observation: str) -> bool:
        """Whether a simulation may start right after ``observation`` (paper, section 4.1)."""
        ...

    def stamp(self) -> dict[str, str]:
        """Hashes that must be equal for two runs to be comparable, such as those of the data and of the split."""
        ...

    def state_key(self) -> dict[str, Any]:
        """Everything that changes an observation, a reward or a valid action, as JSON values: options, hashes of data.

        Cached results are reused if it, ``max_steps`` and the source code of the class are the same; the last two need
        not be part of it, nor need the split. Results are stale if something is missing here.
        """
        ...


class ReplayEnv(TextEnv, Protocol):
    """An environment that cannot fork. States are reached by replay, and concurrent episodes need separate workers."""

    def workers(self, count: int) -> list[TextEnv]:
        """At most ``count`` independent environments, each of which one thread may use."""
        ...


def first_page(env: TextEnv, task: str) -> str:
    """``env.reset(task)``. :class:`ProtocolError` if it is not a text or raises another error than EnvError."""
    call = f"{type(env).__name__}.reset({task!r})"
    with own_errors(call, EnvError, instead=f"reset must start every task of tasks(split); {_FAILED}"):
        page = env.reset(task)
    if not isinstance(page, str):
        raise ProtocolError(f"{call} returned {type(page).__name__}, not str: return the text of s0 alone")
    return page


def take_step(env: TextEnv, action: str, task: str = "") -> Step:
    """``env.step(action)``. :class:`ProtocolError` unless it is a :class:`Step` of the right form.

    The last step of an episode must say whether it was won. An error of the environment's own code becomes a
    ProtocolError, which names ``task``.
    """
    action = replace_surrogates(action)  # it would end a simulator in another process
    call, advice = f"{type(env).__name__}.step({action!r})", "return Step(..., valid=False) for an invalid action"
    with own_errors(call + _on(task), EnvError, instead=f"{advice}; {_FAILED}"):
        step = env.step(action)
    if not isinstance(step, Step):
        kind = f"a tuple of {len(step)} values" if isinstance(step, tuple) else type(step).__name__
        raise ProtocolError(
            f"{call} returned {kind}, not a Step: return eef.envs.Step(observation, reward, done, valid, info)"
        )
    if not isinstance(step.observation, str):
        kind = type(step.observation).__name__
        raise ProtocolError(f"{call}: the observation is {kind}, not str: return Step with the page as one text")
    if not isinstance(step.info, dict):
        kind = type(step.info).__name__
        raise ProtocolError(f"{call}: info is {kind}, not dict: return Step(..., info={{'won': True or False}})")
    if step.done and "won" not in step.info:
        raise ProtocolError(
            f"{call} ended the episode (done=True) without info['won']: return Step(..., info={{'won': True}}) if the "
            "subtask was solved, else {'won': False}"
        )
    return step


def actions_now(env: TextEnv, task: str = "") -> dict[str, Any]:
    """``env.available_actions()``. :class:`ProtocolError` unless it has one of the two forms.

    A RuntimeError says that the environment does not list its actions. Other errors are as in :func:`take_step`.
    """
    call, form = f"{type(env).__name__}.available_actions()", "return {'actions': [...]}, a list of texts"
    with own_errors(call + _on(task), RuntimeError, instead=f"{form}; {_FAILED}"):
        actions = env.available_actions()
    if not isinstance(actions, dict) or not ("actions" in actions or "clickables" in actions):
        raise ProtocolError(f"{call} returned {type(actions).__name__} without 'actions': {form}")
    return actions


def _on(task: str) -> str:
    return f" on task {task!r}" if task else ""


def action_texts(available: dict[str, Any]) -> list[str]:
    """The actions in a result of ``available_actions``, without searches."""
    texts = available.get("actions")
    return [f"click[{name}]" for name in available["clickables"] if name != "search"] if texts is None else texts


def replay_workers(env: TextEnv, count: int) -> list[TextEnv]:
    """Workers for ``count`` concurrent episodes if ``env`` cannot fork; an empty list if it can."""
    try:
        env.fork()
    except NotImplementedError:
        return cast(ReplayEnv, env).workers(count)
    except EnvError:  # this fork failed, but the environment can fork
        pass
    return []


def on_workers(env: TextEnv, items: Sequence[Any], act: Callable[[Callable[[], TextEnv], Any], Any]) -> list[Any]:
    """``act(worker, item)`` for each of ``items``, in their order.

    ``worker()`` is a fork of ``env``, or one of its workers if it cannot fork; these work at the same time. ``env``
    keeps its state where it can fork.
    """
    workers = replay_workers(env, len(items))
    count = max(1, len(workers))

    def share(at: int) -> list[Any]:  # worker i takes every count-th item, from the i-th on
        return [act((lambda: workers[at]) if workers else env.fork, item) for item in items[at::count]]

    with ThreadPoolExecutor(count) as threads:
        shares = list(threads.map(share, range(count)))
    return [shares[index % count][index // count] for index in range(len(items))]


ENVIRONMENTS = {  # name of the folder -> name of the class; the first one is the default of the command line
    "webshop": "WebShop",
    "scienceworld": "ScienceWorld",
}


SPLITS = ("train", "eval", "test")


def _class_of(name: str) -> Any:
    if name not in ENVIRONMENTS:
        hint = did_you_mean(str(name), ENVIRONMENTS)
        raise ValueError(f"unknown environment {name!r}{hint}: use {' or '.join(map(repr, ENVIRONMENTS))}")
    place, kind = f"eef.envs.{name}", ENVIRONMENTS[name]
    try:
        # not an import statement: a stage depends only on the code of the environment that it receives
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place:
            raise
        raise ValueError(f"ENVIRONMENTS names {name!r}, but there is no folder eef/envs/{name}: correct one") from None
    if not hasattr(module, kind):
        hint = did_you_mean(kind, [key for key, value in vars(module).items() if isinstance(value, type)])
        raise ValueError(f"ENVIRONMENTS names the class {kind!r}, but eef/envs/{name}/__init__.py has none{hint}")
    return getattr(module, kind)


def make_env(name: str, **options: Any) -> TextEnv:
    """Create the environment called ``name``, one of :data:`ENVIRONMENTS`, with the keywords ``options`` of its class.

    The attribute ``make_env_arguments`` stores name and options, so that other processes can create their own copy.
    ValueError for an unknown name and an invalid ``max_steps``, TypeError for an unknown option.
    """
    env: TextEnv = _class_of(name)(**options)
    steps = getattr(env, "max_steps", 1)
    if type(steps) is not int or steps < 1:
        raise ValueError(f"max_steps={steps!r} must be a positive integer")
    vars(env)["make_env_arguments"] = (name, options)
    return env


def env_from_parameters(parameters: Mapping[str, Any]) -> TextEnv:
    """The environment that a notebook's parameters describe: ``env_from_parameters(globals())``.

    ``env`` is its name. ``max_steps`` and, unless empty, ``data`` and ``catalogue`` are options of its class, and so
    are the items of ``env_options``. ValueError for an unknown name or option, and what the class raises.
    """
    name, options = parameters["env"], dict(parameters.get("env_options") or {})
    keywords = signature(_class_of(name)).parameters
    known = list(keywords)
    own = {key: parameters[key] for key in ("data", "catalogue") if parameters.get(key)}
    own |= {"max_steps": parameters["max_steps"]} if "max_steps" in parameters else {}
    if both := [key for key in own if key in options]:
        raise ValueError(f"env_options: {both[0]!r} is a parameter of its own: set it there")
    for key in (*own, *options):
        if key not in known:
            where = "env_options: " if key in options else ""
            hint = did_you_mean(key, known)
            raise ValueError(f"{where}{name} has no option {key!r}{hint}; its options are {', '.join(known)}")
    unset = [key for key, each in keywords.items() if each.default is Parameter.empty and key not in {**own, **options}]
    if unset := [key for key in unset if keywords[key].kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]:
        raise ValueError(f"{name} has no default of its option {unset[0]!r}: set it, or give it one in the class")
    return make_env(name, **own, **options)


def restore(
    env: TextEnv, task: str, actions: Sequence[str], observations: Sequence[str | None], live: bool = False
) -> str:
    """Replay ``actions`` and compare every observation. Returns the last observation.

    ``observations`` contains the texts of s0, s1, ..., one more than ``actions``; None for a text that was not recorded
    and is not compared. An empty action stands for an answer without an action and is skipped.
    :class:`ReplayDivergence` names the first state that differs, or the action that ended the episode too early: before
    the last action or, with ``live``, with the last one.
    """
    return replay(env, task, actions, observations, live).observation


def replay(
    env: TextEnv, task: str, actions: Sequence[str], observations: Sequence[str | None], live: bool = False
) -> Step:
    """As :func:`restore`, but returns the last step; its reward is 0.0 if no action was taken."""
    if len(observations) != len(actions) + 1:
        raise ValueError(f"{len(actions)} actions need {len(actions) + 1} observations, not {len(observations)}")
    step = Step(first_page(env, task), 0.0, False)
    _compare(task, 0, step.observation, observations[0])
    for index, action in enumerate(actions):
        if step.done:
            raise _ended_early(task, index - 1, len(actions))
        recorded = observations[index + 1]
        if action:
            step = take_step(env, action, task)
        elif recorded is not None:
            step = replace(step, observation=recorded)
        _compare(task, index + 1, step.observation, recorded)
    if step.done and live:
        raise _ended_early(task, len(actions) - 1, len(actions) + 1)
    return step


def _ended_early(task: str, action: int, actions: int) -> ReplayDivergence:
    return ReplayDivergence(
        f"task {task}: the replay ended with action {action + 1}, but the recording has at least {actions} actions: "
        "use the same environment and step limit as the recording"
    )


def _compare(task: str, index: int, seen: str, recorded: str | None) -> None:
    if recorded is not None and seen != recorded:
        shorter = min(len(seen), len(recorded))
        at = next((i for i in range(shorter) if seen[i] != recorded[i]), shorter)
        raise ReplayDivergence(
            f"task {task}, state {index}: the replay shows {seen[at : at + 40]!r} where {recorded[at : at + 40]!r} was "
            f"recorded (character {at}): use the same data, options and seed as the recording"
        )


def walk(env: TextEnv, expert: Trajectory, indices: Sequence[int]) -> Iterator[tuple[int, TextEnv, Step]]:
    """Replay ``expert`` once; for each i of ``indices``, ascending, yield (i, environment in the state s_i, last step).

    Every observation is compared. If the replay diverges, the states before the divergence are yielded first, then
    :class:`ReplayDivergence` is raised.
    """
    wanted = sorted(set(indices))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < max(len(expert), 1):
        raise ValueError(f"no states {wanted} in an expert trajectory of {len(expert)} turns (task {expert.task})")
    step = Step(first_page(env, expert.task), 0.0, False)
    _compare(expert.task, 0, step.observation, expert.prompt)
    for index in range(wanted[-1] + 1 if wanted else 0):
        if index in wanted:
            yield index, env.fork(), step
        if index < wanted[-1] and expert.turns[index].action:  # an answer without an action changes nothing
            step = take_step(env, expert.turns[index].action, expert.task)
            _compare(expert.task, index + 1, step.observation, expert.turns[index].observation)
            if step.done:
                raise _ended_early(expert.task, index, len(expert))


def expert_states(env: TextEnv, expert: Trajectory, indices: list[int]) -> dict[int, TextEnv]:
    """Environments in the states s_i of ``expert`` for each i of ``indices`` (paper, section 4.1).

    The expert's actions are replayed once, and the environment is forked at each state of ``indices``.
    :class:`ReplayDivergence` if any observation differs; :func:`walk` also yields the states before a divergence.
    """
    return {index: twin for index, twin, _ in walk(env, expert, indices)}
