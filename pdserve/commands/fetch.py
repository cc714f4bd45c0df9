"""``pdserve fetch``: download models and data sets, or list them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands.missing import downloading
from pdserve.commands.options import Json, home, serve_model
from pdserve.errors import PdserveError, UsageError


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]…",
            help="Names in the catalog; or addresses: https://HOST/…/NAME_infer.tar, hf://OWNER/NAME, a "
            "folder or archive ./NAME. With --list, words to search for.",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what can be fetched.")] = False,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--mirror", metavar="URL|DIR", help="Download from here instead; repeatable, tried in order."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Download again what is there already.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network: only folders, archives and what is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download models and data sets. Without a name: all that the default services need."""
    from pdserve.models import catalog
    from pdserve.models.fetch import fetch_all, policy_of

    if list_:
        _list(names or [""], as_json)
        return
    policy = policy_of(os.environ, offline)
    with downloading(home()) as bars:
        results = fetch_all(
            names or catalog.DEFAULTS, home(), mirrors=mirror or (), force=force, progress=bars, policy=policy
        )
    failed = [result for result in results if isinstance(result, PdserveError)]
    fetched = [result for result in results if not isinstance(result, PdserveError)]
    for result in fetched:
        keys = ("name", "action", "path", "origin", "sha256", "bytes")
        content = {name: getattr(result, name) for name in keys} | {"path": str(result.path)}
        console.answer(content, f"{result.name}: {result.action}, {result.path}", as_json)
    if failed:
        raise typer.Exit(max(console.failed(error) for error in failed))
    models = [result for result in fetched if result.path.parent == home().models]
    if models and not as_json:
        console.say(
            f"Next: {_next(models[0].name, models[0].path)}" if len(models) == 1 else "Next: pdserve convert"
        )


def _next(name: str, folder: Path) -> str:
    """The command that serves what was fetched, where its description or the catalog says what it does."""
    from pdserve.formats.inference_yml import read_description
    from pdserve.models import catalog

    entry = catalog.load().get(name)
    task: str | None = entry.task if entry else None
    with suppress(PdserveError):  # fetched it is; what is wrong with it is for `show` to say
        task = read_description(folder).task or task
    return serve_model(task, name) or f"pdserve convert --model {name}"


def _list(words: list[str], as_json: bool) -> None:
    from pdserve.models import catalog

    found = [
        entry for entry in catalog.load().values() if all(entry in catalog.search(word) for word in words)
    ]
    if not found:
        raise UsageError(
            f"The catalog has nothing like {' '.join(words)!r}; `pdserve fetch --list` shows all names."
        )
    if as_json:
        for entry in found:
            console.json_line(entry.to_json())
    else:
        rows = [
            (
                e.name,
                e.task,
                int(e.generation.rpartition(" ")[2]) if e.generation else None,
                None if e.bytes is None else e.bytes / 1_000_000,
                e.accuracy and e.accuracy.value,
                e.accuracy and e.accuracy.metric,
                e.family,
            )
            for e in found
        ]
        columns = ("name", "task", "Paddle", "MB", "accuracy", "metric", "family")
        console.table(columns, rows, digits={"MB": 1, "accuracy": 2}, drop=("family", "metric"))
