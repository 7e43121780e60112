"""Our own engine: many conversations at once, with a KV cache that is kept across turns.

Each conversation has its own row of the cache and its own length. So rows need no common padding, a finished
conversation is replaced at once, and conversations with a common prefix share its keys and values. If the cache does
not fit into memory, fewer conversations are held at once.

An architecture is accepted by its properties (:func:`eef.agents.model_files.refusal`) and by a check on the model
itself (:mod:`eef.agents.engine_check`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache

from eef.agents.attention_masks import attention_mask, mask_kinds
from eef.agents.constraints import Constraints
from eef.agents.engine import LocalPolicy
from eef.agents.engine_check import check
from eef.agents.kv_cache import STEP, Plan, RowLayer, available_memory
from eef.agents.passes import few_groups, similar_groups
from eef.agents.sampling import choose

_CELLS = 1 << 26  # most elements of a mask in one pass (with eager attention: of the scores of all heads)
_TOKENS = 1 << 14  # most tokens in one pass
_LARGE_OUTPUT = 1 << 22  # weights of an output layer that take long to copy
_SHORTEST_PREFIX = 8  # tokens; copying shorter prefixes does not pay


class CachedEngine:
    """An :class:`eef.agents.engine.Engine` that runs the policy's model. The weights must not change during its life.

    Greedy answers equal those of decoding each conversation without a cache. The first engine of a model checks this:
    ValueError for an architecture that it cannot run. :meth:`fitting` uses the memory that is free when the engine is
    created. ``token_bytes``, the bytes of keys and values per token, is measured by the check; 0 skips the check and
    sets no limit on memory.
    """

    def __init__(self, policy: LocalPolicy, slots: int, token_bytes: int | None = None) -> None:
        policy.model.eval()  # no dropout
        if token_bytes is None:
            if policy.checked is None or policy.checked[0] is not policy.model:
                policy.checked = policy.model, check(policy, lambda: CachedEngine(policy, 2, token_bytes=0))
            token_bytes = policy.checked[1]
        config = policy.model.config.get_text_config()
        self.policy = policy
        self.plan = Plan(slots)
        self.layers = [RowLayer(self.plan) for _ in range(int(config.num_hidden_layers))]
        self.cache = Cache(layers=list(self.layers))
        self.cached: list[list[int]] = [[] for _ in range(slots)]  # ids whose keys and values are in the cache
        self.pending: list[list[int]] = [[] for _ in range(slots)]  # ids that the model has not read yet
        self.rows: dict[int, int] = {}  # slot -> row of the cache
        self.device = policy.model.device
        self.read_tokens = 0  # ids that went through the model, without padding
        self.token_bytes = token_bytes
        self.memory = available_memory(self.device) if token_bytes else 0
        self.reported = False
        self.heads = int(config.num_attention_heads) if config._attn_implementation == "eager" else 1
        # PyTorch copies frozen weights of the output layer for each row of a slice, but not of a selection
        self.large_output = config.vocab_size * config.hidden_size > _LARGE_OUTPUT
        self.config = config
        self.mask_kinds, self.masks_by_kind = mask_kinds(policy.model, config)

    @torch.inference_mode()
    def start(self, prompts: dict[int, list[int]]) -> None:
        """As :meth:`eef.agents.engine.Engine.start`; a prefix that several conversations share is read once.

        Each new conversation copies its longest common prefix from a source: a conversation that is already there, or
        a longer new one, which is then read first. So the states of one expert copy from its last state, which in turn
        copies the instructions from another expert's.
        """
        order = sorted(prompts, key=lambda slot: -len(prompts[slot]))
        others = [slot for slot in range(len(self.cached)) if slot not in prompts]
        sources: dict[int, tuple[int, int]] = {}  # slot -> (source, length of the common prefix)
        levels: dict[int, int] = {}  # a conversation's level is one above that of its source
        for place, slot in enumerate(order):
            ids = prompts[slot]
            candidates = [(other, _common_prefix(ids, prompts[other])) for other in order[:place]]
            candidates += [(other, _common_prefix(ids, self.cached[other])) for other in others]
            source, common = max(candidates, key=lambda pair: pair[1], default=(-1, 0))
            if min(common, len(ids) - 1) >= _SHORTEST_PREFIX:
                sources[slot] = source, min(common, len(ids) - 1)
            levels[slot] = levels.get(source, -1) + 1 if slot in sources else 0
            self.pending[slot] = list(ids)
        for slot in prompts:
            self.cached[slot] = []
        for slot in sorted(prompts):
            self._row(slot)
        copied_from = {source for source, _ in sources.values()}
        for level in range(max(levels.values()) + 1):
            current = [slot for slot in order if levels[slot] == level]
            for slot in current:
                if slot in sources:
                    self._copy_prefix(prompts[slot], slot, *sources[slot])
            self._read_all_but_last([slot for slot in current if slot in copied_from])

    def _copy_prefix(self, ids: list[int], slot: int, source: int, common: int) -> None:
        common = min(common, len(self.cached[source]))
        for layer in self.layers:
            layer.copy(self.rows[source], self.rows[slot], common)
        self.cached[slot], self.pending[slot] = ids[:common], ids[common:]

    def _read_all_but_last(self, slots: list[int]) -> None:
        """Read the pending ids except the last one, whose logits :meth:`generate` needs."""
        last = {slot: self.pending[slot].pop() for slot in slots}
        if unread := [slot for slot in slots if self.pending[slot]]:
            self.next_logits(unread)
        for slot, token in last.items():
            self.pending[slot] = [token]

    def append(self, slot: int, ids: list[int]) -> None:
        """As :meth:`eef.agents.engine.Engine.append`."""
        self.pending[slot] += ids

    def length(self, slot: int) -> int:
        """As :meth:`eef.agents.engine.Engine.length`."""
        return len(self.cached[slot]) + len(self.pending[slot])

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        """As :meth:`eef.agents.engine.Engine.fitting`; drops the keys and values of all other slots if memory is short.

        The ids of those slots are kept, and are read again later.
        """
        answer = self.policy.max_new_tokens + len(self.policy.chat.end) + 1
        capacity = self._capacity()
        chosen: list[int] = []
        longest = 0
        if not lengths:
            return chosen
        for slot, length in lengths.items():
            if (len(chosen) + 1) * max(longest, length + answer) <= capacity:
                chosen.append(slot)
                longest = max(longest, length + answer)
            elif not chosen:
                raise ValueError(
                    f"context={self.policy.context}: a conversation of {length + answer:,} tokens needs "
                    f"{(length + answer) * self.token_bytes / 1e9:.1f} GB for keys and values, but only "
                    f"{self.memory / 1e9:.1f} GB are free (slots={len(self.cached)}). Set a smaller context or fewer "
                    "processes, or play with vLLM (engine=)"
                )
        if len(self.cached) * max(longest, self.plan.room) <= capacity and self.plan.count == len(self.cached):
            return chosen  # there is a row for every slot
        if len(chosen) < len(lengths) and not self.reported:
            self.reported = True
            print(
                f"slots={len(self.cached)}: the cache has room for {len(chosen)} conversations of {longest:,} tokens "
                f"({self.memory / 1e9:.1f} GB). The others wait, and are read again when there is room",
                flush=True,
            )
        for slot in [slot for slot in self.rows if slot not in chosen]:
            self.pending[slot] = self.cached[slot] + self.pending[slot]
            self.cached[slot] = []
            del self.rows[slot]
        size = self.plan.count * self.plan.room
        if self.plan.count < len(chosen) or self.plan.room < longest or size > capacity:
            room = min(_with_margin(longest), capacity // len(chosen))
            self._resize(min(len(self.cached), capacity // room), room)
        return chosen

    def park(self, slot: int) -> list[int]:
        """As :meth:`eef.agents.engine.Engine.park`."""
        ids = self.cached[slot] + self.pending[slot]
        self.cached[slot], self.pending[slot] = [], []
        self.rows.pop(slot, None)
        return ids

    def _capacity(self) -> int:
        """Tokens whose keys and values fit into memory."""
        return self.memory // self.token_bytes if self.token_bytes else sys.maxsize

    def _row(self, slot: int) -> int:
        """The row of a slot; a slot without one gets the first free row."""
        if slot not in self.rows:
            used = set(self.rows.values())
            self.rows[slot] = next(row for row in range(self.plan.count) if row not in used)
        return self.rows[slot]

    def _resize(self, count: int, room: int) -> None:
        slots = sorted(self.rows, key=lambda slot: self.rows[slot])
        rows = [self.rows[slot] for slot in slots]
        if rows == list(range(len(rows))) or count == self.plan.count:
            rows = list(range(min(count, self.plan.count)))
        else:
            self.rows = {slot: row for row, slot in enumerate(slots)}
        for layer in self.layers:
            layer.resize(rows, count, room)
        self.plan.count, self.plan.room = count, room

    def generate(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        constraints: dict[int, Constraints] | None = None,
    ) -> dict[int, list[int]]:
        """As :meth:`eef.agents.engine.Engine.generate`.

        An id that ends an answer (:meth:`eef.agents.policy.Policy.ends`) is replaced by the chat's end. With
        ``constraints`` the model runs only where they leave a choice.
        """
        answers: dict[int, list[int]] = {slot: [] for slot in slots}
        unfinished = list(slots)
        while unfinished:
            sampled, allowed = [], []
            for slot in unfinished:
                ids = self._take_forced(answers[slot], slot, constraints[slot]) if constraints else None
                if ids is None or ids:
                    sampled.append(slot)
                    allowed.append(ids)
            if not sampled:
                break
            tokens = choose(self.next_logits(sampled), allowed, [draws[slot] for slot in sampled], temperature)
            for slot, token in zip(sampled, tokens, strict=True):
                self._take(answers[slot], slot, token)
            if constraints is None:
                sampled = [slot for slot in sampled if not self._finish(answers[slot], slot)]
            unfinished = sampled
        return answers

    def _take(self, answer: list[int], slot: int, token: int) -> None:
        answer.append(token)
        self.pending[slot].append(token)

    def _take_forced(self, answer: list[int], slot: int, constraints: Constraints) -> list[int]:
        """Take ids as long as only one is allowed. Returns the ids allowed next; none if the answer is complete."""
        while len(allowed := constraints.allowed(answer)) == 1:
            self._take(answer, slot, allowed[0])
        return allowed

    def _finish(self, answer: list[int], slot: int) -> bool:
        """Whether a free answer is finished; it then has the chat's end."""
        end = list(self.policy.chat.end)
        if answer[-len(end) :] == end:
            return True
        if self.policy.ends(answer[-1]):
            answer.pop()
            self.pending[slot].pop()
        elif len(answer) < self.policy.max_new_tokens:
            return False
        for token in end:
            self._take(answer, slot, token)
        return True

    @torch.inference_mode()
    def next_logits(self, slots: list[int]) -> torch.Tensor:
        """Read the pending ids of ``slots``; logits of the next token, shape (len(slots), vocabulary)."""
        logits: dict[int, torch.Tensor] = {}
        widths, lengths = [len(self.pending[slot]) for slot in slots], [self.length(slot) for slot in slots]
        groups = few_groups(slots, widths) if self.device.type == "cuda" else similar_groups(slots, widths, lengths)
        for group in groups:
            for slot, row in zip(group, self._read_group(group), strict=True):
                logits[slot] = row
        return torch.stack([logits[slot] for slot in slots])

    def _read_group(self, slots: list[int]) -> torch.Tensor:
        """As :meth:`next_logits`, in pieces if one pass would take too much memory."""
        seen = max(self.length(slot) for slot in slots)
        width = max(1, min(_CELLS // (self.heads * seen), _TOKENS))  # tokens that one pass may read
        if len(slots) > 1 and len(slots) * max(len(self.pending[slot]) for slot in slots) > width:
            half = len(slots) // 2
            return torch.cat([self._read_group(slots[:half]), self._read_group(slots[half:])])
        while len(slots) == 1 and len(self.pending[slots[0]]) > width:
            self._pass(slots, width)
        return self._pass(slots)

    def _pass(self, slots: list[int], most: int | None = None) -> torch.Tensor:
        """One forward pass over the pending ids, at most ``most`` of each slot.

        Rows between those of ``slots`` are computed too, and ignored, if copying the needed rows would cost more.
        """
        slot_of = {self._row(slot): slot for slot in slots}
        rows, span = sorted(slot_of), None
        if 4 * len(rows) > 3 * (rows[-1] - rows[0] + 1):
            rows = list(range(rows[0], rows[-1] + 1))
            span = slice(rows[0], rows[-1] + 1)
        new_ids = {slot: self.pending[slot][:most] for slot in slots}
        width = max(map(len, new_ids.values()))
        longest = max(len(self.cached[slot]) + len(new_ids[slot]) for slot in slots)
        if self.plan.room <= longest:
            room = min(_with_margin(longest), self._capacity() // self.plan.count)
            self._resize(self.plan.count, max(longest + 1, room))
        padding = self.plan.room - 1  # the place that padding is written to
        ids = np.full((len(rows), width), self.policy.pad)
        places = np.full((len(rows), width), padding)
        for at, row in enumerate(rows):
            if row not in slot_of:
                continue
            slot = slot_of[row]
            new, start = new_ids[slot], len(self.cached[slot])
            ids[at, width - len(new) :] = new
            places[at, width - len(new) :] = np.arange(start, start + len(new))
            self.read_tokens += len(new)
            self.cached[slot] += new
            self.pending[slot] = self.pending[slot][len(new) :]
        self.plan.rows, self.plan.span = torch.tensor(rows, device=self.device), span
        self.plan.places = torch.from_numpy(places).to(self.device)
        self.plan.seen = longest
        # padding gets position 0 and sees place 0, so that no row of a mask is empty; its output is not used
        position = self.plan.places.masked_fill(self.plan.places == padding, 0)
        dtype = self.policy.model.dtype
        last = torch.tensor([width - 1], device=self.device) if self.large_output else 1
        masks = {kind: attention_mask(kind, self.config, position, longest, dtype) for kind in self.mask_kinds}
        output = self.policy.model(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=masks if self.masks_by_kind else masks[self.mask_kinds[0]],
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return output.logits[[rows.index(self.rows[slot]) for slot in slots], -1].float()


def _with_margin(length: int) -> int:
    """Places of a row for conversations of ``length`` tokens, with a margin: each time a cache grows, it is copied."""
    return length + max(STEP, length // 8)


def _common_prefix(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    different = np.nonzero(np.array(a[:size]) != np.array(b[:size]))[0]
    return int(different[0])
