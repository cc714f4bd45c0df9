"""``pdserve optimize``: make a faster form of a model, and publish it where it agrees with the float one."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.commands.missing import bring_models
from pdserve.errors import DisagreementError
from pdserve.pipelines import SERVICES

if TYPE_CHECKING:
    from pdserve.tools.optimize import Outcome


@o.with_settings(
    [SERVICES["classification"]], ("Device", "Preprocessing"), names=("offline",), without=("precision",)
)
def optimize(
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME|DIR", help="A model's name, folder or address."),
    ],
    precision: Annotated[
        Literal["int8", "bf16", "fp16"], typer.Option("--precision", help="The form to make.")
    ],
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibration",
            metavar="DIR|FILE",
            help="Images to calibrate int8 with: a few hundred, like those to be served.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="DIR|FILE",
            help="Images to compare on. Default: every other one of --calibration, left out of it.",
        ),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option("--min-agreement", min=0, max=1, help="Publish from this share of agreement on."),
    ] = 0.98,
    preset: Annotated[
        Literal["mixed", "performance"],
        typer.Option("--preset", help="mixed: asymmetric activations; performance: symmetric."),
    ] = "mixed",
    accuracy_control: Annotated[
        bool,
        typer.Option(
            "--accuracy-control", help="Leave layers float until the images for calibration agree; slow."
        ),
    ] = False,
    samples: Annotated[int, typer.Option("--samples", min=8, help="The most images that calibrate.")] = 300,
    task: Annotated[
        Literal["classification", "embedding", "detection"] | None,
        typer.Option("--task", help="The model's task, where it does not say."),
    ] = None,
    as_json: o.Json = False,
    **given: Any,
) -> None:
    """Make an int8 form of a model, or try bf16 or fp16, and publish it if it agrees with the float model.

    `--precision int8` then serves it. The report is stored with it, in the model's folder.
    """
    from pdserve.tools.optimize import Plan
    from pdserve.tools.optimize import optimize as make

    flags = o.flags(given, "classification") | {"model": model, "precision": precision}
    wanted = SERVICES["classification"].settings(flags, os.environ)
    plan = Plan(
        calibration or (),
        images or (),
        min_agreement,
        preset,
        accuracy_control,
        samples,
        task,
    )
    bring_models([model], o.home(), offline=wanted.server.offline)
    try:
        with console.image_bars() as bars:
            outcome = make(wanted.first_model, plan, o.home(), wanted.options, bars)
    except DisagreementError as error:
        if as_json:
            console.json_line({"published": None, **error.report})
        raise
    _report(outcome, model, as_json)


_ROLES = {"classification": "model", "detection": "detector", "embedding": "embedder"}


def _report(outcome: "Outcome", model: str, as_json: bool) -> None:
    from pdserve.tools.optimize.images import FEW

    report = outcome.report
    for each in outcome.skipped:
        console.say(f"skipped {each.path}: {each.reason}")
    if report.sets.shared:
        console.say("There were too few images to divide: the same ones calibrated and were compared.")
    if report.sets.calibration and len(report.sets.calibration) < FEW:
        console.say(f"{len(report.sets.calibration)} images calibrated it; use a few hundred.")
    content = report.to_json()
    if as_json:
        console.json_line({"published": str(outcome.folder), **content})
        return
    agreement = content["agreement"]
    rows: list[tuple[str, Any]] = [
        (f"{agreement['measure']} agreement with fp32", agreement["value"]),
        ("images compared", str(agreement["images"])),
        *((name.replace("_", " "), value) for name, value in report.agreement.figures.items()),
    ]
    for timed in report.speed:
        rows.append((f"ms, batch {timed.batch}", f"{timed.float_ms:.1f} -> {timed.optimized_ms:.1f}"))
        rows.append((f"times as fast, batch {timed.batch}", f"{timed.ratio:.2f}"))
    console.table((f"{report.model} as {report.precision}", ""), rows)
    console.line(f"{report.model}: {report.precision} published, {outcome.folder}")
    role = _ROLES[report.task]
    kind, operator = next(
        (kind, entry.roles[role].operator) for kind, entry in SERVICES.items() if role in entry.roles
    )
    if operator is None:
        console.say(f"Next: pdserve serve {kind} --{role} {model} --precision {report.precision}")
    else:
        console.say(
            f"Next: precision: {report.precision} in op.{operator}.local_service_conf of a config.yml, or, "
            f"once both models are {report.precision}, pdserve serve {kind} --precision {report.precision}"
        )
