from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pdserve.index import faiss_index
from pdserve.index.faiss_check import faiss
from pdserve.index.search import LoadedIndex


def loaded(kind: str) -> LoadedIndex:
    vectors = np.eye(8, dtype=np.float32)
    index = faiss().index_factory(8, f"IDMap2,{kind}", faiss().METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors, np.arange(8))
    labels: Any = {i: f"{i}.png\t{i}" for i in range(8)}
    return LoadedIndex(None, 1, kind, "IP", 8, 8, None, index, labels, ())  # type: ignore[arg-type]


@pytest.mark.gpu
def test_the_same_answers_on_a_gpu() -> None:
    if not faiss_index.has_gpu(0):
        pytest.skip("needs a CUDA GPU and faiss-gpu")
    on_cpu = loaded("Flat")
    on_gpu = on_cpu.on_gpu(0)
    assert on_gpu._index is not on_cpu._index
    queries = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    for mine, theirs in zip(on_gpu.search(queries, 3), on_cpu.search(queries, 3), strict=True):
        assert [m.id for m in mine] == [t.id for t in theirs]


def test_without_a_gpu_the_index_stays_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    if faiss_index.has_gpu(0):
        pytest.skip("there is a GPU")
    index = loaded("Flat")
    with caplog.at_level("INFO"):
        assert index.on_gpu(0) is index
    assert "faiss-gpu" in caplog.text


def test_a_graph_stays_on_the_cpu() -> None:
    index = replace(loaded("HNSW32"), type="HNSW32")
    assert index.on_gpu(0) is index
