"""``pdserve serve A B …``: several services in one server, named here or in ``services:`` of a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve.commands.missing import bring_models, bring_service
from pdserve.commands.options import ConfigOption, flags, home, with_settings
from pdserve.commands.run import is_service, meant
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES

# What holds for all services: a setting of the other panels is one service's.
_PANELS = ("Device", "Server", "Batching", "Limits", "Security", "Log")


@with_settings(SERVICES.values(), _PANELS, ("offline",))
def several(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Kinds of service, and models by name, folder or address."),
    ] = None,
    config: ConfigOption = None,
    **given: Any,
) -> None:
    """Several services in one server: kinds with their usual models, models by name, or those of a file.

    Each is asked at /v1/{kind}/{name}, and at /v1/{kind} where it is the only one of its kind. The options
    hold for all; what a service has of its own stands under `pdserve: services:` of the file that --config
    names.
    """
    from pdserve.pipelines import named
    from pdserve.services import server, several
    from pdserve.settings import describe

    shared = {each.name for each in describe(SERVICES["classification"])} | {"gpu", "cpu"}
    every = flags({name: each for name, each in given.items() if name in shared}, "classification")
    every |= {name: each for name, each in given.items() if name not in shared and each is not None}
    words = [] if not names else named.checked(_named(names, bool(given.get("offline"))), "The command line")

    def plan() -> Mapping[str, several.Planned]:
        services, read = named.read_services(config) if config else ([], None)
        if words and services:
            raise UsageError(
                f"{config} has services of its own; leave out {' '.join(names or ())}, or write them there."
            )
        if not (services or words):
            raise UsageError(
                f"{config} has no `pdserve: services:`; type `pdserve serve KIND --config {config}` for one."
            )
        found = services or words
        ports = found[0].entry.ports
        return {
            each.name: several.Planned(
                each.entry, named.settings_of(each, read, every, os.environ, config, ports)
            )
            for each in found
        }

    server.serve_several(plan, home(), bring_service)


def _named(words: list[str], offline: bool) -> list[Any]:
    """What the words mean; a model that is not here is fetched, since it says what it does."""
    from pdserve.pipelines.named import NamedService

    found = []
    for word in words:
        if not is_service(word):
            bring_models([word], home(), offline=offline)
        entry, models = meant(word)
        name = entry.kind if word in SERVICES else Path(word).name.removesuffix("_serving")
        found.append(NamedService(name, entry.kind, models))
    return found
