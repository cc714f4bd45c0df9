"""What is counted while a load runs."""

import asyncio
import time
from array import array
from collections import Counter

import numpy as np

from pdserve.tools.bench.run import Load, Run
from pdserve.tools.bench.target import Connection, FailedError, Target

# A client whose connection was refused would else try again as fast as it can, and take the processor.
_REFUSED_PAUSE_S = 0.01


class Tally:
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

    def open(self, duration_s: float | None = None) -> None:
        """From now on it counts, for so long, or until `close`."""
        self._started, self._cpu = time.time(), time.process_time()
        self._begin = time.perf_counter()
        self._is_timed = duration_s is not None
        self._end = None if duration_s is None else self._begin + duration_s

    def close(self) -> None:
        """The measured time is over. Answers come too late now; errors are counted still."""
        if self._closed:
            return
        self._closed = True
        now = time.perf_counter()
        if self._begin is None:  # stopped while it warmed up
            self._begin, self._cpu = now, time.process_time()
        self._end = now if self._end is None else min(self._end, now)
        self._cpu = time.process_time() - self._cpu
        self._in_flight_at_end = self.in_flight

    def is_over(self) -> bool:
        """Whether the measured time, where it was fixed before, is over."""
        return self._closed or (self._end is not None and time.perf_counter() >= self._end)

    async def ask(self, connection: Connection, number: int, timeout_s: float) -> None:
        """A request of a closed loop: what comes of it in the measured time is counted."""
        since = time.perf_counter()
        try:
            await self._ask(connection, number, timeout_s)
        except FailedError as error:
            if self._begin is not None:
                self._failed(error)
        else:
            now = time.perf_counter()
            if self._in_time(now):
                self._answers += 1
                self._latencies.append(now - since)

    async def ask_due(
        self, connection: Connection, number: int, timeout_s: float, due: float, measured: bool
    ) -> None:
        """A request of an open loop, which was to be sent at ``due``: if that was in the measured time, its
        latency or its error is counted whenever it comes, or the slowest would be left out.
        """
        # A timer may fire a fraction of a millisecond early.
        since = min(due, time.perf_counter())
        try:
            await self._ask(connection, number, timeout_s)
        except FailedError as error:
            if measured:
                self._failed(error)
        else:
            now = time.perf_counter()
            # For a time, throughput is what comes in that time, of whenever it was due; for a number, it
            # is that of the number.
            self._answers += self._in_time(now) if self._is_timed else measured
            if measured:
                self._latencies.append(now - since)

    async def _ask(self, connection: Connection, number: int, timeout_s: float) -> None:
        self.in_flight += 1
        try:
            await connection.ask(number, timeout_s)
        except FailedError as error:
            if error.no_connection:
                await asyncio.sleep(_REFUSED_PAUSE_S)
            raise
        finally:
            self.in_flight -= 1

    def _in_time(self, now: float) -> bool:
        return self._begin is not None and (self._end is None or now <= self._end)

    def _failed(self, error: FailedError) -> None:
        self._errors[error.kind] += 1
        self._examples.setdefault(error.kind, error.detail)

    def run(self, target: Target, load: Load, interrupted: bool) -> Run:
        """What it came to, after `close`."""
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
