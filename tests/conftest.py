"""Small parts that the tests share: a tiny policy with random weights, a tiny generated shop."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from eef.agents.chat import Chat
from eef.agents.policy import Policy
from eef.envs.webshop import WebShop
from eef.envs.webshop.pretraining import vocabulary
from eef.models.pretrain import make_model, word_tokenizer

settings.register_profile("eef", deadline=None)  # shared machines are noisy
settings.load_profile("eef")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.pop("WANDB_MODE", None)  # it would replace the mode that a test asks for: three CPU seconds a run
os.fsync = lambda fd: None  # what tests write need not survive a power failure

# The files that take longest, in this order: they start first, so that no worker is left alone with one at the end.
SLOWEST = (
    "test_notebooks", "test_simulation", "test_scienceworld_expert", "test_sweep", "test_methods", "test_faults",
    "test_vllm", "test_scienceworld", "test_live", "test_keys", "test_cli", "test_training_kinds", "test_fuzz",
    "test_mirror", "test_rollout", "test_divergence", "test_lab", "test_from_scratch", "test_walks", "test_package",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; pytest-xdist hands them out in this order with ``--no-loadscope-reorder``."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


SMALL = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}


@pytest.fixture(scope="session")
def shop() -> WebShop:
    """A generated shop of 20 training and 20 test subtasks."""
    return WebShop(catalogue=SMALL, max_steps=15)


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer(vocabulary())


@pytest.fixture(scope="session")
def chat(tokenizer) -> Chat:
    return Chat.of(tokenizer, aliases="webshop")


@pytest.fixture
def policy(tokenizer, chat) -> Policy:
    """Random weights, decoding limited to valid actions: a policy that acts, badly."""
    torch.manual_seed(0)
    model = make_model(tokenizer, width=32, layers=2, heads=2).eval()
    return Policy(model, tokenizer, chat, "random", context=2048, constrained_decoding=True, max_new_tokens=16)


@pytest.fixture(scope="session")
def demo_drawn_again() -> bool:
    """Whether ``make demo`` has drawn other numbers than the committed ones, as it does on another processor."""
    command = ["git", "diff", "--quiet", "HEAD", "--", "figures/demo"]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, stderr=subprocess.DEVNULL)
    return result.returncode == 1  # 129: not a git repository
