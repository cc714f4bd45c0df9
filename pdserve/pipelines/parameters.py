"""What one request asks for otherwise than the service's settings say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pdserve.index.search import LoadedIndex

ClassThresholds = float | Mapping[Literal["default"] | int, float] | Sequence[float]
"""A least score for all classes, one by class id (with a ``default``), or one for each class in order."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Each None: as the settings say.

    ``det_threshold``: the least score of a detector's box, or by class id, where classes that are not named
    have the settings' own. ``label_threshold``: the least score of a label, of a model with several labels.
    ``index``: what is searched. ``least_similarity``: of a region's best entry; given, each of the detector's
    boxes is a region with an answer of its own, in which nothing may have been found, and the whole image is
    one where there is no box.
    """

    det_threshold: float | Mapping[int, float] | None = None
    label_threshold: ClassThresholds | None = None
    index: "LoadedIndex | None" = None
    least_similarity: float | None = None


USUAL = Parameters()
"""Of a request that says nothing else."""
