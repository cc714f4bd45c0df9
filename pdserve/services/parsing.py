"""Where bodies are parsed: small ones at once, large ones in threads, as the event loop has no time for it.

What parses a body gets `Bounds`, and raises TooMuchError where it finds more than they allow: in place that
means "not here", in a thread it is the answer to the caller. A thread alone keeps no loop free: JSON's and
protobuf's parsers hold Python's lock while they run. So the bounds are such that each call of theirs ends
within some milliseconds, and what may be longer (a text of 200 MB) goes through calls that let go of the
lock, or in slices.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pdserve.errors import BodyTooLargeError

Result = TypeVar("Result")

Buffer = bytes | bytearray
"""An image file; what decodes it takes either, and calls them bytes."""
View = Buffer | memoryview

SLICE = 256 * 1024
"""Bytes of a large text that one call looks at, where it does not let go of Python's lock."""
_SEARCH = 1024 * 1024  # bytes that one search looks at


@dataclass(frozen=True)
class Bounds:
    """What a request may have, its long texts apart.

    ``values``: numbers, texts, lists and objects; ``plain_bytes``: of JSON beside the long texts.
    """

    values: int
    plain_bytes: int


IN_A_THREAD = Bounds(20_000, 1024 * 1024)
"""The bounds of any request. The worst, 20,000 keys of an object, take orjson 15 ms."""
_IN_PLACE = Bounds(2_000, 64 * 1024)
_IN_PLACE_BYTES = 1024 * 1024

# Two, so that one large body does not wait for another; each holds Python's lock most of its time.
_THREADS = ThreadPoolExecutor(2, "parsing")


class TooMuchError(BodyTooLargeError):
    """A request has more values than are read."""

    def __init__(self, bounds: Bounds, what: str = "values") -> None:
        limit = f"{bounds.plain_bytes} bytes" if what == "bytes" else f"{bounds.values} values"
        super().__init__(f"The request has more than {limit} beside its images; send several requests.")


async def parsed(parse: Callable[[Bounds], Result], size: int) -> Result:
    """What ``parse`` makes of a body of ``size`` bytes. Raises what it raises; TooMuchError for too much."""
    if size <= _IN_PLACE_BYTES:
        try:
            return parse(_IN_PLACE)
        except TooMuchError:
            pass
    return await in_a_thread(lambda: parse(IN_A_THREAD))


async def in_a_thread(work: Callable[[], Result]) -> Result:
    """What ``work`` returns or raises; for what takes long."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


def find(body: Buffer, mark: bytes, at: int) -> int:
    """Where a mark is next in a large body, from ``at`` on; -1 for nowhere."""
    found = -1
    while found < 0 and at < len(body):
        found = body.find(mark, at, at + _SEARCH + len(mark) - 1)
        at += _SEARCH
    return found


def copied(view: View, head: bytes = b"") -> Buffer:
    """A copy, behind ``head``.

    That of a large view grows bit by bit: one call for all of it would hold Python's lock.
    """
    if len(view) <= SLICE:
        return head + bytes(view)
    out = bytearray(head)
    for at in range(0, len(view), SLICE):
        out += view[at : at + SLICE]
    return out
