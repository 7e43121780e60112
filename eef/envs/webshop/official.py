"""``WebAgentTextEnv`` with the interface of the official package, for code that was written for it.

Change one import: ``from web_agent_site.envs import WebAgentTextEnv`` becomes
``from eef.envs.webshop.official import WebAgentTextEnv``. ``docs/webshop_drop_in.md`` lists what differs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from eef.envs.webshop.goals import Goal
from eef.envs.webshop.nouns import Tagger
from eef.envs.webshop.pages import MODES, page_html, render_page
from eef.envs.webshop.reward import score
from eef.envs.webshop.session import Shop, State, advance, clickables
from eef.envs.webshop.simserver import BASE_URL, SimServer

__all__ = ["SimServer", "WebAgentTextEnv", "register"]


class SimBrowser:
    """What the official browser object shows of the current page."""

    def __init__(self, env: WebAgentTextEnv) -> None:
        self._env, self.server = env, env.server

    @property
    def session_id(self) -> str | None:
        return self._env.session

    @property
    def current_url(self) -> str:
        return self._env.url()

    @property
    def page_source(self) -> str:
        return self._env.html()


class WebAgentTextEnv:
    """The official text environment: ``reset(session=...)``, ``step(action)``, ``get_available_actions()``.

    ``observation_mode``: ``html``, ``text``, ``text_rich`` or ``url``. ``server``: a :class:`SimServer` to share, or
    else one is made of ``file_path``, ``attr_path``, ``seed``, ``nouns`` and the options ``filter_goals``,
    ``limit_goals``, ``num_products``, ``human_goals``, ``show_attrs``. ``session_prefix`` is put before each name of a
    session; ``num_prev_obs`` and ``num_prev_actions`` add earlier pages and actions to each observation. ``step_api``:
    ``gym`` (``step`` returns four values, ``info`` is None) or ``gymnasium`` (five values, ``info`` is a dictionary).

    ValueError for another mode or API, and for ``get_image``; TypeError for an unknown option.
    """

    def __init__(
        self,
        observation_mode: str = "html",
        file_path: str | Path | None = None,
        server: SimServer | None = None,
        *,
        attr_path: str | Path | None = None,
        filter_goals: Callable[[int, dict[str, Any]], bool] | None = None,
        limit_goals: int = -1,
        num_products: int | None = None,
        human_goals: bool | None = None,
        show_attrs: bool = False,
        session: str | int | None = None,
        session_prefix: str | None = None,
        num_prev_obs: int = 0,
        num_prev_actions: int = 0,
        get_image: bool = False,
        seed: int = 0,
        nouns: Tagger | None = None,
        step_api: str = "gym",
    ) -> None:
        if observation_mode not in ("html", "url", *MODES):
            raise ValueError(f"Observation mode {observation_mode} not supported.")
        if step_api not in ("gym", "gymnasium"):
            raise ValueError(f"step_api must be 'gym' or 'gymnasium', not {step_api!r}")
        if get_image:
            raise ValueError("get_image needs the image features of the official package, which are not available here")
        super().__init__()
        self.observation_mode, self.step_api = observation_mode, step_api
        self.file_path, self.attr_path, self.base_url = file_path, attr_path, BASE_URL
        self.server = server or SimServer(
            BASE_URL, file_path, filter_goals, limit_goals, num_products, human_goals, show_attrs, attr_path, seed,
            nouns,
        )  # fmt: skip
        self.browser = SimBrowser(self)
        self.session: Any = session
        self.session_prefix = session_prefix
        self.num_prev_obs, self.num_prev_actions = num_prev_obs, num_prev_actions
        self.prev_obs: list[str] = []
        self.prev_actions: list[str] = []
        self._drawn = ""
        self.reset()

    def reset(self, session: str | int | None = None, instruction_text: str | None = None, **options: Any) -> Any:
        """Start an episode. Returns ``(observation, None)``, or ``(observation, {})`` with the gymnasium API.

        An integer is the index of a goal, as is one in ``options["session"]``; for another name, or none, a goal is
        drawn. A session that was started before keeps its goal. IndexError if there is no such goal; ValueError for
        ``seed``, which has no effect here.
        """
        if options.pop("seed", None) is not None:
            raise ValueError("reset(seed=...) has no effect here: pass session=..., the index of a goal")
        session = (options.pop("options", None) or {}).get("session", session)
        if options:
            raise TypeError(f"reset() got an unexpected argument {next(iter(options))!r}")
        self.server.user_sessions.pop(self._drawn, None)  # nothing else knows this name
        drawn = self.server.draw_name() if session is None else ""
        self.session = (self.session_prefix or "") + (drawn or str(session))
        self._drawn = self.session if drawn else ""
        number = session if isinstance(session, int) else None
        self._open = self.server.open_session(self.session, number)
        self._shop: Shop = copy.copy(self.server.shop)
        self._shop.goals = {self._open["number"]: _goal(self._open["goal"])}  # type: ignore[assignment]
        self._state = State(self._open["number"])
        self.instruction_text = instruction_text or self.get_instruction_text()
        self.prev_obs, self.prev_actions = [self._page()], []
        return self.prev_obs[0], (None if self.step_api == "gym" else {})

    def step(self, action: str) -> Any:
        """Take one action, ``search[keywords]`` or ``click[value]``; an invalid one changes nothing.

        Returns ``(observation, reward, done, None)``, or ``(observation, reward, terminated, False, info)`` with the
        gymnasium API, where ``info`` has ``valid``, and ``verbose_info`` after a purchase.
        """
        before, after = self._state, advance(self._shop, self._state, action, self.server.show_attrs)
        reward = 0.0
        info: dict[str, Any] = {"valid": after is not None}
        if after is not None:
            if after.kind == "done":
                reward, details = score(
                    self._shop.product(after), self._shop.goals[after.goal], dict(after.options).values(),
                    self.server.nouns,
                )  # fmt: skip
                after = after._replace(reward=reward)
                self._open.update(done=True, reward=reward, verbose_info=details)
                info["verbose_info"] = details
            self._record(before, after)
            self._state = after
        page, texts = self._page(), []
        self.prev_actions.append(action)
        for back in range(1, 1 + max(self.num_prev_obs, self.num_prev_actions)):
            texts += self.prev_actions[-back:][:1] if back <= min(self.num_prev_actions, len(self.prev_actions)) else []
            texts += self.prev_obs[-back:][:1] if back <= min(self.num_prev_obs, len(self.prev_obs)) else []
        self.prev_obs.append(page)
        shown = " [SEP] ".join([page, *texts][::-1])
        done = after is not None and after.kind == "done"
        return (shown, reward, done, None) if self.step_api == "gym" else (shown, reward, done, False, info)

    def _record(self, before: State, after: State) -> None:
        """Update the session of the server after a move."""
        session = self._open
        if after.kind == "search":
            session["actions"].clear()
        elif after.kind == "results":
            session["actions"]["search"] += 1
        elif after.kind == "sub":
            session["actions"][after.sub] += 1
        elif after.kind == "done":
            session["actions"]["purchase"] += 1
        elif before.kind == "results":
            session["actions"]["asin"] += 1
        elif before.kind == "item":
            session["actions"]["options"] += 1
        session.update(
            keywords=None if after.keywords is None else list(after.keywords), page=after.page, asin=after.asin,
            options=dict(after.options), asins=set(after.visited),
        )  # fmt: skip

    @property
    def text_to_clickable(self) -> dict[str, str]:
        """The clickable texts; the values are asins, groups of options, or empty."""
        return clickables(self._shop, self._state, self.server.show_attrs)

    def get_available_actions(self) -> dict[str, Any]:
        """``{"has_search_bar": bool, "clickables": [lower-cased texts in page order]}``."""
        names = list(clickables(self._shop, self._state, self.server.show_attrs))
        return {"has_search_bar": self._state.kind == "search", "clickables": names}

    def get_instruction_text(self) -> str:
        """``Instruction: `` and the instruction of the session."""
        return f"Instruction: {self._shop.goals[self._state.goal].instruction_text}"

    @property
    def observation(self) -> str:
        """The current page in the observation mode."""
        return self._page()

    @property
    def state(self) -> dict[str, str]:
        """``url``, ``html`` and ``instruction_text`` of the current page."""
        return {"url": self.url(), "html": self.html(), "instruction_text": self.instruction_text}

    def _page(self) -> str:
        if self.observation_mode == "html":
            return self.html()
        if self.observation_mode == "url":
            return self.url()
        return render_page(self._shop, self._state, self.observation_mode, self.server.show_attrs)

    def html(self) -> str:
        """The current page as HTML of our own, with the texts, buttons, links and inputs of the official one."""
        return page_html(self._shop, self._state, self.server.show_attrs)

    def url(self) -> str:
        """The official address of the current page."""
        state, base = self._state, self.server.base_url
        words, options = "+".join(state.keywords or ()), dict(state.options)
        return {
            "search": f"{base}/{self.session}",
            "results": f"{base}/search_results/{self.session}/{words}/{state.page}",
            "item": f"{base}/item_page/{self.session}/{state.asin}/{words}/{state.page}/{json.dumps(options)}",
            "sub": f"{base}/item_sub_page/{self.session}/{state.asin}/{words}/{state.page}/{state.sub}/{options}",
            "done": f"{base}/done/{self.session}/{state.asin}/{options}",
        }[state.kind]

    def initialize(self, goals: Sequence[dict[str, Any]] | None = None) -> None:
        """Replace the goals of the server, for wrappers that share one list among many environments."""
        if goals is not None:
            self.server.goals = list(goals)

    def render(self, mode: str = "human") -> None:
        """Does nothing, as in the official code."""

    def close(self) -> None:
        """Does nothing, as in the official code."""


def register(gym: ModuleType, name: str = "WebAgentTextEnv-v0", **options: Any) -> type:
    """Register the environment with the module ``gym`` or ``gymnasium``, so that ``gym.make(name, ...)`` makes it.

    ``options`` are those of :class:`WebAgentTextEnv` that the caller of ``gym.make`` does not give. Returns the
    registered class, a subclass of ``gym.Env``.
    """
    api = {"step_api": "gymnasium"} if gym.__name__ == "gymnasium" else {}
    env_class = type("WebAgentTextEnv", (WebAgentTextEnv, gym.Env), {"__doc__": WebAgentTextEnv.__doc__})
    gym.register(id=name, entry_point=env_class, kwargs=api | options, disable_env_checker=True, order_enforce=False)
    return env_class


def _goal(fields: dict[str, Any]) -> Goal:
    """The goal of a dictionary with the official keys."""
    options = fields["goal_options"]
    named: dict[str, Any] = {name: fields[name] for name in Goal.__slots__ if name in fields}
    synthetic = isinstance(options, dict)
    named |= {"attributes": tuple(fields["attributes"]), "synthetic": synthetic}
    return Goal(**named, options=tuple(options.items() if synthetic else options))
