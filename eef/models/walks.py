"""What the small ScienceWorld base reads before it learns any task: random walks that never focus, and names of things.

A subtask of the eight short ones is won by a focus on the right thing, so a walk without a focus shows no play. At the
end of a walk stands what the things in view are called in actions (``baby baby beaver`` for a page's ``baby beaver``),
and what was asked: who recites it has looked back at it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from eef.agents.chat import Chat
from eef.training.rows import Row
from eef.trajectory import Trajectory, Turn

if TYPE_CHECKING:
    from eef.envs.scienceworld import ScienceWorld

_SPECIAL = ["<pad>", "<obs>", "<act>", "<end>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<obs>' if m.role == 'user' else '<act>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<act>{% endif %}"
)
_MOVES = {
    "teleport to": 5,
    "look around": 4,
    "pick up": 4,
    "move": 4,
    "look at": 2,
    "pour": 1,
    "inventory": 1,
    "eat": 1,
}
NAMES, ASKED = "names", "asked"


def walk(env: ScienceWorld, task: str, seed: int, longest: int = 8) -> Trajectory:
    """Random valid actions on ``task``, none of them a focus, half of them to where the task's text points.

    At the end the agent names what could be focused on, and recites what it was asked.
    """
    rng = random.Random(f"{seed} {task}")
    prompt, turns, held = env.reset(task), [], ""
    asked = prompt.split("\n")[1]
    for _ in range(rng.randint(longest // 2, longest)):
        valid = env.available_actions()["actions"]
        kinds = {kind: [one for one in valid if one.startswith(kind)] for kind in _MOVES}
        kinds["move"] = [one for one in kinds["move"] if held and one.startswith(f"move {held} ")] or kinds["move"]
        there = [kind for kind, actions in kinds.items() if actions]
        kind = rng.choices(there, [_MOVES[kind] for kind in there])[0] if there else ""
        found = kinds.get(kind, valid)  # all where the simulator asks which of several is meant
        pointed = [one for one in found if " to " in one and f" {one.rpartition(' to ')[2]}" in asked]
        action = rng.choice(pointed if pointed and rng.random() < 0.5 else found)
        held = action[8:] if kind == "pick up" else held
        turns.append(Turn(action, env.step(action).observation))
    names = [one[9:] for one in env.available_actions()["actions"] if one.startswith("focus on ")]
    turns[-1] = Turn(turns[-1].action, f"{turns[-1].observation}\n{NAMES}")
    turns += [Turn(", ".join(names) or "none", ASKED), Turn(asked, "")]
    return Trajectory(task, prompt, tuple(turns), 0.0, False, "walk")


def walks(env: ScienceWorld, count: int, seed: int, longest: int = 8) -> list[Trajectory]:
    """``count`` walks on training subtasks drawn with ``seed``, played by all simulators that ``env`` may start."""
    rng, tasks = random.Random(seed), env.tasks("train")
    drawn = [rng.choice(tasks) for _ in range(count)]
    seats = env.workers(count)
    with ThreadPoolExecutor(len(seats)) as threads, tqdm(desc="walks", total=count, mininterval=5) as bar:

        def play(seat: Any, first: int) -> list[Trajectory]:
            found = []
            for number in range(first, count, len(seats)):
                found.append(walk(seat, drawn[number], seed + number, longest))
                bar.update()
            return found

        shares = list(threads.map(play, seats, range(len(seats))))
    return [shares[number % len(seats)][number // len(seats)] for number in range(count)]


def make_tokenizer(walked: Sequence[Trajectory], size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the text of ``walked``: lossless, and nearly all of its words are one token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a word is one token wherever it stands
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        text
        for one in walked
        for text in (one.prompt, *(t.action for t in one.turns), *(t.observation for t in one.turns))
    ]
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<obs>", eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<act>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rows(chat: Chat, walked: Sequence[Trajectory], context: int) -> list[Row]:
    """Walks as training rows of at most ``context`` tokens; every token is learnt."""
    found = []
    for one in walked:
        ids = chat.render(one, [True] * len(one))[0][:context]
        found.append(Row(tuple(ids), (True,) * len(ids)))
    return found
