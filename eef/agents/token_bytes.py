"""The bytes that each token of a tokenizer stands for."""

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
_SAMPLES = (
    "click[back to search]",
    "search[red shoes, size 9.5 (2 pack)]",
    'click[< Prev] [[B09KXCHWGD]] $1,299.00 a/b-c_d it\'s 100% "ok"',
    "caf\u00e9 \u00fcber na\u00efve \u2014 \u201cquoted\u201d \u00d7 10\u00b0",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u4e2d\u6587 \U0001f44d\U0001f3fd",
)
_CACHE_SIZE = 1 << 18  # prefixes whose tokens are cached


class TokenBytes:
    """The bytes of each token of a tokenizer, and the tokens that stand for given bytes; see :func:`token_bytes_of`.

    ``bytes_of[id]`` are the bytes of a token. Special and other added tokens never stand for text, unless they are
    blank: no lookup returns them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._unknown = tokenizer.unk_token_id
        self.whole_words = False  # each token is a word, and a blank follows it
        read = self._reader()
        added = tokenizer.added_tokens_decoder
        control = set(added) | set(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        self.bytes_of = [b""] * (max(vocabulary.values(), default=-1) + 1)
        self._is_text = bytearray(len(self.bytes_of))
        ids_of: dict[bytes, tuple[int, ...]] = {}
        for token, token_id in vocabulary.items():
            text = read(token)
            self.bytes_of[token_id] = token.encode() if text is None else text
            blank = token_id in added and not added[token_id].special and text is not None and not text.strip()
            if text and (token_id not in control or blank):
                ids_of[text] = (*ids_of.get(text, ()), token_id)
                self._is_text[token_id] = True
        self._ids_of, self._sorted = ids_of, sorted(ids_of)
        self._single_bytes = b"".join(text for text in ids_of if len(text) == 1)
        has_all_bytes = len(self._single_bytes) == 256  # then any text can be encoded
        self._cache: dict[bytes, tuple[tuple[int, ...], bool]] = {}
        self.can_encode = (lambda text: True) if has_all_bytes else lru_cache(1 << 12)(self._can_encode)
        self._check()

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of ``ids``; empty if one of them is the unknown token."""
        return b"" if self._unknown in ids else b"".join([self.bytes_of[token] for token in ids])

    def is_text(self, token: int) -> bool:
        """Whether ``token`` stands for text."""
        return bool(self._is_text[token])

    def lookup(self, text: bytes) -> tuple[tuple[int, ...], bool]:
        """The tokens whose bytes are exactly ``text``, and whether longer ones begin with it."""
        entry = self._cache.get(text)
        if entry is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            index = bisect_right(self._sorted, text)
            has_longer = index < len(self._sorted) and self._sorted[index].startswith(text)
            entry = self._cache[text] = self._ids_of.get(text, ()), has_longer
        return entry

    def prefixes(self, text: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The tokens that ``text`` begins with: their length in bytes and their ids, the shortest first."""
        for size in range(1, len(text) + 1):
            ids, has_longer = self.lookup(text[:size])
            if ids:
                yield size, ids
            if not has_longer:
                return

    def encode(self, text: bytes) -> list[int]:
        """Ids for ``text``: at each place the longest token after which the rest can be encoded."""
        ids = []
        while text:
            ids.append(self.first_id(text))
            text = text[len(self.bytes_of[ids[-1]]) :]
        return ids

    def first_id(self, text: bytes) -> int:
        """The first id of :meth:`encode`."""
        return [ids for size, ids in self.prefixes(text) if self.can_encode(text[size:])][-1][0]

    def has_byte_tokens(self, text: bytes) -> bool:
        """Whether each byte of ``text`` is a token, so that every part of it can be encoded."""
        return not text.translate(None, self._single_bytes)

    def _can_encode(self, text: bytes) -> bool:
        """Whether some tokens together make ``text``."""
        if self.has_byte_tokens(text):
            return True
        possible = [False] * len(text) + [True]  # by position: whether the rest of the text can be encoded
        for place in reversed(range(len(text))):
            possible[place] = any(possible[place + size] for size, _ in self.prefixes(text[place:]))
        return possible[0]

    def _reader(self) -> Callable[[str], bytes | None]:
        """A function from a token of the vocabulary to its bytes, by the tokenizer's decoder; None for no text."""
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
            self.whole_words = True
            return lambda token: f"{token} ".encode()
        self._refuse(f"its decoder ({', '.join(parts)}) is not one of ByteLevel, Metaspace, Replace and whole words")

    def _check(self) -> None:
        """ValueError unless the tokens of some texts have the bytes of these texts."""
        texts = list(_SAMPLES)
        if self.whole_words:
            words = [text.decode() for text in self._sorted if len(text.split()) == 1]
            texts = ["".join(words[place : place + 50]).strip() for place in range(0, len(words), 50)]
        checked = 0
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            expected, actual = text.encode() + b" " * self.whole_words, self.decode(ids)
            if not actual:  # the text has a character without a token
                continue
            lead = actual[:1] == b" " and actual != expected
            if actual[lead:] != expected:
                pairs = zip(actual[lead:], expected, strict=False)
                place = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
                place = min(len(actual) - lead, len(expected)) if place is None else place
                self._refuse(
                    f"the tokens of {text!r} decode to {actual.decode(errors='backslashreplace')!r}; the first "
                    f"difference is at byte {place} ({expected[place : place + 8]!r} became "
                    f"{actual[lead:][place : place + 8]!r})"
                )
            checked += 1
        if not checked:
            self._refuse(f"it has no tokens for the text {texts[0]!r}" if texts else "its vocabulary is empty")

    def _refuse(self, why: str) -> NoReturn:
        raise ValueError(
            f"constrained_decoding=True cannot be used with the tokenizer of "
            f"{self.tokenizer.name_or_path or 'this model'!r}: {why}. Set constrained_decoding=False, or use another "
            "tokenizer"
        )


@lru_cache(maxsize=8)
def token_bytes_of(tokenizer: Any) -> TokenBytes:
    """The bytes of the tokens of ``tokenizer``, read from its decoder and checked on sample texts.

    ValueError, with the tokenizer's name and the first difference, if the tokens of a text do not have its bytes.
    """
    return TokenBytes(tokenizer)


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
