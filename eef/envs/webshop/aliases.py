"""Words as symbols, for policies with a small vocabulary.

In each conversation, every word that the vocabulary lacks gets a symbol, in order of first appearance. Such a policy
reads and copies symbols, and knows no words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

# The number of symbols for words of the prompt, for later words, and for listed products
PROMPT_SYMBOLS, LATER_SYMBOLS, ROW_SYMBOLS = 48, 256, 10

_ACTION = re.compile(r"^(search|click)\[(.*)\]$", re.DOTALL)
_WORD = re.compile(r"\$cap|\$\d[\d,]*(?:\.\d+)?|[^\W_](?:[\w.'/-]*\w)?")
_CAP = re.compile(r"\b(\d+\.\d\d) dollars")
_PRODUCT_ID = re.compile(r"[A-Z0-9]{10}")


@dataclass
class Aliases:
    """The symbols of one conversation.

    - ``i0``, ``i1``, ...: words of the prompt
    - ``o0``, ``o1``, ...: later words. When all are in use, the oldest is reused.
    - ``r1`` to ``r10``: the products on the last result page. Each symbol ends its row.
    - ``$cap``: the price cap of the prompt. ``$ok`` and ``$over``: a price compared with it, since a small policy
      cannot compare numbers
    - ``ditto``: a long passage of the prompt that a page repeats

    Equal texts in equal order get equal symbols, so training and acting agree. ``parts`` maps the symbols of a part of
    the current page to its text, or to None if several parts have the same symbols.
    """

    vocabulary: frozenset[str]
    words: dict[str, str] = field(default_factory=dict)  # word to symbol
    names: dict[str, str] = field(default_factory=dict)  # symbol to word
    rows: dict[str, str] = field(default_factory=dict)  # product to symbol
    parts: dict[str, str | None] = field(default_factory=dict)
    passages: frozenset[str] = frozenset()  # long parts of the prompt
    cap: float = math.inf
    prompt_words: int = 0
    later_words: int = 0

    @staticmethod
    def symbols() -> list[str]:
        """The symbols that a vocabulary must contain."""
        rows = [f"r{row}" for row in range(1, ROW_SYMBOLS + 1)]
        later = [f"o{number}" for number in range(LATER_SYMBOLS)]
        return [*(f"i{number}" for number in range(PROMPT_SYMBOLS)), *later, *rows, "$cap", "$ok", "$over"]

    def copy(self) -> Aliases:
        return replace(self, words=dict(self.words), names=dict(self.names), rows=dict(self.rows))

    def encode(self, text: str, prompt: bool = False) -> str:
        """An observation as symbols separated by blanks. New words get new symbols."""
        symbols: list[str] = []
        self.parts = {}
        segments = text.split(" [SEP] ")
        if prompt:
            self.passages = frozenset(segment for segment in segments if segment.count(" ") >= 6)
            self.cap = min(map(float, _CAP.findall(text)), default=math.inf)
        products = [segment for segment in segments if _PRODUCT_ID.fullmatch(segment)]
        if products:
            self.rows = {product.lower(): f"r{row}" for row, product in enumerate(products[:ROW_SYMBOLS], start=1)}
        row: list[str] = []  # written at the end of its row, where a causal model has read the row
        for segment in segments:
            phrase = segment.strip().lower().replace(" ", "_")
            if segment in self.passages and not prompt:
                symbols.append("ditto")
            elif phrase.startswith("page_"):
                symbols += phrase.split("_")[:2]
            elif segment.lower() in self.rows and _PRODUCT_ID.fullmatch(segment):
                symbols += row
                row = [self.rows[segment.lower()]]
            elif phrase in self.vocabulary:
                self._add_part(phrase.replace("_", " "), phrase)
                symbols.append(phrase)
            else:
                part = self._symbols(segment, prompt)
                self._add_part(segment.strip(), " ".join(part))
                symbols += part
        return " ".join(symbols + row)

    def encode_action(self, action: str) -> str:
        """``click[b01...]`` as ``click[ r1 ]``. Any other text is encoded as plain words."""
        match = _ACTION.match(action.strip())
        if match is None:
            return " ".join(self._symbols(action, prompt=False))
        name, argument = match.groups()
        phrase = argument.strip().lower().replace(" ", "_")
        if name == "click" and phrase in self.rows:
            symbols = self.rows[phrase]
        elif name == "click" and phrase in self.vocabulary:
            symbols = phrase
        else:
            symbols = " ".join(self._symbols(argument, prompt=False))
        return f"{name}[ {symbols} ]"

    def decode_action(self, text: str) -> str:
        """The inverse of :meth:`encode_action`, for the answer of a policy.

        A click names a part as the current page writes it. Symbols drop punctuation, so several parts of a page may
        have the same symbols. Such a click is ambiguous: it is returned as it is, and no environment accepts it.
        """
        match = re.match(r"^(search|click)\[\s*(.*?)\s*\]$", text.strip(), re.DOTALL)
        if match is None:
            return text.strip()
        name, argument = match.groups()
        symbols = " ".join(argument.split())
        if name == "click" and symbols in self.parts:
            part = self.parts[symbols]
            return text.strip() if part is None else f"click[{part}]"
        products = {symbol: product for product, symbol in self.rows.items()}
        words = [products.get(word) or self.names.get(word) or word.replace("_", " ") for word in argument.split()]
        return f"{name}[{' '.join(words)}]"

    def _add_part(self, part: str, symbols: str) -> None:
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
        if prompt and self.prompt_words < PROMPT_SYMBOLS:
            symbol = f"i{self.prompt_words}"
            self.prompt_words += 1
        else:
            symbol = f"o{self.later_words % LATER_SYMBOLS}"
            self.later_words += 1
            self.words.pop(self.names.get(symbol, ""), None)
        self.words[word], self.names[symbol] = symbol, word
        return symbol
