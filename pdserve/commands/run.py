"""``pdserve run``: from a model's name to its answers in one command, with what is missing brought first."""

import os
from typing import Annotated, Any

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.commands.images import find_sources
from pdserve.commands.missing import bring_models
from pdserve.commands.predict import (
    DrawOption,
    ImagesArgument,
    JobsOption,
    TopKOption,
    open_local,
)
from pdserve.commands.remote import answer_all
from pdserve.errors import UsageError
from pdserve.formats.serving_model import ServingModel
from pdserve.pipelines import SERVICES, TASKS, ServiceEntry

_PANELS = ("Model", "Device", "Preprocessing", "Results")


@o.with_settings(SERVICES.values(), _PANELS, without=("model", "top_k"))
def run(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A model's name, folder or address; or those of a service, as recognition or PP-ShiTuV2.",
        ),
    ],
    images: ImagesArgument,
    top_k: TopKOption = None,
    as_json: o.Json = False,
    draw: DrawOption = None,
    jobs: JobsOption = 8,
    **given: Any,
) -> None:
    """Answer images with a model, which is fetched and converted where it is missing.

    The model says itself which service that is. Afterwards the command is printed that serves it.
    """
    sources = find_sources(images)
    settings = {key: value for key, value in given.items() if value is not None}
    if not is_service(name):
        bring_models([name], o.home(), offline=settings.get("offline", False))
    entry, named = meant(name)
    flags = o.flags(named | settings | {"top_k": top_k}, entry.kind)
    asked = open_local(entry.kind, flags, os.environ, o.home())
    failed = answer_all(sources, asked, entry, draw, jobs, as_json)
    console.say(f"Next: {o.serve_command(entry.kind, named | settings)}")
    raise typer.Exit(1 if failed else 0)


def meant(name: str) -> tuple[ServiceEntry, dict[str, str]]:
    """The service that a kind, a set of models or a model here means, and its models by option.

    Raises what `open_model` raises, and UsageError where nothing says what the model does.
    """
    if name in SERVICES:
        return SERVICES[name], {}
    if together := [entry for entry in SERVICES.values() if name in entry.sets]:
        return together[0], {"model": name}
    from pdserve.models.find import open_model

    entry = SERVICES[TASKS[task_of(open_model(name, o.home()))]]
    return entry, {next(iter(entry.roles)): name}


def is_service(name: str) -> bool:
    """Whether a name is that of a kind of service, or of a set of models."""
    return name in SERVICES or any(name in entry.sets for entry in SERVICES.values())


def task_of(model: ServingModel) -> str:
    """What a model does, a key of TASKS. Raises UsageError where nothing says it."""
    from pdserve.models import catalog

    entry = catalog.load().get(model.name)
    for task in (model.description.task, entry.task if entry else None):
        if task is not None and task in TASKS:
            return task
    aliases = {each.alias for each in model.config.fetches}
    if "features" in aliases:
        return "embedding"
    if "prediction" in aliases:
        return "classification"
    if len(model.config.feeds) > 1:
        return "detection"
    raise UsageError(
        f"Nothing says what {model.name} does; type `pdserve predict --local --service NAME`, with one of "
        f"{', '.join(SERVICES)}."
    )
