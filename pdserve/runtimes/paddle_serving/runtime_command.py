"""``pdserve runtime``: what other runtimes need, installed."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands import options as o

runtime_app = typer.Typer(
    name="runtime", help="Install other runtimes.", no_args_is_help=True, rich_markup_mode=None
)


class Installable(StrEnum):
    """What can be installed."""

    paddle_serving = "paddle-serving"


@runtime_app.callback()
def runtime() -> None:
    """Install other runtimes."""


@runtime_app.command("install")
def install(
    name: Annotated[Installable, typer.Argument(help="The runtime.")],
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="A Python 3.8 or 3.9; one that is found, if not said."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Make a Python environment with Paddle Serving, from your package index, for --runtime paddle-serving.

    It is checked by a tiny model that is served and asked once, and replaces an older one only then.
    """
    from pdserve.runtimes.paddle_serving.install import install

    with console.download_bars() as progress:
        made = install(o.home(), python, os.environ, progress)
    if as_json:
        console.json_line(
            {"name": name.value, "python": str(made.path), "version": made.python, "packages": made.versions}
        )
    else:
        console.line(f"{name.value}: installed, {made}")
        console.say(f"Next: pdserve serve classification --runtime {name.value}")
