"""The commands: each parses, calls one function, hands its result to the console."""

import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import __version__, console
from pdserve.errors import PdserveError, UsageError

if TYPE_CHECKING:
    from pdserve.home import Home

app = typer.Typer(
    name="pdserve",
    help="Fetch, convert and serve PaddlePaddle vision models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
serve_app = typer.Typer(name="serve", help="Start a server.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(serve_app)


class Service(str, Enum):
    """The services there are."""

    classification = "classification"


class Engine(str, Enum):
    """The engines there are."""

    auto = "auto"
    openvino = "openvino"
    paddle = "paddle"
    onnx = "onnx"


Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|DIR", help="A converted model's name, or a serving folder."),
]
EngineOption = Annotated[
    Engine | None,
    typer.Option("--engine", help="What runs the model; auto picks the best that is installed."),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="IDS", help='GPU numbers, as in "0" or "0,1".', show_default=False),
]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Run on the CPU, whatever the configuration says.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads per instance.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Label names, one a line, or class id and name."),
]
ResizeShortOption = Annotated[
    int | None, typer.Option("--resize-short", min=1, help="Resize the short side to this.")
]
ResizeOption = Annotated[
    str | None, typer.Option("--resize", metavar="W,H", help="Resize to this width and height.")
]
InterpolationOption = Annotated[
    str | None, typer.Option("--interpolation", help="nearest, bilinear, bicubic, area, lanczos.")
]
BackendOption = Annotated[str | None, typer.Option("--backend", help="The library that resizes: cv2 or pil.")]
CropOption = Annotated[
    int | None, typer.Option("--crop", min=1, help="Centre crop to a square of this side.")
]
ScaleOption = Annotated[str | None, typer.Option("--scale", help="Factor before the mean, as in 1/255.")]
MeanOption = Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Mean per channel.")]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Standard deviation per channel.")
]
ChannelOption = Annotated[str | None, typer.Option("--channel-order", help="rgb or bgr.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", min=1, help="How many labels an image gets.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", min=0, max=1, help="Score from which a label counts.")
]


def main() -> None:
    """The ``pdserve`` command. Exit codes: 0 done, 1 the work failed, 2 the command line is wrong."""
    try:
        app()
    except PdserveError as error:
        sys.exit(console.failed(error))


def _version(wanted: bool) -> None:
    if wanted:
        console.line(f"pdserve {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Fetch, convert and serve PaddlePaddle vision models.

    The way: fetch NAME, convert --model NAME, serve classification --model NAME, predict IMAGE.
    """


def _home() -> "Home":
    from pdserve.home import Home

    return Home.from_environ(os.environ)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="Names in the catalog; with --list, words to look for."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what can be fetched.")] = False,
    mirror: Annotated[
        str | None, typer.Option("--mirror", metavar="URL|DIR", help="Stands in for the model host.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Download models and data sets. Without a name: all that the default services need."""
    from pdserve import catalog
    from pdserve import fetch as fetching

    if list_:
        _list(names or [""], as_json)
        return
    home = _home()
    with console.download_bars() as bars:
        results = fetching.fetch_all(
            names or catalog.DEFAULTS, home, mirror=mirror, force=force, progress=bars
        )
    failed: list[PdserveError] = []
    for result in results:
        if isinstance(result, PdserveError):
            failed.append(result)
        elif as_json:
            console.json_line(
                {
                    "name": result.name,
                    "action": result.action,
                    "path": str(result.path),
                    "origin": result.origin,
                    "sha256": result.sha256,
                    "bytes": result.bytes,
                }
            )
        else:
            console.line(f"{result.name}: {result.action}, {result.path}")
    if failed:
        codes = [console.failed(error) for error in failed]
        raise typer.Exit(max(codes))
    models = [
        r.name for r in results if not isinstance(r, PdserveError) and catalog.get(r.name).task != "dataset"
    ]
    if models and not as_json:
        console.say("Next: " + " && ".join(f"pdserve convert --model {name}" for name in models))


def _list(words: list[str], as_json: bool) -> None:
    from pdserve import catalog

    found = [
        entry for entry in catalog.load().values() if all(entry in catalog.search(word) for word in words)
    ]
    if not found:
        raise UsageError(
            f"The catalog has nothing like {' '.join(words)!r}; `pdserve fetch --list` shows all names."
        )
    if as_json:
        for entry in found:
            console.json_line(catalog.described(entry))
    else:
        console.table(("name", "task", "family"), [(e.name, e.task, e.family) for e in found])


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        # Aliases hold no "=", while a variable's name might.
        old, equals, new = text.rpartition("=")
        if not equals or not old or not new:
            raise UsageError(f"{option} {text!r} is not of the form name=alias.")
        pairs[old] = new
    return pairs


@app.command()
def convert(
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="A fetched model.")] = None,
    dirname: Annotated[
        Path | None, typer.Option("--dirname", metavar="DIR", help="An inference model's folder.")
    ] = None,
    serving_server: Annotated[
        Path | None,
        typer.Option(
            "--serving-server", "--serving_server", metavar="DIR", help="Where the serving model goes."
        ),
    ] = None,
    serving_client: Annotated[
        Path | None,
        typer.Option(
            "--serving-client", "--serving_client", metavar="DIR", help="Where the client's files go."
        ),
    ] = None,
    model_filename: Annotated[
        str | None,
        typer.Option("--model-filename", "--model_filename", metavar="FILE", help="The model file's name."),
    ] = None,
    params_filename: Annotated[
        str | None,
        typer.Option(
            "--params-filename", "--params_filename", metavar="FILE", help="The parameter file's name."
        ),
    ] = None,
    feed_alias: Annotated[list[str] | None, typer.Option("--feed-alias", metavar="NAME=ALIAS")] = None,
    fetch_alias: Annotated[list[str] | None, typer.Option("--fetch-alias", metavar="NAME=ALIAS")] = None,
    as_json: Json = False,
) -> None:
    """Make a serving model of an inference model, aliases patched; without options, of all that is fetched."""
    from pdserve import models
    from pdserve.convert import convert as convert_folder

    if dirname:
        if model:
            raise UsageError("--model and --dirname name two models; give one of them.")
        if not serving_server or not serving_client:
            raise UsageError("--dirname needs --serving-server DIR and --serving-client DIR beside it.")
        done = [
            convert_folder(
                dirname,
                serving_server,
                serving_client,
                model_filename=model_filename,
                params_filename=params_filename,
                feed_aliases=_pairs(feed_alias, "--feed-alias"),
                fetch_aliases=_pairs(fetch_alias, "--fetch-alias"),
            )
        ]
    else:
        if serving_server or serving_client or model_filename or params_filename or feed_alias or fetch_alias:
            raise UsageError("These options go with --dirname; with --model only the name is given.")
        home = _home()
        names = [model] if model else models.fetched_models(home)
        if not names:
            raise UsageError(f"Nothing is fetched in {home.models}; type `pdserve fetch NAME` first.")
        done = [models.convert_fetched(name, home) for name in names]
    for serving in done:
        if as_json:
            console.json_line(
                {
                    "name": serving.name,
                    "path": str(serving.path),
                    "feeds": {v.name: v.alias for v in serving.config.feeds},
                    "fetches": {v.name: v.alias for v in serving.config.fetches},
                }
            )
        else:
            console.line(f"{serving.name}: converted, {serving.path}")


@app.command()
def alias(
    dirs: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Serving folders, server's or client's.")
    ],
    feed: Annotated[
        list[str] | None, typer.Option("--feed", metavar="NAME=ALIAS", help="A feed's new alias.")
    ] = None,
    fetch: Annotated[
        list[str] | None, typer.Option("--fetch", metavar="NAME=ALIAS", help="A fetch's new alias.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show feeds and fetches, or give them aliases, in the prototxt files: text and stream alike."""
    from pdserve.convert import patch_aliases, read_configs

    feeds, fetches = _pairs(feed, "--feed"), _pairs(fetch, "--fetch")
    files = patch_aliases(dirs, feeds, fetches) if feeds or fetches else read_configs(dirs)
    for f in files:
        rows = [
            (kind, v.name, v.alias, v.dtype, v.shape)
            for kind, variables in (("feed", f.config.feeds), ("fetch", f.config.fetches))
            for v in variables
        ]
        if as_json:
            for row in rows:
                keys = ("kind", "name", "alias", "dtype", "shape")
                console.json_line({"file": str(f.text)} | dict(zip(keys, row, strict=True)))
        else:
            shown = [(*row[:4], "×".join(map(str, row[4])) or "-") for row in rows]
            console.table(("kind", "name", "alias", "dtype", "shape"), shown, title=str(f.text))
    for f in files:
        if f.disagreement and not (feeds or fetches):
            console.say(f"Note: {f.disagreement}; `pdserve alias` with --feed or --fetch writes both alike.")


def _devices(gpu: str | None, cpu: bool) -> tuple[str, ...] | None:
    if gpu is not None and cpu:
        raise UsageError("--gpu and --cpu contradict each other; give one of them.")
    if cpu:
        return ("cpu",)
    if gpu is None:
        return None
    numbers = [part.strip() for part in gpu.split(",")]
    if not all(part.isdecimal() for part in numbers):
        raise UsageError(f'--gpu is {gpu!r}; give the GPUs\' numbers, as in "0" or "0,1".')
    return tuple(f"gpu:{int(part)}" for part in numbers)


def _numbers(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


@serve_app.command("classification")
def serve_classification(
    model: ModelOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A config.yml in Paddle Serving's form.")
    ] = None,
    gpu: GpuOption = None,
    cpu: CpuOption = False,
    engine: EngineOption = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")] = None,
    threads: ThreadsOption = None,
    instances: Annotated[
        int | None, typer.Option("--instances", min=1, help="Engine instances per device.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1 if not said.")
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option("--http-port", min=0, max=65535, help="HTTP port; 18080 if not said, 0 for any."),
    ] = None,
    rpc_port: Annotated[
        int | None,
        typer.Option("--rpc-port", min=0, max=65535, help="gRPC port; 9993 if not said, 0 for any."),
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option("--max-batch-size", min=1, help="Images per batch.")
    ] = None,
    max_queue_delay_ms: Annotated[
        float | None,
        typer.Option("--max-queue-delay-ms", min=0, help="How long a batch waits to fill; 0: never."),
    ] = None,
    max_queue_size: Annotated[
        int | None, typer.Option("--max-queue-size", min=1, help="Images that may wait.")
    ] = None,
    timeout_ms: Annotated[
        int | None, typer.Option("--timeout-ms", min=1, help="Time limit of a request.")
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option("--max-body-bytes", min=1, help="Limit of a body.")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option("--max-pixels", min=1, help="Limit of an image.")] = None,
    max_images: Annotated[int | None, typer.Option("--max-images", min=1, help="Limit of a request.")] = None,
    grace_s: Annotated[
        float | None, typer.Option("--grace-s", min=0, help="Seconds that running requests get at a stop.")
    ] = None,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Log there too, rotating.")
    ] = None,
    labels: LabelsOption = None,
    top_k: TopKOption = None,
    threshold: ThresholdOption = None,
    resize_short: ResizeShortOption = None,
    resize: ResizeOption = None,
    interpolation: InterpolationOption = None,
    backend: BackendOption = None,
    crop: CropOption = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    channel_order: ChannelOption = None,
) -> None:
    """Serve image classification over HTTP and gRPC.

    Settings come from the options, else from PDSERVE_… in the environment (PDSERVE_HTTP_PORT=8080),
    else from the configuration file, else from defaults.
    """
    flags = dict(locals())
    from pdserve import settings
    from pdserve.services.server import serve_classification as serve

    serve(settings.classification(_flags(flags), os.environ, config), _home())


def _flags(given: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments as settings."""
    flags = {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}
    for name in ("resize", "mean", "std"):
        flags[name] = _numbers(flags[name])
    flags["devices"] = _devices(flags.pop("gpu"), flags.pop("cpu"))
    flags.pop("config", None)
    return flags


@app.command()
def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="PATH|URL|DIR|-…", help="Images; - is standard input.")
    ],
    service: Annotated[
        Service, typer.Option("--service", help="Which service to ask.")
    ] = Service.classification,
    rpc: Annotated[bool, typer.Option("--rpc", help="Ask over gRPC instead of HTTP.")] = False,
    url: Annotated[
        str | None,
        typer.Option("--url", help="http://host:port, or host:port with --rpc; this machine if not said."),
    ] = None,
    top_k: TopKOption = None,
    as_json: Json = False,
    draw: Annotated[
        Path | None, typer.Option("--draw", metavar="DIR", help="Write the pictures with their labels.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=256, help="Images in flight.")] = 8,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds to wait for an answer.")
    ] = 60,
    local: Annotated[bool, typer.Option("--local", help="Run --model in this process; no server.")] = False,
    model: ModelOption = None,
    gpu: GpuOption = None,
    cpu: CpuOption = False,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    labels: LabelsOption = None,
    threshold: ThresholdOption = None,
    resize_short: ResizeShortOption = None,
    resize: ResizeOption = None,
    interpolation: InterpolationOption = None,
    backend: BackendOption = None,
    crop: CropOption = None,
    scale: ScaleOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    channel_order: ChannelOption = None,
) -> None:
    """Ask a running server about images; with --local, a model in this process."""
    given = dict(locals())
    from pdserve import predict as predicting

    sources = predicting.find_sources(images)
    own = {k: given[k] for k in _LOCAL_ONLY}
    if not local:
        unfit = [name for name, value in own.items() if value not in (None, False)]
        if unfit:
            raise UsageError(
                f"--{unfit[0].replace('_', '-')} goes with --local; a server has its own settings."
            )
        asked: Any = predicting.remote(service.value, url, rpc, timeout, top_k)
    elif rpc or url:
        raise UsageError("--local asks no server; leave out --rpc and --url.")
    elif not model:
        raise UsageError("--local needs --model NAME, the model to run.")
    else:
        asked = predicting.local(_flags(own | {"top_k": top_k}), os.environ, _home())
    bad = 0
    with asked as ask, console.counted("predicting", len(sources)) as bar:
        for outcome in predicting.predict_all(sources, ask, jobs):
            bar.step()
            picture = predicting.draw(outcome, draw) if draw else None
            bad += isinstance(outcome.answer, PdserveError)
            console.outcome(outcome, picture, as_json)
    raise typer.Exit(1 if bad else 0)


_LOCAL_ONLY = (
    "model", "gpu", "cpu", "engine", "threads", "labels", "threshold", "resize_short", "resize",
    "interpolation", "backend", "crop", "scale", "mean", "std", "channel_order",
)  # fmt: skip


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, which engines and devices really run, which ports are taken."""
    from pdserve.doctor import examine

    findings = examine(os.environ)
    if as_json:
        for finding in findings:
            console.json_line(finding.described())
    else:
        rows = [(f.area, f.name, f.state, f.detail, f.remedy or "") for f in findings]
        console.table(("area", "what", "state", "detail", "to mend it, type"), rows)
