"""Words as symbols, for small policies: in each conversation every word that the vocabulary lacks gets a symbol, in
order of first appearance. Such a policy reads and copies, and knows no word."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

FIRST, OTHER, ROWS = 48, 256, 10  # symbols: the prompt's words, later words, listed products

_ACTION = re.compile(r"^(search|click)\[(.*)\]$", re.DOTALL)
_WORD = re.compile(r"\$cap|\$\d[\d,]*(?:\.\d+)?|[^\W_](?:[\w.'/-]*\w)?")
_CAP = re.compile(r"\b(\d+\.\d\d) dollars")
_LISTED = re.compile(r"[A-Z0-9]{10}")


@dataclass
class Aliases:
    """The symbols of one conversation: words and listed products to short names and back.

    ``i0, i1, ...`` are words of the prompt, ``o0, o1, ...`` later words (a ring: the oldest name is given away),
    ``r1 ... r10`` the products that the last result page lists (each name closes its row), ``$ok`` and ``$over`` a
    price beside the cap that the prompt sets (``$cap``; a small policy cannot compare numbers), ``ditto`` a long
    passage of the prompt that a page repeats. Equal texts read in equal order get equal symbols, so training and acting
    agree. ``parts`` are the parts of the current page by their symbols; None where several parts have the same ones.
    """

    vocabulary: frozenset[str]
    words: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str | None] = field(default_factory=dict)
    passages: frozenset[str] = frozenset()  # long parts of the prompt
    cap: float = math.inf
    first: int = 0
    other: int = 0

    def copy(self) -> Aliases:
        return replace(self, words=dict(self.words), names=dict(self.names), rows=dict(self.rows))

    def read(self, text: str, prompt: bool = False) -> str:
        """An observation as symbols separated by spaces; new words are given names."""
        out: list[str] = []
        self.parts = {}
        segments = text.split(" [SEP] ")
        if prompt:
            self.passages = frozenset(segment for segment in segments if segment.count(" ") >= 6)
            self.cap = min(map(float, _CAP.findall(text)), default=math.inf)
        listed = [segment for segment in segments if _LISTED.fullmatch(segment)]
        if listed:
            self.rows = {asin.lower(): f"r{place}" for place, asin in enumerate(listed[:ROWS], start=1)}
        row: list[str] = []  # the name of a row closes it: a causal reader knows there what the row holds
        for segment in segments:
            phrase = segment.strip().lower().replace(" ", "_")
            if segment in self.passages and not prompt:
                out.append("ditto")
            elif phrase.startswith("page_"):
                out += phrase.split("_")[:2]
            elif segment.lower() in self.rows and _LISTED.fullmatch(segment):
                out += row
                row = [self.rows[segment.lower()]]
            elif phrase in self.vocabulary:
                self._remember(phrase.replace("_", " "), phrase)
                out.append(phrase)
            else:
                symbols = self._symbols(segment, prompt)
                self._remember(segment.strip(), " ".join(symbols))
                out += symbols
        return " ".join(out + row)

    def read_action(self, action: str) -> str:
        """``click[b01...]`` as ``click[ r1 ]``; what follows no such grammar is read as plain words."""
        match = _ACTION.match(action.strip())
        if match is None:
            return " ".join(self._symbols(action, prompt=False))
        name, argument = match.groups()
        phrase = argument.strip().lower().replace(" ", "_")
        if name == "click" and phrase in self.rows:
            inside = self.rows[phrase]
        elif name == "click" and phrase in self.vocabulary:
            inside = phrase
        else:
            inside = " ".join(self._symbols(argument, prompt=False))
        return f"{name}[ {inside} ]"

    def write_action(self, text: str) -> str:
        """The inverse of :meth:`read_action` for what a policy said.

        A click names a part as the current page writes it. Symbols keep no punctuation, so several parts of a page may
        have the same ones: a click on these stays as it was said, which no environment takes for an action, since
        nothing tells which part was meant.
        """
        match = re.match(r"^(search|click)\[\s*(.*?)\s*\]$", text.strip(), re.DOTALL)
        if match is None:
            return text.strip()
        name, inside = match.groups()
        symbols = " ".join(inside.split())
        if name == "click" and symbols in self.parts:
            part = self.parts[symbols]
            return text.strip() if part is None else f"click[{part}]"
        back = {symbol: asin for asin, symbol in self.rows.items()}
        words = [back.get(word) or self.names.get(word) or word.replace("_", " ") for word in inside.split()]
        return f"{name}[{' '.join(words)}]"

    def _remember(self, part: str, symbols: str) -> None:
        known = self.parts.get(symbols, part)
        self.parts[symbols] = known if known is not None and known.lower() == part.lower() else None

    def _symbols(self, text: str, prompt: bool) -> list[str]:
        text = _CAP.sub("$cap dollars", text)
        return [self._symbol(word, prompt) for word in _WORD.findall(text.lower())]

    def _symbol(self, word: str, prompt: bool) -> str:
        if word == "$cap":
            return word
        if word[0] == "$":
            return "$ok" if float(word[1:].replace(",", "")) <= self.cap else "$over"
        if word in self.words:
            return self.words[word]
        if word in self.vocabulary:
            return word
        if prompt and self.first < FIRST:
            symbol = f"i{self.first}"
            self.first += 1
        else:
            symbol = f"o{self.other % OTHER}"
            self.other += 1
            self.words.pop(self.names.get(symbol, ""), None)
        self.words[word], self.names[symbol] = symbol, word
        return symbol
