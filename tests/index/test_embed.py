"""The cache of what was embedded and not yet published."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pdserve.index.embed import FOLDER, embed_gallery, open_cache
from pdserve.index.gallery import GalleryImage
from pdserve.progress import SILENT
from pdserve.vision.decode import decode
from pdserve.vision.types import Image8, Vectors
from tests.index.galleries import GridEmbedder, clustered, write_gallery

ROWS = clustered(6, 16)
DIGESTS = [bytes([i]) * 32 for i in range(6)]


class _KilledError(Exception):
    pass


def interrupted(folder: Path, embedder: GridEmbedder, count: int) -> None:
    with contextlib.suppress(_KilledError), open_cache(folder, embedder) as cache:
        cache.add(DIGESTS[:count], ROWS[:count])
        raise _KilledError


def files(folder: Path, ending: str) -> list[Path]:
    return sorted((folder / FOLDER).glob(f"*{ending}"))


def test_kept_after_an_error_and_gone_after_success(tmp_path: Path) -> None:
    embedder = GridEmbedder()
    interrupted(tmp_path, embedder, 4)
    with open_cache(tmp_path, embedder) as cache:
        assert list(cache.rows) == DIGESTS[:4]
        cache.add(DIGESTS[4:], ROWS[4:])
        order = [5, 0, 3, 3]
        np.testing.assert_array_equal(cache.gather([DIGESTS[i] for i in order]), ROWS[order])
    assert not files(tmp_path, ".f32")
    with open_cache(tmp_path, embedder) as cache:
        assert not cache.rows
        assert cache.gather([]).shape == (0, 16)


def test_images_decoded_ahead_share_a_bound_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them are ahead: the one that is waited for has room, others wait for theirs."""
    held = []

    class Watching(GridEmbedder):
        def embed(self, images: Sequence[Image8]) -> Vectors:
            held.append(sum(image.nbytes for image in images))
            return super().embed(images)

    images = write_gallery(tmp_path / "gallery", each=6)
    one = len(decode(images[0].read()).tobytes())
    monkeypatch.setattr("pdserve.index.embed.PIXEL_BYTES", 5 * one)
    images[7] = GalleryImage(images[7].image, images[7].label, b"no image")
    with open_cache(tmp_path, Watching()) as cache:
        found, skipped = embed_gallery(images, Watching(batch_size=16), cache, strict=False, progress=SILENT)
    assert (len(found), len(skipped)) == (23, 1)
    assert max(held) == 3 * one  # half of the bound, and the one that passed it


def test_another_embedder_has_its_own(tmp_path: Path) -> None:
    interrupted(tmp_path, GridEmbedder(), 4)
    with open_cache(tmp_path, GridEmbedder(name="other")) as cache:
        assert not cache.rows
    with open_cache(tmp_path, GridEmbedder()) as cache:
        assert len(cache.rows) == 4


@pytest.mark.parametrize(
    ("vectors", "digests", "left"), [(10, 0, 3), (0, 10, 3), (16 * 4 * 2, 0, 2), (0, 96, 1)]
)
def test_half_written_rows_do_not_count(tmp_path: Path, vectors: int, digests: int, left: int) -> None:
    interrupted(tmp_path, GridEmbedder(), 4)
    for ending, cut in ((".f32", vectors), (".sha256", digests)):
        path = files(tmp_path, ending)[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    with open_cache(tmp_path, GridEmbedder()) as cache:
        assert list(cache.rows) == DIGESTS[:left]
        cache.add(DIGESTS[5:], ROWS[5:])
        np.testing.assert_array_equal(cache.gather(DIGESTS[:left]), ROWS[:left])
        np.testing.assert_array_equal(cache.gather(DIGESTS[5:]), ROWS[5:])


def test_rows_of_zeros_after_a_power_cut_are_not_trusted(tmp_path: Path) -> None:
    interrupted(tmp_path, GridEmbedder(), 4)
    path = files(tmp_path, ".f32")[0]
    path.write_bytes(path.read_bytes()[:100].ljust(path.stat().st_size, b"\0"))
    with open_cache(tmp_path, GridEmbedder()) as cache:
        assert not cache.rows
        cache.add(DIGESTS[:1], ROWS[:1])
        np.testing.assert_array_equal(cache.gather(DIGESTS[:1]), ROWS[:1])


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    embedder = GridEmbedder()
    with open_cache(tmp_path, embedder) as one, open_cache(tmp_path, embedder) as two:
        one.add(DIGESTS[:2], ROWS[:2])
        two.add(DIGESTS[2:3], ROWS[2:3])
        assert (len(one.rows), len(two.rows)) == (2, 1)
