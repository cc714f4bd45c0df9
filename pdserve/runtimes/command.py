"""``pdserve export NAME`` and ``pdserve runtime install NAME``, for the runtimes of the RUNTIMES table."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.commands.runtimes import RUNTIMES, load

export_app = typer.Typer(
    name="export",
    help="Write a service for another runtime.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)
runtime_app = typer.Typer(
    name="runtime",
    help="Install other runtimes.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)


@export_app.callback()
def export() -> None:
    """Write a service for another runtime."""


for _name, _entry in RUNTIMES.items():
    export_app.command(_name)(load(_entry.export))


@runtime_app.callback()
def runtime() -> None:
    """Install other runtimes."""


@runtime_app.command("install")
def install(
    name: Annotated[
        str, typer.Argument(help="|".join(RUNTIMES), parser=o.one_of(RUNTIMES), metavar="RUNTIME")
    ],
    python: Annotated[
        Path | None,
        typer.Option("--python", metavar="PATH", help="A Python 3.8 or 3.9; default: one that is found."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Install another runtime for --runtime, in a Python environment made from your package index.

    It is checked by serving a tiny model, and replaces an installed one only when that succeeded.
    """
    with console.download_bars() as progress:
        made = load(RUNTIMES[name].install)(o.home(), python, os.environ, progress)
    if as_json:
        console.json_line(
            {"name": name, "python": str(made.path), "version": made.python, "packages": made.versions}
        )
    else:
        console.line(f"{name}: installed, {made}")
        console.say(f"Next: pdserve serve classification --runtime {name}")
