"""``pdserve index``: build, change and examine a gallery's index."""

import typer

from pdserve.commands.index_changes import append, build, merge, remove, rollback
from pdserve.commands.index_reports import check, info, search, verify

index_app = typer.Typer(
    name="index",
    help="Build, change and examine a gallery's index.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _command in (build, append, remove, merge, rollback, info, search, verify, check):
    index_app.command()(_command)
