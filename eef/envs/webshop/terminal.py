"""Play an episode in the terminal; at the end every part of the reward is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eef.envs import Step
from eef.envs.webshop import WebShop
from eef.envs.webshop.reward import attributes_met, options_met

HELP = "type a number to click, words to search (on the search page), an action such as click[buy now], or q to quit"
_WIDTH = 400  # longest line in characters; descriptions have thousands


def start(data: str | Path | None = None, task: str | None = None, split: str = "test", seed: int = 0) -> int:
    """Play ``task`` (default: the first one of ``split``) of a catalogue (default: the embedded one). Returns 0."""
    env = WebShop(data=data, seed=seed, allow_overlap=True)  # nothing is trained on these tasks
    tasks = [task] if task is not None else env.tasks(split)
    if not tasks:
        raise ValueError(f"the split of this catalogue has no {split} task: name a task with --task")
    play_by_hand(env, tasks[0])
    return 0


def play_by_hand(
    env: WebShop, task: str, ask: Callable[[str], str] = input, show: Callable[[str], Any] = print
) -> Step | None:
    """Play one episode: ``show`` prints a page, ``ask`` reads an action. Returns the last step; None after a quit."""
    page = env.reset(task)
    show(f"task {task}, at most {env.max_steps} actions for an agent. {HELP}")
    moves = 0
    while True:
        names = env.available_actions()["clickables"]
        show(numbered_page(page, names, {value for _, value in env.state.options} if env.state else set()))
        try:
            line = ask(f"[{moves}] > ").strip()
        except EOFError:
            return None
        if line.lower() in ("q", "quit", "exit"):
            return None
        action = parse_line(line, names)
        if action is None:
            show(f"? {HELP}")
            continue
        step = env.step(action)
        moves += 1
        if not step.valid:
            show(f"{action} is invalid here: nothing happened, but it counts as an action")
        if step.done:
            show(explain_reward(env, step))
            show(f"{moves} actions" + (f": an agent has {env.max_steps}" if moves > env.max_steps else ""))
            return step
        page = step.observation


def numbered_page(page: str, names: list[str], chosen: set[str] | None = None) -> str:
    """The page with one segment per line; clickable ones have a number, ``chosen`` options a star."""
    numbers = {name: number for number, name in enumerate(names, 1)}
    separator = " [SEP] " if " [SEP] " in page else "\n"
    lines = []
    for text in page.split(separator):
        number = numbers.get(text.lower())
        text = f"{text} *" if number and text in (chosen or ()) else text
        text = text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ..."
        lines.append(f"{f'[{number}]' if number and text != 'Search' else '':>5} {text}")
    return "\n" + "\n".join(lines)


def parse_line(line: str, names: list[str]) -> str | None:
    """The action that a typed line stands for, or None."""
    if line.isascii() and line.isdigit():
        number = int(line)
        return f"click[{names[number - 1]}]" if 1 <= number <= len(names) and names != ["search"] else None
    if "[" in line:
        return line
    if names == ["search"]:
        return f"search[{line}]" if line else None
    return f"click[{line}]" if line.lower() in names else None


def explain_reward(env: WebShop, step: Step) -> str:
    """The parts of a purchase's reward, and the goal."""
    info, goal = step.info["breakdown"], env.shop.goals[env.state.goal] if env.state else None
    assert goal is not None
    product, chosen = env.shop.by_asin[step.info["asin"]], step.info["options"]
    attributes = list(zip(goal.attributes, attributes_met(product, goal), strict=True))
    options = list(zip(goal.options, options_met(goal, chosen.values()), strict=True))
    met = sum(ok for _, ok in [*attributes, *options]) + info["r_price"]
    parts = len(attributes) + len(options) + 1
    cap = "no cap" if goal.price_upper >= 1_000_000 else f"at most ${goal.price_upper:.2f}"
    reasons = [f"{'the same' if info['query_match'] else 'another'} query"]
    reasons.append(f"{'a' if info['category_match'] else 'no'} shared category")
    reasons.append(f"{info['title_score']:.0%} of the wanted title's nouns")
    lines = [
        "",
        f"{'Won' if step.info['won'] else 'Not won'}: reward {step.reward:.3f} = {met} of {parts} parts met "
        f"x type {info['r_type']:g}",
        f"  type        {info['r_type']:g} ({', '.join(reasons)})",
        *(f"  attribute   {_mark(ok)} {text}" for text, ok in attributes),
        *(f"  option      {_mark(ok)} {text if isinstance(text, str) else ': '.join(text)}" for text, ok in options),
        f"  price       {_mark(info['r_price'])} ${product.price:.2f}, {cap}",
        f"bought        {product.asin} {product.title}",
        f"              with {', '.join(f'{group}: {value}' for group, value in chosen.items()) or 'no option'}",
        f"wanted        {goal.instruction_text}",
        f"              such as {goal.asin} {goal.name}",
    ]
    return "\n".join(lines)


def _mark(met: bool) -> str:
    return "met   " if met else "missed"
