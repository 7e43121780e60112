"""Supervised fine-tuning on selected turns: -sum m_l w_l log pi(t_l | t_<l) (section 3 of the paper).

w_l is the weight of the token's example: 1 in the paper and in all methods that do not say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eef.settings import TrainingSettings
from eef.training.likelihoods import learnt_log_probabilities, row_log_likelihoods
from eef.training.packing import packed
from eef.training.rows import IGNORE, Row, collate, flatten, merge_prefix_rows, rows_of
from eef.training.trainer import (
    GroupedTrainer,
    OnStep,
    RowDataset,
    check_finite,
    options,
    run_trainer,
    save_trained,
)

if TYPE_CHECKING:
    from eef.agents.policy import Policy
    from eef.selection import Example


def sft(
    policy: Policy,
    examples: Sequence[Example],
    folder: str | Path,
    training: TrainingSettings | None = None,
    *,
    seed: int,
    work: str | Path | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train the adapter of ``policy`` (all weights where it has none) on ``examples`` and save it in ``folder``.

    The arguments after ``folder`` are those of :func:`fit`. Examples that are prefixes of others train in one row with
    them (:func:`~eef.training.rows.merge_prefix_rows`), which counts once in ``batch_size``. Returns the numbers of
    examples, rows, dropped examples (beyond the context), tokens per epoch and learnt tokens, and the losses.
    ValueError where there is nothing to learn from. FloatingPointError where training diverges: nothing is saved.
    """
    training = options(training, changes)
    if not examples:
        raise ValueError("there is no training example: the list of examples is empty")
    rows, dropped = rows_of(policy, examples)
    if dropped == len(examples):
        raise ValueError(f"all {dropped} examples exceed the context of {policy.context} tokens")
    if not rows:
        too_long = f", of which {dropped} exceed the context of {policy.context} tokens" if dropped else ""
        raise ValueError(
            f"no token carries loss in {len(examples)} training examples{too_long}: check the selection and the masks"
        )
    used, rows = len(rows), merge_prefix_rows(rows)
    losses = fit(policy.model, rows, training, pad=policy.pad, folder=folder, seed=seed, work=work, on_step=on_step)
    shortest = min(rows, key=lambda row: len(row.ids))
    check_finite(
        "the log-likelihood of a training row after the last step", row_log_likelihoods(policy, shortest)[0],
        training.lr,
    )  # fmt: skip
    save_trained(policy, folder, work)
    return {
        "examples": used,
        "rows": len(rows),
        "dropped": dropped,
        "tokens": sum(len(row.ids) for row in rows),
        "learnt_tokens": sum(sum(row.mask) for row in rows),
        "losses": losses,
    }


def fit(
    model: Any,
    rows: Sequence[Row],
    training: TrainingSettings | None = None,
    *,
    pad: int,
    folder: str | Path,
    seed: int,
    work: str | Path | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> list[dict[str, float]]:
    """Train ``model`` in place on ``rows``; returns the logged rows: step, epoch, loss, learning_rate.

    ``loss`` is the mean loss per learnt token since the previous logged row. ``changes`` are fields of ``training``
    (default: ``TrainingSettings()``). ``work``, ``on_step``, errors and what equal arguments give are described in
    :func:`eef.training.trainer.run_trainer`, ``packing`` in :func:`eef.training.packing.packed`. ValueError where no
    token carries loss.
    """
    training = options(training, changes)
    if not any(any(row.mask[1:]) for row in rows):
        raise ValueError(f"no token carries loss in {len(rows)} training examples: check the selection and the masks")
    with packed(model, training.packing) as flat:
        collator = flatten if flat else partial(collate, pad=pad)
        return run_trainer(
            model, RowDataset(rows, pad), collator, training, folder, seed=seed, work=work, on_step=on_step,
            trainer=RowTrainer,
        )  # fmt: skip


class RowTrainer(GroupedTrainer):
    """Trains by the mean loss per learnt token of a whole batch.

    Weights multiply the loss of their tokens. The mean is over the number of learnt tokens, not over the sum of their
    weights: a batch of examples with small weights has a small gradient.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the learnt tokens of the whole batch

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # num_items_in_batch counts the learnt tokens of all processes, and DDP takes the mean of their gradients
        logs = learnt_log_probabilities(model, inputs)
        if "weights" in inputs:
            logs = logs * inputs["weights"][:, 1:][inputs["labels"][:, 1:] != IGNORE]
        loss = -logs.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss
