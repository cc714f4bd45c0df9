"""``pdserve runtime install NAME``, for the runtimes of the RUNTIMES table."""

import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.commands.runtimes import RUNTIMES

runtime_app = o.group("Install other runtimes.")


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
        made = resolve_name(RUNTIMES[name].install)(o.home(), python, os.environ, progress)
    content = {"name": name, "python": str(made.path), "version": made.python, "packages": made.versions}
    console.answer(content, f"{name}: installed, {made}", as_json)
    if not as_json:
        console.say(f"Next: pdserve serve classification --runtime {name}")
