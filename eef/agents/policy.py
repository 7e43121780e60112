"""A policy: a causal language model of transformers, its tokenizer, its chat scaffold, and the trained adapter.

If all weights were trained, the policy has a full model instead of an adapter. Small and large models are treated
alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GgufConfig,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from eef.agents.chat import Chat
from eef.agents.model_files import (
    EMBEDDED,
    EMBEDDED_MODELS,
    config_of,
    context_of,
    ends_of,
    generation_of,
    load_tokenizer,
    no_model,
    options_of,
    source_of,
)
from eef.settings import DTYPES, QUANTIZATIONS, ModelSettings

if TYPE_CHECKING:
    from eef.agents.engine import Engine


@dataclass
class Policy:
    """Model, tokenizer and scaffold.

    ``context`` is the longest conversation in tokens, ``max_new_tokens`` the longest answer. With
    ``constrained_decoding`` answers are limited to the environment's available actions. ``checked``: the model that
    :func:`eef.agents.engine_check.check` accepted, and the bytes of keys and values per token.
    """

    model: Any
    tokenizer: Any
    chat: Chat
    name: str
    context: int
    constrained_decoding: bool = False
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
        constrained_decoding: bool | None = None,
        instructions: str | None = None,
        opening: Sequence[Sequence[str]] = (),
        context: int | None = None,
        max_new_tokens: int = 64,
    ) -> Policy:
        """Load a base model, and the adapter or the full model that training saved in the folder ``adapter``.

        ``model`` is the name of an embedded model (such as ``embedded``), a folder, a GGUF file, or a hub name. The
        weights of a GGUF file are unpacked to ``dtype`` (``auto``: the file's own float type, usually float32).

        ``quantize`` is None or ``nf4`` (4-bit linear layers, double quantisation). ``dtype``, of all other weights and
        of the computation, is the name of a torch type such as ``bfloat16``, or ``auto``: the checkpoint's, and with
        ``nf4`` bfloat16 on a GPU and float32 on a CPU. A checkpoint saved in 4 bits has its own types.
        ``constrained_decoding`` defaults to the value in the model's ``chat.json``, else False. For ``instructions``
        and ``opening`` see :func:`load_chat`. In a process with ``LOCAL_RANK`` the model goes to the GPU of that
        number.

        ValueError for an unknown quantisation or type, for quantising a full model or a GGUF file, for a model that is
        not a causal language model, and for a tokenizer with more tokens than the model. OSError for an unknown model.
        """
        if quantize not in QUANTIZATIONS:
            raise ValueError(f"quantize={quantize!r} must be None or 'nf4'")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be one of {', '.join(map(repr, DTYPES))}")
        full = adapter is not None and not (Path(adapter) / "adapter_config.json").is_file()
        if full and not (Path(adapter or "") / "config.json").is_file():
            raise ValueError(f"adapter={str(adapter)!r} contains neither an adapter nor a model")
        if full and quantize:
            raise ValueError(
                f"quantize={quantize!r}: {adapter} contains a full model, which is evaluated as it was trained"
            )
        if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        folder, options = source_of(model)
        if options and quantize:
            raise ValueError(
                f"quantize={quantize!r} with model={model!r}: a GGUF file is quantised already, and its weights are "
                "unpacked for training. Leave quantize out, or use the folder of the original model"
            )
        (
            disable_progress_bar if model in EMBEDDED_MODELS else enable_progress_bar
        )()  # the embedded models load quickly
        chat = load_chat(model, instructions, opening)
        weights, files = (str(adapter), {}) if full else (folder, options)
        try:
            quantization: Any = None
            if quantize:
                if dtype == "auto":
                    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
                quantization = BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=getattr(torch, dtype),
                )
            elif files:
                quantization = GgufConfig(dequantize=True)  # packed weights cannot be trained
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
            raise no_model(model, error) from None
        if files:
            _forget_gguf(base)
        _check_vocabulary(model, chat, base)
        if quantize or getattr(base, "is_quantized", False):  # by us, or in its checkpoint
            for module in base.modules():
                # with this option eval() repacks the weights and train() does not undo it: the gradients are wrong
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
            base.requires_grad_(False)
        if torch.cuda.is_available() and base.device.type != "cuda":
            base.to("cuda")  # type: ignore[arg-type]
        policy = cls(
            model=base,
            tokenizer=chat.tokenizer,
            chat=chat,
            name=model,
            context=context_of(model, base.config, context, chat.tokenizer),
            constrained_decoding=bool(options_of(model).get("constrained_decoding", False))
            if constrained_decoding is None
            else constrained_decoding,
            max_new_tokens=max_new_tokens,
        )
        if adapter is not None and not full:
            # to act, the adapter has the model's own type: float32 in a half-precision model would cost time
            policy.model = PeftModel.from_pretrained(
                base, str(adapter), is_trainable=trainable, autocast_adapter_dtype=trainable
            )
            for name, weight in [] if trainable else policy.model.named_parameters():
                if "lora_" in name:  # PEFT leaves adapters on 4-bit layers in float32
                    weight.data = weight.data.to(base.dtype)
        policy.model.eval()
        return policy

    def new_adapter(self, seed: int, r: int = 16, alpha: int = 32, dropout: float = 0.0) -> None:
        """Attach a new LoRA adapter to all linear layers; in a model that also reads images, those that read text.

        Its initial weights depend only on ``seed``.
        """
        if isinstance(self.model, PeftModel):
            raise ValueError("this policy already has an adapter: load the base model again")
        torch.manual_seed(seed)
        outside = None
        if self.model.config.get_text_config() is not self.model.config:
            text = self.model.get_decoder()
            name = next(name for name, module in self.model.named_modules() if module is text)
            outside = rf"(?!{re.escape(name)}\.).*"
        config = LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", exclude_modules=outside,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        self.model = get_peft_model(self.model, config)

    def save_adapter(self, folder: str | Path) -> None:
        """Save the adapter as safetensors; the full model if there is no adapter."""
        # adapters are on linear layers and the vocabulary is unchanged; "auto" would look for the base model's files
        options = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(str(folder), **options)

    def engine(self, slots: int) -> Engine:
        """A new :class:`eef.agents.cached_engine.CachedEngine` for up to ``slots`` conversations at once.

        ValueError for an architecture that it cannot run.
        """
        # by name and not by an import statement: training, which needs no engine, does not depend on its code
        return import_module("eef.agents.cached_engine").CachedEngine(self, slots)

    @property
    def pad(self) -> int:
        """The id that pads short rows. It is masked everywhere, so any id that the model has will do."""
        size = self.model.get_input_embeddings().weight.shape[0]
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in candidates if token is not None and token < size))

    @cached_property
    def stops(self) -> frozenset[int]:
        """The ids that end an answer, in addition to the scaffold's own end."""
        return stops_of(self.chat, self.model.config, getattr(self.model, "generation_config", None))

    def ends(self, token: int) -> bool:
        """Whether a sampled id ends the answer: one of ``stops``, or an id that only the model has.

        A model may have more ids than its tokenizer.
        """
        return token in self.stops or token >= self.chat.vocabulary_size


def stops_of(chat: Chat, config: Any, generation: Any = None) -> frozenset[int]:
    """The ids that end an answer: all ends in the model's configurations, and all control tokens."""
    return chat.stops | ends_of(config, generation) | ({chat.tokenizer.eos_token_id} - {None})


def _check_vocabulary(model: str, chat: Chat, base: Any) -> None:
    """ValueError for a tokenizer with ids that the model does not have.

    Control tokens that the scaffold does not use, such as a padding token, are exempt: they are never read.
    """
    tokenizer, size = chat.tokenizer, base.get_input_embeddings().weight.shape[0]
    if chat.vocabulary_size <= size:
        return
    beyond = {token: word for word, token in tokenizer.get_vocab().items() if token >= size}
    scaffold = chat.scaffold
    unused = scaffold.control - {*scaffold.before, *scaffold.to_agent, *scaffold.end, *scaffold.to_user}
    if beyond.keys() - unused:
        words = ", ".join(repr(beyond[token]) for token in sorted(beyond.keys() - unused)[:3])
        raise ValueError(
            f"model={model!r}: the tokenizer has ids up to {chat.vocabulary_size - 1}, but the model's embedding "
            f"has {size} rows, so it does not know {words}. Enlarge the model "
            "(model.resize_token_embeddings(len(tokenizer))) and save both, or use the tokenizer that the model was "
            "trained with"
        )


def _forget_gguf(base: Any) -> None:
    """Remove the marks of a GGUF file from a model whose weights were unpacked, so that it trains and saves."""
    for config in (base.config, base.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(base, name):
            delattr(base, name)


def load_arguments(model: ModelSettings, chat: Chat, adapter: Path | None) -> dict[str, Any]:
    """Arguments of :meth:`Policy.load` that are the same for every method, in training and in simulations."""
    return {
        "model": model.model,
        "adapter": str(adapter) if adapter else None,
        "quantize": model.quantize,
        "dtype": model.dtype,
        "context": model.context,
        "opening": chat.opening,
    }


def load_chat(model: str = EMBEDDED, instructions: str | None = None, opening: Sequence[Sequence[str]] = ()) -> Chat:
    """The chat of a model by name, without loading its weights.

    ``instructions`` default to those in the model's ``chat.json``. ``opening`` is for ReAct answers
    (:meth:`eef.agents.chat.Chat.with_opening`).
    """
    tokenizer = load_tokenizer(model)
    options = options_of(model)
    words = options.get("instructions", "") if instructions is None else instructions
    ends = ends_of(config_of(model), generation_of(model))
    chat = Chat.of(tokenizer, words, options.get("aliases", ""), ends)
    return chat.with_opening(opening) if opening else chat
