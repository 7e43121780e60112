"""CPU threads by the model's size."""

import os

import pytest
import torch

from eef.processes import SMALL_MODEL, use_threads


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


def test_eef_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EEF_THREADS", "3")
    for size in (1, SMALL_MODEL):
        torch.set_num_threads(1)
        use_threads(Model(size))
        assert torch.get_num_threads() == 3
