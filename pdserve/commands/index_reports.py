"""``pdserve index info|search|verify|check``: the commands that look at an index and change nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands import index_options as i
from pdserve.commands import options as o
from pdserve.errors import ImageError

if TYPE_CHECKING:
    from pdserve.index.quality import Report

_SHOWN = 20


def info(
    index: i.IndexOption = i.DEFAULT,
    entries: Annotated[bool, typer.Option("--entries", help="List all entries instead.")] = False,
    as_json: o.Json = False,
) -> None:
    """Show what an index is: version, type, counts, embedder; or what is in it."""
    from pdserve.index import id_map
    from pdserve.index import store as folders

    folder = folders.find(index, o.home())
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
        "bytes": sum((folder / name).stat().st_size for name in folders.FILES if (folder / name).is_file()),
        "created": known.created if known else None,
        "updated": known.updated if known else None,
    }
    if as_json:
        console.json_line(content)
    else:
        console.table(("what", "is"), [(k, "-" if v is None else str(v)) for k, v in content.items()])


def search(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Whole pictures to look for.")],
    index: i.IndexOption = i.DEFAULT,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many entries an image gets.")] = 5,
    model: i.EmbedderOption = None,
    gpu: o.GpuOption = None,
    cpu: o.CpuOption = False,
    engine: o.EngineOption = None,
    threads: o.ThreadsOption = None,
    batch_size: i.BatchOption = 16,
    as_json: o.Json = False,
) -> None:
    """Show the entries nearest to an image."""
    from pdserve.index.search import load
    from pdserve.index.store import find
    from pdserve.vision.decode import decode

    folder = find(index, o.home())
    loaded = load(folder)
    bad = False
    with i.embedder(model, gpu, cpu, engine, threads, batch_size, folder) as opened:
        loaded.require(opened)
        if loaded.embedder is None:
            console.say(f"Note: {folder} does not say which embedder made it; {opened.name} is taken for it.")
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


def verify(index: i.IndexOption = i.DEFAULT, as_json: o.Json = False) -> None:
    """Look at checksums, counts, labels and every vector; the exit code is 1 if anything is wrong."""
    from pdserve.index.store import find
    from pdserve.index.verify import verify as look_at

    findings = look_at(find(index, o.home()))
    if as_json:
        for each in findings:
            console.json_line(asdict(each))
    else:
        words = {True: "good", False: "BAD", None: "unknown"}
        console.table(("what", "state", "detail"), [(f.what, words[f.good], f.detail) for f in findings])
    raise typer.Exit(1 if any(each.good is False for each in findings) else 0)


def check(
    index: i.IndexOption = i.DEFAULT,
    sample: Annotated[
        int, typer.Option("--sample", min=2, help="Entries looked for, where there are more.")
    ] = 2_000,
    duplicate: Annotated[
        float, typer.Option("--duplicate", min=0, max=1, help="Similarity of near-duplicates.")
    ] = 0.98,
    false_accept: Annotated[
        float, typer.Option("--false-accept", min=0, max=1, help="Rate that the threshold is to keep.")
    ] = 0.01,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Write the score distributions, a PNG.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Say how good a gallery is: recall, confusions, duplicates, likely mislabels, and a score threshold."""
    from pdserve.index import quality as checks
    from pdserve.index.store import find

    folder = find(index, o.home())
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
    _show(report)
    if picture:
        console.line(f"{picture}: the score distributions")


def _show(report: "Report") -> None:
    recall = "-" if report.recall_at_1 is None else f"{report.recall_at_1:.4f}"
    rows = [
        ("entries", f"{report.count} of {report.labels} labels, {report.type}, version {report.version}"),
        ("looked for", f"{report.queries}, of which {report.alone} are alone with their label"),
        ("recall@1, each left out", recall),
        ("near-duplicates", str(len(report.near_duplicates))),
        ("likely mislabels", str(len(report.mislabels))),
    ]
    if found := report.index_recall:
        rows.append(
            (f"{report.type} against exact", f"recall@1 {found.at_1:.4f}, recall@10 {found.at_10:.4f}")
        )
    if t := report.threshold:
        true = "" if t.true_accept_rate is None else f", true-accept rate {t.true_accept_rate:.4f}"
        rows.append(
            ("suggested threshold", f"{t.score:.4f}: false-accept rate {t.false_accept_rate:.4f}{true}")
        )
    console.table(("what", "is"), rows)
    if report.threshold and not report.threshold.reached:
        console.say(f"Note: no threshold keeps the false-accept rate at {report.threshold.goal}.")
    tables = (
        ("Confused", ("label", "taken for", "images"), [tuple(vars(c).values()) for c in report.confusions]),
        (
            "Near-duplicates",
            ("similarity", "image", "label", "image", "label"),
            [
                (p.similarity, p.images[0], p.labels[0], p.images[1], p.labels[1])
                for p in report.near_duplicates
            ],
        ),
        (
            "Likely mislabels",
            ("image", "label", "looks like", "of nearest"),
            [(m.image, m.label, m.looks_like, f"{m.votes}/{m.neighbours}") for m in report.mislabels],
        ),
    )
    for title, columns, lines in tables:
        if lines:
            console.table(columns, lines[:_SHOWN], title=f"{title} ({len(lines)})")
