"""What the files of a model say, before its weights are loaded.

Where they lie, configuration and tokenizer, how long a conversation may be, which ids end an answer, and whether the
engine can play the architecture.
"""

from __future__ import annotations

import copy
import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils.import_utils import is_gguf_available

from eef.agents.chat import load_options
from eef.settings import EMBEDDED_MODELS

EMBEDDED = "embedded"
USE_SERVER = "play it with vLLM: engine='http://...' (docs/models.md)"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers that the engine plays
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


def folder_of(model: str) -> str:
    """Where a model lies: of an embedded one the folder in this package, else the name itself."""
    if model not in EMBEDDED_MODELS:
        return model
    folder = EMBEDDED_MODELS[model]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"the base model {model!r} is missing at {folder}: its card says how to make it")
    return str(folder)


def source_of(model: str) -> tuple[str, dict[str, str]]:
    """What transformers loads a model from: a folder or a hub name, and options that name a GGUF file in it.

    ``model`` may be such a file, or a folder that holds one and no other weights. ValueError for a folder that holds
    several, ImportError where the package that reads them is missing.
    """
    folder = folder_of(model)
    at = Path(folder)
    if at.is_file():
        if at.suffix.lower() != ".gguf":
            raise ValueError(f"model={model!r} is a file, but not a GGUF file: give its folder")
        files = [at]
    else:
        weights = [*at.glob("*.safetensors"), *at.glob("pytorch_model*.bin")] if at.is_dir() else []
        found = sorted(at.iterdir()) if at.is_dir() and not weights else []
        files = [file for file in found if file.suffix.lower() == ".gguf" and not file.name.startswith("mmproj")]
    if not files:
        return folder, {}
    if _PART.search(files[0].name):
        raise ValueError(f"model={model!r} is split into several GGUF files: merge them with llama-gguf-split --merge")
    if len(files) > 1:
        raise ValueError(f"model={model!r} holds {len(files)} GGUF files: name one, such as {str(files[0])!r}")
    if not is_gguf_available():
        raise ImportError(f"model={model!r}: reading a GGUF file takes the package gguf: pip install gguf")
    return str(files[0].parent), {"gguf_file": files[0].name}


def options_of(model: str) -> dict[str, Any]:
    """What the ``chat.json`` beside a model by name says; empty for a model without one."""
    return load_options(source_of(model)[0])


def config_of(model: str) -> Any:
    """The configuration of a model by name. OSError for an unknown model."""
    folder, files = source_of(model)
    try:
        return _gguf(AutoConfig, folder, files) if files else AutoConfig.from_pretrained(folder)
    except OSError as error:
        raise no_model(model, error) from None


def generation_of(model: str) -> Any:
    """The generation configuration beside a model by name; None where it has none."""
    try:
        return None if source_of(model)[1] else GenerationConfig.from_pretrained(folder_of(model))
    except OSError:
        return None


def load_tokenizer(model: str = EMBEDDED) -> Any:
    """The tokenizer of a model by name. OSError for an unknown model."""
    folder, files = source_of(model)
    try:
        return _gguf(AutoTokenizer, folder, files) if files else AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise no_model(model, error) from None


def _gguf(kind: Any, folder: str, files: dict[str, str]) -> Any:
    """Configuration or tokenizer of a GGUF file: a copy of what was read, since reading takes many seconds."""
    at = Path(folder, files["gguf_file"])
    return copy.deepcopy(_gguf_once(kind, at, at.stat().st_mtime_ns, at.stat().st_size))


@lru_cache(maxsize=8)
def _gguf_once(kind: Any, at: Path, time: int, size: int) -> Any:
    try:
        return kind.from_pretrained(str(at.parent), gguf_file=at.name)
    except Exception as error:  # of the reader, whatever the damage
        raise ValueError(
            f"the GGUF file {at} cannot be read: {error}. Is it whole, and of a known architecture?"
        ) from None


def ends_of(config: Any, generation: Any = None) -> frozenset[int]:
    """The ends that a model's configuration and its generation configuration name."""
    ends: set[int] = set()
    for each in (config, config.get_text_config(), generation):
        ids = getattr(each, "eos_token_id", None)
        ends |= set(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(ends)


def context_of(model: str, config: Any = None, context: int | None = None, tokenizer: Any = None) -> int:
    """The longest conversation in tokens: ``context``, else the one that a model's files name.

    Some models change how they encode all positions once a conversation exceeds a length. What is read in one batch or
    was read before that length would then be encoded otherwise, so such a model's conversations end there. ValueError
    for a longer ``context``, and where the files name none.
    """
    config = config or config_of(model)
    text = config.get_text_config()
    lengths = (getattr(each, name, None) for each in (text, config) for name in _LENGTHS)
    longest = next((int(length) for length in lengths if isinstance(length, int) and length > 0), None)
    fixed = _fixed_positions(text, longest)
    if context is not None and fixed is not None and context > fixed:
        raise ValueError(
            f"context={context} with model={model!r}: beyond {fixed} tokens its position encoding depends on the "
            f"longest conversation of a batch: set context to at most {fixed}"
        )
    if context is None and longest is None:
        tokenizer = tokenizer or load_tokenizer(model)
        if tokenizer.model_max_length < 10_000_000:  # else it stands for "unknown"
            longest = int(tokenizer.model_max_length)
    if context is None and longest is None:
        raise ValueError(f"model={model!r}: its configuration does not name the longest conversation: set context=")
    if context is not None:
        return context
    return min(size for size in (longest, fixed) if size is not None)


def _fixed_positions(text: Any, longest: int | None) -> int | None:
    """Tokens up to which a model encodes positions in one way; None where it always does."""
    parameters = getattr(text, "rope_parameters", None) or {}
    each = [one for one in parameters.values() if isinstance(one, dict)] or [parameters]
    sizes = [
        one.get("original_max_position_embeddings") or longest
        for one in each
        if "dynamic" in (kind := str(one.get("rope_type"))) or kind == "longrope"
    ]
    return min((size for size in sizes if size), default=None)


def refusal(config: Any, kind: Any = None) -> str:
    """Why our engine cannot play an architecture (``kind``: the class of the model, if it is loaded); empty if it may.

    It holds keys and values of each layer and token, and gives each token its position.
    """
    kind = kind or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        return "is not a causal language model"
    kind = kind[0] if isinstance(kind, tuple) else kind
    others = sorted(set(getattr(config.get_text_config(), "layer_types", None) or ()) - _ATTENTION)
    if getattr(kind, "_is_stateful", False) or others:
        which = f"layers of kind {', '.join(others)} with" if others else "layers with"
        return f"has {which} a state that this engine cannot hold: it holds keys and values of attention"
    known = inspect.signature(kind.forward).parameters
    if lacks := [name for name in ("position_ids", "past_key_values") if name not in known]:
        return f"takes no {' and no '.join(lacks)}, which this engine needs to read several conversations at once"
    return ""


def check_playable(model: str) -> None:
    """ValueError for a model by name that our engine cannot play, from its configuration alone."""
    config = config_of(model)
    if reason := refusal(config):
        names = getattr(config, "architectures", None) or [config.model_type]
        raise ValueError(f"model={model!r}: {names[0]} {reason}; {USE_SERVER}")


def no_model(name: str, error: OSError) -> OSError:
    """The error for a model by name that cannot be read."""
    known = " or ".join(map(repr, EMBEDDED_MODELS))
    return OSError(f"no model {name!r}: give a folder, a GGUF file, a hub name, or {known} ({error})")
