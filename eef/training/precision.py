"""The precision in which a model trains: weights in half precision, autocast, and what the Trainer leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting

from eef.agents.model_files import HALF


@contextmanager
def training_precision(model: Any) -> Iterator[None]:
    """Computes with a trainable model in the precision in which :func:`eef.training.trainer.run_trainer` trains it."""
    adapter, weights = half_adapter(model), half_weights(model)
    if not (half := adapter or weights):
        yield
        return
    types = in_float32(model) if weights else []
    # without the first, PEFT would cast the inputs of an adapter to float32, and autocast would cast them back
    casts, has_autocast = disable_input_dtype_casting(model) if adapter else nullcontext(), half is torch.bfloat16
    try:
        with casts, torch.autocast(model.device.type, half, enabled=has_autocast or torch.cuda.is_available()):
            yield
    finally:
        in_types(model, types)


def half_adapter(model: Any) -> torch.dtype | None:
    """The type of a model with an adapter, if that is half precision. ValueError for float16 without a GPU."""
    half = model.dtype if isinstance(model, PeftModel) and model.dtype in HALF else None
    if half is torch.float16 and not torch.cuda.is_available():
        raise ValueError("an adapter on a float16 model trains on a GPU alone: set dtype='bfloat16' or 'float32'")
    return half


def half_weights(model: Any) -> torch.dtype | None:
    """The type of the weights that train, if that is half precision."""
    types = {weight.dtype for weight in model.parameters() if weight.requires_grad} & set(HALF)
    return types.pop() if types else None


def in_float32(model: Any) -> list[torch.dtype]:
    """Turn the weights of ``model`` into float32, not its buffers, and return their former types, in order."""
    types = [weight.dtype for weight in model.parameters()]
    in_types(model, [torch.float32] * len(types))
    return types


def in_types(model: Any, types: Sequence[torch.dtype]) -> None:
    """Give the weights these types, in order; without types nothing changes."""
    for weight, kind in zip(model.parameters(), types, strict=False):
        weight.data = weight.data.to(kind)


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Gives ``model`` its own ``forward`` back at the end.

    With autocast, accelerate replaces it by a method bound to the model. This is a reference cycle: the weights would
    stay in memory beside those of the next stage until Python's garbage collector runs.
    """
    before = vars(model).get("forward")
    try:
        yield
    finally:
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        if before is not None:
            model.forward = before
