"""Flat batches: whether a model can train on rows without padding, and the attention that they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from eef.agents.model_files import HALF
from eef.settings import PACKINGS
from eef.training.rows import flatten


@contextmanager
def packed(model: Any, packing: str) -> Iterator[bool]:
    """Context manager that prepares ``model`` for batches packed as ``packing`` says. Its value is whether they are
    flat.

    ``packing``: ``padded``, ``flat`` (see :func:`eef.training.rows.flatten`) or ``auto``: flat on a GPU with
    FlashAttention and a model in half precision, else padded. ``flat`` without FlashAttention is correct but slow. (The
    tests compare flat and padded batches with sdpa on a CPU; FlashAttention itself is not tested.) ValueError where
    flat rows would see each other.
    """
    if packing not in PACKINGS:
        raise ValueError(f"packing={packing!r} must be one of {', '.join(map(repr, PACKINGS))}")
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    flash = torch.cuda.is_available() and is_flash_attn_2_available() and model.config.dtype in HALF
    flash = flash and _supports_flash(inner)
    flat = packing == "flat" or (packing == "auto" and flash)
    attention = inner.config._attn_implementation
    if flat and flash:
        inner.set_attn_implementation("flash_attention_2")
    try:
        if flat and not _rows_are_independent(model):
            if packing == "flat":
                raise ValueError(
                    f"packing='flat': in flat batches {type(inner).__name__} lets rows attend to each other, so it "
                    "would train on wrong histories: set packing='padded'"
                )
            flat = False
            inner.set_attn_implementation(attention)
        yield flat
    finally:
        inner.set_attn_implementation(attention)  # FlashAttention does not support the masks of acting


def _supports_flash(model: Any) -> bool:
    """Whether FlashAttention computes the model's own attention: it supports sliding windows, but not chunks."""
    text = model.config.get_text_config()
    chunked = getattr(text, "attention_chunk_size", None) is not None
    return bool(model._supports_flash_attn and not model._compatible_flash_implementations and not chunked)


@torch.no_grad()
def _rows_are_independent(model: Any) -> bool:
    """Whether the second row's logits in a flat batch do not depend on the first row."""
    training = model.training
    model.eval()
    rows = [{"input_ids": tuple(ids), "mask": (True,) * 6} for ids in (range(6), range(6, 12))]
    logits = []
    for first in rows:
        batch = flatten([first, rows[0]])
        on_device = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        logits.append(model(**on_device).logits[0, 6:].float())
    model.train(training)
    return bool((logits[0] - logits[1]).abs().max() <= 1e-2 * logits[0].abs().max())
