"""A hundred thousand schedules, in which everything holds; what fails says its seed and its schedule."""

import pytest

from tests.simulation.run import Failure, play_all
from tests.simulation.worlds import WORLDS

# Several tests, so that they run on several cores.
PARTS = 10
SCHEDULES = 100_000


def shown(failures: list[Failure]) -> str:
    return "\n\n".join([*(str(each) for each in failures[:3]), f"{len(failures)} fail"])


@pytest.mark.parametrize("world", WORLDS)
def test_schedules_of_each_world(world: str) -> None:
    failures = play_all(10_000_000, 200, world)
    assert not failures, shown(failures)


@pytest.mark.full
@pytest.mark.parametrize("part", range(PARTS))
def test_a_hundred_thousand_schedules(part: int) -> None:
    count = SCHEDULES // PARTS
    failures = play_all(part * count, count)
    assert not failures, shown(failures)
