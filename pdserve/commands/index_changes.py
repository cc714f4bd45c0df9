"""``pdserve index build|append|remove|merge|rollback``: the commands that change an index."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands import index_options as i
from pdserve.commands import options as o
from pdserve.errors import UsageError

if TYPE_CHECKING:
    from pdserve.index.gallery import GalleryImage, Skipped
    from pdserve.index.plan import Change


def build(
    gallery: i.GalleryOption = None,
    labels: i.ListOption = None,
    delimiter: i.DelimiterOption = "\t",
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="NAME|DIR", help='Where the index goes; beside a folder "gallery": its "index".'
        ),
    ] = None,
    kind: Annotated[
        i.Type | None,
        typer.Option("--type", help=i.TYPE_HELP),
    ] = None,
    metric: Annotated[i.Metric, typer.Option("--metric", help="Inner product or L2.")] = i.Metric("IP"),
    strict: i.StrictOption = False,
    model: i.EmbedderOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    threads: o.ThreadsOption = None,
    batch_size: i.BatchOption = 16,
    as_json: o.Json = False,
) -> None:
    """Make an index of a gallery, in place of the one that is there. Interrupted, it goes on where it was."""
    from pdserve.index.edit import build as build_index
    from pdserve.index.store import find_or_new

    images, unlabelled = _gallery(gallery, labels, delimiter)
    if out:
        folder = find_or_new(out, o.home())
    elif gallery and gallery.resolve().name == "gallery":
        folder = gallery.resolve().parent / "index"
    else:
        raise UsageError("Where shall the index go? Give --out NAME or --out DIR.")
    if strict and unlabelled:
        raise UsageError(
            f"{unlabelled[0].image} {unlabelled[0].reason}; give --labels, or leave out --strict."
        )
    with (
        i.embedder(model, gpu, cpu, engine, threads, batch_size) as opened,
        console.image_bars() as bars,
    ):
        made = build_index(
            images,
            folder,
            opened,
            kind=kind.value if kind else None,
            metric=metric.value,
            strict=strict,
            progress=bars,
        )
    _report(made, as_json, unlabelled)


def append(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]…", help="Images that all get --label.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="TEXT", help="The label of IMAGE….")] = None,
    index: i.IndexOption = i.DEFAULT,
    gallery: i.GalleryOption = None,
    labels: i.ListOption = None,
    delimiter: i.DelimiterOption = "\t",
    strict: i.StrictOption = False,
    model: i.EmbedderOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    threads: o.ThreadsOption = None,
    batch_size: i.BatchOption = 16,
    as_json: o.Json = False,
) -> None:
    """Add images: files with --label, a label list, or folders named after their labels.

    An image that is there already stays; with another label it gets that. A path whose image changed
    replaces the old entry.
    """
    from pdserve.index.edit import append as append_images
    from pdserve.index.gallery import GalleryImage
    from pdserve.index.store import find

    unlabelled: Sequence[Skipped] = ()
    if images:
        if not label or gallery or labels:
            raise UsageError("IMAGE… goes with --label TEXT, and not with --gallery or --labels.")
        given: Sequence[GalleryImage] = [GalleryImage(path.as_posix(), label, path) for path in images]
    elif label:
        raise UsageError("--label goes with IMAGE…; name the images.")
    else:
        given, unlabelled = _gallery(gallery, labels, delimiter)
    folder = find(index, o.home())
    with (
        i.embedder(model, gpu, cpu, engine, threads, batch_size, folder) as opened,
        console.image_bars() as bars,
    ):
        made = append_images(given, folder, opened, strict=strict, progress=bars)
    _report(made, as_json, unlabelled)


def remove(
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="TEXT", help="All entries of this label.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="PATH", help="An entry, by its path in the index.")
    ] = None,
    number: Annotated[
        list[int] | None, typer.Option("--id", metavar="N", help="An entry, by its id.")
    ] = None,
    index: i.IndexOption = i.DEFAULT,
    as_json: o.Json = False,
) -> None:
    """Remove entries by label, image path or id; each option may come more than once."""
    from pdserve.index.edit import remove as remove_entries
    from pdserve.index.store import find

    if not (label or image or number):
        raise UsageError("What shall go? Give --label, --image or --id.")
    with console.image_bars() as bars:
        made = remove_entries(
            find(index, o.home()), labels=label or (), images=image or (), ids=number or (), progress=bars
        )
    _report(made, as_json)


def merge(
    others: Annotated[list[str], typer.Argument(metavar="NAME|DIR…", help="Indexes of the same embedder.")],
    index: Annotated[
        str, typer.Option("--index", metavar="NAME|DIR", help="The index that takes the others in.")
    ] = i.DEFAULT,
    as_json: o.Json = False,
) -> None:
    """Add the entries of other indexes, which stay as they are."""
    from pdserve.index.edit import merge as merge_indexes
    from pdserve.index.store import find

    home = o.home()
    with console.image_bars() as bars:
        made = merge_indexes(find(index, home), [find(other, home) for other in others], progress=bars)
    _report(made, as_json)


def rollback(index: i.IndexOption = i.DEFAULT, as_json: o.Json = False) -> None:
    """Bring the version before into force again; a second time undoes the first."""
    from pdserve.index.publish import rollback as roll_back
    from pdserve.index.store import find

    folder = find(index, o.home())
    with console.image_bars() as bars:
        made = roll_back(folder, bars)
    if as_json:
        console.json_line(
            {"index": str(folder), "index_version": made.version, "count": made.count, "change": made.change}
        )
    else:
        console.line(f"{folder}: version {made.version}, {made.change}, {made.count} entries")


def _gallery(
    gallery: Path | None, labels: Path | None, delimiter: str
) -> tuple[Sequence["GalleryImage"], Sequence["Skipped"]]:
    from pdserve.index.gallery import read_list, scan

    if labels:
        return read_list(labels, gallery or labels.parent, delimiter), ()
    if gallery:
        return scan(gallery)
    raise UsageError("Which images? Give --gallery DIR, and --labels FILE where its folders are no labels.")


def _report(made: "Change", as_json: bool, more: Sequence["Skipped"] = ()) -> None:
    skipped = [*more, *made.skipped]
    if as_json:
        content: dict[str, Any] = asdict(made)
        content["index"] = str(content.pop("folder"))
        content["index_version"] = content.pop("version")
        console.json_line(content | {"skipped": [asdict(each) for each in skipped]})
        return
    for each in skipped:
        console.say(f"skipped {each.image}: {each.reason}")
    counts = {
        "added": made.added,
        "there already": made.present,
        "with a new label": made.relabelled,
        "replaced": made.replaced,
        "removed": made.removed,
        "skipped": len(skipped),
    }
    done = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    console.line(f"{made.folder}: version {made.version}, {made.count} entries; {done}")
