"""Runs made by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pdserve.tools.bench import Load, Run


def a_run(latencies: Sequence[float] = (0.01, 0.02, 0.03), **more: Any) -> Run:
    """A run of 8 clients on v1 for two seconds; latencies in seconds."""
    fields: dict[str, Any] = {
        "route": "v1",
        "address": "http://127.0.0.1:1",
        "load": Load(clients=8),
        "batch": 1,
        "started": 0.0,
        "seconds": 2.0,
        "answers": len(latencies),
        "latencies": np.array(latencies, np.float64),
        "errors": {},
        "examples": {},
        "cpu_seconds": 0.006,
    }
    return Run(**fields | more)
