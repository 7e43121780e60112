"""What a chat template puts around the contents of a conversation, as token ids.

:func:`derive` renders a conversation with a tokenizer's own template, splits it at control tokens, and proves the
parts: put together for a conversation of four turns with random contents, they must be the template's own ids, whole
and at every generation prompt. A template that cannot be proven is refused.

Where a family renders past answers otherwise than it asks for the next one, one rendering is used for all answers,
in training and in acting (``Scaffold.rendering``):

``template``
    The template renders past answers just as its generation prompt asks for one. Most families.
``prefilled``
    Past answers begin with more than the generation prompt, such as the channel of gpt-oss' final answers. Every
    prompt ends with that beginning, which is never sampled and never learnt.
``thinking off``
    The template can turn thinking off (``enable_thinking=False``): an empty think block ends every generation prompt,
    but past answers are rendered without it (Qwen3). Here it stands before every answer, past ones too.
``past answers``
    The template always opens a thought (DeepSeek-R1). Answers follow the generation prompt without that opening, as
    the template renders past answers.

The date of templates that print one is fixed (``DATE``), so that no result depends on the day.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer

DATE = datetime.date(2024, 7, 26)

_SWITCHES = ("enable_thinking", "thinking")  # what templates call the switch that turns thinking off
_OPENED_THOUGHT = re.compile(r"\s*[<\[][^<>\[\]/]*(?:think|thought|reason|analysis)[^<>\[\]/]*[>\]]\s*", re.IGNORECASE)
_EMPTY_THOUGHT = re.compile(r"\s*(?:<(\w+)>\s*</\1>|\[THINK\]\s*\[/THINK\])\s*")
_MARKS = re.compile(r"[<>\[\]{}|｜◁▷]")
_ANCHOR = "\ue0f1\ue0ee\ue0f5"  # private-use characters: stands for the control token before a content


@dataclass(frozen=True)
class Scaffold:
    """The parts around contents. Token ids hold control tokens; a text is tokenised together with the content beside
    it, as the template does.

    A user turn is ``before`` (``to_user`` after the first), then ``before_text`` (``to_user_text``), the content and
    ``to_agent_text`` in one text, then ``to_agent``. An answer is ``agent_text`` and the content in one text, then
    ``end``. ``context_text`` is the text that precedes an answer. ``control``: ids that no content may hold.
    ``stops``: ids that end an answer whatever follows. ``rendering``: see the module.
    """

    before: tuple[int, ...]
    before_text: str
    to_agent_text: str
    to_agent: tuple[int, ...]
    context_text: str
    agent_text: str
    end: tuple[int, ...]
    to_user: tuple[int, ...]
    to_user_text: str
    control: frozenset[int]
    stops: frozenset[int]
    rendering: str = "template"

    @property
    def parts(self) -> tuple[Any, ...]:
        """Everything that decides ids, for a hash."""
        return (
            self.before, self.before_text, self.to_agent_text, self.to_agent, self.agent_text, self.end, self.to_user,
            self.to_user_text,
        )  # fmt: skip


class ContentEncoder:
    """Contents as token ids: their text alone, never a control token that they spell.

    Besides special tokens, every added token with a bracket or a bar in it counts as a control token: some families do
    not mark the tokens of roles and thoughts as special (DeepSeek, Qwen3). ``size`` is the largest id and one more,
    ``digest`` stands for the vocabulary.
    """

    def __init__(self, tokenizer: Any) -> None:
        core = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(core, Tokenizer):
            raise ValueError(
                f"the tokenizer of {_name(tokenizer)} is a {type(tokenizer).__name__} without the tokenizers library "
                "behind it, so pages cannot be kept from holding control tokens: save it with a tokenizer.json"
            )
        added = {
            token: each
            for token, each in tokenizer.added_tokens_decoder.items()
            if each.content.replace("▁", " ").strip() and (each.special or _MARKS.search(each.content))
        }
        words = sorted((token, word) for word, token in tokenizer.get_vocab().items())
        self.size = words[-1][0] + 1
        self.digest = hashlib.sha256(repr(words).encode("utf-8", "replace")).hexdigest()[:16]
        self._core = Tokenizer.from_str(core.to_str())
        self._core.no_truncation()
        self._core.no_padding()
        self._core.add_special_tokens(
            [
                AddedToken(
                    each.content, single_word=each.single_word, lstrip=each.lstrip, rstrip=each.rstrip,
                    normalized=each.normalized, special=True,
                )
                for each in added.values()
            ]
        )  # fmt: skip
        self._core.encode_special_tokens = True  # they are read as text
        self._core.add_tokens([AddedToken(_ANCHOR, special=False, normalized=False)])
        unknown = tokenizer.unk_token_id
        try:
            writes_unknown = unknown in self._core.encode("\ue0f9", add_special_tokens=False).ids
        except Exception as error:  # of the library
            raise ValueError(f"the tokenizer of {_name(tokenizer)} cannot tokenise every text: {error}") from None
        self.control = frozenset(added) - ({unknown} if writes_unknown else set())
        self.special = frozenset(token for token, each in added.items() if each.special) | set(
            tokenizer.all_special_ids
        )

    def __call__(self, text: str, first: bool = False) -> list[int]:
        """Ids of ``text``, which stands behind a control token unless it is the ``first`` of the conversation."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
            while _ANCHOR in text:
                text = text.replace(_ANCHOR, "")
        ids = self._core.encode(text if first else _ANCHOR + text, add_special_tokens=False).ids
        ids = ids if first else ids[1:]
        # a word-level vocabulary finds its control tokens among the words
        return ids if self.control.isdisjoint(ids) else [token for token in ids if token not in self.control]

    def after(self, context: str, text: str) -> list[int]:
        """Ids of ``text`` that follows ``context``; apart from it where a tokenizer would join the two."""
        if not context:
            return self(text)
        before, both = self(context), self(context + text)
        return both[len(before) :] if both[: len(before)] == before else self(text)


def content_encoder(tokenizer: Any) -> ContentEncoder:
    """The :class:`ContentEncoder` of a tokenizer, made once, and again where tokens were added to it."""
    return _content_encoder(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _content_encoder(tokenizer: Any, size: int) -> ContentEncoder:
    return ContentEncoder(tokenizer)


def derive(tokenizer: Any, ends: Collection[int] = ()) -> Scaffold:
    """The scaffold of ``tokenizer``'s chat template, proven.

    ``ends``: ids that end an answer by the model's generation config, for templates that put nothing after one
    (GLM-4 ends an answer by the token that opens the next user turn). ValueError, naming the model and the difference,
    for a template that cannot be proven.
    """
    template = _Template(tokenizer)
    try:
        return _proven(template, frozenset(ends))
    except ValueError as error:
        if not template.switches:
            raise
        template.switches = {}
        try:
            return _proven(template, frozenset(ends))
        except ValueError:
            raise error from None


class _Template:
    """A tokenizer's chat template with a fixed date and, where it can, thinking turned off."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.name = tokenizer, _name(tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {self.name} has no chat template: load a chat model, or set tokenizer.chat_template"
            )
        self.encode = content_encoder(tokenizer)
        try:
            source = tokenizer.get_chat_template()
        except ValueError as error:
            raise self.refused(f"cannot be used ({error})") from None
        self.source = re.sub(
            r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda match: repr(DATE.strftime(match[2])), source
        )
        if "strftime_now(" in self.source:
            raise self.refused("prints the date in a form that cannot be fixed, so every day would have other prompts")
        self.switches = {name: False for name in _SWITCHES if re.search(rf"(?<![\w.'\"]){name}\b", source)}

    def render(self, contents: Sequence[str], generation: bool = False) -> str:
        """The text of a conversation in which user and agent alternate."""
        messages = [
            {"role": "assistant" if place % 2 else "user", "content": content} for place, content in enumerate(contents)
        ]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=self.source, add_generation_prompt=generation, **self.switches
            )
        except Exception as error:
            raise self.refused(f"cannot be rendered for a conversation of user and agent ({error})") from None

    def split(self, count: int, generation: bool = False) -> list[str]:
        """The texts around ``count`` contents, in order."""
        marks = [f"sentinel{place}" for place in range(count)]
        pieces = re.split(r"(sentinel\d)", self.render(marks, generation))
        if pieces[1::2] != marks:
            raise self.refused("drops, repeats or reorders messages")
        return pieces[::2]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def cut(self, text: str, behind: str = "") -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a piece of scaffold that stands ``behind`` another text, with the place of each in ``text``."""
        encoding = self.tokenizer.backend_tokenizer.encode(behind + text, add_special_tokens=False)
        places = [(start - len(behind), stop - len(behind)) for start, stop in encoding.offsets]
        first = next((place for place, (_, stop) in enumerate(places) if stop > 0), len(places))
        return encoding.ids[first:], places[first:]

    def refused(self, why: str) -> ValueError:
        return ValueError(
            f"the chat template of {self.name} {why}. It is refused, since training and acting must agree on every "
            "token. Set tokenizer.chat_template to another template of this family and save it with the model "
            "(docs/models.md)"
        )


def _proven(template: _Template, ends: frozenset[int]) -> Scaffold:
    try:
        scaffold = _parts(template, ends)
        _prove(template, scaffold)
    except ValueError:
        raise
    except Exception as error:  # of the tokenizers library
        raise template.refused(f"cannot be tokenised ({error})") from None
    return scaffold


def _parts(template: _Template, ends: frozenset[int]) -> Scaffold:
    """The parts, by conversations with marks as contents."""
    before, past, between, again, after, _ = template.split(5)
    asked, last = template.split(3, generation=True), template.split(4)[-1]
    if (past, between) != (again, after) or asked[:3] != [before, past, between]:
        raise template.refused("renders later turns otherwise than earlier ones")
    prompt, agent_text, rendering = _agent_prompt(template, past, asked[3])
    control = template.encode.control

    ids, places = template.cut(prompt)
    first = _first(ids, control)
    to_agent_text = prompt if first is None else prompt[: places[first][0]]
    to_agent = [] if first is None else ids[first:]
    final = _last(ids, control)
    context_text = prompt if final is None else prompt[places[final][1] :]

    ids, places = template.cut(between, behind="x")
    end = _end(template, ids, template.cut(last, behind="x")[0], template.cut(past, behind="x")[0], ends)
    opened = _last(ids, control)
    if opened is None or opened < end:  # no control token opens a user turn
        opened = end - 1
    before_ids, before_places = template.cut(before)
    start = _last(before_ids, control)
    scaffold_ids = {*before_ids, *to_agent, *ids}
    return Scaffold(
        before=tuple(before_ids[: start + 1]) if start is not None else (),
        before_text=before[before_places[start][1] :] if start is not None else before,
        to_agent_text=to_agent_text,
        to_agent=tuple(to_agent),
        context_text=context_text,
        agent_text=agent_text,
        end=tuple(ids[:end]),
        to_user=tuple(ids[end : opened + 1]),
        to_user_text=between[places[opened][1] :],
        control=control,
        stops=template.encode.special | (scaffold_ids & control),
        rendering=rendering,
    )


def _agent_prompt(template: _Template, past: str, asked: str) -> tuple[str, str, str]:
    """What stands between a user's content and an answer, what the agent says before its content, the rendering."""
    if past.startswith(asked):
        more = past[len(asked) :]
        return (past, "", "prefilled") if more.strip() else (asked, more, "template")
    if asked.startswith(past) and _EMPTY_THOUGHT.fullmatch(asked[len(past) :]):
        return asked, "", "thinking off"
    if asked.startswith(past) and _OPENED_THOUGHT.fullmatch(asked[len(past) :]):
        return past, "", "past answers"
    raise template.refused(f"renders a past answer after {past!r}, but asks for one with {asked!r}")


def _end(template: _Template, between: list[int], last: list[int], past: list[int], ends: frozenset[int]) -> int:
    """How many ids of ``between`` (answer to next user content) close the answer."""
    control = template.encode.control
    common = 0
    while common < min(len(between), len(last)) and between[common] == last[common]:
        common += 1
    final = _last(between[:common], control)
    if final is not None:  # what follows, such as a line break, is not the agent's to say
        return final + 1
    if common and not any(token in control for token in between):
        return common
    first = _first(between, control)
    if first is not None:
        token = between[first]
        # the last answer of a conversation ends otherwise than past ones (gpt-oss), or not at all (GLM-4)
        closes = bool(last) and last[0] in control and bool(past) and token == past[0]
        if closes or token in ends:
            return first + 1
    after, final_end = template.tokenizer.decode(between), template.tokenizer.decode(last)
    raise template.refused(
        f"puts {after!r} after a past answer and {final_end!r} after the last one, so a policy could not learn how to "
        "end its turn"
    )


def _first(ids: Sequence[int], control: frozenset[int]) -> int | None:
    return next((place for place, token in enumerate(ids) if token in control), None)


def _last(ids: Sequence[int], control: frozenset[int]) -> int | None:
    return next((place for place in range(len(ids) - 1, -1, -1) if ids[place] in control), None)


def user_ids(encode: ContentEncoder, scaffold: Scaffold, text: str, first: bool) -> list[int]:
    """Ids of a user turn, from the end of the answer before it to the place where the agent speaks."""
    begin, lead = (scaffold.before, scaffold.before_text) if first else (scaffold.to_user, scaffold.to_user_text)
    content = encode(f"{lead}{text.strip()}{scaffold.to_agent_text}", first=first and not begin)
    return [*begin, *content, *scaffold.to_agent]


def answer_ids(encode: ContentEncoder, scaffold: Scaffold, text: str) -> list[int]:
    """Ids of an answer, its end included."""
    return [*encode.after(scaffold.context_text, scaffold.agent_text + text.strip()), *scaffold.end]


_WORDS = (
    "search[red shirt]", "click[buy now]", "Instruction: [SEP]", "$10.71", "B09QXYZ", "Crème", "brûlée", "Größe", "9.5",
    "2-in-1", "x", "< Prev", "Thought:", "I", "look.", "\n", "\n\n", "\t", "it's", "(50%)", "дом", "家", "😀", "…",
)  # fmt: skip


def _prove(template: _Template, scaffold: Scaffold) -> None:
    """ValueError unless the parts of a conversation with random contents are the template's own ids.

    Four turns, and more with short contents, for templates that leave out what is long or long ago.
    """
    rng = random.Random(0)
    words = rng.sample(_WORDS * 2, k=2 * len(_WORDS))
    contents = [" ".join(words[place::9]).strip() for place in range(9)] + ["x"] * 20
    contents[2] = f"{contents[2]} {' '.join(rng.choices(words, k=1000))}".strip()
    past, asked = template.split(5)[1], template.split(3, generation=True)[3]
    empty_thought = len(template.ids(asked)) - len(template.ids(past)) if scaffold.rendering == "thinking off" else 0
    ids: list[int] = []
    for turn in range(12):
        ids += user_ids(template.encode, scaffold, contents[2 * turn], first=turn == 0)
        own = template.ids(template.render(contents[: 2 * turn + 1], generation=True))
        prompt = ids
        if scaffold.rendering == "prefilled":
            prompt = ids[: len(own)]
        elif scaffold.rendering == "past answers":  # all but the thought that the template opens
            own = own[: len(ids)]
        _same(template, f"the prompt of turn {turn + 1}", prompt, own)
        ids = ids[: len(ids) - empty_thought]  # the template leaves it out of past answers
        ids += answer_ids(template.encode, scaffold, contents[2 * turn + 1])
        whole = template.ids(template.render(contents[: 2 * turn + 3]))
        _same(template, f"turn {turn + 1} with its answer", ids, whole[: len(ids)])


def _same(template: _Template, what: str, ours: list[int], own: list[int]) -> None:
    if ours == own:
        return
    place = next(
        (place for place, (a, b) in enumerate(zip(ours, own, strict=False)) if a != b), min(len(ours), len(own))
    )
    a, b = (template.tokenizer.convert_ids_to_tokens(ids[max(0, place - 3) : place + 5]) for ids in (ours, own))
    raise template.refused(f"cannot be taken apart: for {what}, token {place}, its parts give {a}, it gives {b}")


def _name(tokenizer: Any) -> str:
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
