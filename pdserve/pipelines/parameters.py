"""What one request asks for otherwise than the service's settings say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ClassThresholds = float | Mapping[Literal["default"] | int, float] | Sequence[float]
"""A least score for all classes, one by class id (with a ``default``), or one for each class in order."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Each None: as the settings say.

    ``det_threshold``: the least score of a detector's box, or by class id, where classes that are not named
    have the settings' own. ``label_threshold``: the least score of a label, of a model with several labels.
    """

    det_threshold: float | Mapping[int, float] | None = None
    label_threshold: ClassThresholds | None = None


USUAL = Parameters()
"""Of a request that says nothing else."""
