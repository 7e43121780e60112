"""Reads the action in an agent's answer. An ambiguous answer is invalid: no action is guessed.

Thoughts are removed first: ``<think>...</think>`` and the other tags in ``_THOUGHTS``. An opening tag without a closing
one removes all that follows. A closing tag without an opening one removes all that precedes, since some templates write
the opening tag into the prompt. Then an observation that the agent invented is removed, with all that follows. In the
rest, the last line that begins with ``Action:`` counts.

======================================================  ==============================================================
the agent's answer                                       its action
======================================================  ==============================================================
``Action: x``, ``Action:x``, ``action : x``             x, in any case of the word, also ``Action 2:``
``**Action:** x``, ``**Action**: x``                    x, also in lists, quotations and headings (``-``, ``1.``,
                                                        ``>``, ``#``)
``Action:`` and x on a later line, or in a code fence   x
x in quotation marks, asterisks or backticks            x without them
``Thought: I look. Action: x``                          x, if no line begins with a label and only one capitalised label
                                                        follows a sentence
``click[x].``                                           ``click[x]``: only punctuation may follow
``click[x]`` and lines of prose, or a new ``Thought:``  ``click[x]``
``click[x] and more``, ``click[x``, ``click[x]]``       ambiguous: it does not end with its closing bracket
``click[x]`` and a later line with ``click[y]``         ambiguous
``open door`` and a later line of text                  ambiguous: without brackets each line may be an action
different ``Action:`` lines in one code fence           ambiguous
``Action:`` with nothing after it, or no label          no action
======================================================  ==============================================================

An answer that was cut at the token limit counts only if more tokens could not change its action: the action ends with
its closing bracket and nothing follows, or an invented observation follows. ``click[b0`` could have become
``click[b01]``, and ``open door`` could have become ``open door to kitchen``. Further text could hold another action.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eef import conversations
from eef.files import replace_surrogates

if TYPE_CHECKING:
    from eef.envs.extras import Skill


class Problem(StrEnum):
    """Why an answer has no readable action. The lower-case name is the name of its counter in an episode's ``info``."""

    NO_ACTION = "no action"
    AMBIGUOUS = "ambiguous action"
    CUT = "cut at the token limit"


# the observation after such an answer; stored trajectories contain it
EXPLANATIONS = {problem: conversations.EXPLANATIONS[problem.name] for problem in Problem}


@dataclass(frozen=True)
class Answer:
    """The action of a reply, or the problem with it.

    ``end``: where an invented observation begins in the reply, or the length of the reply.
    """

    action: str
    problem: Problem | None
    end: int


_THOUGHTS = (  # opening and closing tags, as regular expressions
    (r"<think\s*>", r"</think\s*>"),  # DeepSeek, Qwen, SmolLM3, Phi-4
    (r"<thinking\s*>", r"</thinking\s*>"),
    (r"<thoughts?\s*>", r"</thoughts?\s*>"),  # EXAONE
    (r"<reasoning\s*>", r"</reasoning\s*>"),
    (r"<(?:reflection|analysis|scratchpad)\s*>", r"</(?:reflection|analysis|scratchpad)\s*>"),
    (r"<seed:think>", r"</seed:think>"),  # Seed-OSS
    (r"<\|channel>thought", r"<channel\|>"),  # Gemma-4
    (r"<unused94>thought", r"<unused95>"),  # MedGemma
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    # gpt-oss; "analysis" and "assistantfinal" are left where a server drops the special tokens
    (
        r"<\|channel\|>(?:analysis|commentary)|\Aanalysis(?=(?-i:[A-Z]))",
        r"<\|channel\|>final(?:<\|message\|>)?|assistantfinal",
    ),
)
_ALL = "|".join(f"({opening})|({closing})" for opening, closing in _THOUGHTS)
_TAG = re.compile(
    rf"(?=[<\[a◁])(?:{_ALL})", re.IGNORECASE
)  # the lookahead for the first character makes it 20 times faster

# Possessive quantifiers keep the time linear in the length of a reply.
_LABEL = re.compile(
    r"[\s>#*_`~+•\-\u200b\ufeff]*+(?:\d{1,3}[.)]\s*+)?[*_`]*+(action|thought|observation)(?:\s?\d{1,3})?[*_`]*+"
    r"\s*+[:：][*_`]*+(.*)",
    re.IGNORECASE,
)
_INLINE = re.compile(r"""[.!?…:;)\]。！？]["”'’]?\s*+[*_`]{0,3}(?:Action|ACTION)[*_`]{0,3}\s?[:：][*_`]{0,3}""")
_INNER = re.compile(r"\b(?:Action|Thought|Observation)\s?:")
_FENCE = re.compile(r"(?:```|~~~)[\w+.\-]*")
_MARKUP = re.compile(r"(?:```|~~~)[\w+.\-]*|[*_`~\-=#>+•\s]*")
_CALL = re.compile(r"\w+\[")  # the beginning of an action with brackets
_PAIRS = ("****", "**", "``", '""', "''", "“”", "‘’", "«»")


def read_action(reply: str, react: bool = True, cut: bool = False) -> Answer:
    """The action in ``reply``, by the rules above.

    ``react=False``: a reply without an ``Action:`` line is an action as a whole. ``cut``: the reply was cut at the
    token limit. Half of a surrogate pair is read as U+FFFD.
    """
    reply = replace_surrogates(reply)  # the length stays the same
    text = _without_thoughts(reply).replace("\r", "\n")
    lines, labels, end = _labelled(text)
    actions = [number for number, label in labels.items() if label == "action"]
    if actions:
        action, problem = _last(lines, labels, actions)
    elif react:
        action, problem = _inline(text[:end])
    else:
        action = text[:end].strip()
        problem = None if action else Problem.NO_ACTION
    if cut and end == len(reply) and not (action and _is_last(action, reply)):
        action, problem = "", Problem.CUT
    return Answer(action, problem, end)


def problem_counts(infos: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The number of answers without a readable action, by problem. ``infos``: the ``info`` of episodes."""
    totals = {problem.name.lower(): 0 for problem in Problem}
    for info in infos:
        for name in totals:
            totals[name] += int(info.get(name, 0))
    return totals


def describe_problems(counts: Mapping[str, int], answers: int) -> str:
    """The counts of :func:`problem_counts` in one line; empty if all are 0."""
    reasons = [f"{counts[problem.name.lower()]} {problem}" for problem in Problem if counts[problem.name.lower()]]
    total = sum(counts.values())
    return f"{total} of {answers} answers had no readable action: {', '.join(reasons)}" if total else ""


def _without_thoughts(reply: str) -> str:
    """The reply with its thoughts replaced by line breaks, so that its length stays the same."""
    pieces: list[str] = []
    begin, open_kind = 0, -1  # where the current piece begins; the kind of thought it is, -1 outside thoughts
    for tag in _TAG.finditer(reply):
        kind, closes = divmod((tag.lastindex or 0) - 1, 2)
        if open_kind < 0 and not closes:
            pieces.append(reply[begin : tag.start()])
            begin, open_kind = tag.start(), kind
        elif open_kind < 0:
            pieces, begin = ["\n" * tag.end()], tag.end()
        elif closes and kind == open_kind:
            pieces.append("\n" * (tag.end() - begin))
            begin, open_kind = tag.end(), -1
    pieces.append(reply[begin:] if open_kind < 0 else "\n" * (len(reply) - begin))
    return "".join(pieces)


def _labelled(text: str) -> tuple[list[str], dict[int, str], int]:
    """Lines without their labels, labels by line number, and where an invented observation begins.

    An observation before any other text repeats the page and is not invented.
    """
    lines: list[str] = []
    labels: dict[int, str] = {}
    end, has_text = 0, False
    for line in text.split("\n"):
        if label := _LABEL.match(line):
            name = label[1].lower()
            if name == "observation" and has_text:
                return lines, labels, end
            labels[len(lines)] = name
        lines.append(label[2] if label else line)
        has_text = has_text or bool(line.strip())
        end += len(line) + 1
    return lines, labels, len(text)


def _last(lines: Sequence[str], labels: Mapping[int, str], actions: Sequence[int]) -> tuple[str, Problem | None]:
    """The action of the last label. Ambiguous if another label in the same code fence has another action."""
    fences, fence = dict[int, int](), 0  # line number to number of fence marks before it: odd inside a code fence
    for number, line in enumerate(lines):
        fences[number] = fence
        fence += bool(_FENCE.fullmatch(line.strip()))
    last = actions[-1]
    same = [number for number in actions if fences[number] == fences[last]] if fences[last] % 2 else [last]
    next_label = dict(pairwise([*sorted(labels), len(lines)]))
    candidates = {_after_label(lines[number : next_label[number]]) for number in same}
    return candidates.pop() if len(candidates) == 1 else ("", Problem.AMBIGUOUS)


def _inline(text: str) -> tuple[str, Problem | None]:
    """The action after the only label within a line."""
    places = [label.end() for label in _INLINE.finditer(text)]
    if len(places) != 1:
        return "", Problem.AMBIGUOUS if places else Problem.NO_ACTION
    first, _, later = text[places[0] :].partition("\n")
    lines, labels, _ = _labelled(later)
    return _after_label([first, *lines[: min(labels, default=len(lines))]])


def _after_label(lines: Sequence[str]) -> tuple[str, Problem | None]:
    """The action in the text after a label, on its line and later ones."""
    first, *others = [line for line in lines if not _MARKUP.fullmatch(line.strip())] or [""]
    action = _bare(first)
    if not action:
        return "", Problem.NO_ACTION if action == "" else Problem.AMBIGUOUS
    brackets = bool(_CALL.match(action))
    for other in others:
        prose = brackets and not re.search(r"\w\[", other)
        if not prose and _bare(other) != action:
            return "", Problem.AMBIGUOUS
    return action, None


def _bare(line: str) -> str | None:
    """The action of a line without the markup around it; None if the line has more than one action."""
    text = re.sub(r"^\s*(?:[-+*•>]\s+)?", "", line).strip()
    call = text.lstrip("*`\"'“‘«")
    if head := _CALL.match(call):
        end = _closing(call, head.end() - 1)
        if end is None:  # brackets inside that are not closed
            whole = call.rstrip("*_`\"'”’».,;:!?")
            return whole if whole.endswith("]") and not re.search(r"\w\[", call[head.end() :]) else None
        return None if any(c.isalnum() or c in "[]" for c in call[end + 1 :]) else call[: end + 1]
    for _ in range(4):
        for pair in _PAIRS:
            half = len(pair) // 2
            if len(text) >= len(pair) and text.startswith(pair[:half]) and text.endswith(pair[half:]):
                text = text[half : len(text) - half].strip()
    return None if _INNER.search(text) else text.rstrip("*`").strip()


def _closing(text: str, opening: int) -> int | None:
    """The position of the bracket that closes the one at ``opening``; None if it is not closed."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"[": 1, "]": -1}.get(text[place], 0)
        if not depth:
            return place
    return None


def _is_last(action: str, reply: str) -> bool:
    """Whether ``action`` has closed brackets and ends the reply."""
    head = _CALL.match(action)
    closed = head is not None and _closing(action, head.end() - 1) == len(action) - 1
    return closed and not any(c.isalnum() or c in "[]" for c in reply.rpartition(action)[2])


def uses(action: str, skill: Skill) -> bool:
    """Whether an action uses a navigation skill."""
    return re.match(skill.pattern, action.strip(), re.IGNORECASE) is not None
