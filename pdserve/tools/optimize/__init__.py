"""``pdserve optimize``: a faster form of a model, published where it agrees with the float one.

INT8 is made by quantisation and stored with the model; fp16 and bf16 run the model itself, so only a report
is stored for them. See tasks.py for what agreement means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pdserve import engines
from pdserve.engines import Device, Engine, table
from pdserve.engines import int8 as optimized
from pdserve.engines.int8 import fingerprint
from pdserve.errors import DisagreementError, UsageError
from pdserve.files import replace_folder
from pdserve.formats.model_files import read_program
from pdserve.locks import file_lock
from pdserve.models.home import Home
from pdserve.progress import SILENT, Progress
from pdserve.settings import ClassificationOptions, ModelSettings
from pdserve.tools.optimize import images, quantize, report
from pdserve.tools.optimize.images import ImageFile, Sets, Skipped
from pdserve.tools.optimize.report import Report
from pdserve.tools.optimize.tasks import Agreement, Task, open_task

__all__ = ["Outcome", "Plan", "optimize"]

COMPARING = "comparing"
_AT_A_TIME = 8


@dataclass(frozen=True)
class Plan:
    """How to optimise and how to judge it.

    ``calibration`` (int8 only) and ``images``, to compare on: files and folders; without ``images`` those
    for calibration are divided. ``min_agreement``: the least share, 0 to 1, that is published. ``preset``:
    NNCF's. ``accuracy_control``: put layers back to float until the calibration images agree so well.
    ``samples``: how many images calibrate at most. ``task``: where the model does not say.
    """

    calibration: Sequence[Path] = ()
    images: Sequence[Path] = ()
    min_agreement: float = 0.98
    preset: Literal["mixed", "performance"] = "mixed"
    accuracy_control: bool = False
    samples: int = 300
    task: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A published form: its folder, its report, and the images that could not be read."""

    folder: Path
    report: Report
    skipped: Sequence[Skipped]


def optimize(
    settings: ModelSettings,
    plan: Plan,
    home: Home,
    options: ClassificationOptions | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Make the form of ``settings.precision``, compare it with the float model, and publish it.

    ``options``: a classifier's preprocessing, where its own description is not enough. Raises
    DisagreementError where the two agree on too little (nothing is left behind then, as after any error),
    UsageError for a plan that cannot be carried out, DeviceError where the device does not have the
    precision, EngineMissingError, UnsupportedModelError, ModelError, DiskError.
    """
    settings = _checked(settings, plan, home)
    task = open_task(settings, home, options, plan.task)
    target = optimized.folder(task.model, settings.precision)
    lock = target.with_name(f"{target.name}.lock")
    opened = [task.engine]
    how: dict[str, Any] = {}
    made_with: dict[str, str] = {}
    try:
        if settings.precision != "int8":  # a device without it is reported before images are read
            opened.append(_open(task, settings))
        sets, skipped = _images(task, plan, progress)
        with file_lock(lock, task.model.name, progress), replace_folder(target) as folder:
            if settings.precision == "int8":
                quantize.quantize(
                    task,
                    sets.calibration,
                    folder,
                    preset=plan.preset,
                    max_drop=1 - plan.min_agreement if plan.accuracy_control else None,
                    progress=progress,
                )
                opened.append(_open(task, settings, folder))
                how = {"preset": plan.preset, "accuracy_control": plan.accuracy_control}
                made_with = {"nncf": quantize.require()}
            engine, model = opened[1], task.model
            agreement = _compare(task, engine, sets.comparison, progress)
            agrees = agreement.value >= plan.min_agreement
            example = task.prepare(sets.comparison[0].read())
            made = Report(
                model=model.name,
                fingerprint=fingerprint(model.files, read_program(model.files)),
                precision=settings.precision,
                task=task.name,
                preprocessing=task.preprocessing,
                engine=engine.description,
                versions={engine.name: table.version(engine.name)} | made_with,
                settings=how,
                sets=sets,
                skipped=len(skipped),
                agreement=agreement,
                min_agreement=plan.min_agreement,
                speed=report.measure_speed(task.engine, engine, example.feeds) if agrees else (),
            )
            if not agrees:
                raise _disagreement(made, plan)
            report.write(made, folder)
    finally:
        for engine in opened:
            engine.close()
    return Outcome(target, made, skipped)


def _checked(settings: ModelSettings, plan: Plan, home: Home) -> ModelSettings:
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
            raise UsageError(f"Comparing {precision} with fp32 needs images; give --images DIR.")
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


def _open(task: Task, settings: ModelSettings, folder: Path | None = None) -> Engine:
    return engines.load(
        task.model,
        engine=task.engine.name,
        device=Device.parse(settings.devices[0]),
        threads=settings.threads if isinstance(settings.threads, int) else None,
        precision=settings.precision,
        optimized=folder,
    )


def _images(task: Task, plan: Plan, progress: Progress) -> tuple[Sets, Sequence[Skipped]]:
    found = images.find(plan.calibration, "--calibration")
    given = images.find(plan.images, "--images")
    calibration, skipped = images.read(found, task.prepare, progress)
    comparison, more = images.read(given, task.prepare, progress)
    if not plan.calibration:
        return images.comparison_only(comparison), more
    sets = images.choose(calibration, comparison if plan.images else None, plan.samples)
    return sets, [*skipped, *more]


def _compare(task: Task, engine: Engine, files: Sequence[ImageFile], progress: Progress) -> Agreement:
    floats, others = [], []
    progress.start(COMPARING, len(files), 0)
    for at in range(0, len(files), _AT_A_TIME):
        some = [task.prepare(file.read()) for file in files[at : at + _AT_A_TIME]]
        floats += task.answers(some, task.engine)
        others += task.answers(some, engine)
        progress.advance(COMPARING, len(some))
    progress.done(COMPARING)
    return task.compare(floats, others)


def _disagreement(made: Report, plan: Plan) -> DisagreementError:
    agreement = made.agreement
    advice = [f"give a lower --min-agreement if {agreement.value:.4f} is enough"]
    if made.precision == "int8":
        other = "performance" if plan.preset == "mixed" else "mixed"
        more = f"calibrate with more than {len(made.sets.calibration)} images like those that will be served"
        control = [] if plan.accuracy_control else ["leave some layers float with --accuracy-control"]
        advice = [more, f"try --preset {other}", *control, *advice]
    listed = ", ".join(advice[:-1]) + (", or " if advice[1:] else "") + advice[-1]
    return DisagreementError(
        f"{made.model} as {made.precision} is not published: its {agreement.measure} agreement with fp32 is "
        f"{agreement.value:.4f} on {agreement.images} images, below {plan.min_agreement}; {listed}.",
        made.to_json(),
    )
