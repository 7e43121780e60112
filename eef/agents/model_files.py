"""Facts about a model from its files, without loading its weights.

Its folder, configuration and tokenizer, the longest conversation, the ids that end an answer, and whether our engine
supports its architecture.
"""

from __future__ import annotations

import copy
import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils.import_utils import is_gguf_available

from eef.agents.chat import load_options
from eef.model_names import EMBEDDED_MODELS, PACKAGED_MODELS, packaged_folder

EMBEDDED = "embedded"
HALF = (torch.bfloat16, torch.float16)
USE_SERVER = "use vLLM: engine='http://...' (docs/models.md)"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers that our engine supports
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FILES = {  # patterns of which a model's folder contains at least one each
    "config.json": ("config.json",),
    "weights": ("*.safetensors", "*.bin"),
    "tokenizer": ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json"),
}
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


def folder_of(model: str) -> str:
    """The folder of an embedded or packaged model, or the name itself for any other model."""
    if packaged := packaged_folder(model):
        if not (packaged / "config.json").is_file():
            raise FileNotFoundError(f"the model {model!r} is not on this machine yet: run `eef model {model}` once")
        return str(packaged)
    if model not in EMBEDDED_MODELS:
        return model
    folder = EMBEDDED_MODELS[model]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"the base model {model!r} is missing in {folder}: its README.md says how to make it")
    return str(folder)


def source_of(model: str) -> tuple[str, dict[str, str]]:
    """The folder or hub name that transformers loads a model from, and the options for a GGUF file in it.

    ``model`` may be a GGUF file, or a folder with one and no other weights. ValueError for a folder with several.
    ImportError if the package that reads GGUF files is missing.
    """
    folder = folder_of(model)
    path = Path(folder)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"model={model!r} is a file, but not a GGUF file: give its folder")
        files = [path]
    else:
        weights = [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")] if path.is_dir() else []
        candidates = sorted(path.iterdir()) if path.is_dir() and not weights else []
        files = [file for file in candidates if file.suffix.lower() == ".gguf" and not file.name.startswith("mmproj")]
    if not files:
        return folder, {}
    if _PART.search(files[0].name):
        raise ValueError(f"model={model!r} is split into several GGUF files: merge them with llama-gguf-split --merge")
    if len(files) > 1:
        raise ValueError(f"model={model!r} contains {len(files)} GGUF files: name one, such as {str(files[0])!r}")
    if not is_gguf_available():
        raise ImportError(f"model={model!r}: reading a GGUF file needs the package gguf: pip install gguf")
    return str(files[0].parent), {"gguf_file": files[0].name}


def options_of(model: str) -> dict[str, Any]:
    """The options in the ``chat.json`` of a model (:func:`eef.agents.chat.load_options`)."""
    return load_options(source_of(model)[0])


def config_of(model: str) -> Any:
    """The configuration of a model. OSError for an unknown model."""
    folder, files = source_of(model)
    try:
        return _gguf(AutoConfig, folder, files) if files else AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise no_model(model, error) from None


def generation_of(model: str) -> Any:
    """The generation configuration of a model; None if it has none."""
    try:
        return None if source_of(model)[1] else GenerationConfig.from_pretrained(folder_of(model))
    except OSError:
        return None


def load_tokenizer(model: str = EMBEDDED) -> Any:
    """The tokenizer of a model. OSError for an unknown model."""
    folder, files = source_of(model)
    try:
        return _gguf(AutoTokenizer, folder, files) if files else AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise no_model(model, error) from None


def _gguf(kind: Any, folder: str, files: dict[str, str]) -> Any:
    """A copy of the configuration or tokenizer of a GGUF file, which is cached because reading takes many seconds."""
    path = Path(folder, files["gguf_file"])
    return copy.deepcopy(_read_gguf(kind, path, path.stat().st_mtime_ns, path.stat().st_size))


@lru_cache(maxsize=8)
def _read_gguf(kind: Any, path: Path, time: int, size: int) -> Any:
    try:
        return kind.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # the reader raises many classes
        raise ValueError(
            f"the GGUF file {path} cannot be read: {error}. Is it complete and of a known architecture?"
        ) from None


def ends_of(config: Any, generation: Any = None) -> frozenset[int]:
    """The ids that end an answer, according to a model's configuration and generation configuration."""
    ends: set[int] = set()
    for each in (config, config.get_text_config(), generation):
        ids = getattr(each, "eos_token_id", None)
        ends |= set(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(ends)


def context_of(model: str, config: Any = None, context: int | None = None, tokenizer: Any = None) -> int:
    """The longest conversation in tokens: ``context``, or the length in a model's files.

    Some models encode all positions differently once a conversation exceeds a certain length. Tokens in the same batch
    or in the cache would then have another encoding, so conversations with such a model end at that length. ValueError
    for a longer ``context``, and for a model whose files have no length.
    """
    config = config or config_of(model)
    text = config.get_text_config()
    lengths = (getattr(each, name, None) for each in (text, config) for name in _LENGTHS)
    longest = next((int(length) for length in lengths if isinstance(length, int) and length > 0), None)
    fixed = _fixed_positions(text, longest)
    if context is not None and fixed is not None and context > fixed:
        raise ValueError(
            f"context={context} with model={model!r}: beyond {fixed} tokens its position encoding depends on the "
            f"longest conversation in the batch: set context to at most {fixed}"
        )
    if context is None and longest is None:
        tokenizer = tokenizer or load_tokenizer(model)
        if tokenizer.model_max_length < 10_000_000:  # else it stands for "unknown"
            longest = int(tokenizer.model_max_length)
    if context is None and longest is None:
        raise ValueError(f"model={model!r}: its configuration gives no maximum length: set context=")
    if context is not None:
        return context
    return min(size for size in (longest, fixed) if size is not None)


def _fixed_positions(text: Any, longest: int | None) -> int | None:
    """The number of tokens up to which the position encoding stays the same; None for any number."""
    parameters = getattr(text, "rope_parameters", None) or {}
    groups = [group for group in parameters.values() if isinstance(group, dict)] or [parameters]
    sizes = [
        group.get("original_max_position_embeddings") or longest
        for group in groups
        if "dynamic" in (kind := str(group.get("rope_type"))) or kind == "longrope"
    ]
    return min((size for size in sizes if size), default=None)


def refusal(config: Any, kind: Any = None) -> str:
    """Why our engine does not support an architecture; empty if it does. ``kind``: the class of a loaded model.

    The engine caches keys and values of each layer and token, and passes each token's position.
    """
    kind = kind or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        return "is not a causal language model"
    kind = kind[0] if isinstance(kind, tuple) else kind
    others = sorted(set(getattr(config.get_text_config(), "layer_types", None) or ()) - _ATTENTION)
    if getattr(kind, "_is_stateful", False) or others:
        layers = f"layers of kind {', '.join(others)} with" if others else "layers with"
        return f"has {layers} a state that our engine cannot cache: it caches keys and values of attention"
    arguments = inspect.signature(kind.forward).parameters
    if missing := [name for name in ("position_ids", "past_key_values") if name not in arguments]:
        return f"has no argument {' and no '.join(missing)}, which our engine needs to batch conversations"
    return ""


def check_playable(model: str) -> None:
    """ValueError for a model that our engine does not support, from its configuration alone."""
    config = config_of(model)
    if reason := refusal(config):
        names = getattr(config, "architectures", None) or [config.model_type]
        raise ValueError(f"model={model!r}: {names[0]} {reason}; {USE_SERVER}")


def no_model(name: str, error: OSError | ValueError) -> OSError | ValueError:
    """The error for a model that cannot be read; ``error`` itself if its files are there, but are not accepted."""
    known = f"a folder, a GGUF file, a hub name, or {' or '.join(map(repr, [*EMBEDDED_MODELS, *PACKAGED_MODELS]))}"
    if problem := folder_problem(name):
        return OSError(f"no model {name!r}: {problem}, or set the parameter model to {known}")
    reason = str(error).partition("\n")[0].rstrip(".")
    where = "" if Path(name).exists() else "there is no such folder, and the hub gives none: "
    return error if isinstance(error, ValueError) else OSError(f"no model {name!r}: {where}{reason}; use {known}")


def folder_problem(model: str) -> str:
    """What the path of a model lacks, and what to do; empty if nothing, and for what may be a name of the hub."""
    path = Path(model)
    if not path.exists():
        return "" if _HUB_NAME.fullmatch(model) else "there is no such file or folder: correct the path"
    if path.is_file() or any(path.glob("*.gguf")):
        return ""
    missing = [what for what, patterns in _FILES.items() if not any(any(path.glob(each)) for each in patterns)]
    advice = "save model and tokenizer there with save_pretrained()"
    return f"the folder contains no {' and no '.join(missing)}: {advice}" if missing else ""
