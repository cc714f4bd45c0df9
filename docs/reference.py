"""Writes docs/reference.md, and the lists of settings in configs/, from the settings and the commands:
``python docs/reference.py``.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer.main
from typer.core import TyperArgument

sys.path.insert(0, str(Path(__file__).parents[1]))

from pdserve.commands.table import LazyCommand, app
from pdserve.pipelines import SERVICES
from pdserve.settings import PANELS, Setting, describe

PAGE = Path(__file__).with_name("reference.md")
CONFIGS = Path(__file__).parents[1] / "configs"
HEAD = """# Reference

<!-- Written by docs/reference.py from the settings and the commands; change it there. -->
"""
SETTINGS = """A setting comes from its option, else from its variable in the environment, else from its key in
the file that `--config` names, else it has its default. Lists are written with commas, as in
`PDSERVE_MEAN=0.5,0.5,0.5`. In the keys of `config.yml`, `*` stands for an operator's name; [each key of
Paddle Serving's](migrating.md#each-key-of-configyml) is explained with the move from there.
"""
VARIABLES = {
    "PDSERVE_HOME": "the folder of models, indexes and runtimes; by default the user's data folder",
    "PDSERVE_MIRROR": "addresses or folders in place of the model hosts, between commas, tried in order; as "
    "`fetch --mirror`",
    "PDSERVE_API_KEY": "the key that a server asks for, and that `predict` and `bench` show",
    "PDSERVE_PADDLE_SERVING_PYTHON": "the Python with Paddle Serving, as `serve --python`",
    "PDSERVE_FONT": "a font file for the labels that `predict --draw` writes",
    "PDSERVE_DEBUG": "1: an error shows its traceback too",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "where traces go; with the extra `otel` it turns them on",
}


def config(path: Path) -> str:
    """A file of configs/, at its end the list of the settings that only pdserve has, commented out.

    The first service's file has those of every service.
    """
    first = next(iter(SERVICES))
    shared = [] if path.stem == first else describe(SERVICES[first])
    settings = [
        each
        for each in describe(SERVICES[path.stem])
        if each.key.startswith("pdserve.") and each not in shared
    ]
    lines = [f"#    {each.name}: {_yaml(each.default)}" for each in settings]
    width = max(map(len, lines), default=0)
    listed = (f"{line:{width}}  # {each.help}\n" for line, each in zip(lines, settings, strict=True))
    return path.read_text("utf-8").partition("#pdserve:\n")[0] + "#pdserve:\n" + "".join(listed)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_settings(), *_variables(), *_commands()]).rstrip() + "\n"


def _settings() -> Iterator[str]:
    services = {kind: {each.name: each for each in describe(entry)} for kind, entry in SERVICES.items()}
    first, *others = services.values()
    shared = [each for each in first.values() if all(other.get(each.name) == each for other in others)]
    yield from ("## Settings of every service", "", SETTINGS)
    yield from _by_panel(shared)
    for kind, settings in services.items():
        yield from (f"## Settings of {kind}", "")
        yield from _by_panel([each for each in settings.values() if each not in shared])


def _by_panel(settings: Sequence[Setting]) -> Iterator[str]:
    for panel in PANELS:
        if rows := [_setting(each) for each in settings if each.panel == panel]:
            yield from (f"**{panel}**", "")
            yield from _table(("option", "variable", "key of config.yml", "default", "meaning"), rows)


def _setting(each: Setting) -> tuple[str, ...]:
    flags = [_code(f"{flag} {each.metavar}".strip()) for flag in each.flags[:1]]
    options = ", ".join([*flags, *map(_code, each.flags[1:])])
    return options, _code(each.variable), _code(each.key), _code(each.default_text), each.help


def _variables() -> Iterator[str]:
    yield from ("## Other variables", "")
    yield from _table(("variable", "meaning"), [(_code(name), text) for name, text in VARIABLES.items()])


def _commands() -> Iterator[str]:
    yield from ("## Commands", "", "Exit codes: 0 done, 1 the work failed, 2 the command line is wrong.", "")
    yield from _command("pdserve", typer.main.get_command(app))


def _command(name: str, command: Any) -> Iterator[str]:
    if isinstance(command, LazyCommand):
        command = command.load()
    if hasattr(command, "commands"):
        for part, each in command.commands.items():
            yield from _command(f"{name} {part}", each)
        return
    named = [each.metavar or each.name.upper() for each in command.params if isinstance(each, TyperArgument)]
    yield from (f"### {name}", "", *([_code(" ".join([name, *named])), ""] if named else []))
    yield from (_plain(command.help).replace("\n", " "), "")
    options = [each for each in command.params if not isinstance(each, TyperArgument)]
    own: list[Any] = []
    shared: list[Any] = []
    for each in options:
        (shared if _is_setting(each) else own).append(each)
    if own:
        rows = [(_option(each), _default(each), _plain(each.help)) for each in own]
        yield from _table(("option", "default", "meaning"), rows)
    if shared and name.startswith("pdserve serve "):
        yield from ("Besides, the options of the settings above.", "")
    elif shared:
        listed = ", ".join(_code(flag) for each in shared for flag in each.opts)
        yield from (f"{'Besides, of' if own else 'Of'} the settings above: {listed}.", "")


def _is_setting(option: Any) -> bool:
    """Whether an option is one of the settings above, and not one of the same name with another meaning."""
    if option.show_default is not False:
        return False
    settings = [
        each for entry in SERVICES.values() for each in describe(entry) if option.opts[0] in each.flags
    ]
    return option.opts[0] == "--cpu" or any(_plain(option.help).startswith(each.help) for each in settings)


def _option(option: Any) -> str:
    text = ", ".join(map(_code, option.opts))
    if option.is_flag:
        return text
    kinds = {int: "N", float: "N", str: "TEXT", Path: "PATH"}
    kind = option.type_descriptor.annotation
    choices = get_args(kind) or [
        getattr(each, "value", each) for each in getattr(kind, "__members__", {}).values()
    ]
    word = option.metavar or kinds.get(kind) or "|".join(map(str, choices)) or "VALUE"
    return f"{text} {_code(word)}"


def _default(option: Any) -> str:
    value = option.default
    if callable(value) or value in (None, False, ()) or value is ... or option.show_default is False:
        return ""
    return _code("tab" if value == "\t" else str(getattr(value, "value", value)))


def _plain(text: str | None) -> str:
    """Help without rich's markup."""
    return re.sub(r"\[/?dim\]", "", text or "").replace(r"\[", "[").replace("\n\n", "\n").strip()


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    for path in CONFIGS.glob("*.yml"):
        path.write_text(config(path), "utf-8")
