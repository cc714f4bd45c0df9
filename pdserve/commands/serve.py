"""``pdserve serve``: one command per entry of the SERVICES table, with the options of its settings.

A file that defines a kind of service is one too: ``pdserve serve ./my.yml``. Several names are several
services: ``pdserve serve A B``, and a file may have them: ``pdserve serve --config shop.yml``.
"""

import itertools
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
from pdserve.commands.several import several
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES, ServiceEntry
from pdserve.settings import PANELS

_NATIVE = "native"
_SEVERAL = "NAME..."


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
    """The commands of the table, those of files, and the one of several services at once."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of one kind; of several where more names than one are typed first, or none."""
        names = list(itertools.takewhile(lambda word: not word.startswith("-"), args))
        if len(names) == 1:
            return super().resolve_command(ctx, args)
        return "", super().get_command(ctx, _SEVERAL), args

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An option that comes first is that of several services, unless it asks for help."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "--"):
            args = ["--", *args]
        return super().parse_args(ctx, args)

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
serve_app = group(
    "Start a server. Several names are several services in one server, as are those of a file: "
    f"`pdserve serve A B --help` shows their options.{_BROKEN}",
    _Kinds,
)
for _entry in SERVICES.values():
    _add(serve_app, _entry)
serve_app.command(_SEVERAL, hidden=True)(several)
