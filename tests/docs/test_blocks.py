"""The command blocks of README and docs: each runs as it stands and prints what the page shows, in form."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from tests.docs import world
from tests.docs.blocks import COMMANDS, OTHER, PAGES, ROOT, Block, read
from tests.docs.form import differences, same

BLOCKS = [block for page in PAGES for block in read(page)]
RUN = {block.page: block for block in BLOCKS if block.language in COMMANDS and block.lacking is None}
# The others take longer: only `make check` runs them.
QUICK = ("README.md",)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the blocks are for a POSIX shell"),
    pytest.mark.timeout(600),
]


@cache
def isolation() -> tuple[str, ...]:
    """The command that gives a page's servers the usual ports in a network namespace; empty without one."""
    try:
        done = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    except OSError:
        return ()
    return () if done.returncode else ("unshare", "-rn")


@pytest.fixture
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The usual ports, free for one page at a time."""
    if isolation():
        yield isolation()
        return
    with FileLock(tmp_path_factory.getbasetemp().parent / "usual_ports.lock"):
        import socket

        for port in (18080, 18081, 9993, 9994):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    pytest.skip(f"port {port}, which the page uses, is taken")
        yield ()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands find, made once for all pages and by one of the workers."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, is_whole = base / "made-for-pages", base / "made-for-pages.whole"
    with FileLock(base / "made-for-pages.lock"):
        if not is_whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            world.make(folder)
            is_whole.touch()
    return folder


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page in QUICK else pytest.mark.full) for page in RUN]
)
def test_the_blocks_of_a_page_run_as_they_stand(
    page: str, ports: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    flag = ["--isolated"] if ports else []
    done = subprocess.run(
        [*ports, sys.executable, "-m", "tests.docs.page", page, str(tmp_path), str(made), *flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in COMMANDS and b.lacking], ids=str)
def test_a_block_that_is_not_run_here(block: Block) -> None:
    pytest.skip(block.lacking or "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_language(page: Path) -> None:
    assert all(block.language in (*COMMANDS, *OTHER) for block in read(page)), [
        str(block) for block in read(page) if block.language not in (*COMMANDS, *OTHER)
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ("cat.jpg: tabby, 0.72", "cat.jpg: tabby, 0.9", True),
        ("3 images failed", "2 images sent", False),
        ('{"a": [{"b": 1.5}]}', '{"a": [{"b": 2}, {"b": 3}]}', True),
        ('{"a": [{"b": 1.5}]}', '{"a": [{"c": 2}]}', False),
        ('{"a": {"b": 1}}', '{"a": null}', True),
        ('{"a": 1}', "a: 1", False),
        ("  route   load   images/s", "  route  load  images/s", True),
        ("  v1   8   40.0", "  v1   8   51.0   3", False),
        ("  v1   8   40.0", "  v1   8   many", False),
    ],
)
def test_form(shown: str, printed: str, alike: bool) -> None:
    assert same(shown, printed) is alike


def test_lines_are_compared_in_order_and_left_out_where_the_page_says_so() -> None:
    printed = ["head one", "────", "line two", "", "tail three"]
    assert differences(["head one", "…", "tail three"], printed) == []
    assert differences(["head one", "…"], printed) == []
    assert differences(["head one", "tail three"], printed) == [
        "not printed: tail three",
        "not shown: line two",
        "not shown: tail three",
    ]
    assert differences(['{"a": 1,', '  "b": 2}'], ['{"a": 3, "b": 4}']) == []
