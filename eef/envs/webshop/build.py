"""Builds a store from the official files (see :mod:`eef.envs.webshop.store`)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import ijson
import numpy as np
from tqdm import tqdm

from eef.envs import EnvError
from eef.envs.webshop import catalogue as catalogues
from eef.envs.webshop.catalogue import Product, Skipped
from eef.envs.webshop.mapped import IndexWriter, TextWriter
from eef.envs.webshop.store import FIELDS, HEAD, INSTRUCTION, NAME, VERSION

_CUT = 32
_READ = ("attributes", *INSTRUCTION)


def build_store(folder: str | Path, out: str | Path | None = None, progress: bool = False) -> Path:
    """Convert the official files in ``folder`` to a store at ``out`` (default ``folder/store``). Returns its path.

    The files are streamed: memory holds the index terms, the raw attributes and some numbers per product. The store is
    written to a temporary folder and then renamed. Human instructions are optional. EnvError for a missing, truncated
    or unexpected file; products with other problems are skipped and counted in ``skipped.json``.
    """
    folder = Path(folder)
    human = (folder / "items_human_ins.json").is_file()
    paths = catalogues.official_files(folder, human_goals=human)
    place = Path(out) if out else folder / NAME
    if place.exists() and not (place / HEAD).is_file():
        raise EnvError(f"{place} exists and is not a store: move it away, or choose another folder with --out")
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        _write(paths, part, progress)
        part.chmod(0o755)
        if place.exists():
            place.rename(old := part.with_name(f"{part.name}-old"))
            part.rename(place)
            shutil.rmtree(old)
        else:
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def _write(paths: dict[str, Path], part: Path, progress: bool) -> None:
    ins_v2 = _Attributes(paths["ins_v2"])
    human = catalogues.read_json(paths["human_ins"], dict) if "human_ins" in paths else None
    (part / "instructions.json").write_text(json.dumps(human), encoding="utf-8")
    index = IndexWriter(part)
    products, cards = TextWriter(part, "products"), TextWriter(part, "cards")
    asins: list[str] = []
    low, ranged, ranges = array("d"), array("I"), array("d")
    skipped: Skipped = {}
    digest, rng = hashlib.sha256(), random.Random(0)
    with _reading(paths["products"], b"[") as file:
        rows = _counted(ijson.items(file, "item", use_float=True), file, progress)
        for fields, prices in catalogues.drafts(rows, ins_v2, str(paths["products"]), skipped):
            product = Product(price=catalogues.purchase_price(prices, rng), **fields)
            digest.update(product.fingerprint())
            if len(prices) == 2:
                ranged.append(len(asins))
                ranges.extend(prices)
            low.append(prices[0])
            asins.append(product.asin)
            wanted = ins_v2.get(product.asin) or {}
            row = [fields[name] for name in FIELDS] + [wanted.get(name) for name in INSTRUCTION]
            products.add(json.dumps(row).encode())
            cards.add("\0".join((product.asin, product.tag, product.title)).encode("utf-8", "surrogatepass"))
            keys = [f"<c> {product.category}", f"<q> {product.query}", *(f"<a> {a}" for a in product.attributes)]
            index.add(product.document(), keys)
    if not asins:
        reasons = catalogues.summary(skipped) or "it is empty"
        raise EnvError(f"{paths['products']} contains no usable product ({reasons})")
    products.close()
    cards.close()
    order = np.array(sorted(range(len(asins)), key=asins.__getitem__), dtype=np.uint32)
    rank = np.empty(len(asins), dtype=np.uint32)
    rank[order] = np.arange(len(asins), dtype=np.uint32)
    np.save(part / "order.npy", order)
    np.save(part / "asins.npy", np.array([asins[number].encode("utf-8", "surrogatepass") for number in order]))
    np.save(part / "prices.npy", np.array(low))
    np.save(part / "ranged.npy", np.array(ranged, dtype=np.uint32))
    np.save(part / "ranges.npy", np.array(ranges).reshape(-1, 2))
    index.finish(rank)
    (part / "skipped.json").write_text(json.dumps(skipped), encoding="utf-8")
    head = {
        "version": VERSION,
        "source": str(paths["products"]),
        "products": len(asins),
        "catalogue": digest.hexdigest(),  # the hash with the prices of seed 0
        "sources": {path.name: path.stat().st_size for path in paths.values()},
    }
    (part / HEAD).write_text(json.dumps(head, indent=1), encoding="utf-8")


@contextmanager
def _reading(path: Path, opens: bytes) -> Iterator[IO[bytes]]:
    """The file for a streaming parser. EnvError if its content is invalid; ``opens`` is the expected first byte."""
    with open(path, "rb") as file:
        if file.read(4096).lstrip()[:1] not in (opens, b""):
            raise EnvError(f"{path}: expected a JSON {'list' if opens == b'[' else 'object'}")
        file.seek(0)
        try:
            yield _ReplaceNaN(file)  # type: ignore[misc]
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EnvError(f"{path} is truncated or not valid JSON ({reason}): download it again") from None


class _ReplaceNaN:
    """A binary file in which 0.5 replaces the values NaN and Infinity, which Python writes but JSON forbids.

    No field of a product may be a number, so the product is skipped for the same reason as when it is read into memory.
    """

    # within a text the quote is escaped
    _forbidden = re.compile(rb'(?:(?<=[^\\]": )|(?<=[^\\]":))(?:NaN|-?Infinity)(?=\s*[,}])')

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, b""
        self.fileno, self.tell = file.fileno, file.tell

    def read(self, size: int = -1) -> bytes:
        read, data = b" ", self._left
        while read and len(data) <= _CUT:  # an empty result would mean the end of the file
            read = self._file.read(size)
            data += read
        if b"NaN" in data or b"Infinity" in data:
            data = self._forbidden.sub(b"0.5", data)
        end = max(len(data) - _CUT, 1) if read else len(data)  # the rest may be the beginning of such a value
        self._left = data[end:]
        return data[:end]


def _counted(rows: Iterator[Any], file: IO[bytes], progress: bool) -> Iterator[Any]:
    """The rows, with a progress bar over the bytes of the file."""
    size = os.fstat(file.fileno()).st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc="store", mininterval=1, disable=not progress) as bar:
        for number, row in enumerate(rows):
            if number % 500 == 0:
                bar.update(file.tell() - bar.n)
            yield row
        bar.update(size - bar.n)


class _Attributes(Mapping[str, Any]):
    """``items_ins_v2.json`` by asin; each record is stored as bytes, with only the fields that are needed."""

    def __init__(self, path: Path) -> None:
        self._records: dict[str, bytes] = {}
        with _reading(path, b"{") as file:
            for asin, record in ijson.kvitems(file, "", use_float=True):
                if isinstance(record, dict):
                    self._records[asin] = json.dumps({name: record[name] for name in _READ if name in record}).encode()

    def __getitem__(self, asin: str) -> Any:
        return json.loads(self._records[asin])

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
