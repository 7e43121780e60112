"""An environment of one's own and an expert for it, as `own_environment.ipynb` takes them through EEF.

What `eef` asks of an environment is :class:`eef.envs.TextEnv`. The pages here read like WebShop's, and the actions are
clicks, since the embedded base model has read such pages; a base of your own may read and say anything.
"""

import random
from copy import copy

from eef.envs import Step
from eef.files import digest
from eef.trajectory import Trajectory, Turn

MENU = {
    "city": "lisbon porto faro madrid sevilla toledo paris lyon nantes".split(),
    "meal": "soup rice fish pasta salad curry bread eggs fruit".split(),
    "seat": "window aisle middle front rear upper lower quiet family".split(),
}


class Kiosk:
    """A ticket machine: on three pages, each of three screens, click the word that was asked for; then buy."""

    name = "kiosk"
    max_steps = 12

    def __init__(self, train: int, test: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        goals = [f"{city}-{meal}-{seat}" for city in MENU["city"] for meal in MENU["meal"] for seat in MENU["seat"]]
        rng.shuffle(goals)
        self.splits = {"train": goals[:train], "eval": [], "test": goals[train : train + test]}

    def tasks(self, split: str) -> list[str]:
        return list(self.splits[split])

    def reset(self, task: str) -> str:
        self.wanted, self.chosen, self.screen = task.split("-"), (), 0
        return self.page()

    def page(self) -> str:
        city, meal, seat = self.wanted
        asked = f"i am looking for a ticket to {city} with {meal} and a {seat} seat"
        return " [SEP] ".join(["Instruction:", asked, *self.clicks()])

    def clicks(self) -> list[str]:
        if len(self.chosen) == len(MENU):
            return ["< prev", "buy now"]
        words = list(MENU.values())[len(self.chosen)]
        return ["< prev", "next >", *words[3 * self.screen : 3 * self.screen + 3]]

    def available_actions(self) -> dict[str, list[str]]:
        return {"actions": [f"click[{name}]" for name in self.clicks()]}

    def step(self, action: str) -> Step:
        name = action.removeprefix("click[").removesuffix("]")
        if action not in self.available_actions()["actions"]:
            return Step(self.page(), 0.0, False, valid=False, info={"won": False})
        if name == "buy now":
            right = sum(a == b for a, b in zip(self.chosen, self.wanted, strict=True)) / len(MENU)
            return Step("Thank you", right, True, info={"won": right == 1})
        if name == "next >":
            self.screen = (self.screen + 1) % 3
        else:  # back to the page before, or on to the next
            self.chosen, self.screen = self.chosen[:-1] if name == "< prev" else (*self.chosen, name), 0
        return Step(self.page(), 0.0, False, info={"won": False})

    def fork(self) -> "Kiosk":
        return copy(self)  # a state is three values that are replaced, never changed

    def can_start_here(self, observation: str) -> bool:
        return True

    def stamp(self) -> dict[str, str]:
        return {"goals": digest(self.splits)}

    def state_key(self) -> dict[str, str]:
        return {"menu": digest(MENU)}  # the code of this class counts by itself


def play(env: Kiosk, task: str, seed: int = 0, slip: float = 0.05, late: float = 0.6) -> Trajectory:
    """An expert that slips: a wrong word with chance ``slip``, and with ``late`` more once it has turned a screen."""
    rng = random.Random(f"{seed} {task}")
    prompt, turns, turned = env.reset(task), [], False
    while True:
        names = env.clicks()
        wanted = [name for name in names if name in (*env.wanted, "buy now")]
        wrong = [name for name in names if name not in (*env.wanted, "< prev", "next >", "buy now")]
        name = wanted[0] if wanted else "next >"
        if wanted and wrong and rng.random() < slip + late * turned:
            name = rng.choice(wrong)
        turned |= name == "next >"
        step = env.step(f"click[{name}]")
        turns.append(Turn(f"click[{name}]", step.observation))
        if step.done or len(turns) == env.max_steps:
            won = bool(step.info["won"])
            return Trajectory(
                task, prompt, tuple(turns), step.reward, won, "clerk", "done" if step.done else "max_steps"
            )
