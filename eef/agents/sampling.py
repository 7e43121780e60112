"""Drawing the next token from logits, one random stream for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def choose(
    logits: torch.Tensor, allowed: Sequence[list[int] | None], draws: Sequence[Callable[[], float]], temperature: float
) -> list[int]:
    """One token for each row of ``logits``, shape (rows, vocabulary).

    ``allowed`` holds the ids that a row may take, in any order, or None for the whole vocabulary. ``draws`` return
    uniform numbers in [0, 1). Temperature 0 takes the most likely token.
    """
    if all(ids is None for ids in allowed):
        return _draw(logits, draws, temperature)
    columns = [range(logits.shape[-1]) if ids is None else sorted(ids) for ids in allowed]
    width = max(map(len, columns))
    padded = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in columns], device=logits.device)
    is_padding = torch.arange(width) >= torch.tensor([[len(row)] for row in columns])
    allowed_logits = logits.gather(1, padded).masked_fill(is_padding.to(logits.device), float("-inf"))
    places = _draw(allowed_logits, draws, temperature)
    return [row[min(place, len(row) - 1)] for row, place in zip(columns, places, strict=True)]


def _draw(logits: torch.Tensor, draws: Sequence[Callable[[], float]], temperature: float) -> list[int]:
    """The column drawn in each row; the one with the highest logit at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    sums = (logits.double() / temperature).softmax(-1).cumsum(-1)
    uniform = torch.tensor([draw() for draw in draws], dtype=torch.float64, device=logits.device)
    places = torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0]
    return places.clamp(max=logits.shape[-1] - 1).tolist()
