"""``pdserve predict``: ask a server, or models in this process, about images."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_type_hints

import typer

from pdserve import console
from pdserve.clients.answers import items, single
from pdserve.clients.credentials import NO_ACCESS, Access, key_to_send
from pdserve.clients.discovery import find_server, find_service
from pdserve.commands import options as o
from pdserve.commands.images import Source, find_sources
from pdserve.commands.missing import bring_service
from pdserve.errors import (
    ImageError,
    InterruptError,
    KeyRefusedError,
    PdserveError,
    UnreachableError,
    UsageError,
)
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES, ServiceEntry
from pdserve.settings import describe

_FEW = 5  # images for which no progress is shown
_PATIENCE_S = 2  # for what is being asked when Ctrl-C is pressed
_FIRST = 6  # numbers of an embedding that are printed

Answer: TypeAlias = list[Any]  # the items of one image: labels, objects, numbers
Ask = Callable[[bytes], Answer]

ImagesArgument = Annotated[
    list[str], typer.Argument(metavar="PATH|URL|DIR|-…", help="Images; - is standard input.")
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", metavar="N", min=1, help="Labels per image, matches per object."),
]
DrawOption = Annotated[
    Path | None, typer.Option("--draw", metavar="DIR", help="Write the images with their answers here.")
]
JobsOption = Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=256, help="Images in flight.")]


@o.with_settings(SERVICES.values(), ("Model", "Device", "Preprocessing", "Results"), without=("top_k",))
def predict(
    images: ImagesArgument,
    service: o.ServiceOption = None,
    rpc: Annotated[bool, typer.Option("--rpc", help="Ask over gRPC instead of HTTP.")] = False,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="ADDRESS", help="http(s)://host:port; with --rpc (grpcs://)host:port."),
    ] = None,
    top_k: TopKOption = None,
    as_json: o.Json = False,
    draw: DrawOption = None,
    jobs: JobsOption = 8,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Time to wait for an answer.")
    ] = 60,
    local: Annotated[
        bool, typer.Option("--local", help="Run the models in this process, without a server.")
    ] = False,
    api_key: o.ApiKeyOption = None,
    tls: o.TlsOption = False,
    ca: o.CaOption = None,
    **given: Any,
) -> None:
    """Ask a running server about images; with --local, models in this process.

    Without --url it is the server that runs on this machine, on whatever port; --service says which where
    several run. The options from Model on go with --local.
    """
    sources = find_sources(images)
    settings = {name: value for name, value in given.items() if value is not None}
    if local:
        if rpc or url or api_key or tls or ca:
            raise UsageError("--local asks no server; leave out --rpc, --url, --api-key, --tls and --ca.")
        entry = SERVICES[_local_kind(service, settings)]
        asked = open_local(entry.kind, o.flags(settings | {"top_k": top_k}, entry.kind), os.environ, o.home())
    else:
        if settings:
            name = next(iter(settings)).replace("_", "-")
            raise UsageError(f"--{name} goes with --local; a server has its own settings.")
        access = Access(key_to_send(api_key, os.environ), tls, ca)
        if url is None:
            server = find_server(service, rpc, access)
            service, url = server.kind, server.address(rpc)
        entry = SERVICES[service or find_service(url, rpc, access)]
        asked = open_remote(entry.kind, url, rpc, timeout, top_k, access)
    failed = answer_all(sources, asked, entry, draw, jobs, as_json)
    raise typer.Exit(1 if failed else 0)


def answer_all(
    sources: Sequence[Source],
    asked: AbstractContextManager[Ask],
    entry: ServiceEntry,
    draw: Path | None,
    jobs: int,
    as_json: bool,
) -> int:
    """Ask about all images and print their answers; how many had none.

    With ``draw``, images with their answers are written there. Raises UsageError where the answers cannot be
    drawn.
    """
    if draw:
        if not can_draw(entry):
            raise UsageError(
                f"--draw: the answers of {entry.kind} are numbers, which cannot be drawn; leave it out."
            )
        from pdserve.vision.draw import load_font

        load_font()  # a wrong PDSERVE_FONT is reported now, not after a thousand answers
    failed = done = 0
    try:
        with asked as ask, console.image_bars(silent=len(sources) < _FEW) as bars:
            bars.start("predicting", len(sources), 0)
            for outcome in predict_all(sources, ask, jobs):
                bars.advance("predicting")
                picture = draw_answer(outcome, entry, draw) if draw else None
                failed += isinstance(outcome.answer, PdserveError)
                show(outcome, entry, picture, as_json)
                done += 1
    except KeyboardInterrupt:
        if not done:
            raise InterruptError(
                "Interrupted before the first answer; the same command starts again."
            ) from None
        rest = f" Ask again for those from {sources[done].name} on." if done < len(sources) else ""
        raise InterruptError(
            f"Interrupted after {done} of {len(sources)} images; their answers are whole.{rest}"
        ) from None
    return failed


def _local_kind(service: str | None, settings: Mapping[str, Any]) -> str:
    """The service to run here: the one named, else the first that has the options given."""
    sets = [kind for kind, entry in SERVICES.items() if settings.get("model") in entry.sets]
    if sets and not service:
        return sets[0]
    names = {kind: {each.name for each in describe(entry)} for kind, entry in SERVICES.items()}
    own = [name for name in settings if 0 < sum(name in each for each in names.values()) < len(names)]
    kinds = [kind for kind in SERVICES if own and names[kind] >= set(own)]
    kinds += [kind for kind in SERVICES if own and own[0] in names[kind]]  # `flags` then refuses the others
    if not service and not kinds:
        raise UsageError("--local needs --model NAME, the model to run, or --service NAME.")
    kind = service or kinds[0]
    role, *others = SERVICES[kind].roles
    if not others and role not in settings:
        raise UsageError(f"--local needs --{role} NAME, the model to run.")
    return kind


@dataclass(frozen=True)
class Outcome:
    """One image's items, or its error. ``data``: the image file's bytes where they could be read."""

    name: str
    data: bytes | None
    answer: Answer | PdserveError


def predict_all(sources: Sequence[Source], ask: Ask, jobs: int) -> Iterator[Outcome]:
    """Answers in the order of the sources, ``jobs`` in flight at a time.

    ``ask`` takes an image file's bytes; a PdserveError that it raises becomes the image's outcome, except
    UnreachableError and KeyRefusedError, which are raised: the other images would fare no better.
    """

    def one(source: Source) -> Outcome:
        data = None
        try:
            data = source.read()
            return Outcome(source.name, data, ask(data))
        except (UnreachableError, KeyRefusedError):
            raise
        except PdserveError as error:
            return Outcome(source.name, data, error)

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="pdserve-predict")
    ahead: deque[Future[Outcome]] = deque()
    try:
        # The pool is fed a few ahead, so that a long list does not keep all its images in memory.
        ahead.extend(pool.submit(one, source) for source in sources[: 2 * jobs])
        for source in [*sources[2 * jobs :], *[None] * len(ahead)]:
            outcome = ahead.popleft().result()
            if source is not None:
                ahead.append(pool.submit(one, source))
            yield outcome
    except (KeyboardInterrupt, GeneratorExit):
        # A silent server is not waited for; a model of this process answers soon.
        pool.shutdown(wait=False, cancel_futures=True)
        wait([each for each in ahead if not each.cancelled()], _PATIENCE_S)
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def open_remote(
    service: str, url: str | None, rpc: bool, timeout: float, top_k: int | None, access: Access = NO_ACCESS
) -> Iterator[Ask]:
    """A running server, at ``url`` or at the service's default port on this machine."""
    from pdserve.clients import HttpClient, RpcClient

    kind = RpcClient if rpc else HttpClient
    with kind(url, service, timeout, api_key=access.api_key, tls=access.tls, ca=access.ca) as client:
        yield lambda image: items(single(client.ask([image], top_k)))


@contextmanager
def open_local(
    service: str, flags: Mapping[str, Any], environ: Mapping[str, str], home: Home
) -> Iterator[Ask]:
    """The models in this process, with the settings that ``pdserve serve SERVICE`` would have.

    What is missing is fetched and converted. Raises the errors of that, and of `ServiceEntry.open`.
    """
    entry = SERVICES[service]
    settings = entry.settings(flags, environ)
    bring_service(settings, home)
    pipeline = entry.open(settings, home)

    def ask(image: bytes) -> Answer:
        (answer,) = pipeline.predict([image])
        if isinstance(answer, PdserveError):
            raise answer
        return list(getattr(answer, entry.items))

    try:
        yield ask
    finally:
        pipeline.close()


@dataclass(frozen=True)
class Picture:
    """A written picture: where it is, and the lines that could not be written into it."""

    path: Path
    legend: tuple[str, ...]


@dataclass(frozen=True)
class _Drawn:
    """What is drawn of an object; see `pdserve.vision.draw.DrawnObject`."""

    bbox: Any
    label: str
    score: float


def draw_answer(outcome: Outcome, entry: ServiceEntry, folder: Path) -> Picture | None:
    """Write an image with its boxes and labels, or its labels, into a folder.

    None where there is nothing to draw on: a failed image, or one that a server could read and this machine
    cannot. Raises DiskError, and SettingsError for a PDSERVE_FONT that is no font.
    """
    from pdserve.vision.decode import decode
    from pdserve.vision.draw import draw_labels, draw_objects, save

    if outcome.data is None or isinstance(outcome.answer, PdserveError):
        return None
    try:
        image = decode(outcome.data, sys.maxsize)  # the limit is the server's, which has accepted it
    except ImageError:
        return None
    if has_boxes(entry):
        whole = [_Drawn(tuple(map(round, each.bbox)), label_of(each), each.score) for each in outcome.answer]
        drawn = draw_objects(image, whole)
    else:
        drawn = draw_labels(image, outcome.answer)
    return Picture(save(drawn.picture, folder, outcome.name), drawn.legend)


def _item_type(entry: ServiceEntry) -> Any:
    """Of what the items of a service's answers are: a dataclass of pdserve.answers, or float."""
    return get_args(get_type_hints(entry.answer_type())[entry.items])[0]


def has_boxes(entry: ServiceEntry) -> bool:
    """Whether the items of a service's answers have a ``bbox``."""
    return "bbox" in get_type_hints(_item_type(entry))


def can_draw(entry: ServiceEntry) -> bool:
    """Whether the items of a service's answers can be drawn on an image: not those that are numbers."""
    return _item_type(entry) is not float


def show(outcome: Outcome, entry: ServiceEntry, picture: Picture | None, as_json: bool) -> None:
    """Print one image's answer: a JSON line, or lines of items under its name."""
    answer = outcome.answer
    legend = picture.legend if picture else ()
    if isinstance(answer, PdserveError):
        if as_json:
            console.json_line({"image": outcome.name, "error": answer.message})
        else:
            console.say(f"{outcome.name}: {answer.message}")
        return
    if as_json:
        content = {"image": outcome.name, entry.items: [_json(each) for each in answer]}
        console.json_line(content | ({"picture": str(picture.path)} if picture else {}))
    else:
        console.line(f"{outcome.name}:")
        for text in lines(answer):
            console.line(f"  {text}")
        if not answer:
            console.line(f"  no {entry.items.removesuffix('s')}")
        if picture:
            console.line(f"  {picture.path}")
    for text in legend:
        console.say(f"  {text}")


def lines(answer: Answer) -> Iterator[str]:
    """One image's items for people: a line each; of numbers how many there are, and the first."""
    if answer and isinstance(answer[0], float):
        more = " …" if len(answer) > _FIRST else ""
        yield f"{len(answer)} numbers: {' '.join(f'{each:.4f}' for each in answer[:_FIRST])}{more}"
        return
    for each in answer:
        box = " ".join(f"{corner:.0f}" for corner in getattr(each, "bbox", ()))
        yield f"{each.score:7.4f}  {box or f'{each.class_id:>5}'}  {label_of(each)}"


def label_of(item: Any) -> str:
    """An item's label; of an object with labels of its own these, with their scores."""
    if hasattr(item, "label"):
        return str(item.label)
    return ", ".join(f"{each.label} {each.score:.2f}" for each in item.labels) or "no label"


def _json(item: Any) -> Any:
    """An item's fields; the matches of an object where they say more than its label and score."""
    if isinstance(item, float):
        return item
    content: dict[str, Any] = asdict(item)
    content.pop("detection", None)
    if len(content.get("matches", ())) < 2:
        content.pop("matches", None)
    return content
