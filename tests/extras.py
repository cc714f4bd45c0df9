"""Tests of what an extra brings skip where it is missing, and say the command that installs it."""

from types import ModuleType
from typing import Any

import pytest


def import_or_skip(module: str, extra: str) -> ModuleType:
    """Import a module that pdserve's EXTRA installs; skip the test, or the whole test module, without it."""
    reason = f'needs {module.partition(".")[0]}: pip install "pdserve[{extra}]"'
    found: Any = pytest.importorskip(module, reason=reason, exc_type=ImportError)
    return found
