"""``pdserve rm``: remove models and indexes of pdserve's home."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pdserve import console
from pdserve.commands.list import users
from pdserve.commands.options import Json, home
from pdserve.errors import InUseError, UsageError

if TYPE_CHECKING:
    from pdserve.models.home import Home

What = Literal["model", "index"]


@dataclass(frozen=True)
class Doomed:
    """What is to be removed: the folders of a model, in the order of their removal, or that of an index."""

    name: str
    what: What
    folders: tuple[Path, ...]
    summary: str


def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Models and indexes that are here.")],
    only: Annotated[
        What | None, typer.Option("--only", help="For a name that a model and an index have.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove models, with all their forms, and indexes. Asks first; never what a running server uses."""
    from pdserve.files import format_size
    from pdserve.models import trash
    from pdserve.models.inventory import usage

    where = home()
    trash.sweep(where)
    doomed = [_find(name, only, where) for name in dict.fromkeys(names)]
    total = usage((folder for each in doomed for folder in each.folders), freed=True)
    if not yes:
        _ask(doomed, format_size(total), where)
    for each in doomed:
        _check_unused(each, where)  # a server may have started while the question was open
        with ExitStack() as locks:
            _lock(each, where, locks)
            freed = usage(each.folders, freed=True)
            trash.remove(each.folders)
        content = {"name": each.name, "what": each.what, "bytes": freed}
        console.answer(content, f"{each.name}: removed, {format_size(freed)} freed", as_json)


def _find(name: str, only: What | None, where: "Home") -> Doomed:
    """What a name means. Raises UsageError where there is none, or two, InUseError."""
    from pdserve.files import format_size
    from pdserve.index import inventory as indexes
    from pdserve.models import inventory as models

    found: list[Doomed] = []
    if only != "index" and (model := models.find(name, where)):
        forms = ", ".join(form.name for form in model.forms)
        # What is served goes last: killed in between, the model is still one.
        folders = tuple(reversed(model.folders))
        found.append(Doomed(name, "model", folders, f"{forms}, {format_size(model.bytes)}"))
    if only != "model" and (index := indexes.find(name, where)):
        count = f"index of {index.entries} entries" if index.entries is not None else "index"
        found.append(Doomed(name, "index", (index.path,), f"{count}, {format_size(index.bytes)}"))
    if not found:
        what = only or "model or index"
        raise UsageError(f"There is no {what} {name!r} in {where.root}; `pdserve list` shows what is here.")
    if len(found) > 1:
        raise UsageError(f"{name} is a model and an index; say which with --only model or --only index.")
    _check_unused(found[0], where)
    return found[0]


def _check_unused(doomed: Doomed, where: "Home") -> None:
    from pdserve.models import servers

    if found := users(servers.running(where), doomed.folders):
        how = "stop it first" if len(found) == 1 else "stop them first"
        raise InUseError(f"{doomed.name} is in use by {' and '.join(map(str, found))}; {how}.")


def _lock(doomed: Doomed, where: "Home", locks: ExitStack) -> None:
    """Keep others from writing there. Raises InUseError where somebody does."""
    from pdserve.locks import try_file_lock

    fetching = where.root / "downloads" / f"{doomed.name}.lock"
    free = not fetching.is_file() or try_file_lock(fetching, locks)
    for folder in doomed.folders if doomed.what == "index" else ():
        for each in (folder, folder / "index"):
            if (each / ".lock").is_file():
                with ExitStack() as writers:  # not held: Windows renames no folder with an open file
                    free = free and try_file_lock(each / ".lock", writers)
    if not free:
        raise InUseError(f"Another pdserve process writes {doomed.name} now; try again when it has done.")


def _ask(doomed: Sequence[Doomed], size: str, where: "Home") -> None:
    """Ask the person at the terminal. Raises UsageError without one, Exit for any answer but yes."""
    from pdserve.index import inventory as indexes

    names = [each.name for each in doomed]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if names[1:] else names[0]
    if not sys.stdin.isatty():
        raise UsageError(f"There is no terminal to ask at, so {listed} stays; add --yes to remove it.")
    gone = {each.name for each in doomed if each.what == "model"}
    left = {each.name for each in doomed if each.what == "index"}
    for each in doomed:
        console.say(f"{each.name}: {each.summary}")
    for index in indexes.indexes(where):
        if index.embedder in gone and index.name not in left:
            console.say(f"The index {index.name} is neither served nor added to without {index.embedder}.")
    if not typer.confirm(f"Remove {listed}, {size}?", err=True):
        console.say("Nothing is removed.")
        raise typer.Exit(1)
