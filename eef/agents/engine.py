"""The interface of an engine: it lets a policy hold many conversations at once.

:func:`eef.agents.rollout.simulate` uses nothing else. This package has two engines:
:class:`eef.agents.cached_engine.CachedEngine` runs the model in this process, and
:class:`eef.agents.vllm.VllmEngine` sends requests to a vLLM server. To add another one, write a class with the methods
of :class:`Engine`, and a policy that returns it (:class:`PlayablePolicy`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eef.agents.chat import Chat
from eef.agents.constraints import Constraints


class Engine(Protocol):
    """Holds one conversation, a list of token ids, in each of its slots (numbered from 0).

    In a conversation the policy reads and answers in turn::

        engine.start({0: prompt_ids})
        answers = engine.generate([0], draws, temperature)  # {0: ids}
        engine.append(0, observation_ids)
        answers = engine.generate([0], draws, temperature)

    An answer depends on the ids of its own conversation, its draws, its constraints and the temperature. It must not
    depend on other slots, so that the number of slots changes no result in float32.
    """

    def start(self, prompts: dict[int, list[int]]) -> None:
        """Start a conversation in each given slot with these ids. It replaces an earlier one in that slot."""
        ...

    def append(self, slot: int, ids: list[int]) -> None:
        """Add ids that the policy reads before its next answer."""
        ...

    def length(self, slot: int) -> int:
        """Number of tokens in a conversation, answers included."""
        ...

    def fitting(self, lengths: dict[int, int]) -> list[int]:
        """The slots whose conversations fit into memory together, with one more answer each.

        ``lengths`` maps slots to the tokens of their conversations, in order of priority. It may include conversations
        that have not been started. ValueError if not even the first one fits.
        """
        ...

    def park(self, slot: int) -> list[int]:
        """Remove a conversation and return its ids. :meth:`start` resumes it from them."""
        ...

    def generate(
        self,
        slots: Sequence[int],
        draws: dict[int, Callable[[], float]],
        temperature: float,
        constraints: dict[int, Constraints] | None = None,
    ) -> dict[int, list[int]]:
        """Generate one answer in each slot, add it to the conversation, and return its ids, the chat's end included.

        ``draws[slot]()`` returns a uniform number in [0, 1); there is no other randomness. ``temperature`` 0 is greedy.
        ``constraints`` say which ids may follow (constrained decoding). Without them an answer has at most the
        policy's ``max_new_tokens`` ids before its end.
        """
        ...


class PlayablePolicy(Protocol):
    """What :func:`eef.agents.rollout.simulate` needs of a policy.

    ``context`` is the longest conversation in tokens, ``max_new_tokens`` the longest answer.
    """

    chat: Chat
    context: int
    constrained_decoding: bool
    max_new_tokens: int

    def engine(self, slots: int) -> Engine:
        """A new engine for up to ``slots`` conversations at once."""
        ...


class LocalPolicy(PlayablePolicy, Protocol):
    """What an engine needs of a policy whose model runs in this process, such as :class:`eef.agents.policy.Policy`."""

    model: Any
    tokenizer: Any
    name: str
    checked: tuple[Any, int] | None

    @property
    def pad(self) -> int:
        """The id that pads short rows."""
        ...

    def ends(self, token: int) -> bool:
        """Whether an id ends an answer."""
        ...
