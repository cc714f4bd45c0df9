"""Asking a running server about images: the options, the answers' lines, pictures of them.

What ``pdserve predict`` and pdserve-client have in common; importing this loads no library for command lines.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, get_args, get_type_hints

from pdserve import console
from pdserve.clients.answers import items, single
from pdserve.clients.credentials import NO_ACCESS, Access
from pdserve.clients.discovery import find_server, find_service
from pdserve.commands.images import Source
from pdserve.errors import (
    ImageError,
    InterruptError,
    KeyRefusedError,
    OnlyClientError,
    PdserveError,
    UnreachableError,
    UsageError,
)
from pdserve.pipelines import SERVICES, ServiceEntry

_FEW = 5  # images for which no progress is shown
_PATIENCE_S = 2  # for what is being asked when Ctrl-C is pressed
_FIRST = 6  # numbers of an embedding that are printed

Answer: TypeAlias = list[Any]  # the items of one image: labels, objects, numbers
Ask = Callable[[bytes], Answer]


def ask_server(
    sources: Sequence[Source],
    *,
    service: str | None,
    name: str | None,
    rpc: bool,
    url: str | None,
    top_k: int | None,
    as_json: bool,
    draw: Path | None,
    jobs: int,
    timeout: float,
    access: Access,
) -> int:
    """Ask the server at ``url``, or the one that runs on this machine; how many images had no answer.

    ``service``: its kind, where that is known; ``name``: its name, where the server has several. Raises
    UsageError where several run.
    """
    if url is None:
        server = find_server(service, rpc, access, name=name)
        if name is None and len(server.names) > 1:
            raise UsageError(
                f"The services {', '.join(server.names[:-1])} and {server.names[-1]} run at "
                f"{server.address(rpc)}; say which with --name."
            )
        service, url = server.kind, server.address(rpc)
    entry = SERVICES[service or find_service(url, rpc, access, name=name)]
    asked = open_remote(entry.kind, url, rpc, timeout, top_k, access, name or "")
    return answer_all(sources, asked, entry, draw, jobs, as_json)


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
        if find_spec("pdserve.vision.draw") is None:
            raise OnlyClientError("--draw")
        from pdserve.vision.draw import load_font

        load_font()  # a wrong PDSERVE_FONT is reported now, not after a thousand answers
    failed = done = 0
    try:
        with asked as ask, console.image_bars(silent=len(sources) < _FEW) as bars:
            bars.start("predicting", len(sources), 0)
            for outcome in predict_all(sources, ask, jobs):
                bars.advance("predicting", 1)
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
    service: str,
    url: str | None,
    rpc: bool,
    timeout: float,
    top_k: int | None,
    access: Access = NO_ACCESS,
    name: str = "",
) -> Iterator[Ask]:
    """A running server, at ``url`` or at the service's default port on this machine; ``name``: see above."""
    from pdserve.clients import HttpClient, RpcClient

    kind = RpcClient if rpc else HttpClient
    with kind(url, service, timeout, name, api_key=access.api_key, tls=access.tls, ca=access.ca) as client:
        yield lambda image: items(single(client.ask([image], top_k)))


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
