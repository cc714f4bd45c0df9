"""The caller at the other end: how long its body is waited for, and what ends when it goes away."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

Result = TypeVar("Result")


class Interrupt:
    """Ends what the current task waits for: within the ``with``, ``now`` makes it raise an error.

    It costs a request less than a task and a time-out for each thing that is waited for.
    """

    def __init__(self, error: Callable[[], Exception]) -> None:
        self._error = error
        self._task: asyncio.Task[Any] | None = None
        self._came = False

    def __enter__(self) -> "Interrupt":
        self._task = asyncio.current_task()
        return self

    def now(self) -> None:
        """Interrupt; called on the event loop, by anything but the task itself."""
        if self._task:
            self._came = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._came and kind is asyncio.CancelledError:
            if task:
                task.uncancel()
            raise self._error() from None


async def unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[Result]) -> Result:
    """Do the work of a request whose body has been read; cancel it when the caller goes away meanwhile.

    ``receive`` is ASGI's. Raises ClientDisconnect then, and what the work raises.
    """
    with Interrupt(ClientDisconnect) as interrupt:
        watch = asyncio.ensure_future(_watch(receive, interrupt))
        try:
            return await work
        finally:
            watch.cancel()


async def _watch(receive: Callable[[], Awaitable[Any]], interrupt: Interrupt) -> None:
    if (await receive())["type"] == "http.disconnect":
        interrupt.now()
