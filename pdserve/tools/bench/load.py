"""The two ways of putting a load on a server.

A **closed loop** is so many clients, each of which sends its next request as soon as it has the answer to its
last: it shows how much a server can do. An **open loop** sends requests at a rate of its own, whatever
became of those before, and counts a latency from the moment at which the request was due: it shows what
callers would see who do not wait for each other. A closed loop cannot show that, since it asks less of a
server that stalls (Tene's "coordinated omission").

::

    target = build_target("v1", "http://127.0.0.1:18080", [Path("cat.jpg").read_bytes()])
    run = asyncio.run(closed_loop(target, clients=8, duration_s=10))
    print(run.images_per_s, run.latency_ms())

The warm-up is not counted. With ``requests`` so many are sent and all of them counted, and ``duration_s``
bounds how long new ones are begun (None: not at all); else the loop goes on for ``duration_s``, and
what is in flight at its end is waited for. ``at_start`` is awaited where the measured part begins. When
``stop`` is set, the run ends with what was measured until then.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from pdserve.tools.bench.run import Load, Run
from pdserve.tools.bench.tally import Tally
from pdserve.tools.bench.target import Connection, Target

Hook = Callable[[], Coroutine[Any, Any, None]]

ARRIVALS = ("poisson", "constant")


async def _nothing() -> None:
    pass


async def closed_loop(
    target: Target,
    *,
    clients: int = 8,
    duration_s: float | None = 10,
    requests: int | None = None,
    warm_up_s: float = 2,
    timeout_s: float = 60,
    at_start: Hook = _nothing,
    stop: asyncio.Event | None = None,
) -> Run:
    """``clients`` clients with a connection each, which wait for their answers."""
    tally = Tally()
    numbers = itertools.count()
    connections = [target.connect() for _ in range(clients)]

    async def client(connection: Connection, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            await tally.ask(connection, next(numbers), timeout_s)

    def all_clients(goes_on: Callable[[], bool]) -> list[Coroutine[Any, Any, None]]:
        return [client(connection, goes_on) for connection in connections]

    async def clock(seconds: float) -> None:
        await asyncio.sleep(warm_up_s)
        await at_start()
        tally.open(seconds)
        await asyncio.sleep(seconds)
        tally.close()

    async def for_a_time(seconds: float) -> None:
        # The clients never pause between warm-up and measurement: the server is as busy as it will be.
        await _together(clock(seconds), *all_clients(lambda: not tally.is_over()))

    async def for_a_number(count: int) -> None:
        warm = time.perf_counter() + warm_up_s
        await _together(*all_clients(lambda: time.perf_counter() < warm))
        await at_start()
        left = iter(range(count))
        last = time.perf_counter() + (duration_s or float("inf"))
        tally.open()
        await _together(*all_clients(lambda: time.perf_counter() < last and next(left, None) is not None))
        tally.close()

    work = for_a_time(_given(duration_s)) if requests is None else for_a_number(requests)
    try:
        interrupted = await _unless(stop, work, tally)
    finally:
        for connection in connections:
            await connection.close()
    return tally.run(target, Load(clients=clients), interrupted)


async def open_loop(
    target: Target,
    *,
    rate: float,
    duration_s: float | None = 10,
    requests: int | None = None,
    arrivals: str = "poisson",
    seed: int = 0,
    warm_up_s: float = 2,
    timeout_s: float = 60,
    max_in_flight: int = 500,
    at_start: Hook = _nothing,
    stop: asyncio.Event | None = None,
) -> Run:
    """``rate`` requests per second, that come as chance has it (poisson) or evenly (constant).

    While ``max_in_flight`` are without an answer, those that are due are not sent, and counted as unsent.
    A request takes an idle connection, else a new one.
    """
    tally = Tally()
    idle: list[Connection] = []
    connections: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()
    hooks: list[asyncio.Future[None]] = []
    crashes: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (crash := task.exception()):
            crashes.append(crash)

    async def one(number: int, due: float, measured: bool) -> None:
        if idle:
            connection = idle.pop()
        else:
            connection = target.connect()
            connections.append(connection)
        await tally.ask_due(connection, number, timeout_s, due, measured)
        idle.append(connection)

    async def arrive() -> None:
        due = time.perf_counter()
        begin = due + warm_up_s
        last = begin + (duration_s or float("inf"))
        measured = 0
        for number, gap in enumerate(_gaps(rate, arrivals, seed)):
            due += gap
            if due >= begin and not hooks:
                await _sleep_until(begin)
                tally.open(duration_s if requests is None else None)
                hooks.append(asyncio.ensure_future(at_start()))
            if crashes or due >= last or measured == requests:
                break
            await _sleep_until(due)
            measured += due >= begin
            if len(tasks) >= max_in_flight:
                tally.unsent += due >= begin
                continue
            if due >= begin:
                tally.lags.append(max(0.0, time.perf_counter() - due))
            task = asyncio.ensure_future(one(number, due, due >= begin))
            tasks.add(task)
            task.add_done_callback(ended)
        if requests is None and not crashes:
            await _sleep_until(last)
            tally.close()
        if tasks:
            await asyncio.wait(tasks)
        tally.close()
        if crashes:
            raise crashes[0]
        await asyncio.gather(*hooks)

    if requests is None:
        _given(duration_s)
    try:
        interrupted = await _unless(stop, arrive(), tally)
    finally:
        left = (*tasks, *hooks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for connection in connections:
            await connection.close()
    return tally.run(target, Load(rate=rate, arrivals=arrivals), interrupted)


def _given(duration_s: float | None) -> float:
    if duration_s is None:
        raise ValueError("give duration_s, requests or both")
    return duration_s


def _gaps(rate: float, arrivals: str, seed: int) -> Iterator[float]:
    """Seconds between arrivals, without end."""
    if arrivals not in ARRIVALS:
        raise ValueError(f"arrivals is {arrivals!r}; there are {', '.join(ARRIVALS)}")
    if arrivals == "constant":
        return itertools.repeat(1 / rate)
    chance = random.Random(seed)
    return (chance.expovariate(rate) for _ in itertools.count())


async def _sleep_until(when: float) -> None:
    """Until a time of ``time.perf_counter``; gives way to others even if that is past."""
    await asyncio.sleep(max(0.0, when - time.perf_counter()))


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """All of it; what one raises ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _unless(stop: asyncio.Event | None, work: Coroutine[Any, Any, None], tally: Tally) -> bool:
    """Do the work, unless it is stopped: whether it was."""
    if stop is None:
        await work
        return False
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return False
        tally.close()
        return True
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
