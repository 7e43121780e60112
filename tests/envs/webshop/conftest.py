"""The recorded behaviour of the official code, if it is available, and a tiny catalogue."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from webshop_tiny import product, record

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder with the data and the record (``golden``) of the official code."""
    folder = Path(os.environ.get("EEF_WEBSHOP_DATA", ROOT.parent / "shared" / "webshop"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no official record at {folder}: set EEF_WEBSHOP_DATA to a folder with data/ and golden/")
    return folder


@pytest.fixture(scope="session")
def golden(official: Path) -> Callable[[str], Any]:
    """``golden("search.jsonl")`` reads one file of the record."""

    def read(name: str) -> Any:
        with gzip.open(official / "golden" / f"{name}.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file] if name.endswith(".jsonl") else json.load(file)

    return read


@pytest.fixture
def triple() -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Fourteen products with unusual options and prices, and seven goals."""
    odd = {"Size": [{"value": "a"}, {"value": "both"}], "Fit": [{"value": "both"}, {"value": "it's <b>"}], "None": None}
    products = [
        product("B000000001", "red cotton shirt"),
        product("B000000002", "blue cotton shirt", pricing="$10.71$18.34", small_description="only one bullet"),
        product("B000000003", "odd linen shirt", customization_options=odd, small_description=[""]),
        product("B000000004", "garden lamp", pricing="", category="garden", query="lamps", full_description=""),
        *[product(f"B00000001{i}", f"plain wool sock {i}", query="socks", pricing="$1,200.50") for i in range(10)],
    ]
    attributes = {row["asin"]: {"attributes": ["soft", "cotton"]} for row in products[:3]}
    instructions = {
        "B000000001": [
            record("i want a soft red shirt..", ["soft"], ["red"]),
            record("a soft shirt", ["soft"], []),
            record("skipped", [], []),
        ],
        "B000000002": [record("a navy shirt, soft and cotton", ["soft", "cotton"], ["navy | white"])],
        "B000000003": [record("a shirt that fits both", ["soft"], ["both"])],
        "B000000004": [record("a lamp", ["garden"], [])],
        "B000000010": [record("a sock", ["wool"], []), record("a small sock", ["wool"], ["small"])],
    }
    return products, attributes, instructions
