"""Shell completion of names: of models, indexes, services, engines. Fast, and silent whatever is wrong.

The shell, by the script that ``pdserve --show-completion`` shows (typer's), asks by running ``pdserve`` with
``_PDSERVE_COMPLETE`` and the words typed so far. Commands and the names of options are typer's to complete,
which loads the command for it. The values in the tables here need neither a command nor typer; a value that
is a path is left to the shell, as is one that nothing here knows.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

from pdserve import console
from pdserve.models.home import Home, is_path

_CATALOG = Path(__file__).parents[1] / "models" / "catalog.yml"

# Others would need quoting, which differs from shell to shell.
_PLAIN = re.compile(r"[\w.+@-]+")


def _home() -> Home:
    return Home.from_environ(os.environ)


def _catalog(*tasks: str) -> list[str]:
    return [name for name, task in _catalog_tasks().items() if not tasks or task in tasks]


def _catalog_tasks() -> dict[str, str]:
    """The task of each name of the catalog, which takes long to read: kept in the user's cache."""
    import platformdirs

    status = _CATALOG.stat()
    known = {"path": str(_CATALOG), "size": status.st_size, "time": status.st_mtime_ns}
    kept = platformdirs.user_cache_path("pdserve") / "completion.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(kept.read_text("utf-8"))
        if found["of"] == known:
            return dict(found["tasks"])
    from pdserve.files import replace_file
    from pdserve.models import catalog

    tasks = {name: str(entry.task) for name, entry in catalog.load().items()}
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(kept) as path:
            path.write_text(json.dumps({"of": known, "tasks": tasks}), "utf-8")
    return tasks


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
_Given = Callable[[Mapping[str, str]], tuple[list[str], str]]
_Wanted = Callable[[Sequence[str], Mapping[str, str]], str]

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


def _line(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """The words after ``pdserve`` that zsh and fish give, and the one that is being typed."""
    line = environ["_TYPER_COMPLETE_ARGS"]
    words = shlex.split(line)[1:]
    return (words[:-1], words[-1]) if words and not line.endswith(" ") else (words, "")


def _powershell(environ: Mapping[str, str]) -> tuple[list[str], str]:
    words, typed = (
        shlex.split(environ["_TYPER_COMPLETE_ARGS"])[1:],
        environ["_TYPER_COMPLETE_WORD_TO_COMPLETE"],
    )
    return (words[:-1] if typed else words), typed


def _bash(environ: Mapping[str, str]) -> tuple[list[str], str]:
    words, at = shlex.split(environ["COMP_WORDS"]), int(environ["COMP_CWORD"])
    return words[1:at], words[at] if at < len(words) else ""


def _zsh(names: Sequence[str], _: Mapping[str, str]) -> str:
    listed = "\n".join(f'"{name}"' for name in names)
    return f"_arguments '*: :(({listed}))'" if names else "_files"


def _fish(names: Sequence[str], environ: Mapping[str, str]) -> str:
    """Asked first whether there are any: exit code 1 leaves the word to fish, which offers files."""
    if environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        sys.exit(0 if names else 1)
    return "\n".join(names)


# Shell, as the script of `pdserve --show-completion` names it -> what it gives, and what it wants.
_SHELLS: dict[str, tuple[_Given, _Wanted]] = {
    "bash": (_bash, lambda names, _: "\n".join(names)),
    "zsh": (_line, _zsh),
    "fish": (_line, _fish),
    "powershell": (_powershell, lambda names, _: "\n".join(f"{name}::: " for name in names)),
}
_SHELLS["pwsh"] = _SHELLS["powershell"]


def answer(instruction: str) -> bool:
    """Answer a shell that asks for names on standard output; False where it is to be left to typer."""
    try:
        given, wanted = _SHELLS[instruction.removeprefix("complete_")]
        found = candidates(*given(os.environ))
        if found is None:
            return False
        console.verbatim(wanted(found, os.environ))
    except Exception:  # a shell would show it in the middle of the line that is being typed
        return False
    return True
