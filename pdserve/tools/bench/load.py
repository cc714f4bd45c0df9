"""The two ways of putting a load on a server.

A **closed loop** is so many clients, each of which sends its next request as soon as it has the answer to its
last: it shows how much a server can do. An **open loop** sends requests at a rate of its own, whatever became
of those before, and counts a latency from the moment at which the request was due: it shows what callers
would see who do not wait for each other. A closed loop cannot show that, since it asks less of a server that
stalls (Tene's "coordinated omission").

::

    target = build_target("v1", "http://127.0.0.1:18080", [Path("cat.jpg").read_bytes()])
    run = asyncio.run(closed_loop(target, clients=8, duration_s=10))
    print(run.images_per_s, run.latency_ms())

The warm-up is not counted. With ``requests`` so many are sent and all of them counted, and ``duration_s``
bounds how long new ones are started (None: not at all); else the loop goes on for ``duration_s``, and what is
in flight at its end is waited for. ``at_start`` is awaited where the measured part starts. When ``stop`` is
set, the run ends with what was measured until then.
"""

import asyncio
import itertools
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import numpy as np

from pdserve.tools.bench.run import Connection, FailedError, Load, Run, Target

Work = Coroutine[Any, Any, None]
Hook = Callable[[], Work]

ARRIVALS = ("poisson", "constant")
# A client whose connection was refused would else try again as fast as it can, and take the processor.
_REFUSED_PAUSE_S = 0.01


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
    recorder = Recorder()
    numbers = itertools.count()
    connections = [target.connect() for _ in range(clients)]

    async def client(connection: Connection, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            await recorder.ask(connection, next(numbers), timeout_s)

    def all_clients(goes_on: Callable[[], bool]) -> list[Work]:
        return [client(connection, goes_on) for connection in connections]

    async def clock(seconds: float) -> None:
        await asyncio.sleep(warm_up_s)
        await at_start()
        recorder.open(seconds)
        await asyncio.sleep(seconds)
        recorder.close()

    async def for_a_time(seconds: float) -> None:
        # The clients never pause between warm-up and measurement: the server is as busy as it will be.
        await _together(clock(seconds), *all_clients(lambda: not recorder.is_over()))

    async def for_a_number(count: int) -> None:
        warm = time.perf_counter() + warm_up_s
        await _together(*all_clients(lambda: time.perf_counter() < warm))
        await at_start()
        left = iter(range(count))
        last = time.perf_counter() + (duration_s or float("inf"))
        recorder.open()
        await _together(*all_clients(lambda: time.perf_counter() < last and next(left, None) is not None))
        recorder.close()

    work = for_a_time(_required(duration_s)) if requests is None else for_a_number(requests)
    try:
        interrupted = await _unless(stop, work, recorder)
    finally:
        for connection in connections:
            await connection.close()
    return recorder.run(target, Load(clients=clients), interrupted)


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
    """``rate`` requests per second, at random times (poisson) or evenly spaced (constant).

    While ``max_in_flight`` are without an answer, those that are due are not sent, and counted as unsent.
    A request takes an idle connection, else a new one.
    """
    recorder = Recorder()
    idle: list[Connection] = []
    connections: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()
    hooks: list[asyncio.Future[None]] = []
    crashes: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (crash := task.exception()):
            crashes.append(crash)

    async def one(number: int, due: float) -> None:
        if idle:
            connection = idle.pop()
        else:
            connection = target.connect()
            connections.append(connection)
        await recorder.ask(connection, number, timeout_s, due)
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
                recorder.open(duration_s if requests is None else None, begin)
                hooks.append(asyncio.ensure_future(at_start()))
            if crashes or due >= last or measured == requests:
                break
            await _sleep_until(due)
            measured += due >= begin
            if len(tasks) >= max_in_flight:
                recorder.unsent += due >= begin
                continue
            if due >= begin:
                recorder.lags.append(max(0.0, time.perf_counter() - due))
            task = asyncio.ensure_future(one(number, due))
            tasks.add(task)
            task.add_done_callback(ended)
        if requests is None and not crashes:
            await _sleep_until(last)
            recorder.close()
        if tasks:
            await asyncio.wait(tasks)
        recorder.close()
        if crashes:
            raise crashes[0]
        await asyncio.gather(*hooks)

    if requests is None:
        _required(duration_s)
    try:
        interrupted = await _unless(stop, arrive(), recorder)
    finally:
        await _cancel(*tasks, *hooks)
        for connection in connections:
            await connection.close()
    return recorder.run(target, Load(rate=rate, arrivals=arrivals), interrupted)


class Recorder:
    """Counts a run from `open` to `close`. Times are of ``time.perf_counter``, in seconds."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.unsent = 0
        self.lags = array("d")
        self._begin: float | None = None
        self._end: float | None = None
        self._is_timed = False
        self._closed = False
        self._started = time.time()
        self._cpu = 0.0
        self._answers = 0
        self._latencies = array("d")
        self._errors: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._in_flight_at_end = 0

    def open(self, duration_s: float | None = None, begin: float | None = None) -> None:
        """Start counting, for so long, or until `close`. ``begin``: where it was to be a moment ago."""
        self._started, self._cpu = time.time(), time.process_time()
        self._begin = time.perf_counter() if begin is None else begin
        self._is_timed = duration_s is not None
        self._end = None if duration_s is None else self._begin + duration_s

    def close(self) -> None:
        """The measured time is over. Later answers are too late; errors are still counted."""
        if self._closed:
            return
        self._closed = True
        now = time.perf_counter()
        if self._begin is None:  # stopped during the warm-up
            self._begin, self._cpu = now, time.process_time()
        self._end = now if self._end is None else min(self._end, now)
        self._cpu = time.process_time() - self._cpu
        self._in_flight_at_end = self.in_flight

    def is_over(self) -> bool:
        """Whether the measured time is over."""
        return self._closed or (self._end is not None and time.perf_counter() >= self._end)

    async def ask(
        self, connection: Connection, number: int, timeout_s: float, due: float | None = None
    ) -> None:
        """Send a request and count its outcome.

        In a closed loop that is counted if it comes in the measured time. In an open loop the request was to
        be sent at ``due``: if that was in the measured time, its latency or its error is counted whenever it
        comes, or the slowest would be left out.
        """
        now = time.perf_counter()
        since = now if due is None else min(due, now)  # a timer may fire a fraction of a millisecond early
        self.in_flight += 1
        try:
            await connection.ask(number, timeout_s)
        except FailedError as error:
            if error.no_connection:
                await asyncio.sleep(_REFUSED_PAUSE_S)
            if self._is_measured(due):
                self._errors[error.kind] += 1
                self._examples.setdefault(error.kind, error.detail)
        else:
            now = time.perf_counter()
            in_time = self._begin is not None and (self._end is None or now <= self._end)
            measured = in_time if due is None else self._is_measured(due)
            # For a time, throughput is what comes in that time, whenever it was due; for a number, it is
            # that of the number.
            self._answers += in_time if self._is_timed else measured
            if measured:
                self._latencies.append(now - since)
        finally:
            self.in_flight -= 1

    def _is_measured(self, due: float | None) -> bool:
        return self._begin is not None and (due is None or due >= self._begin)

    def run(self, target: Target, load: Load, interrupted: bool) -> Run:
        """The figures, after `close`."""
        begin, end = self._begin or 0.0, self._end or 0.0
        return Run(
            route=target.route,
            address=str(target.server),
            load=load,
            batch=target.batch,
            started=self._started,
            seconds=end - begin,
            answers=self._answers,
            latencies=np.array(self._latencies, np.float64),
            errors=dict(self._errors.most_common()),
            examples={kind: text for kind, text in self._examples.items() if text},
            cpu_seconds=self._cpu,
            unsent=self.unsent,
            in_flight=self._in_flight_at_end,
            lag_s=float(np.percentile(self.lags, 99)) if self.lags else None,
            interrupted=interrupted,
        )


def _required(duration_s: float | None) -> float:
    if duration_s is None:
        raise ValueError("give duration_s, requests or both")
    return duration_s


def _gaps(rate: float, arrivals: str, seed: int) -> Iterator[float]:
    """Seconds between arrivals, without end."""
    if arrivals not in ARRIVALS:
        raise ValueError(f"arrivals is {arrivals!r}; there are {', '.join(ARRIVALS)}")
    if arrivals == "constant":
        return itertools.repeat(1 / rate)
    random_source = random.Random(seed)
    return (random_source.expovariate(rate) for _ in itertools.count())


async def _sleep_until(when: float) -> None:
    """Until a time of ``time.perf_counter``; yields to other tasks even if that is past."""
    await asyncio.sleep(max(0.0, when - time.perf_counter()))


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _together(*work: Work) -> None:
    """All of it; an exception in one cancels the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(*tasks)


async def _unless(stop: asyncio.Event | None, work: Work, recorder: Recorder) -> bool:
    """Do the work, unless it is stopped: whether it was."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future((stop or asyncio.Event()).wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return False
        recorder.close()
        return True
    finally:
        await _cancel(working, stopping)
