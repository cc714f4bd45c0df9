"""Several runs in a row: each route under each load, with what the server says of each."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pdserve.errors import UsageError
from pdserve.tools.bench.aim import Aim
from pdserve.tools.bench.load import closed_loop, open_loop
from pdserve.tools.bench.loop import in_loop, make_room, stopped_by_interrupt
from pdserve.tools.bench.run import Load, Run
from pdserve.tools.bench.server import Control, check_first
from pdserve.tools.bench.stages import Counters, ServerSide, between
from pdserve.tools.bench.target import Target


@dataclass(frozen=True)
class Plan:
    """What is to be run, on each target in turn. See pdserve.tools.bench.load for what the figures mean."""

    loads: Sequence[Load]
    duration_s: float | None = 10
    requests: int | None = None
    warm_up_s: float = 2
    timeout_s: float = 60
    seed: int = 0
    max_in_flight: int = 500


@dataclass(frozen=True)
class Watch:
    """Who is told of the runs: ``begins`` before each, ``ended`` after it, ``note`` of what is missing."""

    begins: Callable[[Target, Load], None]
    ended: Callable[[Run], None]
    note: Callable[[str], None]


def loads(clients: Sequence[float] | None, rates: Sequence[float] | None, arrivals: str) -> list[Load]:
    """Closed loops or open ones, in the order given; 8 clients if nothing is. Raises UsageError."""
    if clients is not None and rates is not None:
        raise UsageError("--clients is a closed loop and --rate an open one; give one of them.")
    if rates is not None:
        if not all(0 < rate < float("inf") for rate in rates):
            raise UsageError("--rate must be above 0 requests per second.")
        return [Load(rate=rate, arrivals=arrivals) for rate in rates]
    counts = [8.0] if clients is None else clients
    if not all(count >= 1 and count == int(count) for count in counts):
        raise UsageError("--clients must be whole numbers above 0.")
    return [Load(clients=int(count)) for count in counts]


def measure(plan: Plan, aim: Aim, watch: Watch) -> list[Run]:
    """All runs of a plan, one after the other; after Ctrl-C those until then, the last cut short.

    Raises UnreachableError, KeyRefusedError and ClientError before the first run; failures after that are
    counted.
    """
    make_room(max((load.clients or plan.max_in_flight for load in plan.loads), default=0))
    return in_loop(_measure(plan, aim, watch))


async def _measure(plan: Plan, aim: Aim, watch: Watch) -> list[Run]:
    if aim.control is not None and any(target.server == aim.control.address for target in aim.targets):
        await aim.control.check_ready(aim.service)
    for target in aim.targets:
        await check_first(target, plan.timeout_s, aim.service, aim.access)
    stages = Stages(aim.control, watch.note)
    runs: list[Run] = []
    with stopped_by_interrupt() as stop:
        for target, load in itertools.product(aim.targets, plan.loads):
            if stop.is_set():
                break
            watch.begins(target, load)
            run = await _one(plan, target, load, stages, stop)
            if not run.interrupted:
                run = replace(run, server=await stages.since_mark())
            runs.append(run)
            watch.ended(run)
    return runs


async def _one(plan: Plan, target: Target, load: Load, stages: "Stages", stop: asyncio.Event) -> Run:
    common: dict[str, Any] = {
        "duration_s": plan.duration_s,
        "requests": plan.requests,
        "warm_up_s": plan.warm_up_s,
        "timeout_s": plan.timeout_s,
        "at_start": stages.mark,
        "stop": stop,
    }
    if load.clients is not None:
        return await closed_loop(target, clients=load.clients, **common)
    return await open_loop(
        target,
        rate=load.rate or 0,
        arrivals=load.arrivals or "poisson",
        seed=plan.seed,
        max_in_flight=plan.max_in_flight,
        **common,
    )


class Stages:
    """Reads a server's numbers at the start and the end of runs; says once why it cannot."""

    def __init__(self, control: Control | None, note: Callable[[str], None]) -> None:
        self._control = control
        self._note = note
        self._before: Counters | None = None
        self._is_off = False

    async def mark(self) -> None:
        """A run's measured part begins."""
        self._before = await self._read()

    async def since_mark(self) -> ServerSide | None:
        """What the server did since, None where it does not say."""
        if self._before is None:
            return None
        after = await self._read()
        return None if after is None else between(self._before, after)

    async def _read(self) -> Counters | None:
        if self._is_off:
            return None
        if self._control is None:
            counters: Counters | str = "give the server's HTTP address too"
        else:
            counters = await self._control.counters()
        if isinstance(counters, str):
            self._is_off = True
            self._note(f"The server's stages are left out: {counters}.")
            return None
        return counters
