"""A policy: a causal language model of transformers, its tokenizer, its chat scaffold and what was trained of it: an
adapter, or all weights.

Small and large take the same path; only the name differs. :class:`Actor` speaks for many conversations at once and
keeps their KV cache across turns: each conversation owns a row and a length of its own, so rows need no common
padding, a finished one is replaced at once, and conversations that begin alike share what they have in common.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from eef.chat import Chat, Dialogue, load_options

if TYPE_CHECKING:
    from eef.settings import ModelSettings

EMBEDDED = "embedded"
_EMBEDDED = {  # names and folders beside this module
    EMBEDDED: "base",
    "embedded-mistral": "base_mistral",
    "embedded-scienceworld": "base_scienceworld",
}
QUANTIZATIONS = (None, "nf4")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Policy:
    """Model, tokenizer and scaffold. ``limited``: decoding is limited to the environment's available actions.

    ``context`` is the longest conversation in tokens, ``max_new_tokens`` the longest utterance.
    """

    model: Any
    tokenizer: Any
    chat: Chat
    name: str
    context: int
    limited: bool = False
    max_new_tokens: int = 64

    @classmethod
    def load(
        cls,
        model: str = EMBEDDED,
        adapter: str | Path | None = None,
        *,
        quantize: str | None = None,
        dtype: str = "auto",
        trainable: bool = False,
        limited: bool | None = None,
        instructions: str | None = None,
        opening: Sequence[Sequence[str]] = (),
        context: int | None = None,
        max_new_tokens: int = 64,
    ) -> Policy:
        """A base model by name (``embedded``, ``embedded-mistral``, ``embedded-scienceworld``, a folder, or a hub
        name), with the adapter saved in the folder ``adapter``, or with the weights saved there where all of them were
        trained.

        ``quantize`` is None or ``nf4`` (4-bit, double quantisation). ``dtype`` is ``auto`` (the checkpoint's) or a
        name of torch such as ``bfloat16``. ``limited`` defaults to what the model's ``chat.json`` says, else False,
        ``instructions`` and ``opening`` as of :func:`load_chat`.
        A process that a launcher numbered takes the GPU of its number (``LOCAL_RANK``). ValueError for an unknown
        quantisation or type and for a full model to be quantised, OSError for an unknown model.
        """
        if quantize not in QUANTIZATIONS:
            raise ValueError(f"quantize={quantize!r}: known are None and 'nf4'")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: known are {', '.join(map(repr, DTYPES))}")
        full = adapter is not None and not (Path(adapter) / "adapter_config.json").is_file()
        if full and not (Path(adapter or "") / "config.json").is_file():
            raise ValueError(f"adapter={str(adapter)!r} holds neither an adapter nor a model")
        if full and quantize:
            raise ValueError(
                f"quantize={quantize!r}: {adapter} holds a full model, which is evaluated as it was trained"
            )
        if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        folder = folder_of(model)
        (disable_progress_bar if model in _EMBEDDED else enable_progress_bar)()  # the small ones load at once
        chat = load_chat(model, instructions, opening)
        try:
            compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
            if dtype != "auto":
                compute = getattr(torch, dtype)
            quantization = (
                BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=compute,
                )
                if quantize
                else None
            )
            weights = str(adapter) if full else folder
            base = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype, quantization_config=quantization)
        except OSError as error:
            raise _no_model(model, error) from None
        if quantize:
            for module in base.modules():
                if hasattr(
                    module, "support_avx512bf16_for_cpu"
                ):  # it repacks in eval() and never back: wrong gradients
                    setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        elif torch.cuda.is_available():
            base.to("cuda")  # type: ignore[arg-type]
        options = load_options(folder)
        policy = cls(
            model=base,
            tokenizer=chat.tokenizer,
            chat=chat,
            name=model,
            context=context or int(base.config.max_position_embeddings),
            limited=bool(options.get("limited", False)) if limited is None else limited,
            max_new_tokens=max_new_tokens,
        )
        if adapter is not None and not full:
            policy.model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable)
        policy.model.eval()
        return policy

    def new_adapter(self, seed: int, r: int = 16, alpha: int = 32, dropout: float = 0.0) -> None:
        """Attach a fresh LoRA adapter on all linear layers; its initial weights depend on ``seed`` alone."""
        if isinstance(self.model, PeftModel):
            raise ValueError("this policy has an adapter already: load the base model anew")
        torch.manual_seed(seed)
        config = LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(self.model, config)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter (or, where there is none, the full model) as safetensors."""
        self.model.save_pretrained(str(folder))

    @property
    def pad(self) -> int:
        """What fills short rows: masked everywhere, so any id does where the tokenizer names none."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))


def load_arguments(model: ModelSettings, chat: Chat, adapter: Path | None) -> dict[str, Any]:
    """Arguments of :meth:`Policy.load`: the same for every method, for training and for acting."""
    return {
        "model": model.model,
        "adapter": str(adapter) if adapter else None,
        "quantize": model.quantize,
        "dtype": model.dtype,
        "context": model.context,
        "opening": chat.opening,
    }


def load_chat(model: str = EMBEDDED, instructions: str | None = None, opening: Sequence[Sequence[str]] = ()) -> Chat:
    """The scaffold of a model by name, without its weights; ``instructions`` default to its ``chat.json``, ``opening``
    is for ReAct answers (:meth:`eef.chat.Chat.opened`)."""
    folder = folder_of(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise _no_model(model, error) from None
    options = load_options(folder)
    words = options.get("instructions", "") if instructions is None else instructions
    chat = Chat.of(tokenizer, words, bool(options.get("aliases", False)))
    return chat.opened(opening) if opening else chat


def _no_model(name: str, error: OSError) -> OSError:
    return OSError(f"no model {name!r}: give a folder, a hub name, or {' or '.join(map(repr, _EMBEDDED))} ({error})")


def folder_of(model: str) -> str:
    """Where a model lies: of an embedded one the folder in this package, else the name itself."""
    if model not in _EMBEDDED:
        return model
    folder = Path(str(importlib.resources.files("eef") / _EMBEDDED[model]))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"the base model {model!r} is missing at {folder}: its card says how to make it")
    return str(folder)


Trie = dict[int, "Trie"]


@dataclass(frozen=True)
class Limits:
    """What may be said next: a trie of token ids, with one open place for search words.

    ``words`` may fill the place that follows ``opening`` (the ids of ``search[``), ``closing`` ends it.
    """

    trie: Trie
    opening: tuple[int, ...] = ()
    words: frozenset[int] = frozenset()
    closing: tuple[int, ...] = ()
    longest: int = 12

    @classmethod
    def of(cls, talk: Dialogue, available: dict[str, Any], prompt_ids: Sequence[int]) -> Limits:
        """The limits that an environment's ``available_actions`` set; search words are those of the prompt."""
        actions = available.get("actions") or [f"click[{name}]" for name in available["clickables"] if name != "search"]
        trie: Trie = {}
        for action in actions:
            node = trie
            for token in talk.say(action):
                node = node.setdefault(token, {})
        if not available.get("has_search_bar"):
            return cls(trie)
        blank, filled = talk.say("search[]"), talk.say("search[search]")
        shared = next(i for i, (a, b) in enumerate(zip(blank, filled, strict=False)) if a != b)
        opening, closing = tuple(blank[:shared]), tuple(blank[shared:])
        specials = set(talk.chat.tokenizer.all_special_ids)
        return cls(trie, opening, frozenset(prompt_ids) - specials - {closing[0]}, closing)

    def allowed(self, said: Sequence[int]) -> list[int]:
        """The ids that may follow ``said``; empty when it is complete."""
        size = len(self.opening)
        if size and tuple(said[:size]) == self.opening and len(said) >= size:
            inner = list(said[size:])
            if self.closing[0] in inner:
                return [self.closing[n]] if (n := len(inner) - inner.index(self.closing[0])) < len(self.closing) else []
            return (
                [self.closing[0]]
                if len(inner) >= self.longest
                else [*self.words, *([self.closing[0]] if inner else [])]
            )
        if size and tuple(said) == self.opening[: len(said)] and not self.trie:
            return [self.opening[len(said)]]
        node = self.trie
        for token in said:
            node = node.get(token, {})
        following = list(node)
        if size and tuple(said) == self.opening[: len(said)] and self.opening[len(said)] not in following:
            following.append(self.opening[len(said)])
        return following


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
    if any(choice is not None for choice in choices):
        barred = torch.ones_like(logits, dtype=torch.bool)
        for row, choice in enumerate(choices):
            barred[row, choice if choice is not None else slice(None)] = False
        logits = logits.masked_fill(barred, float("-inf"))
    if temperature == 0:
        return logits.argmax(-1).tolist()
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    uniform = torch.tensor([draw() for draw in draws], dtype=torch.float64, device=logits.device)
    places = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    return places.clamp(max=logits.shape[-1] - 1).tolist()
