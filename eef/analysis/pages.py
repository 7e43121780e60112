"""Results pages in Markdown: their tables, and the numbers in their sentences, for comparison with computed ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

_INTERVAL = re.compile(r"([+−]\d+\.\d \([+−]\d+\.\d to [+−]\d+\.\d\))(?:, (\d+ of \d+)(?: seeds)?)?")
_NUMBER = re.compile(r"(?<![\d.,v])[+−](\d+\.\d)(?![\d.])|(?<![\d.,+−])(\d+\.\d)(?= points)")
_BEFORE = re.compile(r"^## Before\n.*?(?=^#|\Z)|^\*\*Before\.\*\*.*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a page: a dict for each row, its cells by the names of the columns."""
    each = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        each.append([dict(zip(head, line, strict=True)) for line in body])
    return each


def paragraphs(text: str) -> list[str]:
    """The paragraphs, list items and rows of tables, each in one line.

    Code and what a page says of earlier runs ("Before") are left out: the tables of those runs are not there.
    """
    text = _BEFORE.sub("", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=[|#]|- )", text) if part.strip()]


def numbers(cells: Iterable[str]) -> set[str]:
    """The numbers with one decimal place in cells of tables, without their signs."""
    return {each for cell in cells for each in re.findall(r"(?<![\d.])\d+\.\d(?!\d)", cell)}


def intervals(paragraph: str) -> list[str]:
    """The differences with an interval, ``+14.3 (+9.2 to +19.4)``."""
    return [text for text, _ in _INTERVAL.findall(paragraph)]


def wrong_intervals(paragraph: str, known: Mapping[str, Collection[str]]) -> list[str]:
    """The intervals ``+14.3 (+9.2 to +19.4)`` that are not ``known``.

    A number of seeds right behind one, ``, 20 of 20 seeds``, must be among the values of ``known``.
    """
    each = [(text, seeds) for text, seeds in _INTERVAL.findall(paragraph)]
    return [f"{text}, {seeds}" for text, seeds in each if text not in known or (seeds and seeds not in known[text])]


def wrong_numbers(paragraph: str, known: Collection[str]) -> list[str]:
    """The differences in a sentence, ``+11.2`` or ``19.6 points``, whose number is not ``known``; intervals aside."""
    each = [signed or plain for signed, plain in _NUMBER.findall(_INTERVAL.sub("", paragraph))]
    return [number for number in each if number not in known]
