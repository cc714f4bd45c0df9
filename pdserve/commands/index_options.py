"""What the commands of ``pdserve index`` share: their options, and the embedder these mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve.commands import options as o
from pdserve.index import FLAT_UP_TO, INDEX_TYPES, METRICS

if TYPE_CHECKING:
    from pdserve.pipelines.embedder import Embedder

DEFAULT = "drink_dataset_v1.0"


if TYPE_CHECKING:

    class Type(StrEnum): ...

    class Metric(StrEnum): ...
else:
    Type = StrEnum("Type", {name: name for name in INDEX_TYPES})
    Metric = StrEnum("Metric", {name: name for name in METRICS})

TYPE_HELP = "; ".join(f"{name}: {each.help}" for name, each in INDEX_TYPES.items()) + (
    f". By default Flat up to {FLAT_UP_TO:,} images, else HNSW32."
)

IndexOption = Annotated[
    str,
    typer.Option("--index", metavar="NAME|DIR", help="A data set's name or folder, or an index's folder."),
]
GalleryOption = Annotated[
    Path | None,
    typer.Option("--gallery", metavar="DIR", help="The images; without --labels, folders are labels."),
]
ListOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Image, tab and label per line, as PaddleClas has it."),
]
DelimiterOption = Annotated[
    str, typer.Option("--delimiter", metavar="TEXT", help="What parts image and label in --labels.")
]
EmbedderOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|DIR", help="The embedder; the index's own if not said."),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Images embedded at once.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read.")]


@contextmanager
def embedder(
    model: str | None,
    gpu: str | None,
    cpu: bool,
    engine: o.Engine | None,
    threads: Any,
    batch_size: int,
    folder: Path | None = None,
) -> Iterator["Embedder"]:
    """The embedder asked for, else the one that made the index in ``folder``, else the default one."""
    from pdserve.index.store import read_manifest
    from pdserve.pipelines import SERVICES
    from pdserve.pipelines.embedder import open_embedder
    from pdserve.settings import ModelSettings

    known = read_manifest(folder) if folder and not model else None
    own = known.embedder.name if known and known.embedder else None
    settings = ModelSettings(
        model=model or own or SERVICES["recognition"].roles["embedder"].default,
        engine=engine.value if engine else "auto",
        devices=o.devices(gpu, cpu) or ("cpu",),
        threads=threads or "auto",
        max_batch_size=batch_size,
    )
    with open_embedder(settings, o.home()) as opened:
        yield opened
