"""The memory that all requests of the process share: who fits goes on, who does not waits in order.

A `Budget` is a number of bytes. A request reserves what it is about to hold, before it holds it, and gives it
back when it has done. What is more than the whole budget is refused at once; what does not fit now waits, the
oldest first, for a short time, and is refused then: a caller does better to ask again than to queue here.

A large body is reserved as it comes, a step ahead of what is there, so that bodies which are announced and
never sent hold next to nothing. So requests hold something and wait for more, which invites two troubles:

- *Deadlock*: all that is held is held by bodies that wait to grow. None could go on, so the youngest of them
  is refused at once, and again, until the others fit. Who waits to grow goes before who holds nothing yet.
- *Starvation*: large bodies would keep ordinary images out for as long as their senders please. An eighth of
  the budget is therefore for small requests alone, which pass those that wait.

Bodies and decoded pixels have a budget each. A request that holds its body waits for pixels, and never the
other way round; with one budget for both, bodies alone could fill it and none of them ever be decoded.
Everything here is called on one event loop.
"""

import asyncio
import copy
import itertools
from collections.abc import Iterator
from types import TracebackType

from pdserve.errors import BodyTooLargeError, DeadlineError, OverloadedError, PdserveError
from pdserve.machine import memory_limit
from pdserve.settings import ServerSettings

STEP = 1 << 20
"""How far a growing body is reserved ahead of what has come, in bytes; one of at most this is small."""

MAX_WAITING = 256
"""Reservations that wait at once."""

# How long a body may wait for room, and an image for room to be decoded in, which takes longer to get free.
_BODY_WAIT_S = 5.0
_PIXEL_WAIT_S = 30.0
# The part of a budget that is for small requests alone, and the part that a small image may need.
_SMALL_SHARE = 8
_SMALL_IMAGE = 64


class Reservation:
    """A part of a budget, until `release`. ``amount``: bytes."""

    __slots__ = ("_budget", "amount", "serial", "small")

    def __init__(self, budget: "Budget", amount: int, serial: int, small: bool) -> None:
        self._budget = budget
        self.amount = amount
        self.serial = serial
        self.small = small

    async def grow(self, more: int, deadline: float | None = None) -> None:
        """Reserve ``more`` bytes; see `Budget.reserve`. What is held stays, also when this raises."""
        await self._budget._grow(self, more, deadline)

    def shrink(self, amount: int) -> None:
        """Give back all over ``amount`` bytes."""
        if amount < self.amount:
            self._budget._give_back(self, self.amount - amount)

    def release(self) -> None:
        """Give all back; a second time it does nothing."""
        if self.amount:
            self._budget._give_back(self, self.amount)


class _Waiter:
    __slots__ = ("future", "granted", "more", "reservation")

    def __init__(self, reservation: Reservation, more: int, future: "asyncio.Future[None]") -> None:
        self.reservation = reservation
        self.more = more
        self.future = future
        self.granted = False

    @property
    def order(self) -> tuple[bool, int]:
        return not self.reservation.amount, self.reservation.serial


class Budget:
    """``limit`` bytes, shared out. ``what``: what they are for, in errors. ``used``: bytes reserved now.

    ``small``: a reservation of at most so many bytes passes large ones that wait, as long as the small ones
    hold at most an eighth of all. ``wait_s``: how long one may wait, in seconds.
    """

    def __init__(self, limit: int, what: str = "requests", *, small: int = 0, wait_s: float = 5.0) -> None:
        self.limit = limit
        self.used = 0
        self._what = what
        self._small = min(small, limit // _SMALL_SHARE)
        self._share = limit // _SMALL_SHARE if small else 0
        self._small_used = 0
        self._wait_s = wait_s
        self._waiters: list[_Waiter] = []
        self._serials = itertools.count()

    @property
    def waiting(self) -> int:
        """How many reservations wait."""
        return len(self._waiters)

    def reserved(self, amount: int, deadline: float | None = None) -> "_Reserved":
        """``async with budget.reserved(amount):`` holds ``amount`` bytes inside; see `reserve`."""
        return _Reserved(self, amount, deadline)

    async def reserve(self, amount: int, deadline: float | None = None) -> Reservation:
        """Reserve ``amount`` bytes, which the caller releases; waits its turn where they do not fit.

        Raises BodyTooLargeError for more than the whole budget, OverloadedError when too many wait already
        or the wait gets too long, DeadlineError at ``deadline`` (the loop's clock, in seconds).
        """
        reservation = Reservation(self, 0, next(self._serials), amount <= self._small)
        await self._grow(reservation, amount, deadline)
        return reservation

    def reserve_now(self, amount: int) -> Reservation | None:
        """Reserve ``amount`` bytes without waiting; None where they do not fit now, or others wait."""
        reservation = Reservation(self, 0, next(self._serials), amount <= self._small)
        if not (self._passes(reservation, amount) and self._fits(reservation, amount)):
            return None
        self._take(reservation, amount)
        return reservation

    async def _grow(self, reservation: Reservation, more: int, deadline: float | None) -> None:
        wanted = reservation.amount + more
        if wanted > self.limit:
            raise BodyTooLargeError(
                f"The request needs {wanted} bytes of memory, more than the {self.limit} that the server has "
                f"for {self._what}; send less at once, or raise max_inflight_bytes."
            )
        if reservation.small and wanted > self._small:
            self._small_used -= reservation.amount
            reservation.small = False
        if self._passes(reservation, more) and self._fits(reservation, more):
            self._take(reservation, more)
            return
        if len(self._waiters) >= MAX_WAITING:
            raise self._overloaded()
        await self._wait(reservation, more, deadline)

    async def _wait(self, reservation: Reservation, more: int, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        error: PdserveError = self._overloaded()
        if deadline is not None and deadline <= until:
            until, error = deadline, DeadlineError("The time was up before there was memory for the request.")
        waiter = _Waiter(reservation, more, loop.create_future())
        self._waiters.append(waiter)
        self._waiters.sort(key=lambda each: each.order)
        timer = loop.call_at(until, _fail, waiter, error)
        try:
            self._settle()
            await waiter.future
        except BaseException:
            if waiter.granted:  # and cancelled before it could know
                self._give_back(reservation, more)
            else:
                self._waiters.remove(waiter)
                self._settle()
            raise
        finally:
            timer.cancel()

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(f"There is no memory free for more {self._what} now; ask again in a moment.")

    def _passes(self, reservation: Reservation, more: int) -> bool:
        """Whether nobody who waits goes before this one."""
        if not self._waiters:
            return True
        if reservation.small and self._small_used + more <= self._share:
            return True
        return (not reservation.amount, reservation.serial) < self._waiters[0].order

    def _fits(self, reservation: Reservation, more: int) -> bool:
        if self.used + more > self.limit:
            return False
        others = self.used - self._small_used - reservation.amount
        # The share of the small is not for a large one, unless it is the only one.
        shared = self.limit - self._share
        return reservation.small or others <= 0 or others + reservation.amount + more <= shared

    def _take(self, reservation: Reservation, more: int) -> None:
        self.used += more
        reservation.amount += more
        if reservation.small:
            self._small_used += more

    def _give_back(self, reservation: Reservation, amount: int) -> None:
        self.used -= amount
        reservation.amount -= amount
        if reservation.small:
            self._small_used -= amount
        if self._waiters:
            self._settle()

    def _settle(self) -> None:
        """Grant what fits, in order; where nobody could ever go on, refuse the youngest that holds some."""
        for waiter in self._next():
            self._take(waiter.reservation, waiter.more)
            waiter.granted = True
            self._waiters.remove(waiter)
            waiter.future.set_result(None)
        holders = [each for each in self._waiters if each.reservation.amount and not each.future.done()]
        if holders and sum(each.reservation.amount for each in holders) == self.used:
            _fail(holders[-1], self._overloaded())

    def _next(self) -> Iterator[_Waiter]:
        blocked = False
        for waiter in tuple(self._waiters):
            if waiter.future.done():  # refused or cancelled: its task will take it out
                continue
            small = waiter.reservation.small and self._small_used + waiter.more <= self._share
            if (small or not blocked) and self._fits(waiter.reservation, waiter.more):
                yield waiter
            else:
                blocked = True


class _Reserved:
    """See `Budget.reserved`."""

    __slots__ = ("_amount", "_budget", "_deadline", "_reservation")

    def __init__(self, budget: Budget, amount: int, deadline: float | None) -> None:
        self._budget, self._amount, self._deadline = budget, amount, deadline

    async def __aenter__(self) -> Reservation:
        self._reservation = await self._budget.reserve(self._amount, self._deadline)
        return self._reservation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reservation.release()


def _fail(waiter: _Waiter, error: PdserveError) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(error)


class PixelCount:
    """Counts the pixels of one request's images, as their headers say, against ``limit``."""

    __slots__ = ("limit", "pixels")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pixels = 0

    def add(self, pixels: int) -> None:
        """Count an image in. Raises BodyTooLargeError, that image's error, where it is one too many."""
        if self.pixels + pixels > self.limit:
            raise BodyTooLargeError(
                f"The request's images have more than {self.limit} pixels in all; send several requests, or "
                "raise max_request_pixels."
            )
        self.pixels += pixels


class Entrance:
    """What bounds the requests of a process, whatever door they come by; one for each process.

    ``bodies``: what callers send; ``pixels``: decoded images and what is made of them, in bytes. Each has
    half of ``max_inflight_bytes``. ``time_limit_s``: how long a request may take from its arrival, which the
    active replica says; None for any time.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.time_limit_s: float | None = None
        total = settings.max_inflight_bytes or default_inflight_bytes()
        half = total // 2
        self.bodies = Budget(half, "bodies", small=STEP, wait_s=_BODY_WAIT_S)
        self.pixels = Budget(total - half, "images", small=half // _SMALL_IMAGE, wait_s=_PIXEL_WAIT_S)

    def for_service(self) -> "Entrance":
        """The same budgets for one of several services, which has its own time limit."""
        return copy.copy(self)

    def pixel_count(self) -> PixelCount:
        """A count for one request's pixels."""
        return PixelCount(self.settings.max_request_pixels)


def default_inflight_bytes() -> int:
    """The default of ``max_inflight_bytes``: a quarter of the memory of the machine or the container.

    The rest is for models, engines and what the allocator keeps.
    """
    return memory_limit() // 4
