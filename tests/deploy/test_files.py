"""The files in deploy/ are what `pdserve export` writes for a service with its defaults."""

import runpy
from collections.abc import Mapping

import pytest

from tests.docs.blocks import ROOT

WRITTEN: Mapping[str, str] = runpy.run_path(str(ROOT / "deploy" / "write.py"))["texts"]()

BY_HAND = {"write.py", "README.md", "nginx/pdserve.conf"}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_current(name: str) -> None:
    assert (ROOT / "deploy" / name).read_text("utf-8") == WRITTEN[name], "type: python deploy/write.py"


def test_no_other_files_are_there() -> None:
    found = {path.relative_to(ROOT / "deploy").as_posix() for path in (ROOT / "deploy").rglob("*.*")}
    assert {name for name in found if "__pycache__" not in name} == {*WRITTEN, *BY_HAND}
