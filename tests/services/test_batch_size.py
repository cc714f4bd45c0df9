"""How many images go through an engine together, where nobody said."""

from types import SimpleNamespace
from typing import Any

import pytest

from pdserve.engines import Device
from pdserve.engines.device import cores
from pdserve.services.batcher import batch_size
from pdserve.settings import ModelSettings


@pytest.mark.parametrize(
    ("device", "said", "expected"),
    [
        ("cpu", {}, min(8, max(1, cores() // 2))),
        ("cpu", {"max_queue_delay_ms": 5}, 8),
        ("cpu", {"max_batch_size": 3, "max_queue_delay_ms": 5}, 3),
        ("gpu:0", {}, 32),
        ("gpu:0", {"max_batch_size": 4}, 4),
    ],
)
def test_batch_size(device: str, said: dict[str, Any], expected: int) -> None:
    engine: Any = SimpleNamespace(device=Device.parse(device))
    assert batch_size(engine, ModelSettings(model="m", **said)) == expected
