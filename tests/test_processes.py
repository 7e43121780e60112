"""CPU threads by the model's size, and the GPUs of a machine."""

import os
from pathlib import Path

import pytest
import torch

from eef.processes import SMALL_MODEL, gpu_ids, use_threads


class Model:
    def __init__(self, size: int) -> None:
        self.weights = [torch.empty(size, device="meta")]

    def parameters(self) -> list[torch.Tensor]:
        return self.weights


@pytest.fixture(autouse=True)
def one_thread_after(monkeypatch: pytest.MonkeyPatch) -> object:
    for name in ("EEF_THREADS", "EEF_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("size", "processes", "jobs", "threads"),
    [
        (SMALL_MODEL - 1, 1, None, 1),
        (SMALL_MODEL, 1, None, 8),
        (SMALL_MODEL, 2, None, 4),
        (SMALL_MODEL, 1, "2", 4),
        (SMALL_MODEL, 2, "3", 1),
        (SMALL_MODEL, 1, "16", 1),
    ],
)
def test_a_large_model_gets_its_share_of_the_cores(
    size: int, processes: int, jobs: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if jobs:
        monkeypatch.setenv("EEF_JOBS", jobs)
    torch.set_num_threads(2)
    use_threads(Model(size), processes)
    assert torch.get_num_threads() == threads


def test_gpus_are_those_of_the_variable_or_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_ids() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    assert gpu_ids() == ["0", "1"]
    tool.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert gpu_ids() == []
    for value, names in (("", []), ("-1", []), ("3", ["3"]), ("2, GPU-8f", ["2", "GPU-8f"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert gpu_ids() == names


def test_eef_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EEF_THREADS", "3")
    for size in (1, SMALL_MODEL):
        torch.set_num_threads(1)
        use_threads(Model(size))
        assert torch.get_num_threads() == 3
