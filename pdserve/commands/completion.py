"""Shell completion of names: of models, indexes, services, engines. Fast, and silent whatever is wrong.

The shell asks by running ``pdserve`` with ``_PDSERVE_COMPLETE`` and the words typed so far. Commands and the
names of options are typer's to complete, which loads the command for it. The values in the tables here need
no command; a value that is a path is left to the shell, as is one that nothing here knows.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pkgutil import resolve_name
from typing import Any, get_args

from pdserve import console
from pdserve.models.home import Home, is_path

VARIABLE = "_PDSERVE_COMPLETE"

# Others would need quoting, which differs from shell to shell.
_PLAIN = re.compile(r"[\w.+@-]+")


def _home() -> Home:
    return Home.from_environ(os.environ)


def _catalog(*tasks: str) -> list[str]:
    from pdserve.models import catalog

    return [name for name, entry in catalog.load().items() if not tasks or entry.task in tasks]


def _here() -> list[str]:
    return [*_home().model_names(), *_home().index_names()]


def _models() -> list[str]:
    tasks = ("classification", "multilabel", "attributes", "embedding", "detection")
    return [*_home().model_names(), *_catalog(*tasks)]


def _precisions() -> list[str]:
    settings = resolve_name("pdserve.settings:ModelSettings")
    return list(get_args(settings.model_fields["precision"].annotation))


def _table(name: str, *first: str) -> Callable[[], list[str]]:
    return lambda: [*first, *resolve_name(name)]


Names = Callable[[], Iterable[str]]

ARGUMENTS: dict[str, Names] = {
    "fetch": _catalog,
    "run": _models,
    "show": lambda: [*_here(), *_catalog()],
    "rm": _here,
}
"""Command -> the names that its arguments take; of `run` the first one."""

OPTIONS: dict[str, Names] = {
    "--model": _models,
    "--detector": lambda: ["none", *_home().model_names(), *_catalog("detection")],
    "--embedder": lambda: [*_home().model_names(), *_catalog("embedding")],
    "--index": lambda: _home().index_names(),
    "--engine": _table("pdserve.engines.table:ENGINES", "auto"),
    "--precision": _precisions,
    "--runtime": _table("pdserve.commands.runtimes:RUNTIMES", "native"),
    "--service": _table("pdserve.pipelines:SERVICES"),
    "--only": lambda: ["model", "index"],
}
"""Option -> the names that it takes, whatever the command."""

OWN: dict[tuple[str, str], Names] = {
    ("convert", "--model"): lambda: _home().fetched_names(),
    ("optimize", "--model"): lambda: _home().model_names(),
}
"""Command and option, where that takes other names."""

_FLAGS = {"--force", "--json", "--list", "--offline", "--yes"}  # after which a name may follow


def candidates(words: Sequence[str], incomplete: str) -> list[str] | None:
    """The names that complete a word, after the other words of the command line; None: not a name's place."""
    command, before = (words[0], words[1:]) if words else ("", [])
    typed, start = incomplete, ""
    option = before[-1] if before else ""
    if incomplete == "=":  # bash makes a word of it
        typed = ""
    elif option == "=" and len(before) > 1:
        option = before[-2]
    elif incomplete.startswith("--") and "=" in incomplete:
        option, _, typed = incomplete.partition("=")
        start = f"{option}="
    option = option.replace("_", "-") if option.startswith("--") and option not in _FLAGS else ""
    names = OWN.get((command, option)) or OPTIONS.get(option)
    if names is None and not option and not incomplete.startswith("-"):
        given = [word for word in before if not word.startswith("-")]
        names = ARGUMENTS.get(command) if command != "run" or not given else None
    if names is None:
        return None
    if is_path(typed):
        return []
    found = dict.fromkeys(name for name in names() if name.startswith(typed) and _PLAIN.fullmatch(name))
    if not option:
        found = {name: None for name in found if name not in before}
    return [start + name for name in found]


def answer(instruction: str) -> bool:
    """Answer a shell that asks for names on standard output; False where it is to be left to typer."""
    try:
        import_module("typer.completion").completion_init()
        shells: Any = import_module("typer._click.shell_completion")
        shell: Any = shells.get_completion_class(instruction.removeprefix("complete_"))
        if not instruction.startswith("complete_") or shell is None:
            return False
        asked = shell(None, {}, "pdserve", VARIABLE)
        found = candidates(*asked.get_completion_args())
        if found is None:
            return False
        asked.get_completions = lambda *_: [shells.CompletionItem(name) for name in found]
        console.line(asked.complete())
    except Exception:  # a shell would show it in the middle of the line that is being typed
        return False
    return True
