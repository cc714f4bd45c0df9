"""``pdserve predict``: what a person names -> image files -> answers, several in flight, in order."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdserve.clients.address import is_this_machine
from pdserve.errors import ImageError, PdserveError, UnreachableError, UsageError
from pdserve.home import Home
from pdserve.vision.scores import Label

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
STANDARD_INPUT = "-"

Ask = Callable[[bytes], list[Label]]


@dataclass(frozen=True)
class Source:
    """One image: the ``name`` a person knows it by, and how to get its bytes (raises ImageError)."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of one image. ``data`` are its bytes where they could be had."""

    name: str
    data: bytes | None
    answer: list[Label] | PdserveError


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
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UsageError(f"The folder {name} has no images ({', '.join(sorted(SUFFIXES))}).")
            sources += [Source(str(p), _file_reader(p)) for p in inside]
        else:
            sources.append(Source(name, _file_reader(path)))
    return sources


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"Cannot read {path}: {error.strerror}.") from error

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


def predict_all(sources: Sequence[Source], predict: Ask, jobs: int) -> Iterator[Outcome]:
    """Answers in the order of the sources, ``jobs`` in flight at a time.

    ``predict`` takes an image file's bytes; what it raises of PdserveError becomes the image's
    outcome, except UnreachableError, which ends it all: the others would fare no better.
    """

    def one(source: Source) -> Outcome:
        data = None
        try:
            data = source.read()
            return Outcome(source.name, data, predict(data))
        except UnreachableError:
            raise
        except PdserveError as error:
            return Outcome(source.name, data, error)

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
def remote(service: str, url: str | None, rpc: bool, timeout: float, top_k: int | None) -> Iterator[Ask]:
    """Ask a running server, at ``url`` or the service's default port on this machine."""
    from pdserve.clients import HttpClient, RpcClient

    client = RpcClient(url, service, timeout) if rpc else HttpClient(url, service, timeout)
    with client:
        yield lambda image: client.predict(image, top_k)


@contextmanager
def local(flags: Mapping[str, Any], environ: Mapping[str, str], home: Home) -> Iterator[Ask]:
    """Run a model in this process, with the settings that ``pdserve serve classification`` would have.

    Raises what is wrong with the model, its description or the device.
    """
    from pdserve import settings
    from pdserve.services.classification import open_classification

    pipeline = open_classification(settings.classification(flags, environ), home)

    def ask(image: bytes) -> list[Label]:
        answer = pipeline.predict([image])[0]
        if isinstance(answer, PdserveError):
            raise answer
        return answer

    try:
        yield ask
    finally:
        pipeline.close()


def draw(outcome: Outcome, folder: Path) -> Path | None:
    """Write an image with its labels into a folder and say where; None where there is nothing to draw on.

    That is a failed image, or one that a server read and this machine cannot. Raises DiskError.
    """
    from pdserve.vision.decode import decode
    from pdserve.vision.draw import draw_labels, save

    if outcome.data is None or isinstance(outcome.answer, PdserveError):
        return None
    try:
        image = decode(outcome.data, sys.maxsize)  # the limit is the server's, who has let it pass
    except ImageError:
        return None
    return save(draw_labels(image, outcome.answer), folder, outcome.name)
