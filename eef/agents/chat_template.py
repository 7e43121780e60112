"""Derives a :class:`~eef.agents.scaffold.Scaffold` from a tokenizer's own chat template, and checks it.

:func:`derive_scaffold` renders a conversation with the template and splits it at control tokens. It then puts the parts
together for conversations with random contents. Their ids must equal the template's own ids, for the whole conversation
and for every generation prompt. A template that fails this check is refused.

Some families render past answers differently from the answer that they ask for. One rendering is used for all answers,
in training and in acting (``Scaffold.rendering``):

``template``
    Past answers follow exactly the generation prompt. Most families.
``prefilled``
    Past answers begin with more than the generation prompt, such as the channel of gpt-oss' final answers. Every
    prompt ends with this beginning, which is never sampled and carries no loss.
``thinking off``
    The template can turn thinking off (``enable_thinking=False``). An empty think block then ends every generation
    prompt, but past answers are rendered without it (Qwen3). Here it precedes every answer, past ones too.
``past answers``
    The generation prompt always opens a thought (DeepSeek-R1). Here no prompt opens one, as in the template's past
    answers.

Templates that print the current date get a fixed one (``DATE``), so that no result depends on the day.
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Collection, Sequence
from typing import Any

from eef.agents.scaffold import Scaffold, answer_ids, content_encoder, name_of, user_ids

DATE = datetime.date(2024, 7, 26)

_SWITCHES = ("enable_thinking", "thinking")  # variables of templates that turn thinking off
_OPENED_THOUGHT = re.compile(r"\s*[<\[][^<>\[\]/]*(?:think|thought|reason|analysis)[^<>\[\]/]*[>\]]\s*", re.IGNORECASE)
_EMPTY_THOUGHT = re.compile(r"\s*(?:<(\w+)>\s*</\1>|\[THINK\]\s*\[/THINK\])\s*")


def derive_scaffold(tokenizer: Any, ends: Collection[int] = ()) -> Scaffold:
    """The scaffold of ``tokenizer``'s chat template.

    ``ends``: ids that end an answer according to the model's generation config, for templates that write nothing after
    the last answer (GLM-4 ends an answer with the token that opens the next user turn). ValueError, naming the model
    and the difference, for a template that fails the check.
    """
    template = _Template(tokenizer)
    try:
        return _checked_scaffold(template, frozenset(ends))
    except ValueError as error:
        if not template.switches:
            raise
        template.switches = {}
        try:
            return _checked_scaffold(template, frozenset(ends))
        except ValueError:
            raise error from None


class _Template:
    """A tokenizer's chat template with a fixed date and, if it can, thinking turned off."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.name = tokenizer, name_of(tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {self.name} has no chat template: load a chat model, or set tokenizer.chat_template"
            )
        self.encode = content_encoder(tokenizer)
        try:
            source = tokenizer.get_chat_template()
        except ValueError as error:
            raise self.refusal(f"cannot be used ({error})") from None
        self.source = re.sub(
            r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda match: repr(DATE.strftime(match[2])), source
        )
        if "strftime_now(" in self.source:
            raise self.refusal("prints the date in a form that cannot be fixed, so prompts would change every day")
        self.switches = {name: False for name in _SWITCHES if re.search(rf"(?<![\w.'\"]){name}\b", source)}

    def render(self, contents: Sequence[str], generation: bool = False) -> str:
        """The text of a conversation in which user and agent alternate."""
        messages = [
            {"role": "assistant" if turn % 2 else "user", "content": content} for turn, content in enumerate(contents)
        ]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=self.source, add_generation_prompt=generation, **self.switches
            )
        except Exception as error:
            raise self.refusal(f"cannot be rendered for a conversation of user and agent ({error})") from None

    def split(self, count: int, generation: bool = False) -> list[str]:
        """The texts around ``count`` contents, in order."""
        contents = [f"sentinel{turn}" for turn in range(count)]
        pieces = re.split(r"(sentinel\d)", self.render(contents, generation))
        if pieces[1::2] != contents:
            raise self.refusal("drops, repeats or reorders messages")
        return pieces[::2]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def tokenise(self, text: str, before: str = "") -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of ``text`` after the text ``before``, and for each id the characters of ``text`` that it covers."""
        encoding = self.tokenizer.backend_tokenizer.encode(before + text, add_special_tokens=False)
        spans = [(start - len(before), stop - len(before)) for start, stop in encoding.offsets]
        first = next((index for index, (_, stop) in enumerate(spans) if stop > 0), len(spans))
        return encoding.ids[first:], spans[first:]

    def refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"the chat template of {self.name} {reason}. It is refused: training and acting must agree on every "
            "token. Set tokenizer.chat_template to another template of this family and save it with the model "
            "(docs/models.md)"
        )


def _checked_scaffold(template: _Template, ends: frozenset[int]) -> Scaffold:
    try:
        scaffold = _split_template(template, ends)
        _check(template, scaffold)
    except ValueError:
        raise
    except Exception as error:  # the tokenizers library raises no narrower class
        raise template.refusal(f"cannot be tokenised ({error})") from None
    return scaffold


def _split_template(template: _Template, ends: frozenset[int]) -> Scaffold:
    """The parts of a template, from conversations with sentinels as contents."""
    before, past, between, later_past, later_between, _ = template.split(5)
    generation_prompt, last = template.split(3, generation=True), template.split(4)[-1]
    if (past, between) != (later_past, later_between) or generation_prompt[:3] != [before, past, between]:
        raise template.refusal("renders later turns differently from earlier ones")
    prompt, agent_text, rendering = _agent_prompt(template, past, generation_prompt[3])
    control = template.encode.control

    ids, spans = template.tokenise(prompt)
    first = _first(ids, control)
    to_agent_text = prompt if first is None else prompt[: spans[first][0]]
    to_agent = [] if first is None else ids[first:]
    final = _last(ids, control)
    context_text = prompt if final is None else prompt[spans[final][1] :]

    ids, spans = template.tokenise(between, before="x")
    last_ids, past_ids = template.tokenise(last, before="x")[0], template.tokenise(past, before="x")[0]
    end = _end_length(template, ids, last_ids, past_ids, ends)
    opening = _last(ids, control)
    if opening is None or opening < end:  # no control token opens a user turn
        opening = end - 1
    before_ids, before_spans = template.tokenise(before)
    start = _last(before_ids, control)
    scaffold_ids = {*before_ids, *to_agent, *ids}
    return Scaffold(
        before=tuple(before_ids[: start + 1]) if start is not None else (),
        before_text=before[before_spans[start][1] :] if start is not None else before,
        to_agent_text=to_agent_text,
        to_agent=tuple(to_agent),
        context_text=context_text,
        agent_text=agent_text,
        end=tuple(ids[:end]),
        to_user=tuple(ids[end : opening + 1]),
        to_user_text=between[spans[opening][1] :],
        control=control,
        stops=template.encode.special | (scaffold_ids & control),
        rendering=rendering,
    )


def _agent_prompt(template: _Template, past: str, generation_prompt: str) -> tuple[str, str, str]:
    """The text between a user's content and an answer, the text at the start of the answer, and the rendering."""
    if past.startswith(generation_prompt):
        more = past[len(generation_prompt) :]
        return (past, "", "prefilled") if more.strip() else (generation_prompt, more, "template")
    if generation_prompt.startswith(past) and _EMPTY_THOUGHT.fullmatch(generation_prompt[len(past) :]):
        return generation_prompt, "", "thinking off"
    if generation_prompt.startswith(past) and _OPENED_THOUGHT.fullmatch(generation_prompt[len(past) :]):
        return past, "", "past answers"
    raise template.refusal(f"puts {past!r} before past answers, but {generation_prompt!r} before a new one")


def _end_length(template: _Template, between: list[int], last: list[int], past: list[int], ends: frozenset[int]) -> int:
    """The number of ids that end an answer, at the beginning of ``between`` (from an answer to the next content)."""
    control = template.encode.control
    common = 0
    while common < min(len(between), len(last)) and between[common] == last[common]:
        common += 1
    final = _last(between[:common], control)
    if final is not None:  # what follows it, such as a line break, is not part of the answer
        return final + 1
    if common and not any(token in control for token in between):
        return common
    first = _first(between, control)
    if first is not None:
        token = between[first]
        # the last answer of a conversation has another end than past ones (gpt-oss), or none (GLM-4)
        closes = bool(last) and last[0] in control and bool(past) and token == past[0]
        if closes or token in ends:
            return first + 1
    after_past, after_last = template.tokenizer.decode(between), template.tokenizer.decode(last)
    raise template.refusal(
        f"writes {after_past!r} after a past answer and {after_last!r} after the last one, so a policy could not learn "
        "how to end its turn"
    )


def _first(ids: Sequence[int], control: frozenset[int]) -> int | None:
    """The index of the first control token."""
    return next((index for index, token in enumerate(ids) if token in control), None)


def _last(ids: Sequence[int], control: frozenset[int]) -> int | None:
    """The index of the last control token."""
    return next((index for index in range(len(ids) - 1, -1, -1) if ids[index] in control), None)


_WORDS = (
    "search[red shirt]", "click[buy now]", "Instruction: [SEP]", "$10.71", "B09QXYZ", "Crème", "brûlée", "Größe", "9.5",
    "2-in-1", "x", "< Prev", "Thought:", "I", "look.", "\n", "\n\n", "\t", "it's", "(50%)", "дом", "家", "😀", "…",
)  # fmt: skip


def _check(template: _Template, scaffold: Scaffold) -> None:
    """ValueError unless the scaffold gives the template's own ids for conversations with random contents.

    Four turns, and more with short contents, for templates that leave out long or old messages.
    """
    rng = random.Random(0)
    words = rng.sample(_WORDS * 2, k=2 * len(_WORDS))
    contents = [" ".join(words[start::9]).strip() for start in range(9)] + ["x"] * 20
    contents[2] = f"{contents[2]} {' '.join(rng.choices(words, k=1000))}".strip()
    past, generation_prompt = template.split(5)[1], template.split(3, generation=True)[3]
    empty_thought = (
        len(template.ids(generation_prompt)) - len(template.ids(past)) if scaffold.rendering == "thinking off" else 0
    )
    ids: list[int] = []
    for turn in range(12):
        ids += user_ids(template.encode, scaffold, contents[2 * turn], first=turn == 0)
        expected = template.ids(template.render(contents[: 2 * turn + 1], generation=True))
        prompt = ids
        if scaffold.rendering == "prefilled":
            prompt = ids[: len(expected)]
        elif scaffold.rendering == "past answers":  # without the thought that the template opens
            expected = expected[: len(ids)]
        _compare(template, f"the prompt of turn {turn + 1}", prompt, expected)
        ids = ids[: len(ids) - empty_thought]  # the template leaves it out of past answers
        ids += answer_ids(template.encode, scaffold, contents[2 * turn + 1])
        expected = template.ids(template.render(contents[: 2 * turn + 3]))
        _compare(template, f"turn {turn + 1} with its answer", ids, expected[: len(ids)])


def _compare(template: _Template, what: str, ids: list[int], expected: list[int]) -> None:
    if ids == expected:
        return
    pairs = enumerate(zip(ids, expected, strict=False))
    place = next((place for place, (a, b) in pairs if a != b), min(len(ids), len(expected)))
    a, b = (template.tokenizer.convert_ids_to_tokens(each[max(0, place - 3) : place + 5]) for each in (ids, expected))
    raise template.refusal(
        f"cannot be split into parts: for {what}, the parts give {a} at token {place}, but the template gives {b}"
    )
