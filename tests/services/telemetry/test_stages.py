"""Stages and images go to the numbers and to the request that runs."""

import asyncio
import time
from typing import Any

import pytest

from pdserve.errors import DeadlineError, ImageError
from pdserve.services.telemetry.metrics import Metrics, RequestContext, Stages, current
from tests.services.watching import numbers


class FakeSpan:
    """Writes down its stages."""

    def __init__(self) -> None:
        self.stages: list[tuple[Any, ...]] = []

    def stage(self, *stage: Any) -> None:
        self.stages.append(stage)


def test_a_stage_goes_to_the_numbers_and_to_the_span() -> None:
    metrics = Metrics()
    stages = Stages(metrics)
    call = RequestContext()
    span = FakeSpan()
    call.span = span  # type: ignore[assignment]

    async def request() -> None:
        current.set(call)
        stages.record("decode", 0.5, "tiny")
        # What the request starts is of the request.
        await asyncio.create_task(asyncio.sleep(0))
        stages.record("queue", 0.25, "tiny", time.perf_counter() - 2)

    asyncio.run(request())
    stages.record("decode", 0.5, "tiny")  # outside of any
    assert numbers(metrics)['pdserve_stage_seconds_sum{model="tiny",stage="decode"}'] == 1
    assert [stage[:3] for stage in span.stages] == [("decode", 0.5, "tiny"), ("queue", 0.25, "tiny")]
    assert span.stages[0][3] == 0
    assert 2 <= span.stages[1][3] < 20


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ([1, ImageError("bad"), 3], {"ok": 2, "bad_image": 1}),
        (DeadlineError("late"), {"deadline": 3}),
        (ValueError("a fault"), {"error": 3}),
        (asyncio.CancelledError(), {"gone": 3}),
    ],
)
def test_images_are_counted_by_outcome(outcome: Any, expected: dict[str, float]) -> None:
    metrics = Metrics()
    call = RequestContext()

    async def work() -> list[Any]:
        if isinstance(outcome, BaseException):
            raise outcome
        return list(outcome)

    async def request() -> None:
        current.set(call)
        if isinstance(outcome, BaseException):
            with pytest.raises(type(outcome)):
                await Stages(metrics).answers(3, work())
        else:
            assert await Stages(metrics).answers(3, work()) == outcome

    asyncio.run(request())
    found = {name: value for name, value in numbers(metrics).items() if "images_total" in name}
    assert found == {f'pdserve_images_total{{outcome="{name}"}}': value for name, value in expected.items()}
    assert call.images == 3
