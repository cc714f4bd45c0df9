"""The options of the parts of a pipeline of regions; those of a kind of service are its parts' together.

Declared with `pdserve.settings.setting`, so that command-line options, variables, keys and reference tables
follow. A kind may have other defaults.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import create_model

from pdserve.errors import SettingsError
from pdserve.settings import SettingsGroup, setting


class DetectorOptions(SettingsGroup):
    """Which boxes count: the best ``max_det_results`` with at least ``det_threshold``, None: the model's."""

    det_threshold: float | None = setting(
        "Results", None, "Score that a box needs; default: the model's, or 0.2.", "SCORE", ge=0, le=1
    )
    max_det_results: int = setting("Results", 5, "Most boxes of an image, the best.", "N", ge=1)


class BoxOptions(SettingsGroup):
    """How boxes are named."""

    labels: Path | None = setting("Results", None, "Label names, one a line, or class id and name.", "FILE")


class SearchOptions(SettingsGroup):
    """How regions are looked up in a gallery; the defaults are PP-ShiTu's.

    ``index`` is a name or a folder. An answer needs ``score_threshold``; boxes that overlap a better answer's
    by more than ``nms_threshold`` (IoU) are dropped.
    """

    index: str = setting("Model", "drink_dataset_v1.0", "The index of the gallery to search.", "NAME|DIR")
    score_threshold: float = setting("Results", 0.5, "Similarity that an object needs.", "SCORE")
    nms_threshold: float = setting(
        "Results", 0.05, "Overlap from which the less similar of two boxes is dropped.", "IOU", ge=0, le=1
    )
    top_k: int = setting("Results", 1, "Nearest gallery entries per object.", "N", ge=1)
    gallery_writes: bool = setting("Server", False, "Let callers change the gallery over HTTP.")


@cache
def joined(
    name: str, groups: tuple[type[SettingsGroup], ...], defaults: tuple[tuple[str, Any], ...] = ()
) -> type[SettingsGroup]:
    """A group with the options of all these, and other defaults of some. Raises SettingsError."""
    if len(groups) == 1 and not defaults:
        return groups[0]
    changed: dict[str, Any] = {}
    known = {option: info for group in groups for option, info in group.model_fields.items()}
    for option, value in defaults:
        if option not in known:
            raise SettingsError(f"options.{option} is no option here; there are {', '.join(known)}.")
        info = copy.copy(known[option])
        info.default = value
        changed[option] = (known[option].annotation, info)
    # Fields come in the order of the bases from the last to the first.
    made: Any = create_model(name, __base__=groups[::-1] or (SettingsGroup,), **changed)
    return made  # type: ignore[no-any-return]
