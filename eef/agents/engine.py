"""The engine that plays a policy: many conversations at once, with a KV cache that is kept across turns.

Each conversation owns a row and a length of its own, so rows need no common padding, a finished one is replaced at
once, and conversations that begin alike share what they have in common. Where the cache would not fit into memory,
fewer conversations are held at once.

An architecture is accepted by its properties (:func:`eef.agents.model_files.refusal`) and by a check on the model
itself: the engine's log-probabilities must be those of the plain forward pass, which is the one that training sees.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from eef.agents.constraints import Constraints
from eef.agents.kv_cache import STEP, Plan, RowLayer, available_memory
from eef.agents.model_files import USE_SERVER, refusal
from eef.agents.policy import HALF, Policy

_CELLS = 1 << 26  # of a mask (with eager attention: of all heads' scores) in one pass
_TOKENS = 1 << 14  # read in one pass
_WINDOW = 5  # tokens that a windowed layer sees while the engine is checked
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.2


class Actor:
    """Speaks for up to ``slots`` conversations at once; the cache holds until the weights change.

    Greedy utterances equal those of decoding each conversation anew without a cache. The first actor of a model checks
    this (:func:`check`): ValueError for an architecture that this engine cannot play. :meth:`fitting` says which
    conversations the cache can hold together in the memory that was free when the actor was made.
    """

    def __init__(self, policy: Policy, slots: int) -> None:
        policy.model.eval()  # no dropout
        if policy.checked is None or policy.checked[0] is not policy.model:
            policy.checked = policy.model, check(policy)
        self._begin(policy, slots, policy.checked[1])

    def _begin(self, policy: Policy, slots: int, token_bytes: int) -> None:
        config = policy.model.config.get_text_config()
        self.policy = policy
        self.plan = Plan(slots)
        self.layers = [RowLayer(self.plan) for _ in range(int(config.num_hidden_layers))]
        self.cache = Cache(layers=list(self.layers))
        self.held: list[list[int]] = [[] for _ in range(slots)]  # ids whose keys and values each row holds
        self.waiting: list[list[int]] = [[] for _ in range(slots)]  # ids not yet read by the model
        self.rows: dict[int, int] = {}  # the row of each slot that has one
        self.device = policy.model.device
        self.read_tokens = 0  # ids that went through the model, padding left out
        self.token_bytes = token_bytes  # of keys and values
        self.memory = available_memory(self.device) if token_bytes else 0
        self.reported = False
        self.heads = int(config.num_attention_heads) if config._attn_implementation == "eager" else 1
        self.config = config
        self.kinds, self.by_kind = _mask_kinds(policy.model, config)

    @torch.inference_mode()
    def open(self, prompts: dict[int, list[int]]) -> None:
        """Begin conversations in the given slots; what several have in common is read once.

        Each conversation copies its longest common beginning with an open one or a longer new one (its source), and is
        read after its source. So the states of one expert copy from its last state, and that one copies the
        instructions from another expert's.
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
        for slot in sorted(prompts):
            self._row(slot)
        wanted = {source for source, _ in sources.values()}
        for level in range(max(levels.values()) + 1):
            now = [slot for slot in order if levels[slot] == level]
            for slot in now:
                if slot in sources:
                    source, common = sources[slot]
                    common = min(common, len(self.held[source]))
                    for layer in self.layers:
                        layer.copy(self.rows[source], self.rows[slot], common)
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

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        """The slots that the cache can hold together for one more turn, earlier ones of ``lengths`` first.

        ``lengths`` are tokens of the conversations so far. The keys and values of all other slots are dropped where
        there is not room for all. ValueError where the first conversation alone needs more memory than there is.
        """
        more = self.policy.max_new_tokens + len(self.policy.chat.end) + 1
        tokens = self.memory // self.token_bytes if self.token_bytes else sys.maxsize
        chosen: list[int] = []
        longest = 0
        if not lengths:
            return chosen
        for slot, length in lengths.items():
            if (len(chosen) + 1) * max(longest, length + more) <= tokens:
                chosen.append(slot)
                longest = max(longest, length + more)
            elif not chosen:
                raise ValueError(
                    f"context={self.policy.context}: a conversation of {length + more:,} tokens takes "
                    f"{(length + more) * self.token_bytes / 1e9:.1f} GB of keys and values, and "
                    f"{self.memory / 1e9:.1f} GB are free for them (slots={len(self.held)}): set a smaller context, "
                    "fewer processes, or play it with vLLM (engine=)"
                )
        if len(self.held) * max(longest, self.plan.room) <= tokens and self.plan.count == len(self.held):
            return chosen  # every slot has its row
        if len(chosen) < len(lengths) and not self.reported:
            self.reported = True
            print(
                f"slots={len(self.held)}: the cache holds {len(chosen)} conversations of {longest:,} tokens in "
                f"{self.memory / 1e9:.1f} GB; the others wait, and are read again when there is room",
                flush=True,
            )
        for slot in [slot for slot in self.rows if slot not in chosen]:
            self.waiting[slot] = self.held[slot] + self.waiting[slot]
            self.held[slot] = []
            del self.rows[slot]
        size = self.plan.count * self.plan.room
        if self.plan.count < len(chosen) or self.plan.room < longest or size > tokens:
            room = min(self._larger(longest), tokens // len(chosen))
            self._resize(min(len(self.held), tokens // room), room)
        return chosen

    def park(self, slot: int) -> list[int]:
        """Drop the conversation of a slot; its ids, with which :meth:`open` begins it again."""
        ids = self.held[slot] + self.waiting[slot]
        self.held[slot], self.waiting[slot] = [], []
        self.rows.pop(slot, None)
        return ids

    def _row(self, slot: int) -> int:
        """The row of a slot; a free one where it has none."""
        if slot not in self.rows:
            taken = set(self.rows.values())
            self.rows[slot] = next(row for row in range(self.plan.count) if row not in taken)
        return self.rows[slot]

    def _larger(self, longest: int) -> int:
        """The room for conversations of ``longest`` tokens: in steps, since growing copies."""
        return longest + max(STEP, longest // 8)

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

    def act(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        constraints: dict[int, Constraints] | None = None,
    ) -> dict[int, list[int]]:
        """One utterance for each slot, ids with their end. ``draws[slot]()`` gives uniform numbers in [0, 1).

        An id that ends an answer (:meth:`eef.agents.policy.Policy.ends`) is replaced by the scaffold's end.
        ``temperature`` 0 is greedy. ``constraints`` restrict what is said; the model runs only where they leave a
        choice.
        """
        end = list(self.policy.chat.end)
        said: dict[int, list[int]] = {slot: [] for slot in slots}
        going = list(slots)
        while going:
            asked, choices = [], []
            for slot in going:
                allowed = self._forced(said[slot], slot, constraints[slot]) if constraints else None
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
                if constraints is not None:
                    going.append(slot)
                elif said[slot][-len(end) :] == end:
                    continue
                elif self.policy.ends(said[slot][-1]):
                    said[slot].pop()
                    self.waiting[slot].pop()
                    self._end(said[slot], slot)
                elif len(said[slot]) >= self.policy.max_new_tokens:
                    self._end(said[slot], slot)
                else:
                    going.append(slot)
        return said

    def _end(self, said: list[int], slot: int) -> None:
        for token in self.policy.chat.end:
            self._say(said, slot, token)

    def _forced(self, said: list[int], slot: int, constraints: Constraints) -> list[int]:
        """Say what has no alternative; the choices at the next fork, none when the utterance is complete."""
        while len(allowed := constraints.allowed(said)) == 1:
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

    def _forward_group(self, slots: list[int]) -> torch.Tensor:
        """As :meth:`_forward`, in pieces where one pass would take too much memory."""
        seen = max(self.length(slot) for slot in slots)
        width = max(1, min(_CELLS // (self.heads * seen), _TOKENS))  # tokens that one pass may read
        if len(slots) > 1 and len(slots) * max(len(self.waiting[slot]) for slot in slots) > width:
            half = len(slots) // 2
            return torch.cat([self._forward_group(slots[:half]), self._forward_group(slots[half:])])
        while len(slots) == 1 and len(self.waiting[slots[0]]) > width:
            self._pass(slots, width)
        return self._pass(slots)

    def _pass(self, asked: list[int], most: int | None = None) -> torch.Tensor:
        """One forward pass over what waits (at most ``most`` ids); rows between those asked go along idle where copying
        the others would cost more."""
        row_of = {self._row(slot): slot for slot in asked}
        rows, span = sorted(row_of), None
        if 4 * len(rows) > 3 * (rows[-1] - rows[0] + 1):
            rows = list(range(rows[0], rows[-1] + 1))
            span = slice(rows[0], rows[-1] + 1)
        new_ids = {slot: self.waiting[slot][:most] for slot in asked}
        width = max(map(len, new_ids.values()))
        longest = max(len(self.held[slot]) + len(new_ids[slot]) for slot in asked)
        if self.plan.room <= longest:
            tokens = self.memory // self.token_bytes if self.token_bytes else sys.maxsize
            self._resize(self.plan.count, max(longest + 1, min(self._larger(longest), tokens // self.plan.count)))
        ids = np.full((len(rows), width), self.policy.pad)
        places = np.full((len(rows), width), self.plan.room - 1)
        for at, row in enumerate(rows):
            if row not in row_of:
                continue
            slot = row_of[row]
            new, start = new_ids[slot], len(self.held[slot])
            ids[at, width - len(new) :] = new
            places[at, width - len(new) :] = np.arange(start, start + len(new))
            self.read_tokens += len(new)
            self.held[slot] += new
            self.waiting[slot] = self.waiting[slot][len(new) :]
        where = torch.from_numpy(places).to(self.device)
        # padding is at position 0 and sees place 0, so that no row of a mask is empty; nobody reads what it gives
        position = where.masked_fill(where == self.plan.room - 1, 0)
        self.plan.rows, self.plan.span = torch.tensor(rows, device=self.device), span
        self.plan.places = where
        self.plan.seen = longest
        masks = {kind: self._mask(kind, position, longest) for kind in self.kinds}
        output = self.policy.model(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=masks if self.by_kind else masks[self.kinds[0]],
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[[rows.index(self.rows[slot]) for slot in asked], -1].float()

    def _mask(self, kind: str, position: torch.Tensor, seen: int) -> torch.Tensor:
        """What a kind of layer adds to its attention scores, (rows, 1, width, seen), as transformers' masking_utils."""
        place, query = torch.arange(seen, device=self.device), position[:, :, None]
        hidden = place > query
        if kind == "sliding_attention":
            hidden |= place <= query - self.config.sliding_window
        elif kind == "chunked_attention":
            hidden |= place // self.config.attention_chunk_size < query // self.config.attention_chunk_size
        mask = torch.zeros(hidden.shape, dtype=self.policy.model.dtype, device=self.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None]


def _mask_kinds(model: Any, config: Any) -> tuple[list[str], bool]:
    """The kinds of attention masks that a model takes, and whether it takes them as a dict (one by kind of layer).

    As ``create_masks_for_generate`` of transformers decides it, but for windows that a configuration names and the
    code of the model ignores.
    """
    if hasattr(config, "layer_types"):
        return sorted(set(config.layer_types)), True
    modules = [sys.modules[name] for name in {type(module).__module__ for module in model.modules()}]
    for size, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        code = "create_sliding_window_causal_mask" if size == "sliding_window" else "create_chunked_causal_mask"
        if getattr(config, size, None) is not None and any(hasattr(module, code) for module in modules):
            return [kind], False
    return ["full_attention"], False


@torch.inference_mode()
def check(policy: Policy) -> int:
    """Compare the engine with the plain forward pass of the model, which has no cache and masks of its own.

    Two short conversations of different lengths are read in two pieces each, with windows smaller than they are.
    Returns the bytes of keys and values for each token. ValueError where the two differ, which would mean that acting
    is not what training teaches.
    """
    model = _inner(policy.model)
    name = f"model={policy.name!r}: {type(model).__name__}"
    if reason := refusal(model.config, type(model)):
        raise ValueError(f"{name} {reason}; {USE_SERVER}")
    size = min(len(policy.tokenizer), model.get_input_embeddings().weight.shape[0])
    draw = np.random.default_rng(0)
    talks = [draw.integers(0, size, length).tolist() for length in (24, 17)]
    pieces = [(14, 10), (10, 7)]  # what is read of each at a time
    padded = [ids + [0] * (24 - len(ids)) for ids in talks]  # nothing sees what follows it
    actor = Actor.__new__(Actor)
    differences = []
    training = policy.model.training
    policy.model.eval()
    try:
        with _small_windows(model):
            actor._begin(policy, len(talks), token_bytes=0)
            output = policy.model(input_ids=torch.tensor(padded, device=actor.device), use_cache=False)
            expected = output.logits.float().log_softmax(-1)
            if not expected.isfinite().all():
                raise ValueError(
                    f"{name}: its own forward pass gives numbers that are not finite: are its weights whole?"
                )
            for piece in pieces:
                for slot, count in enumerate(piece):
                    start = actor.length(slot)
                    actor.hear(slot, talks[slot][start : start + count])
                for slot, logits in enumerate(actor._forward(list(range(len(talks))))):
                    plain = expected[slot, actor.length(slot) - 1]
                    engine = logits.log_softmax(-1)
                    if _exact(model):
                        differences.append(float((engine - plain).abs().max()))
                    else:
                        differences.append(float((engine.exp() - plain.exp()).abs().sum() / 2))
    except (torch.OutOfMemoryError, ValueError):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} does not run in this engine ({words}); {USE_SERVER}") from error
    finally:
        policy.model.train(training)
    # in half precision one position may go astray, such as where a router decides between two experts
    difference = max(differences) if _exact(model) else float(np.median(differences))
    if not difference <= (_TOLERANCE if _exact(model) else _HALF_TOLERANCE):
        what = "log-probabilities differ by" if _exact(model) else "the distributions of the next token differ by"
        raise ValueError(
            f"{name} acts otherwise in this engine than it trains: {what} {difference:.2g} from those of the plain "
            f"forward pass; {USE_SERVER}"
        )
    held = [layer for layer in actor.layers if layer.is_initialized]
    return sum(tensor[0, :, 0].nbytes for layer in held for tensor in (layer.keys, layer.values) if tensor is not None)


def _inner(model: Any) -> Any:
    """The model of transformers inside adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _exact(model: Any) -> bool:
    """Whether the model computes in single precision or better."""
    return model.dtype not in HALF and not getattr(model, "is_quantized", False)


@contextmanager
def _small_windows(model: Any) -> Iterator[None]:
    """Windows and chunks of a few tokens, so that they matter in a short conversation."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    configs |= {id(text): text for config in configs.values() if (text := config.get_text_config())}
    before = [
        (config, size, value)
        for config in configs.values()
        for size in ("sliding_window", "attention_chunk_size")
        if (value := getattr(config, size, None)) is not None
    ]
    try:
        for config, size, value in before:
            setattr(config, size, min(value, _WINDOW))
        yield
    finally:
        for config, size, value in before:
            setattr(config, size, value)


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
