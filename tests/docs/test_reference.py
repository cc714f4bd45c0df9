"""docs/reference.md and the lists in configs/ are what docs/reference.py makes of settings and commands."""

import runpy
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT


def test_the_reference_is_current() -> None:
    script = ROOT / "docs" / "reference.py"
    wanted: str = runpy.run_path(str(script))["page"]()
    found = script.with_suffix(".md").read_text("utf-8")
    assert found == wanted, "settings or commands changed: python docs/reference.py"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.name)
def test_the_settings_in_a_configuration_are_current(path: Path) -> None:
    wanted: str = runpy.run_path(str(ROOT / "docs" / "reference.py"))["config"](path)
    assert path.read_text("utf-8") == wanted, "settings changed: python docs/reference.py"
