"""Shared fixtures: the reference values beside the tests, and the mirror's big archives where they are."""

import os
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder in the layout of the public model host, or a skip that says how to bring one."""
    shared = Path(os.environ.get("PDSERVE_TEST_SHARED", Path(__file__).parents[2] / "shared"))
    if not (shared / "mirror").is_dir():
        pytest.skip("needs the mirror of the model host; set PDSERVE_TEST_SHARED to the folder that holds it")
    return shared / "mirror"
