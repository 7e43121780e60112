"""A policy: a causal language model of transformers, its tokenizer, its chat scaffold and what was trained of it: an
adapter, or all weights.

Small and large take the same path; only the name differs.
"""

from __future__ import annotations

import copy
import importlib.resources
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
)
from transformers.utils.import_utils import is_gguf_available
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from eef.chat import Chat, load_options

if TYPE_CHECKING:
    from eef.settings import ModelSettings

EMBEDDED = "embedded"
_EMBEDDED = {  # names and folders beside this module
    EMBEDDED: "base",
    "embedded-mistral": "base_mistral",
    "embedded-scienceworld": "base_scienceworld",
}
QUANTIZATIONS = (None, "nf4")
HALF = (torch.bfloat16, torch.float16)
USE_SERVER = "play it with vLLM: engine='http://...' (docs: eef/served.py)"
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers that the engine plays
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Policy:
    """Model, tokenizer and scaffold. ``limited``: decoding is limited to the environment's available actions.

    ``context`` is the longest conversation in tokens, ``max_new_tokens`` the longest utterance. ``checked``: the model
    whose acting was compared with its plain forward pass, and the bytes of keys and values for each token.
    """

    model: Any
    tokenizer: Any
    chat: Chat
    name: str
    context: int
    limited: bool = False
    max_new_tokens: int = 64
    checked: tuple[Any, int] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def load(
        cls,
        model: str = EMBEDDED,
        adapter: str | Path | None = None,
        *,
        quantize: str | None = None,
        dtype: str = "auto",
        trainable: bool = False,
        limited: bool | None = None,
        instructions: str | None = None,
        opening: Sequence[Sequence[str]] = (),
        context: int | None = None,
        max_new_tokens: int = 64,
    ) -> Policy:
        """A base model by name (``embedded``, ``embedded-mistral``, ``embedded-scienceworld``, a folder, a GGUF file,
        or a hub name), with the adapter saved in the folder ``adapter``, or with the weights saved there where all of
        them were trained.

        A GGUF file's weights are unpacked to ``dtype`` (``auto``: the file's own float type, float32 for most).

        ``quantize`` is None or ``nf4`` (4-bit, double quantisation). ``dtype`` is ``auto`` (the checkpoint's) or a
        name of torch such as ``bfloat16``. ``limited`` defaults to what the model's ``chat.json`` says, else False,
        ``instructions`` and ``opening`` as of :func:`load_chat`.
        A process that a launcher numbered takes the GPU of its number (``LOCAL_RANK``). ValueError for an unknown
        quantisation or type, for a full model or a GGUF file to be quantised, for a model that is no causal language
        model, and for a tokenizer with more tokens than the model has; OSError for an unknown model.
        """
        if quantize not in QUANTIZATIONS:
            raise ValueError(f"quantize={quantize!r}: known are None and 'nf4'")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: known are {', '.join(map(repr, DTYPES))}")
        full = adapter is not None and not (Path(adapter) / "adapter_config.json").is_file()
        if full and not (Path(adapter or "") / "config.json").is_file():
            raise ValueError(f"adapter={str(adapter)!r} holds neither an adapter nor a model")
        if full and quantize:
            raise ValueError(
                f"quantize={quantize!r}: {adapter} holds a full model, which is evaluated as it was trained"
            )
        if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        folder, options = source_of(model)
        if options and quantize:
            raise ValueError(
                f"quantize={quantize!r} with model={model!r}: a GGUF file is quantised already, and its weights are "
                "unpacked to train on them. Leave quantize out, or give the folder of the original model"
            )
        (disable_progress_bar if model in _EMBEDDED else enable_progress_bar)()  # the small ones load at once
        chat = load_chat(model, instructions, opening)
        weights, files = (str(adapter), {}) if full else (folder, options)
        try:
            compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
            if dtype != "auto":
                compute = getattr(torch, dtype)
            quantization: Any = None
            if quantize:
                quantization = BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=compute,
                )
            elif files:
                quantization = GgufConfig(dequantize=True)  # packed weights do not train
            config = AutoConfig.from_pretrained(weights) if full else config_of(model)
            if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
                raise ValueError(
                    f"model={model!r} ({config.model_type}) is not a causal language model: this package trains and "
                    "plays models of transformers' AutoModelForCausalLM"
                )
            # sdpa has no soft-capping of attention scores
            capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
            base = AutoModelForCausalLM.from_pretrained(
                weights, dtype=dtype, quantization_config=quantization,
                config=config, attn_implementation="eager" if capped else None, **files,
            )  # fmt: skip
        except OSError as error:
            raise _no_model(model, error) from None
        if files:
            _forget_gguf(base)
        _check_vocabulary(model, chat, base)
        if quantize:
            for module in base.modules():
                if hasattr(
                    module, "support_avx512bf16_for_cpu"
                ):  # it repacks in eval() and never back: wrong gradients
                    setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        elif torch.cuda.is_available():
            base.to("cuda")  # type: ignore[arg-type]
        policy = cls(
            model=base,
            tokenizer=chat.tokenizer,
            chat=chat,
            name=model,
            context=context_of(model, base.config, context, chat.tokenizer),
            limited=bool(options_of(model).get("limited", False)) if limited is None else limited,
            max_new_tokens=max_new_tokens,
        )
        if adapter is not None and not full:
            policy.model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable)
        policy.model.eval()
        return policy

    def new_adapter(self, seed: int, r: int = 16, alpha: int = 32, dropout: float = 0.0) -> None:
        """Attach a fresh LoRA adapter on all linear layers; its initial weights depend on ``seed`` alone."""
        if isinstance(self.model, PeftModel):
            raise ValueError("this policy has an adapter already: load the base model anew")
        torch.manual_seed(seed)
        config = LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(self.model, config)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter (or, where there is none, the full model) as safetensors."""
        self.model.save_pretrained(str(folder))

    @property
    def pad(self) -> int:
        """What fills short rows: masked everywhere, so that any id of the model's own does."""
        size = self.model.get_input_embeddings().weight.shape[0]
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None and token < size))

    @cached_property
    def stops(self) -> frozenset[int]:
        """The ids that end an answer, whatever the scaffold's own end is."""
        return stops_of(self.chat, self.model.config, getattr(self.model, "generation_config", None))

    def ends(self, token: int) -> bool:
        """Whether a sampled id ends the answer: one of ``stops``, or an id that the tokenizer does not have (a model
        may have more)."""
        return token in self.stops or token >= self.chat.size


def stops_of(chat: Chat, config: Any, generation: Any = None) -> frozenset[int]:
    """The ids that end an answer: every end that the model's configurations name, and all control tokens."""
    return chat.stops | ends_of(config, generation) | ({chat.tokenizer.eos_token_id} - {None})


def ends_of(config: Any, generation: Any = None) -> frozenset[int]:
    """The ends that a model's configuration and its generation configuration name."""
    ends: set[int] = set()
    for each in (config, config.get_text_config(), generation):
        ids = getattr(each, "eos_token_id", None)
        ends |= set(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(ends)


def generation_of(model: str) -> Any:
    """The generation configuration beside a model by name; None where it has none."""
    try:
        return None if source_of(model)[1] else GenerationConfig.from_pretrained(folder_of(model))
    except OSError:
        return None


def config_of(model: str) -> Any:
    """The configuration of a model by name. OSError for an unknown model."""
    folder, files = source_of(model)
    try:
        return _gguf(AutoConfig, folder, files) if files else AutoConfig.from_pretrained(folder)
    except OSError as error:
        raise _no_model(model, error) from None


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
    return context or min(size for size in (longest, fixed) if size is not None)


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


def _check_vocabulary(model: str, chat: Chat, base: Any) -> None:
    """ValueError for a tokenizer that gives ids which the model does not have.

    A control token that the scaffold does not use, such as one for padding, may lie beyond: nothing is read as it.
    """
    tokenizer, size = chat.tokenizer, base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= size:
        return
    beyond = {token: word for word, token in tokenizer.get_vocab().items() if token >= size}
    scaffold = chat.scaffold
    unused = scaffold.control - {*scaffold.before, *scaffold.to_agent, *scaffold.end, *scaffold.to_user}
    if beyond.keys() - unused:
        raise ValueError(
            f"model={model!r}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {size}, so that the "
            f"model does not know {', '.join(repr(beyond[token]) for token in sorted(beyond.keys() - unused)[:3])}. "
            "Enlarge the model (model.resize_token_embeddings(len(tokenizer))) and save both, or give the tokenizer "
            "that the model was trained with"
        )


def _forget_gguf(base: Any) -> None:
    """The weights were unpacked: a plain model, which trains and saves as any other."""
    for config in (base.config, base.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(base, name):
            delattr(base, name)


def load_arguments(model: ModelSettings, chat: Chat, adapter: Path | None) -> dict[str, Any]:
    """Arguments of :meth:`Policy.load`: the same for every method, for training and for acting."""
    return {
        "model": model.model,
        "adapter": str(adapter) if adapter else None,
        "quantize": model.quantize,
        "dtype": model.dtype,
        "context": model.context,
        "opening": chat.opening,
    }


def load_chat(model: str = EMBEDDED, instructions: str | None = None, opening: Sequence[Sequence[str]] = ()) -> Chat:
    """The scaffold of a model by name, without its weights; ``instructions`` default to its ``chat.json``, ``opening``
    is for ReAct answers (:meth:`eef.chat.Chat.opened`)."""
    tokenizer = load_tokenizer(model)
    options = options_of(model)
    words = options.get("instructions", "") if instructions is None else instructions
    ends = ends_of(config_of(model), generation_of(model))
    chat = Chat.of(tokenizer, words, bool(options.get("aliases", False)), ends)
    return chat.opened(opening) if opening else chat


def load_tokenizer(model: str = EMBEDDED) -> Any:
    """The tokenizer of a model by name. OSError for an unknown model."""
    folder, files = source_of(model)
    try:
        return _gguf(AutoTokenizer, folder, files) if files else AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise _no_model(model, error) from None


def _gguf(kind: Any, folder: str, files: dict[str, str]) -> Any:
    """Configuration or tokenizer of a GGUF file: a copy of what was read, since reading takes many seconds."""
    at = Path(folder, files["gguf_file"])
    return copy.deepcopy(_gguf_once(kind, at, at.stat().st_mtime_ns, at.stat().st_size))


@lru_cache(maxsize=8)
def _gguf_once(kind: Any, at: Path, time: int, size: int) -> Any:
    return kind.from_pretrained(str(at.parent), gguf_file=at.name)


def options_of(model: str) -> dict[str, Any]:
    """What the ``chat.json`` beside a model by name says; empty for a model without one."""
    return load_options(source_of(model)[0])


def _no_model(name: str, error: OSError) -> OSError:
    return OSError(
        f"no model {name!r}: give a folder, a GGUF file, a hub name, or {' or '.join(map(repr, _EMBEDDED))} ({error})"
    )


def folder_of(model: str) -> str:
    """Where a model lies: of an embedded one the folder in this package, else the name itself."""
    if model not in _EMBEDDED:
        return model
    folder = Path(str(importlib.resources.files("eef") / _EMBEDDED[model]))
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
        files = sorted(at.glob("*.gguf")) if at.is_dir() and not weights else []
    if not files:
        return folder, {}
    if len(files) > 1:
        raise ValueError(f"model={model!r} holds {len(files)} GGUF files: name one, such as {str(files[0])!r}")
    if not is_gguf_available():
        raise ImportError(f"model={model!r}: reading a GGUF file takes the package gguf: pip install gguf")
    return str(files[0].parent), {"gguf_file": files[0].name}
