"""A policy: a causal language model of transformers, its tokenizer, its chat scaffold and what was trained of it: an
adapter, or all weights.

Small and large take the same path; only the name differs.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
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
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class Policy:
    """Model, tokenizer and scaffold. ``limited``: decoding is limited to the environment's available actions.

    ``context`` is the longest conversation in tokens, ``max_new_tokens`` the longest utterance.
    """

    model: Any
    tokenizer: Any
    chat: Chat
    name: str
    context: int
    limited: bool = False
    max_new_tokens: int = 64

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
        """A base model by name (``embedded``, ``embedded-mistral``, ``embedded-scienceworld``, a folder, or a hub
        name), with the adapter saved in the folder ``adapter``, or with the weights saved there where all of them were
        trained.

        ``quantize`` is None or ``nf4`` (4-bit, double quantisation). ``dtype`` is ``auto`` (the checkpoint's) or a
        name of torch such as ``bfloat16``. ``limited`` defaults to what the model's ``chat.json`` says, else False,
        ``instructions`` and ``opening`` as of :func:`load_chat`.
        A process that a launcher numbered takes the GPU of its number (``LOCAL_RANK``). ValueError for an unknown
        quantisation or type and for a full model to be quantised, OSError for an unknown model.
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
        folder = folder_of(model)
        (disable_progress_bar if model in _EMBEDDED else enable_progress_bar)()  # the small ones load at once
        chat = load_chat(model, instructions, opening)
        try:
            compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
            if dtype != "auto":
                compute = getattr(torch, dtype)
            quantization = (
                BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=compute,
                )
                if quantize
                else None
            )
            weights = str(adapter) if full else folder
            base = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype, quantization_config=quantization)
        except OSError as error:
            raise _no_model(model, error) from None
        if quantize:
            for module in base.modules():
                if hasattr(
                    module, "support_avx512bf16_for_cpu"
                ):  # it repacks in eval() and never back: wrong gradients
                    setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        elif torch.cuda.is_available():
            base.to("cuda")  # type: ignore[arg-type]
        options = load_options(folder)
        policy = cls(
            model=base,
            tokenizer=chat.tokenizer,
            chat=chat,
            name=model,
            context=context or int(base.config.max_position_embeddings),
            limited=bool(options.get("limited", False)) if limited is None else limited,
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
        """What fills short rows: masked everywhere, so any id does where the tokenizer names none."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))


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
    folder = folder_of(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise _no_model(model, error) from None
    options = load_options(folder)
    words = options.get("instructions", "") if instructions is None else instructions
    chat = Chat.of(tokenizer, words, bool(options.get("aliases", False)))
    return chat.opened(opening) if opening else chat


def _no_model(name: str, error: OSError) -> OSError:
    return OSError(f"no model {name!r}: give a folder, a hub name, or {' or '.join(map(repr, _EMBEDDED))} ({error})")


def folder_of(model: str) -> str:
    """Where a model lies: of an embedded one the folder in this package, else the name itself."""
    if model not in _EMBEDDED:
        return model
    folder = Path(str(importlib.resources.files("eef") / _EMBEDDED[model]))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"the base model {model!r} is missing at {folder}: its card says how to make it")
    return str(folder)
