"""The simulation finds faults: each of these is put in, and some seed soon shows it."""

import asyncio
from typing import Any

import pytest

from pdserve.services import batcher, budget, reload
from pdserve.services.batcher import Batcher
from pdserve.services.budget import Reservation
from pdserve.services.replica import Replica, Requests
from pdserve.services.watch import IndexWatch
from tests.simulation.patches import simulated
from tests.simulation.run import play

MOST = 6000


def found(patch: pytest.MonkeyPatch, world: str, holder: Any, name: str, fault: Any) -> str:
    """What the first schedule that fails says; the fault is put in over what the simulation patches."""
    with simulated():
        patch.setattr(holder, name, fault)
        for seed in range(MOST):
            if failure := play(seed, world):
                assert f"--seed {seed}" in str(failure)
                assert failure.history
                return failure.error
    raise AssertionError(f"{MOST} schedules do not show it")


def test_items_of_those_who_left_go_into_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: Any, count: int) -> Any:
        return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]

    assert "goes into an engine" in found(monkeypatch, "batcher", Batcher, "_take", take)


def test_a_deadline_that_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, "batcher", batcher, "_expire", lambda group: None)


def test_a_hanging_batch_that_is_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    def hung(self: Any, worker: Any) -> None:
        self._busy.discard(worker)
        worker.thread.stop()
        self._on_broken("hanging")
        self._check_done()

    assert found(monkeypatch, "batcher", Batcher, "_hung", hung)


def test_results_in_the_order_in_which_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(self: Any, place: int, outcome: Any) -> None:
        self.results[len(self.results) - self.left] = outcome
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)

    assert "has the result of" in found(monkeypatch, "batcher", batcher._Group, "settle", settle)


def test_a_replica_that_is_closed_with_requests_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(older: Replica) -> None:
        await older.close()

    assert found(monkeypatch, "service", reload, "_close_unused", close)


def test_requests_that_are_not_counted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: Any, *_: object) -> None:
        self._count -= 1

    assert found(monkeypatch, "service", Requests, "__exit__", leave)


def test_engines_that_are_closed_while_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(self: Any) -> None:
        for each in self._batchers.values():
            await each.close()
        await self.abandon()
        self.pipeline.close()

    assert found(monkeypatch, "service", Replica, "close", close)


@pytest.mark.full
def test_those_who_wait_for_a_replaced_engine_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, replica: Any, cause: str) -> None:
        if replica is self.active and not self.closing:
            self._spawn(self._rebuild(self.active, cause))

    assert found(monkeypatch, "service", reload.Reloader, "broken", broken)


def test_an_older_version_that_takes_the_place_of_a_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    error = found(monkeypatch, "gallery", IndexWatch, "refresh", IndexWatch._refresh)
    assert "takes the place of" in error


def test_a_write_that_is_acknowledged_before_it_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refresh(self: Any) -> None:
        pass

    assert "active" in found(monkeypatch, "gallery", IndexWatch, "refresh", refresh)


def test_a_reservation_that_is_given_back_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def release(self: Any) -> None:
        self._budget.used -= self.amount
        self._budget._settle()

    assert "reserved" in found(monkeypatch, "budget", Reservation, "release", release)


@pytest.mark.full
def test_who_leaves_as_it_is_granted_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiter(budget._Waiter):
        granted = property(lambda self: False, lambda self, value: None)

    assert found(monkeypatch, "budget", budget, "_Waiter", Waiter)


def test_what_is_shown_again_is_the_same() -> None:
    """Nothing but the seed decides: two plays of a schedule have the same history."""
    from tests.simulation.worlds import WORLDS, world_of

    with simulated():
        for world in WORLDS:
            first, again = (world_of(77, world, record=True) for _ in range(2))
            first.play()
            again.play()
            assert first.history == again.history
    assert asyncio._get_running_loop() is None
