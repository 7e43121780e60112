"""Play episodes of WebShop through the wrappers of public repositories, on our `WebAgentTextEnv`.

    git clone URL FOLDER/NAME && git -C FOLDER/NAME checkout COMMIT    # for each row below
    pip install gym==0.26.2                                            # for AgentGym and verl-agent
    python experiments/play_wrappers.py FOLDER [--record RECORD]

    NAME        URL                                             COMMIT
    ETO         https://github.com/Yifan-Song793/ETO            a2fc5da
    RAGEN       https://github.com/RAGEN-AI/RAGEN               5eb79b8
    AgentGym    https://github.com/WooooDyy/AgentGym            3ef9235
    verl-agent  https://github.com/CloudEngineHub/verl-agent    d0b9724

The files of the repositories stay unchanged. Where they import the official package, they find a module of that name
that contains our class. Modules that they import for other things (Ray, ALFWorld, ...) are replaced by empty ones.

RECORD has the official files in `data/`, and episodes of the official code in `golden/`: `transcripts.jsonl.gz` and
edge cases in `quirks.jsonl.gz`, one row per step, and `title_nouns.json.gz`. Without it, 110 random episodes on the
embedded catalogue are recorded with our class itself. Page, reward, end and available actions are compared after each
step. A difference is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import io
import json
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from eef.envs.webshop.official import SimServer, WebAgentTextEnv, register

Row = dict[str, Any]
TESTS = Path(__file__).resolve().parents[1] / "tests" / "envs" / "webshop"
FIELDS = {"text": "observation", "text_rich": "observation_rich"}  # of a row, by observation mode


def add_module(name: str, **contents: Any) -> None:
    """Add a module, and the packages that it is in."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        package = sys.modules.setdefault(".".join(parts[:end]), ModuleType(parts[end - 1]))
        package.__dict__.setdefault("__path__", [])
    vars(sys.modules[name]).update(contents)


def load_file(path: Path) -> Any:
    """The module in a file, without the package that it is in."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ETO:
    """`eval_agent/envs/webshop_env.py`. It strips actions."""

    def __init__(self, folder: Path, mode: str, server: SimServer) -> None:
        sys.path.insert(0, str(folder))
        os.chdir(folder)  # it reads its prompts by relative paths
        from eval_agent.envs import WebShopEnv
        from eval_agent.tasks import WebShopTask

        config = json.loads(Path("eval_agent/configs/task/webshop.json").read_text())["env_config"]
        config.pop("env_class")
        env = WebAgentTextEnv(observation_mode=mode, human_goals=True, server=server)
        self.env = env
        self.wrap = lambda session: WebShopEnv(task=WebShopTask(task_id=session, session_id=session), env=env, **config)

    def reset(self, session: int) -> str:
        self.wrapper = self.wrap(session)
        return self.wrapper.reset()[1].history[-1]["content"]

    def step(self, action: str) -> tuple[str, float, bool]:
        state = self.wrapper.state
        state.reward, state.finished, state.terminate_reason = 0, False, None
        page, state = self.wrapper.step(f"Thought: I think\nAction: {action}")
        done = state.terminate_reason == "success"
        return page.removeprefix("Observation:\n"), (state.reward or 0) if done else 0, done

    def actions(self) -> Any:
        return self.env.get_available_actions()


class RAGEN:
    """`ragen/env/webshop/env.py`."""

    def __init__(self, folder: Path, mode: str, server: SimServer) -> None:
        for name in ("ragen", "ragen.env", "ragen.env.webshop", "ragen.utils"):  # their __init__ import other things
            add_module(name, __path__=[str(folder / name.replace(".", "/"))])
        sys.modules["ragen.utils"].all_seed = None  # type: ignore[attr-defined]
        from ragen.env.webshop.config import WebShopEnvConfig
        from ragen.env.webshop.env import WebShopEnv

        self.env = WebShopEnv(WebShopEnvConfig(observation_mode=mode, server=server, human_goals=True))

    def reset(self, session: int) -> str:
        return self.env.reset(seed=0, session=session)

    def step(self, action: str) -> tuple[str, float, bool]:
        page, reward, done, info = self.env.step(action)
        assert info["success"] == (reward == 1) and info["success_purchase"] == done
        return page, reward, done

    def actions(self) -> Any:
        return WebAgentTextEnv.get_available_actions(self.env)


class AgentGym:
    """`agentenv-webshop/agentenv_webshop/environment.py`."""

    def __init__(self, folder: Path, mode: str, server: SimServer) -> None:
        self.wrapper = load_file(folder / "agentenv-webshop/agentenv_webshop/environment.py").webshop_env_server
        self.id = self.wrapper.create()
        self.wrapper.env[self.id].unwrapped.observation_mode = mode

    def reset(self, session: int) -> str:
        page, _ = self.wrapper.reset(self.id, session)
        assert self.wrapper.observation(self.id) == page and self.wrapper.get_instruction_text(self.id)
        return page

    def step(self, action: str) -> tuple[str, float, bool]:
        return self.wrapper.step(self.id, action)[:3]

    def actions(self) -> Any:
        return self.wrapper.get_available_actions(self.id)


class VerlAgent:
    """`env_package/webshop/envs.py`, one worker."""

    def __init__(self, folder: Path, mode: str, server: SimServer) -> None:
        module = load_file(folder / "agent_system/environments/env_package/webshop/envs.py")
        self.wrapper = module.WebshopWorker(0, {"observation_mode": mode, "num_products": None, "human_goals": True})

    def reset(self, session: int) -> str:
        page, self.info = self.wrapper.reset(session)
        return page

    def step(self, action: str) -> tuple[str, float, bool]:
        page, _, done, self.info = self.wrapper.step(action)
        assert self.info["won"] == (done and self.info["task_score"] == 1)
        return page, self.info["task_score"], done

    def actions(self) -> Any:
        return self.info["available_actions"]


WRAPPERS = {"ETO": ETO, "RAGEN": RAGEN, "AgentGym": AgentGym, "verl-agent": VerlAgent}


def recorded(folder: Path) -> dict[str, list[Row]]:
    """Episodes of the official code, and edge cases without those in which our class differs on purpose."""
    sys.path.insert(0, str(TESTS))
    from test_webshop_golden import DIFFERENCES

    rows = {}
    for name in ("transcripts", "quirks"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows[name] = [json.loads(line) for line in file]
    named = [row for row in rows["quirks"] if "exception" not in row and type(row["session"]) is int]
    edges = [row for row in named if row["session"] >= 0 and row["step"] < DIFFERENCES.get(row["quirk"], 1000)]
    return {"episodes": rows["transcripts"], "edge cases": edges}


def random_episodes(server: SimServer, count: int = 110, steps: int = 20) -> Iterator[Row]:
    """Episodes of random actions, recorded with our class."""
    envs = {field: WebAgentTextEnv(mode, server=server) for mode, field in FIELDS.items()}
    rng = random.Random(0)
    for session in rng.sample(range(len(server.goals)), count):
        row: Row = {"session": session, "step": 0, "reward": 0, "done": False}
        row |= {field: env.reset(session=session)[0] for field, env in envs.items()}
        env = envs["observation"]
        for step in range(1, steps + 1):
            yield row | {"available_actions": (actions := env.get_available_actions())}
            if row["done"]:
                break
            query = " ".join(rng.choices(env.get_instruction_text().split(), k=4))
            action = f"search[{query}]" if actions["has_search_bar"] else f"click[{rng.choice(actions['clickables'])}]"
            results = {field: each.step(action) for field, each in envs.items()}
            _, reward, done, _ = results["observation"]
            row = {"session": session, "step": step, "action": action, "reward": reward, "done": done}
            row |= {field: result[0] for field, result in results.items()}


def differences(wrapper: Any, rows: list[Row], mode: str, server: SimServer) -> tuple[int, list[tuple[int, int]]]:
    """The number of compared pages, and (session, step) of each that differs.

    An episode ends before the first action that ETO's wrapper would change.
    """
    pages, differing, skip = 0, [], False
    for row in rows:
        server.show_attrs = row.get("show_attrs", False)
        if row["step"] == 0:
            skip, result = False, (wrapper.reset(row["session"]), 0, False)
        else:
            action = row["action"]
            skip |= not isinstance(action, str) or (isinstance(wrapper, ETO) and action != (action.strip() or None))
            if skip:
                continue
            result = tuple(wrapper.step(action))
        pages += 1
        if result != (row[FIELDS[mode]], row["reward"], row["done"]) or wrapper.actions() != row["available_actions"]:
            differing.append((row["session"], row["step"]))
    return pages, differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder with the repositories")
    parser.add_argument("--record", metavar="RECORD", type=Path, help="folder with data/ and golden/")
    args = parser.parse_args()
    folder, record = args.folder.resolve(), args.record.resolve() if args.record else None
    if not any((folder / name).is_dir() for name in WRAPPERS):
        parser.error(f"{folder} has none of the folders {', '.join(WRAPPERS)}: clone the repositories into it")
    nouns = None
    if record:
        with gzip.open(record / "golden" / "title_nouns.json.gz", "rt", encoding="utf-8") as file:
            nouns = json.load(file)
    server = SimServer(file_path=record and record / "data", human_goals=True, nouns=nouns)
    rows = recorded(record / "golden") if record else {"episodes": list(random_episodes(server))}

    warnings.simplefilter("ignore")  # of gym
    for name in ("webshop.web_agent_site.envs", "web_agent_site.envs"):
        add_module(name, WebAgentTextEnv=WebAgentTextEnv)
    add_module("webshop_minimal", WebAgentTextEnv=WebAgentTextEnv, init_basedir=lambda dataset: None)
    add_module("webshop_minimal.utils", DEFAULT_FILE_PATH=None)
    for name in ("scienceworld", "alfworld", "alfworld.agents", "alfworld.agents.environment", "ray", "omegaconf"):
        sys.modules[name] = MagicMock()
    if importlib.util.find_spec("gym"):
        register(importlib.import_module("gym"), server=server)
    total = 0
    for name, kind in WRAPPERS.items():
        if not (folder / name).is_dir():
            print(f"{name:<11} not played: there is no folder {folder / name}")
            continue
        for mode, label in (("text", "episodes"), ("text_rich", "episodes"), ("text", "edge cases")):
            if label not in rows:
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                wrapper = kind(folder / name, mode, server)
            pages, differing = differences(wrapper, rows[label], mode, server)
            episodes = sum(row["step"] == 0 for row in rows[label])
            counts = f"{episodes:>3} {label:<10} {pages:>5} pages compared, {len(differing)} differences"
            print(f"{name:<11} {mode:<9} {counts}", *differing[:3], flush=True)
            total += len(differing)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
