"""Command-line options: those that several commands share, and those made of the settings of services."""

import inspect
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from pdserve.commands.predict_options import OPTIONS
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES, TASKS, ServiceEntry

if TYPE_CHECKING:
    from pdserve.models.home import Home
    from pdserve.settings import Setting

Command = TypeVar("Command", bound=Callable[..., None])


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """A typer parser that takes these names only."""

    def parse(text: str) -> str:
        if text not in names:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(names)}.")
        return text

    return parse


def service_kind(text: str) -> str:
    """A typer parser of a kind of service, or of the path of a file that defines one."""
    return SERVICES[one_of(SERVICES)(text)].kind


def declared(name: str, **more: Any) -> Any:
    """A typer option as `pdserve.commands.predict_options` declares it."""
    found = OPTIONS[name]
    return typer.Option(
        found.flag,
        metavar=found.metavar,
        help=found.help,
        min=found.least,
        max=found.most,
        rich_help_panel=found.panel,
        **more,
    )


Json = Annotated[bool, declared("as_json")]
# The annotation is Any, since typer gives a parser's option no other type.
ServiceOption = Annotated[Any, declared("service", parser=service_kind)]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="A config.yml in Paddle Serving's form.")
]
ApiKeyOption = Annotated[Path | None, declared("api_key")]
TlsOption = Annotated[bool, declared("tls")]
CaOption = Annotated[Path | None, declared("ca")]


def group(help: str, cls: type[TyperGroup] | None = None) -> typer.Typer:  # noqa: A002 - typer's word
    """A command that has commands."""
    app = typer.Typer(cls=cls, help=help, no_args_is_help=True, rich_markup_mode="rich", add_completion=False)
    app.callback()(lambda: None)  # without it, one with a single command would be that command
    return app


def plain(command: Any) -> Any:
    """A command, or a group of them, whose help fills its lines, and whose switches show no value."""
    for each in (command, *getattr(command, "commands", {}).values()):
        each.help = re.sub(r"(?<!\n)\n(?!\n)", " ", each.help or "")
        for option in each.params:
            option.metavar = "" if getattr(option, "is_flag", False) else option.metavar
    return command


def with_settings(
    services: Iterable[ServiceEntry],
    panels: Collection[str] = (),
    names: Collection[str] = (),
    without: Collection[str] = (),
    environment: bool = True,
) -> Callable[[Command], Command]:
    """Give a command the options of the services' settings in some panels, and of those with some names.

    They come as keyword arguments, None where they were not given, for `flags`. ``environment``: whether the
    command reads the environment's variables too; ``--help`` then shows them.
    """
    from pdserve.settings import PANELS, describe

    found: dict[str, list[Setting]] = {}
    for service in services:
        for setting in describe(service):
            if (setting.panel in panels or setting.name in names) and setting.name not in without:
                found.setdefault(setting.name, []).append(setting)
    ordered = sorted(found.values(), key=lambda same: PANELS.index(same[0].panel))
    options = [each for same in ordered for each in _parameters(same, environment)]

    def decorate(command: Command) -> Command:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameters(same: "list[Setting]", environment: bool) -> list[inspect.Parameter]:
    """A setting's options as parameters of a command; ``same``: as each of the services has it."""
    setting = same[0]
    if not setting.flags:
        return []
    defaults = {each.default_text for each in same}
    notes = [f"default: {text}" for text in defaults if text and len(defaults) == 1]
    notes += [setting.variable] if environment else []
    text = setting.help.replace("[", r"\[") + (f"\n\n[dim]{'; '.join(notes)}[/dim]" if notes else "")
    if setting.name == "devices":
        gpu, cpu = setting.flags
        force = "Run on the CPU, whatever the configuration says."
        return [
            _parameter("gpu", str, [gpu], setting.metavar, text, setting.panel),
            _parameter("cpu", bool, [cpu], "", force, setting.panel),
        ]
    kind = {"switch": bool, "repeated": list[str]}.get(setting.kind, str)
    parser = _chooser(setting) if setting.choices else None
    return [_parameter(setting.name, kind, setting.flags, setting.metavar, text, setting.panel, parser)]


def _chooser(setting: "Setting") -> Callable[[str], str]:
    """A typer parser that loads the table of a setting's values."""
    return lambda text: one_of((setting.default, *resolve_name(setting.choices)))(text)


def _parameter(
    name: str,
    kind: Any,
    flags: Iterable[str],
    metavar: str,
    text: str,
    panel: str,
    parser: Callable[[str], Any] | None = None,
) -> inspect.Parameter:
    option = typer.Option(
        *flags, metavar=metavar, help=text, show_default=False, rich_help_panel=panel, parser=parser
    )
    annotation: Any = Annotated[Any if parser else kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def flags(given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A command's options as flags for the settings of a service; those that were not given are left out.

    Raises UsageError for an option that only another service has, for one whose value is empty, as that of a
    shell's variable may be, and where --gpu contradicts --cpu.
    """
    from pdserve.settings import describe

    found = {name: value for name, value in given.items() if value not in (None, [])}
    chosen = devices(found.pop("gpu", None), found.pop("cpu", False))
    for name, value in found.items():
        if value == "":
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is empty; give it a value, or leave the option out.")
    names = {service: {each.name for each in describe(entry)} for service, entry in SERVICES.items()}
    for name in found:
        if name not in names[kind]:
            other = next(service for service in names if name in names[service])
            raise UsageError(f"--{name.replace('_', '-')} goes with --service {other}.")
    return found | ({"devices": chosen} if chosen else {})


def devices(gpu: str | None, cpu: bool | None) -> tuple[str, ...] | None:
    """The devices that --gpu and --cpu mean; None for neither. Raises UsageError."""
    if gpu is not None and cpu:
        raise UsageError("--gpu and --cpu contradict each other; give one of them.")
    if cpu:
        return ("cpu",)
    if gpu is None:
        return None
    numbers = [part.strip() for part in gpu.split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in numbers):
        raise UsageError(f'--gpu is {gpu[:60]!r}; give the GPUs\' numbers, as in "0" or "0,1".')
    return tuple(f"gpu:{int(part)}" for part in numbers)


def serve_command(kind: str, settings: Mapping[str, Any]) -> str:
    """The command that starts a service with these settings."""
    words = ["pdserve", "serve", kind]
    for name, value in settings.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


def serve_model(task: str | None, model: str) -> str | None:
    """The command that serves a model, by what it does; None where that is not known, or is no service's."""
    if task is None or task not in TASKS:
        return None
    entry = SERVICES[TASKS[task]]
    return serve_command(entry.kind, {next(iter(entry.roles)): model})


def home() -> "Home":
    """pdserve's home, by the environment."""
    from pdserve.models.home import Home

    return Home.from_environ(os.environ)
