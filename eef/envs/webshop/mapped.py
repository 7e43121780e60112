"""The memory-mapped files of a store: texts, and a full-text index that ranks as :class:`~.search.Index` does.

Data is read only when needed, and processes that map the same files share the memory.
"""

from __future__ import annotations

import mmap
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from eef.envs.webshop.search import RETURNED, analyze, norms, ranked, rarity

_CHUNK = 1 << 22  # postings sorted at a time: bounds the memory of a build
_MOST = 0xFFFF  # the count of a term in a document is stored in two bytes
_SAFE = 1 - 1e-6  # scores that tie in single precision differ by less than this factor in double precision


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
        terms = analyze(document)
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
        self._sort_postings(place, starts, norm, size)

    def _sort_postings(self, place: np.ndarray, starts: np.ndarray, norm: np.ndarray, size: int) -> None:
        folder, total = self._folder, max(int(starts[-1]), 1)
        docs = np.lib.format.open_memmap(folder / "docs.npy", "w+", np.uint32, (total,))
        counts = np.lib.format.open_memmap(folder / "counts.npy", "w+", np.uint16, (total,))
        best = np.zeros(len(place), dtype=np.float32)
        cursor = starts[:-1].astype(np.int64)
        ends = np.cumsum(np.array(self._distinct, dtype=np.int64))
        with open(folder / "raw.terms", "rb") as terms_file, open(folder / "raw.counts", "rb") as counts_file:
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
                divisor = _divisor(count, norm, document)
                best[terms[heads]] = np.maximum(best[terms[heads]], np.maximum.reduceat(divisor, heads))
        np.save(folder / "best.npy", best)
        docs.flush()
        counts.flush()
        for name in ("terms", "counts"):
            (folder / f"raw.{name}").unlink()


def _divisor(counts: np.ndarray, norm: np.ndarray, documents: np.ndarray) -> np.ndarray:
    return np.float32(1) + counts.astype(np.float32) * norm[documents]


class _Postings:
    """The documents of one query term, ascending, and the contribution of the term to the score of each."""

    def __init__(self, docs: np.ndarray, counts: np.ndarray, weight: np.float32, best: np.float32) -> None:
        self.docs, self._counts, self._weight = docs, counts, weight
        self.most = float(weight - weight / best)

    def parts(self, norm: np.ndarray) -> np.ndarray:
        return self._weight - self._weight / _divisor(self._counts, norm, self.docs)

    def at(self, documents: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """What the term adds to the scores of ``documents``; 0 for documents without it."""
        place = np.minimum(np.searchsorted(self.docs, documents), len(self.docs) - 1)
        hit = self.docs[place] == documents
        parts = np.zeros(len(documents))
        divisor = _divisor(self._counts[place[hit]], norm, documents[hit])
        parts[hit] = self._weight - self._weight / divisor
        return parts


class MappedIndex:
    """The index of an :class:`IndexWriter`, with the same hits, order and scores as :class:`~.search.Index`.

    It scores few documents: terms are processed in descending order of their largest possible contribution. Once the
    remaining terms cannot bring a new document among the best, they are only looked up for the candidates so far.
    """

    def __init__(self, folder: Path) -> None:
        self._terms = Texts(folder, "terms")
        names = ("starts", "docs", "counts", "best", "norm", "rank")
        self._starts, self._docs, self._counts, self._best, self._norm, self._rank = (
            load_array(folder, n) for n in names
        )
        self.size = len(self._norm)
        self._spare: list[np.ndarray] = []  # arrays of zeros, so that a query need not allocate millions of them
        self._number = lru_cache(maxsize=1 << 16)(self._find)

    def _find(self, term: str) -> int:
        return self._terms.find(term.encode("utf-8", "surrogatepass"))

    def documents(self, key: str) -> np.ndarray:
        """The documents with a term or key, ascending; a read-only mapped array."""
        number = self._number(key)
        return self._docs[:0] if number < 0 else self._docs[int(self._starts[number]) : int(self._starts[number + 1])]

    def search(self, query: str, limit: int = RETURNED) -> list[int]:
        """Indices of at most ``limit`` documents, best first; empty for a query without index terms."""
        return [number for number, _ in self.scored(query, limit)]

    def scored(self, query: str, limit: int = RETURNED) -> list[tuple[int, float]]:
        """As :meth:`search`, with the scores."""
        postings = []
        for term, times in Counter(analyze(query)).items():
            number = self._number(term)
            if number >= 0:
                start, end = int(self._starts[number]), int(self._starts[number + 1])
                weight = rarity(self.size, end - start) * np.float32(times)
                postings.append(_Postings(self._docs[start:end], self._counts[start:end], weight, self._best[number]))
        if not postings:
            return []
        documents = self._candidates(postings, limit)
        total = np.zeros(len(documents))
        for posting in postings:  # in the order of the query, since rounding depends on the order of a sum
            total += posting.at(documents, self._norm)
        documents, total = documents[total != 0], total[total != 0]
        return ranked(documents, total, self._rank, limit)

    def _candidates(self, postings: list[_Postings], limit: int) -> np.ndarray:
        """Documents that include the best ``limit`` ones and their ties."""
        postings = sorted(postings, key=lambda posting: -posting.most)
        left = np.cumsum([0.0, *(posting.most for posting in postings[::-1])])[::-1]  # what terms i, i + 1, ... can add
        total = self._spare.pop() if self._spare else np.zeros(self.size)
        lists: list[np.ndarray] = []
        least, done = 0.0, 0
        while done < len(postings) and left[done] >= least:
            docs = postings[done].docs
            sums = total[docs] + postings[done].parts(self._norm)
            total[docs] = sums
            lists.append(docs)
            least = max(least, _least(sums, limit))
            done += 1
        candidates: list[tuple[np.ndarray, np.ndarray]] = []
        for docs in lists:
            sums = total[docs]
            keep = (sums > 0) & (sums + left[done] >= least)
            candidates.append((docs[keep], sums[keep]))
            total[docs] = 0.0  # so that a later list does not add them again
        documents, scores = (np.concatenate(arrays) for arrays in zip(*candidates, strict=True))
        self._spare.append(total)
        for number in range(done, len(postings)):
            scores += postings[number].at(documents, self._norm)
            least = max(least, _least(scores, limit))
            keep = scores + left[number + 1] >= least
            documents, scores = documents[keep], scores[keep]
        return documents


def _least(sums: np.ndarray, limit: int) -> float:
    """A lower bound on the ``limit`` best of these scores; 0 if there are fewer."""
    return float(np.partition(sums, len(sums) - limit)[len(sums) - limit]) * _SAFE if len(sums) >= limit else 0.0
