"""``pdserve optimize``: a faster form of a model, published where it agrees with the float one.

INT8 is made by quantisation and kept beside the model; what fp16 and bf16 run is the model itself, so that
only a report is kept of them. See agreement.py for what agreeing means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve import engines
from pdserve.engines import Device, Engine, table
from pdserve.engines import int8 as optimized
from pdserve.engines.int8 import fingerprint
from pdserve.errors import DisagreementError
from pdserve.files import file_lock, replace_folder
from pdserve.formats.model_files import read_program
from pdserve.models.home import Home
from pdserve.progress import SILENT, Progress
from pdserve.settings import ClassificationOptions, ModelSettings
from pdserve.tools.optimize import images, quantize, report, speed
from pdserve.tools.optimize.agreement import Agreement
from pdserve.tools.optimize.images import Picture, Sets, Skipped
from pdserve.tools.optimize.plan import Plan, check
from pdserve.tools.optimize.report import Report
from pdserve.tools.optimize.speed import Speed
from pdserve.tools.optimize.subjects import Subject, open_subject

__all__ = ["Outcome", "Plan", "optimize"]

TASK = "comparing"
_AT_A_TIME = 8


@dataclass(frozen=True)
class Outcome:
    """A published form: where it is, its report, and what could not be read of the images given."""

    folder: Path
    report: Report
    skipped: Sequence[Skipped]


def optimize(
    settings: ModelSettings,
    plan: Plan,
    home: Home,
    results: ClassificationOptions | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Make the form of ``settings.precision``, compare it with the float model, and publish it.

    ``results``: a classifier's preprocessing, where its own description is not enough. Raises
    DisagreementError where the two agree on too little (nothing is left behind then, as after any error),
    UsageError for a plan that cannot be carried out, DeviceError where the device does not have the
    precision, EngineMissingError, UnsupportedModelError, ModelError, DiskError.
    """
    settings = check(plan, settings, home)
    subject = open_subject(settings, home, results, plan.task)
    target = optimized.folder(subject.model, settings.precision)
    lock = target.with_name(f"{target.name}.lock")
    opened = [subject.engine]
    try:
        if settings.precision != "int8":  # a device that does not have it says so before images are read
            opened.append(_open(subject, settings))
        sets, skipped = _images(subject, plan, progress)
        with file_lock(lock, subject.model.name, progress), replace_folder(target) as folder:
            if settings.precision == "int8":
                quantize.quantize(
                    subject,
                    sets.calibration,
                    folder,
                    preset=plan.preset,
                    max_drop=1 - plan.min_agreement if plan.accuracy_control else None,
                    progress=progress,
                )
                opened.append(_open(subject, settings, folder))
            agreement = _compared(subject, opened[1], sets.comparison, progress)
            speeds: list[Speed] = []
            if agreement.value >= plan.min_agreement:
                example = subject.prepare(sets.comparison[0].read())
                speeds = speed.measure(subject.engine, opened[1], example.feeds)
            made = _report(subject, opened[1], settings, plan, sets, len(skipped), agreement, speeds)
            if agreement.value < plan.min_agreement:
                raise _disagreement(made, plan)
            report.write(made, folder)
    finally:
        for engine in opened:
            engine.close()
    return Outcome(target, made, skipped)


def _open(subject: Subject, settings: ModelSettings, folder: Path | None = None) -> Engine:
    return engines.load(
        subject.model,
        engine=subject.engine.name,
        device=Device.parse(settings.devices[0]),
        threads=settings.threads if isinstance(settings.threads, int) else None,
        precision=settings.precision,
        optimized=folder,
    )


def _images(subject: Subject, plan: Plan, progress: Progress) -> tuple[Sets, Sequence[Skipped]]:
    found = images.find(plan.calibration, "--calibration")
    given = images.find(plan.images, "--images")
    calibration, skipped = images.read(found, subject.prepare, progress)
    comparison, more = images.read(given, subject.prepare, progress)
    if not plan.calibration:
        return images.enough(comparison), more
    sets = images.choose(calibration, comparison if plan.images else None, plan.samples)
    return sets, [*skipped, *more]


def _compared(subject: Subject, engine: Engine, pictures: Sequence[Picture], progress: Progress) -> Agreement:
    floats, others = [], []
    progress.start(TASK, len(pictures), 0)
    for at in range(0, len(pictures), _AT_A_TIME):
        some = [subject.prepare(picture.read()) for picture in pictures[at : at + _AT_A_TIME]]
        floats += subject.answers(some, subject.engine)
        others += subject.answers(some, engine)
        progress.advance(TASK, len(some))
    progress.done(TASK)
    return subject.compare(floats, others)


def _report(
    subject: Subject,
    engine: Engine,
    settings: ModelSettings,
    plan: Plan,
    sets: Sets,
    skipped: int,
    agreement: Agreement,
    speeds: Sequence[Speed],
) -> Report:
    model, int8 = subject.model, settings.precision == "int8"
    made_with = {"nncf": quantize.require()} if int8 else {}
    how = {"preset": plan.preset, "accuracy_control": plan.accuracy_control}
    return Report(
        model=model.name,
        fingerprint=fingerprint(model.files, read_program(model.files)),
        precision=settings.precision,
        task=subject.task,
        preprocessing=subject.preprocessing,
        engine=engine.description,
        versions={engine.name: table.version(engine.name)} | made_with,
        settings=how if int8 else {},
        sets=sets,
        skipped=skipped,
        agreement=agreement,
        min_agreement=plan.min_agreement,
        speed=speeds,
    )


def _disagreement(made: Report, plan: Plan) -> DisagreementError:
    told = made.agreement
    advice = [f"give a lower --min-agreement if {told.value:.4f} will do"]
    if made.precision == "int8":
        other = "performance" if plan.preset == "mixed" else "mixed"
        more = f"calibrate with more than {len(made.sets.calibration)} images like those that will be served"
        control = [] if plan.accuracy_control else ["leave some layers float with --accuracy-control"]
        advice = [more, f"try --preset {other}", *control, *advice]
    said = ", ".join(advice[:-1]) + (", or " if advice[1:] else "") + advice[-1]
    return DisagreementError(
        f"{made.model} as {made.precision} is not published: its {told.measure} agreement with fp32 is "
        f"{told.value:.4f} on {told.images} images, below {plan.min_agreement}; {said}.",
        made.described(),
    )
