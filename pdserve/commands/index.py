"""``pdserve index``: build, change and examine a gallery's index."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve import console
from pdserve.commands.index_change import (
    BatchOption,
    EmbedderOption,
    append,
    build,
    embedder_of,
    engine_options,
    merge,
    remove,
    rollback,
)
from pdserve.commands.index_check import DEFAULT_INDEX, IndexOption, check, find_index
from pdserve.commands.index_export import export
from pdserve.commands.options import Json, group
from pdserve.errors import ImageError

index_app = group("Build, change and examine a gallery's index.")
for change in (build, append, remove, merge, rollback):
    index_app.command()(change)


@index_app.command()
def info(
    index: IndexOption = DEFAULT_INDEX,
    entries: Annotated[bool, typer.Option("--entries", help="List the entries instead.")] = False,
    as_json: Json = False,
) -> None:
    """Show an index's version, type, counts and embedder; or its entries."""
    from pdserve.index import id_map
    from pdserve.index import store as folders

    folder = find_index(index)
    found = folders.read(folder)
    if entries:
        rows = [(number, *id_map.split(entry)) for number, entry in found.id_map.items()]
        if as_json:
            for row in rows:
                console.json_line(dict(zip(("id", "image", "label"), row, strict=True)))
        else:
            console.table(("id", "image", "label"), rows)
        return
    known, form = found.manifest, found.form
    content: dict[str, Any] = {
        "index": str(folder),
        "index_version": found.version,
        "previous": known.previous if known else None,
        "change": known.change if known else None,
        "type": form.type,
        "metric": form.metric,
        "dimension": form.dimension,
        "count": len(found.id_map),
        "labels": len({id_map.split(entry)[1] for entry in found.id_map.values()}),
        "tombstones": form.slots - len(found.id_map),
        "embedder": known.embedder.name if known and known.embedder else None,
        "fingerprint": known.embedder.fingerprint if known and known.embedder else None,
        "bytes": sum(path.stat().st_size for path in folders.files(folder)),
        "created": known.created if known else None,
        "updated": known.updated if known else None,
    }
    if as_json:
        console.json_line(content)
    else:
        console.table(("what", "is"), [(k, "-" if v is None else str(v)) for k, v in content.items()])


@index_app.command()
@engine_options
def search(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Images to search for, as a whole.")],
    index: IndexOption = DEFAULT_INDEX,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, help="Entries per image.")] = 5,
    model: EmbedderOption = None,
    batch_size: BatchOption = 16,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Show the entries nearest to an image."""
    from pdserve.index.search import load
    from pdserve.vision.decode import decode

    folder = find_index(index)
    loaded = load(folder)
    bad = False
    with embedder_of(model, batch_size, given, folder) as opened:
        loaded.require(opened)
        for path in images:
            try:
                matches = loaded.search(opened.embed([decode(path.read_bytes())]), top_k)[0]
            except (ImageError, OSError) as error:
                bad = True
                reason = error.message if isinstance(error, ImageError) else f"{error.strerror}."
                if as_json:
                    console.json_line({"image": str(path), "error": reason})
                else:
                    console.say(f"{path}: {reason}")
                continue
            if as_json:
                found = [asdict(match) for match in matches]
                console.json_line({"image": str(path), "index_version": loaded.version, "matches": found})
            else:
                rows = [(match.similarity, match.label, match.image, match.id) for match in matches]
                console.table(("similarity", "label", "image", "id"), rows, title=str(path))
    raise typer.Exit(1 if bad else 0)


@index_app.command()
def verify(index: IndexOption = DEFAULT_INDEX, as_json: Json = False) -> None:
    """Check checksums, counts, labels and every vector; exit code 1 if anything is wrong."""
    from pdserve.index.verify import verify as examine

    findings = examine(find_index(index))
    if as_json:
        for each in findings:
            console.json_line(asdict(each))
    else:
        words = {True: "good", False: "BAD", None: "unknown"}
        console.table(("what", "state", "detail"), [(f.what, words[f.good], f.detail) for f in findings])
    raise typer.Exit(1 if any(each.good is False for each in findings) else 0)


index_app.command()(check)
index_app.command()(export)
