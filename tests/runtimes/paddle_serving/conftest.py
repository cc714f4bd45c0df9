"""A stand-in for the interpreter, for every test; the real one, for those that have it."""

import os
import sys
from pathlib import Path

import pytest

from pdserve.models.home import Home
from pdserve.runtimes.paddle_serving.interpreter import FAISS, NEEDED, RUNTIME, VARIABLE, query

FAKE = Path(__file__).with_name("fake_python.py")


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """A program that can be given for --python."""
    if sys.platform != "linux":
        pytest.skip("Paddle Serving runs on Linux only")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n', "utf-8")
    program.chmod(0o755)
    return program


@pytest.fixture(scope="session")
def paddle_serving_python() -> Path:
    """A Python that really has Paddle Serving, or a skip that says how to bring one."""
    own = Home.from_environ(os.environ).runtime(RUNTIME) / "bin" / "python"
    wanted = os.environ.get(VARIABLE) or (str(own) if own.is_file() else None)
    if not wanted:
        pytest.skip(f"needs Paddle Serving: `pdserve runtime install {RUNTIME}`, or a Python in {VARIABLE}")
    found = query(Path(wanted), {**NEEDED, **FAISS})
    if not found or found.missing:
        pytest.skip(f"{wanted} lacks {', '.join(found.missing) if found else 'a Python'}")
    return found.path
