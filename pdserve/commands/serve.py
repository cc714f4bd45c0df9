"""``pdserve serve``: one command per entry of the SERVICES table, with the options of its settings.

A file that defines a kind of service is one too: ``pdserve serve ./my.yml``.
"""

import os
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pdserve.commands.missing import bring_service
from pdserve.commands.options import ConfigOption, flags, group, home, one_of, plain, with_settings
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
            wanted = read_settings()
            resolve_name(other.check)(wanted)
            resolve_name(other.serve)(bring_service(wanted, home(), native=False), home(), python, os.environ)
            return
        if python:
            raise UsageError(
                "--python goes with --runtime paddle-serving; pdserve's own runtime is this Python."
            )
        from pdserve.services import server

        server.serve(entry, read_settings, home(), bring_service)

    return serve


class _Kinds(TyperGroup):
    """The commands of the table, and those of files."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A kind's command; a file's is made when it is typed. Raises SettingsError for one that is wrong."""
        if found := super().get_command(ctx, cmd_name):
            return found
        if cmd_name not in SERVICES:
            return None
        entry = SERVICES[cmd_name]
        one = group("")
        _add(one, entry)
        made = plain(typer.main.get_command(one))
        return made.commands[entry.kind]


def _add(app: typer.Typer, entry: ServiceEntry) -> None:
    app.command(entry.kind, help=f"{entry.help} {_PRECEDENCE}", short_help=entry.help)(_command(entry))


_PRECEDENCE = """Serves over HTTP and gRPC.

Settings come from the options, else from PDSERVE_… in the environment, else from the configuration file,
else from defaults."""
_BROKEN = "".join(f"\n\nNot here: {error.message}" for error in SERVICES.broken().values())
serve_app = group(f"Start a server.{_BROKEN}", _Kinds)
for _entry in SERVICES.values():
    _add(serve_app, _entry)
