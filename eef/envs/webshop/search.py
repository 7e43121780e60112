"""Full-text search: BM25 with Lucene's English analysis, ranking as the official engine does, without Java.

One document per product: lower-cased title, description, first bullet and options. k1 = 0.9, b = 0.4. A query is a bag
of words, with at most 50 hits; ties are ordered by asin. Single precision is used where Lucene uses it, since that
decides near ties.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex

RETURNED = 50
_K1, _B = 0.9, 0.4
_MAX_TOKEN = 255
_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
_STOP = frozenset(_STOP_WORDS.split())

# Unicode word segmentation (UAX 29); each letter or digit includes the marks that follow it.
_EXT = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
_LETTER = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{_EXT}"
_DIGIT = rf"[\p{{WB=Numeric}}[\p{{Block=Halfwidth_And_Fullwidth_Forms}}&&\p{{Nd}}]]{_EXT}"
_KANA = rf"\p{{WB=Katakana}}{_EXT}"
_MID_LETTER = rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_EXT}"
_MID_DIGIT = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_EXT}"
# Pictographs of Unicode 12, as in the official index; later versions removed some of them.
_PICTOGRAPH = (
    r"[\p{Extended_Pictographic}\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767"
    r"\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f1ad-\U0001f1e5\U0001f203-\U0001f20f"
    r"\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa\U0001f400-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff]"
)
_LOW_LINE = rf"\p{{WB=ExtendNumLet}}{_EXT}"
# Possessive quantifiers, and no match starts within a run of low lines, so that matching takes linear time.
_RUN = (
    rf"(?:(?:{_KANA})++"
    rf"|(?:{_LETTER}(?:(?:{_MID_LETTER})?{_LETTER})*+|{_DIGIT}(?:(?:{_MID_DIGIT})?{_DIGIT})*+)++)"
)
_WORD = regex.compile(
    rf"(?<!\p{{WB=ExtendNumLet}})(?:{_LOW_LINE})*+{_RUN}(?:(?:{_LOW_LINE})++{_RUN})*+(?:{_LOW_LINE})*+"
    rf"|\p{{Regional_Indicator}}{_EXT}\p{{Regional_Indicator}}{_EXT}"
    rf"|{_PICTOGRAPH}{_EXT}(?:(?<=\u200d){_PICTOGRAPH}{_EXT})*"
    rf"|[\p{{Script=Han}}\p{{Script=Hiragana}}]{_EXT}"
    rf"|\p{{LB=SA}}+",
    regex.V1,
)


def analyze(text: str) -> list[str]:
    """The index terms of ``text`` in order: words without possessives and stop words, lower-cased and stemmed."""
    terms = []
    for word in _WORD.findall(text):
        if len(word) > _MAX_TOKEN:
            terms += [term for i in range(0, len(word), _MAX_TOKEN) if (term := _term(word[i : i + _MAX_TOKEN]))]
        elif term := _term(word):
            terms.append(term)
    return terms


@lru_cache(maxsize=1 << 17)
def _term(word: str) -> str:
    if word[-1] in "sS" and word[-2:-1] in ("'", "\u2019", "\uff07"):
        word = word[:-2]
    word = word.lower()
    return "" if word in _STOP else stem(word)


def stem(word: str) -> str:
    """Porter's stemmer as in Lucene: ``logi`` -> ``log``, ``bli`` -> ``ble``; words of two characters are unchanged."""
    if len(word) <= 2:
        return word
    for step in (_plural, _past, _final_y, _double_suffix, _suffix, _last_suffix, _final_e):
        word = step(word)
    return word


def _shape(word: str) -> str:
    """One letter per character: ``v`` for a vowel, ``c`` for any other; y is a vowel after a consonant."""
    shape = ""
    for i, char in enumerate(word):
        vowel = char in "aeiou" or (char == "y" and i > 0 and shape[-1] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    return _shape(word).count("vc")


def _double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c"


def _short(word: str) -> bool:
    return len(word) > 2 and _shape(word)[-3:] == "cvc" and word[-1] not in "wxy"


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    base = word[:-2] if word.endswith("ed") else word[:-3] if word.endswith("ing") else ""
    if "v" not in _shape(base):
        return word
    if base.endswith(("at", "bl", "iz")):
        return base + "e"
    if _double(base):
        return base if base[-1] in "lsz" else base[:-1]
    return base + "e" if _measure(base) == 1 and _short(base) else base


def _final_y(word: str) -> str:
    return word[:-1] + "i" if word.endswith("y") and "v" in _shape(word[:-1]) else word


_DOUBLE = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_SINGLE = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_LAST_SUFFIXES = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize"
_LAST = tuple(_LAST_SUFFIXES.split())


def _swap(word: str, table: dict[str, str]) -> str:
    for suffix, other in table.items():  # no suffix is the end of one before it in the table
        if word.endswith(suffix):
            base = word[: -len(suffix)]
            return base + other if _measure(base) > 0 else word
    return word


def _double_suffix(word: str) -> str:
    return _swap(word, _DOUBLE)


def _suffix(word: str) -> str:
    return _swap(word, _SINGLE)


def _last_suffix(word: str) -> str:
    for suffix in _LAST:
        if word.endswith(suffix):
            base = word[: -len(suffix)]
            if suffix == "ion" and base[-1:] not in ("s", "t"):
                return word
            return base if _measure(base) > 1 else word
    return word


def _final_e(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def stored_length(length: int) -> int:
    """A document's length in terms as Lucene stores it in one byte: exact up to 40, then four significant bits."""
    if length < 24:
        return length
    rest = length - 24
    shift = max(rest.bit_length() - 4, 0)
    return 24 + (rest >> shift << shift)


def norms(lengths: np.ndarray) -> np.ndarray:
    """The factor for term counts in documents of these lengths, one per document, in float32 as in Lucene."""
    stored = np.array([stored_length(int(length)) for length in lengths])
    mean = lengths.sum() / max(np.count_nonzero(lengths), 1) or 1.0
    return (1 / (_K1 * (1 - _B + _B * stored / mean))).astype(np.float32)


def rarity(size: int, count: int) -> np.float32:
    """The weight (idf) of a term that occurs in ``count`` of ``size`` documents."""
    return np.float32(math.log(1 + (size - count + 0.5) / (count + 0.5)))


def ranked(documents: np.ndarray, total: np.ndarray, rank: np.ndarray, limit: int) -> list[tuple[int, float]]:
    """The best ``limit`` of ``documents``, best first, with their scores; ``rank`` by name breaks ties."""
    score = total.astype(np.float32)  # summed in double and ranked in single precision, as in Lucene
    if len(documents) > limit:
        least = np.partition(score, len(documents) - limit)[len(documents) - limit]
        keep = score >= least
        documents, score = documents[keep], score[keep]
    order = np.lexsort((rank[documents], -score))[:limit]
    return list(zip(documents[order].tolist(), score[order].tolist(), strict=True))


class Index:
    """An inverted index over ``documents``. Document i has the name ``names[i]``, which breaks ties.

    It stores the divisor of each posting and the weight of each term in float32, as Lucene rounds.
    """

    def __init__(self, names: Sequence[str], documents: Sequence[str]) -> None:
        postings: dict[str, list[tuple[int, int]]] = {}
        lengths = np.zeros(len(documents))
        for number, document in enumerate(documents):
            terms = analyze(document)
            lengths[number] = len(terms)
            for term, count in Counter(terms).items():
                postings.setdefault(term, []).append((number, count))
        self.size = len(documents)
        self._rank = np.empty(self.size, dtype=np.int64)
        self._rank[np.array(sorted(range(self.size), key=names.__getitem__), dtype=np.int64)] = np.arange(self.size)
        norm = norms(lengths)
        one = np.float32(1)
        self._postings: dict[str, tuple[np.ndarray, np.ndarray, np.float32]] = {}
        for term, rows in postings.items():
            where, counts = np.array(rows, dtype=np.int64).T
            divisor = one + counts.astype(np.float32) * norm[where]
            self._postings[term] = (where, divisor, rarity(self.size, len(rows)))

    def search(self, query: str, limit: int = RETURNED) -> list[int]:
        """Indices of at most ``limit`` documents, best first; empty for a query without index terms."""
        return [number for number, _ in self.scored(query, limit)]

    def scored(self, query: str, limit: int = RETURNED) -> list[tuple[int, float]]:
        """As :meth:`search`, with the scores."""
        total = np.zeros(self.size)
        for term, count in Counter(analyze(query)).items():
            if term in self._postings:
                where, divisor, weight = self._postings[term]
                weight = weight * np.float32(count)
                total[where] += weight - weight / divisor
        documents = np.flatnonzero(total)
        return ranked(documents, total[documents], self._rank, limit)
