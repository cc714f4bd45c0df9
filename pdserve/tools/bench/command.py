"""``pdserve bench``: put a load on a running service and measure it."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.errors import InterruptError, UsageError


def bench(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]…",
            help="http://host:port; for gRPC host:port (with TLS grpcs://…). Default: this machine.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", metavar="DIR|FILE", help="Images to send, in turn. Default: a synthetic photograph."
        ),
    ] = None,
    service: o.ServiceOption = None,
    routes: Annotated[
        list[str] | None,
        typer.Option(
            "--route",
            metavar="ROUTE",
            help="v1 (image as body), json, form, pipeline (Paddle Serving's HTTP), grpc; several: v1,grpc.",
        ),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            "--clients",
            metavar="N,N…",
            help="Closed loop: so many clients, each waiting for its answer; 8.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="R,R…", help="Open loop: so many requests per second, whatever is answered."
        ),
    ] = None,
    arrivals: Annotated[
        Literal["poisson", "constant"],
        typer.Option("--arrivals", help="When the requests of --rate are sent."),
    ] = "poisson",
    seed: Annotated[int, typer.Option("--seed", help="Of the random times of poisson.")] = 0,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            metavar="S",
            min=0.01,
            help="Seconds of a run; 10, unless --requests is given.",
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", metavar="N", min=1, help="Requests of a run.")
    ] = None,
    warm_up: Annotated[
        float, typer.Option("--warm-up", metavar="S", min=0, help="Seconds before the run, not counted.")
    ] = 2,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Images in a request.")] = 1,
    max_in_flight: Annotated[
        int, typer.Option("--max-in-flight", min=1, help="With --rate, the most requests without an answer.")
    ] = 500,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.001, help="Seconds to wait for an answer.")
    ] = 60,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The service's name on route pipeline. Default: the guide's."),
    ] = None,
    api_key: o.ApiKeyOption = None,
    tls: o.TlsOption = False,
    ca: o.CaOption = None,
    remote: Annotated[
        bool,
        typer.Option("--remote", help="The server may be on another machine, and I may load it."),
    ] = False,
    as_json: o.Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Write all figures there.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png|svg", help="Draw latency against load there."),
    ] = None,
) -> None:
    """Measure a running service under load: throughput, latency, errors, the server's stages.

    Several --clients, or several --rate, or several --route make several runs in one table.
    """
    from pdserve.clients.credentials import Access, key_to_send
    from pdserve.tools.bench import report, session
    from pdserve.tools.bench.targets import choose_targets

    plan = session.Plan(
        loads=session.loads(_numbers(clients, "--clients"), _numbers(rate, "--rate"), arrivals),
        duration_s=10 if duration is None and requests is None else duration,
        requests=requests,
        warm_up_s=warm_up,
        timeout_s=timeout,
        seed=seed,
        max_in_flight=max_in_flight,
    )
    if out:
        report.check_record(out)
    if plot:
        report.check_plot(plot)
    chosen = choose_targets(
        urls or (),
        routes=[route.strip() for each in routes or () for route in each.split(",")],
        service=service,
        images=images or (),
        batch=batch,
        name=name,
        access=Access(key_to_send(api_key, os.environ), tls, ca),
        remote=remote,
        note=console.say,
    )
    on_run = (lambda run: console.json_line(run.to_json())) if as_json else (lambda run: None)
    runs = session.measure(plan, chosen, on_run, console.say)
    if not as_json:
        console.table(*report.latencies(runs), digits=1)
        if stages := report.stages(runs):
            console.table(*stages, title="In the server, on average", digits=2)
    for run in runs:
        for text in report.failures(run):
            console.say(text)
    if out:
        report.write_record(runs, out)
    if plot and runs:
        report.plot(runs, plot)
        console.say(f"{plot}: latency against load.")
    if len(runs) < len(chosen.targets) * len(plan.loads) or any(run.interrupted for run in runs):
        raise InterruptError(
            "Interrupted; the figures are of what was measured until then. "
            "The same command measures from the start."
        )
    raise typer.Exit(0 if runs and all(run.answers for run in runs) else 1)


def _numbers(text: str | None, option: str) -> list[float] | None:
    """``1,8,64``."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}; give numbers, as in {option} 1,8,64.") from error
