"""Play schedules, on several cores; what fails is played again, and written down."""

import gc
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass

from tests.simulation.patches import simulated
from tests.simulation.worlds import world_of

CHUNK = 1000


@dataclass(frozen=True)
class Failure:
    """A schedule in which something did not hold."""

    seed: int
    world: str
    error: str
    history: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed} ({self.world}): {self.error}", *(f"  {each}" for each in self.history)]
        return "\n".join([*lines, f"again: python -m tests.simulation --seed {self.seed}"])


def play(seed: int, world: str | None = None) -> Failure | None:
    """Play one schedule in a process that is `simulated`; with its history where it fails."""
    try:
        world_of(seed, world).play()
    except Exception:
        again = world_of(seed, world, record=True)
        try:
            again.play()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        else:
            found = "it failed, and played again it did not: something in it is not decided by the seed"
        return Failure(seed, type(again).__name__, found, tuple(again.history))
    return None


def play_all(first: int, count: int, world: str | None = None) -> list[Failure]:
    """Play ``count`` schedules from the seed ``first`` on, in this process."""
    # A schedule leaves some thousand objects in circles; looking for them all the time takes a fifth of it.
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    try:
        with simulated():
            return [failure for seed in range(first, first + count) if (failure := play(seed, world))]
    finally:
        gc.set_threshold(*thresholds)


def play_on_all_cores(
    first: int, count: int, world: str | None = None
) -> Iterator[tuple[int, list[Failure]]]:
    """The same on all cores, in chunks: how many were played in each, and what failed."""
    chunks = [(at, min(CHUNK, first + count - at), world) for at in range(first, first + count, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        yield from pool.imap_unordered(_chunk, chunks)


def _chunk(given: tuple[int, int, str | None]) -> tuple[int, list[Failure]]:
    return given[1], play_all(*given)
