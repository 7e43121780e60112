"""Two processes and one, on a CPU: the same training and the same trajectories."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from eef import trajectory
from eef.agents.journal import Journal
from eef.agents.policy import Policy, load_chat
from eef.agents.rollout import Start, simulate
from eef.agents.simulation import Simulation, run_simulations, simulate_together
from eef.envs import Step, TextEnv, make_env
from eef.envs.webshop import WebShop
from eef.experts import demonstrations, expert_trajectories
from eef.files import write_json
from eef.models.pretrain import make_model, save
from eef.selection import Example
from eef.settings import ActingSettings, ModelSettings, Settings
from eef.training.stages import _process_error, run_job, run_job_distributed
from eef.trajectory import Trajectory, Turn


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    return str(
        save(make_model(tokenizer, 32, 1, 2), tokenizer, folder, {"aliases": "webshop", "constrained_decoding": True})
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_two_processes_train_like_one(kind: str, base: str, shop, tmp_path) -> None:
    """The number of rows is not a multiple of batch size or processes. Equal up to the order of float32 sums."""
    examples = [Example(t, 0) for t in demonstrations(shop, shop.tasks("train")) if t.won][:13]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    settings = {"epochs": 2, "lr": 1e-3, "batch_size": 4, "seed": 0, "work": str(tmp_path / "work")}
    new = {"seed": 0, "r": 4, "alpha": 8}
    data: list = examples
    if kind == "sft":
        trajectory.save((e.trajectory for e in examples), two / "examples.jsonl")
        write_json(two / "learn_from.json", {"learn_from": [e.learn_from for e in examples]})
    else:
        wins = [example.trajectory for example in examples]
        data = [(w, Trajectory(w.task, w.prompt, (*w.turns[:1], Turn("click[buy now]", "")))) for w in wins]
        trajectory.save((t for pair in data for t in pair), two / "pairs.jsonl")
        settings["beta"] = 0.1
    job = {"kind": kind, "policy": {"model": base}, "new_adapter": new, "settings": settings}
    steps: list[int] = []
    expected = run_job(job, data, one)
    report = run_job_distributed(job, two, 2, lambda step, *_: steps.append(step))
    assert steps == list(range(1, 9)), "8 updates of 4 rows, the last of each epoch smaller"
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])
    assert max(weight.abs().max() for name, weight in weights[0].items() if "lora_B" in name) > 1e-3
    for ours, theirs in zip(report.pop("losses"), expected.pop("losses"), strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert report == expected
    inputs = {"examples.jsonl", "learn_from.json"} if kind == "sft" else {"pairs.jsonl"}
    assert {path.name for path in two.iterdir()} - {path.name for path in one.iterdir()} == inputs


@pytest.mark.slow
def test_two_processes_resume_from_a_checkpoint_to_equal_weights(base: str, shop, tmp_path) -> None:
    """The last batch of an epoch is not a multiple of the number of processes."""
    wins = [t for t in demonstrations(shop, shop.tasks("train")) if t.won][:13]
    results = {}
    for name, stopped in (("whole", False), ("stopped", True)):
        folder = tmp_path / name
        trajectory.save(wins, folder / "examples.jsonl")
        write_json(folder / "learn_from.json", {"learn_from": [0] * len(wins)})
        settings = {"epochs": 40, "lr": 1e-3, "batch_size": 4, "seed": 0, "work": str(tmp_path / f"{name}.work")}
        settings["checkpoint_minutes"] = 0.0 if stopped else 10.0
        job = {"kind": "sft", "policy": {"model": base}, "new_adapter": {"seed": 0, "r": 4}, "settings": settings}
        seen: list[int] = []

        def on_step(step: int, steps: int, row: dict, seen=seen) -> None:
            seen.append(step)
            if step == 18:
                raise KeyboardInterrupt

        if stopped:
            with pytest.raises(KeyboardInterrupt):
                run_job_distributed(job, folder, 2, on_step)
        seen.clear()
        report = run_job_distributed(job, folder, 2, lambda step, *_, seen=seen: seen.append(step))
        results[name] = (folder / "adapter_model.safetensors").read_bytes(), report
        assert seen[-1] == 160 and (seen[0] > 1) == stopped
    assert results["whole"] == results["stopped"]


@pytest.mark.slow
def test_a_failing_process_says_why(base: str, tmp_path) -> None:
    trajectory.save([Trajectory("0", "word", (Turn("click[buy now]", ""),))], tmp_path / "examples.jsonl")
    write_json(tmp_path / "learn_from.json", {"learn_from": [0]})
    job = {"kind": "sft", "policy": {"model": base}, "new_adapter": None, "settings": {"epochs": 1, "lr": 1e-3}}
    job["settings"] |= {"batch_size": 3, "seed": 0}
    with pytest.raises(RuntimeError, match="2 processes failed: ValueError: batch_size 3 cannot be shared by 2"):
        run_job_distributed(job, tmp_path, 2)


def test_the_error_of_a_failed_process_is_its_cause() -> None:
    lost = "[rank0]: RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"
    nccl = "[rank0]: torch.distributed.DistBackendError: NCCL error in: ../NCCLUtils.hpp:268, unhandled system error"
    late = "[rank0]: RuntimeError: Timed out waiting 1800000ms for recv operation to complete"
    launcher = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    cause = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    for line in (lost, nccl, late):
        for log in ([line, f"[rank1]: torch.{cause}", launcher], [f"[rank1]: torch.{cause}", line, launcher]):
            assert _process_error("\n".join(["Traceback", *log])) == cause
    assert _process_error(f"{lost}\n{launcher}").endswith("Connection closed by peer [127.0.0.1]:5")
    assert _process_error("one\ntwo\nKilled\n") == "one; two; Killed"


def starts_of(shop: TextEnv) -> list[Start]:
    experts = [t for t in expert_trajectories(shop, "strong", shop.tasks("train"), 0) if t.failed and len(t) > 2][:2]
    tasks = shop.tasks("test")[:3]
    return [
        *(Start(task, sample=s) for task in tasks for s in (0, 1)),
        *(Start(e.task, e, i) for e in experts for i in (1, 2)),
    ]


@pytest.mark.parametrize("from_make_env", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_workers_simulate_what_one_process_does(from_make_env: bool, base: str, shop) -> None:
    """An environment that is pickled, and one that each worker creates."""
    options = {"catalogue": {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}}
    env = make_env("webshop", max_steps=15, **options) if from_make_env else shop
    starts, progress = starts_of(env), []
    starts += [starts[0], starts[-1]]  # equal starts, in the parts of different workers
    how = {"seed": 3, "temperature": 1.0, "slots": 4}
    expected = simulate(Policy.load(base), env, starts, **how)
    played = simulate_together({"model": base}, env, starts, 2, on_progress=lambda *more: progress.append(more), **how)
    assert played == expected and len({tuple(t.actions) for t in played}) > 6
    assert [sum(column) for column in zip(*progress, strict=True)] == [
        len(starts), sum(t.won for t in played), sum(t.info["tokens"] for t in played)
    ]  # fmt: skip
    streams = [(t.task, t.prefix, tuple(t.actions[t.prefix :])) for t in (played[0], played[-2])]
    assert streams[0] != streams[1], "equal starts have different streams"


@pytest.mark.slow
def test_a_killed_simulation_in_two_processes_plays_the_other_episodes_alone(base: str, shop, tmp_path) -> None:
    settings, starts = Settings(model=base, slots=2), starts_of(shop)
    inputs = Simulation(
        shop, settings.group(ModelSettings), load_chat(base), settings.group(ActingSettings), None, starts, 1.0, 3,
        processes=2,
    )  # fmt: skip
    seen: list[tuple] = []

    def killed(*counts: int) -> None:
        seen.append(counts)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_simulations(inputs, tmp_path, killed, journal=tmp_path / "episodes.jsonl")
    saved = Journal.open(tmp_path / "episodes.jsonl").episodes
    assert 3 <= len(saved) < len(starts)
    turns: list[tuple] = []
    played = run_simulations(
        inputs, tmp_path, lambda *_: None, lambda *counts: turns.append(counts), tmp_path / "episodes.jsonl"
    )
    assert played == simulate(Policy.load(base), shop, starts, seed=3, temperature=1.0, slots=4)
    rest = [len(item) - item.prefix for number, item in enumerate(played) if number not in saved]
    assert sum(count for count, _ in turns) == sum(rest), "saved episodes are not played again"


@pytest.mark.slow
def test_a_worker_that_fails_is_an_error_and_fewer_starts_take_fewer_workers(base: str, shop) -> None:
    with pytest.raises(RuntimeError, match="rollout worker 0 of 1: ValueError: dtype='half'"):
        simulate_together({"model": base, "dtype": "half"}, shop, [Start(shop.tasks("test")[0])], 2)


class Faulty(WebShop):
    """A shop whose step raises an error that is no EnvError."""

    def step(self, action: str) -> Step:
        raise KeyError("< prev")


@pytest.mark.slow
def test_an_error_of_the_environments_own_code_is_shown_by_a_worker(base: str, shop) -> None:
    env, task = Faulty.__new__(Faulty), shop.tasks("test")[0]
    vars(env).update({name: value for name, value in vars(shop).items() if name != "make_env_arguments"})
    says = rf"rollout worker 0 of 1: ProtocolError: Faulty.step\('.*'\) on task '{task}' raised KeyError: '< prev' "
    with pytest.raises(RuntimeError, match=says + r"\(test_simulation.py, line \d+\): return Step\(..., valid=False"):
        simulate_together({"model": base}, env, [Start(task)], 2)


def test_an_environment_that_cannot_be_pickled_is_refused(base: str) -> None:
    class Local:
        def state_key(self) -> dict[str, str]:
            return {}

    with pytest.raises(ValueError, match="processes=2: the environment cannot be sent to another process"):
        simulate_together({"model": base}, Local(), [Start("0")], 2)


def test_more_processes_than_gpus_are_refused(monkeypatch, shop, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="processes=2, but there are 1 GPUs"):
        simulate_together({}, shop, [], 2)
    with pytest.raises(ValueError, match="processes=2, but there are 1 GPUs"):
        run_job_distributed({}, tmp_path, 2)
