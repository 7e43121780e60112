"""A store equals the files in memory; problems with files are named; a store is built completely or not at all."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webshop_tiny import product, record

from eef.envs import EnvError, make_env
from eef.envs.webshop import WebShop, catalogue, mapped
from eef.envs.webshop.build import _ReplaceNaN, build_store
from eef.envs.webshop.generate import CatalogueSpec, write
from eef.envs.webshop.mapped import Texts, TextWriter
from eef.envs.webshop.store import Store

NAMES = ("items_shuffle", "items_ins_v2", "items_human_ins")


def official_files(folder: Path, triple: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in zip(NAMES, triple, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path, triple: Any) -> Path:
    unusual = [
        product("B000000001", "twice"), product("B1", "bare", images=[]), product("B2", "x", pricing="call us"),
        product("Bé", "red “shirt” ❤️ 日本", pricing="$44.99$33.98"), product("B0", "the of", full_description=""),
    ]  # fmt: skip
    triple[0].extend(unusual)
    triple[1]["B000000002"] |= {"instruction": "another", "instruction_attributes": ["soft"]}
    triple[2].update(B6=[record("gone", ["x"], [])], Bé=[record("a shirt", ["soft"], [])])
    return official_files(tmp_path / "data", triple)


def both(folder: Path, **options: Any) -> tuple[WebShop, WebShop]:
    """The shop of the files in memory, and that of their store."""
    place = folder.parent / "built"
    if not place.exists():
        build_store(folder, place)
    options = {"split": "ratio", "allow_overlap": True} | options
    return WebShop(data=folder, **options), WebShop(data=place, **options)


@pytest.mark.parametrize("options", [{}, {"seed": 5}, {"human_goals": False}])
def test_products_prices_and_goals_are_equal(folder: Path, options: dict[str, Any]) -> None:
    plain, stored = both(folder, **options)
    assert tuple(stored.shop.products) == plain.shop.products
    assert stored.shop.goals == plain.shop.goals and stored.skipped == plain.skipped
    assert stored.product("B000000002") == plain.product("b000000002")
    same = {name: plain.stamp()[name] == stored.stamp()[name] for name in plain.stamp()}
    catalogue = {"catalogue": options.get("seed", 0) == 0}
    assert same == {**catalogue, "goals": True, "split": True, "tagger": True, "pages": True}
    assert {name: plain.state_key()[name] == value for name, value in stored.state_key().items()} == {
        **catalogue, "goals": True, "tagger": True, "observation": True, "show_attrs": True, "seed": True,
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["text", "text_rich"])
def test_random_walks_are_equal(folder: Path, mode: str) -> None:
    plain, stored = both(folder, observation=mode, show_attrs=True)
    words = ["shirt", "red cotton", "wool sock 3", "<r>", "<c> fashion", "<q> socks", "<a> soft", "<a>", "the", "日"]
    rng = random.Random(0)
    for task in range(len(plain.shop.goals)):
        assert plain.reset(str(task)) == stored.reset(str(task))
        for _ in range(60):
            names = plain.available_actions()["clickables"]
            assert names == stored.available_actions()["clickables"]
            action = f"search[{rng.choice(words)}]"
            if names and rng.random() < 0.8:
                action = f"click[{rng.choice(names)}]"
            assert plain.step(action) == stored.step(action)
            assert plain.results() == stored.results()


def equal_hits(plain: WebShop, stored: WebShop, queries: list[str]) -> int:
    """The number of queries with the same hits, order and scores in both, for several limits."""
    one, two = plain.shop._index, stored.shop._index
    return sum(all(one.scored(query, n) == two.scored(query, n) for n in (3, 10, 50)) for query in queries)


@pytest.mark.parametrize("chunk", [1 << 22, 97])
def test_ranking_is_equal(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_CHUNK", chunk)
    size = 1500 if chunk > 97 else 150
    plain, stored = both(write(CatalogueSpec(products=size), tmp_path / "data"))
    queries = [goal.instruction_text for goal in plain.shop.goals]
    queries += [" ".join([*goal.attributes, goal.query]) for goal in plain.shop.goals]
    queries += ["", "the", "shirt", "red", "red red shirt", "size", "color size small", "zzz shirt", "zzz"]
    assert equal_hits(plain, stored, queries) == len(queries)


def test_ranking_of_the_official_products_is_equal(
    official: Path, golden: Callable[[str], Any], tmp_path: Path
) -> None:
    build_store(official / "data", tmp_path / "built")
    plain, stored = WebShop(data=official / "data"), WebShop(data=tmp_path / "built")
    assert stored.stamp() == plain.stamp() and stored.shop.goals == plain.shop.goals
    queries = [row["query"] for row in golden("search.jsonl")]
    assert equal_hits(plain, stored, queries) == len(queries) == 370


@pytest.mark.slow
def test_ranking_of_twenty_thousand_products_is_equal(golden: Callable[[str], Any], tmp_path: Path) -> None:
    plain, stored = both(write(CatalogueSpec(products=20_000), tmp_path / "data"))
    queries = [row["query"] for row in golden("search.jsonl")]
    queries += [goal.instruction_text for goal in plain.shop.goals[:300]]
    queries += [" ".join([*goal.attributes, goal.query]) for goal in plain.shop.goals[:300]]
    assert equal_hits(plain, stored, queries) == len(queries)
    assert stored.stamp() == plain.stamp()


def test_numbers_that_json_forbids_are_treated_as_in_memory(tmp_path: Path, triple: Any) -> None:
    nan, words = float("nan"), 'a text: NaN, and [NaN, "b": Infinity, "c":NaN} x'
    odd = [product("B3", words), product("B4", "x", pricing=nan), product("B5", "x", full_description=nan)]
    odd += [product("B7", "x", sizes={"a": nan}, average_rating=-float("inf"), images=nan)]
    triple[0].extend(odd)
    plain, stored = both(official_files(tmp_path / "data", triple))
    assert stored.skipped == plain.skipped and set(plain.skipped) >= {"unreadable price", "no image"}
    assert tuple(stored.shop.products) == plain.shop.products and stored.product("B3")["title"] == words


def test_forbidden_numbers_may_span_two_reads() -> None:
    text = b'{"a": NaN, "b":-Infinity, "c": "[NaN], \\": NaN, x"}' + b" " * 99
    for size in range(1, 99):
        file = _ReplaceNaN(io.BytesIO(text))
        read = b"".join(iter(lambda file=file, size=size: file.read(size), b""))  # type: ignore[misc]
        assert json.loads(read) == {"a": 0.5, "b": 0.5, "c": '[NaN], ": NaN, x'}


def test_a_store_beside_the_files_is_opened_lazily_and_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_store(folder) == folder / "store"
    assert {path.name for path in folder.iterdir()} == {"store", *(f"{name}.json" for name in NAMES)}
    monkeypatch.setattr(catalogue, "load_catalogue", None)  # reading the files would fail
    env = make_env("webshop", data=folder, split="ratio")
    assert isinstance(env, WebShop) and make_env("webshop", data=folder, split="ratio").shop is env.shop
    assert isinstance(env.shop.products._rows._bytes, mapped.mmap.mmap)
    monkeypatch.undo()
    assert len(WebShop(data=folder, num_products=3, split="ratio").shop.products) == 3  # only the files can rank a part
    with pytest.raises(EnvError, match=r"built contains no items_shuffle"):
        WebShop(data=build_store(folder, folder.parent / "built"), num_products=3)
    assert "B9" not in env.shop.by_asin and "B0123456789ABC" not in env.shop.by_asin and 3 not in env.shop.by_asin
    assert set(env.shop.by_asin) == {item.asin for item in env.shop.products}


def test_large_catalogues_are_stepped_in_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [env.step_threads for env in both(folder)] == [1, 1]
    monkeypatch.setattr("eef.envs.webshop._LARGE", 14)
    assert both(folder)[1].step_threads == (os.cpu_count() or 1)


def test_changed_files_and_damaged_stores_are_named(folder: Path) -> None:
    place = build_store(folder)
    (folder / "items_ins_v2.json").write_text("{}")
    with pytest.raises(
        EnvError, match=r"items_ins_v2.json has changed since .*store was built: run `eef webshop build"
    ):
        WebShop(data=folder)
    build_store(folder)
    WebShop(data=folder, split="ratio")
    for name in ("docs.npy", "products.text", "skipped.json"):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[:-1])
        with pytest.raises(EnvError, match="is damaged .* run `eef webshop build` again"):
            Store(place)
        (place / name).write_bytes(whole)
    (place / "norm.npy").unlink()
    with pytest.raises(EnvError, match="is damaged"):
        Store(place)
    head = json.loads((place / "store.json").read_text())
    (place / "store.json").write_text(json.dumps(head | {"version": 0}))
    with pytest.raises(EnvError, match="has format 0, but this code reads"):
        WebShop(data=place)
    (place / "store.json").write_text("{")
    with pytest.raises(EnvError, match=r"store.json is damaged"):
        WebShop(data=place)


def test_without_human_instructions(folder: Path) -> None:
    (folder / "items_human_ins.json").unlink()
    build_store(folder)
    assert WebShop(data=folder, human_goals=False, split="ratio", allow_overlap=True).shop.goals
    with pytest.raises(EnvError, match=r"built without items_human_ins.json: .* or pass human_goals=False"):
        WebShop(data=folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_named_and_the_old_store_remains(folder: Path, name: str) -> None:
    build_store(folder)
    path = folder / f"{name}.json"
    whole = path.read_text()
    before = sorted(file.name for file in folder.rglob("*"))
    for text, words in (
        (whole[: len(whole) // 2], f"{name}.json is truncated or not valid JSON"),
        (whole[:-1], f"{name}.json is truncated or not valid JSON"),
        ("", f"{name}.json is truncated or not valid JSON"),
        ("3", f"{name}.json: expected a JSON (list|object)"),
        ("{}" if name == NAMES[0] else "[]", f"{name}.json: expected a JSON (list|object)"),
    ):
        path.write_text(text)
        with pytest.raises(EnvError, match=words):
            build_store(folder)
        with pytest.raises(EnvError, match=words):  # also without a store
            catalogue.load_catalogue(folder)
        assert sorted(file.name for file in folder.rglob("*")) == before
    path.write_text(whole)
    build_store(folder)
    assert WebShop(data=folder, split="ratio").shop.goals


def test_files_that_cannot_be_built_are_named(folder: Path, triple: Any) -> None:
    with pytest.raises(EnvError, match="no folder"):
        build_store(folder / "nowhere")
    (folder / "kept").mkdir()
    with pytest.raises(EnvError, match=r"kept exists and is not a store"):
        build_store(folder, folder / "kept")
    official_files(folder, ([product("B1", "x", images=[])], {}, {}))
    with pytest.raises(EnvError, match=r"items_shuffle.json contains no usable product \(1 no image \(B1\)\)"):
        build_store(folder)
    official_files(folder, ([{"name": "x"}], {}, {}))
    with pytest.raises(EnvError, match=r"items_shuffle.json, row 0: a product needs an 'asin'"):
        build_store(folder)
    (folder / "items_ins_v2.json").unlink()
    with pytest.raises(EnvError, match=r"items_ins_v2.json is missing"):
        build_store(folder)
    assert not (folder / "store").exists()


def test_a_file_that_is_too_large_needs_a_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_LARGEST", 100)
    with pytest.raises(EnvError, match=r"too large to be read at once .*: run `eef webshop build .*` once"):
        WebShop(data=folder)


def test_texts(tmp_path: Path) -> None:
    words = [*sorted(f"{n * n}".encode() for n in range(50)), "日".encode()]
    writer = TextWriter(tmp_path, "words")
    for word in words:
        writer.add(word)
    writer.close()
    texts = Texts(tmp_path, "words")
    assert list(texts) == words and [texts.find(word) for word in words] == list(range(51))
    assert texts.find(b"17") == texts.find(b"") == texts.find(b"\xff") == -1
    TextWriter(tmp_path, "none").close()
    assert len(Texts(tmp_path, "none")) == 0 and Texts(tmp_path, "none").find(b"x") == -1


def test_the_arrays_of_a_store_are_read_only(folder: Path) -> None:
    store = Store(build_store(folder))
    with pytest.raises(ValueError, match="read-only"):
        store.index.documents("<c> fashion")[0] = 1
    before = np.load(store.place / "prices.npy")
    Store(store.place, seed=9)  # its prices are a copy
    assert (np.load(store.place / "prices.npy") == before).all()
