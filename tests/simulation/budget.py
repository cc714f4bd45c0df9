"""The budget of memory: reservations that wait, grow, shrink, leave and run out of time."""

import asyncio
import math
from typing import Any

from pdserve.errors import BodyTooLargeError, DeadlineError, OverloadedError
from pdserve.services.budget import Budget, Reservation
from tests.simulation.world import World

LIMIT = 64
WAIT_S = 1.5


class BudgetWorld(World):
    """Requests that hold a part of a small budget for a while; some ask for more while they hold it."""

    async def main(self) -> None:
        chance = self.chance
        self.small = chance.choice((0, 4))
        self.budget = Budget(LIMIT, small=self.small, wait_s=WAIT_S)
        self.held: dict[int, Reservation] = {}
        self.waiting: dict[int, int] = {}  # who holds nothing and waits: number -> amount, as they came
        self.growing: dict[int, int] = {}
        self.since: dict[int, tuple[float, float]] = {}
        self.leavers: set[int] = set()
        tasks = []
        for number in range(chance.randint(2, 8)):
            tasks.append(self.loop.create_task(self.hold(number)))
            if self.maybe(0.5):
                await asyncio.sleep(self.loop.pause())
        await asyncio.gather(*tasks)
        self.look()
        self.check(self.budget.used == 0, "{} bytes are left reserved", self.budget.used)
        self.check(self.budget.waiting == 0, "{} wait still", self.budget.waiting)
        # What is left must be enough for one that takes all.
        async with self.budget.reserved(LIMIT):
            self.check(self.budget.used == LIMIT, "{} bytes are reserved", self.budget.used)

    def look(self) -> None:
        """What is reserved is what they hold, or are about to, and no more than there is."""
        used, held = self.budget.used, sum(each.amount for each in self.held.values())
        self.check(used <= LIMIT, "{} bytes are reserved", used)
        most = held + sum(self.waiting.values()) + sum(self.growing.values())
        self.check(held <= used <= most, "{} bytes are reserved, {} are held", used, held)

    async def hold(self, number: int) -> None:
        chance = self.chance
        amount = chance.choice((1, 3, 8, 20, 40, LIMIT, LIMIT + 1))
        deadline = None if self.maybe(0.7) else self.loop.time() + self.loop.pause()
        steps = [chance.choice((1, 8, 30)) for _ in range(chance.choice((0, 0, 1, 2)))]
        self.note("{} wants {}, then {}, until {}", number, amount, steps, deadline)
        began = self.loop.time()

        async def reserve() -> Any:
            nonlocal began
            began = self.loop.time()
            self.waiting[number] = amount
            self.since[number] = began, math.inf if deadline is None else deadline
            try:
                reservation = await self.budget.reserve(amount, deadline)
                self.first_of_those_who_wait(number)
                self.held[number] = reservation
            finally:
                self.waiting.pop(number, None)
            try:
                self.look()
                await self.use(number, reservation, steps, deadline)
            finally:
                reservation.release()
                if self.maybe(0.1):
                    reservation.release()  # which does nothing
                del self.held[number]
                self.look()
            return "done"

        def failed(error: BaseException) -> None:
            now = self.loop.time()
            if isinstance(error, BodyTooLargeError):
                self.check(amount > LIMIT, "{} is too much, it is said", amount)
            elif isinstance(error, DeadlineError):
                self.check(deadline is not None and now >= deadline, "{} fails before its time", number)
            else:
                waited = now - began >= WAIT_S - 1e-9
                self.check(isinstance(error, OverloadedError) and waited, "{} fails: {!r}", number, error)

        leave = self.maybe(0.2)
        if leave:
            self.leavers.add(number)
        await self.request(str(number), reserve, lambda outcome: None, failed, leave=leave)

    def first_of_those_who_wait(self, number: int) -> None:
        """Nobody of those who hold nothing, and are not small, has waited longer."""
        own = self.waiting[number]
        ungranted = {each.more for each in self.budget._waiters if not each.future.done()}
        for other, amount in self.waiting.items():
            if other == number or own <= self.small:
                return
            fair = amount <= self.small or amount not in ungranted or self.over(other)
            self.check(fair, "{} goes before {}, who came first", number, other)

    def over(self, number: int) -> bool:
        """Whether the wait of this one has come to its end, of which it has yet to learn."""
        since, deadline = self.since[number]
        return self.loop.time() >= min(since + WAIT_S, deadline) or number in self.leavers

    async def use(
        self, number: int, reservation: Reservation, steps: list[int], deadline: float | None
    ) -> None:
        await asyncio.sleep(self.loop.pause())
        for more in steps:
            before, began = reservation.amount, self.loop.time()
            self.growing[number] = more
            try:
                await reservation.grow(more, deadline)
            except BodyTooLargeError:
                self.check(before + more > LIMIT, "{} is too much, it is said", before + more)
                return
            except DeadlineError:
                late = deadline is not None and self.loop.time() >= deadline
                self.check(late, "{} fails before its time", number)
                return
            except OverloadedError:
                self.note("{} is refused while it grows, after {} s", number, self.loop.time() - began)
                self.check(self.budget.used > before, "{} is refused, and alone", number)
                return
            finally:
                del self.growing[number]
            self.check(reservation.amount == before + more, "{} has {}", number, reservation.amount)
            self.look()
            await asyncio.sleep(self.loop.pause())
        if reservation.amount > 1 and self.maybe(0.5):
            reservation.shrink(reservation.amount // 2)
            self.look()
            await asyncio.sleep(self.loop.pause())
