"""Runs as people read them: tables of figures, sentences about what failed."""

from collections.abc import Sequence

from pdserve.tools.bench.run import Run

# Columns, and rows of as many cells; None where there is nothing to tell.
Table = tuple[list[str], list[tuple[object, ...]]]

_SHOWN = 160


def latencies(runs: Sequence[Run]) -> Table:
    """A row per run: throughput, failures, latencies in milliseconds."""
    columns = ["route", "load", "images/s", "requests/s", "failed"]
    columns += [f"{name} ms" for name in ("mean", "p50", "p90", "p95", "p99", "max")]
    rows: list[tuple[object, ...]] = []
    for run in runs:
        summary = run.latency_ms()
        values = tuple(summary.values()) if summary else (None,) * 6
        rows.append((run.route, str(run.load), run.images_per_s, run.requests_per_s, run.failed, *values))
    return columns, rows


def stages(runs: Sequence[Run]) -> Table | None:
    """A row per run of which the server told its stages: their means in milliseconds, and the mean batch."""
    told = [(run, run.server) for run in runs if run.server is not None]
    if not told:
        return None
    names = dict.fromkeys((s.stage, s.model) for _, server in told for s in server.stages)
    models = dict.fromkeys(b.model for _, server in told for b in server.batches)
    is_one = len({model for model in (*models, *(model for _, model in names)) if model}) < 2
    columns = ["route", "load"]
    columns += [f"{stage} ms" if is_one or not model else f"{stage} ms, {model}" for stage, model in names]
    columns += ["images/batch" if is_one else f"images/batch, {model}" for model in models]
    rows: list[tuple[object, ...]] = []
    for run, server in told:
        means = {(s.stage, s.model): s.mean_ms for s in server.stages}
        sizes = {b.model: b.mean for b in server.batches}
        cells = (*(means.get(name) for name in names), *(sizes.get(model) for model in models))
        rows.append((run.route, str(run.load), *cells))
    return columns, rows


def failures(run: Run) -> list[str]:
    """What went wrong in a run, a line each: failed requests by kind with a message of each; nothing if all
    went well.
    """
    name = f"{run.route}, {run.load}"
    lines = []
    if run.errors:
        lines.append(f"{name}: {run.failed} requests failed.")
    for kind, count in run.errors.items():
        example = " ".join(run.examples.get(kind, "").split())
        short = example if len(example) <= _SHOWN else f"{example[: _SHOWN - 1]}…"
        lines.append(f"  {count} × {kind}" + (f", as in: {short}" if short else ""))
    if run.unsent:
        lines.append(f"{name}: {run.unsent} were due while too many were in flight, and not sent.")
    if not run.answers:
        waiting = f"; {run.in_flight} were in flight" if run.in_flight else ""
        lines.append(f"{name}: no request was answered in {run.seconds:.1f} s{waiting}.")
    return lines
