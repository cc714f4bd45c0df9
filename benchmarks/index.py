"""Build, save, load and search indexes of synthetic vectors, each type in its own processes.

``python benchmarks/index.py [--count N] [--dim D] [--queries Q] [--types Flat,HNSW32,IVF] [--json FILE]``

The vectors are made of ``count / 20`` centres with noise, as the images of one thing lie around each
other; queries are more of the same. Recall@1 is the share of queries whose first answer is as near as the
nearest of all. "build" and "save" are from the vectors to a published index; memory is the peak of the
process (resident set) above what Python and the packages take.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from benchmarks.measurement import machine
from pdserve import console
from pdserve.index import INDEX_TYPES, faiss_index, store
from pdserve.index.entries import Entries
from pdserve.index.faiss_check import faiss
from pdserve.index.publish import Draft, publish
from pdserve.index.search import load
from pdserve.vision.types import Vectors

_CHUNK = 50_000


def make(count: int, dimension: int, path: Path, queries: int) -> Vectors:
    """Write ``count`` unit vectors to a file; return ``queries`` more from around the same centres."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(1, count // 20), dimension), dtype=np.float32)

    def some(n: int) -> Vectors:
        rows = centres[random.integers(0, len(centres), n)]
        rows += 0.4 * random.standard_normal(rows.shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    with path.open("wb") as file:
        for at in range(0, count, _CHUNK):
            some(min(_CHUNK, count - at)).tofile(file)
    return some(queries)


def best_scores(path: Path, queries: Vectors, count: int) -> Vectors:
    """Each query's largest inner product with any vector, without an index."""
    best = np.full(len(queries), -np.inf, np.float32)
    for at in range(0, count, _CHUNK):
        rows = _read(path, queries.shape[1], at, min(_CHUNK, count - at))
        best = np.maximum(best, (queries @ rows.T).max(axis=1))
    return best


def build(kind: Any, path: Path, count: int, dimension: int, folder: Path) -> dict[str, float]:
    """Build and publish; seconds and MB."""
    faiss()
    base = _peak_mb()

    def gather(rows: Sequence[int]) -> Vectors:
        if isinstance(rows, range):
            return _read(path, dimension, rows.start, len(rows))
        everything = np.memmap(path, np.float32, "r", shape=(count, dimension))
        return np.asarray(everything[rows])

    ids = np.arange(count, dtype=np.int64)
    start = time.perf_counter()
    index = faiss_index.build(kind, "IP", dimension, ids, gather)
    built = time.perf_counter()
    labels = {i: f"made/{i // 20}/{i}.jpg\tlabel {i // 20}" for i in range(count)}
    draft = Draft(index, labels, Entries.unknown(labels), None, count, count, "made up")
    labelled = time.perf_counter()
    folder.mkdir()
    publish(folder, draft, None)
    saved = time.perf_counter()
    return {
        "build_s": built - start,
        "save_s": saved - labelled,
        "build_mb": _peak_mb() - base,
        "file_mb": (folder / store.VECTORS).stat().st_size / 1e6,
    }


def search(folder: Path, queries: Vectors, best: Vectors) -> dict[str, float]:
    """Load and search; seconds, milliseconds, queries per second, MB, recall@1."""
    faiss()
    base = _peak_mb()
    start = time.perf_counter()
    index = load(folder)
    loaded = time.perf_counter()
    index.search(queries[:1], 1)
    alone = []
    for query in queries[:100]:
        at = time.perf_counter()
        index.search(query[None], 1)
        alone.append(time.perf_counter() - at)
    at = time.perf_counter()
    found = index.search(queries, 1)
    together = time.perf_counter() - at
    hits = [matches[0].similarity >= score - 1e-5 for matches, score in zip(found, best, strict=True)]
    return {
        "load_s": loaded - start,
        "load_mb": _peak_mb() - base,
        "search_ms": 1e3 * float(np.median(alone)),
        "queries_per_s": len(queries) / together,
        "recall_at_1": float(np.mean(hits)),
    }


def _read(path: Path, dimension: int, start: int, n: int) -> Vectors:
    return np.fromfile(path, np.float32, n * dimension, offset=start * dimension * 4).reshape(n, dimension)


def _peak_mb() -> float:
    """The peak of this process's resident set; NaN where the system does not tell (Windows)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage tells the parent's peak where that was higher
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _alone(function: Any, *arguments: Any) -> dict[str, float]:
    """Run in a new process, so that its peak memory is that of the function."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, float] = pool.apply(function, arguments)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark the index on synthetic vectors.")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--types", default=",".join(INDEX_TYPES))
    parser.add_argument("--json", type=Path, default=Path("benchmark_index.json"))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    where = machine()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors.f32"
        queries = make(given.count, given.dim, path, given.queries)
        best = best_scores(path, queries, given.count)
        for kind in given.types.split(","):
            console.say(f"{kind}: {given.count} × {given.dim}")
            folder = Path(scratch) / kind
            row: dict[str, Any] = {"type": kind, "count": given.count, "dimension": given.dim}
            row |= _alone(build, kind, path, given.count, given.dim, folder)
            row |= _alone(search, folder, queries, best)
            rows.append(row)
            # After each type: a graph of a million takes a while.
            given.json.write_text(
                json.dumps({"cpus": os.cpu_count(), "machine": where, "rows": rows}, indent=1) + "\n",
                "utf-8",
            )
            for left in sorted(folder.rglob("*"), reverse=True):
                left.rmdir() if left.is_dir() else left.unlink()
    shown = [[_short(value) for value in row.values()] for row in rows]
    console.table(list(rows[0]), shown, title=f"{os.cpu_count()} CPUs, {given.queries} queries")


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.0f}"


if __name__ == "__main__":
    main()
