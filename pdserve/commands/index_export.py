"""``pdserve index export``: an index as a folder in the form of another program."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve import console
from pdserve.commands.index_check import DEFAULT_INDEX, find_index
from pdserve.commands.options import Json, one_of
from pdserve.index.forms import FORMS

_FORM_HELP = "; ".join(f"{name}: {form.help}" for name, form in FORMS.items())


def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder to write to.")],
    index: Annotated[
        str, typer.Argument(metavar="[NAME|DIR]", help="A data set's name or folder, or an index's folder.")
    ] = DEFAULT_INDEX,
    form: Annotated[
        Any, typer.Option("--form", parser=one_of(FORMS), metavar="NAME", help=_FORM_HELP + ".")
    ] = next(iter(FORMS)),
    as_json: Json = False,
) -> None:
    """Write an index in the form of PaddleClas or PaddleX, for their own programs."""
    from pdserve.index.export import export as export_index

    made = export_index(find_index(index), out, form)
    content = asdict(made) | {"folder": str(made.folder), "index_version": made.version}
    del content["version"]
    if not made.images and not as_json:
        console.say(f"Note: {FORMS[made.form].program}'s form has labels and no images' paths.")
    files = " and ".join(made.files)
    console.answer(
        content, f"{made.folder}: {files}, {made.count} entries, {made.type} {made.metric}", as_json
    )
