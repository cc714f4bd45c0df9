"""docs/reference.md is what docs/reference.py makes of today's settings and commands."""

import runpy

from tests.docs.blocks import ROOT


def test_the_reference_is_current() -> None:
    script = ROOT / "docs" / "reference.py"
    wanted: str = runpy.run_path(str(script))["page"]()
    found = script.with_suffix(".md").read_text("utf-8")
    assert found == wanted, "settings or commands changed: python docs/reference.py"
