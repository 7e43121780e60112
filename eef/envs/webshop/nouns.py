"""The nouns of a title, which the type part of the reward compares.

Officially spaCy's ``en_core_web_sm`` tags them. Where it is not installed, a stand-in counts every word of letters
that is no function word: look-alike titles still score high and strange ones low, but ``title_score`` (and with it
now and then ``r_type``) is not the official number. :attr:`Nouns.name` says which it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Mapping

import regex

from eef.envs import EnvError

Tagger = Callable[[str], Iterable[str]] | Mapping[str, Iterable[str]]
Found = tuple[frozenset[str], int]

_CACHED_TITLES = 200_000
_STOP_WORDS = (
    "a about above after all also am an and any are as at be because been before being below between both but by "
    "can could did do does doing down during each every few for from further had has have he her here hers him "
    "his how i if in into is it its just may me might more most must my no nor not of off on once only or other "
    "our out over own per quite rather same she should so some such than that the their them then there these "
    "they this those through to too under until up upon us very via was we were what when where which while who "
    "whom whose why will with within without would you your"
)
_FUNCTION_WORDS = frozenset(_STOP_WORDS.split())

# How spaCy cuts English: blanks, then punctuation and units from both ends, then some signs between letters.
_PUNCTUATION = r"[…,:;!?¿¡()\[\]{}<>_#*&。？！，、；：～·'\"”“`‘´’‚„»«\p{So}]"
_FRONT = regex.compile(rf"(?:{_PUNCTUATION}|[§%=—–\p{{Sc}}]|\+(?!\d))+")
_UNIT = (
    r"(?:[kdcm]?m[²³]?|ha|[µn]m|yd|in|ft|[kmµ]?g|t|lb|oz|m/s|km/h|kmh|mph|h?Pa|mbar|mb|MB|kb|KB|gb|GB|tb|TB|[TGMK%])"
)
_STOP_AFTER = r"(?<=[\d\p{Ll}%²\-+)\]'\"”]|\p{Lu}{2})\."
_BACK = regex.compile(rf"(?:{_PUNCTUATION}|['’][sS]|[—–]|(?<=\d)(?:\+|\p{{Sc}}|{_UNIT})|{_STOP_AFTER})$")
_BETWEEN = regex.compile(
    r"\.\.+|…|\p{So}|(?<=\d)[+*^](?=[\d-])|(?<=\p{Ll})\.(?=\p{Lu})|(?<=\p{L}),(?=\p{L})"
    r"|(?<=[\p{L}\d])(?:--+|[-–—~]|[:<>=/])(?=\p{L})"
)


def words(title: str) -> list[str]:
    """The words of letters in a title, lower-cased, each as often as it occurs (in no order)."""
    found = []
    for chunk in title.split():
        if not chunk.isalpha():
            front = _FRONT.match(chunk)
            chunk = chunk[front.end() :] if front else chunk
            while chunk and (back := _BACK.search(chunk)):
                found.append(back.group())
                chunk = chunk[: back.start()]
        found += _BETWEEN.split(chunk)
    return [word.lower() for word in found if word.isalpha()]


class Nouns:
    """``nouns(title)``: (the set of its lower-cased nouns, their number with repeats), kept per title.

    ``tagger``: a callable, a mapping from title to nouns, or None for spaCy or else the stand-in. A given tagger
    that names each noun once has its repeats counted in the title. EnvError where a mapping lacks the title.
    """

    def __init__(self, tagger: Tagger | None = None) -> None:
        self._kept: dict[str, Found] = {}
        self._tag: Callable[[str], Iterable[str]]
        self._given = tagger is not None
        if isinstance(tagger, Mapping):
            table = {title: sorted(found) for title, found in tagger.items()}
            self.name = "given:" + hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]
            self._tag = table.__getitem__
        elif tagger is not None:
            self.name = f"given:{getattr(tagger, '__name__', type(tagger).__name__)}-{_source_hash(tagger)}"
            self._tag = tagger
        elif importlib.util.find_spec("spacy") and importlib.util.find_spec("en_core_web_sm"):
            self.name, self._tag = _spacy()
        else:
            self.name, self._tag = "stand-in:letters", _letters

    def __call__(self, title: str) -> Found:
        kept = self._kept.get(title)
        if kept is None:
            if len(self._kept) >= _CACHED_TITLES:
                self._kept.clear()
            kept = self._kept[title] = self._find(title)
        return kept

    def _find(self, title: str) -> Found:
        try:
            tagged = list(self._tag(title))
        except KeyError:
            raise EnvError(f"the given nouns lack the title {title!r}") from None
        found = frozenset(tagged)
        if self._given and len(found) == len(tagged):
            everything = words(title)
            return found, sum(max(everything.count(noun), 1) for noun in found)
        return found, len(tagged)


def _source_hash(tagger: Callable[[str], Iterable[str]]) -> str:
    """Of a function's source, or of its class's; what Python itself defines has none and never changes."""
    try:
        source = inspect.getsource(tagger if inspect.isroutine(tagger) else type(tagger))
    except (OSError, TypeError):
        return "built-in"
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _letters(title: str) -> Iterable[str]:
    return (word for word in words(title) if word not in _FUNCTION_WORDS)


def _spacy() -> tuple[str, Callable[[str], Iterable[str]]]:
    import spacy

    nlp = spacy.load("en_core_web_sm")
    name = f"spacy:en_core_web_sm-{nlp.meta['version']}"
    return name, lambda title: [token.text.lower() for token in nlp(title) if token.pos_ in ("NOUN", "PROPN")]
