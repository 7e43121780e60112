"""What each token of a tokenizer says, as bytes, whatever the tokenizer merges."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}  # the alphabet of byte-level BPE
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROOFS = (
    "click[back to search]",
    "search[red shoes, size 9.5 (2 pack)]",
    'click[< Prev] [[B09KXCHWGD]] $1,299.00 a/b-c_d it\'s 100% "ok"',
    "caf\u00e9 \u00fcber na\u00efve \u2014 \u201cquoted\u201d \u00d7 10\u00b0",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u4e2d\u6587 \U0001f44d\U0001f3fd",
)
_MEMO = 1 << 18  # prefixes whose tokens are remembered


class Spelling:
    """The bytes of each token of a tokenizer, and the tokens that say given bytes; see :func:`spelling_of`.

    ``text[id]`` is what a token says. Special and other added tokens are never said as text, unless they are blank: no
    lookup returns them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._unknown = tokenizer.unk_token_id
        self.words = False  # each token is a word, and a blank follows it
        say = self._reader()
        added = tokenizer.added_tokens_decoder
        control = set(added) | set(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        self.text = [b""] * (max(vocabulary.values(), default=-1) + 1)
        self._sayable = bytearray(len(self.text))
        ids: dict[bytes, tuple[int, ...]] = {}
        for token, number in vocabulary.items():
            said = say(token)
            self.text[number] = token.encode() if said is None else said
            blank = number in added and not added[number].special and said is not None and not said.strip()
            if said and (number not in control or blank):
                ids[said] = (*ids.get(said, ()), number)
                self._sayable[number] = True
        self._ids, self._sorted = ids, sorted(ids)
        self._singles = b"".join(said for said in ids if len(said) == 1)
        self._any = len(self._singles) == 256  # each byte is a token, so any text can be said
        self._memo: dict[bytes, tuple[tuple[int, ...], bool]] = {}
        self.can_spell = (lambda text: True) if self._any else lru_cache(1 << 12)(self._can_spell)
        self._prove()

    def of(self, ids: Sequence[int]) -> bytes:
        """What ``ids`` say; nothing where one of them stands for characters that the tokenizer does not know."""
        return b"" if self._unknown in ids else b"".join([self.text[token] for token in ids])

    def says(self, token: int) -> bool:
        """Whether ``token`` may be said as text."""
        return bool(self._sayable[token])

    def look(self, text: bytes) -> tuple[tuple[int, ...], bool]:
        """The tokens that say exactly ``text``, and whether longer ones begin with it."""
        entry = self._memo.get(text)
        if entry is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            place = bisect_right(self._sorted, text)
            longer = place < len(self._sorted) and self._sorted[place].startswith(text)
            entry = self._memo[text] = self._ids.get(text, ()), longer
        return entry

    def beginnings(self, text: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The tokens that ``text`` begins with: their length in bytes and their ids, the shortest first."""
        for size in range(1, len(text) + 1):
            ids, longer = self.look(text[:size])
            if ids:
                yield size, ids
            if not longer:
                return

    def spell(self, text: bytes) -> list[int]:
        """Ids that say ``text``: at each place the longest token after which the rest can be said."""
        ids = []
        while text:
            ids.append(self.first(text))
            text = text[len(self.text[ids[-1]]) :]
        return ids

    def first(self, text: bytes) -> int:
        """The first id of :meth:`spell`."""
        return [ids for size, ids in self.beginnings(text) if self.can_spell(text[size:])][-1][0]

    def has_bytes(self, text: bytes) -> bool:
        """Whether each byte of ``text`` is a token, so that it can be said from any place on."""
        return not text.translate(None, self._singles)

    def _can_spell(self, text: bytes) -> bool:
        """Whether the tokens can say ``text``."""
        if self.has_bytes(text):
            return True
        alive = [False] * len(text) + [True]
        for place in reversed(range(len(text))):
            alive[place] = any(alive[place + size] for size, _ in self.beginnings(text[place:]))
        return alive[0]

    def _reader(self) -> Callable[[str], bytes | None]:
        """What a token of the vocabulary says, by the tokenizer's decoder; None for what is no text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            self._refuse("it is not a tokenizer of the `tokenizers` library (tokenizer.json)")
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {"type": "WordPiece"}
        parts = {part["type"]: part for part in decoder.get("decoders", [decoder])}
        if "ByteLevel" in parts:
            return _byte_level
        if mark := _blank_mark(parts):
            fallback = "ByteFallback" in parts

            def pieces(token: str) -> bytes | None:
                if fallback and (match := _BYTE.fullmatch(token)):
                    return bytes([int(match[1], 16)])
                return token.replace(mark, " ").encode()

            return pieces
        if list(parts) == ["WordPiece"]:
            prefix = parts["WordPiece"].get("prefix")
            if prefix and any(token.startswith(prefix) for token in self.tokenizer.get_vocab()):
                self._refuse(f"its tokens beginning with {prefix!r} continue words, which is not supported")
            self.words = True
            return lambda token: f"{token} ".encode()
        self._refuse(f"its decoder ({', '.join(parts)}) is none of ByteLevel, Metaspace, Replace and whole words")

    def _prove(self) -> None:
        """ValueError unless the tokens of some texts say these texts."""
        texts = list(_PROOFS)
        if self.words:
            known = [said.decode() for said in self._sorted if len(said.split()) == 1]
            texts = ["".join(known[place : place + 50]).strip() for place in range(0, len(known), 50)]
        proven = 0
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            wanted, said = text.encode() + b" " * self.words, self.of(ids)
            if not said:  # it has a character without a token
                continue
            lead = said[:1] == b" " and said != wanted
            if said[lead:] != wanted:
                place = next((i for i, (a, b) in enumerate(zip(said[lead:], wanted, strict=False)) if a != b), None)
                place = min(len(said) - lead, len(wanted)) if place is None else place
                self._refuse(
                    f"the tokens of {text!r} say {said.decode(errors='backslashreplace')!r}; the first difference is "
                    f"at byte {place} ({wanted[place : place + 8]!r} became {said[lead:][place : place + 8]!r})"
                )
            proven += 1
        if not proven:
            self._refuse(f"it has no tokens for the text {texts[0]!r}" if texts else "its vocabulary is empty")

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(
            f"constrained_decoding=True cannot be used with the tokenizer of "
            f"{self.tokenizer.name_or_path or 'this model'!r}: {why}. Set constrained_decoding=False, or use another "
            "tokenizer"
        )


@lru_cache(maxsize=8)
def spelling_of(tokenizer: Any) -> Spelling:
    """The spelling of ``tokenizer``, read from its decoder and checked on some texts.

    ValueError with the tokenizer's name and the first difference where its tokens do not spell out what it reads.
    """
    return Spelling(tokenizer)


def _byte_level(token: str) -> bytes | None:
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError:
        return None


def _blank_mark(parts: dict[str, Any]) -> str:
    """The character that stands for a blank in the tokens of a SentencePiece model; empty for another decoder."""
    if "Metaspace" in parts:
        return str(parts["Metaspace"].get("replacement", "\u2581"))
    replace = parts.get("Replace", {})
    return str(replace["pattern"].get("String", "")) if replace.get("content") == " " else ""
