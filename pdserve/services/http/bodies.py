"""Request bodies, read within limits of size and time and within the entrance's budget of memory.

Also what happens when the caller stops sending, or goes away while its request is worked on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from pdserve.errors import BodyTooLargeError, OverloadedError, RequestError
from pdserve.services.budget import STEP, Entrance, Reservation
from pdserve.services.parsing import in_a_thread
from pdserve.services.protocols import Message, Scope
from pdserve.services.telemetry.metrics import current

Result = TypeVar("Result")

# Who sends less than this within the time for a part is too slow.
_PART_BYTES = 16 * 1024
# The time for all of a body, as a multiple of the time for a part.
_MOST_PATIENCES = 20
# What is reserved for a body of unknown length before it comes.
_FIRST_BYTES = 64 * 1024
# Of a body that comes in parts: what is one piece, and how many pieces are freed at once.
_PIECE_BYTES = 256 * 1024
_FREED = 16


class SlowBodyError(RequestError):
    """The caller stopped sending in the middle of a body."""

    code = "body_timeout"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


async def read_body(request: Request, entrance: Entrance) -> bytes:
    """The whole body. It holds a part of the entrance's budget until the request ends.

    A body of at most a step (1 MiB) is reserved before it is read, a larger one and one of unknown length a
    step ahead of what has come. Raises BodyTooLargeError as soon as more are announced or come than
    ``max_body_bytes`` or than the budget has; OverloadedError where the budget has no room; SlowBodyError
    when the next 16 KiB, or what is left, take more than ``body_timeout_s``, or all of it 20 times that;
    DeadlineError when the request's time is up before there is room; ClientDisconnect.
    """
    limit = min(entrance.settings.max_body_bytes, entrance.bodies.limit)
    announced = request.headers.get("content-length", "")
    length = None
    if announced.isdecimal():
        # Of a number with a thousand digits it is enough to know that it is large.
        length = int(announced) if len(announced) <= 18 else 10**18
        if length > limit:
            raise _too_large(entrance)
    first = _FIRST_BYTES if length is None else min(length, STEP)
    clock, time_limit = asyncio.get_running_loop().time, entrance.time_limit_s
    began = clock()
    deadline = None if time_limit is None else began + time_limit
    reservation = await entrance.bodies.reserve(first, deadline)
    request.scope.setdefault(RESERVATIONS, []).append(reservation)
    reserved = clock()
    message = await _receive_in_time(request, entrance.settings.body_timeout_s)
    body: bytes = message.get("body", b"")
    if len(body) > min(reservation.amount, limit) or message.get("more_body", False):
        body = await _Body(request, entrance, reservation, length).read(message, reserved)
    if context := current.get():
        context.arrived = clock() - (reserved - began)
    return body


RESERVATIONS = "pdserve.reservations"
"""Where a request's scope holds what is to be released at its end: a list of `Reservation`."""


def release(scope: Scope) -> None:
    """Give back what a request had reserved."""
    for reservation in scope.pop(RESERVATIONS, ()):
        reservation.release()


class _Body:
    """A body that comes in several parts.

    They are kept as a list of pieces, since growing by copying would stop the event loop for longer than a
    request may; a large one is joined in a thread.
    """

    def __init__(
        self, request: Request, entrance: Entrance, reservation: Reservation, length: int | None
    ) -> None:
        self._request = request
        self._entrance = entrance
        self._reservation = reservation
        self._limit = min(entrance.settings.max_body_bytes, entrance.bodies.limit)
        self._length = self._limit if length is None else length
        self._pieces: list[bytes] = []
        self._piece = bytearray()
        self._size = 0

    async def read(self, message: Message, since: float) -> bytes:
        """The whole body; ``message`` is its first part, ``since`` when it began, on the loop's clock."""
        loop, patience = asyncio.get_running_loop(), self._entrance.settings.body_timeout_s
        end = since + patience * _MOST_PATIENCES
        timed = 0
        try:
            async with asyncio.timeout(patience) as timer:
                while True:
                    part = message.get("body", b"")
                    if self._size + len(part) > self._limit:
                        raise _too_large(self._entrance)
                    if self._size + len(part) > self._reservation.amount:
                        timer.reschedule(None)  # waiting for room is no fault of the sender's
                        await self._reserve(len(part))
                        timed = -_PART_BYTES
                    self._append(part)
                    if not message.get("more_body", False):
                        break
                    if self._size - timed >= _PART_BYTES:
                        timer.reschedule(min(loop.time() + patience, end))
                        timed = self._size
                    message = await _receive(self._request)
        except TimeoutError:
            raise _slow(patience) from None
        self._reservation.shrink(self._size)
        self._pieces.append(bytes(self._piece))
        return self._joined() if self._size <= STEP else await in_a_thread(self._joined)

    def _joined(self) -> bytes:
        try:
            body = b"".join(self._pieces)  # which lets go of Python's lock
        except MemoryError:
            raise OverloadedError("There is no memory for the body; send less at once.") from None
        while self._pieces:
            del self._pieces[-_FREED:]
        return body

    async def _reserve(self, more: int) -> None:
        wanted = min(self._length, self._size + more + STEP)
        await self._reservation.grow(max(wanted - self._reservation.amount, 0))

    def _append(self, part: bytes) -> None:
        self._piece += part  # parts of a byte each would take fifty times their size
        if len(self._piece) >= _PIECE_BYTES:
            self._pieces.append(bytes(self._piece))
            self._piece.clear()
        self._size += len(part)


async def _receive_in_time(request: Request, patience: float) -> Message:
    try:
        async with asyncio.timeout(patience):
            return await _receive(request)
    except TimeoutError:
        raise _slow(patience) from None


async def _receive(request: Request) -> Message:
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _slow(patience: float) -> SlowBodyError:
    return SlowBodyError(
        f"The rest of the body did not come within {patience:g} s, or all of it within "
        f"{patience * _MOST_PATIENCES:g} s; send it again."
    )


def _too_large(entrance: Entrance) -> BodyTooLargeError:
    settings, budget = entrance.settings, entrance.bodies.limit
    limit, name = min((settings.max_body_bytes, "max_body_bytes"), (budget, "max_inflight_bytes"))
    return BodyTooLargeError(
        f"The body is larger than the limit of {limit} bytes; send less at once or raise {name}."
    )


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[Result]) -> Result:
    """Do the work of a request whose body has been read; cancel it when the caller goes away meanwhile.

    ``receive`` is ASGI's. Raises ClientDisconnect then, and what the work raises.
    """
    # A time-out without a time, which the watcher lets expire: cheaper than a task for the work.
    interrupt = asyncio.timeout(None)
    try:
        async with interrupt:
            watcher = asyncio.ensure_future(_watch(receive, interrupt))
            try:
                return await work
            finally:
                watcher.cancel()
    except TimeoutError:
        if interrupt.expired():
            raise ClientDisconnect from None
        raise


async def _watch(receive: Callable[[], Awaitable[Any]], interrupt: asyncio.Timeout) -> None:
    if (await receive())["type"] == "http.disconnect":
        interrupt.reschedule(0)
