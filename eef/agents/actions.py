"""Reads the action in what an agent said. What is ambiguous is invalid: an action is never guessed.

Thoughts are cut first: ``<think>...</think>`` and its relatives in ``_THOUGHTS``. An opening tag that is never closed
takes all that follows it. A closing tag without an opening one cuts all that stands before it, since some templates
write the opening tag into the prompt. Then an observation that the agent invented is cut, with all that follows it.
Of what is left, the last line that begins with ``Action:`` counts.

======================================================  ==============================================================
what the agent writes                                   how it is read
======================================================  ==============================================================
``Action: x``, ``Action:x``, ``action : x``             x, in any case of the word, also ``Action 2:``
``**Action:** x``, ``**Action**: x``                    x, also in lists, quotations and headings (``-``, ``1.``,
                                                        ``>``, ``#``)
``Action:`` and x on a later line, or in a code fence   x
x in quotation marks, asterisks or backticks            x without them
``Thought: I look. Action: x``                          x: one label in capitals at the end of a sentence, where no line
                                                        begins with one
``click[x].``                                           ``click[x]``: nothing but punctuation may follow
``click[x]`` and lines of prose, or a new ``Thought:``  ``click[x]``
``click[x] and more``, ``click[x``, ``click[x]]``       ambiguous: it does not end with its closing bracket
``click[x]`` and a later line with ``click[y]``         ambiguous
``open door`` and a later line of text                  ambiguous: without brackets each line may be an action
different ``Action:`` lines in one code fence           ambiguous
``Action:`` with nothing behind it, or no label         no action
======================================================  ==============================================================

An answer that was cut at the token limit counts only where more tokens could not change it: its action has brackets, is
closed and is the last thing written, or an invented observation follows it. ``click[b0`` may have been on the way to
``click[b01]``, ``open door`` to ``open door to kitchen``, and an agent that went on talking to another action.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any


class Problem(StrEnum):
    """Why no action can be read. The name in lower case is the counter in an episode's ``info``."""

    NO_ACTION = "no action"
    AMBIGUOUS = "ambiguous action"
    CUT = "cut at the token limit"


EXPLANATIONS = {  # the observation after such an answer
    Problem.NO_ACTION: (
        "No action was found in your answer, so nothing was done: give one after the words 'Action: '."
    ),
    Problem.AMBIGUOUS: (
        "Your answer does not name exactly one complete action, so nothing was done: write one action on one line "
        "after the words 'Action: ', and nothing after it."
    ),
    Problem.CUT: (
        "Your answer was cut because it was too long, and nothing was done: write less before the words 'Action: '."
    ),
}


@dataclass(frozen=True)
class Answer:
    """What was read: an action, or the problem. ``end`` is where an invented observation begins in the reply; its
    length where there is none."""

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
)  # looking ahead for a first character makes it 20 times faster

# The quantifiers are possessive, so that no reply takes more than linear time.
_LABEL = re.compile(
    r"[\s>#*_`~+•\-\u200b\ufeff]*+(?:\d{1,3}[.)]\s*+)?[*_`]*+(action|thought|observation)(?:\s?\d{1,3})?[*_`]*+"
    r"\s*+[:：][*_`]*+(.*)",
    re.IGNORECASE,
)
_INLINE = re.compile(r"""[.!?…:;)\]。！？]["”'’]?\s*+[*_`]{0,3}(?:Action|ACTION)[*_`]{0,3}\s?[:：][*_`]{0,3}""")
_INNER = re.compile(r"\b(?:Action|Thought|Observation)\s?:")
_FENCE = re.compile(r"(?:```|~~~)[\w+.\-]*")
_MARKUP = re.compile(r"(?:```|~~~)[\w+.\-]*|[*_`~\-=#>+•\s]*")
_CALL = re.compile(r"\w+\[")  # what an action with brackets begins with
_PAIRS = ("****", "**", "``", '""', "''", "“”", "‘’", "«»")


def read_action(reply: str, react: bool = True, cut: bool = False) -> Answer:
    """The action in ``reply``, by the rules above.

    Without ``react`` a reply that has no ``Action:`` line is an action as a whole. ``cut``: the reply was cut at the
    token limit.
    """
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
    """Answers without a readable action, by counter; ``infos`` are those of episodes."""
    totals = {problem.name.lower(): 0 for problem in Problem}
    for info in infos:
        for name in totals:
            totals[name] += int(info.get(name, 0))
    return totals


def describe_problems(counts: Mapping[str, int], answers: int) -> str:
    """The counts of :func:`problem_counts` as a line, empty where all are 0."""
    reasons = [f"{counts[problem.name.lower()]} {problem}" for problem in Problem if counts[problem.name.lower()]]
    total = sum(counts.values())
    return f"{total} of {answers} answers had no readable action: {', '.join(reasons)}" if total else ""


def _without_thoughts(reply: str) -> str:
    """The reply with line breaks in the place of its thoughts, so that it keeps its length."""
    pieces: list[str] = []
    begin, inside = 0, -1  # where the current thought, or what is said between two, begins; which thought it is
    for tag in _TAG.finditer(reply):
        kind, closes = divmod((tag.lastindex or 0) - 1, 2)
        if inside < 0 and not closes:
            pieces.append(reply[begin : tag.start()])
            begin, inside = tag.start(), kind
        elif inside < 0:
            pieces, begin = ["\n" * tag.end()], tag.end()
        elif closes and kind == inside:
            pieces.append("\n" * (tag.end() - begin))
            begin, inside = tag.end(), -1
    pieces.append(reply[begin:] if inside < 0 else "\n" * (len(reply) - begin))
    return "".join(pieces)


def _labelled(text: str) -> tuple[list[str], dict[int, str], int]:
    """Lines (of those with a label, what follows it), their labels by number, and where an invented observation begins.

    An observation before anything else was said is the page read out, and is not invented.
    """
    lines: list[str] = []
    labels: dict[int, str] = {}
    end, spoken = 0, False
    for line in text.split("\n"):
        if label := _LABEL.match(line):
            name = label[1].lower()
            if name == "observation" and spoken:
                return lines, labels, end
            labels[len(lines)] = name
        lines.append(label[2] if label else line)
        spoken = spoken or bool(line.strip())
        end += len(line) + 1
    return lines, labels, len(text)


def _last(lines: Sequence[str], labels: Mapping[int, str], actions: Sequence[int]) -> tuple[str, Problem | None]:
    """The action of the last label; ambiguous where another one stands in the same code fence."""
    fences, fence = dict[int, int](), 0  # of each line: an odd number inside the fence that has it
    for number, line in enumerate(lines):
        fences[number] = fence
        fence += bool(_FENCE.fullmatch(line.strip()))
    last = actions[-1]
    same = [number for number in actions if fences[number] == fences[last]] if fences[last] % 2 else [last]
    ends = [*sorted(labels), len(lines)]
    following = dict(pairwise(ends))
    read = {_one(lines[number : following[number]]) for number in same}
    return read.pop() if len(read) == 1 else ("", Problem.AMBIGUOUS)


def _inline(text: str) -> tuple[str, Problem | None]:
    """The action after the only label within a line."""
    places = [label.end() for label in _INLINE.finditer(text)]
    if len(places) != 1:
        return "", Problem.AMBIGUOUS if places else Problem.NO_ACTION
    first, _, later = text[places[0] :].partition("\n")
    lines, labels, _ = _labelled(later)
    return _one([first, *lines[: min(labels, default=len(lines))]])


def _one(lines: Sequence[str]) -> tuple[str, Problem | None]:
    """The action of a label: in what follows it on its line and on later ones."""
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
    """The action of a line without the markup around it; None where there is more than one action in the line."""
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
    """The place of the bracket that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"[": 1, "]": -1}.get(text[place], 0)
        if not depth:
            return place
    return None


def _is_last(action: str, reply: str) -> bool:
    """Whether the reply ends with ``action``, whose brackets are closed."""
    head = _CALL.match(action)
    closed = head is not None and _closing(action, head.end() - 1) == len(action) - 1
    return closed and not any(c.isalnum() or c in "[]" for c in reply.rpartition(action)[2])
