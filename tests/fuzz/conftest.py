"""Hypothesis's profiles; see the package's docstring."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, configuration, settings
from hypothesis.database import DirectoryBasedExampleDatabase

_HOME = Path(__file__).parents[2] / ".pytest_cache" / "hypothesis"
# Time is bounded by the processor's seconds that an example takes (guard.py), not by the clock's.
_COMMON = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.function_scoped_fixture,
    ],
)

configuration.set_hypothesis_home_dir(_HOME)
settings.register_profile("ci", _COMMON, max_examples=100, derandomize=True, database=None, print_blob=False)
settings.register_profile(
    "deep",
    _COMMON,
    max_examples=int(os.environ.get("PDSERVE_FUZZ_EXAMPLES", "5000")),
    database=DirectoryBasedExampleDatabase(_HOME / "examples"),
    phases=tuple(Phase),
)
settings.load_profile(os.environ.get("PDSERVE_FUZZ", "ci"))


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.full)
    # Else a failure with a large example becomes a failure about that.
    item.add_marker(pytest.mark.filterwarnings("ignore:Generating overly large repr"))
