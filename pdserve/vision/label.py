"""A classification's label. It imports nothing, so that a client of a service loads no NumPy for it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Label:
    """A class: its number, its name, its score in [0, 1]."""

    class_id: int
    label: str
    score: float = field(metadata={"description": "between 0 and 1"})
