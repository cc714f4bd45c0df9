"""Shared fixtures: reference values, the mirror's archives where they are, a tiny model, real servers."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.running import Server, start
from tests.tiny import build_serving_model

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"

# A shell that starts the tests in the background has them, and all that they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    # What needs the mirror, a GPU, Paddle Serving or PaddleX is no part of the quick tests, even where it is.
    needs = {mark.name for mark in item.iter_markers()} | set(getattr(item, "fixturenames", ()))
    if needs & {"mirror", "gpu", "paddle_serving", "paddle_serving_python", "paddlex"}:
        item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session", autouse=True)
def home_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PDSERVE_HOME for what runs in this process, so that no test finds the servers of the person here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PDSERVE_HOME", str(tmp_path_factory.mktemp("home-of-the-tests")))
        yield Path(os.environ["PDSERVE_HOME"])


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> Iterator[None]:
    """No test loses power: what this process writes need not reach the disk, some ms for each file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what is no open file, too
        yield


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder in the layout of the public model host, or a skip that says how to bring one."""
    shared = Path(os.environ.get("PDSERVE_TEST_SHARED", Path(__file__).parents[2] / "shared"))
    if not (shared / "mirror").is_dir():
        pytest.skip("needs the mirror of the model host; set PDSERVE_TEST_SHARED to the folder that holds it")
    return shared / "mirror"


@pytest.fixture(scope="session")
def paddlex_python() -> str:
    """A Python that has PaddleX 3.7.2 with Paddle and faiss, or a skip that says how to bring one."""
    wanted = os.environ.get("PDSERVE_PADDLEX_PYTHON")
    if not wanted:
        pytest.skip(
            "needs PaddleX: `pip install 'paddlex[base]==3.7.2' paddlepaddle faiss-cpu` into an environment "
            "of its own, whose Python PDSERVE_PADDLEX_PYTHON names"
        )
    return wanted


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PDSERVE_HOME that holds the tiny classifier, converted."""
    home = tmp_path_factory.mktemp("home")
    build_serving_model(home / "models")
    return home


@pytest.fixture(scope="session")
def tiny_server(tiny_home: Path) -> Iterator[Server]:
    """The real ``pdserve serve classification`` with the tiny classifier, for tests that leave it as is."""
    with start(tiny_home, "--model", "tiny", "--max-images", "4") as server:
        yield server


@pytest.fixture
def serving(tiny_home: Path) -> Iterator[Callable[..., Server]]:
    """Start servers with options of the test's own; they stop when it ends."""
    with ExitStack() as stack:
        yield lambda *options, **environ: stack.enter_context(start(tiny_home, *options, **environ))
