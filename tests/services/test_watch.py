"""The watch of an index: what another program writes over it is said, and the version stays."""

import asyncio
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pdserve.index.edit import append, build
from pdserve.index.search import load
from pdserve.services.telemetry.metrics import Metrics
from pdserve.services.watch import IndexWatch
from tests.index.galleries import GridEmbedder, clustered, write_gallery

faiss = pytest.importorskip("faiss")


def paddleclas_appends(folder: Path) -> None:
    """In place, as PaddleClas's build_gallery.py does it."""
    index = faiss.read_index(str(folder / "vector.index"))
    entries = pickle.loads((folder / "id_map.pkl").read_bytes())
    number = max(entries) + 1
    index.add_with_ids(clustered(1, index.d), np.array([number]))
    entries[number] = "new/x.jpg new"
    faiss.write_index(index, str(folder / "vector.index"))
    (folder / "id_map.pkl").write_bytes(pickle.dumps(entries))


def test_the_watch_goes_on_after_what_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:12], folder, GridEmbedder())
    pipeline: Any = SimpleNamespace(index=load(folder), load_index=lambda: load(folder))
    watch = IndexWatch(pipeline, Metrics(), lambda: None)

    async def until(holds: Callable[[], bool]) -> None:
        for _ in range(3000):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it took more than 30 s")

    def said(what: str) -> bool:
        return any(what in record.getMessage() for record in caplog.records)

    async def run() -> None:
        watch.start()
        good = (folder / "index.json").read_bytes()
        for path, what in (
            (folder / "index.json", "cannot be read"),
            (folder / "vector.index", "not as it was"),
        ):
            before = path.read_bytes()
            path.write_bytes(b"{")
            await until(partial(said, what))
            path.write_bytes(before)
        assert (folder / "index.json").read_bytes() == good
        append(images, folder, GridEmbedder())
        await until(lambda: watch.loaded.count == 20)
        await watch.close()

    asyncio.run(run())


def test_files_overwritten_in_place_are_said_once_and_the_version_is_served_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, folder = write_gallery(tmp_path / "gallery"), tmp_path / "index"
    build(images[:12], folder, GridEmbedder())
    pipeline: Any = SimpleNamespace(index=load(folder), load_index=lambda: load(folder))
    watch = IndexWatch(pipeline, Metrics(), lambda: None)

    async def look(times: int) -> None:
        for _ in range(times):
            await watch.refresh()

    asyncio.run(look(2))
    assert not caplog.records
    paddleclas_appends(folder)
    asyncio.run(look(3))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1, said
    assert said[0].startswith("the new index is not used, version 1 stays: ")
    assert "vector.index is not as it was published" in said[0]
    assert "delete index.json if another program changed the index on purpose" in said[0]
    assert (watch.loaded.version, watch.loaded.count) == (1, 12)
    (folder / "index.json").unlink()
    asyncio.run(look(1))
    assert (watch.loaded.version, watch.loaded.count) == (0, 13)
    append(images, folder, GridEmbedder())
    asyncio.run(look(1))
    assert (watch.loaded.version, watch.loaded.count) == (2, 21)
