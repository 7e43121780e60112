"""Log-likelihoods of training rows under a model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from eef.training.rows import IGNORE, Row, collate

if TYPE_CHECKING:
    from eef.agents.policy import Policy


def learnt_log_probabilities(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The log-probability of each token that carries loss, (tokens,), row by row.

    ``batch`` comes from :func:`~eef.training.rows.collate` or :func:`~eef.training.rows.flatten`. Logits are computed
    in float32 and only for these tokens, since those of a large vocabulary take more memory than all other activations.
    No attention mask is passed: padding is on the right, where no token of a causal model attends to it.
    """
    labels = batch["labels"][:, 1:]
    learnt = labels != IGNORE
    predicting = torch.nn.functional.pad(learnt, (0, 1))  # the position before each such token
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    keep = {"logits_to_keep": predicting} if _can_keep_logits(model) else {}
    logits = model(**inputs, **keep, use_cache=False).logits
    if not keep:
        logits = logits[predicting]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for sums
    return -torch.nn.functional.cross_entropy(logits, labels[learnt], reduction="none")


def _can_keep_logits(model: Any) -> bool:
    inner = getattr(model, "module", model)  # of DistributedDataParallel
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def log_likelihoods(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the log-probabilities of the tokens that carry loss, (rows,), for a batch of :func:`collate`."""
    logs = learnt_log_probabilities(model, batch)
    learnt = batch["labels"][:, 1:] != IGNORE
    return torch.zeros(learnt.shape, dtype=logs.dtype, device=logs.device).masked_scatter(learnt, logs).sum(-1)


def row_log_likelihoods(policy: Policy, *rows: Row) -> list[float]:
    """The log-likelihood of each row."""
    items = [{"input_ids": row.ids, "mask": row.mask} for row in rows]
    batch = {name: value.to(policy.model.device) for name, value in collate(items, policy.pad).items()}
    with torch.no_grad():
        return log_likelihoods(policy.model, batch).tolist()
