"""The worlds, and which share of the schedules each has."""

from tests.simulation.batcher import BatcherWorld
from tests.simulation.budget import BudgetWorld
from tests.simulation.gallery import GalleryWorld
from tests.simulation.service import ServiceWorld
from tests.simulation.world import World

WORLDS: dict[str, tuple[type[World], int]] = {
    "batcher": (BatcherWorld, 6),
    "service": (ServiceWorld, 4),
    "gallery": (GalleryWorld, 4),
    "budget": (BudgetWorld, 6),
}
"""Name -> the world, and how many of every twenty seeds are its own."""

_ORDER = [name for name, (_, share) in WORLDS.items() for _ in range(share)]


def world_of(seed: int, name: str | None = None, record: bool = False) -> World:
    """The schedule of a seed; ``name`` None: of the world whose turn it is."""
    kind, _ = WORLDS[name or _ORDER[seed % len(_ORDER)]]
    return kind(seed, record)
