"""``pdserve alias``: the feeds and fetches of serving models, and their aliases."""

from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands.convert import pairs
from pdserve.commands.options import Json


def alias(
    dirs: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders of serving models, server's or client's.")
    ],
    feed: Annotated[
        list[str] | None,
        typer.Option("--feed", metavar="NAME=ALIAS", help="A new alias of a feed; repeatable."),
    ] = None,
    fetch: Annotated[
        list[str] | None,
        typer.Option("--fetch", metavar="NAME=ALIAS", help="A new alias of a fetch; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show feeds and fetches, or change their aliases in the prototxt files, text and binary."""
    from pdserve.convert import patch_aliases, read_configs

    feeds, fetches = pairs(feed, "--feed"), pairs(fetch, "--fetch")
    files = patch_aliases(dirs, feeds, fetches) if feeds or fetches else read_configs(dirs)
    columns = ("kind", "name", "alias", "dtype", "shape")
    for file in files:
        rows = [
            (kind, v.name, v.alias, v.dtype, v.shape)
            for kind, variables in (("feed", file.config.feeds), ("fetch", file.config.fetches))
            for v in variables
        ]
        if as_json:
            for row in rows:
                console.json_line({"file": str(file.text)} | dict(zip(columns, row, strict=True)))
        else:
            shown = [(*row[:4], "×".join(map(str, row[4])) or "-") for row in rows]
            console.table(columns, shown, title=str(file.text))
    for file in files:
        if file.disagreement and not (feeds or fetches):
            console.say(
                f"Note: {file.disagreement}; `pdserve alias` with --feed or --fetch writes both alike."
            )
