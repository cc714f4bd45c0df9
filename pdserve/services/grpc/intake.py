"""Messages of gRPC calls, taken in within the budget for bodies.

gRPC says neither how large a message is nor how much of it is there, until all of it is. So messages are not
read before their handler runs (it takes a stream), and a handler waits for one in two steps. What is there
within a moment needs no room before: how much all callers together can send in a moment is bounded by what
this process can read. A message that takes longer needs one of a few slots: the room of the largest message
in the budget, which all slots together may half fill. One address has half of the slots at most, and none for
longer than `Intake.longest_s`. Who gets none is told to ask again.
"""

import asyncio
import contextlib
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance, Reservation
from pdserve.services.telemetry.metrics import current

_Context = grpc.aio.ServicerContext[Any, Any]

_MOMENT_S = 0.25
# Of a message that takes longer than that: the slowest that is waited for.
_SLOWEST_BYTES_S = 4 * 1024 * 1024
_FULL = "Too many large or slow messages are coming in; ask again in a moment."


class Intake:
    """Takes in the messages of all calls of a server. ``longest_s``: how long one may take, in seconds."""

    def __init__(self, entrance: Entrance) -> None:
        self.settings = entrance.settings
        self.bodies = entrance.bodies
        largest = self.settings.max_body_bytes
        self.slot_bytes = min(largest, self.bodies.limit)
        self.longest_s = self.settings.body_timeout_s + largest / _SLOWEST_BYTES_S
        self._slots = max(1, self.bodies.limit // 2 // largest)
        self._taken: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def message(self, context: _Context) -> AsyncIterator[bytes]:
        """The message of a call, whose room in the budget is kept inside the block.

        Ends the call where the message does not come in time, where there is no room, or none comes.
        """
        async with self.next_message(context) as message:
            if message is None:
                await end(context, "INVALID_ARGUMENT", "The call has no message.")
            yield message

    @contextlib.asynccontextmanager
    async def next_message(self, context: _Context) -> AsyncIterator[bytes | None]:
        """The same for the next message of a stream; None where its caller has sent the last.

        Nothing tells a stream whose caller thinks from one that sends: both take longer than a moment, and
        need a slot.
        """
        waiting = _Waiting(self, client(context))
        room: Reservation | None = None
        try:
            message = await waiting.read(context)
            if message is None:
                yield None
                return
            room = waiting.keep(len(message))
            if room is None:
                await refuse(context, _FULL)
            if request := current.get():
                request.bytes_in = len(message)
            yield message
        finally:
            waiting.end()
            if room:
                room.release()

    def take_slot(self, address: str) -> Reservation | None:
        """A slot for a message from that address; None where there is none. `free_slot` gives it back."""
        if self._taken.total() >= self._slots or self._taken[address] >= max(1, self._slots // 2):
            return None
        room = self.bodies.reserve_now(self.slot_bytes)
        if room:
            self._taken[address] += 1
        return room

    def free_slot(self, address: str) -> None:
        """Count a slot of that address as free; its room is released apart."""
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]


async def refuse(context: _Context, why: str) -> NoReturn:
    """End a call that may be tried again."""
    later = ((pipeline.RETRY_AFTER_METADATA, "1"),)
    await end(context, "RESOURCE_EXHAUSTED", why, (*context.trailing_metadata(), *later))


async def end(context: _Context, status: str, why: str, trailing: Sequence[tuple[str, str]] = ()) -> NoReturn:
    """End a call with the name of a gRPC status; of a call whose caller has gone, only its task.

    Raises grpc.aio.AbortError or asyncio.CancelledError.
    """
    try:
        await context.abort(grpc.StatusCode[status], why, trailing or context.trailing_metadata())
    except grpc.aio.InternalError:  # there is nobody to tell
        raise asyncio.CancelledError from None
    raise RuntimeError("an abort ends a call")


class _Waiting:
    """One message that is waited for."""

    def __init__(self, intake: Intake, address: str) -> None:
        self._intake = intake
        self._address = address
        self._slot: Reservation | None = None
        self._limit = asyncio.timeout(None)
        self._timer = asyncio.get_running_loop().call_later(_MOMENT_S, self._takes_longer)

    async def read(self, context: _Context) -> bytes | None:
        """The message; None where none comes. Ends the call where it does not come in time."""
        message: Any = None
        try:
            async with self._limit:
                message = await context.read()
        except TimeoutError:
            if self._slot is None:
                await refuse(context, _FULL)
            seconds = f"{self._intake.longest_s:.0f} s"
            await context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"The message did not come within {seconds}; send it again.",
            )
        self._timer.cancel()
        return None if message is grpc.aio.EOF else bytes(message)

    def _takes_longer(self) -> None:
        self._slot = self._intake.take_slot(self._address)
        longest = self._intake.longest_s if self._slot else 0
        self._limit.reschedule(asyncio.get_running_loop().time() + longest)

    def keep(self, size: int) -> Reservation | None:
        """The room of a message that is there; None where there is none."""
        if self._slot is None:
            return self._intake.bodies.reserve_now(size)
        slot, self._slot = self._slot, None
        self._intake.free_slot(self._address)
        slot.shrink(size)
        return slot

    def end(self) -> None:
        """Give back what is not kept."""
        self._timer.cancel()
        if self._slot:
            self._intake.free_slot(self._address)
            self._slot.release()


def client(context: _Context) -> str:
    """The address of who calls, without the port."""
    kind, _, address = context.peer().partition(":")
    return urllib.parse.unquote(address.rpartition(":")[0]).strip("[]") if kind != "unix" else kind
