"""The COMMANDS table. Each is loaded when it is typed, so that ``pdserve --help`` loads none of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pdserve import __version__, console, process
from pdserve.machine import bound_threads

_AGAIN = "the same command starts again"
_GOES_ON = "the same command goes on"
_READS = f"nothing was changed; {_AGAIN}."


@dataclass(frozen=True)
class Command:
    """``target``: import string "module:name" of a function, or of a typer.Typer with commands of its own.

    ``interrupted``: what Ctrl-C leaves, and how to go on, where the command itself does not say more.
    """

    target: str
    help: str
    interrupted: str = _READS
    panel: str = "Commands"


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "pdserve.commands.run:run",
        "Fetch, convert and run a model on images.",
        f"what was fetched and converted is kept, and {_GOES_ON}.",
    ),
    "fetch": Command(
        "pdserve.commands.fetch:fetch",
        "Download models and data sets.",
        f"what has come is kept, and {_GOES_ON}.",
    ),
    "convert": Command(
        "pdserve.commands.convert:convert",
        "Convert inference models to serving models.",
        f"what was converted is kept whole, and {_GOES_ON}.",
    ),
    "alias": Command("pdserve.commands.alias:alias", "Show or change the feeds and fetches of a model."),
    "serve": Command(
        "pdserve.commands.serve:serve_app",
        "Start a server.",
        f"the server was not ready yet; what was fetched and converted is kept, and {_AGAIN}.",
    ),
    "predict": Command(
        "pdserve.commands.predict:predict",
        "Ask a server, or a local model, about images.",
        f"answers that are printed are whole; {_AGAIN}.",
    ),
    "index": Command(
        "pdserve.commands.index:index_app",
        "Build, change and examine a gallery's index.",
        f"the index is as it was, unless its new version was printed; {_AGAIN}.",
    ),
    "doctor": Command("pdserve.commands.doctor:doctor", "Check packages, engines, devices and ports."),
    "list": Command("pdserve.commands.list:list_", "List the models and indexes that are here."),
    "show": Command("pdserve.commands.show:show", "Show a model or an index, and where it came from."),
    "load": Command(
        "pdserve.commands.load:load",
        "Load a service of a running server.",
        "the server goes on with it; `pdserve load NAME` waits for it again.",
    ),
    "unload": Command(
        "pdserve.commands.load:unload",
        "Unload a service of a running server.",
        "the server goes on with it; `pdserve unload NAME` waits for it again.",
    ),
    "rm": Command(
        "pdserve.commands.rm:rm",
        "Remove models and indexes.",
        f"what was not said to be removed is here; {_GOES_ON}.",
    ),
    "bench": Command(
        "pdserve.tools.bench.command:bench", "Measure a running service under load.", panel="Tools"
    ),
    "tune": Command(
        "pdserve.tools.tune.command:tune",
        "Find the fastest settings on this machine.",
        f"nothing is decided, and nothing written; {_AGAIN}.",
        "Tools",
    ),
    "optimize": Command(
        "pdserve.tools.optimize.command:optimize",
        "Make a faster int8, bf16 or fp16 model.",
        f"nothing was published, unless that was printed; {_AGAIN}.",
        "Tools",
    ),
    "export": Command(
        "pdserve.commands.export:export_app",
        "Write a service for where servers run, or for another runtime.",
        f"what was not said to be written is not there, or not whole; {_AGAIN}.",
        "Tools",
    ),
    "runtime": Command(
        "pdserve.runtimes.command:runtime_app",
        "Install other runtimes.",
        f"what was not said to be installed is not; {_AGAIN}.",
        "Tools",
    ),
}


class LazyCommand(TyperCommand):
    """A line of the table in ``--help``; `load` imports the command itself."""

    def __init__(self, name: str, entry: Command) -> None:
        super().__init__(name, help=entry.help, rich_help_panel=entry.panel)
        self._target, self._interrupted = entry.target, entry.interrupted

    def load(self) -> Any:
        """Import the command, or the group of commands."""
        bound_threads(os.environ)  # before NumPy and the engines are loaded, which read it then
        target = resolve_name(self._target)
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False, rich_markup_mode="rich")
            target.command(self.name)(function)
        from pdserve.commands.options import plain

        return plain(typer.main.get_command(target))

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        context = self.load().make_context(info_name, args, parent, **extra)
        process.begin(self._interrupted)
        return context


class _Table(TyperGroup):
    """The group of all commands in COMMANDS."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(LazyCommand(name, entry))


app = typer.Typer(
    name="pdserve",
    cls=_Table,
    no_args_is_help=True,
    # Paddle Serving spells its options with underscores: --serving_server.
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        console.line(f"pdserve {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fetch, convert and serve PaddlePaddle vision models.

    Start with: run NAME IMAGE, or serve classification --model NAME and predict IMAGE.
    """
