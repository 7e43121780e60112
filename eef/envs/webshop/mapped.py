"""What a store keeps in mapped files: texts, and a full-text index that ranks as :class:`~.search.Index` does.

Nothing is read before it is asked for, and processes that map the same files share their pages.
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

_CHUNK = 1 << 22  # postings put in place at a time: bounds the memory of a build
_MOST = 0xFFFF  # counts of a term in a document are kept in two bytes
_SAFE = 1 - 1e-6  # a bound on scores summed in another order, in double; ties in single stay above it


class TextWriter:
    """Texts, one after the other, into ``NAME.text`` with their ends in ``NAME.npy``. Close it to have them whole."""

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
    """The texts of a :class:`TextWriter`, mapped. ValueError where the file is shorter than it should be."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ends = memoryview(load(folder, name).data)  # whose items are plain integers, and quick
        path = folder / f"{name}.text"
        if path.stat().st_size != self._ends[-1]:
            raise ValueError(f"{path.name} has another size than its ends say")
        with open(path, "rb") as file:
            empty = self._ends[-1] == 0  # which cannot be mapped
            self._bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if number < 0:
            raise IndexError(number)
        return self._bytes[self._ends[number] : self._ends[number + 1]]

    def find(self, text: bytes) -> int:
        """The number of ``text`` among sorted texts, -1 where it is not."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self[middle] < text else (low, middle)
        return low if low < len(self) and self[low] == text else -1


def load(folder: Path, name: str) -> np.ndarray:
    """An array of ``NAME.npy``, mapped read-only."""
    return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)


class IndexWriter:
    """Builds the files of a :class:`MappedIndex` in ``folder``, document by document.

    Raw postings go to disk in document order; :meth:`finish` sorts them by term, a bounded number at a time. In memory
    stay the terms and a few numbers for each term and document.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, int] = {}
        self._held = array("I")  # per term, the number of documents that hold it
        self._lengths, self._distinct = array("I"), array("I")
        self._terms, self._counts = array("I"), array("H")
        self._raw = [(folder / f"raw.{name}").open("wb") for name in ("terms", "counts")]

    def add(self, document: str, keys: Iterable[str] = ()) -> None:
        """The next document; ``keys`` are terms that cannot occur in a text and find it without a score."""
        terms = analyze(document)
        counted = Counter(terms)
        self._lengths.append(len(terms))
        counted.update(set(keys))
        self._distinct.append(len(counted))
        for term, count in counted.items():
            number = self._ids.setdefault(term, len(self._held))
            if number == len(self._held):
                self._held.append(0)
            self._held[number] += 1
            self._terms.append(number)
            self._counts.append(min(count, _MOST))
        if len(self._terms) > _CHUNK:
            self._flush()

    def _flush(self) -> None:
        for file, values in zip(self._raw, (self._terms, self._counts), strict=True):
            values.tofile(file)
            del values[:]

    def finish(self, rank: np.ndarray) -> None:
        """Write the index; ``rank`` is the place of each document by name, which breaks ties."""
        self._flush()
        for file in self._raw:
            file.close()
        folder, size = self._folder, len(self._lengths)
        norm = norms(np.array(self._lengths, dtype=np.float64))
        np.save(folder / "norm.npy", norm)
        np.save(folder / "rank.npy", rank.astype(np.uint32))
        place = np.empty(len(self._ids), dtype=np.uint32)  # of each term id among the sorted terms
        writer = TextWriter(folder, "terms")
        for number, term in enumerate(sorted(self._ids)):  # by code points, which is by bytes of UTF-8
            place[self._ids[term]] = number
            writer.add(term.encode("utf-8", "surrogatepass"))
        writer.close()
        starts = np.zeros(len(place) + 1, dtype=np.uint64)
        starts[1 + place.astype(np.int64)] = self._held
        np.cumsum(starts, out=starts)
        np.save(folder / "starts.npy", starts)
        self._place(place, starts, norm, size)

    def _place(self, place: np.ndarray, starts: np.ndarray, norm: np.ndarray, size: int) -> None:
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
    """The documents of one term of a query, ascending, and what the term adds to the score of each."""

    def __init__(self, docs: np.ndarray, counts: np.ndarray, weight: np.float32, best: np.float32) -> None:
        self.docs, self._counts, self._weight = docs, counts, weight
        self.most = float(weight - weight / best)

    def parts(self, norm: np.ndarray) -> np.ndarray:
        return self._weight - self._weight / _divisor(self._counts, norm, self.docs)

    def at(self, found: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """What the term adds to the documents ``found``: 0 where it does not occur."""
        place = np.minimum(np.searchsorted(self.docs, found), len(self.docs) - 1)
        hit = self.docs[place] == found
        parts = np.zeros(len(found))
        divisor = _divisor(self._counts[place[hit]], norm, found[hit])
        parts[hit] = self._weight - self._weight / divisor
        return parts


class MappedIndex:
    """The index of an :class:`IndexWriter`: the same hits, order and scores as :class:`~.search.Index`.

    It scores no more documents than it must: terms are taken by the most that they can add, and once those left could
    not lift a new document among the best, they are looked up only for the documents found so far.
    """

    def __init__(self, folder: Path) -> None:
        self._terms = Texts(folder, "terms")
        names = ("starts", "docs", "counts", "best", "norm", "rank")
        self._starts, self._docs, self._counts, self._best, self._norm, self._rank = (load(folder, n) for n in names)
        self.size = len(self._norm)
        self._spare: list[np.ndarray] = []  # sums of zeros, so that a query need not clear millions of them
        self._number = lru_cache(maxsize=1 << 16)(self._find)

    def _find(self, term: str) -> int:
        return self._terms.find(term.encode("utf-8", "surrogatepass"))

    def documents(self, key: str) -> np.ndarray:
        """The documents that hold a term or key, ascending; mapped, not to be changed."""
        number = self._number(key)
        return self._docs[:0] if number < 0 else self._docs[int(self._starts[number]) : int(self._starts[number + 1])]

    def search(self, query: str, limit: int = RETURNED) -> list[int]:
        """Numbers of the best documents, best first, at most ``limit``; none for a query without index terms."""
        return [number for number, _ in self.scored(query, limit)]

    def scored(self, query: str, limit: int = RETURNED) -> list[tuple[int, float]]:
        """As :meth:`search`, each with its score."""
        postings = []
        for term, times in Counter(analyze(query)).items():
            number = self._number(term)
            if number >= 0:
                start, end = int(self._starts[number]), int(self._starts[number + 1])
                weight = rarity(self.size, end - start) * np.float32(times)
                postings.append(_Postings(self._docs[start:end], self._counts[start:end], weight, self._best[number]))
        if not postings:
            return []
        found = self._candidates(postings, limit)
        total = np.zeros(len(found))
        for one in postings:  # again in the order of the query: sums in another order round differently
            total += one.at(found, self._norm)
        found, total = found[total != 0], total[total != 0]
        return ranked(found, total, self._rank, limit)

    def _candidates(self, postings: list[_Postings], limit: int) -> np.ndarray:
        """Documents among which the best ``limit`` are, ties included."""
        postings = sorted(postings, key=lambda one: -one.most)
        left = np.cumsum([0.0, *(one.most for one in postings[::-1])])[::-1]  # what term i and later ones can add
        total = self._spare.pop() if self._spare else np.zeros(self.size)
        taken: list[np.ndarray] = []
        least, done = 0.0, 0
        while done < len(postings) and left[done] >= least:
            docs = postings[done].docs
            sums = total[docs] + postings[done].parts(self._norm)
            total[docs] = sums
            taken.append(docs)
            least = max(least, _least(sums, limit))
            done += 1
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for docs in taken:
            sums = total[docs]
            keep = (sums > 0) & (sums + left[done] >= least)
            kept.append((docs[keep], sums[keep]))
            total[docs] = 0.0  # so that a later list does not bring them again
        found, value = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
        self._spare.append(total)
        for number in range(done, len(postings)):
            value += postings[number].at(found, self._norm)
            least = max(least, _least(value, limit))
            keep = value + left[number + 1] >= least
            found, value = found[keep], value[keep]
        return found


def _least(sums: np.ndarray, limit: int) -> float:
    """What the best ``limit`` of these have at least."""
    return float(np.partition(sums, len(sums) - limit)[len(sums) - limit]) * _SAFE if len(sums) >= limit else 0.0
