"""What shall be optimised, and on which images: asked for, and checked before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pdserve.errors import UsageError
from pdserve.models.home import Home
from pdserve.settings import ModelSettings
from pdserve.tools.optimize import quantize


@dataclass(frozen=True)
class Plan:
    """How to optimise and how to judge it.

    ``calibration`` (int8 only) and ``images``, to compare on: files and folders; without ``images`` those
    for calibration are divided. ``min_agreement``: the least share, 0 to 1, that is published. ``preset``:
    NNCF's. ``accuracy_control``: put layers back to float until the calibration images agree so well.
    ``samples``: how many images calibrate at most. ``task``: where the model does not tell.
    """

    calibration: Sequence[Path] = ()
    images: Sequence[Path] = ()
    min_agreement: float = 0.98
    preset: Literal["mixed", "performance"] = "mixed"
    accuracy_control: bool = False
    samples: int = 300
    task: str | None = None


def check(plan: Plan, settings: ModelSettings, home: Home) -> ModelSettings:
    """The settings, with the engine that the precision needs.

    Raises UsageError for a plan that cannot be carried out, EngineMissingError where NNCF is needed and
    missing.
    """
    precision = settings.precision
    if precision == "fp32":
        raise UsageError("fp32 is the model as it is; give --precision int8, bf16 or fp16.")
    if precision != "int8":
        if plan.calibration:
            raise UsageError(f"--calibration is for int8; to compare {precision} with fp32 give --images.")
        if not plan.images:
            raise UsageError(f"On which images shall {precision} be compared with fp32? Give --images DIR.")
        return settings
    if settings.engine not in ("auto", "openvino"):
        raise UsageError(f"int8 is made for the engine openvino, not for {settings.engine}.")
    if settings.devices[0] != "cpu":
        raise UsageError("int8 runs on the CPU, by openvino; leave out --gpu.")
    if not plan.calibration:
        galleries = sorted(home.indexes.glob("*/gallery"))
        example = f", as in --calibration {galleries[0]}" if galleries else ""
        raise UsageError(
            "int8 is calibrated on images, a few hundred like those that will be served: give --calibration "
            f"DIR{example}."
        )
    quantize.require()
    return settings.model_copy(update={"engine": "openvino"})
