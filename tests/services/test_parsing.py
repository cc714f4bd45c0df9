"""No request holds the event loop: a generator of hostile ones for each parser, and a watch on the loop."""

import asyncio
import gc

import pytest

from tests.services.blocking import Doors, watched
from tests.services.hostile_bodies import HOSTILE

BLOCK_S = 0.05
# The least of a few tries counts: a parser that blocks does so each time, a busy machine does not.
TRIES = 5


async def block(name: str) -> tuple[float, str]:
    """The shortest of the longest times that a request held the loop, in seconds, and how it was answered."""
    hostile, doors = HOSTILE[name], Doors()
    body = hostile.body()
    least, answer = 1e9, ""
    for _ in range(TRIES):
        gc.collect()
        async with watched() as seen:
            answer = await doors.send(hostile, body)
        least = min(least, seen.longest_s)
        if least < BLOCK_S:
            break
    return least, answer


QUICK = (
    "v1: many images",
    "v1: a line break after each character",
    "v1: many deep lists",
    "pipeline: a tensor of rank 15,000",
    "form: quotes that do not end",
    "form: parameters",
    "gallery: many ids",
    "gRPC: empty tensors",
    "gRPC: a tensor of rank 2,000,000",
    "oip: 48 MB of pixels",
    "oip gRPC: 16,000,000 numbers",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in HOSTILE]
)
def test_no_request_holds_the_loop(name: str) -> None:
    held, answer = asyncio.run(block(name))
    assert held < BLOCK_S, f"{held * 1000:.0f} ms; answered {answer}"
    assert not answer.startswith("5"), answer


def test_the_watch_sees_a_loop_that_is_held() -> None:
    async def hold() -> float:
        async with watched() as seen:
            sum(range(5_000_000))
        return seen.longest_s

    assert asyncio.run(hold()) > 0.03
