"""The memory-mapped files of a store: texts, and a full-text index that ranks as :class:`~.search.Index` does.

Data is read only when needed, and processes that map the same files share the memory.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from eef.envs.webshop.search import RETURNED, analyze, norms, ranked, rarity

_CHUNK = 1 << 22  # postings sorted at a time: bounds the memory of a build
_MOST = 0xFFFF  # the count of a term in a document is stored in two bytes
_COMMON = 16  # a term in more than one of this many documents has a row of bounds
_GROUP = 64  # values in a group of which only the maximum is compared


class TextWriter:
    """Writes texts one after the other to ``NAME.text``, and their ends to ``NAME.npy`` on :meth:`close`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._ends = folder / f"{name}.npy", array("Q", [0])
        self._file = (folder / f"{name}.text").open("wb")

    def add(self, text: bytes) -> None:
        self._file.write(text)
        self._ends.append(self._ends[-1] + len(text))

    def close(self) -> None:
        self._file.close()
        np.save(self._path, np.frombuffer(self._ends, dtype=np.uint64))


class Texts(Sequence[bytes]):
    """The texts of a :class:`TextWriter`, memory-mapped. ValueError if the file has the wrong size."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ends = memoryview(load_array(folder, name).data)  # a memoryview gives plain integers, which is fast
        path = folder / f"{name}.text"
        if path.stat().st_size != self._ends[-1]:
            raise ValueError(f"{path.name} has the wrong size")
        with open(path, "rb") as file:
            empty = self._ends[-1] == 0  # an empty file cannot be mapped
            self._bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if number < 0:
            raise IndexError(number)
        return self._bytes[self._ends[number] : self._ends[number + 1]]

    def find(self, text: bytes) -> int:
        """The index of ``text`` among sorted texts, or -1."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self[middle] < text else (low, middle)
        return low if low < len(self) and self[low] == text else -1


def load_array(folder: Path, name: str) -> np.ndarray:
    """The array in ``NAME.npy``, memory-mapped and read-only."""
    return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)


class IndexWriter:
    """Builds the files of a :class:`MappedIndex` in ``folder``, document by document.

    Raw postings go to disk in document order; :meth:`finish` sorts them by term, a bounded number at a time. Memory
    holds the terms and a few numbers per term and document.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, int] = {}
        self._frequencies = array("I")  # per term, the number of documents with it
        self._lengths, self._distinct = array("I"), array("I")
        self._terms, self._counts = array("I"), array("H")
        self._raw = [(folder / f"raw.{name}").open("wb") for name in ("terms", "counts")]

    def add(self, document: str, keys: Iterable[str] = ()) -> None:
        """Add a document. ``keys`` are terms that cannot occur in a text; they find the document without a score."""
        self.add_terms(analyze(document), keys)

    def add_terms(self, terms: Sequence[str], keys: Iterable[str] = ()) -> None:
        """Add a document by its index terms, in any order."""
        counted = Counter(terms)
        self._lengths.append(len(terms))
        counted.update(set(keys))
        self._distinct.append(len(counted))
        for term, count in counted.items():
            number = self._ids.setdefault(term, len(self._frequencies))
            if number == len(self._frequencies):
                self._frequencies.append(0)
            self._frequencies[number] += 1
            self._terms.append(number)
            self._counts.append(min(count, _MOST))
        if len(self._terms) > _CHUNK:
            self._flush()

    def _flush(self) -> None:
        for file, values in zip(self._raw, (self._terms, self._counts), strict=True):
            values.tofile(file)
            del values[:]

    def finish(self, rank: np.ndarray) -> None:
        """Write the index. ``rank`` is the rank of each document by name, which breaks ties."""
        self._flush()
        for file in self._raw:
            file.close()
        folder, size = self._folder, len(self._lengths)
        norm = norms(np.array(self._lengths, dtype=np.float64))
        np.save(folder / "norm.npy", norm)
        np.save(folder / "rank.npy", rank.astype(np.uint32))
        place = np.empty(len(self._ids), dtype=np.uint32)  # rank of each term id among the sorted terms
        writer = TextWriter(folder, "terms")
        for number, term in enumerate(sorted(self._ids)):  # the order of code points is that of UTF-8 bytes
            place[self._ids[term]] = number
            writer.add(term.encode("utf-8", "surrogatepass"))
        writer.close()
        starts = np.zeros(len(place) + 1, dtype=np.uint64)
        starts[1 + place.astype(np.int64)] = self._frequencies
        np.cumsum(starts, out=starts)
        np.save(folder / "starts.npy", starts)
        rows = np.full(len(place), -1, dtype=np.int32)  # per term, its row of bounds
        common = np.flatnonzero(np.diff(starts) > size / _COMMON)
        rows[common] = np.arange(len(common))
        np.save(folder / "rows.npy", rows)
        self._sort_postings(place, starts, norm, rows)

    def _sort_postings(self, place: np.ndarray, starts: np.ndarray, norm: np.ndarray, rows: np.ndarray) -> None:
        total, size = max(int(starts[-1]), 1), len(norm)
        docs = self._array("docs", np.uint32, total)
        counts = self._array("counts", np.uint16, total)
        impacts = self._array("impacts", np.uint16, total)
        bounds = self._array("bounds", np.uint8, max(int(rows.max(initial=-1)) + 1, 1), -(-size // _GROUP) * _GROUP)
        weights = np.array([rarity(size, int(count)) for count in np.diff(starts)], dtype=np.float32)
        cursor = starts[:-1].astype(np.int64)
        ends = np.cumsum(np.array(self._distinct, dtype=np.int64))
        raw = [self._folder / f"raw.{name}" for name in ("terms", "counts")]
        with open(raw[0], "rb") as terms_file, open(raw[1], "rb") as counts_file:
            for start in range(0, int(starts[-1]), _CHUNK):
                terms = place[np.fromfile(terms_file, np.uint32, _CHUNK)]
                count = np.fromfile(counts_file, np.uint16, _CHUNK)
                order = np.argsort(terms, kind="stable")  # documents stay in order within a term
                terms, count = terms[order], count[order]
                document = np.searchsorted(ends, start + order, side="right").astype(np.uint32)
                heads = np.flatnonzero(np.r_[True, terms[1:] != terms[:-1]])
                runs = np.diff(np.r_[heads, len(terms)])
                where = np.repeat(cursor[terms[heads]] - heads, runs) + np.arange(len(terms))
                docs[where], counts[where] = document, count
                cursor[terms[heads]] += runs
                part = weights[terms] - weights[terms] / _divisor(count, norm, document)
                impact = 1 + (part / np.float64(_unit(size))).astype(np.uint16)
                common = rows[terms] >= 0
                bounds[rows[terms[common]], document[common]] = impact[common]
                impacts[where[~common]] = impact[~common]
        for values in (docs, counts, impacts, bounds):
            values.flush()
        for path in raw:
            path.unlink()

    def _array(self, name: str, kind: type, *shape: int) -> np.memmap:
        return np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", kind, shape)


def _unit(size: int) -> float:
    """The unit of impacts, in the unit of scores: the impact of a common term is at most 255."""
    return float(rarity(size, size // _COMMON)) / 254


def _divisor(counts: np.ndarray, norm: np.ndarray, documents: np.ndarray) -> np.ndarray:
    return np.float32(1) + counts.astype(np.float32) * norm[documents]


class _Postings:
    """The documents of one query term, ascending, and the contribution of the term to the score of each."""

    def __init__(self, index: MappedIndex, number: int, times: int) -> None:
        part = slice(int(index.starts[number]), int(index.starts[number + 1]))
        self.docs, self.counts, self.impacts = index.docs[part], index.counts[part], index.impacts[part]
        self.weight = rarity(index.size, len(self.docs)) * np.float32(times)
        self.times, self.row = times, int(index.rows[number])

    def parts(self, norm: np.ndarray) -> np.ndarray:
        """What the term adds to the scores of all of its documents."""
        return self.weight - self.weight / _divisor(self.counts, norm, self.docs)

    def at(self, documents: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """What the term adds to the scores of ``documents``; 0 for documents without it."""
        place = np.minimum(np.searchsorted(self.docs, documents), len(self.docs) - 1)
        hit = self.docs[place] == documents
        parts = np.zeros(len(documents))
        divisor = _divisor(self.counts[place[hit]], norm, documents[hit])
        parts[hit] = self.weight - self.weight / divisor
        return parts


class MappedIndex:
    """The index of an :class:`IndexWriter`, with the same hits, order and scores as :class:`~.search.Index`.

    An upper bound of each score, a sum of small integers, is added up for all documents. Only the documents whose bound
    reaches that of the best ``limit`` ones are scored. The bound of a posting (its impact) is stored: for a common term
    as a row with one byte per document, which NumPy adds in one pass, and for any other term beside its postings.

    Several threads may search at once. NumPy does most of the work without Python's global lock.
    """

    def __init__(self, folder: Path) -> None:
        self._terms = Texts(folder, "terms")
        names = ("starts", "docs", "counts", "impacts", "rows", "bounds", "norm", "rank")
        self.starts, self.docs, self.counts, self.impacts, self.rows, self.bounds, self.norm, self.rank = (
            load_array(folder, name) for name in names
        )
        self.size = len(self.norm)
        self._unit = _unit(self.size)
        self._number = lru_cache(maxsize=1 << 16)(self._find)

    def _find(self, term: str) -> int:
        return self._terms.find(term.encode("utf-8", "surrogatepass"))

    def documents(self, key: str) -> np.ndarray:
        """The documents with a term or key, ascending; a read-only mapped array."""
        number = self._number(key)
        return self.docs[:0] if number < 0 else self.docs[int(self.starts[number]) : int(self.starts[number + 1])]

    def search(self, query: str, limit: int = RETURNED) -> list[int]:
        """Indices of at most ``limit`` documents, best first; empty for a query without index terms."""
        return [number for number, _ in self.scored(query, limit)]

    def search_all(self, queries: Sequence[str], limit: int = RETURNED, threads: int | None = None) -> list[list[int]]:
        """:meth:`search` for each query, in ``threads`` threads (default: one for each processor)."""
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            return list(pool.map(lambda query: self.search(query, limit), queries))

    def scored(self, query: str, limit: int = RETURNED) -> list[tuple[int, float]]:
        """As :meth:`search`, with the scores."""
        postings = self.postings(query)
        if not postings:
            return []
        documents = self._candidates(postings, limit)
        total = np.zeros(len(documents))
        for posting in postings:  # in the order of the query, since rounding depends on the order of a sum
            total += posting.at(documents, self.norm)
        documents, total = documents[total != 0], total[total != 0]
        return ranked(documents, total, self.rank, limit)

    def postings(self, query: str) -> list[_Postings]:
        """The postings of the terms of ``query`` that occur in a document, in the order of the query."""
        numbered = ((self._number(term), times) for term, times in Counter(analyze(query)).items())
        return [_Postings(self, number, times) for number, times in numbered if number >= 0]

    def _candidates(self, postings: list[_Postings], limit: int) -> np.ndarray:
        """Documents that include the best ``limit`` ones and their ties, ascending."""
        most = sum(posting.times + float(posting.weight) / self._unit for posting in postings)
        bound = np.zeros(self.bounds.shape[1], dtype=np.uint16 if most < 0xFFFF else np.uint32)
        for posting in postings:
            common = posting.row >= 0
            impacts = self.bounds[posting.row] if common else posting.impacts
            if posting.times > 1 or (not common and bound.dtype != impacts.dtype):
                impacts = np.multiply(impacts, posting.times, dtype=bound.dtype)
            if common:
                np.add(bound, impacts, out=bound)
            else:
                np.add.at(bound, posting.docs, impacts)
        # a bound exceeds a score by less than one unit for each term; one more unit covers the rounding of scores
        slack = 1 + sum(posting.times for posting in postings)
        return _at_least(bound, limit, slack).astype(np.uint32)


def _at_least(bound: np.ndarray, limit: int, slack: int) -> np.ndarray:
    """The places of all values above 0 that are at most ``slack`` below the ``limit`` best ones, ascending.

    The ``limit`` best maxima of groups are a lower bound on the ``limit`` best values, and much faster to find.
    """
    grouped = bound.reshape(_GROUP if len(bound) >= 8 * _GROUP * limit else 1, -1)
    most = grouped.max(axis=0)
    least = int(np.partition(most, len(most) - limit)[len(most) - limit]) if len(most) >= limit else 0
    groups = np.flatnonzero(most >= max(least - slack, 1))
    row, column = np.nonzero(grouped[:, groups] >= max(least - slack, 1))
    return row * len(most) + groups[column]
