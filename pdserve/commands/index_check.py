"""``pdserve index check``: how good a gallery is, as tables or JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdserve import console
from pdserve.commands.options import Json, home
from pdserve.index import CHECK_SAMPLE, FALSE_ACCEPT, NEAR_DUPLICATE

if TYPE_CHECKING:
    from pdserve.index.quality import Report

DEFAULT_INDEX = "drink_dataset_v1.0"
_SHOWN = 20  # rows of a table

IndexOption = Annotated[
    str,
    typer.Option("--index", metavar="NAME|DIR", help="A data set's name or folder, or an index's folder."),
]


def find_index(index: str) -> Path:
    """The folder of the index that ``--index`` names."""
    from pdserve.index.store import find

    return find(index, home())


def check(
    index: IndexOption = DEFAULT_INDEX,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=2, help="Most entries to search for.")
    ] = CHECK_SAMPLE,
    duplicate: Annotated[
        float,
        typer.Option("--duplicate", metavar="SCORE", min=0, max=1, help="Similarity of near-duplicates."),
    ] = NEAR_DUPLICATE,
    false_accept: Annotated[
        float,
        typer.Option(
            "--false-accept",
            metavar="RATE",
            min=0,
            max=1,
            help="Most false accepts at the suggested threshold.",
        ),
    ] = FALSE_ACCEPT,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Write the score distributions here, as PNG."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a gallery: recall, confusions, duplicates, likely mislabels, a suggested score threshold."""
    from pdserve.index import quality as checks

    folder = find_index(index)
    if picture:
        checks.check_picture()
    with console.image_bars() as bars:
        report = checks.check(
            folder, sample=sample, duplicate=duplicate, false_accept=false_accept, progress=bars
        )
    if picture:
        checks.draw(report, picture)
    if as_json:
        content = asdict(report)
        edges, same, other = checks.histogram(report)
        content |= {
            "index": str(folder),
            "picture": str(picture) if picture else None,
            "same": same.tolist(),
            "other": other.tolist(),
            "edges": edges.tolist(),
        }
        console.json_line(content)
        return
    _print(report)
    if picture:
        console.line(f"{picture}: the score distributions")


def _print(report: "Report") -> None:
    recall = "-" if report.recall_at_1 is None else f"{report.recall_at_1:.4f}"
    rows = [
        ("entries", f"{report.count} of {report.labels} labels, {report.type}, version {report.version}"),
        ("searched for", f"{report.queries}, of which {report.alone} are alone with their label"),
        ("recall@1, each left out", recall),
        ("near-duplicates", str(len(report.near_duplicates))),
        ("likely mislabels", str(len(report.mislabels))),
    ]
    if found := report.index_recall:
        text = f"recall@1 {found.at_1:.4f}, recall@10 {found.at_10:.4f}"
        rows.append((f"{report.type} against exact", text))
    if t := report.threshold:
        true = "" if t.true_accept_rate is None else f", true-accept rate {t.true_accept_rate:.4f}"
        text = f"{t.score:.4f}: false-accept rate {t.false_accept_rate:.4f}{true}"
        rows.append(("suggested threshold", text))
    console.table(("what", "is"), rows)
    if report.threshold and not report.threshold.reached:
        console.say(f"Note: no threshold keeps the false-accept rate at {report.threshold.goal}.")

    def show(title: str, columns: Sequence[str], found: Sequence[tuple[object, ...]]) -> None:
        if found:
            console.table(columns, found[:_SHOWN], title=f"{title} ({len(found)})")

    show("Confused", ("label", "taken for", "images"), [tuple(vars(c).values()) for c in report.confusions])
    pairs = [
        (p.similarity, p.images[0], p.labels[0], p.images[1], p.labels[1]) for p in report.near_duplicates
    ]
    show("Near-duplicates", ("similarity", "image", "label", "image", "label"), pairs)
    mislabels = [(m.image, m.label, m.looks_like, f"{m.votes}/{m.neighbours}") for m in report.mislabels]
    show("Likely mislabels", ("image", "label", "looks like", "of nearest"), mislabels)
