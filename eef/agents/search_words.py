"""The words that a search under constrained decoding may contain."""

from __future__ import annotations

import re
import unicodedata

_MARKUP = re.compile(r"\[[A-Za-z]\w*\]")  # separates the parts of a page: [SEP], [button], [button_]


def search_words(page: str) -> list[str]:
    """The words of a page that a search may contain.

    Each word between blanks counts as it is written and without the punctuation around it, in its own case and in lower
    case. Words with brackets are left out, because brackets delimit a search; so are separators such as ``[SEP]``.
    """
    words: dict[str, None] = {}
    for word in page.split():
        if not _MARKUP.fullmatch(word):
            bare = _without_punctuation(word)
            words |= dict.fromkeys((word, bare, word.lower(), bare.lower()))
    return [word for word in words if word and "[" not in word and "]" not in word]


def _without_punctuation(word: str) -> str:
    """A word without the punctuation around it."""
    is_punctuation = [unicodedata.category(char)[0] == "P" for char in word]
    if all(is_punctuation):
        return ""
    return word[is_punctuation.index(False) : len(word) - is_punctuation[::-1].index(False)]
