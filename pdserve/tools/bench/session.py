"""Several runs in a row: each route under each load, with the server's own figures of each."""

import asyncio
import itertools
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, TypeVar

from pdserve.errors import UsageError
from pdserve.tools.bench.load import closed_loop, open_loop
from pdserve.tools.bench.run import Load, Run, Target
from pdserve.tools.bench.server import StageReader, check_first
from pdserve.tools.bench.targets import Targets

Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """What is run, on each target in turn. See pdserve.tools.bench.load for what the figures mean."""

    loads: Sequence[Load]
    duration_s: float | None = 10
    requests: int | None = None
    warm_up_s: float = 2
    timeout_s: float = 60
    seed: int = 0
    max_in_flight: int = 500


def loads(clients: Sequence[float] | None, rates: Sequence[float] | None, arrivals: str) -> list[Load]:
    """Closed loops or open ones, in the order given; 8 clients without either. Raises UsageError."""
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


def measure(
    plan: Plan, chosen: Targets, on_run: Callable[[Run], None], note: Callable[[str], None]
) -> list[Run]:
    """All runs of a plan, one after the other; after Ctrl-C those until then, the last cut short.

    ``on_run`` is called after each, ``note`` with text for the user before each and where the server's
    figures are missing. Raises UnreachableError, KeyRefusedError and ClientError before the first run;
    failures after that are counted.
    """
    _allow_connections(max((load.clients or plan.max_in_flight for load in plan.loads), default=0))
    return in_loop(_measure(plan, chosen, on_run, note))


async def _measure(
    plan: Plan, chosen: Targets, on_run: Callable[[Run], None], note: Callable[[str], None]
) -> list[Run]:
    probe = chosen.probe
    if probe is not None and any(target.server == probe.address for target in chosen.targets):
        await probe.check_ready(chosen.service)
    for target in chosen.targets:
        await check_first(target, plan.timeout_s, chosen.service, chosen.access)
    stages = StageReader(probe, note)
    runs: list[Run] = []
    with _stopped_by_interrupt() as stop:
        for target, load in itertools.product(chosen.targets, plan.loads):
            if stop.is_set():
                break
            note(f"{target.route} at {target.server}: {load} …")
            run = await _one(plan, target, load, stages, stop)
            if not run.interrupted:
                run = replace(run, server=await stages.since_mark())
            runs.append(run)
            on_run(run)
    return runs


async def _one(plan: Plan, target: Target, load: Load, stages: StageReader, stop: asyncio.Event) -> Run:
    common: dict[str, Any] = {
        name: getattr(plan, name) for name in ("duration_s", "requests", "warm_up_s", "timeout_s")
    }
    common |= {"at_start": stages.mark, "stop": stop}
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


def in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run``, on uvloop where it is installed: half the cost per request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


@contextmanager
def _stopped_by_interrupt() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C sets; the second ends the process, as it always does."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _allow_connections(count: int) -> None:
    """Let this process have so many connections open. Raises UsageError where the system forbids it."""
    if sys.platform == "win32":
        return
    import resource

    need = count + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        raise UsageError(
            f"{count} connections are more than this system lets a process have open ({hard}); "
            "take fewer with --clients or --max-in-flight."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
