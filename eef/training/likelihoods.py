"""Log-likelihoods of training rows under a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from eef.training.rows import IGNORE, Row, collate

if TYPE_CHECKING:
    from eef.agents.policy import Policy


def log_likelihoods(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the log-probabilities of the tokens that carry loss, (rows,), for a batch of :func:`collate`."""
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for sums
    learnt = labels != IGNORE
    logs = torch.log_softmax(logits, -1).gather(-1, labels.masked_fill(~learnt, 0)[..., None])[..., 0]
    return (logs * learnt).sum(-1)


def row_log_likelihoods(policy: Policy, *rows: Row) -> list[float]:
    """The log-likelihood of each row."""
    items = [{"input_ids": row.ids, "mask": row.mask} for row in rows]
    batch = {name: value.to(policy.model.device) for name, value in collate(items, policy.pad).items()}
    with torch.no_grad():
        return log_likelihoods(policy.model, batch).tolist()
