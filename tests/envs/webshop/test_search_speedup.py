"""The fast index of a store has the hits, order and scores of the plain one, which adds up every posting."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eef.envs.webshop import WebShop, mapped
from eef.envs.webshop.mapped import IndexWriter, MappedIndex
from eef.envs.webshop.search import Index

WORDS = [f"w{number}x" for number in range(400)]


def fast(names: list[str], documents: list[str], folder: Path) -> MappedIndex:
    writer = IndexWriter(folder)
    for document in documents:
        writer.add(document, keys=["<c> key"])
    rank = np.empty(len(names), dtype=np.uint32)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    writer.finish(rank)
    return MappedIndex(folder)


def skewed(rng: random.Random, most: int) -> str:
    """A text of at most ``most`` words, the first of ``WORDS`` far more often than the last."""
    return " ".join(WORDS[int(len(WORDS) * rng.random() ** 3)] for _ in range(rng.randint(0, most)))


word = st.sampled_from(WORDS[:7])
text = st.lists(word, max_size=9).map(" ".join)
query = st.lists(word | st.sampled_from(["absent", "the"]), max_size=12).map(" ".join)


@given(
    documents=st.lists(text, min_size=1, max_size=40),
    queries=st.lists(query, min_size=1, max_size=5),
    limit=st.integers(1, 60),
    reverse=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_small_corpora(documents: list[str], queries: list[str], limit: int, reverse: bool) -> None:
    names = [f"N{number:03d}" for number in range(len(documents))][:: -1 if reverse else 1]
    plain = Index(names, documents)
    with tempfile.TemporaryDirectory() as folder:
        index = fast(names, documents, Path(folder))
        for words in queries:
            hits = index.scored(words, limit)
            assert hits == plain.scored(words, limit)
            assert index.search(words, limit) == [number for number, _ in hits]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, MappedIndex]:
    """Enough documents for maxima of groups, with many equal ones."""
    rng = random.Random(0)
    documents = [skewed(rng, 12) for _ in range(26_000)]
    documents[5000:6000] = [documents[0] + " " + WORDS[1]] * 1000
    names = [f"{rng.random():.9f}" for _ in documents]
    return Index(names, documents), fast(names, documents, tmp_path_factory.mktemp("index"))


def test_two_thousand_random_queries(large: tuple[Index, MappedIndex]) -> None:
    plain, index = large
    rng = random.Random(1)
    queries = [skewed(rng, 20) + rng.choice(["", " absent"]) for _ in range(2000)]
    limits = [rng.choice([1, 7, 50, 50, 50, 300]) for _ in queries]
    equal = [index.scored(q, n) == plain.scored(q, n) for q, n in zip(queries, limits, strict=True)]
    assert sum(equal) == 2000


def test_bounds_of_long_queries_do_not_overflow(large: tuple[Index, MappedIndex]) -> None:
    plain, index = large
    for repeats in (50, 200, 3000):
        for words in (WORDS[:2], [*WORDS[:3], WORDS[-1]], WORDS[-2:]):
            query = " ".join(words * repeats)
            assert index.scored(query) == plain.scored(query)


def test_several_threads_may_search(large: tuple[Index, MappedIndex]) -> None:
    plain, index = large
    rng = random.Random(2)
    queries = [skewed(rng, 15) for _ in range(300)]
    assert index.search_all(queries, threads=4) == [plain.search(query) for query in queries]
    assert index.search_all(queries[:5], limit=3, threads=1) == [plain.search(query, 3) for query in queries[:5]]
    assert index.search_all([]) == []


def test_an_impact_bounds_what_its_posting_adds(large: tuple[Index, MappedIndex]) -> None:
    _, index = large
    kinds = set()
    for word in WORDS[::20]:
        (posting,) = index.postings(word)
        common = posting.row >= 0
        impacts = index.bounds[posting.row][posting.docs] if common else posting.impacts
        excess = impacts * mapped._unit(index.size) - posting.parts(index.norm)
        assert (excess >= 0).all() and (excess <= 1.001 * mapped._unit(index.size)).all()
        kinds.add(common)
    assert kinds == {True, False}


def test_recorded_queries_on_copies_of_the_official_products(
    official: Path, golden: Callable[[str], Any], tmp_path: Path
) -> None:
    shop = WebShop(data=official / "data").shop
    documents = [product.document() for product in shop.products]
    names = [product.asin for product in shop.products]
    plain, index = Index(names, documents), fast(names, documents, tmp_path)
    queries = [row["query"] for row in golden("search.jsonl")]
    words = " ".join(documents).split()
    rng = random.Random(3)
    queries += [" ".join(rng.choices(words, k=rng.randint(1, 25))) for _ in range(400)]
    assert sum(index.scored(query) == plain.scored(query) for query in queries) == len(queries) == 770
