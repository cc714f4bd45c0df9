"""``pdserve predict``: what a person names -> image files -> answers, several in flight, in order."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pdserve.answers import FoundObject, Label
from pdserve.clients.address import is_this_machine
from pdserve.clients.answers import items, single
from pdserve.clients.credentials import NO_ACCESS, Access
from pdserve.errors import ImageError, KeyRefusedError, PdserveError, UnreachableError, UsageError
from pdserve.files import read_errors
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.vision.image_files import SUFFIXES, find_images

Result = TypeVar("Result")

STANDARD_INPUT = "-"

Answer: TypeAlias = list[Label] | list[FoundObject]
Ask = Callable[[bytes], Answer]


@dataclass(frozen=True)
class Source:
    """One image: the ``name`` a person knows it by, and how to get its bytes (raises ImageError)."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of one image. ``data`` are its bytes where they could be had; ``kind``: labels, objects."""

    name: str
    data: bytes | None
    answer: Answer | PdserveError
    kind: str = "labels"


def find_sources(named: Sequence[str]) -> list[Source]:
    """Files, folders (their images at any depth, in order of path), URLs, and ``-``.

    Raises UsageError for a folder without images and for a second ``-``.
    """
    if list(named).count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input (-) can be read once only.")
    sources: list[Source] = []
    for name in named:
        path = Path(name)
        if name == STANDARD_INPUT:
            sources.append(Source(name, sys.stdin.buffer.read))
        elif name.lower().startswith(("http://", "https://")):
            sources.append(Source(name, _url_reader(name)))
        elif path.is_dir():
            inside = find_images(path)
            if not inside:
                raise UsageError(f"The folder {name} has no images ({', '.join(sorted(SUFFIXES))}).")
            sources += [Source(str(p), _file_reader(p)) for p in inside]
        else:
            sources.append(Source(name, _file_reader(path)))
    return sources


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        with read_errors(ImageError, path):
            return path.read_bytes()

    return read


def _url_reader(url: str) -> Callable[[], bytes]:
    def read() -> bytes:
        import httpx

        try:
            local = is_this_machine(httpx.URL(url).host)
            response = httpx.get(url, follow_redirects=True, timeout=60, trust_env=not local)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a proxy's address
            raise ImageError(f"Cannot get {url}: {error}.") from error
        if not response.is_success:
            raise ImageError(f"Cannot get {url}: {response.status_code} {response.reason_phrase}.")
        return response.content

    return read


def predict_all(
    sources: Sequence[Source], predict: Ask, jobs: int, kind: str = "labels"
) -> Iterator[Outcome]:
    """Answers in the order of the sources, ``jobs`` in flight at a time.

    ``predict`` takes an image file's bytes; what it raises of PdserveError becomes the image's
    outcome, except UnreachableError and KeyRefusedError, which end it all: the others would fare no better.
    """

    def one(source: Source) -> Outcome:
        data = None
        try:
            data = source.read()
            return Outcome(source.name, data, predict(data), kind)
        except (UnreachableError, KeyRefusedError):
            raise
        except PdserveError as error:
            return Outcome(source.name, data, error, kind)

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="pdserve-predict")
    try:
        # The pool is fed a few ahead, so that a long list does not keep all its pictures in memory.
        ahead = deque(pool.submit(one, source) for source in sources[: 2 * jobs])
        for source in [*sources[2 * jobs :], *[None] * len(ahead)]:
            outcome = ahead.popleft().result()
            if source is not None:
                ahead.append(pool.submit(one, source))
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def remote(
    service: str, url: str | None, rpc: bool, timeout: float, top_k: int | None, access: Access = NO_ACCESS
) -> Iterator[Ask]:
    """Ask a running server, at ``url`` or the service's default port on this machine."""
    from pdserve.clients import HttpClient, RpcClient

    kind = RpcClient if rpc else HttpClient
    client = kind(url, service, timeout, api_key=access.api_key, tls=access.tls, ca=access.ca)
    with client:
        yield lambda image: items(single(client.ask([image], top_k)))


@contextmanager
def local(service: str, flags: Mapping[str, Any], environ: Mapping[str, str], home: Home) -> Iterator[Ask]:
    """Run the models in this process, with the settings that ``pdserve serve SERVICE`` would have.

    Raises what is wrong with a model, its description, the index or the device.
    """

    entry = SERVICES[service]
    pipeline = entry.open(entry.settings(flags, environ), home)

    def ask(image: bytes) -> Answer:
        (answer,) = pipeline.predict([image])
        if isinstance(answer, PdserveError):
            raise answer
        items: Answer = list(getattr(answer, entry.items))
        return items

    try:
        yield ask
    finally:
        pipeline.close()


@dataclass(frozen=True)
class Picture:
    """A written picture: where it is, and the lines that could not be written into it."""

    path: Path
    legend: tuple[str, ...]


def draw(outcome: Outcome, folder: Path) -> Picture | None:
    """Write an image with its labels, or boxes and labels, into a folder and say where.

    None where there is nothing to draw on: a failed image, or one that a server read and this machine
    cannot. Raises DiskError, and SettingsError for a font that is none.
    """
    from pdserve.vision.decode import decode
    from pdserve.vision.draw import draw_labels, draw_objects, save

    if outcome.data is None or isinstance(outcome.answer, PdserveError):
        return None
    try:
        image = decode(outcome.data, sys.maxsize)  # the limit is the server's, who has let it pass
    except ImageError:
        return None
    if outcome.kind == "objects":
        drawn = draw_objects(image, [each for each in outcome.answer if isinstance(each, FoundObject)])
    else:
        drawn = draw_labels(image, [each for each in outcome.answer if isinstance(each, Label)])
    return Picture(save(drawn.picture, folder, outcome.name), drawn.legend)
