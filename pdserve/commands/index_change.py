"""``pdserve index build``, ``append``, ``remove``, ``merge``, ``rollback``: make and change an index."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands.index_check import find_index
from pdserve.commands.options import Json, flags, home, one_of, with_settings
from pdserve.errors import UsageError
from pdserve.index import FLAT_UP_TO, INDEX_TYPES, METRICS
from pdserve.pipelines import SERVICES

if TYPE_CHECKING:
    from pdserve.index.gallery import GalleryImage, Skipped
    from pdserve.index.plan import Change
    from pdserve.pipelines.embedder import Embedder

_RECOGNITION = SERVICES["recognition"]
_TYPE_HELP = "; ".join(f"{name}: {each.help}" for name, each in INDEX_TYPES.items()) + (
    f". By default Flat up to {FLAT_UP_TO:,} images, else HNSW32."
)

_SHOWN = 50  # images that are skipped

# The options of the embedder's engine; they come as keyword arguments, for `embedder_of`.
engine_options = with_settings(
    [_RECOGNITION], names=("engine", "devices", "threads", "offline"), environment=False
)


GalleryOption = Annotated[
    Path | None,
    typer.Option(
        "--gallery", metavar="DIR", help="The images; without --labels, its folders' names are the labels."
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="An image, a tab and a label per line, as in PaddleClas."),
]
DelimiterOption = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        metavar="TEXT",
        help="Separates image and label in --labels; default: a tab, in a .csv file its comma or semicolon.",
        show_default=False,
    ),
]
EmbedderOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|DIR", help="The embedder; default: the index's own."),
]
BatchOption = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images per batch.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop at an image that cannot be read, or has two labels.")
]
ChangedOption = Annotated[
    str | None,
    typer.Option(
        "--index",
        metavar="NAME|DIR",
        help="The index to change: a data set's name or folder, or an index's folder. Required.",
        show_default=False,
    ),
]


def _changed_index(index: str | None, command: str) -> Path:
    """The folder of the index to change, which has no default: nobody's gallery changes by accident."""
    if index is None:
        raise UsageError(
            f"Which index should be changed? Type `pdserve index {command} … --index NAME`; `pdserve list` "
            "shows those that are here, and `pdserve index build` makes one."
        )
    return find_index(index)


@contextmanager
def embedder_of(
    model: str | None, batch_size: int, given: Mapping[str, Any], folder: Path | None = None
) -> Iterator["Embedder"]:
    """The embedder asked for, else the one that made the index in ``folder``, else the default one.

    It is fetched and converted where it is missing.
    """
    from pdserve.commands.missing import bring_models
    from pdserve.index.store import read_manifest
    from pdserve.pipelines.embedder import open_embedder
    from pdserve.settings import ModelSettings, validated

    known = read_manifest(folder) if folder else None
    own = known.embedder.wanted if known and known.embedder else None
    chosen = {"model": model or own or _RECOGNITION.roles["embedder"].default, "max_batch_size": batch_size}
    values = flags(given, _RECOGNITION.kind) | chosen
    offline = values.pop("offline", False)
    settings = validated(ModelSettings, values, {name: f"--{name}" for name in values})
    bring_models([settings.model], home(), offline=offline)
    with open_embedder(settings, home()) as opened:
        if folder and not own:
            other = "" if model else ", as --model names none"
            console.say(
                f"Note: {folder} does not say which embedder made it; {opened.name} is taken for it{other}."
            )
        yield opened


@engine_options
def build(
    gallery: GalleryOption = None,
    labels: LabelsOption = None,
    delimiter: DelimiterOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="NAME|DIR", help="Write the index here; default for DIR/gallery: DIR/index."
        ),
    ] = None,
    kind: Annotated[
        Any,
        typer.Option(
            "--type",
            parser=one_of(INDEX_TYPES),
            metavar="NAME",
            help=_TYPE_HELP,
        ),
    ] = None,
    metric: Annotated[
        Any,
        typer.Option(
            "--metric", parser=one_of(METRICS), metavar="NAME", help="IP, the inner product, or L2."
        ),
    ] = "IP",
    strict: StrictOption = False,
    model: EmbedderOption = None,
    batch_size: BatchOption = 16,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Build an index of a gallery, or replace one. After an interruption it continues where it was."""
    from pdserve.index.edit import build as build_index
    from pdserve.index.store import find_or_new

    images, unlabelled = _gallery(gallery, labels, delimiter)
    if out:
        folder = find_or_new(out, home())
    elif gallery and gallery.resolve().name == "gallery":
        folder = gallery.resolve().parent / "index"
    else:
        raise UsageError("Where should the index be written? Give --out NAME or --out DIR.")
    if strict and unlabelled:
        raise UsageError(
            f"{unlabelled[0].image} {unlabelled[0].reason}; give --labels, or leave out --strict."
        )
    with embedder_of(model, batch_size, given) as opened, console.image_bars() as bars:
        made = build_index(images, folder, opened, kind=kind, metric=metric, strict=strict, progress=bars)
    _report(made, as_json, unlabelled)


@engine_options
def append(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]…", help="Images that all get --label.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="TEXT", help="The label of IMAGE….")] = None,
    index: ChangedOption = None,
    gallery: GalleryOption = None,
    labels: LabelsOption = None,
    delimiter: DelimiterOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Remove entries of another image under the path of one of these."),
    ] = False,
    strict: StrictOption = False,
    model: EmbedderOption = None,
    batch_size: BatchOption = 16,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Add images: files with --label, a label list, or folders named after their labels.

    An image is known by its content. One that is there already stays; with another label it gets that.
    Another image under a path that is there already is one more entry; with --replace it takes the place.
    """
    from pdserve.index.edit import append as append_images
    from pdserve.index.gallery import GalleryImage

    unlabelled: Sequence[Skipped] = ()
    if images:
        if not label or gallery or labels:
            raise UsageError("IMAGE… goes with --label TEXT, and not with --gallery or --labels.")
        added: Sequence[GalleryImage] = [GalleryImage(path.as_posix(), label, path) for path in images]
    elif label:
        raise UsageError("--label goes with IMAGE…; name the images.")
    else:
        added, unlabelled = _gallery(gallery, labels, delimiter)
    folder = _changed_index(index, "append")
    with embedder_of(model, batch_size, given, folder) as opened, console.image_bars() as bars:
        made = append_images(added, folder, opened, replace=replace, strict=strict, progress=bars)
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
    index: ChangedOption = None,
    as_json: Json = False,
) -> None:
    """Remove entries by label, image path or id; each option may come more than once."""
    from pdserve.index.edit import remove as remove_entries

    if not (label or image or number):
        raise UsageError("What should be removed? Give --label, --image or --id.")
    folder = _changed_index(index, "remove")
    with console.image_bars() as bars:
        made = remove_entries(folder, labels=label or (), images=image or (), ids=number or (), progress=bars)
    _report(made, as_json)


def merge(
    others: Annotated[list[str], typer.Argument(metavar="NAME|DIR…", help="Indexes of the same embedder.")],
    index: ChangedOption = None,
    as_json: Json = False,
) -> None:
    """Add the entries of other indexes, which stay as they are."""
    from pdserve.index.edit import merge as merge_indexes

    folder, added = _changed_index(index, "merge"), [find_index(other) for other in others]
    with console.image_bars() as bars:
        made = merge_indexes(folder, added, progress=bars)
    _report(made, as_json)


def rollback(index: ChangedOption = None, as_json: Json = False) -> None:
    """Return to the previous version; a second rollback undoes the first."""
    from pdserve.index.publish import rollback as roll_back

    folder = _changed_index(index, "rollback")
    with console.image_bars() as bars:
        made = roll_back(folder, bars)
    content = {
        "index": str(folder),
        "index_version": made.version,
        "count": made.count,
        "change": made.change,
    }
    console.answer(content, f"{folder}: version {made.version}, {made.change}, {made.count} entries", as_json)


def _gallery(
    gallery: Path | None, labels: Path | None, delimiter: str | None
) -> tuple[Sequence["GalleryImage"], Sequence["Skipped"]]:
    from pdserve.index.gallery import scan
    from pdserve.index.label_list import read_list
    from pdserve.vision.image_files import summaries

    if labels:
        return read_list(labels, gallery or labels.parent, delimiter), ()
    if gallery:
        found = scan(gallery)
        for text in summaries(gallery, found.left_out):
            console.say(text)
        return found.images, found.skipped
    raise UsageError("Which images? Give --gallery DIR, and --labels FILE where its folders are no labels.")


def _report(made: "Change", as_json: bool, more: Sequence["Skipped"] = ()) -> None:
    skipped = [*more, *made.skipped]
    if as_json:
        content: dict[str, Any] = asdict(made)
        content["index"] = str(content.pop("folder"))
        content["index_version"] = content.pop("version")
        console.json_line(content | {"skipped": [asdict(each) for each in skipped]})
        return
    for each in skipped[:_SHOWN]:
        console.say(f"skipped {each.image}: {each.reason}")
    if len(skipped) > _SHOWN:
        console.say(f"and {len(skipped) - _SHOWN} more; --json lists them all")
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
    if made.same_path:
        console.say(
            f"Note: {made.same_path} of the added have the path of an entry of another image, and both stay; "
            "append with --replace to remove the old one."
        )
