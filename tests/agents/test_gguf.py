"""Models in one GGUF file: loading, training (an adapter or all weights), saving and rollouts."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eef.agents.cached_engine import CachedEngine
from eef.agents.model_files import load_tokenizer
from eef.agents.policy import Policy
from eef.lab import resolved
from eef.settings import Settings
from eef.tracking.keys import model_key
from eef.training.rows import Row
from eef.training.sft import fit

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, WIDTH, HEADS, INNER = 2, 32, 2, 48
CONTROL, NORMAL = 3, 1  # kinds of tokens


def write_gguf(path: Path) -> None:
    """A tiny Llama with random weights and a tokenizer of some words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(["click[buy now] search[red shirt] Instruction: user assistant"] * 4, trainer)
    about = json.loads(core.to_str())["model"]
    words = sorted(about["vocab"], key=about["vocab"].get)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([CONTROL if word.startswith("<|") else NORMAL for word in words])
    writer.add_token_merges([" ".join(pair) for pair in about["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template(CHATML)
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, draw.normal(0, 0.2, shape).astype(np.float32))

    add("token_embd.weight", len(words), WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    add("output.weight", len(words), WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.arange(5, 40)[None]).logits


def trained(policy: Policy, folder: Path, **more: Any) -> None:
    rows = [Row(tuple(range(5, 25)), (True,) * 20)]
    fit(policy.model, rows, pad=policy.pad, folder=folder, epochs=2, lr=1e-2, batch_size=1, seed=0, **more)
    policy.save_adapter(folder)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_gguf_file_or_its_folder_is_a_model(as_folder: bool, file: Path, tmp_path: Path) -> None:
    model = str(file.parent if as_folder else file)
    policy = Policy.load(model, max_new_tokens=4)
    assert policy.model.dtype == torch.float32 and policy.context == 512
    assert policy.tokenizer.decode(policy.chat.end) == "<|im_end|>"
    ids = policy.chat.begin().encode_observation("click[buy now]")
    engine = CachedEngine(policy, 1)
    engine.start({0: ids})
    assert engine.generate([0], {0: lambda: 0.0}, 0.0)[0][-1:] == list(policy.chat.end)
    assert resolved(Settings(model=model)).context == 512
    assert load_tokenizer(model).chat_template == CHATML


def test_an_adapter_trains_on_a_gguf_file(file: Path, tmp_path: Path) -> None:
    policy = Policy.load(str(file))
    before = logits(policy)
    policy.new_adapter(seed=0, r=4, alpha=8)
    trained(policy, tmp_path)
    again = Policy.load(str(file), tmp_path)
    assert torch.equal(logits(again), logits(policy)) and not torch.equal(logits(again), before)


def test_no_file_of_the_base_model_is_missed_when_an_adapter_is_saved(file: Path, tmp_path: Path) -> None:
    policy = Policy.load(str(file))
    policy.new_adapter(seed=0, r=4, alpha=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(policy, tmp_path, work=tmp_path / "work", checkpoint_minutes=0.0)
    assert list((tmp_path / "work").glob("checkpoint-*"))
    assert not [str(each.message) for each in caught if "config file" in str(each.message)]


def test_all_weights_train_and_are_saved_as_a_plain_model(file: Path, tmp_path: Path) -> None:
    policy = Policy.load(str(file))
    before = logits(policy)
    trained(policy, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = Policy.load(str(file), tmp_path)
    assert torch.equal(logits(again), logits(policy)) and not torch.equal(logits(again), before)


def test_the_chat_json_beside_a_gguf_file_is_used(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.read_bytes())
    keys = [model_key(str(path))]
    for instructions in ("Shop well.", "Shop badly."):
        (tmp_path / "chat.json").write_text(json.dumps({"instructions": instructions, "constrained_decoding": True}))
        policy = Policy.load(str(path))
        assert policy.constrained_decoding and policy.chat.instructions == instructions
        keys.append(model_key(str(path)))
    assert len(set(keys)) == 3


def test_unusable_files_and_settings_are_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"quantize='nf4' with model=.*a GGUF file is quantised already"):
        Policy.load(str(file), quantize="nf4")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"contains 2 GGUF files: name one"):
        Policy.load(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file, but not a GGUF file: give its folder"):
        Policy.load(str(tmp_path / "model.bin"))
    monkeypatch.setattr("eef.agents.model_files.is_gguf_available", lambda: False)
    with pytest.raises(ImportError, match="pip install gguf"):
        Policy.load(str(file))


@pytest.mark.skipif("EEF_SMOLLM2_GGUF" not in os.environ, reason="EEF_SMOLLM2_GGUF is not set")
def test_a_real_file_answers() -> None:
    policy: Any = Policy.load(os.environ["EEF_SMOLLM2_GGUF"], max_new_tokens=12)
    engine = CachedEngine(policy, 1)
    engine.start({0: policy.chat.begin().encode_observation("What is the capital of France?")})
    assert "Paris" in policy.chat.begin().decode_action(engine.generate([0], {0: lambda: 0.0}, 0.0)[0])
