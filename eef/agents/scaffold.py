"""A conversation as token ids: the parts of its chat template, and contents between them.

:func:`eef.agents.chat_template.derive_scaffold` makes a :class:`Scaffold` from a tokenizer's own template.
:class:`ContentEncoder` tokenises contents as text, even if they spell a control token.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer

_BRACKETS = re.compile(r"[<>\[\]{}|｜◁▷]")
_ANCHOR = "\ue0f1\ue0ee\ue0f5"  # private-use characters that stand for the control token before a content


@dataclass(frozen=True)
class Scaffold:
    """The parts of a chat template around contents.

    Control tokens are stored as ids. Text is stored as text, because a template's tokenizer may join it with the
    content beside it.

    - A user turn is ``before``, then ``before_text``, the content and ``to_agent_text`` tokenised together, then
      ``to_agent``. After the first turn, ``to_user`` and ``to_user_text`` replace ``before`` and ``before_text``.
    - An answer is ``agent_text`` and the content tokenised together, then ``end``.
    - ``context_text`` is the text before an answer.
    - ``control``: ids that no content may contain. ``stops``: ids that end an answer whatever follows.
    - ``rendering``: how past answers are rendered; see :mod:`eef.agents.chat_template`.
    """

    before: tuple[int, ...]
    before_text: str
    to_agent_text: str
    to_agent: tuple[int, ...]
    context_text: str
    agent_text: str
    end: tuple[int, ...]
    to_user: tuple[int, ...]
    to_user_text: str
    control: frozenset[int]
    stops: frozenset[int]
    rendering: str = "template"

    @property
    def parts(self) -> tuple[Any, ...]:
        """All that decides the ids of a conversation, for a hash."""
        return (
            self.before, self.before_text, self.to_agent_text, self.to_agent, self.agent_text, self.end, self.to_user,
            self.to_user_text,
        )  # fmt: skip


def user_ids(encode: ContentEncoder, scaffold: Scaffold, text: str, first: bool) -> list[int]:
    """Ids of a user turn, from the end of the answer before it to the beginning of the next answer."""
    begin, lead = (scaffold.before, scaffold.before_text) if first else (scaffold.to_user, scaffold.to_user_text)
    content = encode(f"{lead}{text.strip()}{scaffold.to_agent_text}", first=first and not begin)
    return [*begin, *content, *scaffold.to_agent]


def answer_ids(encode: ContentEncoder, scaffold: Scaffold, text: str) -> list[int]:
    """Ids of an answer with its end."""
    return [*encode.after(scaffold.context_text, scaffold.agent_text + text.strip()), *scaffold.end]


class ContentEncoder:
    """Token ids of contents, without control tokens.

    Besides special tokens, every added token that contains a bracket or a bar is a control token: some families do not
    mark the tokens of roles and thoughts as special (DeepSeek, Qwen3).

    ``vocabulary_size`` is the largest id plus one. ``digest`` is a hash of the vocabulary.
    """

    def __init__(self, tokenizer: Any) -> None:
        core = getattr(tokenizer, "backend_tokenizer", None)
        name = name_of(tokenizer)
        if not isinstance(core, Tokenizer):
            raise ValueError(
                f"the tokenizer of {name} is a {type(tokenizer).__name__}, which is not based on the tokenizers "
                "library, so control tokens in pages cannot be read as text: save it with a tokenizer.json"
            )
        added = {
            token_id: token
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.content.replace("▁", " ").strip() and (token.special or _BRACKETS.search(token.content))
        }
        words = sorted((token_id, word) for word, token_id in tokenizer.get_vocab().items())
        self.vocabulary_size = words[-1][0] + 1
        self.digest = hashlib.sha256(repr(words).encode("utf-8", "replace")).hexdigest()[:16]
        self._core = Tokenizer.from_str(core.to_str())
        self._core.no_truncation()
        self._core.no_padding()
        self._core.add_special_tokens(
            [
                AddedToken(
                    token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                    normalized=token.normalized, special=True,
                )
                for token in added.values()
            ]
        )  # fmt: skip
        self._core.encode_special_tokens = True  # special tokens are read as text
        self._core.add_tokens([AddedToken(_ANCHOR, special=False, normalized=False)])
        unknown = tokenizer.unk_token_id
        try:
            uses_unknown = unknown in self._core.encode("\ue0f9", add_special_tokens=False).ids
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the tokenizer of {name} cannot tokenise every text: {error}") from None
        self.control = frozenset(added) - ({unknown} if uses_unknown else set())
        self.special = frozenset(token_id for token_id, token in added.items() if token.special) | set(
            tokenizer.all_special_ids
        )

    def __call__(self, text: str, first: bool = False) -> list[int]:
        """Ids of ``text`` after a control token or, with ``first``, at the beginning of the conversation."""
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode()  # replaces lone surrogates
            while _ANCHOR in text:
                text = text.replace(_ANCHOR, "")
        ids = self._core.encode(text if first else _ANCHOR + text, add_special_tokens=False).ids
        ids = ids if first else ids[1:]
        # in a word-level vocabulary, control tokens are words like any other
        return ids if self.control.isdisjoint(ids) else [token for token in ids if token not in self.control]

    def after(self, context: str, text: str) -> list[int]:
        """Ids of ``text`` after ``context``, or of ``text`` alone if the tokenizer would join the two."""
        if not context:
            return self(text)
        before, both = self(context), self(context + text)
        return both[len(before) :] if both[: len(before)] == before else self(text)


def content_encoder(tokenizer: Any) -> ContentEncoder:
    """The :class:`ContentEncoder` of a tokenizer. Cached until tokens are added to the tokenizer."""
    return _content_encoder(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _content_encoder(tokenizer: Any, size: int) -> ContentEncoder:
    return ContentEncoder(tokenizer)


def name_of(tokenizer: Any) -> str:
    """The name of a tokenizer, for messages."""
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
