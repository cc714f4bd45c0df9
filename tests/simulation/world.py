"""What the worlds share: a schedule's chance, its record, its checks; requests and what becomes of them."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from pdserve.errors import PdserveError
from tests.simulation.loop import VirtualLoop


class ViolationError(AssertionError):
    """Something does not hold that must hold in every schedule."""


class World:
    """One schedule. A subclass has `main`, which plays it and checks what must hold.

    ``record`` says whether what happens is written down, which costs time.
    """

    def __init__(self, seed: int, record: bool = False) -> None:
        self.chance = random.Random(seed)
        self.loop = VirtualLoop(self.chance)
        self.history: list[str] = []
        self.violation: ViolationError | None = None
        self._record = record

    async def main(self) -> None:
        raise NotImplementedError

    def play(self) -> None:
        """Raises ViolationError, StuckError."""
        try:
            self.loop.run(self.main())
        finally:
            if self.violation:  # which whoever was called may have taken for an error of its own
                raise self.violation
        for error in self.loop.errors:
            raise ViolationError(f"an error that nobody took: {error!r}")
        left = [task for task in self.loop.tasks if not task.done()]
        self.check(not left, "tasks are left: {}", left)

    def note(self, text: str, *values: Any) -> None:
        """Write down what happens; ``text`` is a format."""
        if self._record:
            self.history.append(f"{self.loop.time():9.4f}  {text.format(*values)}")

    def check(self, holds: object, text: str, *values: Any) -> None:
        """Raise ViolationError unless this holds."""
        if not holds and not self.violation:  # the first one counts
            error = ViolationError(f"at {self.loop.time():.4f} s: {text.format(*values)}")
            self.violation = error
            raise error

    def maybe(self, probability: float) -> bool:
        return self.chance.random() < probability

    async def request(
        self,
        name: str,
        call: Callable[[], Awaitable[Any]],
        answered: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        *,
        leave: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make a call once, and see what becomes of it; with ``leave`` it is cancelled at some time.

        A cancelled one that was answered all the same has been too late to leave. After ``stopped`` others
        may cancel it too.
        """
        task = self.loop.create_task(call())
        leaving = None
        if leave:
            leaving = self.loop.call_later(self.loop.pause(), task.cancel)
        try:
            outcome = await task
        except asyncio.CancelledError:
            self.check(leave or stopped(), "{} was cancelled by nobody", name)
            self.note("{} has left", name)
        except PdserveError as error:
            self.note("{} gets {}: {}", name, type(error).__name__, error)
            failed(error)
        else:
            self.note("{} is answered: {}", name, outcome)
            answered(outcome)
        finally:
            if leaving:
                leaving.cancel()


class NoMetrics:
    """Metrics that count nothing."""

    def __getattr__(self, name: str) -> Any:
        return _nothing


class NoStages:
    """Stages that record nothing."""

    def __init__(self, metrics: Any) -> None:
        pass

    def record(self, *arguments: Any) -> None:
        pass

    async def answers(self, images: int, work: Awaitable[Any]) -> Any:
        return await work


def _nothing(*_: Any, **__: Any) -> None:
    pass
