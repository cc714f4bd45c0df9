"""What the commands ``pdserve export kubernetes`` and ``systemd`` have in common."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve.commands import options as o
from pdserve.commands.missing import bring_service
from pdserve.deploy.bundle import Bundle, bundle
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="What it is called there; default: pdserve-SERVICE."),
]


def bring(
    service: str, config: Path | None, name: str | None, given: Mapping[str, Any]
) -> tuple[Bundle, Home]:
    """What is to be deployed by a command's options, once its models are here; and the home they are in."""
    entry, home = SERVICES[service], o.home()
    settings = entry.settings(o.flags(given, service), os.environ, config)
    settings = bring_service(settings, home, native=False)
    return bundle(entry, settings, home, name, config), home
