"""The self-check of :class:`eef.agents.cached_engine.CachedEngine`: acting must equal training.

The engine's log-probabilities are compared with those of the model's plain forward pass, which training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from eef.agents.engine import LocalPolicy
from eef.agents.model_files import HALF, USE_SERVER, refusal

_WINDOW = 5  # tokens that windows and chunks have during the check
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.2


@torch.inference_mode()
def check(policy: LocalPolicy, make_engine: Callable[[], Any]) -> int:
    """Compare the engine with the model's plain forward pass, which has no cache and builds its own masks.

    ``make_engine`` returns an engine with two slots that has not been checked. It reads two short conversations of
    different lengths, each in two pieces, with windows shorter than the conversations. Returns the bytes of keys and
    values per token. ValueError if the model does not run in the engine, or if the two differ.
    """
    model = _without_adapters(policy.model)
    name = f"model={policy.name!r}: {type(model).__name__}"
    if reason := refusal(model.config, type(model)):
        raise ValueError(f"{name} {reason}; {USE_SERVER}")
    training = policy.model.training
    policy.model.eval()
    try:
        with _small_windows(model):
            engine = make_engine()
            differences = _differences(policy, engine, _is_exact(model), name)
    except (torch.OutOfMemoryError, ValueError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} does not run in this engine ({cause}); {USE_SERVER}") from error
    finally:
        policy.model.train(training)
    # in half precision a single position may be far off, for example where a router chooses between two experts
    difference = max(differences) if _is_exact(model) else float(np.median(differences))
    if not difference <= (_TOLERANCE if _is_exact(model) else _HALF_TOLERANCE):
        what = "log-probabilities differ" if _is_exact(model) else "the distributions of the next token differ"
        raise ValueError(
            f"{name} acts differently in this engine than it trains: {what} by {difference:.2g} from those of the "
            f"plain forward pass; {USE_SERVER}"
        )
    layers = [layer for layer in engine.layers if layer.is_initialized]
    return sum(t[0, :, 0].nbytes for layer in layers for t in (layer.keys, layer.values) if t is not None)


def _differences(policy: LocalPolicy, engine: Any, exact: bool, name: str) -> list[float]:
    """How far the engine is from the plain forward pass after each piece of each conversation.

    The largest difference of log-probabilities where the model is ``exact``, else the total variation distance.
    """
    size = min(len(policy.tokenizer), policy.model.get_input_embeddings().weight.shape[0])
    rng = np.random.default_rng(0)
    conversations = [rng.integers(0, size, length).tolist() for length in (24, 17)]
    pieces = [(14, 10), (10, 7)]  # tokens that each conversation reads at a time
    padded = [ids + [0] * (24 - len(ids)) for ids in conversations]  # no token attends to the padding after it
    output = policy.model(input_ids=torch.tensor(padded, device=engine.device), use_cache=False)
    expected = output.logits.float().log_softmax(-1)
    if not expected.isfinite().all():
        raise ValueError(f"{name}: its own forward pass returns numbers that are not finite. Are its weights complete?")
    differences = []
    for piece in pieces:
        for slot, count in enumerate(piece):
            start = engine.length(slot)
            engine.append(slot, conversations[slot][start : start + count])
        for slot, logits in enumerate(engine.next_logits(list(range(len(conversations))))):
            plain = expected[slot, engine.length(slot) - 1]
            cached = logits.log_softmax(-1)
            if exact:
                differences.append(float((cached - plain).abs().max()))
            else:
                differences.append(float((cached.exp() - plain.exp()).abs().sum() / 2))
    return differences


def _without_adapters(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_exact(model: Any) -> bool:
    """Whether the model computes in single precision or better."""
    return model.dtype not in HALF and not getattr(model, "is_quantized", False)


@contextmanager
def _small_windows(model: Any) -> Iterator[None]:
    """Shorten windows and chunks to a few tokens, so that they matter in a short conversation."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    configs |= {id(text): text for config in configs.values() if (text := config.get_text_config())}
    before = [
        (config, size, value)
        for config in configs.values()
        for size in ("sliding_window", "attention_chunk_size")
        if (value := getattr(config, size, None)) is not None
    ]
    try:
        for config, size, value in before:
            setattr(config, size, min(value, _WINDOW))
        yield
    finally:
        for config, size, value in before:
            setattr(config, size, value)
