"""Search in a store of 1.18 million products with texts as long as the real ones: before and after, in one run.

python experiments/benchmark_search.py                                            # 20,000 documents
python experiments/benchmark_search.py --data FOLDER --copies 1180 --out DIR      # 1.18 million, in minutes

FOLDER has the official files of about 1,000 products (default: generated ones, whose texts are short). The documents
are near-copies of theirs: in each copy a third of the words are drawn anew from all words. Near-copies are the worst
case for bounds on scores. Only the index is written, to DIR, where the next run finds it.

Three ways to score are compared. *Plain* adds up every posting and is the reference for ranks and scores. *Before*
processes terms in descending order of their largest contribution, until no new document can be among the best.
*After* is :class:`eef.envs.webshop.mapped.MappedIndex`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from eef.envs.webshop import WebShop
from eef.envs.webshop.generate import CatalogueSpec, generate
from eef.envs.webshop.mapped import IndexWriter, MappedIndex
from eef.envs.webshop.search import analyze, ranked

Hits = list[tuple[int, float]]
_SAFE = 1 - 1e-6


def write_index(shop: WebShop, folder: Path, copies: int, seed: int = 0) -> None:
    """The index of ``copies`` near-copies of each product. Words are analysed once each, since blanks separate them."""
    rng = np.random.default_rng(seed)
    documents = [product.document().split() for product in shop.shop.products]
    vocabulary = sorted({word for words in documents for word in words})
    number_of = {word: number for number, word in enumerate(vocabulary)}
    rows = [np.array([number_of[word] for word in words]) for words in documents]
    pool = np.concatenate(rows)
    terms_of = [analyze(word) for word in vocabulary]
    writer = IndexWriter(folder)
    for _ in tqdm(range(copies), desc="documents", unit=f"x{len(rows)}", mininterval=5):
        for row in rows:
            words = np.where(rng.random(len(row)) < 1 / 3, rng.choice(pool, len(row)), row)
            writer.add_terms([term for word in words.tolist() for term in terms_of[word]])
    writer.finish(rng.permutation(copies * len(rows)))


class Plain:
    """Every posting of every term is added up."""

    def __init__(self, index: MappedIndex) -> None:
        self.index = index

    def scored(self, query: str, limit: int = 50) -> Hits:
        total = np.zeros(self.index.size)
        for posting in self.index.postings(query):
            total[posting.docs] += posting.parts(self.index.norm)
        documents = np.flatnonzero(total)
        return ranked(documents, total[documents], self.index.rank, limit)


class Before(Plain):
    """Terms in descending order of their largest contribution, then look-ups for the candidates."""

    def __init__(self, index: MappedIndex) -> None:
        super().__init__(index)
        self.spare = np.zeros(index.size)
        self.best: dict[int, float] = {}

    def most(self, posting: Any) -> float:
        """The largest contribution; it used to be stored, so the first search with a term is not to be timed."""
        key = posting.docs.ctypes.data
        if key not in self.best:
            self.best[key] = float((posting.parts(self.index.norm) / posting.weight).max())
        return self.best[key] * posting.weight

    def scored(self, query: str, limit: int = 50) -> Hits:
        postings = self.index.postings(query)
        if not postings:
            return []
        documents = self._candidates(postings, limit)
        total = np.zeros(len(documents))
        for posting in postings:
            total += posting.at(documents, self.index.norm)
        documents, total = documents[total != 0], total[total != 0]
        return ranked(documents, total, self.index.rank, limit)

    def _candidates(self, postings: list[Any], limit: int) -> np.ndarray:
        postings = sorted(postings, key=lambda posting: -self.most(posting))
        left = np.cumsum([0.0, *(self.most(posting) for posting in postings[::-1])])[::-1]
        total, lists, least, done = self.spare, [], 0.0, 0
        while done < len(postings) and left[done] >= least:
            docs = postings[done].docs
            sums = total[docs] + postings[done].parts(self.index.norm)
            total[docs] = sums
            lists.append(docs)
            least = max(least, _least(sums, limit))
            done += 1
        candidates = []
        for docs in lists:
            sums = total[docs]
            keep = (sums > 0) & (sums + left[done] >= least)
            candidates.append((docs[keep], sums[keep]))
            total[docs] = 0.0
        documents, scores = (np.concatenate(arrays) for arrays in zip(*candidates, strict=True))
        for number in range(done, len(postings)):
            scores += postings[number].at(documents, self.index.norm)
            least = max(least, _least(scores, limit))
            keep = scores + left[number + 1] >= least
            documents, scores = documents[keep], scores[keep]
        return documents


def _least(sums: np.ndarray, limit: int) -> float:
    return float(np.partition(sums, len(sums) - limit)[len(sums) - limit]) * _SAFE if len(sums) >= limit else 0.0


def episode_queries(shop: WebShop, count: int, seed: int = 0) -> list[str]:
    """The searches of ``benchmark_webshop.py``: for each of ``count`` goals its instruction, and its attributes."""
    goals = random.Random(seed).sample(shop.shop.goals, min(count, len(shop.shop.goals)))
    return [query for goal in goals for query in (goal.instruction_text, " ".join([*goal.attributes, goal.query]))]


def random_queries(shop: WebShop, count: int, seed: int = 1) -> list[str]:
    """Queries of 1 to 25 words: of one title, of one instruction, or any words of the catalogue; some unknown words."""
    rng = random.Random(seed)
    titles = [product.title.split() for product in shop.shop.products]
    instructions = [goal.instruction_text.split() for goal in shop.shop.goals]
    words = [word for product in shop.shop.products for word in product.document().split()]
    queries = []
    for number in range(count):
        source = [rng.choice(titles), rng.choice(instructions), words][number % 3]
        length = rng.randint(1, 25)
        query = [rng.choice(source) for _ in range(length)] if rng.random() < 0.5 else source[:length]
        if number % 3 == 2:
            query = [rng.choice(words) for _ in range(length)]
        queries.append(" ".join([*query, *(["zzxqy"] if rng.random() < 0.1 else [])]))
    return queries


def measure(name: str, search: Callable[[str], Hits], queries: list[str]) -> None:
    """Prints wall-clock and processor milliseconds of a search, the sum of processor time, and the memory."""
    wall, busy = [], []
    for query in queries:
        begin, cpu = time.perf_counter(), time.process_time()
        search(query)
        wall.append(1000 * (time.perf_counter() - begin))
        busy.append(1000 * (time.process_time() - cpu))
    memory = psutil.Process().memory_info()
    print(f"{name:8}", end="")
    for label, times in (("wall clock", wall), ("processor", busy)):
        cuts = statistics.quantiles(times, n=100)
        print(f"  {label} {cuts[49]:.2f} ms median, {cuts[94]:.2f} ms 95 %, {max(times):.2f} ms maximum;", end="")
    print(f"  {sum(busy) / 1000:.1f} s of processor time; memory {memory.rss / 2**20:.0f} MB, of which mapped files "
          f"{memory.shared / 2**20:.0f} MB", flush=True)  # fmt: skip


def compare_threads(index: MappedIndex, queries: list[str], rounds: int = 30) -> None:
    """Prints the wall-clock time of ``queries`` in one and in two threads, measured in turns, and the ratio of both."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for threads in (1, 2) if number % 2 else (2, 1):
            begin = time.perf_counter()
            index.search_all(queries, threads=threads)
            seconds[threads].append(time.perf_counter() - begin)
    one, two = (statistics.median(times) for times in seconds.values())
    low, middle, high = statistics.quantiles((a / b for a, b in zip(*seconds.values(), strict=True)), n=4)
    print(f"{len(queries)} searches: {one:.3f} s in one thread, {two:.3f} s in two (medians of {rounds} rounds); "
          f"ratio {middle:.2f}, quartiles {low:.2f} and {high:.2f}", flush=True)  # fmt: skip


def recorded_queries(path: Path | None) -> list[str]:
    """The queries of a record such as ``search.jsonl.gz``."""
    if path is None:
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["query"] for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="official files")
    parser.add_argument("--copies", type=int, default=20, help="near-copies of each product (1180: full size)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of indexes (default: a temporary one)")
    parser.add_argument("--goals", type=int, default=250, help="goals whose two searches are timed")
    parser.add_argument("--random", type=int, default=2000, help="random queries whose hits are compared")
    parser.add_argument("--record", metavar="FILE", type=Path, help="also compare the hits of recorded queries")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(args, (args.out or Path(temporary)) / str(args.copies))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Write or reuse the index in ``folder``, time the searches, and compare the hits."""
    data: Any = args.data or generate(CatalogueSpec(products=1000))
    shop = WebShop(data=data, split="ratio", allow_overlap=True)
    if not (folder / "rows.npy").exists():
        begin = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        write_index(shop, folder, args.copies)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"index written in {time.perf_counter() - begin:.0f} s, at most {peak:.0f} MB of memory")
    index = MappedIndex(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{index.size:,} documents, index of {size / 2**20:,.0f} MB")
    queries = episode_queries(shop, args.goals)
    words = statistics.fmean(len(query.split()) for query in queries)
    print(f"{len(queries)} searches of episodes, {words:.1f} words each (mean)")
    before, plain = Before(index), Plain(index)
    for query in queries:  # so that every page is in memory
        before.scored(query)
    measure("before", before.scored, queries)
    for query in queries:
        index.scored(query)
    measure("after", index.scored, queries)
    compare_threads(index, queries[:64])
    compared = recorded_queries(args.record) + random_queries(shop, args.random)
    equal = [index.scored(q) == plain.scored(q) for q in tqdm(compared, desc="comparison", mininterval=10)]
    print(f"hits, order and scores equal to plain scoring: {sum(equal)} of {len(equal)} queries")
    if not all(equal):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
