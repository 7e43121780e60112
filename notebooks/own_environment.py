"""Your own environment with an expert, skills and grades, which `own_environment.ipynb` takes through EEF.

The protocol is :class:`eef.envs.TextEnv`; the optional parts are :class:`eef.envs.extras.Extras`. The pages look like
those that the embedded base model has read, and the actions are clicks. With another base model both can be anything.
"""

import random
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from eef.envs import Step
from eef.envs.extras import Extras, ScriptedExperts, Skill
from eef.files import digest
from eef.trajectory import Trajectory, Turn

MENU = {
    "city": "lisbon porto faro madrid sevilla toledo paris lyon nantes".split(),
    "meal": "soup rice fish pasta salad curry bread eggs fruit".split(),
    "seat": "window aisle middle front rear upper lower quiet family".split(),
}


class Kiosk:
    """A ticket machine: click the wanted word on each of three pages, which have three screens each; then buy."""

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
        goal = f"i am looking for a ticket to {city} with {meal} and a {seat} seat"
        return " [SEP] ".join(["Instruction:", goal, *self.buttons()])

    def buttons(self) -> list[str]:
        if len(self.chosen) == len(MENU):
            return ["< prev", "buy now"]
        words = list(MENU.values())[len(self.chosen)]
        return ["< prev", "next >", *words[3 * self.screen : 3 * self.screen + 3]]

    def available_actions(self) -> dict[str, list[str]]:
        return {"actions": [f"click[{button}]" for button in self.buttons()]}

    def step(self, action: str) -> Step:
        button = action.removeprefix("click[").removesuffix("]")
        if action not in self.available_actions()["actions"]:
            return Step(self.page(), 0.0, False, valid=False, info={"won": False})
        if button == "buy now":
            reward = sum(a == b for a, b in zip(self.chosen, self.wanted, strict=True)) / len(MENU)
            return Step("Thank you", reward, True, info={"won": reward == 1})
        if button == "next >":
            self.screen = (self.screen + 1) % 3
        else:  # back to the previous page, or on to the next one
            self.chosen, self.screen = self.chosen[:-1] if button == "< prev" else (*self.chosen, button), 0
        return Step(self.page(), 0.0, False, info={"won": False})

    def fork(self) -> "Kiosk":
        return copy(self)  # the state is three values that are replaced and never changed

    def can_start_here(self, observation: str) -> bool:
        return True

    def stamp(self) -> dict[str, str]:
        return {"goals": digest(self.splits)}

    def state_key(self) -> dict[str, str]:
        return {"menu": digest(MENU)}  # the code of this class is hashed anyway


@dataclass(frozen=True)
class ClerkNoise:
    """Error rates of the expert: `slip` per word, and `late` more once it has turned to another screen."""

    slip: float = 0.0
    late: float = 0.0


CLERK = ClerkNoise(slip=0.05, late=0.6)


def play_expert(env: Kiosk, task: str, noise: ClerkNoise = CLERK, seed: int = 0) -> Trajectory:
    """Play one episode of an expert that clicks wrong words at random."""
    rng = random.Random(f"{seed} {task}")
    prompt, turns, turned = env.reset(task), [], False
    while True:
        buttons = env.buttons()
        right = [button for button in buttons if button in (*env.wanted, "buy now")]
        wrong = [button for button in buttons if button not in (*env.wanted, "< prev", "next >", "buy now")]
        button = right[0] if right else "next >"
        if right and wrong and rng.random() < noise.slip + noise.late * turned:
            button = rng.choice(wrong)
        turned |= button == "next >"
        step = env.step(f"click[{button}]")
        turns.append(Turn(f"click[{button}]", step.observation))
        if step.done or len(turns) == env.max_steps:
            won, outcome = bool(step.info["won"]), "done" if step.done else "max_steps"
            return Trajectory(task, prompt, tuple(turns), step.reward, won, "clerk", outcome)


def grades(env: Kiosk, tasks: Sequence[str]) -> dict[str, str]:
    """`easy` if the expert turns at most two screens, else `hard`."""
    places = {word: place for words in MENU.values() for place, word in enumerate(words)}
    screens = {task: sum(places[word] // 3 for word in task.split("-")) for task in tasks}
    return {task: "easy" if count <= 2 else "hard" for task, count in screens.items()}


Kiosk.extras = Extras(  # optional, and so is each part
    skills={
        "next": Skill(r"click\[next >\]", "Next", "paging"),
        "prev": Skill(r"click\[< prev\]", "Prev", "paging"),
    },
    groups=grades,
    parts=lambda observation: observation.split(" [SEP] "),
    experts=ScriptedExperts(play_expert, {"clerk": CLERK}, perfect=ClerkNoise()),
)
