"""Attention masks of a forward pass with a cache: full, sliding-window and chunked attention."""

from __future__ import annotations

import sys
from typing import Any

import torch


def mask_kinds(model: Any, config: Any) -> tuple[list[str], bool]:
    """The kinds of attention mask that a model takes, and whether it takes them as a dict with one mask per kind.

    This follows ``create_masks_for_generate`` of transformers, except for windows that a configuration names and the
    model's code ignores.
    """
    if hasattr(config, "layer_types"):
        return sorted(set(config.layer_types)), True
    modules = [sys.modules[name] for name in {type(module).__module__ for module in model.modules()}]
    for size, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        code = "create_sliding_window_causal_mask" if size == "sliding_window" else "create_chunked_causal_mask"
        if getattr(config, size, None) is not None and any(hasattr(module, code) for module in modules):
            return [kind], False
    return ["full_attention"], False


def attention_mask(kind: str, config: Any, position: torch.Tensor, seen: int, dtype: torch.dtype) -> torch.Tensor:
    """What layers of this kind add to their attention scores: 0, or -inf where a key is hidden.

    ``position`` holds the positions of the new tokens, shape (rows, width). The result has shape (rows, 1, width,
    seen), as that of transformers' ``masking_utils``.
    """
    key, query = torch.arange(seen, device=position.device), position[:, :, None]
    hidden = key > query
    if kind == "sliding_attention":
        hidden |= key <= query - config.sliding_window
    elif kind == "chunked_attention":
        hidden |= key // config.attention_chunk_size < query // config.attention_chunk_size
    mask = torch.zeros(hidden.shape, dtype=dtype, device=position.device)
    return mask.masked_fill_(hidden, float("-inf"))[:, None]
