"""Direct preference optimisation on pairs of a win and a loss, as ETO trains (Song et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from eef.settings import TrainingSettings
from eef.training.likelihoods import log_likelihoods, row_log_likelihoods
from eef.training.precision import training_precision
from eef.training.rows import IGNORE, Row, collate
from eef.training.trainer import (
    GroupedTrainer,
    OnStep,
    check_finite,
    options,
    run_trainer,
    save_trained,
)

if TYPE_CHECKING:
    from eef.agents.policy import Policy
    from eef.trajectory import Trajectory


def dpo(
    policy: Policy,
    pairs: Sequence[tuple[Trajectory, Trajectory]],
    folder: str | Path,
    training: TrainingSettings | None = None,
    *,
    beta: float,
    likelihood: float = 0.0,
    seed: int,
    work: str | Path | None = None,
    on_step: OnStep | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train the adapter of ``policy`` (all weights where it has none) on (win, loss) pairs and save it in ``folder``.

    The loss of a pair is -log sigmoid(beta ((log pi - log ref)(win) - (log pi - log ref)(loss))), with log-likelihoods
    of the agent's turns given their histories; ref is the policy before training. ``likelihood`` times the mean of
    -log pi over the win's tokens with loss is added, which keeps wins likely: DPO alone may lower both sides of a pair
    as long as the loss falls more. The other arguments are those of
    :func:`eef.training.sft.fit`; ``micro_batch_size`` counts pairs (default: 1 on a CPU, else all), and ``packing`` is
    not used. Returns the numbers of pairs and dropped pairs (beyond the context), the share of pairs that are in the
    right order after training, and the losses. ValueError where no pair is left. FloatingPointError where training
    diverges: nothing is saved.
    """
    training = options(training, changes)
    rows, dropped = [], 0
    for pair in pairs:
        rendered = [policy.chat.render(t, [turn.learn for turn in t.turns]) for t in pair]
        if max(len(ids) for ids, _ in rendered) > policy.context:
            dropped += 1
        else:
            won, lost = (Row(tuple(ids), tuple(mask)) for ids, mask in rendered)
            rows.append((won, lost))
    if not rows:
        raise ValueError(f"there is no pair to learn from ({dropped} exceed the context of {policy.context} tokens)")
    policy.model.eval()
    with training_precision(policy.model):  # as in training
        before = [row_log_likelihoods(policy, *pair) for pair in rows]
    if not torch.cuda.is_available():
        training = replace(training, micro_batch_size=training.micro_batch_size or 1)
    losses = run_trainer(
        policy.model, PairDataset(rows, before, policy.pad), partial(collate_pairs, pad=policy.pad), training, folder,
        seed=seed, work=work, on_step=on_step, trainer=partial(PairTrainer, beta=beta, likelihood=likelihood),
    )  # fmt: skip
    with training_precision(policy.model):
        after = [row_log_likelihoods(policy, *pair) for pair in rows]
    gains = [(a[0] - b[0]) - (a[1] - b[1]) for a, b in zip(after, before, strict=True)]
    check_finite("the sum of the log-likelihoods after the last step", sum(map(sum, after)), training.lr)
    save_trained(policy, folder, work)
    ordered = sum(gain > 0 for gain in gains) / len(gains)
    return {"pairs": len(rows), "dropped": dropped, "ordered": ordered, "losses": losses}


class PairDataset(Dataset):
    """Pairs with their log-likelihoods under the reference policy; index -1 is padding that adds no loss."""

    def __init__(self, pairs: Sequence[tuple[Row, Row]], reference: Sequence[Sequence[float]], pad: int) -> None:
        self.pairs, self.reference, self.filler = pairs, reference, Row((pad,), (False,))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        won, lost = self.pairs[index] if index >= 0 else (self.filler, self.filler)
        return {
            "rows": [row.item for row in (won, lost)],
            "reference": self.reference[index] if index >= 0 else (0.0, 0.0),
            "counts": float(index >= 0),
            "input_ids": won.ids + lost.ids,  # only for the grouping by length
        }


def collate_pairs(items: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of :func:`collate`, wins before losses, with ``reference`` (2, pairs) and ``counts`` (pairs,)."""
    sides = [item["rows"][side] for side in (0, 1) for item in items]
    reference = torch.tensor([item["reference"] for item in items]).T
    counts = torch.tensor([item["counts"] for item in items])
    return {**collate(sides, pad), "reference": reference, "counts": counts}


class PairTrainer(GroupedTrainer):
    """Trains by the DPO loss and ``likelihood`` times the win's loss per token."""

    def __init__(self, *args: Any, beta: float, likelihood: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta, self.likelihood = beta, likelihood
        self.model_accepts_loss_kwargs = True  # the loss below is already divided by the pairs of the whole batch

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        pieces, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.stack([piece["counts"].sum() for piece in pieces]).sum().to(device)
        return pieces, self.accelerator.gather(pairs).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        each = preference_losses(model, inputs, self.beta, self.likelihood)
        loss = (each * inputs["counts"]).sum() / num_items_in_batch * self.accelerator.num_processes  # DDP takes a mean
        return (loss, None) if return_outputs else loss


def preference_losses(model: Any, batch: dict[str, torch.Tensor], beta: float, likelihood: float = 0.0) -> torch.Tensor:
    """The loss of each pair, (pairs,), for a batch of :func:`collate_pairs`."""
    logs = log_likelihoods(model, batch)
    won, lost = (logs - batch["reference"].flatten()).chunk(2)
    losses = -torch.nn.functional.logsigmoid(beta * (won - lost))
    if likelihood:
        tokens = (batch["labels"][:, 1:] != IGNORE).sum(-1).chunk(2)[0]
        losses = losses - likelihood * logs.chunk(2)[0] / tokens.clamp(min=1)
    return losses
