"""The engine that plays a policy: many conversations at once, with a KV cache that is kept across turns.

Each conversation owns a row and a length of its own, so rows need no common padding, a finished one is replaced at
once, and conversations that begin alike share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from eef.limits import Limits
from eef.policy import Policy


class _RowLayer(DynamicLayer):
    """Keys and values of all conversations, (rows, heads, longest, width); each row is written at its own places."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.plan = plan

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.plan
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self.keys.numel() == 0 or self.keys.shape[2] < plan.room:
            self.keys, self.values = self._grown(self.keys, key_states), self._grown(self.values, value_states)
        rows = plan.rows[:, None]
        self.keys[rows, :, plan.places] = key_states.transpose(1, 2)
        self.values[rows, :, plan.places] = value_states.transpose(1, 2)
        held = plan.span if plan.span is not None else plan.rows
        return self.keys[held, :, : plan.seen], self.values[held, :, : plan.seen]

    def _grown(self, old: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        new = like.new_zeros((self.plan.slots, like.shape[1], self.plan.room, like.shape[3]))
        if old.numel():
            new[:, :, : old.shape[2] - 1] = old[:, :, :-1]
        return new

    def copy(self, source: int, target: int, length: int) -> None:
        assert self.keys is not None and self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]


@dataclass
class _Plan:
    """Where the next forward pass reads and writes: ``places`` (rows, width) in the rows ``rows``; the last place of
    each row (``room`` - 1) takes what padding writes. ``span``: the same rows where they lie side by side, as a slice,
    which is read where it is; others are copied together."""

    slots: int
    room: int = 257
    rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    places: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    span: slice | None = None
    seen: int = 0


class Actor:
    """Speaks for up to ``slots`` conversations at once; the cache holds until the weights change.

    Greedy utterances equal those of decoding each conversation anew without a cache.
    """

    def __init__(self, policy: Policy, slots: int) -> None:
        self.policy = policy
        self.plan = _Plan(slots)
        layers = int(policy.model.config.get_text_config().num_hidden_layers)
        self.layers = [_RowLayer(self.plan) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.held: list[list[int]] = [[] for _ in range(slots)]  # ids whose keys and values each row holds
        self.waiting: list[list[int]] = [[] for _ in range(slots)]  # ids not yet read by the model
        self.device = policy.model.device
        self.read_tokens = 0  # ids that went through the model, padding left out

    @torch.inference_mode()
    def open(self, prompts: dict[int, list[int]]) -> None:
        """Begin conversations in the given slots; what several have in common is read once.

        The longest first: each takes over what it shares with one that is open or was taken before it, at a level after
        the one of its source, so that the states of an expert follow the last of them, and that one follows another
        expert's as far as the instructions go.
        """
        order = sorted(prompts, key=lambda slot: -len(prompts[slot]))
        busy = [slot for slot in range(len(self.held)) if slot not in prompts]
        sources: dict[int, tuple[int, int]] = {}
        levels: dict[int, int] = {}
        for place, slot in enumerate(order):
            ids = prompts[slot]
            known = [(other, _common(ids, prompts[other])) for other in order[:place]]
            known += [(other, _common(ids, self.held[other])) for other in busy]
            other, common = max(known, key=lambda pair: pair[1], default=(-1, 0))
            if min(common, len(ids) - 1) >= 8:
                sources[slot] = other, min(common, len(ids) - 1)
            levels[slot] = levels.get(other, -1) + 1 if slot in sources else 0
            self.waiting[slot] = list(ids)
        for slot in prompts:
            self.held[slot] = []
        wanted = {source for source, _ in sources.values()}
        for level in range(max(levels.values()) + 1):
            now = [slot for slot in order if levels[slot] == level]
            for slot in now:
                if slot in sources:
                    source, common = sources[slot]
                    common = min(common, len(self.held[source]))
                    for layer in self.layers:
                        layer.copy(source, slot, common)
                    self.held[slot], self.waiting[slot] = prompts[slot][:common], prompts[slot][common:]
            first = [slot for slot in now if slot in wanted]
            if first:  # read now, but for the last id: the turn still needs logits from it
                tails = {slot: self.waiting[slot].pop() for slot in first}
                if unread := [slot for slot in first if self.waiting[slot]]:
                    self._forward(unread)
                for slot, tail in tails.items():
                    self.waiting[slot] = [tail]

    def hear(self, slot: int, ids: list[int]) -> None:
        """What is to be read before the slot speaks again."""
        self.waiting[slot] += ids

    def length(self, slot: int) -> int:
        """Tokens of the conversation so far."""
        return len(self.held[slot]) + len(self.waiting[slot])

    def act(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        limits: dict[int, Limits] | None = None,
    ) -> dict[int, list[int]]:
        """One utterance for each slot, ids with their end. ``draws[slot]()`` gives uniform numbers in [0, 1).

        ``temperature`` 0 is greedy. With ``limits`` only what they allow is said, and the model is asked only where
        they leave a choice.
        """
        end = list(self.policy.chat.end)
        said: dict[int, list[int]] = {slot: [] for slot in slots}
        going = list(slots)
        while going:
            asked, choices = [], []
            for slot in going:
                allowed = self._forced(said[slot], slot, limits[slot]) if limits else None
                if allowed is None or allowed:
                    asked.append(slot)
                    choices.append(allowed)
            if not asked:
                break
            logits = self._forward(asked)
            for slot, token in zip(
                asked, _choose(logits, choices, [draws[slot] for slot in asked], temperature), strict=True
            ):
                self._say(said[slot], slot, token)
            going = []
            for slot in asked:
                if limits is None and said[slot][-len(end) :] == end:
                    continue
                if limits is None and len(said[slot]) >= self.policy.max_new_tokens:
                    for token in end:
                        self._say(said[slot], slot, token)
                    continue
                going.append(slot)
        return said

    def _forced(self, said: list[int], slot: int, limits: Limits) -> list[int]:
        """Say what has no alternative; the choices at the next fork, none when the utterance is complete."""
        while len(allowed := limits.allowed(said)) == 1:
            self._say(said, slot, allowed[0])
        return allowed

    def _say(self, said: list[int], slot: int, token: int) -> None:
        said.append(token)
        self.waiting[slot].append(token)

    @torch.inference_mode()
    def _forward(self, slots: list[int]) -> torch.Tensor:
        """Read what waits in ``slots``; logits of the next token, (len(slots), vocabulary)."""
        out: dict[int, torch.Tensor] = {}
        widths, lengths = [len(self.waiting[slot]) for slot in slots], [self.length(slot) for slot in slots]
        for group in _alike(slots, widths, lengths):
            for slot, row in zip(group, self._forward_group(group), strict=True):
                out[slot] = row
        return torch.stack([out[slot] for slot in slots])

    def _forward_group(self, asked: list[int]) -> torch.Tensor:
        """As :meth:`_forward`; rows between those asked go along idle where copying the others would cost more."""
        slots, span = sorted(asked), None
        if 4 * len(slots) > 3 * (slots[-1] - slots[0] + 1):
            slots = list(range(slots[0], slots[-1] + 1))
            span = slice(slots[0], slots[-1] + 1)
        idle = set(slots) - set(asked)
        width = max(len(self.waiting[slot]) for slot in asked)
        longest = max(self.length(slot) for slot in asked)
        while self.plan.room <= longest:
            self.plan.room = 2 * (self.plan.room - 1) + 1
        ids = np.full((len(slots), width), self.policy.pad)
        places = np.full((len(slots), width), self.plan.room - 1)
        for place, slot in enumerate(slots):
            if slot in idle:
                continue
            new, start = self.waiting[slot], len(self.held[slot])
            ids[place, width - len(new) :] = new
            places[place, width - len(new) :] = np.arange(start, start + len(new))
            self.read_tokens += len(new)
            self.held[slot] += new
            self.waiting[slot] = []
        where = torch.from_numpy(places)
        padding = where == self.plan.room - 1
        position = where.masked_fill(padding, 0)
        self.plan.rows, self.plan.span = torch.tensor(slots, device=self.device), span
        self.plan.places = where.to(self.device)
        self.plan.seen = longest
        unseen = torch.arange(longest) > position[:, :, None]  # not a row's own past; padding sees place 0, is not read
        mask = torch.zeros(unseen.shape, dtype=self.policy.model.dtype).masked_fill_(unseen, float("-inf"))
        output = self.policy.model(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=mask[:, None].to(self.device),
            position_ids=position.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[[slots.index(slot) for slot in asked], -1].float()


def _common(a: list[int], b: list[int]) -> int:
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    different = np.nonzero(np.array(a[:size]) != np.array(b[:size]))[0]
    return int(different[0])


def _alike(slots: list[int], widths: list[int], lengths: list[int]) -> list[list[int]]:
    """Groups of similar width, so that one long reading does not pad all others, and of similar length where much is
    read; single tokens stay together, since there each pass costs more than what it reads too much."""
    groups: list[list[int]] = []
    for place in sorted(range(len(slots)), key=lambda place: (widths[place] > 4, lengths[place])):
        for group in groups[::-1]:
            near = widths[place] <= 1.5 * widths[group[0]] and widths[group[0]] <= 1.5 * widths[place]
            alike = near and lengths[place] <= 1.3 * lengths[group[0]] + 64
            if alike or (widths[place] <= 4 and widths[group[0]] <= 4):
                group.append(place)
                break
        else:
            groups.append([place])
    return [[slots[place] for place in group] for group in groups]


def _choose(
    logits: torch.Tensor, choices: Sequence[list[int] | None], draws: Sequence[Callable[[], float]], temperature: float
) -> list[int]:
    """One token for each row of ``logits``: of its choices, in any order, or of all columns where it has none."""
    if all(choice is None for choice in choices):
        return _draw(logits, draws, temperature)
    columns = [range(logits.shape[-1]) if choice is None else sorted(choice) for choice in choices]
    width = max(map(len, columns))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in columns], device=logits.device)
    barred = torch.arange(width) >= torch.tensor([[len(row)] for row in columns])
    chosen = logits.gather(1, ids).masked_fill(barred.to(logits.device), float("-inf"))
    places = _draw(chosen, draws, temperature)
    return [row[min(place, len(row) - 1)] for row, place in zip(columns, places, strict=True)]


def _draw(logits: torch.Tensor, draws: Sequence[Callable[[], float]], temperature: float) -> list[int]:
    """The column that is drawn in each row; the highest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    uniform = torch.tensor([draw() for draw in draws], dtype=torch.float64, device=logits.device)
    places = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    return places.clamp(max=logits.shape[-1] - 1).tolist()
