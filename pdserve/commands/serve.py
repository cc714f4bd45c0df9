"""``pdserve serve``: one command per entry of the SERVICES table, with the options of its settings."""

import os
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import typer

from pdserve.commands.missing import bring_service
from pdserve.commands.options import ConfigOption, flags, group, home, one_of, with_settings
from pdserve.commands.runtimes import RUNTIMES
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES, ServiceEntry
from pdserve.settings import PANELS

_NATIVE = "native"


def _command(entry: ServiceEntry) -> Callable[..., None]:
    @with_settings([entry], PANELS)
    def serve(
        config: ConfigOption = None,
        runtime: Annotated[
            Any,
            typer.Option(
                "--runtime",
                parser=one_of([_NATIVE, *RUNTIMES]),
                metavar="NAME",
                help=f"{_NATIVE}, or "
                + "; ".join(f"{name}: {other.help}" for name, other in RUNTIMES.items())
                + ".",
            ),
        ] = _NATIVE,
        python: Annotated[
            Path | None,
            typer.Option("--python", metavar="PATH", help="The Python of another runtime; default: found."),
        ] = None,
        **given: Any,
    ) -> None:
        settings = flags(given, entry.kind)

        def read_settings() -> Any:
            return entry.settings(settings, os.environ, config)

        if other := RUNTIMES.get(runtime):
            wanted = bring_service(read_settings(), home())
            resolve_name(other.serve)(wanted, home(), python, os.environ)
            return
        if python:
            raise UsageError(
                "--python goes with --runtime paddle-serving; pdserve's own runtime is this Python."
            )
        from pdserve.services import server

        server.serve(entry, read_settings, home(), bring_service)

    return serve


serve_app = group("Start a server.")
_PRECEDENCE = """Serves over HTTP and gRPC.

Settings come from the options, else from PDSERVE_… in the environment, else from the configuration file,
else from defaults."""
for _entry in SERVICES.values():
    _help = f"{_entry.help} {_PRECEDENCE}"
    serve_app.command(_entry.kind, help=_help, short_help=_entry.help)(_command(_entry))
