"""Each file operation of convert, alias, fetch and index publishing fails once, one run for each.

After a failure: one clear error, what was there before as a whole, or what is new where the work was done
already; nothing lies about that the next run does not sweep; and the next run succeeds.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pdserve.convert import convert, patch_aliases
from pdserve.errors import PdserveError
from pdserve.index.edit import append, build, remove
from pdserve.index.gallery import GalleryImage
from pdserve.index.search import load
from pdserve.index.verify import verify
from pdserve.models.catalog import Entry
from pdserve.models.download import Policy
from pdserve.models.fetch import fetch
from pdserve.models.home import Home
from tests.failing_files import BROKEN, FORBIDDEN, FULL, failing
from tests.file_server import serve
from tests.index.galleries import GridEmbedder, write_gallery
from tests.models.test_archive import member, tar
from tests.tiny import build_inference_model

EMBEDDER = GridEmbedder()

CODES = (FULL, BROKEN, FORBIDDEN)  # one for each work: all with each take minutes, and differ little
WORKS = ("convert", "convert again", "alias", "fetch", "fetch again", "folder", "build", "append", "remove")


@dataclass(frozen=True)
class Work:
    """``prepare`` makes what was there before in an empty folder, ``run`` changes it, ``state`` reads it.

    ``check`` sees that all is whole after a run that succeeds.
    """

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    state: Callable[[Path], object]
    check: Callable[[Path], object] = bool


def tree(folder: Path) -> dict[str, bytes]:
    """The files in a folder, but for locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in path.name
    }


def left(folder: Path) -> list[str]:
    """What lies about under temporary names."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".part"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny_infer"
    folder.mkdir()
    build_inference_model(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[GalleryImage]:
    return write_gallery(tmp_path_factory.mktemp("gallery"))[:3]


@pytest.fixture(scope="module")
def archive_url(model: Path) -> Iterator[str]:
    content = tar([member(f"tiny_infer/{path.name}", path.read_bytes()) for path in sorted(model.iterdir())])
    with serve() as server:
        yield server.put("/tiny_infer.tar", content)


def converting(model: Path, before: bool) -> Work:
    def write(folder: Path, alias: str) -> None:
        convert(model, folder / "server", folder / "client", fetch_aliases={"fetch_name_0": alias})

    return Work(
        lambda folder: write(folder, "before") if before else None,
        lambda folder: write(folder, "after"),
        tree,
    )


def aliasing(model: Path) -> Work:
    return Work(
        lambda folder: convert(model, folder / "server", folder / "client"),
        lambda folder: patch_aliases([folder / "server", folder / "client"], {"x": "new"}, {}),
        tree,
    )


def fetching(source: str | Entry, before: bool) -> Work:
    def run(folder: Path, force: bool) -> None:
        policy = Policy(attempts=3, pause=0.01, read_timeout=5)
        fetch(source, Home(folder), force=force, environ={}, policy=policy)

    def state(folder: Path) -> object:
        found = tree(folder / "models") if (folder / "models").exists() else {}
        return {name: data for name, data in found.items() if not name.endswith("fetch.json")}

    return Work(
        lambda folder: run(folder, False) if before else None, lambda folder: run(folder, before), state
    )


def publishing(images: list[GalleryImage], change: str) -> Work:
    def run(folder: Path) -> None:
        if change == "build":
            build(images, folder / "index", EMBEDDER)
        elif change == "append":
            append(images, folder / "index", EMBEDDER)
        else:
            remove(folder / "index", ids=[0])

    def state(folder: Path) -> object:
        if not (folder / "index" / "index.json").exists():
            return None
        loaded = load(folder / "index")
        return loaded.version, loaded.count

    def prepare(folder: Path) -> None:
        build(images[:2], folder / "index", EMBEDDER)

    def check(folder: Path) -> None:
        assert all(finding.good for finding in verify(folder / "index"))

    return Work(prepare, run, state, check)


def every_failure(work: Work, scratch: Path, code: int) -> int:
    """Fail each operation in turn; how many there are."""

    def prepared() -> object:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        work.prepare(folder)
        return work.state(folder)

    folder = scratch / "folder"
    prepared()
    work.run(folder)
    done = work.state(folder)
    for number in range(1, 2000):
        before = prepared()
        error: PdserveError | None = None
        with failing(folder, number, code) as failed:
            try:
                work.run(folder)
            except PdserveError as raised:
                error = raised
        if not failed.failed:
            assert error is None
            assert left(folder) == []
            return number - 1
        what = f"operation {number}, {failed.failed}, error {code}"
        assert work.state(folder) == (before if error else done), f"{what}: {error}"
        if error:
            assert "\n" not in error.message, what
            work.run(folder)
            assert work.state(folder) == done, what
        assert left(folder) == [], what
        work.check(folder)
    raise AssertionError("there is no end of operations")


@pytest.mark.full
@pytest.mark.posix
@pytest.mark.parametrize(("what", "code"), [(each, CODES[i % 3]) for i, each in enumerate(WORKS)])
def test_every_operation_may_fail(
    tmp_path: Path, model: Path, images: list[GalleryImage], archive_url: str, what: str, code: int
) -> None:
    again = what.endswith("again")
    if what.startswith("convert"):
        work = converting(model, again)
    elif what == "alias":
        work = aliasing(model)
    elif what == "folder":
        work = fetching(str(model), before=False)
    elif what.startswith("fetch"):
        work = fetching(archive_url, again)
    else:
        work = publishing(images, what)
    assert every_failure(work, tmp_path, code) > 10
